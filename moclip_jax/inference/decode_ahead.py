"""Decode files in threads while the model works."""

import collections
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


def decoded_ahead(
    decode: Callable[[Any], Any], videos: Iterable[Any], num_workers: int
) -> Iterator[tuple[Any, Future]]:
    """Yield each video and its decoding, in order.

    At most `2 * num_workers + 1` wait decoded, whatever their number. Threads, because FFmpeg and
    NumPy work outside Python's lock.
    """
    pool = ThreadPoolExecutor(num_workers)
    pending: collections.deque[tuple[Any, Future]] = collections.deque()
    try:
        for video in videos:
            pending.append((video, pool.submit(decode, video)))
            if len(pending) > 2 * num_workers:
                yield pending.popleft()
        while pending:
            yield pending.popleft()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
