"""Sizes and inputs of evl.npz, for both sides."""

import numpy as np

LAYERS, WIDTH, GRID, HEADS, FRAMES, MOTION, HIDDEN, CLASSES = 2, 16, 3, 2, 4, 6, 12, 5
BATCH, SEGMENTS, STEPS, LEARNING_RATE = 3, 4, 20, 1e-3


def make_batches() -> list[dict[str, np.ndarray]]:
    """The batch of each training step: `motion`, `tokens` and `label`."""
    rng = np.random.default_rng(0)
    tokens = (BATCH, FRAMES, LAYERS, 3, 1 + GRID**2, WIDTH)
    return [
        {
            "motion": rng.standard_normal((BATCH, SEGMENTS, MOTION)).astype(np.float32),
            "tokens": rng.standard_normal(tokens).astype(np.float32),
            "label": rng.integers(0, CLASSES, BATCH),
        }
        for _ in range(STEPS)
    ]


def make_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Random arrays, also where training starts from zeros."""
    rng = np.random.default_rng(1)
    return {
        name: (rng.standard_normal(shape) * 0.3).astype(np.float32)
        for name, shape in shapes.items()
    }
