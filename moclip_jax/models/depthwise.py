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

# Rows of the gradient summed in one expression: more of them compile slowly, fewer leave the cache.
_MAX_ROWS = 32
# The same for rows of several small images together, where the gain is smaller beside the compile
# time.
_MAX_ROWS_OF_IMAGES = 8

# Most rows of a block that stays in cache; the best of 1, 2, 4, 8 and 32 fields for a B0.
_BLOCK = 4

_Sums = tuple[jax.Array, ...]

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


def in_cached_blocks(function: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Applies a network to a few rows at a time where that is faster: on a single CPU device.

    The maps of four fields of a B0 stay in the last cache; those of 32 are 300 MB, which are
    written and read again by every layer. Elsewhere all rows go at once: accelerators want large
    products, and rows that are split over several devices do not divide into blocks of neighbours.

    Args:
        function: works on every row alone, `[n, ...] -> [n, D]` for any n.
        x: [N, ...].

    Returns:
        [N, D], the same numbers as `function(x)` but for rounding.
    """
    name = _FORCED.value
    if name is None and jax.default_backend() == "cpu" and jax.device_count() == 1:
        name = "shifted"
    if name != "shifted" or x.shape[0] <= _BLOCK:
        return function(x)
    size = max(n for n in range(1, _BLOCK + 1) if x.shape[0] % n == 0)
    rows = lax.map(function, x.reshape(-1, size, *x.shape[1:]))
    return rows.reshape(x.shape[0], *rows.shape[2:])


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
    size = kernel.shape[0]
    height, width = _output_size(x.shape[1], stride), _output_size(x.shape[2], stride)
    # Without the barrier XLA takes the middle slice from x itself, so that whatever x is made of
    # (a normalisation, an activation) is written twice and read three times.
    padded = lax.optimization_barrier(_pad(x, size // 2))
    total = jnp.zeros((x.shape[0], height, width, x.shape[3]), x.dtype)
    for i in range(size):
        for j in range(size):
            window = _window(padded, i, j, height, width, stride)
            total += window * kernel[i, j][None, None, None]
    return total


def _shifted_forward(
    x: jax.Array, kernel: jax.Array, stride: int
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _shifted(x, kernel, stride), (x, kernel)


def _shifted_backward(
    stride: int, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = residuals
    return (
        _input_gradient(gradient, kernel, stride, x.shape[1], x.shape[2]),
        _kernel_gradient(x, gradient, kernel.shape[0], stride).astype(kernel.dtype),
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


def _kernel_gradient(x: jax.Array, gradient: jax.Array, size: int, stride: int) -> jax.Array:
    """Gradient by the kernel, float32 [k, k, C].

    A reduction over (batch, height, width) with channels last is not vectorised by XLA's CPU
    backend. Written out as a sum of whole rows [W, C] it is, and a few images at a time stay in
    cache: three to eight times faster.
    """
    channels = x.shape[3]
    batch, height, width = gradient.shape[:3]
    num_bands = -(-height // _MAX_ROWS)
    band = -(-height // num_bands)
    images = max(n for n in range(1, max(1, _MAX_ROWS_OF_IMAGES // height) + 1) if batch % n == 0)
    missing_rows = num_bands * band - height

    def add_images(total: _Sums, images_and_gradients: tuple[jax.Array, jax.Array]):
        padded = _pad(images_and_gradients[0], size // 2, stride * missing_rows)
        gradients = _pad(images_and_gradients[1], 0, missing_rows)

        def add_band(index: jax.Array | int, total: _Sums) -> _Sums:
            span = stride * (band - 1) + size
            x_band = lax.dynamic_slice_in_dim(padded, index * band * stride, span, 1)
            gradient_band = lax.dynamic_slice_in_dim(gradients, index * band, band, 1)
            new = []
            for tap, value in enumerate(total):
                window = _window(x_band, tap // size, tap % size, band, width, stride)
                for n in range(images):
                    for y in range(band):
                        product = window[n, y] * gradient_band[n, y]
                        value += product.astype(jnp.float32)
                new.append(value)
            return tuple(new)

        if num_bands == 1:
            return add_band(0, total), None
        return lax.fori_loop(0, num_bands, add_band, total), None

    start = tuple(jnp.zeros((width, channels), jnp.float32) for _ in range(size * size))
    steps = batch // images
    total, _ = lax.scan(
        add_images,
        start,
        (
            x.reshape(steps, images, *x.shape[1:]),
            gradient.reshape(steps, images, *gradient.shape[1:]),
        ),
    )
    return jnp.sum(jnp.stack(total), axis=1).reshape(size, size, channels)


def _output_size(size: int, stride: int) -> int:
    return (size - 1) // stride + 1


def _pad(x: jax.Array, amount: int, extra_rows: int = 0) -> jax.Array:
    """Zeros on all four sides of [N, H, W, C], and some more rows at the bottom."""
    return jnp.pad(x, ((0, 0), (amount, amount + extra_rows), (amount, amount), (0, 0)))


def _window(x: jax.Array, top: int, left: int, height: int, width: int, stride: int) -> jax.Array:
    """[N, height, width, C] of every stride-th pixel from (top, left), zero where x has ended."""
    bottom, right = top + stride * (height - 1) + 1, left + stride * (width - 1) + 1
    short = (max(bottom - x.shape[1], 0), max(right - x.shape[2], 0))
    if any(short):
        x = jnp.pad(x, ((0, 0), (0, short[0]), (0, short[1]), (0, 0)))
    return x[:, top:bottom:stride, left:right:stride]
