"""An epoch as one compiled loop: the same training as step by step, stopped or not, on any mesh."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
from flax import nnx

from moclip_jax.models.fusion import FusionConfig, FusionHead
from moclip_jax.runtime.sharding import make_mesh
from moclip_jax.training import scan_epoch, trainer
from moclip_jax.training.heads import chosen_features, feature_choices, head_logits
from moclip_jax.training.scan_epoch import DeviceData, place_data

VIDEOS, VIEWS, BATCH = 70, 3, 16


def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "motion": rng.normal(size=(VIDEOS, VIEWS, 6)).astype(np.float32),
        "appearance": rng.normal(size=(VIDEOS, 4)).astype(np.float32),
        "label": rng.integers(0, 5, VIDEOS).astype(np.int32),
    }


def choices(epoch, first_step):
    return feature_choices(
        VIDEOS, VIEWS, batch_size=BATCH, seed=1, epoch=epoch, first_step=first_step
    )


def batches(epoch, first_step):
    chosen = choices(epoch, first_step)
    for video, view in zip(chosen["video"], chosen["view"], strict=True):
        yield chosen_features(data(), {"video": video, "view": view})


def task(mesh, num_epochs=4, *, on_devices=True, **changes) -> trainer.Task:
    config = FusionConfig(motion_features=6, appearance_features=4, hidden=32, num_classes=5)
    placed = place_data(data(), mesh)
    assert placed is not None
    return trainer.Task(
        name="toy",
        model=FusionHead(config, rngs=nnx.Rngs(0)),
        logits=head_logits,
        optimizer=lambda params: optax.adamw(1e-2),
        batches=batches,
        steps_per_epoch=VIDEOS // BATCH,
        num_epochs=num_epochs,
        device_data=DeviceData(placed, choices, chosen_features) if on_devices else None,
        **changes,
    )


def parameters(model) -> list[np.ndarray]:
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


def history(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("devices", [1, pytest.param(4, marks=pytest.mark.four_devices)])
def test_the_compiled_epoch_trains_as_single_steps_do(tmp_path, devices):
    """Dropout, views and order included; the losses in the history too."""
    mesh = make_mesh(jax.devices()[:devices])
    whole = trainer.train_and_evaluate(task(mesh), tmp_path / "whole", mesh)
    steps = trainer.train_and_evaluate(task(mesh, on_devices=False), tmp_path / "steps", mesh)
    for a, b in zip(parameters(whole), parameters(steps), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
    losses = [[line["train_loss"] for line in history(tmp_path / n)] for n in ("whole", "steps")]
    np.testing.assert_allclose(*losses, rtol=1e-6)
    assert losses[0][-1] < losses[0][0]


def test_the_step_loop_takes_each_video_once_an_epoch_and_each_view_in_time():
    seen = [choices(epoch, 0) for epoch in range(30)]
    for chosen in seen:
        assert chosen["video"].shape == (VIDEOS // BATCH, BATCH)
        assert len(np.unique(chosen["video"])) == chosen["video"].size
    views = {(v, w) for c in seen for v, w in zip(c["video"].flat, c["view"].flat, strict=True)}
    assert len(views) == VIDEOS * VIEWS
    np.testing.assert_array_equal(choices(3, 2)["video"], choices(3, 0)["video"][2:])


def test_processes_have_the_rows_of_one_process_between_them():
    whole = choices(2, 1)
    parts = [
        feature_choices(
            VIDEOS, VIEWS, batch_size=BATCH, seed=1, epoch=2, first_step=1,
            process_index=index, process_count=2,
        )
        for index in range(2)
    ]  # fmt: skip
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([p[name] for p in parts], 1), values)


class _StoppedError(Exception):
    pass


def test_a_run_stopped_between_epochs_ends_bit_identical_to_one_that_was_not(tmp_path):
    mesh = make_mesh()
    whole = trainer.train_and_evaluate(task(mesh), tmp_path / "whole", mesh)

    def stops(epoch, first_step):
        if epoch == 2:
            raise _StoppedError
        return choices(epoch, first_step)

    stopped = task(mesh)
    stopped = dataclasses.replace(
        stopped, device_data=dataclasses.replace(stopped.device_data, choices=stops)
    )
    with pytest.raises(_StoppedError):
        trainer.train_and_evaluate(stopped, tmp_path / "stopped", mesh)
    resumed = trainer.train_and_evaluate(task(mesh), tmp_path / "stopped", mesh)
    for a, b in zip(parameters(whole), parameters(resumed), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_run_stopped_inside_an_epoch_resumes_with_its_remaining_steps(tmp_path):
    """As one does that sent its batches by themselves until then."""
    mesh = make_mesh()
    whole = trainer.train_and_evaluate(task(mesh), tmp_path / "whole", mesh)

    def dies(epoch, first_step):
        for step, batch in enumerate(batches(epoch, first_step), start=first_step):
            if (epoch, step) == (1, 3):
                raise _StoppedError
            yield batch

    with pytest.raises(_StoppedError):
        trainer.train_and_evaluate(
            dataclasses.replace(
                task(mesh, on_devices=False, checkpoint_every_steps=2), batches=dies
            ),
            tmp_path / "stopped",
            mesh,
        )
    resumed = trainer.train_and_evaluate(task(mesh), tmp_path / "stopped", mesh)
    for a, b in zip(parameters(whole), parameters(resumed), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)


def test_data_that_would_take_most_of_a_devices_memory_is_not_placed(monkeypatch):
    class Device:
        def __init__(self, limit):
            self.limit = limit

        def memory_stats(self):
            return {"bytes_limit": self.limit}

    size = sum(values.nbytes for values in data().values())
    monkeypatch.setattr(scan_epoch, "replicate", lambda tree, mesh: tree)
    for limit, placed in ((2 * size - 1, False), (2 * size, True)):

        class Mesh:
            local_devices = (Device(10 * size), Device(limit))

        assert (place_data(data(), Mesh()) is not None) == placed
