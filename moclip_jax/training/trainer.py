"""Train a network: a jitted step on a mesh of devices, in a loop that can be resumed."""

import collections
import contextlib
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
from moclip_jax.training.losses import cross_entropy, is_right
from moclip_jax.training.metric_log import MetricLog, StepTimer
from moclip_jax.training.scan_epoch import DeviceData, make_epoch_step, place_choices

Batch = dict[str, Any]

# Longer trainings print a line every ten epochs only; history.jsonl has a line for each.
_MAX_EPOCH_LINES = 30


class TrainState(NamedTuple):
    """Everything that training changes; a pytree.

    Attributes:
      step: Number of updates done, int32 scalar.
      params: Trainable parameters, an nnx.State.
      stats: The model's other variables (running statistics of BatchNorm), an nnx.State.
      opt_state: The optimizer's state for `params`.
    """

    step: jax.Array
    params: nnx.State
    stats: nnx.State
    opt_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class Task:
    """What a stage gives to the training loop.

    Attributes:
      name: The stage's name, for logs.
      model: The network with its initial weights; all its nnx.Param leaves are trained.
      logits: `(model, batch, train, key) -> float32 [B, classes]`; updates running statistics if
        `train` is set. In training it gets the rows of one device: modules with an attribute
        `batch_axes` receive the mesh axes over which the batch is split; `key` is the same on all.
      optimizer: From the parameters to an optax transformation.
      batches: `(epoch, first_step) -> iterator` over this process's rows of each global batch, with
        a `label` as `losses` describes it; a pure function of its arguments.
      steps_per_epoch: Batches in an epoch.
      num_epochs: Epochs to train.
      validation: `() -> iterator` over padded batches with `label` and bool `mask [B]`; None trains
        to the end and keeps the last epoch.
      eval_every_epochs: Epochs between two evaluations.
      checkpoint_every_steps: Steps between two checkpoints inside an epoch.
      seed: Seed of the random draws inside the network (dropout).
      about: What the stage is made from, as nested JSON values, stored in every checkpoint:
        `config`, `class_names`, `preprocessing`, `weights` (frozen or initial ones, by source and
        hash). A checkpoint that was made from anything else is rejected.
      device_data: The same batches, taken from data that stays on the devices; an epoch is then one
        compiled loop, with checkpoints at its end only. None sends batches one by one.
      profile_steps: Number of steps to profile, to `profile/`; 0 for none.
      class_weights: float `[classes]`, factors of the training loss, see `metrics.class_weights`;
        None for none.
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
    class_weights: np.ndarray | None = None


class TrainingDivergedError(RuntimeError):
    """The loss became NaN or infinite."""


def make_train_step(
    graphdef: nnx.GraphDef,
    logits_fn: Callable[[Any, Batch, bool, jax.Array | None], jax.Array],
    optimizer: optax.GradientTransformation,
    mesh: Mesh,
    class_weights: np.ndarray | None = None,
) -> Callable[[TrainState, Batch, jax.Array], tuple[TrainState, dict[str, jax.Array]]]:
    """Return the jitted update `(state, batch, key) -> (state, sums)`.

    The loss is the mean of `losses.cross_entropy`, times the weight of the class, over the global
    batch, which is split evenly over all devices of the mesh. Each device computes the gradient of
    its own rows; gradients, `sums` and running statistics are then added up in a single all-reduce
    of one flat vector. Besides, each BatchNorm gathers its batch statistics, forward and backward.

    `key` is folded with the step, so a resumed run draws the same numbers. `sums` holds `loss`,
    `correct`, `count`, and `stop`: on how many devices `batch["stop"]`, if present, is 1.
    """
    # One device has nothing to exchange, and its program compiles faster without.
    axes = BATCH_AXES if mesh.size > 1 else ()

    def on_one_device(params: nnx.State, stats: nnx.State, batch: Batch, key: jax.Array):
        def loss_fn(params: nnx.State):
            model = nnx.merge(graphdef, params, stats, copy=True)
            model.set_attributes(batch_axes=axes, raise_if_not_found=False)
            logits = logits_fn(model, batch, True, key)
            losses = cross_entropy(logits, batch["label"])
            if class_weights is not None:
                losses *= jnp.asarray(class_weights, losses.dtype)[batch["label"]]
            return losses.sum(), (logits, nnx.state(model, nnx.Not(nnx.Param)))

        (loss, (logits, new)), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        sums = {
            "loss": loss,
            "correct": is_right(logits, batch["label"]).sum(dtype=jnp.float32),
            "count": jnp.float32(len(batch["label"])),
            "stop": batch["stop"].sum() if "stop" in batch else jnp.float32(0),
        }
        if not axes:
            return grads, sums, new
        # The statistics are equal on all devices, so the sum of these shares is their value.
        shares = jax.tree.map(lambda leaf: leaf / mesh.size, new)
        flat, unflatten = ravel_pytree((grads, sums, shares))
        return unflatten(jax.lax.psum(flat, axes))

    whole, split = PartitionSpec(), PartitionSpec(BATCH_AXES)
    # With check_vma, JAX would reduce the gradient of each parameter separately, and scans inside a
    # model would have to name the mesh.
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
    graphdef: nnx.GraphDef, logits_fn: Callable[[Any, Batch, bool, jax.Array | None], jax.Array]
) -> Callable[[nnx.State, nnx.State, Batch], dict[str, jax.Array]]:
    """Return the jitted `(params, stats, batch) -> sums`; rows with a False `mask` are ignored."""

    def eval_step(params: nnx.State, stats: nnx.State, batch: Batch):
        model = nnx.merge(graphdef, params, stats, copy=True)
        logits = logits_fn(model, batch, False, None)
        losses = cross_entropy(logits, batch["label"])
        mask = batch["mask"]
        return {
            "loss": jnp.where(mask, losses, 0.0).sum(),
            "correct": (mask & is_right(logits, batch["label"])).sum(dtype=jnp.float32),
            "count": mask.sum(dtype=jnp.float32),
        }

    return jax.jit(eval_step)


def train_and_evaluate(task: Task, directory: Path, mesh: Mesh) -> nnx.Module:
    """Train a task to its end, resuming from the newest checkpoint in `directory`.

    Args:
      directory: For checkpoints, TensorBoard events and `history.jsonl` (one line an epoch).

    Returns:
      The model with the weights of the best evaluated epoch (without validation: the last).

    Raises:
      TrainingDivergedError: The loss is not finite; earlier checkpoints are kept.
      OSError: The disk is full or cannot be written; earlier checkpoints are kept.
      ValueError: The newest checkpoint was made from another config, other classes or weights.
      StoppedError: SIGTERM arrived; everything up to the last step is saved.
    """
    directory.mkdir(parents=True, exist_ok=True)
    graphdef, params, stats = nnx.split(task.model, nnx.Param, ...)  # type: ignore[misc]
    optimizer = task.optimizer(params)
    # Jitted, because each shape of zeros would be a compilation of its own.
    state = TrainState(jnp.zeros((), jnp.int32), params, stats, jax.jit(optimizer.init)(params))
    train_step = make_train_step(graphdef, task.logits, optimizer, mesh, task.class_weights)
    epoch_items, advance = _stepper(task, train_step, mesh)
    eval_step = make_eval_step(graphdef, task.logits)
    last_step = task.steps_per_epoch * task.num_epochs

    with contextlib.closing(
        TrainingCheckpoints(directory / "checkpoints", task.about)
    ) as checkpoints:
        step, state, totals = checkpoints.restore_newest(state) or (0, state, {})
        sums = _EpochSums(totals)
        if step:
            say(f"{task.name}: resumes from step {step} of {last_step}")
        state = replicate(state, mesh)
        progress = Progress(last_step, f"{task.name}: training", "steps", done_before=step)
        with (
            contextlib.closing(MetricLog(directory, step)) as log,
            contextlib.closing(StepTimer(directory, task.profile_steps)) as timer,
            signals.deferred_sigterm(),
        ):
            while step < last_step:
                epoch, first = divmod(step, task.steps_per_epoch)
                for item in timer.items(epoch_items(epoch, first)):
                    state, step_sums, count = advance(state, item)
                    timer.dispatched(step_sums["loss"], count)
                    sums.add(step_sums)
                    step += count
                    progress.advance(count)
                    stop = sums.stop_requested()
                    due = step % task.checkpoint_every_steps == 0
                    if step % task.steps_per_epoch and (due or stop):
                        _check_finite(task.name, step, sums.means())
                        checkpoints.save(step, state, NO_SCORE, sums.totals())
                        if stop:
                            _stop(task.name, step, last_step, checkpoints)
                if step != (epoch + 1) * task.steps_per_epoch:
                    raise RuntimeError(
                        f"{task.name}: epoch {epoch} ended at step {step}, not at "
                        f"{(epoch + 1) * task.steps_per_epoch}; the prepared data does not "
                        "hold the videos that its index lists, so prepare it again"
                    )
                means = _check_finite(task.name, step, sums.means())
                waited = timer.end_epoch(epoch, step)
                metrics = {f"train_{name}": value for name, value in means.items()}
                is_last = step == last_step
                evaluated = (epoch + 1) % task.eval_every_epochs == 0 or is_last
                # Without validation videos the newest epoch counts as the best.
                score = float(step)
                if evaluated and task.validation is not None:
                    means = _evaluate(eval_step, state, task.validation(), mesh)
                    metrics |= {f"validation_{name}": value for name, value in means.items()}
                    score = means["top1"]
                # Logged first: a line without its checkpoint is dropped when the run resumes.
                log.write(step, epoch, metrics)
                stop = sums.stop_requested()
                if evaluated:
                    checkpoints.save(step, state, score, {})
                elif stop or step % task.checkpoint_every_steps == 0:
                    checkpoints.save(step, state, NO_SCORE, {})
                sums = _EpochSums({})
                if task.num_epochs <= _MAX_EPOCH_LINES or (epoch + 1) % 10 == 0 or is_last:
                    text = " ".join(f"{name} {value:.3f}" for name, value in metrics.items())
                    say(
                        f"{task.name}: epoch {epoch + 1}/{task.num_epochs}, {text}, "
                        f"waiting for data {waited:.0%}"
                    )
                if stop and not is_last:
                    _stop(task.name, step, last_step, checkpoints)
        progress.done()
        best = checkpoints.restore_best(state)
    if best is None:
        raise RuntimeError(f"{task.name}: no checkpoint in {directory}; delete it and start again")
    best_step, best_state, _ = best
    say(f"{task.name}: best weights are those of step {best_step}")
    best_state = jax.device_put(best_state)
    return nnx.merge(graphdef, best_state.params, best_state.stats)


def _evaluate(
    eval_step: Callable, state: TrainState, batches: Iterator[Batch], mesh: Mesh
) -> dict[str, float]:
    sums = _EpochSums({})
    for batch in batches:
        sums.add(eval_step(state.params, state.stats, shard_batch(batch, mesh)))
    return sums.means()


class _EpochSums:
    """Sums over the steps of an epoch, added in order, so that a resumed epoch gets the same."""

    _NAMES = ("loss", "correct", "count")
    # Two steps in flight keep a device busy; more would only hold batches in memory.
    _IN_FLIGHT = 2

    def __init__(self, totals: Mapping[str, float]):
        """Start with the totals of the steps that an earlier run did."""
        self._totals = {name: totals.get(name, 0.0) for name in self._NAMES}
        self._pending: collections.deque[dict[str, jax.Array]] = collections.deque()
        self._stops = 0.0

    def add(self, sums: dict[str, jax.Array]) -> None:
        """Add the sums of a step, and wait for all steps but the newest ones."""
        self._pending.append(sums)
        self._take(self._IN_FLIGHT)

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
        """Return whether to stop; the same on every process, as all have the same sums."""
        if jax.process_count() == 1:
            return signals.stop_requested()
        return self._stops > 0


def _stepper(
    task: Task, train_step: Callable, mesh: Mesh
) -> tuple[Callable[[int, int], Iterator[Any]], Callable[[TrainState, Any], tuple]]:
    """Return `(epoch, first_step) -> items` and `(state, item) -> (state, sums, steps)`.

    An item is a batch or, where the data stays on the devices, the choices of all its batches.
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
    """Return flags for the all-reduce of a step, so that all processes stop after the same one."""
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
