"""Records against `tf.train.Example` and TFDS's own serialization, which encode independently."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from moclip_jax.input_pipeline.datasets.records import (
    encode_record,
    grid_size,
    pack_displacements,
    parse_record,
    record_features,
    unpack_displacements,
)
from moclip_jax.input_pipeline.video.clip import VideoSpec, clip_from_frames, read_clip
from tests.input_pipeline.video_fixtures import drifting_frames, write_video

CANONICAL = VideoSpec(width=64, height=48, clip_frames=2, gop_size=4)
NATIVE = VideoSpec(source="native", width=64, height=48, clip_frames=2)


@pytest.fixture(scope="module", params=[CANONICAL, NATIVE], ids=["reencode", "native"])
def clip_and_spec(request, tmp_path_factory):
    frames = drifting_frames(30, seed=3)
    if request.param.source == "reencode":
        return clip_from_frames(frames, request.param, 29.97), request.param
    path = tmp_path_factory.mktemp("native") / "b_frames.mp4"
    write_video(path, frames, codec="libx264")
    return read_clip(path, request.param), request.param


def test_a_record_is_the_example_that_tfds_serializes(clip_and_spec):
    clip, spec = clip_and_spec
    record = encode_record("Clap/ä b.avi", 300, clip, spec)
    features = record_features(spec)
    values = {name: getattr(clip, name, None) for name in features}
    values |= {"name": "Clap/ä b.avi", "label": 300}
    if spec.source == "reencode":
        values["displacements"] = pack_displacements(clip.displacements, clip.is_intra)
    else:
        values["displacements"] = clip.displacements.reshape(-1, 2)
        values["future"] = clip.future.reshape(-1)
    theirs = features.serialize_example(values)
    expected = tf.train.Example.FromString(theirs)
    assert tf.train.Example.FromString(record) == expected
    assert record == expected.SerializeToString(deterministic=True)


def test_all_features_of_a_record_are_read_as_they_were_written(clip_and_spec):
    clip, spec = clip_and_spec
    names = list(record_features(spec))
    example = parse_record(tf.constant(encode_record("a", -1, clip, spec)), names, spec)
    stored = {name: value.numpy() for name, value in example.items()}
    assert stored.pop("name") == b"a"
    assert stored.pop("label") == -1
    assert stored.pop("frames").tolist() == clip.frames
    assert stored.pop("source", b"native") == b"native"
    assert stored.pop("fps") == np.float32(clip.fps)
    if spec.source == "reencode":
        stored["displacements"] = unpack_displacements(stored["displacements"], grid_size(spec))
    for name, value in stored.items():
        expected = np.asarray(getattr(clip, name))
        np.testing.assert_array_equal(value.reshape(expected.shape), expected, err_msg=name)
        assert value.dtype == expected.dtype or expected.ndim == 0


def test_some_groups_unpack_to_their_frames():
    rng = np.random.default_rng(0)
    displacements = rng.integers(-32768, 32640, (12, 6, 8, 2)).astype(np.int16)
    displacements[::2] //= 1000
    is_intra = np.isin(np.arange(12), [2, 3, 9])
    packed = pack_displacements(displacements, is_intra)
    assert grid_size(CANONICAL) == (6, 8)
    groups = np.split(displacements, [2, 3, 9])
    assert len(packed) == len(groups)
    for chosen in ([0, 1, 2, 3], [2], [3, 1]):
        unpacked = unpack_displacements([packed[i] for i in chosen], (6, 8))
        assert unpacked.dtype == np.int16
        np.testing.assert_array_equal(unpacked, np.concatenate([groups[i] for i in chosen]))


def test_worker_processes_import_neither_tensorflow_nor_tfds():
    program = (
        "import sys; import moclip_jax.input_pipeline.datasets.worker; "
        "import moclip_jax.input_pipeline.datasets.registry; "
        "print([n for n in ('tensorflow', 'tensorflow_datasets', 'jax') if n in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
