"""Choose the probability below which a video is rejected as none of the trained classes.

The largest probability tells known from unknown classes: Hendrycks and Gimpel, "A Baseline for
Detecting Misclassified and Out-of-Distribution Examples in Neural Networks" (ICLR 2017, arXiv
1610.02136). Unknown classes are not at hand in training, so the threshold is the one that keeps a
share of videos of the known classes, which the head was not fitted to.
"""

import functools
import json
from pathlib import Path

import numpy as np
from scipy.special import softmax

from moclip_jax.runtime import distributed
from moclip_jax.runtime.files import write_json

_FILE = "rejection.json"
# Of the held-out videos.
KEPT = 0.95


def rejection_threshold(logits: np.ndarray) -> float:
    """Return the probability, 0 to 1, that `KEPT` of the videos reach in their likeliest class.

    Args:
      logits: float `[n, classes]` of held-out videos.
    """
    return float(np.quantile(softmax(np.float64(logits), axis=1).max(1), 1 - KEPT, method="lower"))


def read_rejection(directory: Path) -> float:
    """Return the threshold that `write_rejection` wrote; 0 where there is none."""
    path = directory / _FILE
    return json.loads(path.read_text())["reject_below"] if path.exists() else 0.0


def write_rejection(directory: Path, logits: np.ndarray) -> None:
    """Write the threshold of held-out logits `[n, classes]`; nothing where there are none."""
    if len(logits):
        chosen = {"reject_below": rejection_threshold(logits), "videos": len(logits), "kept": KEPT}
        distributed.run_on_main(functools.partial(write_json, directory / _FILE, chosen))
