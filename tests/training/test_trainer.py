"""The training loop: resuming, meshes, selection, frozen parts, divergence."""

import dataclasses
import json
import os
import re
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from moclip_jax.models.batch_norm import BatchNorm
from moclip_jax.models.fusion import FusionConfig, FusionHead
from moclip_jax.runtime import signals
from moclip_jax.runtime.sharding import make_mesh, replicate, shard_batch
from moclip_jax.training import trainer

CLASSES, ROWS, BATCH = 5, 64, 16


def _data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(ROWS, 8)).astype(np.float32)
    labels = (inputs @ rng.normal(size=(8, CLASSES))).argmax(-1).astype(np.int32)
    return {"motion": inputs[:, :4], "appearance": inputs[:, 4:], "label": labels}


def _logits(model, batch, is_train, key):
    rngs = nnx.Rngs(dropout=key) if is_train else None
    return model(batch["motion"], batch["appearance"], rngs=rngs)


def _task(num_epochs: int, *, validation: bool = True, **changes) -> trainer.Task:
    data = _data()

    def batches(epoch, first_step):
        order = np.random.default_rng((0, epoch)).permutation(ROWS)
        for step in range(first_step, ROWS // BATCH):
            rows = order[step * BATCH : (step + 1) * BATCH]
            yield {name: value[rows] for name, value in data.items()}

    config = FusionConfig(motion_features=4, appearance_features=4, hidden=32, num_classes=CLASSES)
    task = trainer.Task(
        name="toy",
        model=FusionHead(config, rngs=nnx.Rngs(0)),
        logits=_logits,
        optimizer=lambda params: optax.adam(1e-2),
        batches=batches,
        steps_per_epoch=ROWS // BATCH,
        num_epochs=num_epochs,
        validation=(lambda: iter([data | {"mask": np.ones(ROWS, bool)}])) if validation else None,
        checkpoint_every_steps=3,
    )
    return dataclasses.replace(task, **changes)


def _assert_equal(left: nnx.Module, right: nnx.Module, tolerance: float = 0.0) -> None:
    for a, b in zip(
        jax.tree.leaves(nnx.state(left)), jax.tree.leaves(nnx.state(right)), strict=True
    ):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=tolerance)


def test_training_learns_and_writes_a_line_of_history_for_each_epoch(tmp_path):
    trainer.train_and_evaluate(_task(12), tmp_path, make_mesh())
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, 13))
    assert lines[-1]["validation_top1"] > 0.8 > lines[0]["validation_top1"]
    assert list((tmp_path / "tensorboard").glob("events*"))


class _StoppedError(Exception):
    pass


@pytest.mark.parametrize("stop_at", [2, 5, 9])
def test_a_run_stopped_at_any_step_ends_bit_identical_to_one_that_was_not(tmp_path, stop_at):
    whole = trainer.train_and_evaluate(_task(4), tmp_path / "whole", make_mesh())

    task = _task(4)

    def dies(epoch, first_step):
        for step, batch in enumerate(task.batches(epoch, first_step), start=first_step):
            if epoch * task.steps_per_epoch + step == stop_at:
                raise _StoppedError
            yield batch

    with pytest.raises(_StoppedError):
        trainer.train_and_evaluate(
            dataclasses.replace(task, batches=dies), tmp_path / "stopped", make_mesh()
        )
    resumed = trainer.train_and_evaluate(task, tmp_path / "stopped", make_mesh())
    _assert_equal(whole, resumed)


@pytest.mark.parametrize("stop_at", [2, 4, 11])
def test_after_sigterm_the_state_of_the_last_step_is_saved_and_the_run_resumes(
    tmp_path, stop_at, capsys
):
    """Within an epoch and at its end; losses and accuracies of the epochs are those, too."""
    whole = trainer.train_and_evaluate(_task(4), tmp_path / "whole", make_mesh())
    task = _task(4, checkpoint_every_steps=1000)

    def told_to_stop(epoch, first_step):
        for step, batch in enumerate(task.batches(epoch, first_step), start=first_step):
            if epoch * task.steps_per_epoch + step == stop_at - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    before = signal.getsignal(signal.SIGTERM)
    signals.handle_sigterm()
    try:
        with pytest.raises(signals.StoppedError):
            trainer.train_and_evaluate(
                dataclasses.replace(task, batches=told_to_stop), tmp_path / "stopped", make_mesh()
            )
    finally:
        signals._Sigterm.received = False
        signal.signal(signal.SIGTERM, before)
    assert f"toy: saved at step {stop_at} of 16" in capsys.readouterr().out
    # On another number of devices it would be the same to 1e-5; here, to the bit.
    resumed = trainer.train_and_evaluate(task, tmp_path / "stopped", make_mesh())
    assert f"resumes from step {stop_at} of 16" in capsys.readouterr().out
    _assert_equal(whole, resumed)
    histories = [(tmp_path / name / "history.jsonl").read_text() for name in ("whole", "stopped")]
    assert histories[0] == histories[1]


