"""The page of a search: what it shows is what is found, and it gives out indexed files alone."""

import base64
import os
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from moclip_jax.runtime import http_server
from moclip_jax.search import Searcher, index_stream, index_videos, page
from tests.input_pipeline.video_fixtures import write_video
from tests.search.conftest import SHAPES, scene
from tests.served_page import chromium, get, requested, served


def client(index: Path) -> TestClient:
    searching = page.make_search_app(Searcher(index))
    guarded = http_server.guarded(searching, "127.0.0.1", page.POLICY)
    return TestClient(guarded, base_url="http://127.0.0.1")


class Elements(HTMLParser):
    """All elements of a page with their attributes, and its text."""

    def __init__(self, content: str):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(content)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def of(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_page_shows_what_is_found_and_its_players_start_there(videos, index):
    with client(index) as visitor:
        for shape in SHAPES:
            answer = visitor.get("/", params={"text": f"a {shape}"})
            assert answer.status_code == 200
            elements = Elements(answer.text)
            moments = Searcher(index).search(f"a {shape}", top_k=12)
            players = elements.of("video")
            assert len(players) == len(moments) > 1
            for player, moment in zip(players, moments, strict=True):
                encoded = base64.b64encode(moment.thumbnail).decode()
                assert player["poster"] == f"data:image/jpeg;base64,{encoded}"
                source = re.fullmatch(r"(/video/\d+)#t=([\d.]+),([\d.]+)", player["src"])
                assert float(source[2]) == pytest.approx(moment.start_s, abs=1e-3)
                assert float(source[3]) == pytest.approx(moment.end_s, abs=1e-3)
                assert visitor.get(source[1]).content == Path(moment.video).read_bytes()
                assert moment.video in elements.text and f"{moment.score:.3f}" in elements.text
            # The event is from 3 to 5 seconds.
            assert re.search(r"0:00:0[23]\.\d to 0:00:0[45]\.\d", elements.text)


def test_parts_of_a_file_are_given(videos, index):
    whole = (videos / "star.mp4").read_bytes()
    numbers = {Path(e.path).name: number for number, e in Searcher(index).videos.items()}
    address = f"/video/{numbers['star.mp4']}"
    with client(index) as visitor:
        answer = visitor.get(address)
        assert (answer.status_code, answer.content) == (200, whole)
        assert answer.headers["content-type"] == "video/mp4"
        assert answer.headers["accept-ranges"] == "bytes"
        for asked, part in (("0-99", whole[:100]), ("500-", whole[500:]), ("-7", whole[-7:])):
            answer = visitor.get(address, headers={"Range": f"bytes={asked}"})
            assert (answer.status_code, answer.content) == (206, part)
        answer = visitor.get(address, headers={"Range": f"bytes={len(whole)}-"})
        assert answer.status_code == 416


def test_only_videos_of_the_index_are_given_out(videos, tmp_path):
    folder, index = tmp_path / "videos", tmp_path / "index"
    shutil.copytree(videos, folder)
    (folder / "secret.txt").write_text("only for the owner of this file")
    # A video whatever its name says, as FFmpeg sees it.
    shutil.copy(folder / "star.mp4", folder / "a.html")
    stream = write_video(tmp_path / "camera.ts", scene("star", 7), codec="libx264")
    list(index_videos(sorted(folder.iterdir()), index, clip="tiny"))
    list(index_stream(str(stream), index, timeout_s=0.5))
    searcher = Searcher(index)
    numbers = {Path(e.path).name.split(" at ")[0]: n for n, e in searcher.videos.items()}
    assert sorted(numbers) == ["a.html", "camera.ts", "ring.mp4", "secret.txt", "star.mp4"]
    with client(index) as visitor:
        for name in ("secret.txt", "camera.ts"):
            assert visitor.get(f"/video/{numbers[name]}").status_code == 404
        for path in ("/video/99", "/video/-1", "/video/1/../../etc/passwd", "/video//etc/passwd"):
            answer = visitor.get(path)
            assert answer.status_code == 404 and b"root:" not in answer.content
        answer = visitor.get(f"/video/{numbers['a.html']}")
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["x-content-type-options"] == "nosniff"
        # A file that is another one now, by a link too.
        (folder / "ring.mp4").unlink()
        assert visitor.get(f"/video/{numbers['ring.mp4']}").status_code == 404
        os.symlink(folder / "secret.txt", folder / "ring.mp4")
        assert visitor.get(f"/video/{numbers['ring.mp4']}").status_code == 409
        # Streams have pictures and no player.
        found = visitor.get("/", params={"text": "a star"}).text
        assert "camera.ts at 20" in found and len(Elements(found).of("img")) >= 1


def test_the_page_answers_to_no_other_name_and_shows_no_markup_of_others(index):
    with client(index) as visitor:
        assert visitor.get("/", headers={"Host": "elsewhere.example"}).status_code == 400
        answer = visitor.get("/", params={"text": "<script>alert(1)</script>"})
        assert "<script" not in answer.text and "&lt;script&gt;" in answer.text
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src" not in policy
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        answer = visitor.get("/", params={"label": "absent"})
        assert answer.status_code == 400
        assert "--label=absent: the index knows none" in answer.text
        assert Elements(visitor.get("/").text).of("video") == []


def test_what_is_indexed_meanwhile_is_found_and_what_is_gone_is_not(videos, tmp_path):
    index, video = tmp_path / "index", tmp_path / "star.mp4"
    list(index_videos([videos / "ring.mp4"], index, clip="tiny"))
    with client(index) as visitor:
        assert "star.mp4" not in visitor.get("/", params={"text": "a star"}).text
        shutil.copy(videos / "star.mp4", video)
        list(index_videos([videos / "ring.mp4", video], index))
        assert "star.mp4" in visitor.get("/", params={"text": "a star"}).text
        video.unlink()
        list(index_videos([videos / "ring.mp4"], index))
        assert "star.mp4" not in visitor.get("/", params={"text": "a star"}).text


def test_in_a_browser_a_player_starts_at_its_moment_and_stops_at_its_end(index, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    with chromium(tmp_path / "profile") as browser, served(tmp_path, f"--index={index}") as shown:
        assert get(shown, "/video/99")[0] == 404
        browser.get(shown.url)
        browser.find_element(By.NAME, "text").send_keys("a star\n")
        wait = WebDriverWait(browser, 120)
        player = wait.until(lambda _: browser.find_elements(By.TAG_NAME, "video"))[0]
        start, end = map(float, player.get_attribute("src").partition("#t=")[2].split(","))
        moved = "return arguments[0].currentTime"
        assert browser.execute_script(moved, player) == 0
        browser.execute_script("arguments[0].play()", player)
        wait.until(lambda _: browser.execute_script("return arguments[0].currentTime > 0", player))
        first = browser.execute_script(moved, player)
        assert start - 0.1 <= first <= end + 0.1
        wait.until(lambda _: browser.execute_script("return arguments[0].paused", player))
        assert browser.execute_script(moved, player) == pytest.approx(end, abs=0.3)
        sent = requested(browser)
        assert any("/video/" in url for url in sent)
        assert [url for url in sent if not url.startswith(shown.url)] == []


def test_the_command_serves_the_page(index, tmp_path):
    with served(tmp_path, f"--index={index}") as shown:
        status, content = get(shown, "/?text=a+star")
        assert status == 200 and b"star.mp4" in content
        assert get(shown, "/", Host="elsewhere.example")[0] == 400
        assert get(shown, "/gradio_api/info")[0] == 404
