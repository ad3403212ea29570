"""Damage videos at random and see that reading them ends well: a result or an error that says why.

    python -m tests.fuzz_videos --mutations=20000

Every damaged file is prepared in a child process with a time limit. It counts results,
rejections, and failures: other errors, errors without the file's name, crashes, hangs, and memory
that is not given back. The exit status is 1 if there was any of these. A mutation is a function of
its number and the seed: `--keep=FOLDER` writes the files of what went wrong.

Before that, whole clips are copied into other containers, and side data is put into their packets:
motion, RGB frames and times must stay what they are.
"""

import argparse
import collections
import dataclasses
import os
import pathlib
import struct
import sys
import tempfile
import time
from fractions import Fraction

import numpy as np

from moclip_jax.input_pipeline.video.clip import VideoError, VideoSpec, read_clip
from moclip_jax.input_pipeline.video.subprocess_pool import WorkerError, WorkerPool, run_isolated
from tests.input_pipeline.video_fixtures import drifting_frames, remux, write_video

CLIP_OF_VP9 = {"g": "6", "deadline": "realtime", "cpu-used": "8"}
CLIPS = {
    "mpeg4.avi": ("mpeg4", {"bf": "1", "g": "6"}),
    "h264.mp4": ("libx264", {"bf": "2", "g": "6"}),
    "mpeg2.ts": ("mpeg2video", {"bf": "1", "g": "6"}),
    "vp9.webm": ("libvpx-vp9", CLIP_OF_VP9),
}
# What each codec's packets are copied into: name of the file, and the options of its container.
CONTAINERS = {
    "AVI": ("avi", {}),
    "MP4": ("mp4", {}),
    "fragments": ("mp4", {"movflags": "frag_keyframe+empty_moov"}),
    "MOV": ("mov", {}),
    "MKV": ("mkv", {}),
    "FLV": ("flv", {}),
    "TS": ("ts", {}),
    "WebM": ("webm", {}),
}
# Container of the original, options of the encoder, and containers that do not take the codec.
CODECS = {
    "mpeg4": ("ts", {"bf": "1", "g": "6"}, {"FLV", "WebM"}),
    "libx264": ("mp4", {"bf": "2", "g": "6"}, {"WebM"}),
    "mpeg2video": ("ts", {"bf": "1", "g": "6"}, {"FLV", "WebM"}),
    "libvpx-vp9": ("webm", CLIP_OF_VP9, {"AVI", "FLV", "TS", "MOV"}),
    "mjpeg": ("avi", {}, {"FLV", "TS", "WebM"}),
}
SPEC = VideoSpec(width=64, height=48, clip_frames=2, max_frames=100, max_pixels=2**20)
SECONDS = 10.0
# What a worker may use beyond what it started with, and keep of every file.
LARGEST_MEMORY = 2**30
LEAK_PER_FILE = 64 * 48 * 3 // 2  # one decoded frame
GOOD = ("result", "rejected")


@dataclasses.dataclass
class Report:
    """What came of the mutations.

    Attributes:
      outcomes: How often each clip had each outcome.
      bad: Lines that say what went wrong.
      growth: Bytes that a worker held at its end more than at its beginning: the medians over 100
        files, from the 100th on, because what is loaded and kept at first is no leak.
      peak: Bytes that a worker held at most between two files.
      seconds: Time of all.
      slowest: Seconds of the slowest file.
    """

    outcomes: dict[str, collections.Counter]
    bad: list[str]
    growth: int
    peak: int
    seconds: float
    slowest: float


def mutate(content: bytes, rng: np.random.Generator) -> bytes:
    """Damage a file in one of five ways."""
    data = bytearray(content)
    size = len(data)

    def place(length: int = 1) -> int:
        return int(rng.integers(0, max(1, size - length)))

    match int(rng.integers(5)):
        case 0:  # bits flipped, few or many
            for _ in range(int(2 ** rng.uniform(0, 8))):
                data[place()] ^= 1 << int(rng.integers(8))
        case 1:  # cut
            del data[place() :]
        case 2:  # two pieces exchanged
            length = int(2 ** rng.uniform(0, np.log2(size / 4)))
            one, two = sorted((place(2 * length), place(2 * length)))
            two = max(two, one + length)
            pieces = bytes(data[one : one + length]), bytes(data[two : two + length])
            data[one : one + length], data[two : two + length] = pieces[1], pieces[0]
        case 3:  # foreign bytes put in
            length = int(2 ** rng.uniform(0, 10))
            at = place()
            data[at:at] = rng.bytes(length)
        case _:  # the header: values set to extremes
            for _ in range(int(rng.integers(1, 6))):
                at = int(rng.integers(0, min(size - 8, 800)))
                length = int(rng.choice([1, 2, 4, 8]))
                extreme = (b"\x00", b"\xff", b"\x7f", b"\x80", rng.bytes(1))[int(rng.integers(5))]
                data[at : at + length] = extreme * length
    return bytes(data)


