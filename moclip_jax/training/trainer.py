"""The one training loop, for every trained stage: a jitted step on a mesh, resumable."""

import collections
import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from moclip_jax.runtime import signals
from moclip_jax.runtime.device import compiler_options
from moclip_jax.runtime.progress import Progress, say
from moclip_jax.runtime.sharding import BATCH_AXES, replicate, shard_batch
from moclip_jax.training.checkpoints import NO_SCORE, TrainingCheckpoints
from moclip_jax.training.history import MetricLog
from moclip_jax.training.pace import StepTimer
from moclip_jax.training.scan_epoch import DeviceData, make_epoch_step, place_choices

Batch = dict[str, Any]

# Longer trainings say a line every ten epochs only; history.jsonl holds every one.
_EPOCHS_TO_SAY = 30


class TrainState(NamedTuple):
    """All that changes in training; a pytree.

    Attributes:
      step: int32 scalar, updates done so far.
      params: the trainable parameters, an nnx.State.
      stats: the model's other variables (running statistics of BatchNorm), an nnx.State.
      opt_state: the optimizer's state over `params`.
    """

    step: jax.Array
    params: nnx.State
    stats: nnx.State
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class Task:
    """What one trained stage brings to the loop.

    Attributes:
      name: the stage's name, for logs.
      model: the network with the weights that training starts from; all its nnx.Param leaves
        are trained.
      logits: `(model, batch, train, key) -> float32 [B, classes]`; updates running statistics
        where `train` is true. In training it sees one device's rows: modules with an attribute
        `batch_axes` are told the mesh axes over which the batch is split; `key` is the same on all.
      optimizer: from the parameters to an optax transformation.
      batches: `(epoch, first_step) -> iterator` of this process's rows of each global batch, with
        an int32 `label [B]`; a pure function of its arguments.
      steps_per_epoch: batches in an epoch.
      num_epochs: epochs to train.
      validation: `() -> iterator` of padded batches with `label` and bool `mask [B]`; None trains
        to the end and keeps the last epoch.
      eval_every_epochs: epochs between two evaluations.
      checkpoint_every_steps: steps between two checkpoints inside an epoch.
      seed: of the random draws inside the network (dropout).
      about: what the stage is made from, as nested JSON values, kept in every checkpoint: `config`,
        `class_names`, `preprocessing`, `weights` (frozen or initial ones, by source and hash). A
        checkpoint that was made from anything else is refused.
      device_data: the same batches from data that stays on the devices; an epoch is then one
        compiled loop, with checkpoints at its end only. None sends each batch by itself.
      profile_steps: steps to write a trace of, to `profile/`; 0 for none.
    """

    name: str
    model: nnx.Module
    logits: Callable[[Any, Batch, bool, jax.Array | None], jax.Array]
    optimizer: Callable[[nnx.State], optax.GradientTransformation]
    batches: Callable[[int, int], Iterator[Batch]]
    steps_per_epoch: int
    num_epochs: int
    validation: Callable[[], Iterator[Batch]] | None = None
    eval_every_epochs: int = 1
    checkpoint_every_steps: int = 1000
    seed: int = 0
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    device_data: DeviceData | None = None
    profile_steps: int = 0


class TrainingDivergedError(RuntimeError):
    """The loss became NaN or infinite."""


