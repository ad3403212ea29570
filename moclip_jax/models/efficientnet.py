"""EfficientNet (Tan and Le, 2019, arXiv 1905.11946) as timm defines it.

timm's `efficientnet_b0` and its kin differ from the original TensorFlow release: symmetric padding,
BatchNorm eps 1e-5 and torch momentum 0.1; its `tf_efficientnet_lite0` and kin have the padding and
eps of that release. Neither dropout nor stochastic depth, as timm builds it
by default.
"""

import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from moclip_jax.models.batch_norm import BatchNorm
from moclip_jax.models.depthwise import convolution_padding, depthwise_conv, map_in_chunks
from moclip_jax.models.efficientnet_config import BlockConfig, EfficientNetConfig
from moclip_jax.models.initializers import Initializer, normal, symmetric_uniform

# Stages whose maps are large, and images that go through them together in inference.
_FIRST_STAGES, _IMAGES_PER_CHUNK = 3, 5


class Conv(nnx.Module):
    """A dense convolution without bias; `kernel` is [k, k, in, out]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int,
        *,
        same_padding: bool,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        self.same_padding = same_padding
        shape = (kernel_size, kernel_size, in_channels, out_channels)
        self.kernel = nnx.Param(
            _fan_out_normal(kernel_size**2 * out_channels)(rngs.params(), shape)
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, in] -> [N, (H - 1) // stride + 1, (W - 1) // stride + 1, out]."""
        kernel = self.kernel[...].astype(x.dtype)
        return lax.conv_general_dilated(
            x,
            kernel,
            window_strides=(self.stride, self.stride),
            padding=convolution_padding(x.shape, kernel.shape[0], self.stride, self.same_padding),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )


class PointwiseConv(nnx.Module):
    """A 1 x 1 convolution without bias; `kernel` is [in, out].

    A matrix product rather than a convolution: the same to a GPU, and several times faster on CPU.
    Of two-dimensional
    arrays: with four dimensions XLA's CPU backend copies the transposed gradient, which doubles the
    backward pass.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        shape = (in_channels, out_channels)
        self.kernel = nnx.Param(_fan_out_normal(out_channels)(rngs.params(), shape))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, in] -> [N, H, W, out]."""
        rows = jnp.dot(
            x.reshape(-1, x.shape[-1]).astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            preferred_element_type=x.dtype,
        )
        return rows.reshape(*x.shape[:-1], -1)


class DepthwiseConv(nnx.Module):
    """A depthwise convolution without bias; `kernel` is [k, k, channels]."""

    def __init__(
        self,
        channels: int,
        kernel_size: int,
        stride: int,
        *,
        same_padding: bool,
        rngs: nnx.Rngs,
    ):
        self.stride = stride
        self.same_padding = same_padding
        shape = (kernel_size, kernel_size, channels)
        # One output channel per group, so the fan out is k * k.
        self.kernel = nnx.Param(_fan_out_normal(kernel_size**2)(rngs.params(), shape))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, (H - 1) // stride + 1, (W - 1) // stride + 1, C]."""
        kernel = self.kernel[...].astype(x.dtype)
        return depthwise_conv(x, kernel, self.stride, same=self.same_padding)


