"""Camera motion: a robust affine fit to motion vectors.

Most of a picture is background, so the camera is what most vectors agree on. As in Dufaux and
Konrad, "Efficient, robust, and fast global motion estimation for video coding" (IEEE Trans. Image
Processing, 2000), a least-squares fit is repeated without the vectors that it explains worst. It
starts at their median or, where that explains few, at the least median of squares (Rousseeuw,
"Least Median of Squares Regression", 1984).
"""

import numpy as np

_ROUNDS = 4
# Vectors are whole pixels: an error of one is no sign of a motion of its own.
_LEAST_LIMIT = 1.0
# Residuals of a normal distribution beyond this many times their median are rare (2.5 sigma).
_MEDIANS = 3.7
# With fewer vectors, or all in a row, zoom and turn are not determined: the median alone counts.
_LEAST_VECTORS = 12
_LEAST_DETERMINANT = 1e-4
# Of vectors that agree with the median, this share makes it a good start.
_MANY = 0.7
# Of 40 triples one lies on the background almost surely (1 - 1e-4) if 60% of all vectors do.
_TRIPLES = 40
# More vectors do not make the fit better, only slower.
_MOST_VECTORS = 1000


def fit_camera(positions: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """Return the affine motion that most vectors agree on.

    Args:
      positions: float `[n, 2]`, (x, y).
      vectors: float `[n, 2]`, (x, y).

    Returns:
      float64 `[2, 3]`; the motion at (x, y) is its product with (x, y, 1). Zero without vectors.
    """
    affine = np.zeros((2, 3))
    if not len(vectors):
        return affine
    step = -(-len(vectors) // _MOST_VECTORS)
    # Rows of x and y, which NumPy adds up faster than pairs.
    moved, places = vectors[::step].T.copy(), positions[::step].T
    affine[:, 2] = np.median(moved, axis=1)
    if moved.shape[1] < _LEAST_VECTORS or not (moved != moved[:, :1]).any():
        return affine
    # Centred and scaled, so that the three unknowns of a row weigh alike.
    centre = places.mean(axis=1)
    spread = max(float(places.std()), 1.0)
    design = np.ones((3, moved.shape[1]))
    design[:2] = (places - centre[:, None]) / spread
    fitted = _start(design, moved, affine)
    for _ in range(_ROUNDS):
        error = np.abs(moved - fitted @ design)
        error = np.maximum(error[0], error[1])
        near = error <= max(_MEDIANS * float(np.median(error)), _LEAST_LIMIT)
        chosen = design[:, near]
        products = chosen @ chosen.T
        # The product of the eigenvalues, which are about the number of vectors each.
        if np.linalg.det(products / chosen.shape[1]) < _LEAST_DETERMINANT:
            return affine
        fitted = np.linalg.solve(products, chosen @ moved[:, near].T).T
    linear = fitted[:, :2] / spread
    return np.column_stack([linear, fitted[:, 2] - linear @ centre])


def _start(design: np.ndarray, moved: np.ndarray, median: np.ndarray) -> np.ndarray:
    """Return `median`, or the affine motion through three vectors that fits most others best."""
    if (np.abs(moved - median @ design).max(axis=0) <= _LEAST_LIMIT).mean() > _MANY:
        return median
    rng = np.random.default_rng(0)
    triples = rng.integers(moved.shape[1], size=(_TRIPLES, 3))
    places = design.T[triples]
    spans = np.abs(np.linalg.det(places)) > _LEAST_DETERMINANT
    if not spans.any():
        return median
    through = np.linalg.solve(places[spans], moved.T[triples][spans]).transpose(0, 2, 1)
    errors = np.abs(moved[:, ::3] - through @ design[:, ::3]).max(axis=1)
    return through[np.median(errors, axis=1).argmin()]


def camera_motion(motion: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """Estimate the camera's motion from a motion map.

    Args:
      motion: `[2, H, W]`, (x, y) in pixels, such as `Frame.raw` or `Frame.accumulated`.
      where: bool `[H, W]`, pixels whose motion is known; None for all.

    Returns:
      float64 `[2, 3]`, affine: a point of the background at (x, y) moves by the product with
      (x, y, 1).
    """
    # One of each 8x8 block is enough, as vectors are the same in all of a block.
    sampled = motion[:, 4::8, 4::8].reshape(2, -1).T.astype(np.float64)
    y, x = np.mgrid[4 : motion.shape[1] : 8, 4 : motion.shape[2] : 8].reshape(2, -1)
    positions = np.column_stack([x, y]).astype(np.float64)
    if where is not None:
        known = where[4::8, 4::8].reshape(-1)
        sampled, positions = sampled[known], positions[known]
    return fit_camera(positions, sampled)


def remove_camera(motion: np.ndarray, camera: np.ndarray | None = None) -> np.ndarray:
    """Subtract the camera's motion from a motion map.

    Args:
      motion: `[2, H, W]`, (x, y) in pixels.
      camera: float `[2, 3]` from `camera_motion`; None estimates it from `motion`.

    Returns:
      float32 `[2, H, W]`, what moves by itself.
    """
    from moclip_jax.codec.frame import aligned_empty

    a = (camera_motion(motion) if camera is None else camera).astype(np.float32)
    _, height, width = motion.shape
    x, y = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)
    result = aligned_empty(motion.shape, np.float32)
    for row in range(2):
        result[row] = motion[row]
        result[row] -= (a[row, 0] * x)[None] + (a[row, 1] * y + a[row, 2])[:, None]
    return result