def read_damaged(path: str, content: bytes, source: str) -> tuple[str, str, int]:
    """Prepare a damaged file in a worker; return its outcome, the reason, and the memory held."""
    pathlib.Path(path).write_bytes(content)
    try:
        read_clip(path, dataclasses.replace(SPEC, source=source))
        outcome, reason = "result", ""
    except VideoError as error:
        message = str(error)
        named = message.startswith(f"{path}: ") and "\n" not in message
        outcome, reason = ("rejected" if named else "unnamed"), message
    except Exception as error:  # Whatever else it is, is what is looked for.
        outcome, reason = "other error", f"{type(error).__name__}: {error}"
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return outcome, reason, held


def fuzz(mutations: int, seed: int, folder: pathlib.Path, keep: pathlib.Path | None) -> Report:
    """Damage and read files, one after the other in turns of the clips."""
    frames = drifting_frames(14, 48, 64, step=(2, 1))
    clips = []
    for name, (codec, options) in CLIPS.items():
        write_video(folder / name, frames, codec=codec, options=options)
        clips.append((name, (folder / name).read_bytes()))
    outcomes: dict[str, collections.Counter] = {name: collections.Counter() for name in CLIPS}
    report = Report(outcomes, [], 0, 0, 0.0, 0.0)
    begin = said = time.monotonic()
    memory: list[int] = []  # of the present worker, after each file
    with WorkerPool(1, max_memory=LARGEST_MEMORY) as pool:
        for number in range(mutations):
            name, whole = clips[number % len(clips)]
            content = mutate(whole, np.random.default_rng([seed, number]))
            source = ("auto", "reencode")[number // len(clips) % 2]
            path = folder / f"damaged_{name}"
            start = time.monotonic()
            try:
                outcome, reason, held = run_isolated(
                    pool, read_damaged, [str(path), content, source], SECONDS
                )
                memory.append(held)
                report.peak = max(report.peak, held)
            except WorkerError as error:
                outcome, reason = ("hang" if error.timed_out else "crash"), error.reason
                memory = []
            report.slowest = max(report.slowest, time.monotonic() - start)
            outcomes[name][outcome] += 1
            if outcome not in GOOD:
                report.bad.append(f"mutation {number} of {name} ({source}): {outcome}: {reason}")
                if keep is not None:
                    (keep / f"{number}_{name}").write_bytes(content)
            if time.monotonic() - said > 30:
                said = time.monotonic()
                print(f"{number + 1} of {mutations} in {said - begin:.0f} s", flush=True)
    report.seconds = time.monotonic() - begin
    if len(memory) >= 300:
        report.growth = int(np.median(memory[-100:]) - np.median(memory[100:200]))
    if report.growth > 16 * 2**20 + len(memory) * LEAK_PER_FILE:
        report.bad.append(f"a worker kept {report.growth / 2**20:.0f} MiB")
    return report


def remux_matrix(folder: pathlib.Path) -> dict[str, dict[str, str]]:
    """Copy clips into all containers.

    Returns:
      For each codec and container 'same', or what differs from the original; '-' where the
      container does not take the codec.
    """
    frames = drifting_frames(14, 48, 64, step=(2, 1))
    matrix: dict[str, dict[str, str]] = {}
    for codec, (suffix, options, impossible) in CODECS.items():
        pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        original = write_video(
            folder / f"{codec}.{suffix}", frames, codec=codec, pix_fmt=pix_fmt, options=options
        )
        matrix[codec] = {}
        for name, (other, container_options) in CONTAINERS.items():
            if name in impossible:
                matrix[codec][name] = "-"
                continue
            target = folder / f"{codec}_{name}.{other}"
            remux(original, target, container_options=container_options, time_base=Fraction(1, 25))
            matrix[codec][name] = difference(original, target)
    return matrix


def difference(original: pathlib.Path, other: pathlib.Path) -> str:
    """Return what of two files differs, by every source of motion; 'same' for nothing."""
    for source in ("auto", "reencode"):
        spec = dataclasses.replace(SPEC, source=source)
        try:
            one, two = read_clip(original, spec), read_clip(other, spec)
        except VideoError as error:
            return error.reason
        if one.num_frames != two.num_frames:
            return "number of frames"
        if (one.motion.accumulate() != two.motion.accumulate()).any():
            return "motion"
        if one.frames != two.frames:
            return "RGB frames"
        # Matroska and FLV count milliseconds.
        if np.abs(one.times - two.times).max() > 1e-3 or abs(one.fps / two.fps - 1) > 2e-3:
            return "times"
    return "same"


def unregistered_sei(index: int, packet: bytes) -> bytes:
    """Put a user's own message before an H.264 frame."""
    return _with_sei(5, bytes(range(1, 17)) + b"anything", packet)


def lcevc_sei(index: int, packet: bytes) -> bytes:
    """Put an enhancement layer (LCEVC, ITU-T T.35) before an H.264 frame, as some encoders do."""
    return _with_sei(4, bytes([0xB4, 0x00, 0x50, 0x00]) + bytes(range(1, 13)), packet)


def reserved_sei(index: int, packet: bytes) -> bytes:
    """Put a message of a number that no standard gives before an H.264 frame."""
    return _with_sei(200, bytes(range(1, 9)), packet)


def _with_sei(kind: int, payload: bytes, packet: bytes) -> bytes:
    unit = bytes([6, kind, len(payload)]) + payload + b"\x80"
    return len(unit).to_bytes(4, "big") + unit + packet


def exif_segment(index: int, jpeg: bytes) -> bytes:
    """Put an EXIF segment (one tag: orientation 1) behind the beginning of a JPEG."""
    body = b"Exif\0\0" + b"II*\0" + struct.pack("<IHHHIII", 8, 1, 0x0112, 3, 1, 1, 0)
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + jpeg[2:]


def user_data(index: int, packet: bytes) -> bytes:
    """Put user data before an MPEG-4 frame."""
    return b"\0\0\1\xb2anything" + packet


INJECTIONS = {
    "unregistered SEI": ("libx264", unregistered_sei),
    "LCEVC SEI": ("libx264", lcevc_sei),
    "reserved SEI": ("libx264", reserved_sei),
    "EXIF": ("mjpeg", exif_segment),
    "MPEG-4 user data": ("mpeg4", user_data),
}


def inject_side_data(folder: pathlib.Path) -> dict[str, str]:
    """Put side data into every packet of clips; return for each kind 'same', or what differs."""
    frames = drifting_frames(14, 48, 64, step=(2, 1))
    found = {}
    for kind, (codec, edit) in INJECTIONS.items():
        pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        options = {"g": "6"} if codec != "mjpeg" else {}
        original = folder / f"plain_{codec}.mkv"
        write_video(original, frames, codec=codec, pix_fmt=pix_fmt, options=options)
        target = remux(original, folder / f"{codec}_{kind.replace(' ', '_')}.mkv", edit=edit)
        found[kind] = difference(original, target)
    return found


def main() -> int:
    """Print a table of the outcomes; return 1 if something went wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz_videos", description=__doc__)
    parser.add_argument("--mutations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=pathlib.Path, help="folder for files that went wrong")
    arguments = parser.parse_args()
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        matrix = remux_matrix(pathlib.Path(folder))
        injected = inject_side_data(pathlib.Path(folder))
        print(f"{'copied into':<12}" + "".join(f"{name:>11}" for name in CONTAINERS))
        for codec, row in matrix.items():
            print(f"{codec:<12}" + "".join(f"{outcome:>11}" for outcome in row.values()))
        for kind, outcome in injected.items():
            print(f"with {kind}: {outcome}")
        report = fuzz(arguments.mutations, arguments.seed, pathlib.Path(folder), arguments.keep)
    kinds = (*GOOD, "unnamed", "other error", "crash", "hang")
    print(f"{'clip':<12}" + "".join(f"{kind:>13}" for kind in kinds))
    for name, counts in report.outcomes.items():
        print(f"{name:<12}" + "".join(f"{counts[kind]:>13}" for kind in kinds))
    print(
        f"{arguments.mutations} mutations in {report.seconds:.0f} s, slowest file "
        f"{report.slowest:.2f} s, memory held at most {report.peak / 2**20:.0f} MiB, growth "
        f"{report.growth / 2**20:.1f} MiB"
    )
    for line in report.bad:
        print(line)
    outcomes = [*injected.values(), *(one for row in matrix.values() for one in row.values())]
    return int(bool(report.bad) or not {"same", "-"}.issuperset(outcomes))


if __name__ == "__main__":
    sys.exit(main())
