"""Two drawn videos with one event each, and an index of them."""

import numpy as np
import pytest

from moclip_jax.input_pipeline.datasets.shapes import render_clip, render_empty
from moclip_jax.search import index_videos
from tests.input_pipeline.video_fixtures import write_video

SIZE = {"height": 128, "width": 128}
SHAPES = ("star", "ring")


def scene(shape: str, number: int) -> np.ndarray:
    """Three seconds at rest, then two in which a shape rises."""
    seeds = {"group_seed": 900 + number, "clip_seed": number}
    rest = render_empty(num_frames=75, **seeds, **SIZE)
    return np.concatenate([rest, render_clip(shape, "rising", num_frames=50, **seeds, **SIZE)])


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for number, shape in enumerate(SHAPES):
        write_video(folder / f"{shape}.mp4", scene(shape, number), codec="libx264")
    return folder


@pytest.fixture(scope="module")
def index(videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "index"
    reports = list(index_videos(sorted(videos.iterdir()), folder, clip="tiny"))
    assert [report.action for report in reports] == ["indexed"] * 2
    return folder
