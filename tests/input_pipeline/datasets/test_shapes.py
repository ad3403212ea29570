"""The embedded data set's frames: reproducible, balanced, and with motion that a codec sees."""

import io

import av
import numpy as np
import pytest

from moclip_jax.input_pipeline.datasets import shapes

SIZE = {"height": 128, "width": 128}


def _clip(shape="star", motion="rising", group_seed=3, clip_seed=5, num_frames=24, **size):
    return shapes.render_clip(
        shape,
        motion,
        group_seed=group_seed,
        clip_seed=clip_seed,
        num_frames=num_frames,
        **(SIZE | size),
    )


def test_clip_is_a_pure_function_of_its_arguments():
    first, again = _clip(), _clip()
    assert first.dtype == np.uint8 and first.shape == (24, 128, 128, 3)
    np.testing.assert_array_equal(first, again)
    assert np.any(first != _clip(clip_seed=6))
    assert np.any(first != _clip(group_seed=4))


@pytest.mark.parametrize("num_frames", [1, 2, 7, 24])
def test_middle_frame_is_the_same_image_for_every_motion_source(num_frames):
    still = shapes.render_still("ring", group_seed=1, clip_seed=2, **SIZE)
    for motion in shapes.MOTIONS:
        clip = _clip("ring", motion, group_seed=1, clip_seed=2, num_frames=num_frames)
        np.testing.assert_array_equal(clip[num_frames // 2], still)
        if num_frames > 1:
            assert np.any(clip[0] != clip[-1])


def test_a_turning_motion_is_the_opposite_one_reversed_in_time():
    """But for the camera's drift and the noise; the middle frame is that of every motion."""
    quiet = {"_DRIFT": 0.0, "_NOISE": 0.0}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in quiet.items():
            patch.setattr(shapes, name, value)
        for motion, opposite in (("rising", "falling"), ("growing", "shrinking")):
            forth = _clip(motion=motion, turning=True, num_frames=24).astype(int)
            back = _clip(motion=opposite, turning=True, num_frames=24).astype(int)
            assert np.abs(forth - back).max(axis=(1, 2, 3)).argmin() in (0, 12)
            np.testing.assert_array_equal(forth[12], back[12])
            # Frame 12 + t of one is frame 12 - t of the other; frame 24 would be frame 0.
            np.testing.assert_allclose(forth[1:], back[:0:-1], atol=1)
            assert np.abs(forth[6] - back[6]).max() > 50
    still = shapes.render_still("star", group_seed=3, clip_seed=5, **SIZE)
    np.testing.assert_array_equal(_clip(turning=True)[12], still)
    # What comes first is what the class says: two shapes differ where the tile is.
    circle, cross = (_clip(shape, turning=True).astype(int) for shape in ("circle", "cross"))
    row = [
        np.argwhere(np.abs(a - b).sum(-1))[:, 0].mean() for a, b in zip(circle, cross, strict=True)
    ]
    assert row[6] < row[0] - 8 and row[18] > row[12] + 8


def test_shapes_differ_only_on_the_tile_and_the_tile_stays_inside():
    """The difference of two shapes marks the tile; it never reaches the frame's edge."""
    size = {"height": 96, "width": 128}
    for motion in shapes.MOTIONS:
        for seed in range(6):
            circle = _clip("circle", motion, seed, seed, 8, **size).astype(int)
            cross = _clip("cross", motion, seed, seed, 8, **size).astype(int)
            differs = np.any(np.abs(circle - cross) > 0, axis=-1)
            assert differs.any(axis=(1, 2)).all()
            edges = (differs[:, 0], differs[:, -1], differs[:, :, 0], differs[:, :, -1])
            assert not any(edge.any() for edge in edges)


def test_groups_do_not_share_their_background():
    """Two clips of one group are filmed before one backdrop; another group's looks different."""

    def mean_color(group_seed, clip_seed):
        still = shapes.render_still("star", group_seed=group_seed, clip_seed=clip_seed, **SIZE)
        return np.median(still.reshape(-1, 3), axis=0)

    within = [np.abs(mean_color(g, 0) - mean_color(g, 1)).mean() for g in range(12)]
    between = [np.abs(mean_color(g, 0) - mean_color(g + 1, 0)).mean() for g in range(12)]
    assert np.median(between) > 2 * np.median(within)


def test_appearance_names_the_colour_that_is_drawn():
    for seed in range(8):
        look = shapes.appearance(group_seed=seed, clip_seed=seed)
        assert look.size in ("small", "large")
        still = shapes.render_still("circle", group_seed=seed, clip_seed=seed, **SIZE)
        other = shapes.render_still("ring", group_seed=seed, clip_seed=seed, **SIZE)
        # Circle and ring differ all around the tile's centre, where only the circle is coloured.
        differs = np.abs(still.astype(int) - other).sum(-1) > 60
        y, x = np.argwhere(differs).mean(0).astype(int)
        drawn = still[y - 5 : y + 6, x - 5 : x + 6].mean((0, 1))
        # The texture adds grey only.
        hue = drawn - drawn.mean()
        distances = {
            name: np.abs(hue - np.array(rgb) + np.mean(rgb)).sum()
            for name, rgb in shapes.COLORS.items()
        }
        assert min(distances, key=distances.get) == look.color


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shape": "blob"}, "blob.*circle"),
        ({"motion": "hopping"}, "hopping.*rising"),
        ({"num_frames": 0}, "num_frames"),
        ({"height": 16, "width": 64}, "64x16"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        _clip(**change)


def _codec_flow(frames: np.ndarray) -> dict[str, float]:
    """Sums the motion vectors that FFmpeg's MPEG-4 encoder finds for a clip.

    Returns the displacement (x, y) of the blocks and, about the frame's moving centre, the
    outward and the clockwise component of theirs, in pixels, all summed over blocks and frames.
    """
    stream_bytes = io.BytesIO()
    with av.open(stream_bytes, "w", format="avi") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 12
        stream.codec_context.max_b_frames = 0
        stream.codec_context.qmin = stream.codec_context.qmax = 1
        for frame in frames:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(stream.encode(None))
    stream_bytes.seek(0)

    flow = dict.fromkeys(("x", "y", "out", "turn"), 0.0)
    with av.open(stream_bytes) as source:
        video = source.streams.video[0]
        video.thread_count = 1
        video.codec_context.options = {"flags2": "+export_mvs"}
        for frame in source.decode(video):
            exported = frame.side_data.get("MOTION_VECTORS")
            if exported is None:
                continue
            vectors = exported.to_ndarray()
            place = np.stack([vectors["dst_x"], vectors["dst_y"]], -1).astype(float)
            step = -np.stack([vectors["motion_x"], vectors["motion_y"]], -1) / 2.0  # half pixels
            step -= np.median(step, axis=0)  # most of the frame is background: the camera's drift
            moving = np.abs(step).sum(-1) > 1
            if not moving.any():
                continue
            place, step = place[moving], step[moving]
            offset = place - place.mean(0)
            distance = np.linalg.norm(offset, axis=-1) + 1
            flow["x"] += step[:, 0].sum()
            flow["y"] += step[:, 1].sum()
            flow["out"] += ((offset * step).sum(-1) / distance).sum()
            cross = offset[:, 0] * step[:, 1] - offset[:, 1] * step[:, 0]
            flow["turn"] += (cross / distance).sum()
    return flow


@pytest.mark.parametrize("seed", [0, 1])
def test_the_codec_sees_each_motion(seed):
    """On a real MPEG-4 stream the dominant component of the vectors is that of the motion."""
    flows = {
        motion: _codec_flow(_clip(motion=motion, group_seed=seed, clip_seed=seed))
        for motion in shapes.MOTIONS
    }

    def dominant(flow):
        return max(flow, key=lambda component: abs(flow[component]))

    expected = {
        "rising": "y",
        "falling": "y",
        "sliding": "x",
        "spinning": "turn",
        "growing": "out",
        "shrinking": "out",
    }
    assert {motion: dominant(flow) for motion, flow in flows.items()} == expected
    assert flows["rising"]["y"] < 0 < flows["falling"]["y"]
    assert flows["shrinking"]["out"] < 0 < flows["growing"]["out"]
