"""Recognize the action in videos with an exported ONNX model, without JAX.

It needs numpy, av, pillow, onnxruntime, and `model.onnx` and `inputs.json` in its own folder.
"""

import io
import json
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags
from av.video.reformatter import VideoReformatter
from PIL import Image


def decode(path: str):
    """Yield the frames of a file's video stream, and the aspect of its pixels."""
    with av.open(path) as container:
        for frame in container.decode(video=0):
            if frame.rotation:
                raise ValueError(f"{path}: rotated by {frame.rotation} degrees; turn it first")
            yield frame, Fraction(container.streams.video[0].sample_aspect_ratio or 1)


def canonical_frames(path: str, video: dict):
    """Yield the frames of a file after MPEG-4 encoding and decoding, with motion vectors."""
    encoder = av.CodecContext.create("mpeg4", "w")
    encoder.width, encoder.height, encoder.pix_fmt = video["width"], video["height"], "yuv420p"
    encoder.framerate, encoder.time_base = Fraction(25), Fraction(1, 25)
    encoder.gop_size, encoder.max_b_frames, encoder.thread_count = video["gop_size"], 0, 1
    encoder.flags |= Flags.qscale
    encoder.global_quality, decoder = video["qscale"] * 118, av.CodecContext.create("mpeg4", "r")
    decoder.thread_count, decoder.options = 1, {"flags2": "+export_mvs"}
    scaler, size = VideoReformatter(), (video["width"], video["height"], "yuv420p")
    for index, (frame, _) in enumerate(decode(path)):
        frame = scaler.reformat(frame, *size, interpolation="BICUBIC", threads=1)
        frame.pict_type, frame.pts, frame.time_base = 0, index, Fraction(1, 25)
        yield from (out for packet in encoder.encode(frame) for out in decoder.decode(packet))
    packets = (*encoder.encode(None), None)
    yield from (out for packet in packets for out in decoder.decode(packet))


