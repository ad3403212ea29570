"""Hand-written kernels: the values of the plain definitions, faster on a CPU.

The definitions that a reader should meet first are in `depthwise.py`, `normalize.py` and
`activations.py`; tests hold each kernel and its gradient to them.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from moclip_jax.models.activations import Activation, activation_derivative
from moclip_jax.models.normalize import (
    batch_statistics,
    centred,
    normalize,
    spread,
    values_per_channel,
)

# Zeros above and below, and left and right.
Padding = tuple[tuple[int, int], tuple[int, int]]


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def shifted_depthwise(x: jax.Array, kernel: jax.Array, stride: int, padding: Padding) -> jax.Array:
    """Convolve every channel with its own kernel as a sum of k * k shifted slices.

    Equals `depthwise.grouped_convolution`, which XLA computes 20 to 50 times slower on a CPU; the
    gradient that JAX would derive from the sum is slow too, so it is written by hand.

    Args:
      x: [N, H, W, C] of a floating dtype.
      kernel: [k, k, C], k odd, of the dtype of x.
      stride: step in both directions.
      padding: zeros above and below, and left and right.

    Returns:
      [N, (H - 1) // stride + 1, (W - 1) // stride + 1, C], dtype of x.
    """
    return _shifted_sum(_padded(x, padding), kernel, x.shape, stride)


def _padded(x: jax.Array, padding: Padding) -> jax.Array:
    # Without the barrier XLA takes the middle slice from x itself, so that whatever x is made of
    # (a normalisation, an activation) is written twice and read three times.
    return lax.optimization_barrier(jnp.pad(x, ((0, 0), *padding, (0, 0))))


def _shifted_sum(
    padded: jax.Array, kernel: jax.Array, shape: tuple[int, ...], stride: int
) -> jax.Array:
    """The convolution of x of `shape`, from its padded form."""
    size = kernel.shape[0]
    height, width = _output_size(shape[1], stride), _output_size(shape[2], stride)
    total = jnp.zeros((shape[0], height, width, shape[3]), padded.dtype)
    for i in range(size):
        for j in range(size):
            window = _window(padded, i, j, height, width, stride)
            total += window * kernel[i, j][None, None, None]
    return total


def _shifted_forward(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # The padded form is kept for the gradient, and x is not: else both would be written.
    padded = _padded(x, padding)
    return _shifted_sum(padded, kernel, x.shape, stride), (padded, kernel)


def _shifted_backward(
    stride: int, padding: Padding, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    padded, kernel = kept
    return (
        _input_gradient(gradient, kernel, stride, padding, padded.shape),
        _kernel_gradient(padded, gradient, kernel.shape[0], stride).astype(kernel.dtype),
    )


shifted_depthwise.defvjp(_shifted_forward, _shifted_backward)


def _input_gradient(
    gradient: jax.Array,
    kernel: jax.Array,
    stride: int,
    padding: Padding,
    padded_shape: tuple[int, ...],
) -> jax.Array:
    """Gradient by x: one shifted sum per phase of the stride, so that no zero is ever multiplied.

    With p zeros before the first pixel, a pixel v = stride * m + phase was read by the taps i with
    v + p - i divisible by the stride, in the output m + (phase + p - i) // stride.
    """
    vertical_taps, horizontal_taps = (
        [
            [
                (i, (phase + before - i) // stride)
                for i in range(kernel.shape[0])
                if (phase + before - i) % stride == 0
            ]
            for phase in range(stride)
        ]
        for before, _ in padding
    )
    height, width = (
        length - sum(zeros) for length, zeros in zip(padded_shape[1:3], padding, strict=True)
    )
    rows, columns = -(-height // stride), -(-width // stride)
    reach = max(abs(offset) for phase in vertical_taps + horizontal_taps for _, offset in phase)
    padded = jnp.pad(gradient, ((0, 0), (reach, reach), (reach, reach), (0, 0)))

    def phase_gradient(vertical: int, horizontal: int) -> jax.Array:
        total = jnp.zeros((gradient.shape[0], rows, columns, gradient.shape[3]), gradient.dtype)
        for i, down in vertical_taps[vertical]:
            for j, right in horizontal_taps[horizontal]:
                window = _window(padded, down + reach, right + reach, rows, columns, 1)
                total += window * kernel[i, j][None, None, None]
        return total

    if stride == 1:
        return phase_gradient(0, 0)
    interleaved = jnp.stack(
        [jnp.stack([phase_gradient(a, b) for b in range(stride)], 3) for a in range(stride)], 2
    )
    full = interleaved.reshape(
        gradient.shape[0], rows * stride, columns * stride, gradient.shape[3]
    )
    return full[:, :height, :width]


def _kernel_gradient(padded: jax.Array, gradient: jax.Array, size: int, stride: int) -> jax.Array:
    """Gradient by the kernel, float32 [k, k, C].

    A reduction over (batch, height, width) with channels last is not vectorised by XLA's CPU
    backend. A loop over the rows of all images that adds products of whole rows [W, C] is, and both
    stay in cache: two to nine times faster.
    """
    batch, height, width, channels = gradient.shape

    def add_row(row: jax.Array, totals: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        image, y = row // height, row % height
        gradients = lax.dynamic_slice(gradient, (image, y, 0, 0), (1, 1, width, channels))
        inputs = lax.dynamic_slice(
            padded, (image, y * stride, 0, 0), (1, size, padded.shape[2], channels)
        )
        return tuple(
            total
            + (
                _window(inputs, tap // size, tap % size, 1, width, stride)[0, 0] * gradients[0, 0]
            ).astype(jnp.float32)
            for tap, total in enumerate(totals)
        )

    start = tuple(jnp.zeros((width, channels), jnp.float32) for _ in range(size * size))
    totals = lax.fori_loop(0, batch * height, add_row, start)
    return jnp.sum(jnp.stack(totals), axis=1).reshape(size, size, channels)


def _output_size(size: int, stride: int) -> int:
    return (size - 1) // stride + 1


def _window(x: jax.Array, top: int, left: int, height: int, width: int, stride: int) -> jax.Array:
    """[N, height, width, C] of every stride-th pixel from (top, left), zero where x has ended."""
    bottom, right = top + stride * (height - 1) + 1, left + stride * (width - 1) + 1
    short = (max(bottom - x.shape[1], 0), max(right - x.shape[2], 0))
    if any(short):
        x = jnp.pad(x, ((0, 0), (0, short[0]), (0, short[1]), (0, 0)))
    return x[:, top:bottom:stride, left:right:stride]


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def normalize_batch(
    x: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
    eps: float,
    activation: Activation | None,
    batch_axes: tuple[str, ...],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Normalize a batch with its own statistics, and apply an activation if asked.

    The value is `normalize.normalize` with `normalize.batch_statistics`; the gradient is written
    by hand and keeps only x of all feature maps.

    Args:
      x: [..., C] of a floating dtype.
      scale: float32 [C].
      bias: float32 [C].
      eps: added to the variance.
      activation: what follows, or None.
      batch_axes: mesh axes of the batch inside `jax.shard_map`; else empty.

    Returns:
      y of the shape and dtype of x, and mean and biased variance, float32 [C], for the running
      statistics: no gradient flows through these two.
    """
    mean, var = batch_statistics(x, batch_axes)
    return normalize(x, scale, bias, mean, var, eps, activation), mean, var


def _normalize_forward(
    x: jax.Array, scale: jax.Array, bias: jax.Array, *how: Any
) -> tuple[tuple[jax.Array, jax.Array, jax.Array], tuple[jax.Array, ...]]:
    y, mean, var = normalize_batch(x, scale, bias, *how)
    return (y, mean, var), (x, scale, bias, mean, var)


def _normalize_backward(
    eps: float,
    activation: Activation | None,
    batch_axes: tuple[str, ...],
    kept: tuple[jax.Array, ...],
    cotangents: tuple[jax.Array, Any, Any],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradient by x, scale and bias (Ioffe and Szegedy 2015, arXiv 1502.03167).

    JAX's own would keep the centred values, the normalised ones and the sigmoid besides x: on a
    CPU, where reading and writing them is what takes the time, three maps too many.
    """
    # Behind the barrier, or XLA would find what the forward pass computed, and keep it after all.
    x, scale, bias, mean, var = lax.optimization_barrier(kept)
    inverse = lax.rsqrt(var + eps)
    shifted = centred(x, mean)
    by_y = cotangents[0].astype(jnp.float32)
    if activation is not None:
        by_y *= activation_derivative(
            shifted * spread(scale * inverse, x) + spread(bias, x), activation
        )
    axes = tuple(range(x.ndim - 1))
    # Of this device's rows, as the gradients of all parameters are.
    by_bias, by_scale = jnp.sum(by_y, axes), jnp.sum(by_y * shifted, axes) * inverse
    sums = jnp.stack([by_bias, by_scale])
    if batch_axes:
        sums = jnp.sum(lax.all_gather(sums, batch_axes), axis=0)
    shift, slope = sums / values_per_channel(x, batch_axes)
    by_x = spread(scale * inverse, x) * (
        by_y - spread(shift, x) - shifted * spread(inverse * slope, x)
    )
    return by_x.astype(x.dtype), by_scale, by_bias


normalize_batch.defvjp(_normalize_forward, _normalize_backward)
