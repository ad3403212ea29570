"""Moments: what LanceDB finds is what all products give, and neighbours are joined by the rule."""

import numpy as np
import pytest

from benchmarks.localization import (
    average_precision,
    mean_average_precision,
    overlap,
    recall_at_1,
)
from moclip_jax.search import store as store_module
from moclip_jax.search.chunks import Chunk
from moclip_jax.search.query import Searcher, merge_neighbours
from moclip_jax.search.store import Entry, Store

CLASSES = ("jump", "run", "walk")


class Words:
    """An encoder whose texts are vectors that the test knows."""

    def __init__(self, vectors):
        self.vectors = vectors

    def text(self, text):
        return self.vectors[text]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("index")
    rng = np.random.default_rng(0)
    store = Store.create(folder, {"clip": "tiny"}, CLASSES, 8, 10.0)
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    odds = rng.dirichlet([1, 1, 1], 60).astype(np.float32)
    for number in range(3):
        rows = slice(20 * number, 20 * number + 20)
        chunks = [
            Chunk(2.0 * i, 2.0 * i + 2, 2.0 * i + 1, b"", 0.1 + 0.5 * (i > 12), 50, 0, None)
            for i in range(20)
        ]
        # A name that is no UTF-8, as Linux has them.
        store.put(Entry(number, f"/videos/{number}\udcff'.mp4", 1, 1, True, 20, 40.0))
        thumbnails = [bytes([20 * number + i]) for i in range(20)]
        store.add(number, chunks, thumbnails, vectors[rows], odds[rows], vectors[rows])
    store.finish()
    words = {f"word {i}": v for i, v in enumerate(rng.normal(size=(5, 8)).astype(np.float32))}
    return folder, vectors, odds, words


@pytest.mark.parametrize("most_in_memory", [1 << 30, 0], ids=["in_memory", "by_lancedb"])
def test_the_order_is_that_of_all_products(index, monkeypatch, most_in_memory):
    monkeypatch.setattr(store_module, "_MOST_IN_MEMORY", most_in_memory)
    folder, vectors, odds, words = index
    searcher = Searcher(folder, Words(words))
    for text, vector in words.items():
        products = vectors @ vector
        order = np.argsort(-products)
        for found, row in zip(
            searcher.search(text, top_k=7, merge=False), order[:7].tolist(), strict=True
        ):
            assert found.score == pytest.approx(products[row], abs=1e-5)
            assert found.video == f"/videos/{row // 20}\udcff'.mp4"
            assert (found.start_s, found.end_s) == (2.0 * (row % 20), 2.0 * (row % 20) + 2)
            assert found.thumbnail == bytes([row])
        # Of one class alone.
        of_class = [row for row in order.tolist() if odds[row].argmax() == 1]
        some = searcher.search(text, label="run", top_k=5, merge=False)
        assert [found.thumbnail for found in some] == [bytes([row]) for row in of_class[:5]]
    for position, label in enumerate(CLASSES):
        best = np.argsort(-odds[:, position])[:4]
        found = searcher.search(label=label, top_k=4, merge=False)
        assert [moment.thumbnail for moment in found] == [bytes([row]) for row in best.tolist()]
        assert found[0].score == pytest.approx(odds[best[0], position], abs=1e-6)


def test_an_empty_index_has_no_moment(tmp_path):
    Store.create(tmp_path, {"clip": "tiny"}, (), 8, 10.0)
    assert Searcher(tmp_path, Words({"a": np.ones(8, np.float32)})).search("a") == []


