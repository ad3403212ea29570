"""Exports are loaded in fresh processes that know nothing of this package, and give its logits."""

import contextlib
import io
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import safetensors.numpy

from moclip_jax.export.__main__ import main
from moclip_jax.inference.recognizer import Recognizer, load

STABLEHLO = """
import json, sys, jax, numpy, safetensors.numpy
folder, *files = sys.argv[1:]
model = jax.export.deserialize(bytearray(open(folder + "/model.stablehlo", "rb").read()))
assert set(model.platforms) == {"cpu", "cuda", "tpu"}, model.platforms
assert json.load(open(folder + "/inputs.json"))["inputs"]["motion"][0] == "b"
parameters = safetensors.numpy.load_file(folder + "/parameters.safetensors")
for given, answer in zip(files[::2], files[1::2]):
    outputs = jax.jit(model.call)(parameters, safetensors.numpy.load_file(given))
    safetensors.numpy.save_file({k: numpy.array(v) for k, v in outputs.items()}, answer)
assert not {"moclip_jax", "input_pipeline", "flax"} & set(sys.modules)
"""
SAVED_MODEL = """
import sys, safetensors.numpy, tensorflow as tf
folder, given, answer = sys.argv[1:]
arrays = {k: tf.constant(v) for k, v in safetensors.numpy.load_file(given).items()}
outputs = tf.saved_model.load(folder).signatures["serving_default"](**arrays)
safetensors.numpy.save_file({k: v.numpy() for k, v in outputs.items()}, answer)
assert not {"moclip_jax", "input_pipeline", "flax"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def recognizer(finished_run: Path) -> Recognizer:
    return load(finished_run)


@pytest.fixture(scope="module")
def serving(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the command writes."""
    folder = tmp_path_factory.mktemp("serving")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert main(["--workdir", str(finished_run), "--out", str(folder)]) == 0
    assert "written" in printed.getvalue()
    return folder


def run_elsewhere(program: str, folder: Path, given: list[dict], tmp_path: Path) -> list[dict]:
    """Runs a program on each of several inputs in a process of its own, away from this tree."""
    answers, arguments = [], []
    for number, arrays in enumerate(given):
        question, answer = (
            tmp_path / f"{name}{number}.safetensors" for name in ("given", "answer")
        )
        safetensors.numpy.save_file(arrays, question)
        answers.append(answer)
        arguments += [str(question), str(answer)]
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder), *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [safetensors.numpy.load_file(answer) for answer in answers]


def some_inputs(recognizer: Recognizer, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch)
    return {
        name: rng.integers(0, 256, (batch, *shape)).astype(np.uint8)
        for name, shape in recognizer.input_shapes.items()
    }


def expected_logits(recognizer: Recognizer, inputs: dict[str, np.ndarray]) -> np.ndarray:
    """By the package's own networks, without what is exported."""
    from moclip_jax.models.moclip import appearance_features, motion_features

    @jax.jit
    def run(models, motion, images):
        network, clip, head = models
        features = motion_features(network, motion).mean(axis=1)
        return head(features, appearance_features(clip, images)[0])

    models = recognizer.model.motion, recognizer.model.clip, recognizer.model.head
    return np.asarray(run(models, inputs["motion"], inputs["images"]))


def check(outputs: dict[str, np.ndarray], expected: np.ndarray) -> None:
    np.testing.assert_allclose(outputs["logits"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(outputs["probabilities"].sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(outputs["probabilities"].argmax(1), expected.argmax(1))


def test_stablehlo_gives_the_same_logits_for_any_number_of_videos(recognizer, serving, tmp_path):
    given = [some_inputs(recognizer, batch) for batch in (1, 3)]
    answers = run_elsewhere(STABLEHLO, serving / "stablehlo", given, tmp_path)
    for inputs, outputs in zip(given, answers, strict=True):
        check(outputs, expected_logits(recognizer, inputs))


def test_saved_model_gives_the_same_logits(recognizer, serving, tmp_path):
    inputs = some_inputs(recognizer, 2)
    (outputs,) = run_elsewhere(SAVED_MODEL, serving / "saved_model", [inputs], tmp_path)
    check(outputs, expected_logits(recognizer, inputs))


def test_the_command_writes_both(serving, tmp_path, capsys):
    assert (serving / "stablehlo" / "model.stablehlo").is_file()
    assert (serving / "saved_model" / "saved_model.pb").is_file()
    assert main(["--workdir", str(tmp_path), "--out", str(tmp_path / "other")]) == 1
    assert "no exported model" in capsys.readouterr().err
