"""A whole run with an image network that has no text side, from features to what is exported."""

import json
import shutil

import numpy as np
import pytest

import moclip_jax
from moclip_jax import predict, visualize
from moclip_jax.configs import testing
from moclip_jax.export.saved_model import export_stablehlo
from moclip_jax.models.flops import count_parameters
from moclip_jax.search.encoder import open_encoder
from moclip_jax.training import ablate, pipeline
from moclip_jax.training.evaluate import fused_logits
from moclip_jax.training.features import load_features
from tests.input_pipeline.video_fixtures import drifting_frames, write_video
from tests.pretrained.test_imagenet_towers import write_timm_folder
from tests.training.test_order_run import check_predict


@pytest.fixture(scope="module")
def timm(tmp_path_factory):
    """A folder as timm writes it, and the network in it."""
    folder = tmp_path_factory.mktemp("timm")
    return folder, write_timm_folder(folder)


def test_an_imagenet_tower_takes_the_place_of_clip_and_knows_no_words(
    timm, finished_run, tmp_path, capsys
):
    folder, network = timm
    workdir = tmp_path / "run"
    workdir.mkdir()
    config = testing.get_config()
    config.clip.source = str(folder)
    for stage in ("prepare", "motion", "data"):
        (workdir / stage).symlink_to(finished_run / stage)
    results = pipeline.run(config, workdir)
    assert results is not None
    rows = results["rows"]
    assert list(rows) == ["clip_head", "motion", "fusion"]
    parameters = count_parameters(network) - 1281 * 1000
    assert rows["clip_head"]["params"] == parameters + rows["clip_head"]["trainable_params"]
    # B0 takes 0.386 billion multiply-adds of 224 x 224 pixels.
    cost = rows["clip_head"]["gflops_per_view"]["appearance"]
    # The smallest maps of 48 pixels are those of 64.
    assert 0.386 * (48 / 224) ** 2 < cost < 0.386 * (64 / 224) ** 2
    assert "-" in ablate.format_ablations({"base": [rows]}).splitlines()[1].split()
    weights = json.loads((workdir / "features" / "weights.json").read_text())
    assert weights["clip"]["source"] == config.clip.source
    assert not (workdir / "export" / "tokenizer").exists()
    assert "appearance head" in (workdir / "report.html").read_text()
    visualize.draw_examples(workdir, tmp_path, columns=2)

    recognizer = moclip_jax.load(workdir)
    assert recognizer.image_size == 48
    features = load_features(workdir / "features", "test", 36, each_view=False)
    assert features.appearance.shape == (36, 1, 1280)
    scores = np.load(workdir / "evaluate" / "scores.npz")
    np.testing.assert_allclose(
        fused_logits(recognizer.model.head, features), scores["fusion"], atol=1e-4
    )
    view = check_predict(recognizer)
    with pytest.raises(ValueError, match="has no text side, so it knows its trained classes alone"):
        recognizer.probabilities(view, ("a star", "a ring"))
    with pytest.raises(ValueError, match="so words cannot be searched for; choose a CLIP"):
        _ = open_encoder({"workdir": str(workdir)}).text
    export_stablehlo(recognizer, tmp_path / "stablehlo")
    assert (tmp_path / "stablehlo" / "model.stablehlo").exists()

    capsys.readouterr()
    video = tmp_path / "video.mp4"
    write_video(video, drifting_frames(12))
    assert predict.main(["--workdir", str(workdir), "--classes=a, b", str(video)]) == 1
    assert "leave out labels of your own" in capsys.readouterr().err

    # Exports open from their Orbax folder too, which has no text features.
    shutil.copytree(workdir / "export", tmp_path / "export")
    (tmp_path / "export" / "parameters.safetensors").unlink()
    np.testing.assert_array_equal(
        moclip_jax.load(tmp_path / "export").probabilities(view), recognizer.probabilities(view)
    )


def test_a_head_of_tokens_needs_a_clip(timm, finished_run, tmp_path):
    config = testing.get_config()
    config.clip.source, config.fusion.head = str(timm[0]), "evl"
    (tmp_path / "run").mkdir()
    for stage in ("prepare", "motion", "data"):
        (tmp_path / "run" / stage).symlink_to(finished_run / stage)
    with pytest.raises(ValueError, match=r"config.fusion.head='evl' reads the tokens of a CLIP"):
        pipeline.run(config, tmp_path / "run")