class SqueezeExcite(nnx.Module):
    """Scales every channel by a gate computed from the means of all channels (Hu et al., 2018)."""

    def __init__(
        self,
        channels: int,
        squeezed_channels: int,
        *,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.reduce = nnx.Linear(
            channels,
            squeezed_channels,
            kernel_init=_fan_out_normal(squeezed_channels),
            dtype=dtype,
            rngs=rngs,
        )
        self.expand = nnx.Linear(
            squeezed_channels,
            channels,
            kernel_init=_fan_out_normal(channels),
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, H, W, C]."""
        gate = nnx.sigmoid(self.expand(nnx.silu(self.reduce(_spatial_mean(x).astype(x.dtype)))))
        return x * gate[:, None, None, :].astype(x.dtype)


class Block(nnx.Module):
    """Inverted residual (MBConv): expand, depthwise, squeeze-excitation if any, project.

    A block whose inside is as wide as its input has no expansion (`expand` and `expand_norm` are
    None): timm calls it a depthwise-separable block.
    """

    def __init__(self, config: BlockConfig, network: EfficientNetConfig, *, rngs: nnx.Rngs):
        inner, dtype, eps = config.inner_channels, network.dtype, network.norm_eps
        self.activation = network.activation
        self.has_skip = config.stride == 1 and config.in_channels == config.out_channels
        expands = inner != config.in_channels
        self.expand = (
            PointwiseConv(config.in_channels, inner, dtype=dtype, rngs=rngs) if expands else None
        )
        self.expand_norm = BatchNorm(inner, eps=eps) if expands else None
        self.depthwise = DepthwiseConv(
            inner,
            config.kernel_size,
            config.stride,
            same_padding=network.same_padding,
            rngs=rngs,
        )
        self.depthwise_norm = BatchNorm(inner, eps=eps)
        self.squeeze_excite = (
            SqueezeExcite(inner, config.squeezed_channels, dtype=dtype, rngs=rngs)
            if network.squeeze_excite
            else None
        )
        self.project = PointwiseConv(inner, config.out_channels, dtype=dtype, rngs=rngs)
        self.project_norm = BatchNorm(config.out_channels, eps=eps)

    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """[N, H, W, in] -> [N, H', W', out], H' = (H - 1) // stride + 1."""
        y = x
        if self.expand is not None and self.expand_norm is not None:
            y = self.expand_norm(self.expand(y), train=train, activation=self.activation)
        y = self.depthwise_norm(self.depthwise(y), train=train, activation=self.activation)
        if self.squeeze_excite is not None:
            y = self.squeeze_excite(y)
        # The projection is linear: no activation follows its normalisation.
        y = self.project_norm(self.project(y), train=train)
        return x + y if self.has_skip else y


class EfficientNet(nnx.Module):
    """An EfficientNet image classifier.

    Attributes:
      config: its `EfficientNetConfig`.
      stem: the first convolution, and nothing else (its normalisation is `stem_norm`).
      blocks: `nnx.List` of stages, each an `nnx.List` of `Block`.
      head: the last 1 x 1 convolution, followed by `head_norm`.
      classifier: `nnx.Linear` from the pooled features to the classes.
    """

    def __init__(self, config: EfficientNetConfig, *, rngs: nnx.Rngs):
        self.config = config
        self.stem = Conv(
            config.in_channels,
            config.stem_channels,
            3,
            2,
            same_padding=config.same_padding,
            rngs=rngs,
        )
        self.stem_norm = BatchNorm(config.stem_channels, eps=config.norm_eps)
        self.blocks = nnx.List(
            nnx.List(Block(block, config, rngs=rngs) for block in stage) for stage in config.stages
        )
        last_channels = config.stages[-1][-1].out_channels
        self.head = PointwiseConv(last_channels, config.num_features, dtype=config.dtype, rngs=rngs)
        self.head_norm = BatchNorm(config.num_features, eps=config.norm_eps)
        # timm's initial values: the bound comes from the fan out, and the bias is zero.
        self.classifier = nnx.Linear(
            config.num_features,
            config.num_classes,
            kernel_init=symmetric_uniform(config.num_classes**-0.5),
            rngs=rngs,
        )

    def features(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """The pooled features, before the classifier.

        Args:
          x: [N, H, W, in_channels] of a floating dtype, already normalised.
          train: normalise with the statistics of the batch and update the running ones in place.

        Returns:
          float32 [N, num_features].

        Raises:
          ValueError: x is not a batch of images with `in_channels` channels, or is of an
            integer dtype.
        """
        if x.ndim != 4 or x.shape[3] != self.config.in_channels:
            raise ValueError(
                f"EfficientNet needs [N, H, W, {self.config.in_channels}], got {x.shape}"
            )
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"EfficientNet needs floating input, got {x.dtype}: scale it first")
        x = x.astype(self.config.map_dtype)
        if train:
            x = self._first_maps(x, train=True)
        else:
            x = map_in_chunks(self._first_maps, x, _IMAGES_PER_CHUNK)
        x = _through(self.blocks[_FIRST_STAGES:], x, train=train)
        return _spatial_mean(
            self.head_norm(self.head(x), train=train, activation=self.config.activation)
        )

    def _first_maps(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """[N, H, W, in_channels] -> [N, ceil(H / 8), ceil(W / 8), channels]."""
        x = self.stem_norm(self.stem(x), train=train, activation=self.config.activation)
        return _through(self.blocks[:_FIRST_STAGES], x, train=train)

    def __call__(self, x: jax.Array, *, train: bool = False) -> jax.Array:
        """Logits, float32 [N, num_classes]; arguments and errors as `features`."""
        return self.classifier(self.features(x, train=train))


def _through(stages: Iterable[Iterable[Block]], x: jax.Array, *, train: bool) -> jax.Array:
    for stage in stages:
        for block in stage:
            x = block(x, train=train)
    return x


def _spatial_mean(x: jax.Array) -> jax.Array:
    """Mean over height and width, in float32: [N, H, W, C] -> [N, C]."""
    return jnp.mean(x, (1, 2), dtype=jnp.float32)


def _fan_out_normal(fan_out: int) -> Initializer:
    """N(0, 2 / fan_out), timm's initial values for convolutions."""
    return normal(math.sqrt(2.0 / fan_out))
