"""An installed wheel: complete, one name on the import path, and unharmed by a user's own files."""

import email
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from moclip_jax.cli import COMMANDS
from tests.input_pipeline import real_clips
from tests.test_main import run_until

REPOSITORY = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
# Installed name of a folder of the repository; the deepest first.
FOLDERS = {
    "configs": "moclip_jax/configs",
    "input_pipeline": "moclip_jax/input_pipeline",
    "moclip_jax": "moclip_jax",
}


def installed_names() -> dict[str, Path]:
    """Return the repository's file for every name that an install must have."""
    return {
        f"{name}/{file.relative_to(REPOSITORY / folder).as_posix()}": file
        for folder, name in FOLDERS.items()
        for file in (REPOSITORY / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def requirements(name: str) -> set[str]:
    """Return the lines of a file of requirements, without comments."""
    lines = (REPOSITORY / name).read_text().splitlines()
    return {line for line in lines if line and not line.startswith(("#", "-r "))}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory) -> Path:
    """The wheel, built from a copy of the sources, without the network."""
    copy = tmp_path_factory.mktemp("sources")
    requirements = (path.name for path in REPOSITORY.glob("requirements*.txt"))
    for name in (*FOLDERS, *requirements, "pyproject.toml", "README.md", "LICENSE"):
        source = REPOSITORY / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    build = "import setuptools.build_meta as b; b.build_wheel('dist')"
    subprocess.run([sys.executable, "-c", build], cwd=copy, check=True, capture_output=True)
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="session")
def binaries(wheel, tmp_path_factory) -> Path:
    """Folder of the programs of an environment that holds the wheel and finds its dependencies."""
    environment = tmp_path_factory.mktemp("environment")
    venv.create(environment, symlinks=True)
    binaries = environment / "bin"
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(binaries / "python"), "install", "--quiet",
         "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)],
        check=True,
    )  # fmt: skip
    (site_packages,) = environment.glob("lib/python*/site-packages")
    # A path file adds folders without running the path files in them, such as that of the editable
    # install of the repository.
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    (site_packages / "dependencies.pth").write_text("\n".join(dependencies))
    return binaries


# What a user's file holds that the commands must not import.
NOT_IMPORTED = "raise AssertionError('imported')\n"


def run(cwd: Path, *command: str | Path) -> str:
    """Run a command in a folder and return what it printed."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True, env=variables
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def check_labels(printed: str) -> None:
    (result,) = map(json.loads, printed.splitlines())
    assert len(result["predictions"]) == 5


def test_the_list_of_packages_is_complete():
    packages = {
        "/".join(Path(name).parent.parts).replace("/", ".")
        for name in installed_names()
        if name.endswith(".py")
    }
    assert sorted(packages) == sorted(PYPROJECT["tool"]["setuptools"]["packages"])


def test_the_wheel_holds_every_file_and_one_name_at_the_top(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert {name.partition("/")[0] for name in names if ".dist-info/" not in name} == {
            "moclip_jax"
        }
        expected = installed_names()
        assert {name for name in names if ".dist-info/" not in name} == set(expected)
        for name, file in expected.items():
            assert archive.read(name) == file.read_bytes(), name
    assert "moclip_jax/py.typed" in expected
    assert "moclip_jax/pretrained/tiny_clip/model.safetensors" in expected


def test_the_wheel_is_small_and_names_what_each_extra_needs(wheel):
    assert wheel.stat().st_size < 3_000_000
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    needed: dict[str, set[str]] = {}
    for entry in map(Requirement, metadata.get_all("Requires-Dist")):
        (extra,) = re.findall(r'extra == "(\w+)"', str(entry.marker)) or [""]
        needed.setdefault(extra, set()).add(canonicalize_name(entry.name))
    files = {
        "": ["inference"],
        "train": [""],
        "app": ["app"],
        "beam": ["", "beam"],
        "cuda": ["cuda"],
        "imagenet": ["imagenet"],
        "search": ["search"],
        "serve": ["serve"],
    }
    assert set(metadata.get_all("Provides-Extra")) == set(files) - {""} == set(needed) - {""}
    for extra, names in files.items():
        lines = (requirements(f"requirements{'-' * bool(name)}{name}.txt") for name in names)
        assert needed[extra] == {
            canonicalize_name(Requirement(line).name) for part in lines for line in part
        }
    assert not {"tensorflow", "tensorflow-cpu", "tensorflow-datasets", "torch"} & needed[""]


def test_what_the_wheel_and_its_dependencies_ask_for_is_there(binaries, tmp_path):
    """In the versions of the requirement files."""
    checked = run(tmp_path, sys.executable, "-m", "pip", "--python", binaries / "python", "check")
    assert checked == "No broken requirements found.\n"


def test_training_needs_what_inference_needs_in_the_same_versions():
    assert requirements("requirements-inference.txt") < requirements("requirements.txt")


# Put before everything else on the import path, it hides what an install for inference lacks.
HIDE = """
import sys
for name in {names!r}:
    sys.modules[name] = None
