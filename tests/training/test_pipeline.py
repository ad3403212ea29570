"""The whole recipe on small data: its results, its order, and starting it again."""

import json
import shutil

import numpy as np
import pytest

from moclip_jax.config import PRETRAINING_STAGES, STAGES, default_config
from moclip_jax.config_checks import check_config
from moclip_jax.configs import (
    demo,
    demo_few,
    demo_order,
    hmdb51,
    pretrain,
    testing,
    ucf101,
    video_folder,
    video_list,
)
from moclip_jax.runtime.tree_io import load_tree
from moclip_jax.training import pipeline
from moclip_jax.training.pipeline import stage_settings
from tests.config_fields import config_fields

ROWS = ("zero_shot", "clip_head", "motion", "fusion")


def test_a_run_ends_with_the_four_rows_in_the_documented_form(finished_run):
    results = json.loads((finished_run / "results.json").read_text())
    assert tuple(results["rows"]) == ROWS
    for row in results["rows"].values():
        assert 0 <= row["top1"] <= row["top5"] <= 1
        assert row["num_examples"] == 36
        assert row["gflops"] > 0
        assert isinstance(row["protocol"], str)
    trained = {name: row["trainable_params"] for name, row in results["rows"].items()}
    assert trained["zero_shot"] == 0 < trained["clip_head"] < trained["fusion"]
    gflops = {name: row["gflops"] for name, row in results["rows"].items()}
    params = {name: row["params"] for name, row in results["rows"].items()}
    assert params["motion"] == trained["motion"]
    assert params["fusion"] == params["motion"] + params["zero_shot"] + trained["fusion"]
    assert params["clip_head"] == params["zero_shot"] + trained["clip_head"]
    views = results["rows"]["fusion"]["gflops_per_view"]
    assert views["appearance"] == pytest.approx(gflops["zero_shot"])
    assert gflops["motion"] == pytest.approx(
        views["motion"] * testing.get_config().evaluation.num_segments
    )
    # The rest is the head's: a multiply-add for each weight that is no bias.
    head = trained["fusion"] - (512 + 36)
    assert gflops["fusion"] == pytest.approx(gflops["motion"] + gflops["zero_shot"] + head / 1e9)


def test_a_run_started_again_skips_every_stage_and_says_so(finished_run, capsys):
    before = json.loads((finished_run / "results.json").read_text())
    assert pipeline.run(testing.get_config(), finished_run) == before
    printed = capsys.readouterr().out
    for stage in STAGES:
        assert f"{stage}: done before, skipped" in printed


def test_a_changed_setting_is_noticed_before_any_work(finished_run):
    config = testing.get_config()
    config.motion.learning_rate = 0.5
    with pytest.raises(ValueError, match=r"motion.learning_rate: was 0.003, is 0.5"):
        pipeline.run(config, finished_run)


@pytest.mark.usefixtures("without_report")
def test_a_stage_deleted_from_the_workdir_is_made_again_with_the_same_result(
    finished_run, tmp_path
):
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    before = json.loads((copy / "results.json").read_text())
    scores = dict(np.load(copy / "evaluate" / "scores.npz"))
    for stage in ("features", "fusion", "evaluate", "export"):
        shutil.rmtree(copy / stage)
    (copy / "results.json").unlink()
    assert pipeline.run(testing.get_config(), copy) == before
    for name, again in dict(np.load(copy / "evaluate" / "scores.npz")).items():
        np.testing.assert_array_equal(again, scores[name])


def test_a_stage_without_the_one_before_it_is_an_error(tmp_path):
    config = testing.get_config()
    config.stages = "fusion"
    with pytest.raises(FileNotFoundError, match="'fusion' needs 'prepare', which is not done in"):
        pipeline.run(config, tmp_path)