def test_a_run_stopped_on_four_devices_resumes_on_two(tmp_path):
    whole = trainer.train_and_evaluate(_task(4), tmp_path / "whole", make_mesh())
    trainer.train_and_evaluate(_task(2), tmp_path / "moved", make_mesh())
    moved = trainer.train_and_evaluate(_task(4), tmp_path / "moved", make_mesh(jax.devices()[:2]))
    _assert_equal(whole, moved, 1e-5)


def test_one_two_and_four_devices_give_the_same_parameters_though_half_is_dropped(tmp_path):
    one = trainer.train_and_evaluate(_task(3), tmp_path / "one", make_mesh(jax.devices()[:1]))
    for name, mesh in {
        "two": make_mesh(jax.devices()[:2]),
        "four": make_mesh(),
        "two_by_two": make_mesh(model=2),
    }.items():
        _assert_equal(one, trainer.train_and_evaluate(_task(3), tmp_path / name, mesh), 1e-5)


class Normalised(nnx.Module):
    """Layers with BatchNorm between them, as a motion network has, but quick to compile."""

    def __init__(self, rngs: nnx.Rngs):
        # A bias before a normalisation has no gradient but rounding, which Adam would blow up.
        self.first = nnx.Linear(8, 32, use_bias=False, rngs=rngs)
        self.norm = BatchNorm(32)
        self.second = nnx.Linear(32, CLASSES, use_bias=False, rngs=rngs)
        self.last_norm = BatchNorm(CLASSES)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        hidden = nnx.relu(self.norm(self.first(x), train=train))
        return self.last_norm(self.second(hidden), train=train)


def steps_of(mesh):
    """Returns the compiled step, and parameters, statistics and losses after some of it."""
    graphdef, params, stats = nnx.split(Normalised(nnx.Rngs(0)), nnx.Param, ...)
    optimizer = optax.adam(1e-2)
    state = trainer.TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))
    state, key = replicate((state, jax.random.key(0)), mesh)
    data = _data()
    inputs = np.concatenate([data["motion"], data["appearance"]], axis=1)
    batch = shard_batch({"inputs": inputs, "label": data["label"]}, mesh)
    step = trainer.make_train_step(
        graphdef,
        lambda model, batch, is_train, key: model(batch["inputs"], train=is_train),
        optimizer,
        mesh,
    )
    compiled = step.lower(state, batch, key).compile()
    losses = []
    for _ in range(20):
        state, sums = compiled(state, batch, key)
        losses.append(float(sums["loss"] / sums["count"]))
    return compiled, jax.tree.map(np.asarray, (state.params, state.stats)), losses


def test_a_step_has_one_all_reduce_and_the_same_result_on_one_device_and_four():
    """Of a network with BatchNorm, whose statistics are those of the whole batch."""
    _, one, losses = steps_of(make_mesh(jax.devices()[:1]))
    compiled, four, same = steps_of(make_mesh(jax.devices()[:4], model=2))
    np.testing.assert_allclose(same, losses, rtol=0, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), one, four)
    text = compiled.as_text()
    reduced = re.findall(r"= (\S+) all-reduce(?:-start)?\(", text)
    # Every gradient and running statistic, and loss, correct, count and stop.
    size = sum(leaf.size for leaf in jax.tree.leaves(one)) + 4
    assert [shape.partition("{")[0] for shape in reduced] == [f"f32[{size}]"]


