"""Settings that every test runs under; they must stand before the first import of JAX."""

import fcntl
import gc
import http.server
import os
import signal
import threading
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from moclip_jax.runtime.compilation_cache import processor_kind
from tests.xla_flags import OLDER_FUSIONS, xla_flags

# `make gpu-check` names the platform of its accelerator, of which there may be one alone.
os.environ["JAX_PLATFORMS"] = os.environ.get("MOCLIP_TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = (
    xla_flags(devices=1 if "MOCLIP_TEST_PLATFORM" in os.environ else 4) + OLDER_FUSIONS
)
if "PYTEST_XDIST_WORKER" in os.environ:
    # Threads of XLA in each process: the workers share the cores already.
    os.environ["NPROC"] = "1"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
os.environ["TF_USE_LEGACY_KERAS"] = "1"
# All tests, their workers and the programs they start share one folder of compiled programs. JAX
# finds a program by its text, options and devices, so the folder changes how long a test takes and
# not what it computes. The user's own folder is left alone.
os.environ["MOCLIP_JAX_CACHE"] = ""
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    Path(__file__).parents[1]
    / "build"
    / "test_cache"
    / f"jaxlib-{version('jaxlib')}-{processor_kind()}"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
# Where it is set, each program that a test starts would compile the package's modules again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# A test that reached for the hub would pass or fail with the network; none may.
os.environ["HF_HUB_OFFLINE"] = "1"

import jax
import pytest

# Imports and traces allocate what stays: a tenth of the time went into looking for garbage there.
gc.set_threshold(20_000)
# A shell's background job ignores SIGINT, and so would the tests of it, and their children.
signal.signal(signal.SIGINT, signal.default_int_handler)

jax.config.update("jax_numpy_rank_promotion", "raise")
_ON_ACCELERATOR = "MOCLIP_TEST_PLATFORM" in os.environ
if _ON_ACCELERATOR:
    # A GPU's products would otherwise have ten bits, and the tests compare with float32.
    jax.config.update("jax_default_matmul_precision", "highest")


# One `tests/FILE.py` or `tests/FILE.py::test_name` a line.
_LONG_TESTS = set((Path(__file__).parent / "long_tests.txt").read_text().splitlines())


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as `run` what `make test-fast` leaves out; skip what a single device cannot run."""
    runs = set()
    for item in items:
        if _ON_ACCELERATOR and item.get_closest_marker("four_devices"):
            item.add_marker(pytest.mark.skip(reason="needs four devices"))
        name = item.nodeid.partition("[")[0]
        finished = "finished_run" in getattr(item, "fixturenames", ())
        if finished or _LONG_TESTS & {name, name.partition("::")[0]}:
            item.add_marker(pytest.mark.run)
            runs.add(item.path)
    # Files stay whole, for what their tests share.
    items.sort(key=lambda item: item.path not in runs)


def pytest_collection_finish() -> None:
    """Never look for garbage among packages and tests."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A workdir in which `configs/testing.py` ran to its end; not to be changed."""
    from moclip_jax.configs import testing
    from moclip_jax.training import pipeline

    folder = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        # The folder above is that of all pytest-xdist's workers: the first makes the run.
        folder = folder.parent
    workdir = folder / "finished"
    with (folder / "finished.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (workdir / "report.html").exists():
            pipeline.run(testing.get_config(), workdir)
    return workdir


@pytest.fixture
def without_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the report of a run that no test looks at: it takes over a second."""
    from moclip_jax.training import pipeline

    monkeypatch.setattr(pipeline, "write_report", lambda *_: "left out")


@pytest.fixture
def server() -> Iterator[tuple[str, list[tuple[bytes, bool] | None]]]:
    """The address of a stream, and its answers, one for each connection.

    An answer is some bytes and whether all of them come; None, or no answer, is an error.
    """
    answers: list[tuple[bytes, bool] | None] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            answer = answers.pop(0) if answers else None
            if answer is None:
                self.send_error(503)
                return
            content, whole = answer
            self.send_response(200)
            self.send_header("Content-Type", "video/mp2t")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content if whole else content[: len(content) // 2])

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/live.ts", answers
        server.shutdown()
        thread.join()
