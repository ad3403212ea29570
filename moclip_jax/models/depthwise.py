"""Depthwise convolution with torch's symmetric padding, spelled as the backend likes it.

XLA's grouped convolution is right on GPU and TPU but 20 to 50 times slower on CPU than a sum of k *
k shifted slices, and the derivative XLA would take of that sum is slow again. The choice, and the
hand-written derivative, live here and nowhere else; so does how many rows a network works on at a
time.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

Implementation = Literal["shifted", "convolution", "by_platform"]

_FORCED = jax.make_user_context(default_value=None)


def depthwise_implementation(name: Implementation) -> AbstractContextManager[None]:
    """Forces one implementation for everything traced inside the `with` block.

    The choice is part of JAX's trace cache key, so a function already jitted is traced anew.

    Args:
        name: 'shifted' (sum of shifted slices), 'convolution' (`lax.conv_general_dilated`), or
            'by_platform' (both, and the choice is made where the program runs: for programs that
            are exported for several platforms).

    Raises:
        ValueError: the name is none of these.
    """
    if name not in get_args(Implementation):
        raise ValueError(
            f"depthwise implementation {name!r}: use one of {', '.join(get_args(Implementation))}"
        )
    return _FORCED(name)


def in_blocks(function: Callable[[jax.Array], jax.Array], x: jax.Array, most: int) -> jax.Array:
    """Applies a network to a few rows at a time where that is faster: on a single CPU device.

    There the maps of a few rows stay in cache, where those of all are written and read again by
    every layer. Elsewhere all rows go at once: accelerators want large products, and rows that are
    split over several devices do not divide into blocks of neighbours.

    Args:
        function: works on every row alone, `[n, ...] -> [n, ...]` for any n.
        x: [N, ...].
        most: rows of a block, at most.

    Returns:
        [N, ...], the same numbers as `function(x)` but for rounding.
    """
    name = _FORCED.value
    if name is None and jax.default_backend() == "cpu" and jax.device_count() == 1:
        name = "shifted"
    rows = x.shape[0]
    if name != "shifted" or rows <= most:
        return function(x)
    size = max(n for n in range(1, most + 1) if rows % n == 0)
    if 2 * size <= most:
        # Blocks as small as that would take longer than what is left over does by itself.
        size = most
    whole = rows // size * size
    blocks = lax.map(function, x[:whole].reshape(-1, size, *x.shape[1:]))
    done = blocks.reshape(whole, *blocks.shape[2:])
    return done if whole == rows else jnp.concatenate([done, function(x[whole:])])


def depthwise_conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
    """Convolves every channel with its own k x k kernel, zero padding of k // 2 on all four sides.

    The same numbers as `torch.nn.functional.conv2d(x, w, stride=stride, padding=k // 2,
    groups=channels)`, at odd sizes too; JAX's own 'SAME' padding differs from it at stride 2.

    Args:
        x: [N, H, W, C] of a floating dtype.
        kernel: [k, k, C] with k odd, of the dtype of x.
        stride: step in both directions.

    Returns:
        [N, (H - 1) // stride + 1, (W - 1) // stride + 1, C], dtype of x.

    Raises:
        ValueError: the ranks, the channels or the dtypes do not fit, or k is even.
    """
    if x.ndim != 4 or kernel.ndim != 3 or kernel.shape[2] != x.shape[3]:
        raise ValueError(
            "depthwise_conv needs x [N, H, W, C] and kernel [k, k, C]; "
            f"got {x.shape} and {kernel.shape}"
        )
    if kernel.shape[0] != kernel.shape[1] or kernel.shape[0] % 2 == 0:
        raise ValueError(f"depthwise_conv needs a square kernel of odd size; got {kernel.shape}")
    if x.dtype != kernel.dtype:
        raise ValueError(f"depthwise_conv needs one dtype; got x {x.dtype}, kernel {kernel.dtype}")
    implementation = _FORCED.value or (
        "shifted" if jax.default_backend() == "cpu" else "convolution"
    )
    if implementation == "by_platform":
        return lax.platform_dependent(
            x,
            kernel,
            cpu=partial(_shifted, stride=stride),
            default=partial(_convolution, stride=stride),
        )
    if implementation == "shifted":
        return _shifted(x, kernel, stride)
    return _convolution(x, kernel, stride)


def _convolution(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    padding = kernel.shape[0] // 2
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        window_strides=(stride, stride),
        padding=((padding, padding), (padding, padding)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _shifted(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return _shifted_sum(_padded(x, kernel), kernel, x.shape, stride)


def _padded(x: jax.Array, kernel: jax.Array) -> jax.Array:
    # Without the barrier XLA takes the middle slice from x itself, so that whatever x is made of
    # (a normalisation, an activation) is written twice and read three times.
    return lax.optimization_barrier(_pad(x, kernel.shape[0] // 2))


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
    x: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    # The padded form is kept for the gradient, and x is not: else both would be written.
    padded = _padded(x, kernel)
    return _shifted_sum(padded, kernel, x.shape, stride), (padded, kernel)


def _shifted_backward(
    stride: int, kept: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    padded, kernel = kept
    size = kernel.shape[0]
    height, width = (length - 2 * (size // 2) for length in padded.shape[1:3])
    return (
        _input_gradient(gradient, kernel, stride, height, width),
        _kernel_gradient(padded, gradient, size, stride).astype(kernel.dtype),
    )


_shifted.defvjp(_shifted_forward, _shifted_backward)


def _input_gradient(
    gradient: jax.Array, kernel: jax.Array, stride: int, height: int, width: int
) -> jax.Array:
    """Gradient by x: one shifted sum per phase of the stride, so that no zero is ever multiplied.

    A pixel v = stride * m + phase was read by the taps i with v + k // 2 - i divisible by the
    stride, in the output m + (phase + k // 2 - i) // stride.
    """
    size, padding = kernel.shape[0], kernel.shape[0] // 2
    taps = [
        [
            (i, (phase + padding - i) // stride)
            for i in range(size)
            if (phase + padding - i) % stride == 0
        ]
        for phase in range(stride)
    ]
    rows, columns = -(-height // stride), -(-width // stride)
    reach = max(abs(offset) for phase in taps for _, offset in phase)
    padded = _pad(gradient, reach)

    def phase_gradient(vertical: int, horizontal: int) -> jax.Array:
        total = jnp.zeros((gradient.shape[0], rows, columns, gradient.shape[3]), gradient.dtype)
        for i, down in taps[vertical]:
            for j, right in taps[horizontal]:
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


def _pad(x: jax.Array, amount: int) -> jax.Array:
    """Zeros on all four sides of [N, H, W, C]."""
    return jnp.pad(x, ((0, 0), (amount, amount), (amount, amount), (0, 0)))


def _window(x: jax.Array, top: int, left: int, height: int, width: int, stride: int) -> jax.Array:
    """[N, height, width, C] of every stride-th pixel from (top, left), zero where x has ended."""
    bottom, right = top + stride * (height - 1) + 1, left + stride * (width - 1) + 1
    short = (max(bottom - x.shape[1], 0), max(right - x.shape[2], 0))
    if any(short):
        x = jnp.pad(x, ((0, 0), (0, short[0]), (0, short[1]), (0, 0)))
    return x[:, top:bottom:stride, left:right:stride]
