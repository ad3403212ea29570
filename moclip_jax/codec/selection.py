"""Which frames of a video to look at: one or more of each chunk, where most happens."""

import dataclasses
import heapq
import itertools
import os
from collections.abc import Sequence

import numpy as np

from moclip_jax.codec.activity import ActivityMeter, ChunkCutter
from moclip_jax.codec.reading import decoded_frames
from moclip_jax.input_pipeline.video.decode import decode_frames
from moclip_jax.input_pipeline.video.orientation import Uprighter
from moclip_jax.input_pipeline.video.reencode import upright_picture
from moclip_jax.input_pipeline.video.rgb_frames import frame_jpeg

# What a frame counts at least, so that frames without any activity are spread evenly.
_LEAST_CHANGE = 1e-3


@dataclasses.dataclass(frozen=True)
class FrameActivity:
    """What happens in a video, frame by frame.

    Attributes:
      change: float64 `[n]`, share of the picture that changes, 0 to 1; B-frames have that of the
        next I- or P-frame.
      borders: int64 `[chunks + 1]`, the first frame of each chunk, and `n`.
    """

    change: np.ndarray
    borders: np.ndarray


def frame_activity(path: str | os.PathLike, source: str = "auto") -> FrameActivity:
    """Measure how much happens in each frame of a file, and cut it into chunks.

    Chunks end where the scene changes, or activity rises or falls by 2.5 times; `ChunkCutter` says
    how.

    Raises:
      VideoError: As `frames`.
    """
    meter, cutter = ActivityMeter(), ChunkCutter()
    change: list[float] = []
    begins = [0]
    count = 0
    for frame, picture in decoded_frames(path, source):
        count += 1
        activity = meter.add(frame, picture)
        if activity is None:
            continue
        change += [activity.change] * (count - len(change))
        begins += [begin for begin, _ in cutter.add(activity) if begin]
    change += [change[-1] if change else 0.0] * (count - len(change))
    return FrameActivity(np.array(change), np.array([*begins, count], np.int64))


def keyframes(
    path: str | os.PathLike,
    k: int,
    *,
    query: str = "",
    clip: str = "openai/clip-vit-base-patch32",
    source: str = "auto",
) -> np.ndarray:
    """Choose frames that show what happens in a video, for a model that takes `k` images.

    The video is cut into chunks of equal activity. Chunks with more activity get a frame first; if
    there are more frames than chunks, those with the most activity in all get several. A chunk's
    frames lie in the middle of equal parts of its accumulated activity.

    With a query, chunks that match it get the frames instead: CLIP looks at one picture of each
    (`4 k` at most, long chunks in parts), and frames are divided by how much more a chunk matches
    than the others do. It is the retrieval that Free Video-LLM (arXiv 2410.10441) does for
    a language model, on chunks in place of evenly spaced frames. This needs JAX.

    Args:
      path: A local video file.
      k: Number of frames, at least 1.
      query: What the frames are to show, a word or a sentence; '' for whatever happens.
      clip: CLIP for the query, as `moclip_jax.load_tower` takes it.
      source: As `frames`.

    Returns:
      int64 `[min(k, num_frames)]`, rising positions in display order.

    Raises:
      VideoError: As `frames`.
      ValueError: `k` is below 1, or the source is unknown.
    """
    if k < 1:
        raise ValueError(f"k is {k}, must be at least 1")
    activity = frame_activity(path, source)
    weight, borders = activity.change + _LEAST_CHANGE, activity.borders
    if query:
        borders = _at_most(borders, -(-len(weight) // (2 * k)))
    begins, lengths = borders[:-1], np.diff(borders)
    sums = np.add.reduceat(weight, begins)
    shares = np.zeros(len(begins), int)
    if query:
        looked = np.sort(np.argsort(-sums / lengths, kind="stable")[: 4 * k])
        asked = np.zeros(len(begins), int)
        asked[looked] = 1
        matches = _matches(path, spread(weight, borders, asked).tolist(), query, clip)
        # A standard deviation more is e times the share.
        odds = np.zeros(len(begins))
        odds[looked] = np.exp((matches - matches.max()) / max(float(matches.std()), 1e-6) * 2)
        divide(shares, odds, lengths, min(k, len(weight)))
    else:
        shares[np.argsort(-sums / lengths, kind="stable")[:k]] = 1
        divide(shares, sums, lengths, min(k, len(weight)))
    return spread(weight, borders, shares)


def _at_most(borders: np.ndarray, longest: int) -> np.ndarray:
    """Cut chunks of more than `longest` frames into equal parts that are not longer."""
    parts = [
        np.linspace(begin, end, -(-(end - begin) // longest), endpoint=False).astype(np.int64)
        for begin, end in itertools.pairwise(borders.tolist())
    ]
    return np.append(np.concatenate(parts), borders[-1])


def _matches(path: str | os.PathLike, chosen: list[int], query: str, clip: str) -> np.ndarray:
    """Return the cosine of a text and each of some frames, float `[n]`."""
    # Imported late: without a query there is no CLIP, and no JAX.
    from moclip_jax.search.encoder import ClipEncoder

    encoder = ClipEncoder(clip)
    upright, jpegs = Uprighter(), {}
    wanted = frozenset(chosen)
    for index, frame in enumerate(decode_frames(path)):
        if index in wanted:
            picture = upright_picture(path, upright, frame)
            jpegs[index] = frame_jpeg(picture, encoder.video)
        if len(jpegs) == len(wanted):
            break
    return encoder.images([jpegs[index] for index in chosen]) @ encoder.text(query)


def divide(shares: np.ndarray, weights: np.ndarray, most: np.ndarray, total: int) -> None:
    """Raise whole shares until they add up, by the method of Sainte-Laguë, in place.

    Args:
      shares: int `[n]`, what each has already.
      weights: float `[n]`, what they are to be proportional to.
      most: int `[n]`, what each can have at most; together at least `total`.
      total: Their sum in the end.
    """
    queue = [(-w / (2 * s + 1), i) for i, (w, s) in enumerate(zip(weights, shares, strict=True))]
    heapq.heapify(queue)
    while shares.sum() < total:
        _, i = heapq.heappop(queue)
        if shares[i] < most[i]:
            shares[i] += 1
            heapq.heappush(queue, (-weights[i] / (2 * shares[i] + 1), i))


def spread(
    weight: np.ndarray, borders: np.ndarray, shares: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Return `shares` frames of each chunk, in the middle of equal parts of its weight.

    Args:
      weight: float `[n]`, of each frame, above 0.
      borders: int `[chunks + 1]`.
      shares: int `[chunks]`, at most the frames of each.

    Returns:
      int64, rising.
    """
    chosen: list[np.ndarray] = []
    for begin, end, share in zip(borders[:-1], borders[1:], shares, strict=True):
        total = np.cumsum(weight[begin:end])
        middles = (np.arange(share) + 0.5) / max(share, 1) * total[-1]
        found = np.searchsorted(total, middles)
        # Each frame once: later ones move on, and those that would leave the chunk move back.
        place = np.arange(share)
        found = np.maximum.accumulate(found - place) + place
        found = np.minimum(found, end - begin - share + place)
        chosen.append(begin + found)
    return np.concatenate(chosen).astype(np.int64)
