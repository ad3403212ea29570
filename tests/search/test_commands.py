"""`moclip-jax index` and `search`: what is new, changed, gone, bad, killed, and found."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from moclip_jax.inference.recognizer import load
from moclip_jax.input_pipeline.video.limits import VideoError
from moclip_jax.runtime.files import exclusive_lock
from moclip_jax.search import Searcher, build, find, index_stream, index_videos, store
from moclip_jax.search.chunks import read_chunks
from moclip_jax.search.encoder import chunk_form, open_encoder
from tests.input_pipeline.video_fixtures import write_video
from tests.search.conftest import SHAPES, scene


def by_name(reports) -> dict[str, str]:
    return {Path(report.video).name: report.action for report in reports}


def test_a_word_finds_the_moment_in_every_form(videos, index, capsys, tmp_path):
    for shape in SHAPES:
        assert find.main([str(index), shape, "--topk=1", "--json", f"--thumbnails={tmp_path}"]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        found = json.loads(line)
        assert found["video"] == str(videos / f"{shape}.mp4") and found["rank"] == 1
        # From 3 to 5 seconds, to a quarter of one.
        assert abs(found["start"] - 3) < 0.25 and abs(found["end"] - 5) < 0.25
        assert found["start"] <= found["picture"] < found["end"]
        assert Image.open(found["thumbnail"]).size == (128, 128)
    assert find.main([str(index), "a star", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["rank"] for row in rows] == [str(i + 1) for i in range(len(rows))]
    assert rows[0]["video"].endswith("star.mp4") and float(rows[0]["score"]) > 0
    assert find.main([str(index), "a star", "--topk=1"]) == 0
    assert " s to " in capsys.readouterr().out


def test_a_second_run_takes_up_what_is_new_changed_and_gone(videos, tmp_path):
    folder, index = tmp_path / "videos", tmp_path / "index"
    shutil.copytree(videos, folder)
    (folder / "bad.mp4").write_bytes(b"no video")

    def run() -> dict[str, str]:
        return by_name(index_videos(sorted(folder.iterdir()), index, clip="tiny"))

    assert run() == {"bad.mp4": "failed", "ring.mp4": "indexed", "star.mp4": "indexed"}
    before = Searcher(index).search("a star", top_k=50)
    assert run() == {"bad.mp4": "failed", "ring.mp4": "unchanged", "star.mp4": "unchanged"}
    assert Searcher(index).search("a star", top_k=50) == before
    (folder / "star.mp4").unlink()
    shutil.copy(folder / "ring.mp4", folder / "bad.mp4")
    shutil.copy(folder / "ring.mp4", folder / "new.mp4")
    os.utime(folder / "ring.mp4", (1, 1))
    assert run() == {
        "star.mp4": "removed", "bad.mp4": "indexed", "new.mp4": "indexed", "ring.mp4": "indexed",
    }  # fmt: skip
    found = Searcher(index).search("a ring", top_k=50)
    assert {Path(m.video).name for m in found} == {"bad.mp4", "new.mp4", "ring.mp4"}
    # Each file's chunks are there once.
    assert len(found) == len({(m.video, m.start_s) for m in found})
    # Equal but for the order of a sum.
    assert np.ptp([m.score for m in found[:3]]) < 1e-6


def test_bad_files_are_named_and_the_others_go_on(videos, tmp_path, capsys):
    bad = tmp_path / "bad.mp4"
    bad.write_bytes((videos / "ring.mp4").read_bytes()[:3000])
    names = [str(bad), str(tmp_path / "absent.mp4"), str(videos / "star.mp4")]
    output = f"--output={tmp_path / 'index'}"
    assert build.main([*names, output, "--clip=tiny", "--json"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["video"] for line in lines] == names
    assert lines[0]["error"].startswith(str(bad)) and "no such file" in lines[1]["error"]
    assert lines[2]["action"] == "indexed" and lines[2]["seconds"] == pytest.approx(5.0)
    assert [r.action for r in index_videos([VideoError("a/", "no video")], tmp_path / "index")] == [
        "failed"
    ]


def test_a_killed_run_is_resumed_and_gives_what_a_whole_one_gives(videos, index, tmp_path):
    other = tmp_path / "index"
    command = [sys.executable, "-c", KILLED, str(other), *map(str, sorted(videos.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == -signal.SIGKILL, done.stderr
    entries = store.Store(other).entries()
    assert [entry.done for entry in entries.values()] == [True, False]
    reports = list(index_videos(sorted(videos.iterdir()), other))
    assert [report.action for report in reports] == ["unchanged", "indexed"]
    for word in SHAPES:
        assert Searcher(other).search(word, top_k=50) == Searcher(index).search(word, top_k=50)


# Dies when the first chunks of the second file were just stored.
KILLED = """
import os, signal, sys
from moclip_jax.search import indexing, store
indexing._BATCH = 1
add = store.Store.add
def add_and_die(self, file, *rest):
    add(self, file, *rest)
    if file == 2:
        os.kill(os.getpid(), signal.SIGKILL)
