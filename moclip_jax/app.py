"""A web page that recognises videos, `--workdir=DIR`, or that searches them, `--index=INDEX`.

Drop a video or choose an example, type labels of your own or leave them out, and see the labels,
the motion that the network saw, and when what was seen. With an index, ask in words and see the
moments (`moclip_jax/search/page.py`). Everything stays on this machine: the page loads nothing from
elsewhere, listens on the loopback address by default, and deletes uploads.
"""

import argparse
import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
from PIL import Image

from moclip_jax.inference.clip_reader import ClipReader
from moclip_jax.inference.label_sets import parse_labels
from moclip_jax.inference.recognizer import Recognizer, load
from moclip_jax.input_pipeline.datasets.shapes import MOTIONS, SHAPES, render_clip
from moclip_jax.input_pipeline.video.clip import VideoError
from moclip_jax.input_pipeline.video.files import videos_under
from moclip_jax.reporting.page_figures import MOST_LABELS, motion_image, timeline_image
from moclip_jax.runtime import http_server
from moclip_jax.runtime.cli import CommandParser, run

# The browser may load nothing from elsewhere, whatever Gradio's page requests.
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "worker-src 'self' blob:; font-src 'self' data:; connect-src 'self' blob: data:; "
    "frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)


def example_videos(class_names: Sequence[str], given: str, folder: Path) -> list[str]:
    """Return videos to choose from: those in a folder, or drawn ones for the embedded data set.

    Args:
      class_names: of the model.
      given: a folder of the user's; '' for none.
      folder: where drawn clips are written.

    Raises:
      ValueError: the given folder holds no video.
    """
    if given:
        videos, _ = videos_under(Path(given).expanduser())
        if not videos:
            raise ValueError(f"--examples={given} holds no video")
        return videos
    drawn = {f"{shape} {motion}" for shape in SHAPES for motion in MOTIONS}
    if not drawn.issuperset(class_names):
        return []
    videos = []
    for number, name in enumerate(class_names[:: max(1, len(class_names) // 5 + 2)]):
        shape, motion = name.split()
        frames = render_clip(
            shape, motion, group_seed=900_000 + number, clip_seed=number, num_frames=48, height=256,
            width=256,
        )  # fmt: skip
        path = folder / f"{shape}_{motion}.mp4"
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25)
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
        videos.append(str(path))
    return videos


def make_page(
    reader: ClipReader,
    recognizer: Recognizer,
    examples: Sequence[str],
    *,
    limits: str,
    kept_s: float,
) -> Any:
    """Return the page, a `gradio.Blocks`.

    Args:
      reader: reads the files.
      recognizer: the model.
      examples: video files to choose from.
      limits: a sentence about what may be uploaded.
      kept_s: seconds after which an upload, and what was drawn of it, is deleted.
    """
    import gradio

    def recognise(path: str | None, text: str) -> tuple[dict[str, float], Image.Image, Image.Image]:
        try:
            if not path:
                raise ValueError("Drop a video first, or choose an example.")
            words = parse_labels(text or "")
            clip = reader.read(path)
            prediction = reader.predict(path, clip, words)
        except VideoError as error:
            # The visitor knows the file by its own name, not by where it is kept here.
            reason = str(error).replace(str(path), Path(str(path)).name)
            raise gradio.Error(reason, duration=None) from error
        except ValueError as error:
            raise gradio.Error(str(error), duration=None) from error
        if prediction.warning:
            gradio.Warning(prediction.warning, duration=None)
        if prediction.rejected:
            gradio.Warning(
                "Probably none of these classes: all are below "
                f"{prediction.reject_below:.0%}, which few videos of them are.",
                duration=None,
            )
        return (
            {score.label: score.probability for score in prediction.scores[:MOST_LABELS]},
            motion_image(clip),
            timeline_image(prediction, "seconds" if clip.fps else "frames"),
        )

    with gradio.Blocks(
        title="moclip_jax",
        analytics_enabled=False,
        delete_cache=(max(1, round(kept_s / 10)), round(kept_s)),
    ) as page:
        gradio.Markdown(
            f"# What happens in this video?\nOne image and the codec's motion vectors, "
            f"{len(recognizer.class_names)} classes. {limits}"
        )
        with gradio.Row():
            with gradio.Column(scale=2):
                video = gradio.Video(label="Video", sources=["upload"], elem_id="video", height=280)
                words = gradio.Textbox(
                    label="Labels of your own (empty: the trained classes)",
                    placeholder="a star, a ring",
                    max_length=2000,
                    elem_id="words",
                )
                button = gradio.Button("Recognise", variant="primary", elem_id="recognise")
                if examples:
                    gradio.Examples([[path] for path in examples], [video], label="Examples")
            with gradio.Column(scale=3):
                labels = gradio.Label(label="Labels", elem_id="labels")
                timeline = _image("When: probability in each part of the video", "timeline")
                motion = _image(
                    "Frames, and motion since the last I-frame: the hue is the direction", "motion"
                )
        button.click(
            recognise, [video, words], [labels, motion, timeline], api_visibility="private"
        )
    # One video at a time: each takes all cores. A long queue is better rejected than joined.
    page.queue(max_size=16, default_concurrency_limit=1)
    return page


def _image(title: str, name: str) -> Any:
    import gradio

    gradio.Markdown(title)
    # Gradio's own label would cover a corner, and its buttons share on the web.
    return gradio.Image(format="png", show_label=False, buttons=[], elem_id=name)


def make_server_app(page: Any, host: str, max_megabytes: float) -> Any:
    """Return the ASGI application that serves the page, and only what belongs to it."""
    import fastapi
    import gradio

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    return gradio.mount_gradio_app(
        http_server.guarded(app, host, POLICY),
        page,
        path="/",
        allowed_paths=[],
        max_file_size=round(max_megabytes * 1e6),
        footer_links=[],
        run_history=False,
        enable_monitoring=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
    )


def serve(arguments: argparse.Namespace) -> None:
    """Serve the page until it is stopped.

    Raises:
      FileNotFoundError: there is no exported model, or no index.
      ValueError: there is no example video where some should be.
      OSError: the address cannot be listened on.
    """
    # Before Gradio is imported, which reads them then.
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["HF_HUB_OFFLINE"] = "1"

    def make_app(folder: Path, opened: contextlib.ExitStack) -> Any:
        search = bool(arguments.index)
        return _searching(arguments) if search else _recognising(arguments, folder, opened)

    http_server.serve(make_app, arguments, name="page", extra="app", packages=["gradio"])


def _recognising(arguments: argparse.Namespace, folder: Path, opened: contextlib.ExitStack) -> Any:
    recognizer = load(arguments.workdir)
    drawn = folder / "examples"
    drawn.mkdir()
    reader = ClipReader(recognizer, timeout_s=arguments.timeout)
    opened.callback(reader.close)
    page = make_page(
        reader,
        recognizer,
        example_videos(recognizer.class_names, arguments.examples, drawn),
        limits=f"Videos of at most {arguments.max_megabytes:g} MB; deleted after "
        f"{arguments.keep_minutes:g} minutes.",
        kept_s=60 * arguments.keep_minutes,
    )
    return make_server_app(page, arguments.host, arguments.max_megabytes)


def _searching(arguments: argparse.Namespace) -> Any:
    from moclip_jax.search import page
    from moclip_jax.search.query import Searcher

    searcher = Searcher(arguments.index)
    # Loads and compiles what the first visitor would wait for. A model without a text side can
    # still be asked for its classes.
    with contextlib.suppress(ValueError):
        searcher.search("a", top_k=1)
    return http_server.guarded(page.make_search_app(searcher), arguments.host, page.POLICY)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve the page; returns the exit status."""
    parser = CommandParser(
        "moclip_jax.app",
        "A web page that recognises videos with a trained model, or searches indexed ones.",
        (
            "--workdir=runs/demo",
            "--workdir=runs/demo --port=8000 --examples=/data/some_videos",
            "--index=videos.index",
        ),
        usage="--workdir=DIR | --index=INDEX [OPTION ...]",
    )
    shown = parser.add_mutually_exclusive_group(required=True)
    shown.add_argument(
        "--workdir", default="", metavar="DIR", help="folder of a finished run, or its export"
    )
    shown.add_argument(
        "--index", default="", metavar="INDEX", help="folder of an index, to be searched"
    )
    parser.add_argument("--examples", default="", metavar="DIR", help="videos to choose from")
    limits = {
        "max_megabytes": (100.0, "of a video"),
        "timeout": (60.0, "seconds without progress until a video is given up"),
        "keep_minutes": (10.0, "before an upload is deleted"),
    }
    arguments = http_server.parse_arguments(parser, argv, port=7860, limits=limits)
    return run(lambda: serve(arguments), traceback=arguments.traceback)


if __name__ == "__main__":
    sys.exit(main())
