"""Parameters and multiply-adds of the towers in docs/towers.md; nothing is computed or downloaded.

python -m benchmarks.tower_costs
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from moclip_jax.models.clip import CLIP
from moclip_jax.models.clip_config import CLIPConfig, CLIPTextConfig, CLIPVisionConfig
from moclip_jax.models.flops import count_parameters, multiply_adds

_B32, _B16, _L14, _SIGLIP = map(CLIPConfig.named, ("vit_b32", "vit_b16", "vit_l14", "siglip_b16"))


def _siglip(vocab_size: int, **vision: int) -> CLIPConfig:
    return dataclasses.replace(
        _SIGLIP,
        vision=dataclasses.replace(_SIGLIP.vision, **vision),
        text=dataclasses.replace(_SIGLIP.text, vocab_size=vocab_size),
    )


TOWERS = {
    "TinyCLIP ViT-8M/16": CLIPConfig(
        CLIPVisionConfig(224, 16, 256, 10, 4, 1024),
        CLIPTextConfig(49408, 77, 256, 3, 4, 1024, 2),
        512,
    ),
    "MetaCLIP 2 S/16": CLIPConfig(
        CLIPVisionConfig(224, 16, 384, 12, 6, 1536),
        CLIPTextConfig(901_629, 77, 384, 12, 6, 1536, 2),
        384,
    ),
    "CLIP ViT-B/32": _B32,
    "CLIP ViT-B/16": _B16,
    "CLIP ViT-L/14": _L14,
    "SigLIP B/16": _SIGLIP,
    "SigLIP 2 B/32 at 256": _siglip(256_000, image_size=256, patch_size=32),
    "SigLIP 2 B/16": _siglip(256_000),
}


def main() -> None:
    """Print a line for each architecture."""
    print(f"{'tower':<22}{'pixels':>7}{'image, M':>10}{'both, M':>9}{'features':>10}{'GMACs':>7}")
    for name, config in TOWERS.items():
        clip = nnx.eval_shape(lambda c=config: CLIP(c, rngs=nnx.Rngs(0)))
        graph, state = nnx.split(clip)
        image = jax.ShapeDtypeStruct((1, config.image_size, config.image_size, 3), jnp.float32)
        cost = multiply_adds(
            lambda s, x, graph=graph: nnx.merge(graph, s).image_features(x), state, image
        )
        parameters = (count_parameters(part) / 1e6 for part in (clip.vision, clip))
        sizes = "".join(
            f"{size:>{width}.1f}" for size, width in zip(parameters, (10, 9), strict=True)
        )
        print(f"{name:<22}{config.image_size:>7}{sizes}{config.num_features:>10}{cost / 1e9:>7.2f}")


if __name__ == "__main__":
    main()
