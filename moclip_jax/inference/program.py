"""Compile the program that turns a clip's views into logits, and keep it for the next start.

Beside XLA's own cache of compiled programs there is one of ours, because tracing the networks and
preparing their arrays takes longer than reading a compiled program: a file holds the executable and
the arrays in the form for inference, so that a start needs neither Flax nor the models' code.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import pickle
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moclip_jax.runtime.compilation_cache import JAX_VARIABLE
from moclip_jax.runtime.files import atomic_write
from moclip_jax.runtime.host_memory import computes_on_cpu

if TYPE_CHECKING:
    from moclip_jax.models.moclip import MoCLIP

# Programs kept, of different exports, versions or numbers of views; some are as large as networks.
_MOST_PROGRAMS = 4
# Views that are computed together; `python -m benchmarks.exports` tells what that saves.
BATCH = 8


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled function of `motion` and `images`, with its networks' arrays on the device."""

    compiled: Any
    arrays: Sequence[Any]

    def __call__(self, motion: np.ndarray, images: np.ndarray) -> tuple[Any, ...]:
        """Return what `compile_program` describes."""
        return self.compiled(self.arrays, motion, images)


class Programs:
    """A model's compiled programs: for one view and for `BATCH`; made when first needed."""

    def __init__(
        self,
        load_model: "Callable[[], MoCLIP]",
        shapes: Mapping[str, Sequence[int]],
        path: Path | None,
    ):
        """Make programs.

        Args:
          load_model: returns the model in the form for inference.
          shapes: of `motion` and `images` of one view.
          path: file that keeps the program of one view, from `program_file`; None keeps none.
        """
        self._load_model, self._shapes, self._path = load_model, shapes, path
        self._programs: dict[int, Program] = {}

    def get(self, batch: int) -> Program:
        """Return the program of a number of views; all of them share the networks' arrays."""
        if batch not in self._programs:
            path = self._path
            if path is not None and batch > 1:
                path = path.with_name(f"{path.name}_{batch}")
            arrays = next((each.arrays for each in self._programs.values()), None)
            program = open_program(path, arrays)
            if program is None:
                shapes = {name: (batch, *shape) for name, shape in self._shapes.items()}
                program = compile_program(self._load_model(), shapes, path, arrays)
            self._programs[batch] = program
        return self._programs[batch]

    def outputs(self, views: Sequence[Mapping[str, np.ndarray]]) -> list[tuple[np.ndarray, ...]]:
        """Return what the program gives of each view, without the batch axis.

        One view is computed by itself, more are computed `BATCH` at a time, where the last batch is
        filled with views that are computed for nothing.

        Args:
          views: `motion` and `images` with a batch axis of 1.
        """
        results: list[tuple[np.ndarray, ...]] = []
        batch = BATCH if len(views) > 1 else 1
        for start in range(0, len(views), batch):
            part = views[start : start + batch]
            filled = [*part, *[part[0]] * (batch - len(part))]
            motion, images = (
                np.concatenate([view[name] for view in filled]) for name in ("motion", "images")
            )
            outputs = [np.asarray(output) for output in self.get(batch)(motion, images)]
            results += [tuple(output[n] for output in outputs) for n in range(len(part))]
        return results


def program_file(identity: Any) -> Path | None:
    """Return the file where the program of an export is kept.

    `identity` is a JSON value from which the program follows, besides the code, the versions of JAX
    and Flax, and the processor, whose kind names the folder. None without a compilation cache or
    CPU.
    """
    folder = os.environ.get(JAX_VARIABLE)
    if not folder or not computes_on_cpu():
        return None
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for name in ("jax", "jaxlib", "flax"):
        digest.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    for variable in ("JAX_PLATFORMS", "XLA_FLAGS", "JAX_ENABLE_X64"):
        digest.update(f"{variable}={os.environ.get(variable)}\n".encode())
    package = Path(__file__).parents[1]
    for path in (Path(__file__), package / "runtime/device.py", *(package / "models").glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return Path(folder) / "programs" / digest.hexdigest()


def open_program(path: Path | None, arrays: Sequence[Any] | None = None) -> Program | None:
    """Return the program that `compile_program` kept; None where there is none that can be used.

    `arrays` are those of another program of the same model, or None for those in the file.
    """
    if path is None or not path.exists():
        return None
    import jax
    from jax.experimental import serialize_executable

    try:
        with open(path, "rb") as file:
            (payload, in_tree, out_tree), kept_arrays = pickle.load(file)
        compiled = serialize_executable.deserialize_and_load(
            payload, in_tree, out_tree, execution_devices=jax.local_devices()[:1]
        )
    except Exception:
        # Damaged, or of a JAX that was built otherwise: it is compiled and written again.
        return None
    os.utime(path)
    if arrays is None:
        if kept_arrays is None:
            return None
        arrays = _on_device(kept_arrays)
    return Program(compiled, arrays)


def compile_program(
    model: "MoCLIP",
    shapes: Mapping[str, Sequence[int]],
    path: Path | None,
    shared: Sequence[Any] | None = None,
) -> Program:
    """Return a compiled function of `motion` and `images`, as `MoCLIP` takes them.

    It returns, float32, the logits `[B, classes]`, the `MoCLIP.label_features` `[B, D]` that labels
    of the user's own are compared with, and the motion features `[B, Dm]`, averaged.

    Args:
      shapes: of `motion` and `images`.
      path: where to keep the program, from `program_file`; None keeps none.
      shared: the arrays of another program of the model, which the file then does not repeat.
    """
    import jax
    import jax.numpy as jnp
    from flax import nnx
    from jax.experimental import serialize_executable

    from moclip_jax.models.moclip import fused_logits
    from moclip_jax.runtime.device import compiler_options

    graph, state = nnx.split(model)
    arrays, structure = jax.tree.flatten(state)

    def program(arrays: list[Any], motion: Any, images: Any) -> tuple[Any, ...]:
        merged = nnx.merge(graph, jax.tree.unflatten(structure, arrays))
        appearance, tokens = merged.appearance_features(images)
        motion = merged.motion_features(motion)
        logits = fused_logits(merged.head, motion, appearance, tokens)
        outputs = logits, merged.label_features(motion, appearance), motion.mean(axis=(1, 2))
        return tuple(output.astype(jnp.float32) for output in outputs)

    # XLA's CPU backend cannot serialize what itself came out of JAX's cache of compiled programs.
    # That finds programs by their names too, so a new name makes it compile.
    program.__name__ = f"program_{uuid.uuid4().hex}" if path is not None else "program"
    inputs = [jax.ShapeDtypeStruct(shapes[name], jnp.uint8) for name in ("motion", "images")]
    jitted = jax.jit(program, compiler_options=compiler_options())
    compiled = jitted.lower(arrays, *inputs).compile()
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as temporary:
            kept_arrays = None if shared is not None else [np.asarray(x) for x in arrays]
            kept = serialize_executable.serialize(compiled), kept_arrays
            temporary.write_bytes(pickle.dumps(kept, protocol=pickle.HIGHEST_PROTOCOL))
        for old in sorted(path.parent.glob("[0-9a-f]*"), key=os.path.getmtime)[:-_MOST_PROGRAMS]:
            old.unlink(missing_ok=True)
    return Program(compiled, _on_device(arrays) if shared is None else shared)


def _on_device(arrays: Sequence[Any]) -> list[Any]:
    import jax

    return jax.device_put(list(arrays), jax.local_devices()[0])
