"""What EfficientNets are made of: the variants by name, their stages and blocks."""

import math
from dataclasses import dataclass
from typing import Any, Self

import jax
import jax.numpy as jnp

from moclip_jax.models.activations import Activation

# Per stage of B0: expansion of the inner channels, output channels, blocks, kernel size, stride of
# the first block.
_STAGES = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)
_STEM_CHANNELS = 32
_HEAD_CHANNELS = 1280
_SQUEEZE_RATIO = 0.25

# Width and depth multipliers. 'tiny' and 'small' are ours, for motion fields of 64 to 128 pixels on
# a CPU; 'lite0' to 'lite2' are timm's `tf_efficientnet_lite0` to 2.
_MULTIPLIERS = {
    "tiny": (0.25, 0.25),
    "small": (0.5, 0.5),
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "lite0": (1.0, 1.0),
    "lite1": (1.0, 1.1),
    "lite2": (1.1, 1.2),
}
# What the Lite family differs in, for processors of phones; its weights come from TensorFlow.
LITE: dict[str, Any] = {
    "squeeze_excite": False,
    "activation": "relu6",
    "same_padding": True,
    "norm_eps": 1e-3,
    "fixed_ends": True,
}


@dataclass(frozen=True)
class BlockConfig:
    """Sizes of one block; kernel size and stride are those of its depthwise convolution."""

    in_channels: int
    inner_channels: int
    out_channels: int
    kernel_size: int
    stride: int

    @property
    def squeezed_channels(self) -> int:
        """Width of the squeeze-excitation bottleneck: a quarter of the block's input channels."""
        return round(self.in_channels * _SQUEEZE_RATIO)


@dataclass(frozen=True)
class EfficientNetConfig:
    """What an EfficientNet is made of.

    Attributes:
      width_multiplier: scales every number of channels (rounded to a multiple of 8).
      depth_multiplier: scales the number of blocks of every stage (rounded up).
      in_channels: 3 for images, 2 for motion fields.
      num_classes: outputs of the classifier.
      dtype: of the computation; parameters and statistics are always float32. On a CPU bfloat16
        is for the products of the 1 x 1 convolutions alone, nearly all of the work: the rest
        would be converted to float32 and back, operation by operation.
      squeeze_excite: whether blocks have squeeze-excitation.
      activation: after every normalisation but that of a block's projection.
      same_padding: TensorFlow's padding, uneven at stride 2, instead of torch's.
      norm_eps: eps of every BatchNorm.
      fixed_ends: stem and head keep their width, the first and last stage their depth, whatever
        the multipliers.
    """

    width_multiplier: float = 1.0
    depth_multiplier: float = 1.0
    in_channels: int = 3
    num_classes: int = 1000
    dtype: jax.typing.DTypeLike = jnp.float32
    squeeze_excite: bool = True
    activation: Activation = "silu"
    same_padding: bool = False
    norm_eps: float = 1e-5
    fixed_ends: bool = False

    def __post_init__(self):
        for field in ("width_multiplier", "depth_multiplier", "in_channels", "num_classes"):
            if getattr(self, field) <= 0:
                raise ValueError(
                    f"EfficientNetConfig.{field} must be positive, got {getattr(self, field)}"
                )

    @classmethod
    def named(cls, name: str, **overrides) -> Self:
        """The configuration of a name: b0 to b3, lite0 to lite2, small, tiny.

        Args:
          name: of the variant.
          **overrides: fields that replace its own.

        Raises:
          ValueError: there is no such name.
        """
        if name not in _MULTIPLIERS:
            raise ValueError(f"no EfficientNet {name!r}; the names are {', '.join(_MULTIPLIERS)}")
        width, depth = _MULTIPLIERS[name]
        family = LITE if name.startswith("lite") else {}
        return cls(**{"width_multiplier": width, "depth_multiplier": depth} | family | overrides)

    @property
    def map_dtype(self) -> jnp.dtype:
        """Of the maps between the layers.

        By where it is asked: a program that is exported here for another platform has it too.
        """
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else self.dtype)

    @property
    def num_features(self) -> int:
        """Length of the pooled feature vector, 1280 for b0."""
        return _HEAD_CHANNELS if self.fixed_ends else self._channels(_HEAD_CHANNELS)

    @property
    def stem_channels(self) -> int:
        """Output channels of the stem."""
        return _STEM_CHANNELS if self.fixed_ends else self._channels(_STEM_CHANNELS)

    @property
    def stages(self) -> tuple[tuple[BlockConfig, ...], ...]:
        """The blocks of every stage, in order."""
        stages: list[tuple[BlockConfig, ...]] = []
        channels = self.stem_channels
        for expansion, out_channels, num_blocks, kernel_size, stride in _STAGES:
            stage = []
            fixed = self.fixed_ends and len(stages) in (0, len(_STAGES) - 1)
            depth = num_blocks if fixed else math.ceil(num_blocks * self.depth_multiplier)
            for index in range(depth):
                block = BlockConfig(
                    channels,
                    _round_channels(channels * expansion),
                    self._channels(out_channels),
                    kernel_size,
                    stride if index == 0 else 1,
                )
                stage.append(block)
                channels = block.out_channels
            stages.append(tuple(stage))
        return tuple(stages)

    def _channels(self, channels: int) -> int:
        return _round_channels(channels * self.width_multiplier)


def _round_channels(channels: float, divisor: int = 8) -> int:
    """The nearest multiple of the divisor, or one higher if that loses more than a tenth."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded
