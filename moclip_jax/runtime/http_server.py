"""Serve an ASGI application on this machine, and keep other sites out of it."""

import argparse
import contextlib
import importlib
import ipaddress
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from moclip_jax.runtime.cli import CommandParser

# Gradio would fetch addresses on the visitor's behalf; its page here has no use for that.
FOREIGN = re.compile(r"/(file=(https?|ftp):|proxy=)", re.IGNORECASE)


class OnlyOwnContent:
    """ASGI middleware: rejects requests for other sites' content, and forbids pages to make any."""

    def __init__(self, app: Any, policy: str):
        self._app, self._policy = app, policy

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on."""
        from starlette.datastructures import MutableHeaders
        from starlette.responses import PlainTextResponse

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = self._policy
                headers["X-Content-Type-Options"] = "nosniff"
                headers["Referrer-Policy"] = "no-referrer"
                headers["Cross-Origin-Resource-Policy"] = "same-origin"
            await send(message)

        app = self._app
        if scope["type"] == "http" and FOREIGN.search(scope["path"]):
            app = PlainTextResponse("not from here", status_code=403)
        await app(scope, receive, send_with_policy)


def guarded(app: Any, host: str, policy: str) -> Any:
    """Add to an application what keeps other sites out of its pages, and its pages off them.

    Args:
      app: of Starlette or FastAPI.
      host: the address that it is served at.
      policy: the Content-Security-Policy of its answers.
    """
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    app.add_middleware(OnlyOwnContent, policy=policy)
    if _is_loopback(host):
        # A web site whose name is made to point here must not be able to talk to the page.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]"])
    return app


def _is_loopback(host: str) -> bool:
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def parse_arguments(
    parser: CommandParser,
    argv: Sequence[str] | None,
    *,
    port: int,
    limits: Mapping[str, tuple[float, str]],
) -> argparse.Namespace:
    """Return the values of a command that serves, with `host`, `port`, limits and `traceback`.

    Args:
      parser: has the command's own options.
      port: where it is served if the command line does not say.
      limits: the default of each, whose type it has, and what it means; it must be above 0.
    """
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (127.0.0.1)")
    parser.add_argument("--port", type=int, default=port, help=f"0 takes any free one ({port})")
    for name, (default, text) in limits.items():
        kind, shown = type(default), f"{text} ({default:g})"
        parser.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=shown)
    parser.add_argument("--traceback", action="store_true", help="show where an error was raised")
    arguments = parser.parse(argv)
    for name in limits:
        if not 0 < getattr(arguments, name) < float("inf"):
            parser.error(f"--{name}={getattr(arguments, name)} must be above 0")
    return arguments


def serve(
    make_app: Callable[[Path, contextlib.ExitStack], Any],
    arguments: argparse.Namespace,
    *,
    name: str,
    extra: str,
    packages: Sequence[str],
) -> None:
    """Serve an application until it is stopped.

    Args:
      make_app: from the folder of all temporary files, which is deleted in the end, also after
        SIGTERM, and a stack of what to close then.
      arguments: with `host` and `port`.
      name: printed before the address.
      extra: what installs the packages.
      packages: that the application needs; one that is missing is reported at once.

    Raises:
      OSError: the address cannot be listened on, or a package is missing.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    with contextlib.ExitStack() as opened:
        signal.signal(signal.SIGTERM, stop)
        folder = opened.enter_context(tempfile.TemporaryDirectory(prefix=f"moclip_jax_{name}_"))
        # Where Gradio and Starlette keep uploads.
        os.environ["GRADIO_TEMP_DIR"] = folder
        opened.callback(setattr, tempfile, "tempdir", tempfile.tempdir)
        tempfile.tempdir = folder
        server = opened.enter_context(socket.create_server((arguments.host, arguments.port)))
        try:
            for package in packages:
                importlib.import_module(package)
            import uvicorn
        except ModuleNotFoundError as error:
            raise OSError(
                f"the {name} needs {error.name}, which is not installed; install it with: "
                f"{sys.executable} -m pip install -r requirements-{extra}.txt"
            ) from error
        app = make_app(Path(folder), opened)
        print(f"{name}: http://{arguments.host}:{server.getsockname()[1]}", flush=True)
        if not _is_loopback(arguments.host):
            print("anyone who reaches this address can use it: it has no password", flush=True)
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2)
        uvicorn.Server(config).run(sockets=[server])
