"""Attention, by the implementation that the backend is best at; the choice lives here alone."""

from typing import Literal

import jax
import jax.numpy as jnp

Implementation = Literal["xla", "cudnn"]
# What cuDNN's fused kernel takes: half the width of a float32, heads of up to 128 in steps of 8.
_CUDNN_DTYPES = (jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float16))
_CUDNN_WIDEST_HEAD, _CUDNN_STEP = 128, 8


def attention_implementation(
    backend: str, dtype: jax.typing.DTypeLike, head_size: int, queries: int
) -> Implementation:
    """Return how attention is best computed for a backend, dtype, head size and number of queries.

    'cudnn', one fused kernel, on a GPU where it takes the dtype and the heads and there is more
    than one query to fuse; else 'xla', which fuses on a TPU by itself and is within 2 % of the best
    on a CPU.
    """
    fits = head_size <= _CUDNN_WIDEST_HEAD and head_size % _CUDNN_STEP == 0
    fits &= jnp.dtype(dtype) in _CUDNN_DTYPES and queries > 1
    return "cudnn" if backend == "gpu" and fits else "xla"


def attention(query: jax.Array, key: jax.Array, value: jax.Array, *, causal: bool) -> jax.Array:
    """Scaled dot-product attention (`jax.nn.dot_product_attention`).

    Query [N, T, heads, size]; key and value [N, S, heads, size]; returns the shape and dtype of
    query.
    """
    implementation = attention_implementation(
        jax.default_backend(), query.dtype, query.shape[-1], query.shape[1]
    )
    return jax.nn.dot_product_attention(
        query, key, value, is_causal=causal, implementation=implementation
    )
