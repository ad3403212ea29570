"""The process on the other side of a comparison (`benchmarks/torch_worker.py`)."""

import json
import os
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

REPOSITORY = Path(__file__).parents[1]
# Made by `make .venv-parity/.installed`, as `make bench` does.
PYTHON = REPOSITORY / ".venv-parity" / "bin" / "python"
_LINES_OF_ERROR = 12


class Peer:
    """PyTorch in a process of its own, which takes its own time.

    Args:
      python: the interpreter that has torch, timm, transformers and mv-extractor.

    Raises:
      FileNotFoundError: there is no such interpreter.
    """

    def __init__(self, python: Path = PYTHON):
        if not python.exists():
            raise FileNotFoundError(
                f"{python} is not there, so there is nothing to compare with: run `make bench`, or "
                "`make .venv-parity/.installed` before"
            )
        self._process = subprocess.Popen(
            [str(python), str(Path(__file__).with_name("torch_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ
            | {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"},
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and returns the answer.

        Raises:
          RuntimeError: it failed there; the message holds the end of its traceback.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the process of PyTorch ended with status {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            tail = answer["error"].strip().splitlines()[-_LINES_OF_ERROR:]
            raise RuntimeError("the side of PyTorch failed:\n" + "\n".join(tail))
        return answer

    def job(self, name: str, **arguments: Any) -> "PeerJob":
        """Set up a job of `torch_worker.JOBS`."""
        answer = self.ask(make=name, **arguments)
        return PeerJob(self, answer["id"], answer["info"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


class PeerJob:
    """Work on the other side; calling it does the work once and says how many seconds it took.

    Attributes:
      info: what was chosen in setting it up.
      stages: of every pass, seconds by stage.
    """

    def __init__(self, peer: Peer, number: int, info: dict[str, Any]):
        self._peer, self._number = peer, number
        self.info = info
        self.stages: list[dict[str, float]] = []

    def __call__(self) -> float:
        """Do the work once; returns its seconds."""
        answer = self._peer.ask(run=self._number)
        self.stages.append(answer["stages"])
        return answer["seconds"]

    def output(self) -> np.ndarray:
        """Return what the last pass computed."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "output.npy"
            self._peer.ask(output=self._number, path=str(path))
            return np.load(path)

    def drop(self) -> None:
        """Free what it holds there."""
        self._peer.ask(drop=self._number)