def test_the_frozen_networks_are_bit_identical_after_the_head_was_trained(finished_run):
    metadata = json.loads((finished_run / "export" / "metadata.json").read_text())
    assert metadata["class_names"][0] and len(metadata["class_names"]) == 36
    from flax import nnx

    from moclip_jax.inference.recognizer import load
    from moclip_jax.pretrained import TINY_CLIP, load_tower
    from moclip_jax.training.motion import load_motion_network

    exported = load(finished_run).model
    network = load_motion_network(testing.get_config(), 36, finished_run / "motion")
    clip, _ = load_tower(TINY_CLIP)
    for left, right in ((exported.motion, network), (exported.clip, clip)):
        flat = (nnx.to_flat_state(nnx.state(model)) for model in (left, right))
        for (path, a), (same_path, b) in zip(*flat, strict=True):
            assert path == same_path
            np.testing.assert_array_equal(a[...], b[...], err_msg=str(path))


@pytest.mark.parametrize("module", [demo, demo_few, demo_order, testing])
def test_the_configs_that_need_nothing_are_valid(module):
    check_config(module.get_config())


@pytest.mark.parametrize(
    "module",
    [demo, demo_few, demo_order, testing, ucf101, hmdb51, pretrain, video_folder, video_list],
)
def test_every_config_has_exactly_the_fields_of_the_common_one(module):
    assert set(config_fields(module.get_config())) == set(config_fields(default_config()))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("stages", "prepare,train", "unknown stage 'train'"),
        ("pretraining.num_epochs", 0, "config.pretraining.num_epochs=0 must be positive"),
        (
            ("stages", "motion.backbone"),
            ("prepare,pretrain", "fisher"),
            "config.motion.backbone='fisher' has nothing to pretrain",
        ),
        (("stages", "time_budget"), ("prepare,pretrain", 5.0), "is of the stage motion"),
        ("dataset.name", "kinetics", "config.dataset.name='kinetics'"),
        ("dataset.videos", "/nowhere", "/nowhere' is not a folder"),
        ("selection.mode", "best", "config.selection.mode='best'"),
        ("motion.batch_size", 0, "config.motion.batch_size=0"),
        ("motion.backbone", "b9", "config.motion.backbone"),
        ("motion.source", "raw", "config.motion.source='raw'"),
        (
            ("motion.backbone", "motion.source"),
            ("fisher", "native"),
            "needs config.motion.source='reencode'",
        ),
        (
            ("motion.backbone", "motion.pretrained"),
            ("fisher", "x"),
            "takes no config.motion.pretrained",
        ),
        (("motion.backbone", "fusion.head"), ("fisher", "temporal"), "without their order"),
        (("motion.backbone", "predict.crops"), ("fisher", 10), "config.predict.crops must be 1"),
        ("selection.shots", -1, "config.selection.shots=-1 must be 0 (all) or more"),
        ("selection.shot_list", "none.txt", "config.selection.shot_list='none.txt' is not a file"),
        ("video.max_seconds", 0.0, "config.video.max_seconds=0.0"),
        ("motion.resize_size", 8, "config.motion.resize_size=8"),
        ("motion.decay_epochs", (5,), "config.motion.decay_epochs"),
        ("motion.dtype", "float16", "config.motion.dtype"),
        ("motion.dtype", "auto", "config.motion.dtype='auto' must be float32 or bfloat16"),
        ("features.motion_dtype", "float16", "config.features.motion_dtype='float16'"),
        ("evaluation.crops", 3, "config.evaluation.crops=3"),
        ("clip.frame", "last", "config.clip.frame='last'"),
        ("fusion.dropout", 1.5, "config.fusion.dropout"),
        ("motion.head", "attention", "config.motion.head='attention' must be mean or"),
        ("fusion.head", "last", "config.fusion.head='last' must be mean, temporal"),
        (("motion.head", "motion.num_segments"), ("temporal", 1), "num_segments=1 has no order"),
        (("fusion.head", "fusion.hidden"), ("attention", 0), "config.fusion.hidden=0 must be a"),
        (("fusion.head", "fusion.normalize"), ("attention", True), "attention has its own"),
        (("fusion.head", "fusion.alpha"), ("text", "1.5"), "must be auto or a number from 0 to 1"),
        (("fusion.head", "fusion.alpha"), ("text", "most"), "must be auto or a number from 0 to 1"),
        (
            ("fusion.head", "clip.features"),
            ("text", "pooled"),
            "set config.clip.features='projected'",
        ),
        (("fusion.head", "selection.mode"), ("text", "last"), "is chosen on held-out groups"),
        ("zero_shot.templates", ("a photo",), "a photo"),
        (
            ("dataset.options.multi_label", "balanced_loss"),
            (True, True),
            "config.balanced_loss=True needs one label a video",
        ),
        (
            ("dataset.options.multi_label", "fusion.head"),
            (True, "text"),
            "config.fusion.head='text' needs one label a video",
        ),
        (
            ("dataset.options.multi_label", "selection.shots"),
            (True, 4),
            "config.selection.shots needs one label a video",
        ),
    ],
)
def test_a_contradiction_is_an_error_that_names_the_field(field, value, message, tmp_path):
    config = testing.get_config()
    fields = dict(zip(field, value, strict=True)) if isinstance(field, tuple) else {field: value}
    config.update_from_flattened_dict(fields)
    with pytest.raises(ValueError, match="the configuration cannot work") as error:
        pipeline.run(config, tmp_path)
    assert message in str(error.value)
    assert not list(tmp_path.iterdir())


