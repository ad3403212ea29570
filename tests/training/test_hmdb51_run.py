"""`configs/hmdb51.py` through `moclip_jax.training.splits`, on files in HMDB51's own format."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from flax import nnx

from moclip_jax.models.efficientnet import EfficientNet, EfficientNetConfig
from moclip_jax.pretrained import TINY_CLIP, save_efficientnet
from tests.hmdb51_fixture import CLASSES, CLIPS, write_hmdb51

# Three whole runs.
pytestmark = [pytest.mark.slow, pytest.mark.ci]


def test_the_three_splits_of_the_published_config_run_and_are_summarized(tmp_path):
    videos, lists = write_hmdb51(tmp_path / "hmdb51")
    weights = tmp_path / "tiny.safetensors"
    save_efficientnet(EfficientNet(EfficientNetConfig.named("tiny"), rngs=nnx.Rngs(0)), weights)
    workdir = tmp_path / "run"
    overrides = {
        "dataset.videos": videos,
        "dataset.lists": lists,
        "dataset.data_dir": tmp_path / "data",
        "dataset.num_workers": 1,
        "video.width": 64,
        "video.height": 48,
        "video.clip_frames": 1,
        "selection.mode": "last",
        "motion.backbone": "tiny",
        "motion.pretrained": weights,
        "motion.image_size": 32,
        "motion.resize_size": 36,
        "motion.batch_size": 4,
        "motion.learning_rate": 0.001,
        "motion.num_epochs": 2,
        "motion.decay_epochs": "(1,)",
        "clip.source": TINY_CLIP,
        "features.batch_size": 4,
        "features.train_views": 2,
        "fusion.batch_size": 4,
        "fusion.num_epochs": 2,
        "evaluation.num_segments": 2,
    }
    command = [
        sys.executable,
        "-m",
        "moclip_jax.training.splits",
        f"--config={Path('configs/hmdb51.py').absolute()}",
        f"--workdir={workdir}",
        *(f"--config.{field}={value}" for field, value in overrides.items()),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    assert run.returncode == 0, run.stderr
    each = [
        json.loads((workdir / f"split{split}" / "results.json").read_text())["rows"]
        for split in (1, 2, 3)
    ]
    summary = json.loads((workdir / "splits.json").read_text())
    assert [result["rows"] for result in summary["splits"]] == each
    for row in each[0]:
        top1 = [rows[row]["top1"] for rows in each]
        assert summary["mean"][row] == statistics.mean(top1)
        assert summary["stdev"][row] == statistics.stdev(top1)
        # A mark of 2 in the list of a split is a test video.
        tested = [len(CLASSES) * sum(m[k] == "2" for m in CLIPS.values()) for k in range(3)]
        assert [rows[row]["num_examples"] for rows in each] == tested
        assert f"{row:<10}" + "".join(f"{100 * value:9.1f}" for value in top1) in run.stdout
    # The three runs share the prepared videos.
    assert run.stdout.count("prepare hmdb51_motion: 12 videos (12 reencoded)") == 1
    metadata = json.loads((workdir / "split3" / "export" / "metadata.json").read_text())
    assert metadata["class_names"] == list(CLASSES)
