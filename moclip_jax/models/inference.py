"""Inference graphs of frozen networks: the values of `EfficientNet` and `CLIP` up to rounding.

Training, checkpoints and sharding use the networks as `efficientnet.py` and `clip.py` define them.
For inference, BatchNorm is folded into the convolutions, and CLIP's layers get arrays and matmul
layouts of their own; the conversion happens once, before the program is compiled.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moclip_jax.models.activations import Activation, activate
from moclip_jax.models.batch_norm import BatchNorm
from moclip_jax.models.clip import VisionTower
from moclip_jax.models.efficientnet import Conv, DepthwiseConv, PointwiseConv, SqueezeExcite
from moclip_jax.models.imagenet_tower import ImageNetTower
from moclip_jax.models.moclip import MoCLIP, MotionModel
from moclip_jax.models.towers import Tower
from moclip_jax.models.transformer import Block, Encoder


class FoldedNorm(nnx.Module):
    """The bias of a BatchNorm whose scale is folded into the convolution before it."""

    def __init__(self, bias: np.ndarray):
        self.bias = nnx.Param(jax.device_put(bias))

    def __call__(
        self, x: jax.Array, *, train: bool, activation: Activation | None = None
    ) -> jax.Array:
        """[..., C] -> [..., C], as `BatchNorm` with its running statistics.

        Raises:
          ValueError: `train`, as there are no statistics to update.
        """
        if train:
            raise ValueError("an inference graph has no statistics to train with")
        # In float32, as a BatchNorm computes: the SiLU cancels where x is far below zero.
        y = x.astype(jnp.float32) + self.bias[...].reshape((1,) * (x.ndim - 1) + (-1,))
        return activate(y, activation).astype(x.dtype)


def motion_network_for_inference(
    network: MotionModel, matmul_dtype: jax.typing.DTypeLike | None = None
) -> MotionModel:
    """Fold every BatchNorm of a motion network into the convolution before it.

    `x_norm` of a module is folded into its `x` where that is a convolution of `efficientnet.py`.
    The BatchNorm of the input has no convolution before it and stays.

    Args:
      matmul_dtype: matmul dtype on a CPU; None, or another device, keeps that of the config. The
        network's `config` keeps its own.
    """
    return _with_folded_norms(network, matmul_dtype)


def _with_folded_norms(network: Any, matmul_dtype: jax.typing.DTypeLike | None) -> Any:
    frozen = _same_arrays(network)
    # A FisherNetwork has no such module.
    for _, owner in list(nnx.iter_modules(frozen)):
        if matmul_dtype is not None and jax.default_backend() == "cpu":
            _set_matmul_dtype(owner, matmul_dtype)
        for name, norm in list(vars(owner).items()):
            conv = getattr(owner, name.removesuffix("_norm"), None)
            if isinstance(norm, BatchNorm) and isinstance(conv, _CONVOLUTIONS):
                setattr(owner, name, _fold(conv, norm))
    return frozen


def _set_matmul_dtype(module: nnx.Module, matmul_dtype: jax.typing.DTypeLike) -> None:
    """Set the matmul dtype of an `EfficientNet`'s pointwise convolutions and gates."""
    if isinstance(module, PointwiseConv):
        module.dtype = matmul_dtype
    elif isinstance(module, SqueezeExcite):
        module.reduce.dtype = module.expand.dtype = matmul_dtype


# All without a bias, and with the output's channels last in their kernel.
_CONVOLUTIONS = (Conv, PointwiseConv, DepthwiseConv)


def _fold(conv: Conv | PointwiseConv | DepthwiseConv, norm: BatchNorm) -> FoldedNorm:
    """Scale the kernel in place and return the bias."""
    # In numpy, so that no shape needs a compilation.
    scale, bias, mean, var, kernel = (
        np.asarray(variable[...])
        for variable in (norm.scale, norm.bias, norm.mean, norm.var, conv.kernel)
    )
    factor = scale / np.sqrt(var + np.float32(norm.eps))
    conv.kernel[...] = jax.device_put(kernel * factor)
    return FoldedNorm(bias - mean * factor)


def moclip_for_inference(
    model: MoCLIP,
    clip_products: jax.typing.DTypeLike,
    motion_products: jax.typing.DTypeLike | None = None,
) -> MoCLIP:
    """Return the model with both networks in the forms that run fastest, without the text tower.

    Its own arrays stay as they are. The dtypes are matmul dtypes: see `image_tower_for_inference`
    and `motion_network_for_inference`.
    """
    frozen = _same_arrays(model)
    frozen.motion = motion_network_for_inference(model.motion, motion_products)
    frozen.clip = clip_for_inference(model.clip, clip_products)
    return frozen


