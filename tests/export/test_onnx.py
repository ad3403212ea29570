"""The ONNX model runs in processes without JAX, and gives the package's own logits."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import moclip_jax
from moclip_jax.export import onnx as export
from moclip_jax.export.__main__ import main
from moclip_jax.inference.recognizer import Recognizer
from moclip_jax.input_pipeline.video.spec import VideoSpec
from moclip_jax.input_pipeline.views import MotionViews
from moclip_jax.models.clip_config import CLIPConfig
from moclip_jax.models.efficientnet import EfficientNetConfig
from moclip_jax.models.fusion import FusionConfig
from moclip_jax.models.moclip import MoCLIP, MoCLIPConfig
from moclip_jax.models.motion_network import MotionNetworkConfig
from tests.export.test_saved_model import expected_logits, some_inputs
from tests.input_pipeline import real_clips
from tests.input_pipeline.video_fixtures import drifting_frames, write_video

pytest.importorskip("jax2onnx", reason="make onnx")

RUN = """
import sys, numpy, onnxruntime
model, given, answer = sys.argv[1:]
session = onnxruntime.InferenceSession(model)
names = ["logits", "probabilities"]
outputs = session.run(names, dict(numpy.load(given)))
numpy.savez(answer, **dict(zip(names, outputs)))
assert not {"jax", "moclip_jax", "flax", "tensorflow"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def exported(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes."""
    folder = tmp_path_factory.mktemp("onnx")
    assert main(["--workdir", str(finished_run), "--out", str(folder), "--formats=onnx"]) == 0
    return folder / "onnx"


def outputs_elsewhere(model: Path, inputs: dict[str, np.ndarray], folder: Path) -> dict:
    """Run a model by onnxruntime in a process of its own."""
    np.savez(folder / "given.npz", **inputs)
    command = [sys.executable, "-c", RUN, str(model), "given.npz", "answer.npz"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return dict(np.load(folder / "answer.npz"))


def test_the_logits_are_the_same_for_any_number_of_videos(finished_run, exported, tmp_path):
    recognizer = moclip_jax.load(finished_run)
    for batch in (1, 3):
        inputs = some_inputs(recognizer, batch)
        outputs = outputs_elsewhere(exported / "model.onnx", inputs, tmp_path)
        expected = expected_logits(recognizer, inputs)
        np.testing.assert_allclose(outputs["logits"], expected, rtol=0, atol=1e-5)
        np.testing.assert_allclose(
            outputs["probabilities"], jax.nn.softmax(expected), rtol=0, atol=1e-5
        )


def test_every_weight_is_stored_once(finished_run, exported):
    model = moclip_jax.load(finished_run).model
    del model.clip.text
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model)))
    assert weights < (exported / "model.onnx").stat().st_size < 1.1 * weights + 500_000


def test_the_script_labels_videos_as_predict_does(finished_run, exported, tmp_path):
    recognizer = moclip_jax.load(finished_run)
    videos = [str(real_clips.path(name)) for name in ("carphone_pristine", "bikes")]
    folder = shutil.copytree(exported, tmp_path / "alone")
    done = subprocess.run(
        [sys.executable, "-I", str(folder / "predict_onnx.py"), *videos],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    for video, line in zip(videos, done.stdout.splitlines(), strict=True):
        given, prediction = json.loads(line), recognizer.predict(video)
        assert given["video"] == video
        assert [x["label"] for x in given["predictions"]] == [x.label for x in prediction.scores]
        np.testing.assert_allclose(
            [x["probability"] for x in given["predictions"]],
            [x.probability for x in prediction.scores],
            atol=1e-5,
        )


def test_the_script_rejects_a_rotated_video(exported, tmp_path):
    video = write_video(tmp_path / "a.mp4", drifting_frames(9, 48, 80, step=(3, 1)), rotation=90)
    command = [sys.executable, "-I", str(exported / "predict_onnx.py"), str(video)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "degrees; turn it first" in done.stderr


def test_the_script_is_short_and_imports_what_it_says():
    source = (Path(export.__file__).parent / "predict_onnx.py").read_text()
    assert len(source.splitlines()) <= 150
    lines = map(str.split, source.splitlines())
    imported = {
        words[1].partition(".")[0] for words in lines if words and words[0] in ("import", "from")
    }
    assert imported - sys.stdlib_module_names == {"av", "numpy", "onnxruntime", "PIL"}


def full_size(backbone: str) -> Recognizer:
    """The published model with another backbone and random weights; three segments."""
    config = MoCLIPConfig(
        MotionNetworkConfig(EfficientNetConfig.named(backbone, in_channels=2, num_classes=101)),
        CLIPConfig.named("vit_b32"),
        FusionConfig(num_classes=101),
    )
    return Recognizer(
        lambda: MoCLIP(config, rngs=nnx.Rngs(0)),
        [f"class {i}" for i in range(101)],
        image_size=224,
        video=VideoSpec(),
        views=MotionViews(num_segments=3),
    )


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["b0", "lite0"])
def test_full_size_logits_are_the_same(backbone, tmp_path):
    recognizer = full_size(backbone)
    export.export_onnx(recognizer, tmp_path / "onnx")
    inputs = some_inputs(recognizer, 2)
    outputs = outputs_elsewhere(tmp_path / "onnx" / "model.onnx", inputs, tmp_path)
    expected = expected_logits(recognizer, inputs)
    np.testing.assert_allclose(outputs["logits"], expected, rtol=0, atol=1e-4)


class _Fourier(nnx.Module):
    """A head with an operation that the converter does not know."""

    def __init__(self, head):
        self.config = head.config
        self.head = head

    def __call__(self, motion, appearance, rngs=None):
        return jnp.linalg.eigh(jnp.eye(3))[0].sum() + self.head(motion, appearance)


def test_an_operation_without_a_form_in_onnx_is_named(finished_run, tmp_path):
    recognizer = moclip_jax.load(finished_run)
    recognizer.model.head = _Fourier(recognizer.model.head)
    with pytest.raises(ValueError, match=r"has an operation that ONNX has no form of: .*eigh"):
        export.export_onnx(recognizer, tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


def test_without_the_converter_it_is_said_how_to_get_it(finished_run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax2onnx", None)
    assert importlib.util.find_spec("onnx")
    with pytest.raises(ValueError, match=r"pip install --no-deps jax2onnx"):
        export.export_onnx(moclip_jax.load(finished_run), tmp_path)


def test_a_setting_that_the_script_does_not_know_is_told(exported, finished_run, tmp_path, capsys):
    workdir = shutil.copytree(finished_run / "export", tmp_path / "export")
    metadata = json.loads((workdir / "metadata.json").read_text())
    metadata["config"]["predict"]["crops"] = 10
    (workdir / "metadata.json").write_text(json.dumps(metadata))
    assert main(["--workdir", str(tmp_path), "--out", str(tmp_path), "--formats=onnx"]) == 0
    assert "it does not know predict.crops=10" in capsys.readouterr().out
    assert not (tmp_path / "onnx" / "predict_onnx.py").exists()
    assert main(["--workdir", str(tmp_path), "--out", str(tmp_path), "--formats=onxx"]) == 1
    assert "'onxx' is unknown; use stablehlo, saved_model, onnx" in capsys.readouterr().err
