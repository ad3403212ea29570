"""Checkpoints lie in folders of any name but those that Orbax and TensorStore cannot handle."""

import shutil

import numpy as np
import pytest

from moclip_jax.configs import testing
from moclip_jax.runtime.tree_io import load_tree, save_tree
from moclip_jax.training import pipeline

TREE = {"kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "step": np.int32(7)}


@pytest.mark.parametrize("name", ["a]b", "a*b?", "a b'c\"", "a{b}%41#$HOME", "ünï:~", "-a"])
def test_a_folder_of_any_other_name_works(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    save_tree(folder / "tree", TREE)
    for key, value in load_tree(folder / "tree", TREE).items():
        np.testing.assert_array_equal(value, TREE[key])


@pytest.mark.parametrize("name", ["a[b]c", "a[b", "a\\b"])
def test_a_run_in_a_folder_that_checkpoints_cannot_be_kept_in_does_not_start(tmp_path, name):
    for folder in (tmp_path / name, tmp_path / name / "clone" / "runs"):
        with pytest.raises(ValueError, match=r"checkpoints cannot be kept in a folder with . in"):
            pipeline.run(testing.get_config(), folder)
        with pytest.raises(ValueError, match="rename the folder or choose another one"):
            save_tree(folder / "tree", TREE)
    assert not list(tmp_path.iterdir())


def test_what_was_moved_to_such_a_folder_is_read_or_rejected(tmp_path):
    save_tree(tmp_path / "tree", TREE)
    for name in ("a[b]c", "a\\b"):
        shutil.copytree(tmp_path / "tree", tmp_path / name / "tree")
    np.testing.assert_array_equal(
        load_tree(tmp_path / "a[b]c" / "tree", TREE)["kernel"], TREE["kernel"]
    )
    with pytest.raises(ValueError, match=r"checkpoints cannot be kept in a folder with \\ in"):
        load_tree(tmp_path / "a\\b" / "tree", TREE)