def test_the_best_epoch_is_kept_not_the_last(tmp_path):
    # The learning rate explodes after the first epoch, so later ones are worse.
    schedule = optax.piecewise_constant_schedule(1e-2, {ROWS // BATCH * 6: 1e4})
    model = trainer.train_and_evaluate(
        _task(8, optimizer=lambda params: optax.sgd(schedule)), tmp_path, make_mesh()
    )
    history = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    data = _data()
    top1 = float((_logits(model, data, False, None).argmax(-1) == data["label"]).mean())
    assert top1 == pytest.approx(max(line["validation_top1"] for line in history))
    assert top1 > history[-1]["validation_top1"]


def test_without_validation_the_last_epoch_is_kept(tmp_path):
    shorter = trainer.train_and_evaluate(_task(2, validation=False), tmp_path / "a", make_mesh())
    longer = trainer.train_and_evaluate(_task(3, validation=False), tmp_path / "b", make_mesh())
    again = trainer.train_and_evaluate(_task(3, validation=False), tmp_path / "a", make_mesh())
    _assert_equal(longer, again)
    with pytest.raises(AssertionError):
        _assert_equal(longer, shorter)


def test_a_loss_that_is_not_a_number_stops_with_the_step_and_the_remedy(tmp_path):
    task = _task(3, optimizer=lambda params: optax.sgd(float("nan")))
    with pytest.raises(trainer.TrainingDivergedError, match=r"step \d+.*learning_rate"):
        trainer.train_and_evaluate(task, tmp_path, make_mesh())


def test_a_loss_that_is_not_a_number_leaves_the_checkpoints_before_it(tmp_path):
    trainer.train_and_evaluate(_task(2), tmp_path, make_mesh())
    before = {
        path: path.read_bytes() for path in tmp_path.glob("checkpoints/*/**/*") if path.is_file()
    }
    data = _data() | {"motion": np.full((ROWS, 4), np.nan, np.float32)}
    batch = {name: rows[:BATCH] for name, rows in data.items()}
    task = _task(3, batches=lambda epoch, first: iter([batch] * (ROWS // BATCH - first)))
    with pytest.raises(trainer.TrainingDivergedError, match="the loss became nan"):
        trainer.train_and_evaluate(task, tmp_path, make_mesh())
    assert {path: path.read_bytes() for path in before} == before


def test_evaluation_counts_only_rows_that_the_mask_admits():
    task = _task(1)
    graphdef, params, stats = nnx.split(task.model, nnx.Param, ...)
    eval_step = trainer.make_eval_step(graphdef, _logits)
    data = _data()
    mask = np.arange(ROWS) % 3 == 0
    sums = eval_step(params, stats, data | {"mask": mask})
    right = np.asarray(_logits(task.model, data, False, None).argmax(-1) == data["label"])
    assert float(sums["count"]) == mask.sum()
    assert float(sums["correct"]) == (right & mask).sum()


def _weighted(logits, labels, weights):
    own = -jax.nn.log_softmax(logits)[np.arange(ROWS), labels]
    return (own * weights[labels]).mean()


def _binary(logits, labels, _):
    """Each class is a yes or no of its own: the negative log-likelihood of all answers."""
    odds = 1 / (1 + jnp.exp(-logits))
    return -(labels * jnp.log(odds) + (1 - labels) * jnp.log(1 - odds)).sum(1).mean()


@pytest.mark.parametrize(
    ("labels", "weights", "definition"),
    [
        (_data()["label"], np.array([0.5, 2.0, 0.0, 1.0, 3.0]), _weighted),
        (np.random.default_rng(1).integers(2, size=(ROWS, CLASSES)), None, _binary),
    ],
    ids=["class weights", "several labels"],
)
def test_the_loss_follows_its_definition(labels, weights, definition):
    """One step of SGD against the gradient of the mean, on one device and on four."""
    data = _data() | {"label": labels if weights is not None else labels.astype(np.float32)}
    config = FusionConfig(
        motion_features=4, appearance_features=4, hidden=32, num_classes=CLASSES, dropout=0.0
    )
    graph, params, rest = nnx.split(FusionHead(config, rngs=nnx.Rngs(0)), nnx.Param, ...)
    expected = jax.tree.map(np.asarray, params)

    def loss(params):
        logits = nnx.merge(graph, params, rest)(data["motion"], data["appearance"])
        return definition(logits, labels, weights)

    gradient = jax.grad(loss)(params)
    expected = jax.tree.map(lambda p, g: p - np.asarray(g), expected, gradient)
    for mesh in (make_mesh(jax.devices()[:1]), make_mesh()):
        optimizer = optax.sgd(1.0)
        step = trainer.make_train_step(graph, _logits, optimizer, mesh, weights)
        state = trainer.TrainState(jnp.zeros((), jnp.int32), params, rest, optimizer.init(params))
        state = replicate(jax.tree.map(jnp.copy, state), mesh)
        state, sums = step(state, shard_batch(data, mesh), replicate(jax.random.key(0), mesh))
        assert float(sums["count"]) == ROWS
        assert float(sums["loss"]) / ROWS == pytest.approx(float(loss(params)), rel=1e-5)
        for ours, theirs in zip(
            jax.tree.leaves(state.params), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-6)