"""


@pytest.fixture
def inference_only(binaries, tmp_path) -> dict[str, str]:
    """Environment variables under which packages that only training needs cannot be imported."""
    # Flax brings its own optax and Orbax checkpoint.
    only_training = requirements("requirements.txt") - requirements("requirements-inference.txt")
    names = {Requirement(line).name.replace("-", "_") for line in only_training}
    names = (names - {"optax", "orbax_checkpoint", "orbax_export"}) | {"tensorflow", "orbax.export"}
    assert {"tensorflow_datasets", "tensorboard"} < names
    (tmp_path / "hide").mkdir()
    (tmp_path / "hide" / "sitecustomize.py").write_text(HIDE.format(names=sorted(names)))
    return {**os.environ, "PYTHONPATH": str(tmp_path / "hide")}


def test_an_install_for_inference_predicts_and_draws(
    binaries, inference_only, finished_run, tmp_path
):
    def run_there(*command: str | Path) -> subprocess.CompletedProcess:
        return subprocess.run(
            list(map(str, command)), cwd=tmp_path, capture_output=True, text=True,
            env=inference_only,
        )  # fmt: skip

    command, clip = binaries / "moclip-jax", real_clips.path("bikes")
    done = run_there(command, "predict", f"--workdir={finished_run}", "--json", clip)
    assert (done.returncode, done.stderr) == (0, "")
    check_labels(done.stdout)
    options = "--classes=riding a bike,playing chess"
    done = run_there(command, "predict", f"--workdir={finished_run}", options, clip)
    assert (done.returncode, done.stderr) == (0, "")
    done = run_there(command, "visualize", clip, "--out=figures")
    assert done.returncode == 0, done.stderr
    done = run_there(command, "train", "--config=testing", "--workdir=run")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "is not installed; this command needs pip install 'moclip-jax[train]'" in done.stderr


def test_the_installed_package_is_the_one_that_is_imported(binaries, tmp_path):
    code = (
        "import importlib.util as u, moclip_jax.configs as c, moclip_jax.input_pipeline as p\n"
        "print(u.find_spec('configs'), u.find_spec('input_pipeline'), c.__file__, p.__file__)"
    )
    configs, pipeline, *files = run(tmp_path, binaries / "python", "-c", code).split()
    assert configs == pipeline == "None"
    for file in files:
        assert file.startswith(str(binaries.parent)), file


def test_help_lists_the_commands_without_importing_what_they_need():
    code = (
        "import sys; from moclip_jax import cli; cli.main(['--help']);"
        "print('imported:', *sys.modules)"
    )
    printed, _, imported = run(REPOSITORY, sys.executable, "-c", code).partition("imported:")
    for name, (module, summary) in COMMANDS.items():
        assert f"  {name:16}  {summary}\n" in printed
        assert importlib.util.find_spec(module) is not None
    assert max(map(len, printed.splitlines())) <= 80
    heavy = {"jax", "flax", "tensorflow", "numpy", "av", "absl", "ml_collections"}
    assert not heavy & set(imported.split())


def test_an_unknown_command_is_a_sentence_that_names_the_near_one(binaries, tmp_path):
    for program in ([binaries / "moclip-jax"], [binaries / "python", "-m", "moclip_jax"]):
        done = subprocess.run([*program, "predct"], cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert "error: unknown command predct; did you mean predict?" in done.stderr


def test_a_shipped_config_trains_by_its_name_outside_the_repository_and_is_finished_when_killed(
    binaries, tmp_path, finished_run
):
    (tmp_path / "input_pipeline.py").write_text(NOT_IMPORTED)
    command = [binaries / "moclip-jax", "train", "--config=testing", "--workdir=run"]
    assert run_until(command, "motion: start", 4.0, tmp_path) == -signal.SIGKILL
    assert "prepare: done before, skipped" in run(tmp_path, *command)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results == json.loads((finished_run / "results.json").read_text())
    clip = real_clips.path("bikes")
    check_labels(run(tmp_path, command[0], "predict", "--workdir=run", "--json", clip))


def test_a_name_that_is_no_config_is_reported_with_those_that_are(binaries, tmp_path):
    done = subprocess.run(
        [binaries / "moclip-jax", "train", "--config=dem", "--workdir=run"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert "--config=dem: neither a file nor a shipped config; shipped are" in done.stderr
    shipped = "demo, demo_few, demo_order, hmdb51, pretrain, testing, ucf101, video_folder"
    assert shipped in done.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("started", ["moclip-jax", "python -m"])
def test_a_users_own_files_of_the_same_names_do_no_harm(started, binaries, tmp_path, finished_run):
    """A run that is finished is recognised as such, so nothing is trained here."""
    workdir = tmp_path / "run"
    shutil.copytree(finished_run, workdir)
    (tmp_path / "configs").mkdir()
    # As someone with configs of their own writes it, for other programs too.
    (tmp_path / "configs" / "mine.py").write_text(
        "from moclip_jax.configs import testing, ucf101\n\n"
        "assert ucf101.get_config().dataset.name == 'ucf101'\n"
        "get_config = testing.get_config\n"
    )
    for name in ("configs/demo.py", "input_pipeline.py"):
        (tmp_path / name).write_text(NOT_IMPORTED)
    command: list[str | Path] = [binaries / "moclip-jax"]
    train, predict = "train", "predict"
    if started == "python -m":
        command = [binaries / "python", "-m"]
        train, predict = "moclip_jax.main", "moclip_jax.predict"
    own = (f"--workdir={workdir}", "--config=configs/mine.py")
    assert "export: done before, skipped" in run(tmp_path, *command, train, *own)
    clip = real_clips.path("bikes")
    check_labels(run(tmp_path, *command, predict, own[0], "--json", clip))