store.Store.add = add_and_die
list(indexing.index_videos(sys.argv[2:], sys.argv[1], clip="tiny"))
"""


def test_one_process_writes_at_a_time(videos, index):
    with (
        exclusive_lock(index, "--output"),
        pytest.raises(BlockingIOError, match=r"another run works in .* or use another --output"),
    ):
        list(index_videos([videos / "star.mp4"], index))
    # Searching goes on meanwhile.
    with exclusive_lock(index, "--output"):
        assert Searcher(index).search("star")


def test_another_model_needs_another_index(index, tmp_path):
    with pytest.raises(ValueError, match="was made with --clip=tiny; index with that, or into"):
        list(index_videos([], index, clip="somebody/else"))
    with pytest.raises(ValueError, match="--clip and --workdir: give one of them; a run has its"):
        list(index_videos([], tmp_path, clip="tiny", workdir="runs/demo"))


def test_a_growing_file_is_indexed_as_a_stream(videos, tmp_path):
    index = tmp_path / "index"
    path = tmp_path / "camera.ts"
    write_video(path, scene("star", 7), codec="libx264")
    (report,) = index_stream(str(path), index, clip="tiny", timeout_s=0.5)
    assert report.action == "indexed" and report.duration_s == pytest.approx(5.0, abs=0.1)
    assert report.video.startswith(f"{path} at 20")
    (best, *_) = Searcher(index).search("a star")
    assert best.video == report.video and abs(best.start_s - 3) < 0.25
    # It stays when files are indexed, although no file has that name.
    assert by_name(index_videos([videos / "ring.mp4"], index)) == {"ring.mp4": "indexed"}
    assert report.video in {m.video for m in Searcher(index).search("a star")}
    (failed,) = index_stream(str(tmp_path / "absent.ts"), index, timeout_s=0.5)
    assert failed.action == "failed" and "no such file or device" in failed.error


def test_a_lost_connection_is_made_again_and_what_came_is_kept(server, tmp_path):
    address, answers = server
    path = write_video(tmp_path / "camera.ts", scene("star", 7), codec="libx264")
    # Half of it, two connections that fail, and the whole.
    answers += [(path.read_bytes(), False), None, None, (path.read_bytes(), True)]
    index, waits = tmp_path / "index", []
    reports = list(index_stream(address, index, clip="tiny", timeout_s=5, sleep=waits.append))
    assert waits == [1, 2, 4]
    assert [report.action for report in reports] == ["indexed"] * 4
    half, *refused, whole = reports
    assert "broke off (" in half.warning and half.warning.endswith("connected again after 1 s")
    assert all("cannot be opened (" in r.warning and r.num_chunks == 0 for r in refused)
    assert whole.duration_s == pytest.approx(5.0, abs=0.1) and not whole.warning
    # Half of the bytes are at rest for the most part: every frame that came is in a chunk.
    came = half.duration_s
    assert 1 < came < 5
    searcher = Searcher(index)
    assert {entry.path for entry in searcher.videos.values()} == {half.video, whole.video}
    found = searcher.search("a star", top_k=50, merge=False)
    assert max(m.end_s for m in found if m.video == half.video) == pytest.approx(came)
    assert found[0].video == whole.video or found[0].end_s == pytest.approx(came)


def test_connecting_again_ends_at_its_limit_and_what_came_is_kept(server, tmp_path, capsys):
    address, answers = server
    path = write_video(tmp_path / "camera.ts", scene("star", 7), codec="libx264")
    answers += [(path.read_bytes(), True)]
    index, waits = tmp_path / "index", []
    options = {"clip": "tiny", "timeout_s": 5, "retries": 2, "endless": True}
    *_, last = index_stream(address, index, sleep=waits.append, **options)
    assert waits == [1, 2]
    assert last.action == "failed" and "gave up after 2 more connections" in last.error
    ((_, entry),) = Searcher(index).videos.items()
    assert entry.duration_s == pytest.approx(5.0, abs=0.1) and entry.done
    assert "the stream ended; connected again" in entry.warning
    # The command ends with an error.
    arguments = [f"--stream={address}", f"--output={index}", "--retries=0", "--json"]
    assert build.main(arguments) == 1
    assert "gave up after 0 more" in json.loads(capsys.readouterr().out)["error"]


def test_classes_of_a_run_are_searched_by_their_label(finished_run, videos, tmp_path, capsys):
    index = tmp_path / "index"
    paths = [str(videos / f"{shape}.mp4") for shape in SHAPES]
    assert build.main([*paths, "-o", str(index), f"--workdir={finished_run}", "--json"]) == 0
    capsys.readouterr()
    searcher = Searcher(index)
    assert len(searcher.class_names) > 1
    label = searcher.class_names[0]
    found = searcher.search(label=label, top_k=3, merge=False)
    assert len(found) == 3 and 1 >= found[0].score >= found[1].score >= found[2].score > 0
    # Words beside them.
    assert searcher.search("a star")
    # The features that the model has of a chunk's motion are kept, and are those of its network.
    encoder = open_encoder({"workdir": str(finished_run)})
    model = load(finished_run)
    made = store.Store(index)
    rows = made.table.to_arrow().to_pylist()
    for path in paths:
        file = made.entries()[path].id
        kept = sorted((row["start_s"], row["motion"]) for row in rows if row["file"] == file)
        chunks = list(read_chunks(path, chunk_form(encoder, made.longest_s)))
        assert len(kept) == len(chunks) > 1
        for (start_s, features), chunk in zip(kept, chunks, strict=True):
            assert start_s == chunk.start_s and chunk.clip is not None
            fields = jnp.asarray(model.view(chunk.clip)["motion"])
            expected = model.model.motion_features(fields).mean(axis=(0, 1, 2))
            # The kept program multiplies in bfloat16 where the processor does.
            np.testing.assert_allclose(features, expected, atol=0.05 * np.abs(expected).max())
        assert len({tuple(features) for _, features in kept}) == len(kept)
    assert find.main([str(index), "--label=absent"]) == 1
    assert "error: --label=absent: the index knows" in capsys.readouterr().err


def test_mistakes_on_the_command_line_are_sentences(index, capsys):
    for command, arguments, message in (
        (find, [str(index)], "nothing to look for: give a text, or a trained class by --label"),
        (find, [str(index), "a", "--topk=0"], "--topk=0 must be at least 1"),
        (build, ["-o", "x"], "name at least one VIDEO, or a --stream, but not both"),
        (build, ["a", "-o", "x", "--longest=1"], "--longest=1.0 must be at least 2 seconds"),
        (build, ["a", "-o", "x", "--timeout=0"], "--timeout=0.0 must be above 0"),
        (build, ["a", "-o", "x", "--retries=-1"], "--retries=-1 must be at least 0"),
    ):
        with pytest.raises(SystemExit) as ended:
            command.main(arguments)
        assert ended.value.code == 2
        assert f"error: {message}\n" in capsys.readouterr().err


def test_an_absent_package_is_named_with_the_command_that_installs_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(
        OSError, match="the index needs lancedb, which is not installed; install it"
    ):
        list(index_videos([], tmp_path / "index", clip="tiny"))
    assert not (tmp_path / "index").exists()


def test_help_of_the_commands_does_not_load_what_they_need():
    start = time.monotonic()
    code = (
        "import sys\nfrom moclip_jax.search import build, find\n"
        "heavy = {'jax', 'lancedb', 'pyarrow', 'av', 'transformers', 'tensorflow'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), time.monotonic() - start
