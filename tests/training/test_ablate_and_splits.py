"""The two commands that run the recipe several times: what they share and what they report."""

import json
import shutil
import statistics

import pytest

from moclip_jax.configs import testing, ucf101
from moclip_jax.training import ablate, pipeline, splits


def test_every_variant_is_a_valid_configuration_that_differs_from_the_base(tmp_path):
    from moclip_jax.config_checks import check_config

    base = ablate.variant_config(testing.get_config(), {}, tmp_path)
    assert base.video.clip_frames == ablate.FRAMES_KEPT
    for name, changes in ablate.VARIANTS.items():
        config = ablate.variant_config(testing.get_config(), changes, tmp_path)
        check_config(config)
        same = pipeline.stage_settings(config) == pipeline.stage_settings(base)
        assert same == (not changes or changes == {"evaluation.num_segments": 3}), name


def test_a_variant_repeats_only_the_stages_that_it_changes(
    finished_run, tmp_path, capsys, monkeypatch
):
    variants = {name: ablate.VARIANTS[name] for name in ("linear heads", "8 segments")}
    # With as many frames as the finished run, which then is the base, done before.
    monkeypatch.setattr(ablate, "FRAMES_KEPT", 1)
    shutil.copytree(finished_run, tmp_path / "base")
    config = testing.get_config()
    config.dataset.data_dir = str(tmp_path / "base" / "data")
    table = ablate.run_ablations(config, tmp_path, variants)
    assert list(table) == ["base", *variants]
    assert json.loads((tmp_path / "ablations.json").read_text()) == table
    linear, segments = tmp_path / "linear_heads", tmp_path / "8_segments"
    for stage in ("prepare", "motion", "features"):
        assert (linear / stage).resolve() == (tmp_path / "base" / stage).resolve()
    assert not (linear / "fusion").is_symlink()
    assert (segments / "motion").is_symlink() and (segments / "features" / "train").is_symlink()
    assert not (segments / "features" / "test").is_symlink()
    # 36 classes; the base head is (in + 1) * 512 + 513 * 36, the linear one (in + 1) * 36.
    inputs = (table["base"]["fusion"]["trainable_params"] - 513 * 36) // 512
    assert table["linear heads"]["fusion"]["trainable_params"] == inputs * 36
    assert table["8 segments"]["motion"]["gflops"] > table["base"]["motion"]["gflops"]
    text = ablate.format_ablations(table)
    assert all(name in text for name in table)
    capsys.readouterr()


def test_the_splits_are_run_on_the_same_data_and_summed_up(tmp_path, monkeypatch):
    seen = []

    def fake_run(config, workdir):
        seen.append((config.dataset.split, config.dataset.data_dir, workdir.name))
        top1 = 0.5 + 0.1 * config.dataset.split
        return {"rows": {"fusion": {"top1": top1}, "motion": {"top1": top1 / 2}}}

    monkeypatch.setattr(pipeline, "run", fake_run)
    summary = splits.run_splits(ucf101.get_config(), tmp_path, 3)
    data_dir = ucf101.get_config().dataset.data_dir
    assert seen == [(n, data_dir, f"split{n}") for n in (1, 2, 3)]
    assert summary["mean"]["fusion"] == pytest.approx(0.7)
    assert summary["stdev"]["motion"] == pytest.approx(statistics.stdev([0.3, 0.35, 0.4]))
    assert "70.0" in splits.format_splits(summary)
    assert json.loads((tmp_path / "splits.json").read_text()) == summary
