"""How differences are measured and reported."""

import numpy as np


def relative_error(ours, theirs, floor: float = 0.0) -> float:
    """Largest difference, relative to the largest magnitude of `theirs`, at least `floor`."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.abs(ours - theirs).max() / max(np.abs(theirs).max(), floor))


def report(what: str, **differences: float) -> None:
    """Prints differences; `make parity` shows them (docs/fidelity.md quotes them)."""
    reported = ", ".join(f"{name} {value:.1e}" for name, value in differences.items())
    print(f"\n  {what}: {reported}", end="")
