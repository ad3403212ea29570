"""Stage records and trees on disk."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from moclip_jax.checkpoints import StageRecord, load_tree, save_tree, write_json


def test_a_stage_is_done_only_after_finish(tmp_path):
    record = StageRecord(tmp_path, "motion", {"a": (1, 2)})
    assert not record.is_done()
    record.begin()
    assert not record.is_done()
    record.finish()
    assert StageRecord(tmp_path, "motion", {"a": (1, 2)}).is_done()


@pytest.mark.parametrize("finished", [False, True])
def test_changed_settings_are_named_and_refused(tmp_path, finished):
    record = StageRecord(tmp_path, "motion", {"motion": {"lr": 0.01, "old": 1}})
    record.begin()
    if finished:
        record.finish()
    changed = StageRecord(tmp_path, "motion", {"motion": {"lr": 0.02, "new": 3}})
    with pytest.raises(ValueError) as error:
        changed.is_done()
    for part in (
        "was run with other settings:",
        "motion.lr: was 0.01, is 0.02",
        "motion.old",
        "motion.new",
        "--workdir",
    ):
        assert part in str(error.value)


def test_a_stage_made_from_a_result_that_is_no_longer_there_is_refused(tmp_path):
    first = StageRecord(tmp_path, "motion", {})
    second = StageRecord(tmp_path, "features", {}, first)
    for record in (first, second):
        record.begin()
        record.finish()
    assert second.is_done()
    first.begin()
    first.finish()
    with pytest.raises(ValueError, match=r"'features' was made from a result.*delete"):
        second.is_done()


def test_a_tree_comes_back_as_it_was(tmp_path):
    tree = {"a": jnp.arange(6.0).reshape(2, 3), "b": {"c": jnp.ones((), jnp.int32)}}
    save_tree(tmp_path / "tree", tree)
    back = load_tree(tmp_path / "tree", tree)
    np.testing.assert_array_equal(back["a"], tree["a"])
    assert back["b"]["c"].dtype == jnp.int32


def test_a_missing_tree_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no checkpoint at .*nowhere"):
        load_tree(tmp_path / "nowhere", {"a": jnp.ones(1)})


def test_a_tree_of_another_structure_is_explained(tmp_path):
    save_tree(tmp_path / "tree", {"a": jnp.ones(2)})
    with pytest.raises(ValueError, match="tree does not fit the networks"):
        load_tree(tmp_path / "tree", {"a": jnp.ones(2), "b": jnp.ones(2)})


def test_json_replaces_the_file_whole(tmp_path):
    path = tmp_path / "deep" / "x.json"
    write_json(path, {"a": 1})
    write_json(path, {"b": 2})
    assert json.loads(path.read_text()) == {"b": 2}
    assert [p.name for p in path.parent.iterdir()] == ["x.json"]
