"""Several labels a video: a whole run on drifting textures, each direction is a label."""

from pathlib import Path

import numpy as np
import pytest
from scipy.special import expit

import moclip_jax
from moclip_jax.configs import testing, video_folder, video_list
from moclip_jax.export.saved_model import model_function
from moclip_jax.training import pipeline
from moclip_jax.visualize import draw_examples, draw_results
from tests.input_pipeline.video_fixtures import drifting_frames, write_video

STEPS = {"right": (4, 0), "down": (0, 4), "right;down": (4, 4), "down | left": (-4, 4)}


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The list of four test and sixteen training videos, and one for testing that is no video."""
    folder = tmp_path_factory.mktemp("drifting") / "videos"
    folder.mkdir()
    lines = ["path,labels,split,group"]
    for number in range(20):
        labels, step = tuple(STEPS.items())[number % 4]
        frames = drifting_frames(20, 128, 128, step=step, seed=number)
        write_video(folder / f"{number}.mp4", frames)
        side = "test" if number < 4 else "train"
        lines.append(f"{number}.mp4,{labels},{side},{number // 4}")
    (folder / "broken.mp4").write_bytes(b"no video")
    (folder / "list.csv").write_text("\n".join([*lines, "broken.mp4,left,test,9\n"]))
    return folder / "list.csv"


def test_a_run_gives_each_label_a_probability_of_its_own(lists, tmp_path, capsys):
    """Motion in closed form, and heads by gradient descent."""
    config = testing.get_config()
    config.dataset.name = "video_list"
    config.dataset.videos, config.dataset.lists = str(lists.parent), str(lists)
    config.dataset.options = video_list.get_config().dataset.options
    config.dataset.options.multi_label = True
    config.selection.heldout_fraction = 0.25
    config.motion.update(video_folder.get_config().motion)
    config.motion.num_segments = config.evaluation.num_segments = 2
    config.predict.num_segments = 2
    results = pipeline.run(config, tmp_path)
    assert "row        top-1  top-5   mAP  videos" in capsys.readouterr().out
    assert set(results["rows"]) == {"zero_shot", "clip_head", "motion", "fusion"}
    for row in results["rows"].values():
        # One test video of five is broken.
        assert row["num_examples"] == 5
        assert "balanced_accuracy" not in row
        assert 0 <= row["mAP"] < 1
        assert row["top5"] == 0.8
    # The broken video is one of two with "left".
    assert results["rows"]["motion"]["mAP"] == pytest.approx((1 + 1 / 2 + 1) / 3)
    page = (tmp_path / "report.html").read_text()
    assert ">mAP</th>" in page
    assert "Average precision of each tested class" in page
    assert "Confusion matrix" not in page
    assert "one of a video's labels is among" in page
    card = (tmp_path / "export" / "README.md").read_text()
    assert "| row | top-1 | top-5 | mAP | videos |" in card
    assert "Probabilities are a sigmoid" in card
    label = np.load(tmp_path / "evaluate" / "scores.npz")["label"]
    np.testing.assert_array_equal(label, [[0, 0, 1], [1, 0, 0], [1, 0, 1], [1, 1, 0]])
    assert [path.name for path in draw_results(tmp_path, tmp_path)] == ["curves.png", "rows.png"]
    assert draw_examples(tmp_path, tmp_path, columns=2).exists()

    model = moclip_jax.load(tmp_path)
    view = model.view(moclip_jax.read_clip(lists.parent / "2.mp4", model.video))
    logits = model.outputs(view)[0]
    prediction = model.predict(lists.parent / "2.mp4")
    assert prediction.reject_below == 0
    expected = dict(zip(("down", "left", "right"), expit(np.float64(logits)), strict=True))
    assert {score.label: score.probability for score in prediction.scores} == pytest.approx(
        expected
    )
    parameters, recognize = model_function(model)
    exported = recognize(parameters, view)["probabilities"]
    np.testing.assert_allclose(exported[0], list(expected.values()), atol=1e-4)
