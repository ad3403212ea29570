"""Small video files made with PyAV, for the tests."""

import pathlib
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np
from PIL import Image


def drifting_frames(
    num_frames: int,
    height: int = 48,
    width: int = 64,
    *,
    step: tuple[int, int] = (2, 0),
    seed: int = 0,
) -> np.ndarray:
    """Return uint8 `[n, h, w, 3]`: a smooth texture that moves by `step` (x, y) pixels a frame."""
    rng = np.random.default_rng(seed)
    margin_x, margin_y = abs(step[0]) * num_frames, abs(step[1]) * num_frames
    size = (width + 2 * margin_x, height + 2 * margin_y)
    coarse = rng.integers(0, 255, (size[1] // 6 + 1, size[0] // 6 + 1, 3), np.uint8)
    texture = np.asarray(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    frames = []
    for index in range(num_frames):
        x, y = margin_x - index * step[0], margin_y - index * step[1]
        frames.append(texture[y : y + height, x : x + width])
    return np.stack(frames)


def write_video(
    path: pathlib.Path,
    frames: np.ndarray,
    *,
    codec: str = "mpeg4",
    rate: int = 25,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    audio_seconds: float = 0.0,
    container_format: str | None = None,
    rotation: int = 0,
    times_ms: Sequence[int] | None = None,
) -> pathlib.Path:
    """Encode `frames`, optionally beside a silent sound track, and return `path`.

    `rotation` (degrees, counterclockwise) is only written into the container; the pictures are
    coded as they are. `times_ms` are the frames' time stamps, instead of a constant rate.
    """
    with av.open(
        str(path), "w", format=container_format, options=container_options or {}
    ) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        if rotation:
            stream.set_display_rotation(rotation)
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream("pcm_s16le", rate=8000) if audio_seconds else None
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if times_ms is not None:
                picture.pts, picture.time_base = int(times_ms[index]), Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
        if audio is not None:
            silence = np.zeros((1, int(8000 * audio_seconds)), np.int16)
            sound = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
            sound.sample_rate = 8000
            container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
    return path


def write_sound(path: pathlib.Path) -> pathlib.Path:
    """Write a file that holds sound and no picture."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    return path


def cut(path: pathlib.Path, share: float) -> pathlib.Path:
    """Write the first part of a file beside it and return its path."""
    content = path.read_bytes()
    target = path.with_name(f"{path.stem}_cut{round(100 * share)}{path.suffix}")
    target.write_bytes(content[: int(len(content) * share)])
    return target
