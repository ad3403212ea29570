"""A small HTTP API that labels videos, `--workdir=DIR`: a file in, JSON out.

    curl -F file=@clip.mp4 -F top_k=3 http://127.0.0.1:8000/predict

The answer is what `moclip-jax predict --json` prints of the file. Uploads are deleted when they are
answered; docs/deploying.md has the fields and the statuses.
"""

import argparse
import asyncio
import contextlib
import functools
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moclip_jax.inference.label_sets import parse_labels
from moclip_jax.inference.prediction import Prediction
from moclip_jax.inference.program import BATCH
from moclip_jax.inference.recognizer import Recognizer, load
from moclip_jax.input_pipeline.video.clip import VideoError, read_clip
from moclip_jax.input_pipeline.video.subprocess_pool import SubprocessReader, WorkerError
from moclip_jax.predict import to_json
from moclip_jax.runtime import http_server
from moclip_jax.runtime.cli import CommandParser, run
from moclip_jax.runtime.text_io import json_line

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

POLICY = "default-src 'none'; frame-ancestors 'none'"
_MOST_JSON_BYTES = 100_000
_FIELDS = {"file", "path", "top_k", "labels"}


class Service:
    """Labels the videos of many clients. Use it as a context manager.

    Files are decoded in child processes, one a core at a time, so that a file that crashes FFmpeg
    or is never done costs its own answer alone. What was decoded while the network worked goes
    through it together.
    """

    def __init__(
        self,
        model: Recognizer,
        *,
        root: Path | None = None,
        max_megabytes: float = 100.0,
        timeout_s: float = 60.0,
        queue: int = 32,
    ):
        """Make a service; the model is compiled, and no process is started yet.

        Args:
          model: the model.
          root: folder of the files that clients may name; None for none.
          max_megabytes: size of an upload.
          timeout_s: seconds of an upload, and without progress of a decoding.
          queue: requests that are worked on or wait; further ones are rejected.
        """
        self._model, self._queue, self._timeout_s = model, queue, timeout_s
        self._root = root and root.resolve()
        self._max_bytes = round(1e6 * max_megabytes)
        self._waiting = 0
        workers = os.cpu_count() or 1
        self._opened = contextlib.ExitStack()
        self._readers = self._opened.enter_context(ThreadPoolExecutor(workers))
        self._network = self._opened.enter_context(ThreadPoolExecutor(1))
        self._isolated = self._opened.enter_context(SubprocessReader(workers, timeout_s))
        self._decoded: list[tuple[dict[str, np.ndarray], asyncio.Future[Any]]] = []
        self._computing: asyncio.Task[None] | None = None
        for batch in (1, BATCH):
            model.programs.get(batch)

    def __enter__(self) -> "Service":
        return self

    def __exit__(self, *error: Any) -> None:
        self._opened.__exit__(*error)

    def make_app(self, host: str) -> Any:
        """Return the ASGI application, to be served at a host."""
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.requests import ClientDisconnect
        from starlette.routing import Route

        async def problem(request: "Request", error: Any) -> "Response":
            return _answer(error.status_code, {"error": error.detail}, error.headers)

        async def gone(request: "Request", error: Exception) -> "Response":
            return _answer(400, {"error": "the client is gone"})

        app = Starlette(
            routes=[
                Route("/predict", self._predict, methods=["POST"]),
                Route("/health", self._health),
            ],
            exception_handlers={HTTPException: problem, ClientDisconnect: gone},
        )
        return http_server.guarded(app, host, POLICY)

    async def _health(self, request: "Request") -> "Response":
        classes = len(self._model.class_names)
        return _answer(200, {"status": "ok", "classes": classes, "requests": self._waiting})

    async def _predict(self, request: "Request") -> "Response":
        from starlette.exceptions import HTTPException
        from starlette.requests import ClientDisconnect

        deadline = asyncio.get_running_loop().time() + self._timeout_s
        body = request.stream
        try:
            if self._waiting >= self._queue:
                raise HTTPException(503, "too many requests wait", {"Retry-After": "1"})
            self._waiting += 1
            try:
                return await self._answer_to(request, deadline)
            finally:
                self._waiting -= 1
        finally:
            # A client that is still sending would not see the answer.
            with contextlib.suppress(ClientDisconnect, RuntimeError, TimeoutError):
                async with asyncio.timeout_at(deadline):
                    async for _ in body():
                        pass

    async def _answer_to(self, request: "Request", deadline: float) -> "Response":
        from starlette.exceptions import HTTPException

        async with contextlib.AsyncExitStack() as opened:
            try:
                async with asyncio.timeout_at(deadline):
                    name, path, fields = await self._receive(request, opened)
            except TimeoutError as error:
                text = f"the upload took longer than {self._timeout_s:g} seconds"
                raise HTTPException(408, text) from error
            return await self._label(name, path, *_options(fields))

    async def _receive(
        self, request: "Request", opened: contextlib.AsyncExitStack
    ) -> tuple[str, str, Mapping[str, Any]]:
        """Return the client's name of the video, its file, and the other fields."""
        from starlette.datastructures import UploadFile
        from starlette.exceptions import HTTPException

        kind = request.headers.get("Content-Type", "").partition(";")[0].strip()
        if kind == "application/json":
            request.stream = _limited(request.stream, _MOST_JSON_BYTES)  # type: ignore[method-assign]
            try:
                fields = await request.json()
                name = fields.get("path")
            except (AttributeError, ValueError) as error:
                raise HTTPException(400, "the body is not a JSON object") from error
            return name, self._below_root(name), fields
        if kind != "multipart/form-data":
            raise HTTPException(415, "send multipart/form-data with a file, or JSON with a path")
        request.stream = _limited(request.stream, self._max_bytes)  # type: ignore[method-assign]
        form = await opened.enter_async_context(request.form(max_files=1, max_fields=8))
        upload = form.get("file")
        if not isinstance(upload, UploadFile):
            raise HTTPException(400, "the form has no file")
        kept = opened.enter_context(tempfile.NamedTemporaryFile())  # noqa: SIM115
        await asyncio.to_thread(shutil.copyfileobj, upload.file, kept)
        kept.flush()
        return upload.filename or "upload", kept.name, form

    def _below_root(self, name: Any) -> str:
        """Return a file that a client names."""
        from starlette.exceptions import HTTPException

        if self._root is None:
            raise HTTPException(403, "files of this machine need --root; upload the file")
        with contextlib.suppress(OSError, RuntimeError, TypeError, ValueError):
            path = (self._root / name).resolve()
            if path.is_relative_to(self._root) and path.is_file():
                return str(path)
        raise HTTPException(404, f"no file {name} below --root")

    async def _label(self, name: str, path: str, top_k: int, labels: Sequence[str]) -> "Response":
        loop, status = asyncio.get_running_loop(), 200
        try:
            view, warning = await loop.run_in_executor(self._readers, self._view, path)
            outputs = await self._outputs(view)
            about = {"video": name, "warning": warning}
            label = functools.partial(self._model.prediction, outputs, top_k, labels, **about)
            prediction = await loop.run_in_executor(self._network, label)
        except VideoError as error:
            cause = error.__cause__
            status = 504 if isinstance(cause, WorkerError) and cause.timed_out else 422
            prediction = Prediction(name, error=str(error).replace(path, name))
        except ValueError as error:
            return _answer(400, {"error": str(error)})
        return _answer(status, to_json(prediction, with_timeline=False))

    async def _outputs(self, view: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """Return the network's outputs of a view."""
        result: asyncio.Future[tuple[np.ndarray, ...]] = asyncio.get_running_loop().create_future()
        self._decoded.append((view, result))
        if self._computing is None:
            self._computing = asyncio.create_task(self._compute())
        return await result

    async def _compute(self) -> None:
        """Compute what is decoded, `BATCH` views at most at a time, until nothing waits."""
        loop = asyncio.get_running_loop()
        while self._decoded:
            together, self._decoded = self._decoded[:BATCH], self._decoded[BATCH:]
            views = [view for view, _ in together]
            outputs: Sequence[Any]
            try:
                outputs = await loop.run_in_executor(
                    self._network, self._model.programs.outputs, views
                )
            except Exception as error:
                outputs = [error] * len(together)
            for (_, result), output in zip(together, outputs, strict=True):
                if result.cancelled():
                    continue
                if isinstance(output, Exception):
                    result.set_exception(output)
                else:
                    result.set_result(output)
        self._computing = None

    def _view(self, path: str) -> tuple[dict[str, np.ndarray], str]:
        model = self._model
        clip = self._isolated(read_clip, path, model.reading, model.motion_wanted)
        return model.view(clip), clip.warning


def _limited(stream: Any, most: int) -> Any:
    """Return a request's stream that is cut off after a number of bytes."""
    from starlette.exceptions import HTTPException

    async def limited() -> AsyncIterator[bytes]:
        received = 0
        async for chunk in stream():
            received += len(chunk)
            if received > most:
                raise HTTPException(413, f"more than {most / 1e6:g} MB")
            yield chunk

    return limited


def _options(fields: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Return `top_k` and `labels` of a form or a JSON object."""
    from starlette.exceptions import HTTPException

    try:
        if unknown := sorted(set(fields) - _FIELDS):
            raise ValueError(f"unknown field {unknown[0]}; there are {', '.join(sorted(_FIELDS))}")
        top_k, labels = int(fields.get("top_k", 5)), fields.get("labels", "")
        if top_k < 1:
            raise ValueError(f"top_k={top_k} must be at least 1")
        return top_k, parse_labels(labels if isinstance(labels, str) else "\n".join(labels))
    except (TypeError, ValueError) as error:
        raise HTTPException(400, str(error)) from error


def _answer(
    status: int, content: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> "Response":
    from starlette.responses import Response

    text = json_line(content) + "\n"
    return Response(text, status, headers, media_type="application/json")


def serve(arguments: argparse.Namespace) -> None:
    """Serve the API until it is stopped.

    Raises:
      FileNotFoundError: there is no exported model.
      NotADirectoryError: `--root` is no folder.
      OSError: the address cannot be listened on.
    """

    def make_app(folder: Path, opened: contextlib.ExitStack) -> Any:
        root = Path(arguments.root).expanduser() if arguments.root else None
        if root and not root.is_dir():
            raise NotADirectoryError(f"--root={root} is not a folder")
        service = Service(
            load(arguments.workdir),
            root=root,
            max_megabytes=arguments.max_megabytes,
            timeout_s=arguments.timeout,
            queue=arguments.queue,
        )
        return opened.enter_context(service).make_app(arguments.host)

    packages = ["starlette", "python_multipart"]
    http_server.serve(make_app, arguments, name="service", extra="serve", packages=packages)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the API; returns the exit status."""
    parser = CommandParser(
        "moclip_jax.serve",
        "An HTTP API that labels videos with a trained model: POST /predict, GET /health.",
        ("--workdir=runs/demo", "--workdir=runs/demo --port=9000 --root=/data/videos"),
        usage="--workdir=DIR [OPTION ...]",
    )
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="folder of a finished run, or its export"
    )
    parser.add_argument(
        "--root", default="", metavar="DIR", help="clients may name files below it by path"
    )
    limits = {
        "max_megabytes": (100.0, "of an upload"),
        "timeout": (60.0, "seconds of an upload, and without progress of a decoding"),
        "queue": (32, "requests that are worked on or wait; more are rejected"),
    }
    arguments = http_server.parse_arguments(parser, argv, port=8000, limits=limits)
    return run(lambda: serve(arguments), traceback=arguments.traceback)


if __name__ == "__main__":
    sys.exit(main())
