"""The commands that run the recipe several times: what they share and what they report."""

import json
import shutil
import statistics

import pytest

from moclip_jax.configs import testing, ucf101
from moclip_jax.training import ablate, few_shot, pipeline, splits


def test_every_variant_is_a_valid_configuration_that_differs_from_the_base(tmp_path):
    from moclip_jax.config_checks import check_config

    base = ablate.variant_config(testing.get_config(), {}, tmp_path)
    assert base.video.clip_frames == ablate.FRAMES_KEPT
    for name, changes in ablate.VARIANTS.items():
        config = ablate.variant_config(testing.get_config(), changes, tmp_path)
        check_config(config)
        same = pipeline.stage_settings(config) == pipeline.stage_settings(base)
        assert same == (not changes or changes == {"evaluation.num_segments": 3}), name


@pytest.mark.usefixtures("without_report")
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
    rows = {name: runs[0] for name, runs in table.items()}
    inputs = (rows["base"]["fusion"]["trainable_params"] - 513 * 36) // 512
    assert rows["linear heads"]["fusion"]["trainable_params"] == inputs * 36
    assert rows["8 segments"]["motion"]["gflops"] > rows["base"]["motion"]["gflops"]
    text = ablate.format_ablations(table)
    assert all(name in text for name in table)
    capsys.readouterr()


def test_the_splits_are_run_on_the_same_data_and_summed_up(tmp_path, monkeypatch):
    seen = []

    def fake_run(config, workdir):
        seen.append((config.dataset.split, config.dataset.data_dir, workdir.name))
        top1 = 0.5 + 0.1 * config.dataset.split
        each = {"fusion": top1, "motion": top1 / 2}
        return {"rows": {row: {"top1": v, "balanced_accuracy": v / 4} for row, v in each.items()}}

    monkeypatch.setattr(pipeline, "run", fake_run)
    summary = splits.run_splits(ucf101.get_config(), tmp_path, 3)
    data_dir = ucf101.get_config().dataset.data_dir
    assert seen == [(n, data_dir, f"split{n}") for n in (1, 2, 3)]
    assert summary["mean"]["fusion"] == pytest.approx(0.7)
    assert summary["stdev"]["motion"] == pytest.approx(statistics.stdev([0.3, 0.35, 0.4]))
    assert summary["balanced_accuracy"]["motion"] == pytest.approx(0.35 / 4)
    *_, fusion, motion = splits.format_splits(summary).splitlines()
    assert fusion.split()[-3:] == ["70.0", "10.0", "17.5"]
    assert motion.split()[-3:] == ["35.0", "5.0", "8.8"]
    assert json.loads((tmp_path / "splits.json").read_text()) == summary


def test_variants_are_run_with_several_seeds_beside_the_base_of_the_same_seed(
    tmp_path, monkeypatch
):
    seen = []

    def fake_run(config, workdir):
        # Linked stages stand before the run begins.
        links = sorted(
            path.resolve().parent.name for path in workdir.glob("*") if path.is_symlink()
        )
        seen.append((workdir.name, config.seed, set(links)))
        for stage in ("prepare", "motion"):
            (workdir / stage).mkdir(parents=True, exist_ok=True)
        top1 = 0.1 * config.seed + (0.2 if config.fusion.hidden == 0 else 0.1)
        row = {"top1": top1, "balanced_accuracy": top1 / 2, "gflops": 3.0}
        return {"rows": dict.fromkeys(("zero_shot", "clip_head", "motion", "fusion"), row)}

    monkeypatch.setattr(pipeline, "run", fake_run)
    config = testing.get_config()
    config.seed = 1
    variants = {"linear heads": ablate.VARIANTS["linear heads"]}
    table = ablate.run_ablations(config, tmp_path, variants, num_seeds=2)
    assert seen == [
        ("base_seed1", 1, set()),
        ("base_seed2", 2, set()),
        ("linear_heads_seed1", 1, {"base_seed1"}),
        ("linear_heads_seed2", 2, {"base_seed2"}),
    ]
    assert json.loads((tmp_path / "ablations.json").read_text()) == table
    deviation = 100 * statistics.stdev([0.3, 0.4])
    _, base, linear = ablate.format_ablations(table).splitlines()
    assert base.split()[-2:] == ["12.5", "3"]
    assert f"35.0 +-  {deviation:.1f}" in linear and "25.0" in base


def test_numbers_of_shots_are_compared_over_the_same_data_in_a_markdown_table(
    tmp_path, monkeypatch
):
    seen = []

    def fake_run(config, workdir):
        seen.append((workdir.name, config.selection.shots, config.seed, config.dataset.data_dir))
        top1 = 0.1 * config.selection.shots + 0.1 * config.seed
        return {"rows": {"motion": {"top1": top1, "balanced_accuracy": top1}}}

    monkeypatch.setattr(pipeline, "run", fake_run)
    table = few_shot.run_few_shot(testing.get_config(), tmp_path, [2, 4, 0], num_seeds=2)
    assert seen == [
        (f"shots{shots}_seed{seed}", shots, seed, str(tmp_path / "data"))
        for shots in (2, 4, 0)
        for seed in (0, 1)
    ]
    assert json.loads((tmp_path / "few_shot.json").read_text()) == table
    assert few_shot.format_few_shot(table).splitlines() == [
        "| row | K=2 | K=4 | all |",
        "| --- | --- | --- | --- |",
        "| motion | 25.0 ± 7.1 | 45.0 ± 7.1 | 5.0 ± 7.1 |",
    ]
