"""Parameters and multiply-adds of each head at full size.

python -m benchmarks.head_costs
"""

import numpy as np
from flax import nnx

from moclip_jax.config import default_config, fusion_config, motion_network_config
from moclip_jax.models.clip_config import CLIPConfig
from moclip_jax.models.flops import count_parameters
from moclip_jax.models.heads import HEADS, build_head
from moclip_jax.models.motion_network import MOTION_HEADS, MotionNetwork
from moclip_jax.training.evaluate import cost_of_head, cost_of_temporal
from moclip_jax.training.features import Features

CLASSES, SEGMENTS, FRAMES = 101, 8, 8


def main() -> None:
    """Print a line for each head, of the fusion and of the motion network."""
    config = default_config()
    config.motion.num_segments, config.clip.frame = SEGMENTS, f"uniform_{FRAMES}"
    clip = CLIPConfig.named("vit_b32")
    motion = np.zeros((1, 1, SEGMENTS, 1280), np.float32)
    image, label = np.zeros((1, FRAMES, 512), np.float32), np.zeros(1, np.int32)
    tokens = np.zeros((1, FRAMES, config.fusion.token_layers, 3, 50, 768), np.float16)
    video = Features(motion, image, label, tokens)
    for name in HEADS:
        config.fusion.head = name
        head_config = fusion_config(config, motion_features=1280, clip=clip, num_classes=CLASSES)
        head = nnx.eval_shape(lambda c=head_config: build_head(c, rngs=nnx.Rngs(0)))
        _print(f"fusion.head={name}", count_parameters(head), cost_of_head(head, video))
    for name in MOTION_HEADS[1:]:
        config.motion.head = name
        network_config = motion_network_config(config.motion, CLASSES)
        network = nnx.eval_shape(lambda c=network_config: MotionNetwork(c, rngs=nnx.Rngs(0)))
        assert network.temporal is not None
        cost = cost_of_temporal(network, video)
        _print(f"motion.head={name}", count_parameters(network.temporal), cost)


def _print(name: str, parameters: int, multiply_adds: int) -> None:
    print(f"{name:<21}  {parameters:>10,} parameters  {multiply_adds:>13,} multiply-adds")


if __name__ == "__main__":
    main()
