"""The choice of a motion model by time: what fits, what is kept, what is said if nothing fits."""

import json

import pytest

from moclip_jax.config_checks import check_config
from moclip_jax.configs import testing, ucf101, video_folder
from moclip_jax.training import budget, pipeline

# Seconds for a video; of a network in each epoch.
COSTS = {"fisher": 0.3, "b0": 2.0, "small": 0.2, "tiny": 0.02}


def chosen(config, num_videos: int, minutes: float) -> tuple[dict, float]:
    config.time_budget = minutes
    record = budget.choose(config, num_videos, lambda c: COSTS[c.motion.backbone])
    return record["settings"], record["estimate"]


def test_few_videos_get_fisher_vectors_and_many_a_network():
    settings, minutes = chosen(video_folder.get_config(), 200, 10)
    assert settings == {"motion.backbone": "fisher"}
    assert 200 * 0.3 / 60 <= minutes <= 10
    settings, minutes = chosen(video_folder.get_config(), 5000, 1000)
    assert settings["motion.backbone"] == "small" and settings["selection.mode"] == "heldout"
    # As many epochs as fit into the share of the budget that is for training.
    assert settings["motion.num_epochs"] == int(0.7 * 1000 * 60 / (5000 * 0.2))
    assert minutes == pytest.approx(1000)


@pytest.mark.parametrize(
    ("minutes", "backbone", "epochs"),
    [(10_000, "b0", 200), (3000, "b0", 63), (300, "small", 63), (60, "tiny", 126)],
)
def test_the_largest_network_of_which_enough_epochs_fit_is_trained_as_long_as_fits(
    minutes, backbone, epochs
):
    config = testing.get_config()
    settings, estimate = chosen(config, 1000, minutes)
    assert (settings["motion.backbone"], settings["motion.num_epochs"]) == (backbone, epochs)
    assert settings["motion.decay_epochs"] == [round(0.4 * epochs), round(0.8 * epochs)]
    assert estimate <= minutes * (1 + 1e-9)
    config.update_from_flattened_dict({k: v for k, v in settings.items() if "decay" not in k})
    config.motion.decay_epochs = tuple(settings["motion.decay_epochs"])
    check_config(config)


def test_pretrained_weights_keep_their_network():
    settings, _ = chosen(ucf101.get_config(), 100, 1000)
    assert settings["motion.backbone"] == "b0" and settings["motion.num_epochs"] == 200


def test_what_cannot_fit_is_said_with_what_would():
    with pytest.raises(
        ValueError, match=r"time_budget=0.1 minutes are too few for 1000 training"
    ) as e:
        chosen(testing.get_config(), 1000, 0.1)
    # 30 epochs of `tiny`: 600 seconds and what is not training.
    assert "needs about 14; raise it" in str(e.value)


def test_several_processes_are_asked_to_choose_themselves(tmp_path, monkeypatch):
    monkeypatch.setattr(budget.jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match="time_budget measures one process; with several set"):
        budget.with_time_budget(testing.get_config(), tmp_path)


@pytest.mark.usefixtures("without_report")
def test_a_run_measures_once_keeps_its_choice_and_trains_what_it_chose(
    finished_run, tmp_path, capsys, monkeypatch
):
    config = testing.get_config()
    config.stages = "prepare,motion"
    for stage in ("prepare", "data"):
        (tmp_path / stage).symlink_to(finished_run / stage)
    config.time_budget = 60.0
    monkeypatch.setattr(budget, "_NETWORKS", ("tiny",))
    monkeypatch.setattr(budget, "_FEWEST_EPOCHS", 1)
    monkeypatch.setattr(budget, "_MOST_EPOCHS", 2)
    monkeypatch.setattr(budget, "_DECAYS", (0.5,))
    pipeline.run(config, tmp_path)
    said = capsys.readouterr().out
    line = "time budget of 60 minutes for the motion model: motion.backbone=tiny, "
    assert line + "motion.num_epochs=2, motion.decay_epochs=[1]; estimated" in said
    record = json.loads((tmp_path / "budget.json").read_text())
    assert record["minutes"] == 60 and 0 < record["estimate"] < 60
    settings = json.loads((tmp_path / "motion" / "stage.json").read_text())["settings"]
    assert settings["motion"]["num_epochs"] == 2

    def no_measurement(config):
        raise AssertionError("measured again")

    monkeypatch.setattr(budget, "seconds_per_video", no_measurement)
    pipeline.run(config, tmp_path)
    assert "motion: done before" in capsys.readouterr().out
