"""The report of a run: one file that needs nothing else, with the run's own numbers."""

import base64
import io
import json
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from moclip_jax.configs import testing
from moclip_jax.input_pipeline.batches import PreparedDataset
from moclip_jax.input_pipeline.datasets.definition import VideoEntry
from moclip_jax.input_pipeline.video.clip import VideoSpec
from moclip_jax.reporting import report, run_figures
from moclip_jax.training.metrics import class_accuracy

HOSTILE = [
    "<script>alert(1)</script>",
    "$x^$ & Söhne",
    '"><img src=x onerror=y>',
    "日本語",
    "z" * 300,
]


class Page(HTMLParser):
    """What a page holds: its elements, the text of its tables' cells, and all its text."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.text = ""
        self._table: list[list[str]] | None = None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self._table = self.tables.setdefault(dict(attrs)["id"], [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append("")

    def handle_endtag(self, tag):
        if tag == "table":
            self._table = None

    def handle_data(self, data):
        self.text += data
        if self._table and self._table[-1]:
            self._table[-1][-1] += data.strip()

    @property
    def images(self) -> list[tuple[str, bytes]]:
        """Kind and content of each figure; fails where one is not inside the page."""
        decoded = []
        for tag, attrs in self.elements:
            if tag == "img":
                kind, content = attrs["src"].removeprefix("data:").split(";base64,")
                decoded.append((kind, base64.b64decode(content, validate=True)))
        return decoded


def assert_self_contained(page: Page) -> None:
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "a"}
    assert all("src" not in attrs for tag, attrs in page.elements if tag != "img")
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    for kind, content in page.images:
        if kind == "image/svg+xml":
            for element in ElementTree.fromstring(content).iter():
                assert not element.tag.endswith(("}script", "}foreignObject"))
                links = [v for k, v in element.attrib.items() if k.endswith("href")]
                assert all(link.startswith(("#", "data:image/")) for link in links)
        else:
            Image.open(io.BytesIO(content)).verify()


def test_a_run_ends_with_a_report_that_shows_its_results_and_needs_no_other_file(finished_run):
    page = Page(finished_run / "report.html")
    assert_self_contained(page)
    rows = json.loads((finished_run / "results.json").read_text())["rows"]
    shown = {cells[0]: cells[1:] for cells in page.tables["rows"][1:]}
    for name, row in rows.items():
        cells = shown[run_figures.ROW_TITLES[name]]
        assert float(cells[0]) == pytest.approx(100 * row["top1"], abs=0.05)
        assert float(cells[2]) == pytest.approx(100 * row["balanced_accuracy"], abs=0.05)
        assert float(cells[4]) == pytest.approx(row["gflops"], rel=0.01)
        assert cells[5].replace(",", "") == str(row["trainable_params"])
        assert cells[6] == row["protocol"]
    scores = np.load(finished_run / "evaluate" / "scores.npz")
    right = {row: scores[row].argmax(1) == scores["label"] for row in scores if row != "label"}
    class_names = json.loads((finished_run / "export" / "metadata.json").read_text())["class_names"]
    by_class = {
        cells[0]: [float(cell) for cell in cells[1:]] for cells in page.tables["classes"][1:]
    }
    assert by_class.keys() == set(class_names)
    for label, name in enumerate(class_names):
        own = [
            100 * right[row][scores["label"] == label].mean()
            for row in ("clip_head", "motion", "fusion")
        ]
        assert by_class[name] == pytest.approx([*own, own[2] - own[0]], abs=0.06)
    for stage, seconds, *_ in page.tables["times"][1:]:
        assert (finished_run / stage).is_dir()
        assert float(seconds) >= 0
    assert "motion.learning_rate = 0.003" in page.text
    versions = json.loads((finished_run / "export" / "metadata.json").read_text())["versions"]
    assert [["jax", versions["jax"]]] == [row for row in page.tables["versions"] if row[0] == "jax"]


def test_the_hardest_clips_are_those_with_the_least_probability_of_their_class(finished_run):
    scores = np.load(finished_run / "evaluate" / "scores.npz")
    logits, label = scores["fusion"].astype(np.float64), scores["label"]
    truth = [np.exp(row[c]) / np.exp(row).sum() for row, c in zip(logits, label, strict=True)]
    page = Page(finished_run / "report.html")
    names = [attrs for tag, attrs in page.elements if attrs.get("class") == "name"]
    assert len(names) == 12
    class_names = json.loads((finished_run / "export" / "metadata.json").read_text())["class_names"]
    at = -1
    for video in np.argsort(truth)[:12]:
        line = f"{class_names[label[video]]}: {100 * truth[video]:.1f} percent"
        assert page.text.find(line) > at
        at = page.text.find(line)
    jpegs = [content for kind, content in page.images if kind == "image/jpeg"]
    assert len(jpegs) == 12 * 4
    assert all(np.asarray(Image.open(io.BytesIO(p))).std() > 1 for p in jpegs[::4])


def test_counts_agree_with_counting_one_video_at_a_time():
    rng = np.random.default_rng(0)
    rows = ("zero_shot", "clip_head", "motion", "fusion")
    scores = {row: rng.normal(size=(60, 5)) for row in rows}
    # Class 4 has no video but one that could not be read; class 3 has none at all.
    label, rejected = rng.integers(3, size=60), np.array([4, 0])
    guess = [int(np.argmax(row)) for row in scores["fusion"]]
    counts = run_figures.confusion_counts(label, np.array(guess), 5)
    for i in range(5):
        for j in range(5):
            assert counts[i, j] == sum(a == i and b == j for a, b in zip(label, guess, strict=True))
    accuracy = class_accuracy(scores["fusion"], label, rejected)
    for c in range(5):
        own = [a == b for a, b in zip(label, guess, strict=True) if a == c] + [False] * (
            rejected.tolist().count(c)
        )
        expected = sum(own) / len(own) if own else float("nan")
        assert accuracy[c] == pytest.approx(expected, nan_ok=True)
    accuracies = {row: class_accuracy(scores[row], label, rejected) for row in rows}
    gains = report.class_gains(accuracies, [f"class {c}" for c in range(5)])
    assert {row["name"] for row in gains} == {"class 0", "class 1", "class 2", "class 4"}
    for row in gains:
        c = int(row["name"].removeprefix("class "))
        videos = sum(a == c for a in label) + (rejected == c).sum()
        for name in ("clip_head", "motion", "fusion"):
            right = sum(
                np.argmax(s) == c for s, a in zip(scores[name], label, strict=True) if a == c
            )
            assert row[name] == pytest.approx(right / videos)
        assert row["gain"] == pytest.approx(row["fusion"] - row["clip_head"])
    assert [row["gain"] for row in gains] == sorted((row["gain"] for row in gains), reverse=True)
    pairs = report.most_confused(counts, 4)
    wrong = sorted((counts[i, j] for i in range(5) for j in range(5) if i != j), reverse=True)
    assert [count for _, _, count in pairs] == wrong[:4]
    assert all(i != j and counts[i, j] == count for i, j, count in pairs)
    for cell in report.agreement(scores, label):
        videos = [
            v
            for v in range(60)
            if (np.argmax(scores["clip_head"][v]) == label[v]) == cell["clip_head"]
            and (np.argmax(scores["motion"][v]) == label[v]) == cell["motion"]
        ]
        assert cell["videos"] == len(videos)
        assert cell["fusion"] == sum(guess[v] == label[v] for v in videos)


def test_101_classes_and_names_that_look_like_markup_make_a_sound_page(finished_run, tmp_path):
    class_names = (*HOSTILE, *(f"class {c}" for c in range(101 - len(HOSTILE))))
    videos = [
        VideoEntry(f"{name[:40]}.avi", label, f"g{label}", ("test",), 9, "")
        for label, name in enumerate(class_names)
    ]
    rejected = VideoEntry("bad <b>.avi", 3, "g", ("test",), 0, "/x/bad <b>.avi: no <i>video</i>")
    index = (*videos, rejected)
    dataset = PreparedDataset(class_names, index, VideoSpec(), builder=None)
    for path in run_figures.HISTORIES.values():
        (tmp_path / path).parent.mkdir(parents=True)
        shutil.copy(finished_run / path, tmp_path / path)
    shutil.copytree(finished_run / "evaluate", tmp_path / "evaluate")
    rng = np.random.default_rng(0)
    scores = {row: rng.normal(size=(101, 101)) for row in run_figures.ROW_TITLES}
    np.savez(tmp_path / "evaluate" / "scores.npz", label=np.arange(101), **scores)
    splits = {
        "train": [],
        "validation": [],
        "test": [entry.name for entry in index if not entry.error],
        "rejected_test": ["bad <b>.avi"],
    }
    page = Page(report.write_report(testing.get_config(), dataset, splits, tmp_path, num_clips=0))
    assert_self_contained(page)
    assert page.tables["rejected"] == [["bad <b>.avi", "/x/bad <b>.avi: no <i>video</i>"]]
    assert "not recorded" in page.tables["times"][1]
    texts = [
        ["".join(text.itertext()) for text in ElementTree.fromstring(content).iter() if text.text]
        for kind, content in page.images
        if kind == "image/svg+xml"
    ]
    named = {text for figure in texts for text in figure}
    # Every class is named in the bars, the dollar sign as a dollar sign, the long name cut.
    assert {*HOSTILE[:4], "z" * 29 + "…", "class 95"} <= named
    # On the confusion matrix there is room for a part of them, once on each axis.
    (confusion,) = [figure for figure in texts if "class predicted by the fusion" in figure]
    assert sum(text in class_names for text in confusion) == 2 * len(range(0, 101, 3))
    assert run_figures.label_step(40) == 1 and run_figures.label_step(41) == 2


def test_the_command_writes_it_again_and_never_prepares_videos(
    finished_run, tmp_path, capsys, monkeypatch
):
    copy = tmp_path / "copy"
    shutil.copytree(finished_run, copy)
    (copy / "report.html").unlink()
    assert report.main(["--workdir", str(copy)]) == 0
    assert capsys.readouterr().out.strip() == str(copy / "report.html")
    again, first = ((f / "report.html").read_text() for f in (copy, finished_run))
    assert again.replace("<code>copy</code>", f"<code>{finished_run.name}</code>") == first
    shutil.rmtree(copy / "data")
    assert report.main(["--workdir", str(copy)]) == 1
    assert "put them back" in capsys.readouterr().err
    assert not list(copy.glob("data/*/*/*/*.tfrecord*"))
    assert report.main(["--workdir", str(tmp_path / "nothing")]) == 1
    assert "moclip_jax.main" in capsys.readouterr().err


def test_times_of_earlier_versions_are_read(tmp_path):
    for stage, name in (("motion", "gone_on"), ("fusion", "resumed")):
        (tmp_path / stage).mkdir()
        (tmp_path / stage / report.TIME_FILE).write_text(json.dumps({"seconds": 2.5, name: True}))
    resumed = {time["stage"]: time["resumed"] for time in report._times(tmp_path)}
    assert resumed["motion"] and resumed["fusion"] and not resumed["prepare"]
