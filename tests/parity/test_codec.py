"""`moclip_jax.codec`: torch shares its arrays, and mv-extractor reads the same vectors."""

import sys

import numpy as np
import pytest
import torch

from benchmarks.clips import generated_video, real_video, ucf101_like
from benchmarks.codec import different_frames
from moclip_jax import codec


def test_torch_shares_the_arrays_without_a_copy():
    path = real_video()
    *_, frame = codec.frames(path, [40])
    mask = codec.patch_mask(path, patch=14, indices=[40])
    for array in (frame.raw, frame.accumulated, frame.object_motion, frame.intra, mask):
        tensor = torch.from_dlpack(array)
        assert tensor.data_ptr() == array.ctypes.data
        assert tensor.shape == array.shape and tensor.is_contiguous()
        np.testing.assert_array_equal(tensor.numpy(), array)
        # What one writes the other sees.
        tensor.view(-1)[0] = 1
        assert array.flat[0] == 1


@pytest.mark.parametrize("make", [generated_video, ucf101_like])
def test_vectors_and_frame_types_are_those_of_mv_extractor(make, tmp_path):
    pytest.importorskip("mvextractor")
    path = str(make(tmp_path))
    assert len(different_frames(path, sys.executable)) == 0


def test_of_h264_every_frame_is_as_in_one_of_several_runs_of_mv_extractor():
    """It loses vectors of B-frames, of other ones in each run."""
    pytest.importorskip("mvextractor")
    path, different = real_video(), set(range(250))
    for _ in range(30):
        different &= set(different_frames(path, sys.executable))
        if not different:
            break
    assert not different
