"""Figures of the web page: frames above their motion, and a chart of labels over time."""

import io

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from moclip_jax.inference.prediction import Prediction
from moclip_jax.input_pipeline.video.clip import Clip
from moclip_jax.reporting.motion_figures import field_to_rgb

MOST_LABELS = 5
FRAMES_SHOWN = 5
FRAME_WIDTH = 200


def motion_image(video: Clip) -> Image.Image:
    """Return frames of a video above their accumulated motion, as one figure."""
    fields = video.motion.accumulate(video.frame_indices.tolist())
    height, width = fields.shape[1:3]
    lengths = np.hypot(*np.moveaxis(fields.astype(np.float32), -1, 0))
    # Right after an I-frame there is little motion: of each part, the frame with the most is shown.
    parts = np.array_split(np.arange(len(fields)), min(FRAMES_SHOWN, len(fields)))
    chosen = [part[lengths[part].mean(axis=(1, 2)).argmax()] for part in parts]
    # One scale for all, so that a still moment looks still.
    bound = max(float(np.percentile(lengths[chosen], 99)), 1.0)
    size = (FRAME_WIDTH, round(FRAME_WIDTH * height / width))
    canvas = Image.new("RGB", (len(chosen) * (size[0] + 4) - 4, 2 * size[1] + 4), "white")
    for column, position in enumerate(chosen):
        left = column * (size[0] + 4)
        frame = Image.open(io.BytesIO(video.frames[position]))
        colours = Image.fromarray((255 * field_to_rgb(fields[position], bound)).astype(np.uint8))
        canvas.paste(frame.resize(size), (left, 0))
        canvas.paste(colours.resize(size), (left, size[1] + 4))
    return canvas


def timeline_image(prediction: Prediction, unit: str) -> Image.Image:
    """Return a chart of the likeliest labels of a video over its windows, whose scores hold all."""
    figure = Figure(figsize=(8, 2.8), layout="constrained")
    axis = figure.subplots()
    edges = [*(window.start_s for window in prediction.windows), prediction.windows[-1].end_s]
    labels = [score.label for score in prediction.scores]
    probabilities = [
        {score.label: score.probability for score in window.scores} for window in prediction.windows
    ]
    styles = zip(labels[:MOST_LABELS], ("-", "--", "-.", ":", (0, (1, 4))), strict=False)
    for position, (label, style) in enumerate(styles):
        values = [scores[label] for scores in probabilities]
        axis.stairs(
            values,
            edges,
            label=label,
            linestyle=style,
            linewidth=2.2 - 0.3 * position,
            baseline=None,
        )
    axis.set_ylim(-0.03, 1.03)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set_xlabel(unit)
    legend = axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    for text in legend.get_texts():
        # A dollar sign in a label is no formula.
        text.set_parse_math(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return Image.open(buffer)
