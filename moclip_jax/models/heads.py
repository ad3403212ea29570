"""The heads by name, as `config.fusion.head` and exports have them."""

import jax
from flax import nnx

from moclip_jax.models.evl import EVLHead
from moclip_jax.models.fusion import FusionConfig, FusionHead
from moclip_jax.models.temporal import AttentionHead, TemporalHead
from moclip_jax.models.text_head import TextHead

Head = FusionHead | AttentionHead | EVLHead | TextHead
HEADS: dict[str, type[Head]] = {
    "mean": FusionHead,
    "temporal": TemporalHead,
    "attention": AttentionHead,
    "evl": EVLHead,
    "text": TextHead,
}
# Those that see features averaged over segments and frames.
AVERAGING_HEADS = ("mean", "text")


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


def apply_head(
    head: Head,
    motion: jax.Array,
    appearance: jax.Array,
    tokens: jax.Array | None = None,
    *,
    rngs: nnx.Rngs | None = None,
) -> jax.Array:
    """Give a head those of the features that it sees; returns logits float32 [B, classes].

    Args:
      head: any.
      motion: float [B, (segments,) Dm].
      appearance: float [B, (frames,) Da].
      tokens: as `EVLDecoder` takes them; the other heads need none.
      rngs: with a stream `dropout`, for training.
    """
    if isinstance(head, EVLHead):
        assert tokens is not None
        return head(motion, tokens, rngs=rngs)
    if not head.config.motion_features:
        return head(None, appearance, rngs=rngs)  # type: ignore[arg-type]
    return head(motion, appearance, rngs=rngs)
