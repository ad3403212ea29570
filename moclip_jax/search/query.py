"""Find moments in an index: the chunks that match, and their neighbours that match as well."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from moclip_jax.codec.activity import RATIO, level
from moclip_jax.search.encoder import Encoder, open_encoder
from moclip_jax.search.store import Entry, Store

# Chunks that are looked at for each moment that is asked for.
_CHUNKS_FOR_A_MOMENT = 20
# A neighbour belongs to a moment if its score lies nearer to the best than to the mean of all.
_NEARER = 0.5
# Chunks of a file follow one another if no more time lies between.
_GAP_S = 0.01


@dataclasses.dataclass(frozen=True)
class Moment:
    """A part of a video that matches.

    Attributes:
      video: Path of the file, or the address and time of a stream.
      start_s: Start in seconds since the first frame.
      end_s: End in the same seconds.
      score: Of its best chunk: the cosine of text and picture, or the probability of the label.
      picture_s: Time of that chunk's picture.
      thumbnail: That picture, a small JPEG.
    """

    video: str
    start_s: float
    end_s: float
    score: float
    picture_s: float
    thumbnail: bytes


class Searcher:
    """Searches an index; what it needs of the model is loaded once, when it is first needed."""

    def __init__(self, index: str | os.PathLike[str], encoder: Encoder | None = None):
        """Open an index.

        Args:
          index: Its folder.
          encoder: The one that the index was made with; None opens it.

        Raises:
          OSError: There is no index, or LanceDB is not installed.
          ValueError: The index has a format that this version does not read.
        """
        self._store = Store(Path(index).expanduser())
        self._encoder = encoder
        self._entries = self._by_number()

    def refresh(self) -> None:
        """Take up what was indexed since."""
        self._store = self._store.reopened()
        self._entries = self._by_number()

    @property
    def class_names(self) -> tuple[str, ...]:
        """The trained classes that can be searched for."""
        return self._store.class_names

    @property
    def videos(self) -> dict[int, Entry]:
        """The files and streams by their numbers."""
        return self._entries

    def search(
        self, text: str = "", *, label: str = "", top_k: int = 10, merge: bool = True
    ) -> list[Moment]:
        """Return the best moments, the best first.

        Args:
          text: What to look for, a word or a sentence; seen in the pictures.
          label: A trained class, seen in the motion too. With a text, moments are ranked by the
            text among the chunks whose most probable class it is.
          top_k: Moments to return at most.
          merge: Whether neighbours that match as well make one moment.

        Raises:
          ValueError: Neither text nor label, or a label that the index does not know.
        """
        if not (text.strip() or label):
            raise ValueError("nothing to look for: give a text, or a trained class by --label")
        if label and label not in self.class_names:
            known = ", ".join(self.class_names) or "none: it was made without --workdir"
            raise ValueError(f"--label={label}: the index knows {known}")
        position = self.class_names.index(label) if label else -1
        wanted = top_k * (_CHUNKS_FOR_A_MOMENT if merge else 1)
        if text.strip():
            vector = self._text(text.strip())
            # Of the chunks of one class there may be few.
            hits = self._nearest(vector, "vector", wanted * (10 if label else 1))
            background = float(vector @ self._store.mean)
            if label:
                hits = [hit for hit in hits if int(np.argmax(hit["probabilities"])) == position]
        else:
            one_hot = np.eye(len(self.class_names), dtype=np.float32)[position]
            hits, background = self._nearest(one_hot, "probabilities", wanted), 0.0
        moments: Sequence[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]]
        moments = merge_neighbours(hits, background) if merge else [(hit, [hit]) for hit in hits]
        moments = moments[:top_k]
        rows = np.array([best["_rowid"] for best, _ in moments], np.uint64)
        pictures = self._store.take(rows, ["thumbnail"])
        return [
            Moment(
                self._entries[best["file"]].path,
                min(hit["start_s"] for hit in part),
                max(hit["end_s"] for hit in part),
                best["score"],
                best["picture_s"],
                picture["thumbnail"],
            )
            for (best, part), picture in zip(moments, pictures, strict=True)
        ]

    def _by_number(self) -> dict[int, Entry]:
        return {entry.id: entry for entry in self._store.entries().values()}

    def _text(self, text: str) -> np.ndarray:
        if self._encoder is None:
            self._encoder = open_encoder(self._store.identity)
        return self._encoder.text(text)

    def _nearest(self, vector: np.ndarray, column: str, count: int) -> list[dict[str, Any]]:
        rows, scores = self._store.nearest(vector, column, count)
        columns = ["file", "start_s", "end_s", "picture_s", "activity"]
        if self.class_names:
            columns.append("probabilities")
        hits = self._store.take(rows, columns)
        # What is indexed since `refresh` has no entry yet.
        return [
            hit | {"score": score}
            for hit, score in zip(hits, scores.tolist(), strict=True)
            if hit["file"] in self._entries
        ]


def merge_neighbours(
    hits: Sequence[Mapping[str, Any]], background: float
) -> list[tuple[Mapping[str, Any], list[Mapping[str, Any]]]]:
    """Join chunks that follow one another to moments.

    From the best chunk on, those before and after it in its file are taken in as long as their
    score lies at least halfway between the mean and the best, and as much happens in them as in the
    one beside (by less than 2.5 times, where chunks are cut); then from the best of what is left.

    Args:
      hits: Chunks with `file`, `start_s`, `end_s`, `activity` and `score`.
      background: The mean score of all chunks.

    Returns:
      The best chunk and all chunks of each moment, the best moment first.
    """
    order = sorted(hits, key=lambda hit: (hit["file"], hit["start_s"]))
    free = [True] * len(order)
    moments = []
    for best in sorted(range(len(order)), key=lambda i: -order[i]["score"]):
        if not free[best]:
            continue
        peak = order[best]["score"]
        least = background + _NEARER * (peak - background)
        begin = end = best
        while begin > 0 and free[begin - 1] and _joins(order[begin - 1], order[begin], least, 0):
            begin -= 1
        while (
            end + 1 < len(order) and free[end + 1] and _joins(order[end], order[end + 1], least, 1)
        ):
            end += 1
        free[begin : end + 1] = [False] * (end + 1 - begin)
        moments.append((order[best], list(order[begin : end + 1])))
    return moments


def _joins(first: Mapping[str, Any], second: Mapping[str, Any], least: float, new: int) -> bool:
    """Return whether two chunks follow one another, and the one that is new scores enough."""
    follows = first["file"] == second["file"] and second["start_s"] - first["end_s"] <= _GAP_S
    difference = abs(level(first["activity"]) - level(second["activity"]))
    return follows and difference < math.log(RATIO) and (first, second)[new]["score"] >= least
