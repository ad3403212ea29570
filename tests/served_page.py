"""The page or the service as its command serves it, and a browser where there is one."""

import contextlib
import http.client
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest


@contextlib.contextmanager
def served(folder: Path, *arguments: str, module: str = "app") -> Iterator[SimpleNamespace]:
    """Run the command; `folder` is its only place for temporary files."""
    process = subprocess.Popen(
        [sys.executable, "-m", f"moclip_jax.{module}", "--port=0", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"TMPDIR": str(folder)},
    )  # fmt: skip
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: lines.put(process.stdout.readline()), daemon=True).start()
    try:
        line = lines.get(timeout=180)
        address = re.fullmatch(r"\w+: (http://127\.0\.0\.1:(\d+))\n", line)
        assert address, line + process.stderr.read()
        yield SimpleNamespace(url=address[1], port=int(address[2]), folder=folder, process=process)
    finally:
        process.kill()
        process.communicate()


def get(page: SimpleNamespace, path: str, **headers: str) -> tuple[int, bytes]:
    """Status and content for a path that is sent as it is, with its dots."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", page.port)) as connection:
        connection.putrequest("GET", path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        return response.status, response.read()


@contextlib.contextmanager
def chromium(profile: Path) -> Iterator:
    """Debian's browser without a window; skips the test where there is none."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("no chromium and chromedriver here; `make browser` installs them on Debian")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    for argument in (
        "--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-sandbox",
        "--disable-background-networking", f"--user-data-dir={profile}",
        "--window-size=1300,1100", "--mute-audio",
    ):  # fmt: skip
        options.add_argument(argument)
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(driver)) as started:
        yield started


def requested(browser) -> list[str]:
    """The addresses of what a browser has loaded; its own (chrome:, data:, blob:) go nowhere."""
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    return [url for url in urls if url.partition(":")[0] in ("http", "https", "ws", "wss")]