def make_train_step(
    graphdef: nnx.GraphDef,
    logits_fn: Callable[[Any, Batch, bool, jax.Array | None], jax.Array],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Returns the jitted update `(state, batch, key) -> (state, sums)`.

    The gradient is that of the mean cross-entropy over the global batch, which is split evenly over
    all devices of the mesh. Each device takes the gradient of its own rows; then everything that
    the devices must add up (gradients, `sums`, running statistics) goes through a single all-reduce
    of one flat vector. What else crosses devices in a step is the statistics of each BatchNorm, as
    all-gathers, forwards and backwards.

    `key` is folded with the step, so a resumed run draws the same numbers. `sums` holds `loss`,
    `correct` and `count`, and `stop`: how many devices' `batch["stop"]`, if it is there, is 1.
    """
    # One device has nothing to exchange, and compiles faster without.
    axes = BATCH_AXES if mesh.size > 1 else ()

    def on_one_device(params: nnx.State, stats: nnx.State, batch: Batch, key: jax.Array):
        def loss_fn(params: nnx.State):
            model = nnx.merge(graphdef, params, stats, copy=True)
            model.set_attributes(batch_axes=axes, raise_if_not_found=False)
            logits = logits_fn(model, batch, True, key)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
            return losses.sum(), (logits, nnx.state(model, nnx.Not(nnx.Param)))

        (loss, (logits, new)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        sums = {
            "loss": loss,
            "correct": (logits.argmax(-1) == batch["label"]).sum(dtype=jnp.float32),
            "count": jnp.float32(batch["label"].size),
            "stop": batch["stop"].sum() if "stop" in batch else jnp.float32(0),
        }
        if not axes:
            return grads, sums, new
        # The same on all devices, so their mean is what each has.
        shares = jax.tree.map(lambda leaf: leaf / mesh.size, new)
        flat, unflatten = ravel_pytree((grads, sums, shares))
        return unflatten(jax.lax.psum(flat, axes))

    whole, split = PartitionSpec(), PartitionSpec(BATCH_AXES)
    # With the check, JAX would sum the gradient of each parameter by itself as soon as it is known,
    # and a model's own scans would have to name the mesh.
    on_all_devices = jax.shard_map(
        on_one_device,
        mesh=mesh,
        in_specs=(whole, whole, split, whole),
        out_specs=whole,
        check_vma=False,
    )

    def train_step(state: TrainState, batch: Batch, key: jax.Array):
        step_key = jax.random.fold_in(key, state.step)
        grads, sums, stats = on_all_devices(state.params, state.stats, batch, step_key)
        grads = jax.tree.map(lambda grad: grad / sums["count"], grads)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(state.step + 1, params, stats, opt_state), sums

    return jax.jit(
        train_step,
        donate_argnums=0,
        out_shardings=NamedSharding(mesh, whole),
        compiler_options=compiler_options(),
    )


def make_eval_step(
    graphdef: nnx.GraphDef,
    logits_fn: Callable[[Any, Batch, bool, jax.Array | None], jax.Array],
) -> Callable[[nnx.State, nnx.State, Batch], dict[str, jax.Array]]:
    """Returns the jitted `(params, stats, batch) -> sums`; rows with `mask` false do not count."""

    def eval_step(params: nnx.State, stats: nnx.State, batch: Batch):
        model = nnx.merge(graphdef, params, stats, copy=True)
        logits = logits_fn(model, batch, False, None)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        mask = batch["mask"]
        return {
            "loss": jnp.where(mask, losses, 0.0).sum(),
            "correct": (mask & (logits.argmax(-1) == batch["label"])).sum(dtype=jnp.float32),
            "count": mask.sum(dtype=jnp.float32),
        }

    return jax.jit(eval_step)


def train_and_evaluate(task: Task, directory: Path, mesh: Mesh) -> nnx.Module:
    """Trains a task to its end, going on from the newest checkpoint in `directory`.

    Args:
      task: what to train.
      directory: for checkpoints, TensorBoard events and `history.jsonl` (one line an epoch).
      mesh: the devices to train on.

    Returns:
      The model with the weights of the best evaluated epoch (without validation: the last).

    Raises:
      TrainingDivergedError: the loss is not a number; the checkpoints stay as they were.
      OSError: the disk is full or cannot be written; likewise.
      ValueError: the newest checkpoint was made from another config, other classes or weights.
      StoppedError: SIGTERM arrived; everything up to the last step is saved.
    """
    directory.mkdir(parents=True, exist_ok=True)
    graphdef, params, stats = nnx.split(task.model, nnx.Param, ...)  # type: ignore[misc]
    optimizer = task.optimizer(params)
    state = TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))
    items, advance = _stepper(task, make_train_step(graphdef, task.logits, optimizer, mesh), mesh)
    eval_step = make_eval_step(graphdef, task.logits)

    last_step = task.steps_per_epoch * task.num_epochs
    step, sums = 0, _EpochSums({})
    checkpoints = TrainingCheckpoints(directory / "checkpoints", task.about)
    try:
        newest = checkpoints.restore_newest(state)
        if newest is not None:
            step, state, saved_sums = newest
            sums = _EpochSums(saved_sums)
            say(f"{task.name}: going on from step {step} of {last_step}")
        state = replicate(state, mesh)
        history = MetricLog(directory, step)
        progress = Progress(last_step, f"{task.name}: training", "steps", done_before=step)
        pace = StepTimer(directory, task.profile_steps)
        try:
            with signals.deferred_sigterm():
                while step < last_step:
                    epoch, first = divmod(step, task.steps_per_epoch)
                    for item in pace.items(items(epoch, first)):
                        state, step_sums, count = advance(state, item)
                        pace.dispatched(step_sums["loss"], count)
                        # Two steps in flight keep a device busy; more would only hold batches in
                        # memory.
                        sums.add(step_sums, in_flight=2)
                        step += count
                        progress.advance(count)
                        stop = sums.stop_requested()
                        due = step % task.checkpoint_every_steps == 0
                        if step % task.steps_per_epoch and (due or stop):
                            _check_finite(task.name, step, sums.means())
                            # It can be gone on from but never be the best.
                            checkpoints.save(step, state, NO_SCORE, sums.totals())
                            if stop:
                                _stop(task.name, step, last_step, checkpoints)
                    if step != (epoch + 1) * task.steps_per_epoch:
                        raise RuntimeError(
                            f"{task.name}: epoch {epoch} ended at step {step}, not at "
                            f"{(epoch + 1) * task.steps_per_epoch}; the prepared data does not "
                            "hold the videos that its index lists, so prepare it again"
                        )
                    train_means = _check_finite(task.name, step, sums.means())
                    waited = pace.end_epoch(epoch, step)
                    metrics = {f"train_{name}": value for name, value in train_means.items()}
                    is_last = step == last_step
                    evaluated = (epoch + 1) % task.eval_every_epochs == 0 or is_last
                    # Without validation videos the newest epoch counts as the best.
                    score = float(step)
                    if evaluated and task.validation is not None:
                        validation = _EpochSums({})
                        for batch in task.validation():
                            rows = shard_batch(batch, mesh)
                            validation.add(eval_step(state.params, state.stats, rows), in_flight=2)
                        means = validation.means()
                        metrics |= {f"validation_{name}": value for name, value in means.items()}
                        score = means["top1"]
                    # Noted first: of a line without its checkpoint the next start makes a new one.
                    history.record(step, epoch, metrics)
                    stop = sums.stop_requested()
                    if evaluated:
                        checkpoints.save(step, state, score, {})
                    elif stop or step % task.checkpoint_every_steps == 0:
                        checkpoints.save(step, state, NO_SCORE, {})
                    sums = _EpochSums({})
                    if task.num_epochs <= _EPOCHS_TO_SAY or (epoch + 1) % 10 == 0 or is_last:
                        told = " ".join(f"{name} {value:.3f}" for name, value in metrics.items())
                        told += f", waiting for data {waited:.0%}"
                        say(f"{task.name}: epoch {epoch + 1}/{task.num_epochs}, {told}")
                    if stop and not is_last:
                        _stop(task.name, step, last_step, checkpoints)
            progress.done()
        finally:
            pace.close()
            history.close()
        best = checkpoints.restore_best(state)
    finally:
        checkpoints.close()
    if best is None:
        raise RuntimeError(f"{task.name}: no checkpoint in {directory}; delete it and start again")
    best_step, best_state, _ = best
    say(f"{task.name}: keeping the weights of step {best_step}")
    best_state = jax.tree.map(jnp.asarray, best_state)
    return nnx.merge(graphdef, best_state.params, best_state.stats)


class _EpochSums:
    """Sums over the steps of an epoch, in the order of the steps, so that they can be gone on from.

    Args:
      totals: of the epoch's steps that an earlier run did.
    """

    _NAMES = ("loss", "correct", "count")

    def __init__(self, totals: Mapping[str, float]):
        self._totals = {name: totals.get(name, 0.0) for name in self._NAMES}
        self._pending: collections.deque[dict[str, jax.Array]] = collections.deque()
        self._stops = 0.0

    def add(self, sums: dict[str, jax.Array], in_flight: int) -> None:
        """Adds a step, and waits for all but the newest `in_flight` ones."""
        self._pending.append(sums)
        self._take(in_flight)

    def _take(self, left: int) -> None:
        while len(self._pending) > left:
            sums = jax.device_get(self._pending.popleft())
            for name in self._NAMES:
                self._totals[name] += float(sums[name])
            self._stops += float(sums.get("stop", 0.0))

    def totals(self) -> dict[str, float]:
        self._take(0)
        return dict(self._totals)

    def means(self) -> dict[str, float]:
        totals = self.totals()
        return {
            "loss": totals["loss"] / totals["count"],
            "top1": totals["correct"] / totals["count"],
        }

    def stop_requested(self) -> bool:
        """Tells whether to stop, and the same on every process, as all have the same sums."""
        if jax.process_count() == 1:
            return signals.stop_requested()
        return self._stops > 0


def _stepper(
    task: Task, train_step: Callable, mesh: Mesh
) -> tuple[Callable[[int, int], Iterator[Any]], Callable[[TrainState, Any], tuple]]:
    """Returns what an epoch is made of, and what does one such item.

    The first is `(epoch, first_step) -> items`, the second `(state, item) -> (state, sums, steps)`:
    an item is a batch, or where the data stays on the devices, all choices of the epoch.
    """
    key = replicate(jax.random.key(task.seed), mesh)
    device_data = task.device_data
    if device_data is None:

        def one_step(state: TrainState, batch: Batch) -> tuple:
            return *train_step(state, shard_batch(batch | _stop_flags(mesh), mesh), key), 1

        return task.batches, one_step
    epoch_step = make_epoch_step(train_step, device_data.batch, mesh)

    def all_steps(state: TrainState, choices: dict[str, np.ndarray]) -> tuple:
        steps = len(next(iter(choices.values())))
        flags = {name: np.stack([flag] * steps) for name, flag in _stop_flags(mesh).items()}
        placed = place_choices(choices | flags, mesh)
        return *epoch_step(state, device_data.data, placed, key), steps

    return lambda epoch, first: iter([device_data.choices(epoch, first)]), all_steps


def _stop_flags(mesh: Mesh) -> Batch:
    """Rides in the all-reduce of a step, so that all processes stop after the same one."""
    if jax.process_count() == 1:
        return {}
    return {"stop": np.full(len(mesh.local_devices), signals.stop_requested(), np.float32)}


def _stop(name: str, step: int, last_step: int, checkpoints: TrainingCheckpoints) -> NoReturn:
    checkpoints.close()
    say(f"{name}: saved at step {step} of {last_step}")
    raise signals.StoppedError


def _check_finite(name: str, step: int, means: dict[str, float]) -> dict[str, float]:
    if not np.isfinite(means["loss"]):
        raise TrainingDivergedError(
            f"{name}: the loss became {means['loss']} before step {step}. Lower "
            "learning_rate in its section of the config and use another --workdir, or delete the "
            "stage's folder; earlier checkpoints are kept until then."
        )
    return means