class TransposedLinear(nnx.Module):
    """A linear layer with its kernel as [out, in].

    XLA's CPU backend multiplies by that a third faster where there are few rows, as for the 50
    tokens of one image: it rearranges every kernel at every call, and this one takes less of it.

    Attributes:
      kernel: [out, in] in the matmul dtype; sums are float32.
      bias: float32 [out], or None.
    """

    def __init__(self, linear: nnx.Linear, dtype: jax.typing.DTypeLike):
        self.kernel = nnx.Param(linear.kernel[...].T.astype(dtype))
        self.bias = None if linear.bias is None else nnx.Param(linear.bias[...])

    def __call__(self, x: jax.Array) -> jax.Array:
        """Float32 [..., in] -> float32 [..., out]."""
        kernel = self.kernel[...]
        rows = jax.lax.dot_general(
            x.reshape(-1, x.shape[-1]).astype(kernel.dtype),
            kernel,
            (((1,), (1,)), ((), ())),
            preferred_element_type=jnp.float32,
        )
        if self.bias is not None:
            rows += self.bias[...][None]
        return rows.reshape(*x.shape[:-1], -1)


class SeparateLayers(Encoder):
    """An encoder whose layers have arrays of their own, so that none is copied out of a stack."""

    def __init__(self, blocks: list[Block]):
        self.blocks = nnx.List(blocks)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, T, width] -> [N, T, width]."""
        for block in self.blocks:
            x = block(x)
        return x

    def block(self, layer: jax.Array | int) -> Block:
        """One of the blocks."""
        return self.blocks[int(layer)]

    def first_token(self, x: jax.Array) -> jax.Array:
        """[N, T, width] -> [N, width]: the first token of the output."""
        blocks = list(self.blocks)
        for block in blocks[:-1]:
            x = block(x)
        return blocks[-1].first_token(x)


def clip_for_inference(
    clip: Tower, matmul_dtype: jax.typing.DTypeLike, *, devices: int = 1
) -> Tower:
    """Return a tower for images alone; its own arrays stay as they are.

    `devices` work on a batch together; on one CPU that of a CLIP takes the form of
    `image_tower_for_inference`. An ImageNet tower is folded as a motion network is.
    """
    if isinstance(clip, ImageNetTower):
        return _with_folded_norms(clip, matmul_dtype)
    frozen = _same_arrays(clip)
    del frozen.text
    if jax.default_backend() == "cpu" and devices == 1:
        frozen.vision = image_tower_for_inference(clip.vision, matmul_dtype)
    return frozen


def image_tower_for_inference(
    tower: VisionTower, matmul_dtype: jax.typing.DTypeLike
) -> VisionTower:
    """Return an image tower in the form that is fastest on one CPU.

    Args:
      tower: its own arrays stay as they are.
      matmul_dtype: of its linear layers: float32, or bfloat16 where the
        processor has an instruction for it. Whatever it is, sums, and all that is not a
        product, are float32: XLA's CPU backend computes nothing else fast.
    """
    graph, state = nnx.split(tower)
    frozen_graphs = []

    def transform(state: nnx.State) -> nnx.State:
        frozen_graph, frozen_state = nnx.split(_separated(nnx.merge(graph, state), matmul_dtype))
        frozen_graphs.append(frozen_graph)
        return frozen_state

    # Compiled: a third of a gigabyte is moved about, which takes NumPy seconds.
    frozen_state = jax.jit(transform)(state)
    return nnx.merge(frozen_graphs[0], frozen_state)


def _separated(tower: VisionTower, matmul_dtype: jax.typing.DTypeLike) -> VisionTower:
    graph, stacked = nnx.split(tower.encoder.layers)
    blocks = [
        nnx.merge(graph, jax.tree.map(lambda leaf, layer=layer: leaf[layer], stacked))
        for layer in range(tower.config.num_layers)
    ]
    tower.encoder = SeparateLayers(blocks)
    tower.dtype = jnp.float32
    for _, module in list(nnx.iter_modules(tower)):
        if isinstance(module, nnx.LayerNorm):
            module.dtype = jnp.float32
        for name, part in list(vars(module).items()):
            if isinstance(part, nnx.Linear):
                setattr(module, name, TransposedLinear(part, matmul_dtype))
    return tower


def _same_arrays(module: Any) -> Any:
    """Return another module with the same arrays."""
    # Without `copy`, the variables would be the same too, and to set one would set the other.
    return nnx.merge(*nnx.split(module), copy=True)
