"""Depthwise convolution with torch's symmetric padding or TensorFlow's "same".

`grouped_convolution` is the definition, and what GPUs and TPUs run. On a CPU `depthwise_conv` takes
`kernels.shifted_depthwise`, the same values 20 to 50 times faster. The choice between them is made
in this file alone; so is how many images go through a network at a time.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import lax

from moclip_jax.models.kernels import Padding, shifted_depthwise

Implementation = Literal["shifted", "convolution", "by_platform"]

_FORCED = jax.make_user_context(default_value=None)


def convolution_padding(
    shape: tuple[int, ...], size: int, stride: int, same: bool = False
) -> Padding:
    """Return the zeros around [N, H, W, C] for outputs of ceil(H / stride), ceil(W / stride).

    Args:
      shape: of what is convolved.
      size: of the kernel, k, odd.
      stride: step in both directions.
      same: TensorFlow's: as few as it takes, and where their number is odd, one more below and to
        the right. Otherwise torch's: k // 2 on all four sides.
    """

    def around(length: int) -> tuple[int, int]:
        if not same:
            return size // 2, size // 2
        total = max((length - 1) // stride * stride + size - length, 0)
        return total // 2, total - total // 2

    return around(shape[1]), around(shape[2])


def grouped_convolution(
    x: jax.Array, kernel: jax.Array, stride: int, padding: Padding
) -> jax.Array:
    """Define a depthwise convolution: one group per channel.

    Args:
      x: [N, H, W, C].
      kernel: [k, k, C], k odd.
      stride: step in both directions.
      padding: see `convolution_padding`.

    Returns:
      [N, (H - 1) // stride + 1, (W - 1) // stride + 1, C].
    """
    return lax.conv_general_dilated(
        x,
        kernel[:, :, None, :],
        window_strides=(stride, stride),
        padding=padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[3],
    )


def depthwise_implementation(name: Implementation) -> AbstractContextManager[None]:
    """Force one implementation for everything traced inside the `with` block.

    The choice is part of JAX's trace cache key, so a function already jitted is traced again.

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


def map_in_chunks(function: Callable[[jax.Array], jax.Array], x: jax.Array, most: int) -> jax.Array:
    """Apply a network to a few rows at a time where that is faster: on a single CPU device.

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


def depthwise_conv(
    x: jax.Array, kernel: jax.Array, stride: int = 1, *, same: bool = False
) -> jax.Array:
    """Convolve every channel with its own k x k kernel.

    The same numbers as `torch.nn.functional.conv2d(x, w, stride=stride, padding=k // 2,
    groups=channels)`, at odd sizes too. With `same`, those of 'SAME' in JAX and TensorFlow, which
    differ from them at stride 2.

    Args:
      x: [N, H, W, C] of a floating dtype.
      kernel: [k, k, C] with k odd, of the dtype of x.
      stride: step in both directions.
      same: see `convolution_padding`.

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
    padding = convolution_padding(x.shape, kernel.shape[0], stride, same)
    if implementation == "by_platform":
        return lax.platform_dependent(
            x,
            kernel,
            cpu=partial(shifted_depthwise, stride=stride, padding=padding),
            default=partial(grouped_convolution, stride=stride, padding=padding),
        )
    if implementation == "shifted":
        return shifted_depthwise(x, kernel, stride, padding)
    return grouped_convolution(x, kernel, stride, padding)