def read_motion(path: str, video: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return displacements int [n, rows, columns, 2] on an 8-pixel grid, and bool [n], I-frames."""
    grids, intra = [], []
    for frame in canonical_frames(path, video):
        grid = np.zeros((-(-video["height"] // 8), -(-video["width"] // 8), 2), int)
        vectors = frame.side_data.get("MOTION_VECTORS")
        for block in () if vectors is None else vectors.to_ndarray():
            x, y = int(block["dst_x"]) - block["w"] // 2, int(block["dst_y"]) - block["h"] // 2
            cells = slice(y // 8, (y + block["h"]) // 8), slice(x // 8, (x + block["w"]) // 8)
            grid[cells] = block["src_x"] - block["dst_x"], block["src_y"] - block["dst_y"]
        grids.append(grid)
        intra.append(frame.key_frame)
    return np.stack(grids), np.array(intra)


def motion_fields(grids: np.ndarray, intra: np.ndarray, given: dict, wanted: set[int]) -> dict:
    """Return the motion of wanted frames, int [h, w, 2] since their I-frame (CoViAR)."""
    height, width = given["video"]["height"], given["video"]["width"]
    place = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
    origin, fields = place, {}
    for index in range(max(wanted) + 1):
        source = place + grids[index].repeat(8, 0).repeat(8, 1)[:height, :width]
        inside = ((source >= 0) & (source < (width, height))).all(-1, keepdims=True)
        x, y = np.moveaxis(np.where(inside, source, place), -1, 0)
        origin = place if intra[index] else origin[y, x]
        if index in wanted:
            fields[index] = place - origin
    return fields


def resize(field: np.ndarray, side: int) -> np.ndarray:
    """Return uint8 [side, side, 2]: bilinear, half-pixel centres, no antialiasing."""
    result = field.astype(np.float32)
    for axis in (1, 0):
        scale = np.float32(field.shape[axis] / side)
        at = (np.arange(side, dtype=np.float32) + 0.5) * scale - 0.5
        first = result.take(np.maximum(np.floor(at), 0).astype(int), axis)
        last = result.take(np.minimum(np.ceil(at), field.shape[axis] - 1).astype(int), axis)
        weight = (at - np.floor(at)).reshape((-1, 1, 1) if axis == 0 else (-1, 1))
        result = first + (last - first) * weight
    return np.rint(result).astype(np.uint8)


def motion_input(path: str, given: dict) -> tuple[np.ndarray, int]:
    """Return the model's `motion`, uint8 with a batch of one, and the number of frames."""
    views = given["views"]
    grids, intra = read_motion(path, given["video"])
    count, segments = len(grids), views["num_segments"]
    if "window" in views:
        starts = np.rint(np.linspace(0, max(count - 1 - views["window"], 0), segments))
        frames = 1 + starts.astype(int)[:, None] + np.arange(views["window"])
    else:
        frames = np.rint((count - 1) / segments * (np.arange(segments) + 0.5)).astype(int) + 1
    frames = np.clip(frames, 0, count - 1)
    frames = np.maximum(frames - intra[frames], 0)  # An I-frame has no motion.
    if "window" in views:  # Of blocks of 16 pixels.
        windows = np.clip(grids[frames][:, :, ::2, ::2], -127, 127)
        return (128 - windows).astype(np.uint8)[None, None], count
    fields = motion_fields(grids, intra, given, set(frames.tolist()))
    scaled = [(fields[f] * 127.5 / views["bound"]).astype(int) + 128 for f in frames.tolist()]
    squares = np.stack([resize(np.clip(field, 0, 255), views["resize_size"]) for field in scaled])
    crop = slice(*views["crop"])
    return squares[None, None, :, crop, crop], count


def image_input(path: str, given: dict, count: int) -> np.ndarray:
    """Return the model's `images`, uint8 with a batch of one."""
    video, (_, number, size, *_) = given["video"], given["inputs"]["images"]
    parts = ((np.arange(video["clip_frames"]) + 0.5) / video["clip_frames"] * count).astype(int)
    stored = np.unique(np.append(parts, count // 2))
    wanted = ((np.arange(number) + 0.5) / number * count).astype(int)
    chosen = stored[np.abs(stored[None] - wanted[:, None]).argmin(1)]
    images: dict[int, np.ndarray] = {}
    for index, (frame, aspect) in enumerate(decode(path)):
        if index in chosen:
            image = Image.fromarray(frame.to_ndarray(format="rgb24"))
            shape = max(1, round(image.width * aspect)), image.height
            scale = min(1.0, video["frame_size"] / min(shape))
            shape = tuple(max(1, round(length * scale)) for length in shape)
            buffer = io.BytesIO()
            image.resize(shape, 2).save(buffer, "JPEG", quality=video["jpeg_quality"])
            sides = [given["side"] * n // (n if given["square"] else min(shape)) for n in shape]
            image = Image.open(buffer).resize(sides, given["resample"])
            left, top = (image.width - size) // 2, (image.height - size) // 2
            images[index] = np.asarray(image.crop((left, top, left + size, top + size)))
    return np.stack([images[index] for index in chosen])[None]


def main(paths: list[str]) -> None:
    """Print the five most probable classes of each video as a line of JSON."""
    import onnxruntime  # Late, so that the documentation of this module needs it not.

    given = json.loads(Path(__file__).with_name("inputs.json").read_text())
    session = onnxruntime.InferenceSession(Path(__file__).with_name("model.onnx"))
    for path in paths:
        motion, count = motion_input(path, given)
        inputs = {"motion": motion, "images": image_input(path, given, count)}
        scores = session.run(["probabilities"], inputs)[0][0]
        best = np.argsort(-scores, kind="stable")[:5].tolist()
        labels = [{"label": given["class_names"][i], "probability": float(scores[i])} for i in best]
        print(json.dumps({"video": path, "predictions": labels}))


if __name__ == "__main__":
    main(sys.argv[1:])
