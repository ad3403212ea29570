"""What a model costs: parameters and multiply-adds, counted rather than quoted."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn

from moclip_jax.models.depthwise import depthwise_implementation

# Primitives that multiply where the counter cannot look.
_OPAQUE = frozenset({"pallas_call", "ffi_call", "ragged_dot_general", "triton_kernel_call"})


def count_parameters(module: nnx.Module) -> int:
    """Number of trainable numbers (`nnx.Param`) of a module, abstract (`nnx.eval_shape`) or not."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(module, nnx.Param)))


def multiply_adds(fn: Callable[..., Any], *args: Any) -> int:
    """Multiply-adds of one call, in matrix products and convolutions, from the function's jaxpr.

    This is what papers on vision models call "FLOPs". Element-wise work is left out, zero padding
    counts as if it were data, and depthwise convolutions count as such on every backend.

    Args:
      fn: function of arrays, jitted or not; nothing is computed.
      *args: arrays or `jax.ShapeDtypeStruct`, or trees of them.

    Returns:
      The count for these very shapes: for one example give a batch of one.

    Raises:
      ValueError: the function contains a loop of unknown length, or a kernel whose work cannot be
        seen.
    """
    with depthwise_implementation("convolution"):
        return _count(jax.make_jaxpr(fn)(*args).jaxpr)


def _count(jaxpr: Jaxpr) -> int:
    return sum(_count_equation(equation) for equation in jaxpr.eqns)


def _count_equation(equation: JaxprEqn) -> int:
    name = equation.primitive.name
    if name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        left = _shape(equation.invars[0])
        return math.prod(_shape(equation.outvars[0])) * math.prod(left[a] for a in contracted)
    if name == "conv_general_dilated":
        kernel = _shape(equation.invars[1])
        output_channels = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
        return math.prod(_shape(equation.outvars[0])) * math.prod(kernel) // output_channels
    if name in _OPAQUE:
        raise ValueError(f"multiply_adds cannot look into {name}: count a plain JAX version of it")
    parts = [_count(jaxpr) for jaxpr in _sub_jaxprs(equation)]
    if name == "scan":
        return equation.params["length"] * sum(parts)
    if name == "cond":
        return max(parts)
    if name == "while" and any(parts):
        raise ValueError(
            "multiply_adds found matrix products in a while loop, whose length is unknown; "
            "use lax.scan or lax.fori_loop with fixed bounds"
        )
    return sum(parts)


def _shape(variable: Any) -> tuple[int, ...]:
    return variable.aval.shape


def _sub_jaxprs(equation: JaxprEqn) -> Iterator[Jaxpr]:
    for value in jax.tree.leaves(
        list(equation.params.values()), is_leaf=lambda v: isinstance(v, ClosedJaxpr | Jaxpr)
    ):
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
