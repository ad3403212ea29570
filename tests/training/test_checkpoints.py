"""Stage records, trees and checkpoints on disk."""

import errno
import json
import resource
import shutil
import signal
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from moclip_jax.runtime.files import write_json
from moclip_jax.runtime.tree_io import load_tree, save_tree
from moclip_jax.training.checkpoints import TrainingCheckpoints
from moclip_jax.training.fingerprint import sha256_of, weights_fingerprint
from moclip_jax.training.stages import StageRecord, check_weights


def test_a_stage_is_done_only_after_finish(tmp_path):
    record = StageRecord(tmp_path, "motion", {"a": (1, 2)})
    assert not record.is_done()
    record.begin()
    assert not record.is_done()
    record.finish()
    assert StageRecord(tmp_path, "motion", {"a": (1, 2)}).is_done()


@pytest.mark.parametrize("finished", [False, True])
def test_changed_settings_are_named_and_rejected(tmp_path, finished):
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


def test_a_stage_made_from_a_result_that_is_no_longer_there_is_rejected(tmp_path):
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


def state(number: float) -> dict:
    rng = np.random.default_rng(int(number))
    return {"w": rng.normal(size=(300, 7)).astype(np.float32), "step": np.int32(number)}


def saved(directory: Path, scores: list[float], about: dict | None = None) -> None:
    checkpoints = TrainingCheckpoints(directory, about)
    for step, score in enumerate(scores, start=1):
        checkpoints.save(step, state(step), score, {"loss": step / 10})
    checkpoints.close()


def newest(directory: Path, about: dict | None = None):
    checkpoints = TrainingCheckpoints(directory, about)
    try:
        return checkpoints.restore_newest(state(0))
    finally:
        checkpoints.close()


def test_the_two_newest_and_the_two_best_checkpoints_are_kept(tmp_path):
    saved(tmp_path, [0.5, 0.9, 0.7, 0.1, 0.2, 0.3])
    assert sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdecimal()) == [2, 3, 5, 6]
    step, back, sums = newest(tmp_path)
    assert (step, sums) == (6, {"loss": 0.6})
    np.testing.assert_array_equal(back["w"], state(6)["w"])
    checkpoints = TrainingCheckpoints(tmp_path)
    assert checkpoints.restore_best(state(0))[0] == 2
    checkpoints.close()


def damage(folder: Path, how: str) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    if how == "an empty file":
        max(files, key=lambda path: path.stat().st_size).write_bytes(b"")
    elif how == "no description":
        next(path for path in files if path.parent.name == "about").unlink()
    elif how == "a flipped bit":
        path = max(files, key=lambda path: path.stat().st_size)
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        # A whole checkpoint, but not the one that was described.
        save_other = TrainingCheckpoints(folder.parent.parent / "other")
        save_other.save(2, state(99), 0.0, {})
        save_other.close()
        shutil.rmtree(folder / "state")
        shutil.copytree(folder.parent.parent / "other" / "2" / "state", folder / "state")


@pytest.mark.parametrize(
    "how", ["an empty file", "no description", "a flipped bit", "other numbers"]
)
def test_a_damaged_newest_checkpoint_is_set_aside_and_the_one_before_it_used(tmp_path, how, capsys):
    directory = tmp_path / "checkpoints"
    saved(directory, [0.5, 0.6])
    damage(directory / "2", how)
    step, back, _ = newest(directory)
    assert step == 1
    np.testing.assert_array_equal(back["w"], state(1)["w"])
    printed = capsys.readouterr().out
    assert "the checkpoint of step 2 is damaged" in printed
    assert "that of step 1 is used" in printed
    assert (directory / "damaged-2").is_dir() and not (directory / "2").exists()
    assert newest(directory)[0] == 1


def test_a_checkpoint_made_from_something_else_is_rejected_and_the_difference_named(tmp_path):
    names = [f"class {i}" for i in range(20)]
    weights = {"clip": weights_fingerprint("tiny", {"w": jnp.ones(3)})}
    about = {"config": {"lr": 0.1}, "class_names": names, "weights": weights}
    saved(tmp_path, [0.5], about)
    assert newest(tmp_path, about)[0] == 1
    others = about | {
        "config": {"lr": 0.2},
        "class_names": [*names[:7], "other", *names[8:]],
        "weights": {"clip": weights_fingerprint("tiny", {"w": jnp.zeros(3)})},
    }
    with pytest.raises(ValueError, match="was made from something else:") as error:
        newest(tmp_path, others)
    told = str(error.value)
    assert "config.lr: was 0.1, is 0.2" in told
    assert "class_names[7]: was 'class 7', is 'other'" in told
    assert f"weights.clip.sha256: was '{weights['clip']['sha256']}', is '" in told
    assert newest(tmp_path, about)[0] == 1


def test_a_full_disk_is_an_error_of_the_system_and_destroys_nothing(tmp_path):
    """The limit on the size of files stands in for a full disk: the same write fails."""
    saved(tmp_path / "checkpoints", [0.5, 0.6])
    save_tree(tmp_path / "tree", state(1))
    rng = np.random.default_rng(0)
    large = {"w": rng.normal(size=(400, 500)), "step": np.int32(3)}
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        checkpoints = TrainingCheckpoints(tmp_path / "checkpoints")
        with pytest.raises(OSError) as error:
            checkpoints.save(3, large, 0.9, {})
            checkpoints.close()
        assert error.value.errno in (errno.ENOSPC, errno.EFBIG)
        with pytest.raises(OSError):
            save_tree(tmp_path / "tree", large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert newest(tmp_path / "checkpoints")[0] == 2
    np.testing.assert_array_equal(load_tree(tmp_path / "tree", state(0))["w"], state(1)["w"])


def test_features_of_other_frozen_weights_are_rejected(tmp_path):
    path = tmp_path / "weights.json"
    one, other = (
        {"clip": weights_fingerprint(name, {"w": jnp.full(3, i)})} for i, name in enumerate("ab")
    )
    check_weights(path, one, note=True)
    check_weights(path, one, note=False)
    with pytest.raises(ValueError, match=r"was made with other weights:\s+clip: was a .* is b"):
        check_weights(path, other, note=True)


def test_the_hash_of_weights_sees_every_bit_name_and_shape():
    tree = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.float32(1)}
    others = [
        tree | {"b": np.nextafter(np.float32(1), np.float32(2))},
        {"a": tree["a"], "c": tree["b"]},
        tree | {"a": tree["a"].reshape(3, 2)},
        tree | {"a": tree["a"].astype(np.float16)},
    ]
    assert sha256_of(tree) == sha256_of({name: jnp.asarray(tree[name]) for name in ("b", "a")})
    assert len({sha256_of(tree), *map(sha256_of, others)}) == 5
