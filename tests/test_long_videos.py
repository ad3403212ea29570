"""More than 10,000 frames: what is held does not grow with the length of a video."""

import itertools
import weakref

import av
import numpy as np
import pytest

from moclip_jax import visualize
from moclip_jax.inference.clip_reader import ClipReader
from moclip_jax.inference.recognizer import Recognizer, load
from moclip_jax.input_pipeline.video import coded_frames, parts
from moclip_jax.input_pipeline.video.clip import VideoSpec
from moclip_jax.reporting import motion_figures
from tests.input_pipeline.video_fixtures import drifting_frames, write_video

LENGTHS = SHORT, LONG = 1000, 10_600
RATE = 100


class Held:
    """Counts live objects: how many there were, and at most at once."""

    def __init__(self):
        self.most = self.now = self.total = 0

    def add(self, thing):
        self.total += 1
        self.now += 1
        self.most = max(self.most, self.now)
        weakref.finalize(thing, self._drop)
        return thing

    def _drop(self):
        self.now -= 1


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    frames = drifting_frames(40, 16, 32, step=(1, 0))
    return {
        length: str(
            write_video(
                folder / f"{length}.avi",
                frames[[*itertools.islice(itertools.cycle(range(40)), length)]],
                rate=RATE,
            )
        )
        for length in LENGTHS
    }


@pytest.fixture
def model(finished_run, monkeypatch):
    opened = load(finished_run)
    opened.video = VideoSpec(width=32, height=32, clip_frames=2, max_frames=None, max_seconds=None)
    same = np.full(len(opened.class_names), 1 / len(opened.class_names))
    monkeypatch.setattr(Recognizer, "probabilities", lambda *_: same)
    return opened


@pytest.fixture
def held(monkeypatch):
    """The motion of frames, and the parts of a video."""
    motion, clips = Held(), Held()
    frame_blocks, read_parts = coded_frames.frame_blocks, parts.Clip

    def watched_blocks(frame):
        blocks = frame_blocks(frame)
        motion.add(blocks.displacements)
        return blocks

    monkeypatch.setattr(coded_frames, "frame_blocks", watched_blocks)
    monkeypatch.setattr(parts, "Clip", lambda **values: clips.add(read_parts(**values)))
    return motion, clips


def compare(held, run, videos):
    """Run with the short and the long video; return the number of windows of the long one."""
    most = {}
    for length, path in videos.items():
        before = [counter.total for counter in held]
        for counter in held:
            counter.most = counter.now
        run(path)
        # Every frame came by, and at least in the long video nearly all were gone by the end.
        frames, windows = (c.total - n for c, n in zip(held, before, strict=True))
        assert frames % length == 0 and frames > 0
        most[length] = [counter.most for counter in held]
    for short, long in zip(most[SHORT], most[LONG], strict=True):
        assert long <= short * 1.5
    assert most[LONG][0] < 400
    return windows


def test_a_timeline_holds_a_window(model, held, videos):
    def run(path):
        last = 0.0
        for window in model.timeline(path, seconds=2.0):
            assert last - 0.5 < window.start_s <= last
            last = window.end_s
        assert last == pytest.approx(10 if path == videos[SHORT] else 106)

    assert compare(held, run, videos) == round(LONG / RATE / 2)


def test_a_timeline_of_one_window_holds_what_the_network_sees(model, held, videos):
    """However long a window is, of its motion there are the GOPs of some frames."""
    seen = model.views.num_segments
    list(model.timeline(videos[LONG], seconds=1000.0))
    assert held[0].total == LONG
    assert held[0].most <= (seen + 1) * 2 * model.video.gop_size


@pytest.mark.slow
def test_an_annotated_video_holds_a_window(model, held, videos, tmp_path, monkeypatch):
    monkeypatch.setattr("moclip_jax.inference.recognizer.load", lambda _: model)
    monkeypatch.setattr(motion_figures, "_HEIGHT", 32)
    monkeypatch.setattr(motion_figures, "_PANEL", 32)
    target = tmp_path / "out.mp4"

    def run(path):
        assert visualize.main([path, f"--video={target}", "--workdir=any"]) == 0
        with av.open(str(target)) as container:
            (length,) = (n for n, video in videos.items() if video == path)
            assert container.streams.video[0].frames == length

    assert compare(held, run, videos) == LONG / RATE


def test_the_page_holds_a_window(model, held, videos):
    with ClipReader(model) as reader:
        # In this process, where it is counted.
        reader._isolated = lambda function, *arguments: function(*arguments)

        def run(path):
            answer = reader.predict(path, reader.read(path))
            assert len(answer.windows) == 12

        reader.close = lambda: None
        assert compare(held, run, videos) == 12
