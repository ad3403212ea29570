"""Small video files made with PyAV, for the tests."""

import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from fractions import Fraction

import av
import numpy as np
from av.bitstream import BitStreamFilterContext
from PIL import Image

# Containers that hold H.264 with start codes; the others write the length of each unit.
ANNEX_B = (".avi", ".ts", ".h264")


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
    pixel_aspect: Fraction | None = None,
) -> pathlib.Path:
    """Encode `frames`, optionally beside a silent sound track, and return `path`.

    `rotation` (degrees, counterclockwise) is only written into the container; the frames are
    coded as they are. `times_ms` are the frames' time stamps, instead of a constant rate.
    `pixel_aspect` is the width of a pixel over its height.
    """
    with av.open(
        str(path), "w", format=container_format, options=container_options or {}
    ) as container:
        stream = container.add_stream(codec, rate=rate, options=options or {})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = pix_fmt
        if rotation:
            stream.set_display_rotation(rotation)
        if pixel_aspect is not None:
            stream.codec_context.sample_aspect_ratio = pixel_aspect
        if times_ms is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        audio = container.add_stream("pcm_s16le", rate=8000) if audio_seconds else None
        for index, frame in enumerate(frames):
            coded = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
            if times_ms is not None:
                coded.pts, coded.time_base = int(times_ms[index]), Fraction(1, 1000)
            container.mux(stream.encode(coded))
        container.mux(stream.encode(None))
        if audio is not None:
            silence = np.zeros((1, int(8000 * audio_seconds)), np.int16)
            sound = av.AudioFrame.from_ndarray(silence, format="s16", layout="mono")
            sound.sample_rate = 8000
            container.mux(audio.encode(sound))
            container.mux(audio.encode(None))
    if codec == "libsvtav1" and sys.platform == "linux":
        # For root, the encoder gives this thread real-time priority, which all tests after this one
        # and what they start would keep.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def write_sound(path: pathlib.Path) -> pathlib.Path:
    """Write a file that holds sound and no frame."""
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


def remux(
    source: pathlib.Path,
    target: pathlib.Path,
    *,
    container_options: dict[str, str] | None = None,
    time_base: Fraction | None = None,
    edit: Callable[[int, bytes], bytes | None] | None = None,
) -> pathlib.Path:
    """Copy the packets of a video into another container, and return its path.

    `time_base` is what the container declares as the duration of a frame, where it has to declare
    one (AVI). `edit` takes the number and the content of a packet, and returns what stands in its
    place; None leaves the packet out.
    """
    with (
        av.open(str(source)) as reading,
        av.open(str(target), "w", container_options=container_options or {}) as writing,
    ):
        stream = writing.add_stream_from_template(reading.streams.video[0])
        if time_base is not None:
            stream.time_base = time_base
        packets = (packet for packet in reading.demux(video=0) if packet.size)
        if reading.streams.video[0].codec_context.name == "h264" and target.suffix in ANNEX_B:
            to_annex_b = BitStreamFilterContext("h264_mp4toannexb", reading.streams.video[0])
            packets = (made for packet in packets for made in to_annex_b.filter(packet))
        for index, packet in enumerate(packets):
            content = bytes(packet) if edit is None else edit(index, bytes(packet))
            if content is None:
                continue
            copy = av.Packet(content)
            copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
            copy.duration, copy.is_keyframe = packet.duration, packet.is_keyframe
            copy.stream = stream
            writing.mux(copy)
    return target


def write_noisy_video(path: pathlib.Path) -> pathlib.Path:
    """Write 24 frames with noise, whose packets are long enough to be damaged in the middle."""
    frames = drifting_frames(24, 96, 128, step=(2, 1)) // 2
    frames += np.random.default_rng(0).integers(0, 120, frames.shape, np.uint8)
    options = {"bf": "0", "g": "4", "crf": "18", "x264-params": "scenecut=0"}
    return write_video(path, frames, codec="libx264", options=options)


def damage_packets(path: pathlib.Path, target: pathlib.Path, chosen: Sequence[int]) -> pathlib.Path:
    """Overwrite the middle of some H.264 packets."""

    def edit(index: int, content: bytes) -> bytes:
        if index not in chosen:
            return content
        middle = len(content) // 2
        noise = np.random.default_rng(index).bytes(len(content) // 4)
        return content[:middle] + noise + content[middle + len(noise) :]

    return remux(path, target, edit=edit)
