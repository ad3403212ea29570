"""Inference imports neither TensorFlow nor training, and an import changes no global state."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.input_pipeline import real_clips

ROOT = Path(__file__).parents[2]
# What inference must not reach: data sets, their libraries, and the training of heads and networks.
HEAVY = ("tensorflow", "tensorflow_datasets", "optax", "orbax", "apache_beam", "transformers")
FORBIDDEN = ("moclip_jax.training", "moclip_jax.input_pipeline.datasets")


USE_EVERYTHING = """
import os, signal, sys, warnings
import jax, flax.nnx
from PIL import Image
import matplotlib
given = set(sys.modules)  # Flax itself imports optax.
handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
environment = dict(os.environ)
import av.logging
level, backend = av.logging.get_level(), matplotlib.rcParams._get_backend_or_none()
import moclip_jax
workdir, video, figure = sys.argv[1:]
model = moclip_jax.load(workdir)
assert model.predict(video).scores
assert list(model.timeline(video, seconds=2))
from moclip_jax.reporting.motion_figures import draw_motion
from pathlib import Path
import moclip_jax.visualize
draw_motion(video, moclip_jax.read_clip(video, model.video), Path(figure), raw=False, guesses=())
assert Path(figure).exists()
assert environment == dict(os.environ)
assert handlers == {number: signal.getsignal(number) for number in signal.valid_signals()}
assert level == av.logging.get_level()
assert backend == matplotlib.rcParams._get_backend_or_none()
print("\\n".join(sorted(set(sys.modules) - given)))
"""


def test_using_a_model_imports_no_training_and_changes_no_state(finished_run, tmp_path):
    video = str(real_clips.path("carphone_pristine"))
    arguments = str(finished_run), video, str(tmp_path / "a.png")
    done = subprocess.run(
        [sys.executable, "-c", USE_EVERYTHING, *arguments], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    for module in done.stdout.splitlines():
        assert not _is_under(module, (*HEAVY, *FORBIDDEN)), module


def _is_under(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _source(module: str) -> Path | None:
    """The file of one of our modules, without importing it."""
    parts = module.split(".")[1:]
    for folder in (ROOT / "moclip_jax", ROOT):
        base = folder.joinpath(*parts)
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.exists():
                return path
    return None


def _imports(module: str) -> set[str]:
    """Modules that are imported while a module is imported: not inside functions."""
    path = _source(module)
    assert path is not None, module
    found: set[str] = set()
    waiting = list(ast.parse(path.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: imports are absolute"
            found.add(node.module)
            found |= {f"{node.module}.{name.name}" for name in node.names}
        waiting.extend(ast.iter_child_nodes(node))
    return found


def _reachable(module: str) -> set[str]:
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if name.startswith("moclip_jax"):
            parents = name.split(".")
            waiting += [".".join(parents[:end]) for end in range(1, len(parents))]
            if _source(name):
                waiting += _imports(name)
    return seen


@pytest.mark.parametrize(
    "module",
    [
        "moclip_jax.predict",
        "moclip_jax.visualize",
        "moclip_jax.app",
        "moclip_jax.search.build",
        "moclip_jax.search.chunks",
        "moclip_jax.search.find",
        "moclip_jax.search.query",
        "moclip_jax.inference.recognizer",
        "moclip_jax.inference.exported",
        "moclip_jax.inference.program",
        "moclip_jax.inference.zero_shot",
        "moclip_jax.models.moclip",
        "moclip_jax.models.inference",
        "moclip_jax.pretrained",
        "moclip_jax.input_pipeline.views",
        "moclip_jax.input_pipeline.video.clip",
        "moclip_jax.reporting.motion_figures",
    ],
)
def test_no_module_of_inference_imports_training(module):
    drawn = [f"moclip_jax.input_pipeline.datasets.{name}" for name in ("shapes", "shape_masks")]
    allowed = tuple(drawn) if module.endswith("app") else ()
    reached = _reachable(module)
    assert len(reached) > 5
    for name in reached:
        if not _is_under(name, (*allowed, "moclip_jax.input_pipeline.datasets.__init__")):
            assert not _is_under(name, (*HEAVY, "moclip_jax.training")), name
            assert not name.startswith("moclip_jax.input_pipeline.datasets.") or name in allowed


@pytest.mark.parametrize("module", ["frame", "reading", "selection", "patches", "camera"])
def test_the_codec_library_reaches_neither_jax_nor_anything_heavy(module):
    reached = _reachable(f"moclip_jax.codec.{module}")
    assert {"av", "numpy"} <= reached or module == "camera"
    for name in reached:
        assert not _is_under(name, (*HEAVY, *FORBIDDEN, "jax", "flax", "absl", "ml_collections"))


def test_the_graph_of_imports_sees_what_training_reaches():
    """The test above would see TensorFlow if it were there."""
    reached = _reachable("moclip_jax.training.pipeline")
    assert {"tensorflow", "optax"} <= reached
