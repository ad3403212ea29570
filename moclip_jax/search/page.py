"""The page of a search: a word in, moments out, each with a player that starts there.

Plain HTML without a script. Only files whose chunks are in the index are given out, as long as they
are what was indexed.
"""

import base64
import mimetypes
import os
import stat
import threading
from typing import TYPE_CHECKING, Any

from moclip_jax.reporting.templates import render
from moclip_jax.runtime.text_io import printable
from moclip_jax.search.query import Moment, Searcher

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

# What the page's own documents may do: show their pictures, play their videos, send their form.
POLICY = (
    "default-src 'none'; img-src data:; media-src 'self'; style-src 'unsafe-inline'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_MOMENTS, _LONGEST_TEXT = 12, 1000


def make_search_app(searcher: Searcher) -> "Starlette":
    """Return the ASGI application that searches an index.

    `/?text=WORDS&label=CLASS` is the page; `/video/NUMBER` gives an indexed file, in ranges too.
    """
    from starlette.applications import Starlette
    from starlette.responses import FileResponse, HTMLResponse, PlainTextResponse
    from starlette.routing import Route

    # The model is loaded once, and a search takes all cores.
    one_at_a_time = threading.Lock()

    def page(request: "Request") -> "Response":
        text = request.query_params.get("text", "")[:_LONGEST_TEXT]
        label = request.query_params.get("label", "")
        moments: list[Moment] = []
        error = ""
        with one_at_a_time:
            try:
                searcher.refresh()
                if text.strip() or label:
                    moments = searcher.search(text, label=label, top_k=_MOMENTS)
            except (OSError, ValueError) as problem:
                error = str(problem)
            numbers = {entry.path: number for number, entry in searcher.videos.items()}
        shown = [_shown(moment, numbers[moment.video], searcher) for moment in moments]
        content = render(
            "search.html.jinja",
            text=text,
            label=label,
            class_names=searcher.class_names,
            num_videos=len(searcher.videos),
            moments=shown,
            error=printable(error),
            asked=bool(text.strip() or label),
        )
        return HTMLResponse(content, status_code=400 if error else 200)

    def video(request: "Request") -> "Response":
        entry = searcher.videos.get(request.path_params["number"])
        # A file that could not be read as a video is in the index too, with the reason.
        if entry is None or entry.size < 0 or not entry.num_chunks:
            return PlainTextResponse("not in the index", status_code=404)
        try:
            found = os.stat(entry.path)
        except OSError:
            return PlainTextResponse("the file is gone", status_code=404)
        same = (found.st_size, found.st_mtime_ns) == (entry.size, entry.mtime_ns)
        if not (same and stat.S_ISREG(found.st_mode)):
            return PlainTextResponse("the file has changed since it was indexed", status_code=409)
        kind = mimetypes.guess_type(entry.path)[0] or ""
        # Never a document, whatever the file is called.
        kind = kind if kind.startswith("video/") else "application/octet-stream"
        return FileResponse(entry.path, media_type=kind, stat_result=found)

    return Starlette(routes=[Route("/", page), Route("/video/{number:int}", video)])


def _shown(moment: Moment, number: int, searcher: Searcher) -> dict[str, Any]:
    picture = base64.b64encode(moment.thumbnail).decode()
    start, end = f"{moment.start_s:.3f}", f"{moment.end_s:.3f}"
    is_file = searcher.videos[number].size >= 0
    return {
        "video": printable(moment.video),
        "start": _clock(moment.start_s),
        "end": _clock(moment.end_s),
        "score": f"{moment.score:.3f}",
        "picture": f"data:image/jpeg;base64,{picture}",
        # The part of the address after # makes the player start there and stop at the end.
        "source": f"/video/{number}#t={start},{end}" if is_file else "",
    }


def _clock(seconds: float) -> str:
    """Return seconds as h:mm:ss.s."""
    tenths = round(10 * seconds)
    return f"{tenths // 36000}:{tenths // 600 % 60:02d}:{tenths % 600 / 10:04.1f}"
