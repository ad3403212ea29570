"""What EfficientNets are made of: the variants by name, their stages and blocks."""

import math
from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp

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
# a CPU.
_MULTIPLIERS = {
    "tiny": (0.25, 0.25),
    "small": (0.5, 0.5),
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
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
    """

    width_multiplier: float = 1.0
    depth_multiplier: float = 1.0
    in_channels: int = 3
    num_classes: int = 1000
    dtype: jax.typing.DTypeLike = jnp.float32

    def __post_init__(self):
        for field in ("width_multiplier", "depth_multiplier", "in_channels", "num_classes"):
            if getattr(self, field) <= 0:
                raise ValueError(
                    f"EfficientNetConfig.{field} must be positive, got {getattr(self, field)}"
                )

    @classmethod
    def named(cls, name: str, **overrides) -> Self:
        """The configuration called b0, b1, b2, b3, small or tiny, with some fields replaced.

        Raises:
          ValueError: there is no such name.
        """
        if name not in _MULTIPLIERS:
            raise ValueError(f"no EfficientNet {name!r}; the names are {', '.join(_MULTIPLIERS)}")
        width, depth = _MULTIPLIERS[name]
        return cls(**{"width_multiplier": width, "depth_multiplier": depth} | overrides)

    @property
    def map_dtype(self) -> jnp.dtype:
        """Of the maps between the layers.

        By where it is asked: a program that is exported here for another platform has it too.
        """
        return jnp.dtype(jnp.float32 if jax.default_backend() == "cpu" else self.dtype)

    @property
    def num_features(self) -> int:
        """Length of the pooled feature vector, 1280 for b0."""
        return self._channels(_HEAD_CHANNELS)

    @property
    def stem_channels(self) -> int:
        """Output channels of the stem."""
        return self._channels(_STEM_CHANNELS)

    @property
    def stages(self) -> tuple[tuple[BlockConfig, ...], ...]:
        """The blocks of every stage, in order."""
        stages = []
        channels = self.stem_channels
        for expansion, out_channels, num_blocks, kernel_size, stride in _STAGES:
            stage = []
            for index in range(math.ceil(num_blocks * self.depth_multiplier)):
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