def test_moments_of_the_index_are_the_chunks_joined_by_the_rule(index):
    folder, vectors, _, words = index
    searcher = Searcher(folder, Words(words))
    for text, vector in words.items():
        products, mean = vectors @ vector, float(vectors.mean(axis=0) @ vector)
        free, expected = set(range(60)), []
        for row in np.argsort(-products).tolist():
            if row not in free:
                continue
            least = mean + 0.5 * (products[row] - mean)
            first = last = row
            # Much more happens from the 13th on.
            while first % 20 not in (0, 13) and first - 1 in free and products[first - 1] >= least:
                first -= 1
            while (
                (last + 1) % 20 not in (0, 13) and last + 1 in free and products[last + 1] >= least
            ):
                last += 1
            free -= set(range(first, last + 1))
            expected.append(
                (f"/videos/{row // 20}\udcff'.mp4", 2.0 * (first % 20), 2.0 * (last % 20) + 2)
            )
        found = searcher.search(text, top_k=60)
        assert [(m.video, m.start_s, m.end_s) for m in found] == expected
        assert searcher.search(text, top_k=3) == found[:3]


def test_chunks_that_do_not_follow_one_another_stay_apart():
    hits = [
        {"file": 1, "start_s": 0.0, "end_s": 2.0, "score": 0.9, "activity": 0.1},
        {"file": 1, "start_s": 3.0, "end_s": 4.0, "score": 0.9, "activity": 0.1},
        {"file": 2, "start_s": 4.0, "end_s": 5.0, "score": 0.8, "activity": 0.1},
    ]
    assert len(merge_neighbours(hits, 0.0)) == 3
    assert merge_neighbours([], 0.0) == []


def test_what_cannot_be_is_named(index, tmp_path):
    folder, *_ = index
    searcher = Searcher(folder, Words({}))
    with pytest.raises(ValueError, match="nothing to look for: give a text, or a trained class by"):
        searcher.search("  ")
    with pytest.raises(ValueError, match="--label=fly: the index knows jump, run, walk"):
        searcher.search(label="fly")
    with pytest.raises(FileNotFoundError, match=r"no index at .*; make one: python -m"):
        Searcher(tmp_path)
    (tmp_path / "index.json").write_text('{"format": 3}')
    with pytest.raises(
        ValueError, match=r"index.json has format 3; this version reads 2; delete the"
    ):
        Searcher(tmp_path)


def by_definition(found, truth, least):
    """Average precision by all prefixes of the ranking."""
    total = 0.0
    matched_before = 0
    for length in range(1, len(found) + 1):
        free, matched = list(truth), 0
        for span in found[:length]:
            overlaps = [overlap(span, true) for true in free]
            if overlaps and max(overlaps) >= least:
                free.pop(int(np.argmax(overlaps)))
                matched += 1
        total += (matched - matched_before) * matched / length
        matched_before = matched
    return total / len(truth)


def test_metrics_equal_their_definitions():
    rng = np.random.default_rng(0)
    for _ in range(200):
        spans = [np.sort(rng.uniform(0, 20, 2)) + np.array([0, 0.1]) for _ in range(12)]
        truth = {"a": [tuple(s) for s in spans[:3]], "b": [tuple(s) for s in spans[3:4]]}
        found = {"a": [tuple(s) for s in spans[4:9]], "b": [tuple(s) for s in spans[9:]]}
        least = float(rng.uniform(0.1, 0.7))
        right = [
            max(
                len(np.intersect1d(ticks(found[q][0]), ticks(t)))
                / len(np.union1d(ticks(found[q][0]), ticks(t)))
                for t in truth[q]
            )
            for q in truth
        ]
        if min(abs(r - least) for r in right) > 0.01:
            assert recall_at_1(found, truth, least) == np.mean([r >= least for r in right])
        each = [by_definition(found[q], truth[q], least) for q in truth]
        assert average_precision(found["a"], truth["a"], least) == pytest.approx(each[0])
        assert mean_average_precision(found, truth, least) == pytest.approx(np.mean(each))
    assert overlap((0, 1), (2, 3)) == 0 and recall_at_1({"a": []}, {"a": [(0, 1)]}) == 0


def ticks(span) -> np.ndarray:
    """A span as the hundredths of a second that it holds."""
    return np.arange(round(100 * span[0]), round(100 * span[1]))