def test_the_table_has_an_entry_for_each_stage():
    assert tuple(s for s in pipeline.STAGE_TABLE if s != "pretrain") == STAGES
    assert set(PRETRAINING_STAGES) <= set(pipeline.STAGE_TABLE)


def test_a_stage_depends_on_its_own_settings_and_those_before_it():
    def changed_stages(field, value):
        config = testing.get_config()
        before = stage_settings(config)
        config.update_from_flattened_dict({field: value})
        after = stage_settings(config)
        return [stage for stage in before if before[stage] != after[stage]]

    assert list(stage_settings(pretrain.get_config())) == list(PRETRAINING_STAGES)
    stages = list(STAGES)
    assert changed_stages("video.qscale", 2) == stages
    # Another limit keeps the prepared videos, but there may be more or fewer to train on.
    assert changed_stages("video.max_frames", 20_000) == stages[1:]
    assert changed_stages("motion.source", "auto") == stages
    assert changed_stages("motion.learning_rate", 0.1) == stages[1:]
    assert changed_stages("selection.shots", 4) == stages[1:]
    assert changed_stages("clip.frame", "random") == stages[2:]
    assert changed_stages("features.motion_dtype", "bfloat16") == stages[2:]
    assert changed_stages("fusion.hidden", 8) == stages[3:]
    assert changed_stages("motion.head", "temporal") == stages[1:]
    assert changed_stages("fusion.head", "temporal") == stages[3:]
    assert changed_stages("fusion.alpha", "0.5") == []  # of another head
    # Its tokens are stored with the features.
    assert changed_stages("fusion.head", "evl") == stages[2:]
    assert changed_stages("predict.num_segments", 8) == stages[5:]
    assert changed_stages("dataset.num_workers", 7) == []
    assert changed_stages("pretraining.num_epochs", 7) == []  # of another run
    assert changed_stages("motion.checkpoint_every_steps", 7) == []


def test_weights_that_cannot_be_had_stop_the_run_before_any_work(tmp_path):
    config = testing.get_config()
    config.clip.source = str(tmp_path / "no_clip")
    with pytest.raises((OSError, ValueError), match="no_clip"):
        pipeline.run(config, tmp_path / "run")
    config = testing.get_config()
    config.motion.pretrained = str(tmp_path / "none.safetensors")
    with pytest.raises((OSError, ValueError), match=r"none\.safetensors"):
        pipeline.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "data").exists()


def test_the_features_on_disk_are_those_of_every_video(finished_run):
    for split in ("train", "validation", "test"):
        index = np.concatenate(
            [np.load(path)["index"] for path in (finished_run / "features" / split).glob("*.npz")]
        )
        np.testing.assert_array_equal(np.sort(index), np.arange(36))


def test_the_trained_network_is_the_one_in_the_export(finished_run):
    assert (finished_run / "motion" / "network").is_dir()
    assert (finished_run / "fusion" / "fusion" / "network").is_dir()
    with pytest.raises(FileNotFoundError):
        load_tree(finished_run / "motion" / "elsewhere", {})
