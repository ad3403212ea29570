"""The page of messages and the code say the same, and what no other test causes is caused here."""

import ast
import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from moclip_jax.configs import testing
from moclip_jax.inference.exported import load_model
from moclip_jax.inference.windows import equal_windows
from moclip_jax.input_pipeline.datasets.prepared import prepare_dataset
from moclip_jax.input_pipeline.video import clip, decode, stream
from moclip_jax.input_pipeline.video.clip import VideoError, VideoSpec, read_clip
from moclip_jax.input_pipeline.video.stream import read_stream
from moclip_jax.pretrained import TINY_CLIP, load_tower
from moclip_jax.training import ablate, pipeline, splits
from moclip_jax.training.features import load_features
from tests.input_pipeline.video_fixtures import drifting_frames, write_sound, write_video

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "messages.md"
MESSAGES = {  # Types that commands print as one sentence; others are programming mistakes.
    "ValueError", "OSError", "FileNotFoundError", "FileExistsError", "NotADirectoryError",
    "RuntimeError",
    "VideoError", "NoVectorsError", "TrainingDivergedError", "_UsageError",
}  # fmt: skip
# Mistakes of a programmer who calls our functions, not of a user of the commands.
FOR_PROGRAMMERS = (
    "moclip_jax/codec/",
    "moclip_jax/models/",
    "moclip_jax/models/flops.py",
    "moclip_jax/training/metrics.py",
    "moclip_jax/training/optimizers.py",
    "moclip_jax/pretrained/train_tiny_clip.py",
    "input_pipeline/batches.py",
    "input_pipeline/video/subprocess_pool.py",
    "input_pipeline/datasets/shapes.py",
    "input_pipeline/training_kernel.py",
    "input_pipeline/views.py",
)
# The same inside files that users do meet errors of: what only new code of ours could cause.
BROKEN_PROMISES = (
    "videos share a name",  # a builder's
    ": no videos",
    "a worker process died",
    "ended at step",  # a task's
    "no checkpoint in",
    "save_efficientnet writes",
    "cannot be adapted to",
    "give rngs to start a fresh classifier",
    "frames are … …, must be uint8",
)
SPEC = VideoSpec(width=64, height=48, clip_frames=1)


def rows() -> list[tuple[str, str]]:
    """The message and the test of each row of the page."""
    lines = PAGE.read_text().splitlines()
    found = [re.fullmatch(r"\| `(.+?)` \| .+ \| `(\S+::\w+)` \|", line) for line in lines]
    tables = [line for line in lines if line.startswith("| `")]
    assert len(tables) == sum(row is not None for row in found), "a row that cannot be read"
    return [(row[1], row[2]) for row in found if row]


def fixed_parts(message: str) -> list[str]:
    return [part.strip() for part in message.split("…") if part.strip()]


