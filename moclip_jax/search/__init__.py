"""Search hours of video in words: chunks where the codec cuts, CLIP features, an embedded store.

    >>> from moclip_jax import search
    >>> for report in search.index_videos(["talk.mp4"], "talks.index"): ...
    >>> moments = search.Searcher("talks.index").search("a person at a blackboard")
    >>> moments[0].video, moments[0].start_s, moments[0].end_s

It needs LanceDB (`requirements-search.txt`). Names are imported when they are first used.
`docs/long_video.md` is the guide.
"""

from typing import TYPE_CHECKING

from moclip_jax.runtime.lazy_imports import lazy_imports

if TYPE_CHECKING:
    from moclip_jax.search.indexing import index_stream as index_stream
    from moclip_jax.search.indexing import index_videos as index_videos
    from moclip_jax.search.query import Moment as Moment
    from moclip_jax.search.query import Searcher as Searcher

_HOMES = {
    "Moment": "query",
    "Searcher": "query",
    "index_stream": "indexing",
    "index_videos": "indexing",
}

__all__ = [*_HOMES]
__getattr__, __dir__ = lazy_imports(__name__, _HOMES)
