"""The heads by name, as `config.fusion.head` and exports have them."""

from flax import nnx

from moclip_jax.models.fusion import FusionConfig, FusionHead
from moclip_jax.models.temporal import AttentionHead, TemporalHead

Head = FusionHead | AttentionHead
HEADS: dict[str, type[Head]] = {
    "mean": FusionHead,
    "temporal": TemporalHead,
    "attention": AttentionHead,
}


def build_head(config: FusionConfig, *, rngs: nnx.Rngs) -> Head:
    """Return a head with its initial values.

    Raises:
      ValueError: There is no head of that name.
    """
    if config.head not in HEADS:
        raise ValueError(
            f"FusionConfig.head='{config.head}' is unknown; there are {', '.join(HEADS)}"
        )
    return HEADS[config.head](config, rngs=rngs)