def templates(node: ast.expr, known: dict[str, str]) -> str:
    """The text of an expression, with … for what is not known."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(templates(part, known) for part in node.values)
    if isinstance(node, ast.FormattedValue):
        return templates(node.value, known)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return templates(node.left, known) + templates(node.right, known)
    if isinstance(node, ast.IfExp):
        return templates(node.body, known)
    if isinstance(node, ast.Name):
        return known.get(node.id, "…")
    return "…"


def modules() -> list[tuple[str, ast.Module, dict[str, str]]]:
    """Path, syntax tree and constant texts of each module."""
    found = []
    for folder in ("moclip_jax", "input_pipeline"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text())
            known = {}
            for node in tree.body:
                if isinstance(node, ast.Assign):
                    names, value = node.targets[0], node.value
                    several = isinstance(names, ast.Tuple) and isinstance(value, ast.Tuple)
                    pairs = (
                        zip(names.elts, value.elts, strict=True) if several else [(names, value)]
                    )
                    for name, text in pairs:
                        if isinstance(text, ast.Constant) and isinstance(text.value, str):
                            known[ast.unparse(name)] = text.value
            found.append((path.relative_to(ROOT).as_posix(), tree, known))
    return found


def raised() -> dict[str, str]:
    """Place -> text of every error that is made in the code."""
    found = {}
    for path, tree, known in modules():
        for node in ast.walk(tree):
            call = node.exc if isinstance(node, ast.Raise) else None
            if isinstance(call, ast.Call) and call.args and ast.unparse(call.func) in MESSAGES:
                # The errors of videos take the path first.
                about_video = ast.unparse(call.func) in ("VideoError", "NoVectorsError")
                text = templates(call.args[-1 if about_video else 0], known)
                found[f"{path}:{node.lineno}"] = text
    return found


def says(text: str, message: str) -> bool:
    """Whether all fixed parts of a message stand in a text, in order."""
    position = 0
    for part in fixed_parts(message):
        position = text.replace("\n", " ").find(part, position)
        if position < 0:
            return False
        position += len(part)
    return True


def strings_of(test: str) -> list[str]:
    """The strings in a test function, its parameters and the constants that it names."""
    file, name = test.split("::")
    tree = ast.parse((ROOT / "tests" / file).read_text())
    (function,) = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == name]
    return [
        node.value.replace("\\", "")
        for node in ast.walk(function)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def common(left: str, right: str) -> int:
    """Length of the longest text that stands in both."""
    best = 0
    for start in range(len(left)):
        while left[start : start + best + 1] in right and start + best < len(left):
            best += 1
    return best


def test_every_message_of_the_page_is_one_of_the_code():
    texts = [
        templates(node, known)
        for _, tree, known in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr | ast.BinOp | ast.Constant | ast.IfExp)
    ]
    system = ["…: no space left on device"]
    for message, _ in rows():
        assert any(says(text, message) for text in (*texts, *system)), message


def test_every_error_of_the_code_stands_on_the_page_unless_it_is_a_programmers():
    messages = [message for message, _ in rows()]
    missing = [
        f"{place} {text}"
        for place, text in raised().items()
        if not place.startswith(FOR_PROGRAMMERS)
        and not any(promise in text for promise in BROKEN_PROMISES)
        and len(text.replace("…", "").strip(" :\n")) > 6  # else it passes another's text on
        and not any(says(text, message) for message in messages)
    ]
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize(("message", "test"), rows())
def test_the_test_named_beside_a_message_looks_for_it(message, test):
    needed = min(12, max(map(len, fixed_parts(message))))
    strings = strings_of(test)
    assert any(common(part, text) >= needed for part in fixed_parts(message) for text in strings), (
        f"{test} does not look for {message!r}"
    )


# What no other test causes.


def test_a_comparison_needs_the_evaluation(tmp_path):
    config = testing.get_config()
    config.stages = "prepare,motion"
    with pytest.raises(ValueError, match=r"config.stages must include evaluate, whose results"):
        ablate.run_ablations(config, tmp_path, {})
    with pytest.raises(ValueError, match=r"config.stages must include evaluate, whose results"):
        splits.run_splits(config, tmp_path, 3)
    assert not list(tmp_path.iterdir())


def test_an_unknown_variant_is_named_with_those_there_are(tmp_path):
    command = [sys.executable, "-m", "moclip_jax.training.ablate", "--config=configs/testing.py"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}", "--variants=64 segments"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1
    assert "error: --variants: unknown ['64 segments']; there are " in done.stderr


def test_an_import_without_its_files(tmp_path):
    command = [
        sys.executable,
        "-m",
        "moclip_jax.pretrained.import_published",
        "--config=configs/testing.py",
    ]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: --motion is missing; pass its file" in done.stderr


def test_a_transfer_without_its_run(tmp_path):
    command = [sys.executable, "-m", "moclip_jax.training.transfer", "--config=testing"]
    done = subprocess.run(
        [*command, f"--workdir={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: --run is missing; pass the folder of a finished run" in done.stderr


def test_a_batch_larger_than_the_training_split(tmp_path):
    config = testing.get_config()
    config.motion.batch_size = 4000
    config.stages = "prepare"
    message = r"config.motion.batch_size=4000 is larger than the training split \(36 videos\)"
    with pytest.raises(ValueError, match=message):
        pipeline.run(config, tmp_path)


def test_nothing_can_be_held_out_of_one_group_a_class(tmp_path):
    config = testing.get_config()
    config.dataset.options.num_train_groups = 1
    config.motion.batch_size = config.fusion.batch_size = 4
    config.stages = "prepare"
    with pytest.raises(ValueError, match="'heldout' needs at least two groups in the training"):
        pipeline.run(config, tmp_path)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ucf101", {"option": 1}, "ucf101: takes no options, got"),
        ("hmdb51", {"option": 1}, "hmdb51: takes no options, got"),
        ("hmdb51", {}, "no lists such as brush_hair_test_split1.txt"),
        ("moving_shapes", {"num_train_groups": 10**6}, "moving_shapes: more than"),
    ],
)
def test_a_data_set_that_is_given_something_else(tmp_path, name, options, message):
    videos = tmp_path / "videos"
    videos.mkdir()
    with pytest.raises(ValueError, match=message):
        prepare_dataset(
            name, data_dir=tmp_path / "data", spec=SPEC, videos=str(videos), options=options
        )


@pytest.mark.parametrize(
    ("second_list", "message"),
    [
        (b"\xff\xfe broken", "trainlist02.txt: is not a text file"),
        (b"B/a.avi 2\n", "trainlist02.txt:1: B/a.avi has another class at"),
    ],
)
def test_lists_that_do_not_go_together(tmp_path, second_list, message):
    # One file under two names: UCF101's files may lie in one folder, found by name alone.
    frames = drifting_frames(3)
    write_video(tmp_path / "a.avi", frames)
    write_video(tmp_path / "b.avi", frames)
    (tmp_path / "classInd.txt").write_text("1 A\n2 B\n")
    for number in (1, 2):
        (tmp_path / f"trainlist{number:02d}.txt").write_text("A/a.avi 1\n")
        (tmp_path / f"testlist{number:02d}.txt").write_text("B/b.avi\n")
    (tmp_path / "trainlist02.txt").write_bytes(second_list)
    with pytest.raises(ValueError, match=message):
        prepare_dataset(
            "ucf101", data_dir=tmp_path / "d", spec=SPEC, videos=str(tmp_path), lists=str(tmp_path)
        )


def _renamed(content: bytes, old: bytes, new: bytes) -> bytes:
    assert old in content
    return content.replace(old, new)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        # The four letters of the codec; the number of the stream that each packet belongs to.
        (lambda c: _renamed(c, b"FMP4", b"ZZZZ"), "its video codec is unknown to FFmpeg"),
        (lambda c: _renamed(c, b"00dc", b"09dc"), "its video stream holds no packets; is it cut"),
        # The start code of each frame.
        (lambda c: _renamed(c, b"\0\0\1\xb6", b"\0\0\1\x30"), "damaged at packet"),
    ],
)
def test_a_video_whose_container_or_stream_is_broken(tmp_path, change, message):
    path = write_video(tmp_path / "a.avi", drifting_frames(8))
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(VideoError, match=rf"a.avi: {message}"):
        read_clip(path, SPEC)


def test_a_stream_without_a_frame_to_begin_with(tmp_path):
    whole = write_video(tmp_path / "a.h264", drifting_frames(8), codec="libx264")
    units = re.split(b"(?=\0\0\1)", whole.read_bytes())
    # Everything but the I-frame: its unit has type 5.
    rest = [unit for unit in units if len(unit) < 4 or unit[3] & 31 != 5]
    assert len(rest) < len(units)
    path = tmp_path / "rest.h264"
    path.write_bytes(b"".join(rest))
    with pytest.raises(VideoError, match="no frame could be decoded"):
        list(decode.decode_frames(path))


def test_what_the_system_or_ffmpeg_rejects(tmp_path, monkeypatch):
    """The tests may run as root, who may read everything: the rejections are put in."""
    path = write_video(tmp_path / "a.avi", drifting_frames(4))

    def raising(error):
        def raises(*_, **__):
            raise error

        return raises

    with monkeypatch.context() as patch:
        patch.setattr(av, "open", raising(PermissionError(13, "no")))
        with pytest.raises(VideoError, match=r"a.avi: no permission to read it"):
            read_clip(path, SPEC)
    with monkeypatch.context() as patch:
        patch.setattr(clip, "_read", raising(av.FFmpegError(22, "odd")))
        with pytest.raises(VideoError, match=r"a.avi: its frames cannot be converted \("):
            read_clip(path, SPEC)

    class Ends:
        demux = staticmethod(raising(av.FFmpegError(5, "input/output")))

    with pytest.raises(VideoError, match=r"cannot be read to its end \("):
        list(decode.demux(path, Ends(), None))
    monkeypatch.setattr(clip, "_LARGEST_MOTION", 10)
    for source in ("native", "reencode"):
        with pytest.raises(
            VideoError, match="motion of its first 1 frames takes more than 10 byte"
        ):
            read_clip(path, dataclasses.replace(SPEC, source=source))


def test_a_stream_of_sound_or_of_nothing(tmp_path, monkeypatch):
    sound = write_sound(tmp_path / "sound.wav")
    options = {"length_s": 1.0, "hop_s": 1.0, "timeout_s": 0.5}
    with pytest.raises(VideoError, match="has no video stream"):
        list(read_stream(str(sound), SPEC, **options))
    path = write_video(tmp_path / "a.ts", drifting_frames(8), codec="mpeg2video")
    monkeypatch.setattr(stream, "_frames", lambda *_: iter(()))
    with pytest.raises(VideoError, match="ended without a frame"):
        list(read_stream(str(path), SPEC, **options))


def test_a_clip_of_another_kind(tmp_path):
    folder = shutil.copytree(TINY_CLIP, tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"model_type": "blip"}, "config.json is of model_type 'blip'; known are clip"),
        (
            {
                part: config[part] | {"hidden_act": "tanh"}
                for part in ("text_config", "vision_config")
            },
            "CLIP's activation is 'tanh'; known are: ",
        ),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            load_tower(folder)


def test_features_that_were_lost(tmp_path):
    (tmp_path / "train").mkdir()
    one = {
        "motion": np.zeros((2, 1, 4, 3)),
        "appearance": np.zeros((2, 1, 3)),
        "label": np.zeros(2),
    }
    np.savez(tmp_path / "train" / "0.npz", index=np.array([0, 2]), **one)
    with pytest.raises(ValueError, match=r"holds features of 2 of 3 videos; delete .* to extract"):
        load_features(tmp_path, "train", 3)


def test_an_export_of_another_version(finished_run, tmp_path):
    metadata = json.loads((finished_run / "export" / "metadata.json").read_text())
    (tmp_path / "metadata.json").write_text(json.dumps(metadata | {"format": 99}))
    with pytest.raises(ValueError, match=r"metadata.json has format 99; this version reads"):
        load_model(tmp_path)


def test_a_timeline_of_a_file_without_times(tmp_path):
    frames = read_clip(write_video(tmp_path / "a.avi", drifting_frames(8)), SPEC)
    timeless = dataclasses.replace(frames, fps=0.0)
    with pytest.raises(ValueError, match="declares no frame rate, so a timeline has no seconds"):
        equal_windows(timeless, 1.0, SPEC)
