"""Long files with known events: drawn, encoded, and copied packet by packet."""

import json
import pathlib

import av
import numpy as np

from moclip_jax.input_pipeline.datasets.shapes import MOTIONS, SHAPES, appearance, render_clip
from moclip_jax.input_pipeline.datasets.shapes import render_empty as empty

RATE = 25
# Groups that neither the data set nor the tiny CLIP has seen.
_FIRST_GROUP = 700_000


def draw_events(
    path: pathlib.Path, minutes: float, *, height: int = 128, width: int = 128, seed: int = 0
) -> dict[str, list[tuple[float, float]]]:
    """Write a file of scenes at rest in which something appears and moves now and then.

    Each scene lasts until two to four events are over. An event lasts 2 to 16 seconds, the rest
    before it 5 to 60. One H.264 stream, encoded by x264's defaults from beginning to end.

    Returns:
      From texts such as "a red star" to the spans in seconds in which that is to be seen.
    """
    notes = path.with_suffix(".json")
    if path.exists() and notes.exists():
        found = json.loads(notes.read_text())
        return {text: [(a, b) for a, b in spans] for text, spans in found.items()}
    rng = np.random.default_rng(seed)
    truth: dict[str, list[tuple[float, float]]] = {}
    count, scene, clip = 0, 0, 0
    size = {"height": height, "width": width}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"

        def write(frames: np.ndarray) -> None:
            nonlocal count
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                container.mux(stream.encode(picture))
            count += len(frames)

        while count < minutes * 60 * RATE:
            group, clip = _FIRST_GROUP + scene, clip + 1
            scene += 1
            for _ in range(rng.integers(2, 5)):
                seeds = {"group_seed": group, "clip_seed": clip}
                rest = int(RATE * rng.uniform(5, 60))
                write(empty(num_frames=rest, **seeds, **size))
                shape, motion = rng.choice(SHAPES), rng.choice(MOTIONS)
                length, begin = int(RATE * rng.uniform(2, 16)), count
                write(render_clip(shape, motion, num_frames=length, **seeds, **size))
                text = f"a {appearance(**seeds).color} {shape}"
                truth.setdefault(text, []).append((begin / RATE, count / RATE))
            write(empty(num_frames=RATE * 4, group_seed=group, clip_seed=clip, **size))
        container.mux(stream.encode(None))
    notes.write_text(json.dumps(truth))
    return truth


def draw_moving(path: pathlib.Path, seconds: float, *, height: int, width: int) -> pathlib.Path:
    """Write shapes that move and rest in turns, without a gap, as H.264 by x264's defaults."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        left, number = round(seconds * RATE), 0
        while left > 0:
            seeds = {"group_seed": _FIRST_GROUP + number, "clip_seed": number}
            size = {"height": height, "width": width, "num_frames": min(left, 4 * RATE)}
            shape, motion = SHAPES[number % 6], MOTIONS[number // 2 % 6]
            frames = (
                empty(**seeds, **size)
                if number % 2
                else render_clip(shape, motion, **seeds, **size)
            )
            for frame in frames:
                picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
                container.mux(stream.encode(picture))
            left, number = left - len(frames), number + 1
        container.mux(stream.encode(None))
    return path


def repeat(source: pathlib.Path, target: pathlib.Path, seconds: float) -> pathlib.Path:
    """Copy the packets of a file again and again, until it is long enough."""
    with av.open(str(source)) as reading, av.open(str(target), "w") as writing:
        given = reading.streams.video[0]
        stream = writing.add_stream_from_template(given)
        packets = [packet for packet in reading.demux(given) if packet.size]
        base = given.time_base
        contents = [bytes(packet) for packet in packets]
        length = max(packet.pts + packet.duration for packet in packets)
        for part in range(-(-round(seconds / base) // length)):
            for packet, content in zip(packets, contents, strict=True):
                copy = av.Packet(content)
                copy.time_base, copy.duration = base, packet.duration
                copy.pts, copy.dts = packet.pts + part * length, packet.dts + part * length
                copy.is_keyframe, copy.stream = packet.is_keyframe, stream
                writing.mux(copy)
    return target
