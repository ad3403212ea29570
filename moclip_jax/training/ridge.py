"""Fit heads in closed form, for small data: ridge regression on the features of both streams.

The share of each stream, and the scale of the logits, are what held-out groups of the training
split say; so a stream that does not help is left out. The result is a linear `FusionHead`.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from moclip_jax.models.fusion import FusionHead
from moclip_jax.runtime.progress import say
from moclip_jax.training.features import Features
from moclip_jax.training.fisher import fit_temperature, principal_components, solve_ridge
from moclip_jax.training.losses import is_right
from moclip_jax.training.metrics import regression_targets

# Of appearance in the squared distance between two videos; the rest is motion's.
SHARES = np.linspace(0, 1, 11)
_FOLDS = 5


def fit_ridge_head(
    head: FusionHead, train: Features, groups: Sequence[str]
) -> tuple[float, np.ndarray]:
    """Fit a linear head in place.

    Every view of a video's motion is a sample, with the appearance of the video.

    Args:
      head: its `config.normalize` holds for what it is fitted to.
      train: Features of the training videos, averaged over segments and frames: motion `[n, views,
        Dm]`, appearance `[n, Da]`.
      groups: of each of these, the person or scene that must not be on both sides.

    Returns:
      The share of appearance, 1 for a head on appearance alone; and logits float64 `[n, classes]`
      of each video by a head that was fitted without its group, averaged over the views.

    Raises:
      ValueError: All videos are of one group.
    """
    if len(set(groups)) < 2:
        raise ValueError(
            "config.fusion.fit='ridge' needs at least two groups in the training split, to hold "
            "some out; set it to 'gradient'"
        )
    videos, views = train.motion.shape[:2]
    owner = np.repeat(np.arange(videos), views)
    streams = [train.appearance[owner]]
    if head.config.motion_features:
        streams.insert(0, train.motion.reshape(videos * views, -1))
    if head.config.normalize:
        streams = [x / np.linalg.norm(x, axis=-1, keepdims=True) for x in streams]
    centers = [x.mean(axis=0) for x in streams]
    components = [principal_components(*pair) for pair in zip(streams, centers, strict=True)]
    rotated, axes = ([pair[i] for pair in components] for i in (0, 1))
    labels, num_classes = train.label[owner], head.config.num_classes
    fold = np.unique(groups, return_inverse=True)[1][owner] % _FOLDS
    targets, _ = regression_targets(labels, num_classes)

    def heldout_scores(share: float) -> np.ndarray:
        x, scores = _weighed(rotated, share), np.empty_like(targets)
        for number in np.unique(fold):
            held = fold == number
            kernel, bias = solve_ridge(x[~held], labels[~held], num_classes)
            scores[held] = x[held] @ kernel + bias
        return scores

    shares = SHARES if head.config.motion_features else (1.0,)
    scores = {share: heldout_scores(share) for share in shares}
    share = float(min(shares, key=lambda share: np.square(scores[share] - targets).mean()))
    right = is_right(scores[share], labels).mean()
    say(
        f"fusion: {f'share of appearance {share:.1f}, ' if head.config.motion_features else ''}"
        f"{100 * right:.1f} % of held-out groups are right"
    )
    scale = 1 / fit_temperature(scores[share], labels)
    kernel, bias = solve_ridge(_weighed(rotated, share), labels, num_classes)
    # Back from the components to the features.
    rows = np.split(kernel, [axes[0].shape[1]])
    kernel = np.concatenate(
        [axis @ part for axis, part in zip(_weighed_each(axes, share), rows, strict=False)]
    )
    bias = bias - np.concatenate(centers) @ kernel
    head.classifier.kernel[...] = jnp.asarray(scale * kernel, jnp.float32)
    head.classifier.bias = nnx.Param(jnp.asarray(scale * bias, jnp.float32))
    return share, (scale * scores[share]).reshape(videos, views, -1).mean(axis=1)


def _weighed_each(streams: Sequence[np.ndarray], share: float) -> list[np.ndarray]:
    """Scale motion, if any, and appearance to their shares."""
    shares = (1 - share, share)[-len(streams) :]
    return [np.sqrt(part) * x for part, x in zip(shares, streams, strict=True)]


def _weighed(streams: Sequence[np.ndarray], share: float) -> np.ndarray:
    return np.concatenate(_weighed_each(streams, share), axis=1)
