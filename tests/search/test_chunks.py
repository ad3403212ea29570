"""Chunks follow what happens, hold the motion of the whole file, and cost no more in a long one."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from moclip_jax.codec import frame as codec_frame
from moclip_jax.codec.selection import frame_activity
from moclip_jax.input_pipeline.video.clip import VideoSpec, read_clip
from moclip_jax.input_pipeline.video.decode import VideoError
from moclip_jax.input_pipeline.video.motion_vectors import VECTOR_DTYPE
from moclip_jax.search.chunks import ChunkForm, read_chunks, read_stream_chunks
from tests.codec.test_keyframes import with_events
from tests.input_pipeline import real_clips
from tests.input_pipeline.video_fixtures import drifting_frames, write_video

SPEC = VideoSpec(source="auto", width=96, height=64, max_frames=None, max_seconds=None)
FORM = ChunkForm(SPEC)


def test_chunks_follow_one_another_and_hold_every_frame():
    path = real_clips.path("bikes")
    chunks = list(read_chunks(path, FORM))
    assert chunks[0].start_s == 0
    assert [c.end_s for c in chunks[:-1]] == [c.start_s for c in chunks[1:]]
    assert chunks[-1].end_s == pytest.approx(10.0)
    assert sum(chunk.num_frames for chunk in chunks) == 250
    # The same borders as for key frames, whose pass computes no picture.
    borders = frame_activity(path).borders
    assert [round(25 * chunk.start_s) for chunk in chunks] == borders[:-1].tolist()
    for chunk in chunks:
        assert chunk.start_s <= chunk.picture_s < chunk.end_s
        assert Image.open(io.BytesIO(chunk.jpeg)).size == (602, 256)
        assert 0 < chunk.activity <= 1 and chunk.clip is None


def test_an_event_is_a_chunk_whose_picture_shows_it(tmp_path):
    frames, events = with_events(3)
    path = write_video(tmp_path / "a.mp4", frames, codec="libx264")
    chunks = list(read_chunks(path, FORM))
    for event in events:
        start, end = event.start / 25, event.stop / 25
        overlaps = [
            (min(c.end_s, end) - max(c.start_s, start))
            / (max(c.end_s, end) - min(c.start_s, start))
            for c in chunks
        ]
        best = chunks[int(np.argmax(overlaps))]
        assert max(overlaps) > 0.5
        assert start <= best.picture_s < end


def test_the_largest_length_holds(tmp_path):
    path = write_video(tmp_path / "a.mp4", drifting_frames(200, step=(1, 0)), codec="libx264")
    lengths = [
        chunk.end_s - chunk.start_s
        for chunk in read_chunks(path, dataclasses.replace(FORM, longest_s=2.0))
    ]
    # A chunk ends at an I- or P-frame.
    assert max(lengths) < 2.0 + 4 / 25 and len(lengths) >= 4


@pytest.mark.parametrize("source", ["native", "reencode"])
def test_the_motion_of_a_chunk_is_that_of_the_whole_file(tmp_path, source):
    frames = np.concatenate([drifting_frames(40, 64, 96, step=(s, 0), seed=s) for s in (1, 3, 2)])
    options = {"bf": "2", "g": "30"}
    path = write_video(tmp_path / "a.mp4", frames, codec="libx264", options=options)
    spec = dataclasses.replace(SPEC, source=source)
    fields = read_clip(path, spec).motion.accumulate()
    chunks = list(read_chunks(path, ChunkForm(spec, with_motion=True)))
    assert len(chunks) >= 3
    begin = 0
    for chunk in chunks:
        clip = chunk.clip
        assert clip is not None and clip.num_frames == chunk.num_frames and clip.source == source
        own = clip.motion.accumulate(clip.lead + np.arange(clip.num_frames))
        np.testing.assert_array_equal(own, fields[begin : begin + clip.num_frames])
        assert clip.times[0] == 0 and len(clip.times) == clip.num_frames
        begin += clip.num_frames
    assert begin == 120
    # Without the motion they are the same chunks.
    assert list(read_chunks(path, ChunkForm(spec))) == [
        dataclasses.replace(chunk, clip=None) for chunk in chunks
    ]


@pytest.mark.parametrize("with_motion", [False, True])
def test_vectors_that_cannot_be_are_named_with_the_file(tmp_path, monkeypatch, with_motion):
    path = write_video(tmp_path / "a.ts", drifting_frames(30, step=(1, 0)), codec="mpeg4")
    off = np.zeros(1, VECTOR_DTYPE)
    off["source"], off["w"], off["h"], off["dst_x"], off["dst_y"] = -1, 16, 16, 10, 8
    monkeypatch.setattr(codec_frame, "frame_vectors", lambda frame: off)
    form = dataclasses.replace(FORM, with_motion=with_motion)
    with pytest.raises(VideoError, match=r"a\.ts: .*8-pixel grid"):
        list(read_chunks(path, form))
    with pytest.raises(VideoError, match=r"a\.ts: .*8-pixel grid"):
        list(read_stream_chunks(str(path), form, timeout_s=0.5))


def test_a_codec_without_vectors_is_cut_too(tmp_path):
    frames, events = with_events(3)
    path = write_video(tmp_path / "a.webm", frames[:250], codec="libvpx-vp9")
    chunks = list(read_chunks(path, FORM))
    assert len(chunks) > 1 and events
    with pytest.raises(VideoError, match="carries no motion vectors that FFmpeg exports"):
        list(read_chunks(path, dataclasses.replace(FORM, video=VideoSpec(source="native"))))


def test_a_stream_gives_the_chunks_of_the_file(tmp_path):
    frames, _ = with_events(2)
    path = write_video(tmp_path / "a.ts", frames, codec="libx264")
    form = dataclasses.replace(FORM, longest_s=4.0)
    of_file = list(read_chunks(path, form))
    of_stream = list(read_stream_chunks(str(path), form, timeout_s=0.5))
    assert [round(c.start_s, 3) for c in of_stream] == [round(c.start_s, 3) for c in of_file]
    assert [c.jpeg for c in of_stream] == [c.jpeg for c in of_file]
    assert [c.num_frames for c in of_stream] == [c.num_frames for c in of_file]


def test_what_is_kept_does_not_grow_with_the_video(tmp_path, monkeypatch):
    from moclip_jax.search import chunks as module

    frames = drifting_frames(50, 48, 64, step=(1, 0))[np.arange(3000) % 50]
    path = write_video(tmp_path / "a.mp4", frames, codec="mpeg4")
    kept = []

    class Watched(module.ChunkMaker):
        def add(self, *arguments):
            yield from super().add(*arguments)
            kept.append((len(self._times), len(self._blocks), len(self._pictures)))

    monkeypatch.setattr(module, "ChunkMaker", Watched)
    form = dataclasses.replace(FORM, with_motion=True, longest_s=4.0)
    assert sum(chunk.num_frames for chunk in read_chunks(path, form)) == 3000
    largest = np.max(kept, axis=0)
    # Four seconds and a border found late, the I-frame before, and 8 pictures and 9 recent ones.
    assert (largest <= [25 * 4 + 2, 25 * 4 + 2 + 12, 18]).all(), largest
