"""`configs/ucf101.py` itself, from the command line, on files in UCF101's own format."""

import json
import subprocess
import sys
from pathlib import Path

from flax import nnx

from moclip_jax.models.efficientnet import EfficientNet, EfficientNetConfig
from moclip_jax.pretrained import TINY_CLIP, save_efficientnet
from tests.ucf101_fixture import CLASSES, write_ucf101


def test_the_published_config_runs_from_files_to_predictions(tmp_path):
    videos, lists = write_ucf101(tmp_path / "ucf101")
    (videos / "YoYo" / "v_YoYo_g01_c01.avi").write_bytes(b"damaged")
    weights = tmp_path / "tiny.safetensors"
    tiny = nnx.jit(lambda: EfficientNet(EfficientNetConfig.named("tiny"), rngs=nnx.Rngs(0)))()
    save_efficientnet(tiny, weights)
    workdir = tmp_path / "run"
    overrides = {
        "dataset.videos": videos,
        "dataset.lists": lists,
        "dataset.data_dir": tmp_path / "data",
        "dataset.num_workers": 1,
        "selection.heldout_fraction": 0.25,
        "motion.backbone": "tiny",
        "motion.pretrained": weights,
        "motion.image_size": 32,
        "motion.resize_size": 36,
        "motion.batch_size": 4,
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
        "moclip_jax.main",
        f"--config={Path('configs/ucf101.py').absolute()}",
        f"--workdir={workdir}",
        *(f"--config.{field}={value}" for field, value in overrides.items()),
    ]
    run = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 0, run.stderr
    assert "v_YoYo_g01_c01" in run.stdout  # rejected, by name
    rows = json.loads((workdir / "results.json").read_text())["rows"]
    for row in rows.values():
        # Split 1 tests groups 1 and 2 of 3 classes; the damaged one counts as wrong.
        assert row["num_examples"] == 6
        assert row["top1"] <= 5 / 6
    assert "2 segments x 10 crops" in rows["fusion"]["protocol"]
    metadata = json.loads((workdir / "export" / "metadata.json").read_text())
    assert metadata["class_names"] == list(CLASSES)
    # The table is what the run ends with.
    assert "zero_shot" in run.stdout and "fusion" in run.stdout
