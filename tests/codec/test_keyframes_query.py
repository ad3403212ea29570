"""Frames for a question show what it asks for, where frames for anything show all."""

import numpy as np
import pytest

from moclip_jax import codec
from moclip_jax.codec.selection import _at_most
from moclip_jax.input_pipeline.datasets.shapes import render_clip
from tests.input_pipeline.video_fixtures import write_video

SHAPES = ("star", "ring", "cross", "circle")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """Four shapes, each for two seconds."""
    scenes = [
        render_clip(
            shape, "rising", group_seed=950 + number, clip_seed=number, num_frames=50,
            height=128, width=128,
        )
        for number, shape in enumerate(SHAPES)
    ]  # fmt: skip
    target = tmp_path_factory.mktemp("query") / "a.mp4"
    return write_video(target, np.concatenate(scenes), codec="libx264")


def test_most_frames_show_what_is_asked_for(path):
    every = codec.keyframes(path, 8) // 50
    assert set(every.tolist()) == {0, 1, 2, 3}
    for number, shape in enumerate(SHAPES):
        chosen = codec.keyframes(path, 8, query=f"a {shape}", clip="tiny")
        assert len(np.unique(chosen)) == 8
        # Two of eight without the query.
        assert (chosen // 50 == number).sum() >= 5, (shape, chosen)


def test_a_query_leaves_no_frame_out_where_all_are_asked_for(path):
    assert codec.keyframes(path, 200, query="a star", clip="tiny").tolist() == list(range(200))


def test_long_chunks_are_cut_into_equal_parts():
    assert _at_most(np.array([0, 4, 15]), 4).tolist() == [0, 4, 7, 11, 15]
    assert _at_most(np.array([0, 3]), 1).tolist() == [0, 1, 2, 3]
