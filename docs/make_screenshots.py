"""Draws `docs/images/app.png` and `report.png` from a finished demo, with Debian's Chromium.

make demo browser venv
.venv/bin/python docs/make_screenshots.py runs/demo
"""

import contextlib
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

IMAGES = Path(__file__).parent / "images"
WIDTH = 1200


@contextlib.contextmanager
def browser(height: int) -> Iterator[webdriver.Chrome]:
    """Give Chromium without a window."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    with tempfile.TemporaryDirectory() as profile:
        for argument in (
            "--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--no-sandbox",
            f"--user-data-dir={profile}", f"--window-size={WIDTH},{height}", "--hide-scrollbars",
        ):  # fmt: skip
            options.add_argument(argument)
        service = webdriver.ChromeService(shutil.which("chromedriver") or "chromedriver")
        with webdriver.Chrome(options=options, service=service) as started:
            yield started


def keep(driver: webdriver.Chrome, name: str) -> None:
    """Write what the browser shows, in few colours, to be small."""
    target = IMAGES / name
    driver.save_screenshot(str(target))
    with Image.open(target) as image:
        small = image.convert("RGB").quantize(128)
    small.save(target, optimize=True)
    print(f"{target}: {small.size[0]}x{small.size[1]}, {target.stat().st_size} bytes")


def draw_app(workdir: Path) -> None:
    """Serve the page, chooses the first example and recognises it."""
    command = [sys.executable, "-m", "moclip_jax.app", f"--workdir={workdir}", "--port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = re.search(r"http://\S+", process.stdout.readline())
    assert address, "the page did not start"
    try:
        with browser(1050) as driver:
            find = driver.find_elements

            def wait(found: Any) -> Any:
                return WebDriverWait(driver, 120).until(lambda _: found())

            driver.get(address[0])
            example = wait(lambda: find(By.CSS_SELECTOR, ".gallery-item, .gallery button, td"))
            # Its own video lies above the button.
            driver.execute_script("arguments[0].click()", example[0])
            wait(lambda: find(By.CSS_SELECTOR, "#video video"))
            find(By.CSS_SELECTOR, "#recognise")[0].click()
            script = "return (document.querySelector('#motion img') || {}).naturalWidth > 300"
            wait(lambda: driver.execute_script(script))
            wait(lambda: "%" in find(By.CSS_SELECTOR, "#labels")[0].text)
            keep(driver, "app.png")
    finally:
        process.terminate()
        process.wait()


def main(workdir: Path) -> None:
    """Draw both screenshots."""
    with browser(1500) as driver:
        driver.get((workdir / "report.html").absolute().as_uri())
        keep(driver, "report.png")
    draw_app(workdir)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
