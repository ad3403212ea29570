"""How a comparison is timed and told: both sides in turns, medians, spread."""

import dataclasses
import importlib.metadata
import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Seconds = Callable[[], float]

PACKAGES = ("jax", "jaxlib", "flax", "av", "tensorflow-cpu", "numpy")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One row: our seconds beside those of what a user would assemble otherwise.

    Attributes:
      name: what is done.
      against: the other side.
      units: pieces of work in one pass (images, frames, steps); times are told for one.
      unit: what a piece is called.
      ours: seconds of each timed pass.
      other: the same; empty where there is nothing to compare with.
      goal: the most that ours may take of the other's time; None where no goal was set.
      work: floating-point operations of one unit (two for each multiply-add); 0 where not counted.
      notes: what else was measured (seconds of stages, compile time), by name.
    """

    name: str
    against: str
    units: int
    unit: str
    ours: tuple[float, ...]
    other: tuple[float, ...] = ()
    goal: float | None = None
    work: float = 0.0
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Median of ours through median of the other; below 1: ours is faster."""
        return float(np.median(self.ours) / np.median(self.other)) if self.other else None

    @property
    def spread(self) -> tuple[float, float] | None:
        """First and third quartile of the ratio of the passes that stood side by side."""
        if not self.other:
            return None
        low, high = np.quantile(np.divide(self.ours, self.other), (0.25, 0.75))
        return float(low), float(high)

    def to_json(self) -> dict[str, Any]:
        """Return everything, with the medians and the ratio."""
        return dataclasses.asdict(self) | {
            "ours_median": float(np.median(self.ours)),
            "other_median": float(np.median(self.other)) if self.other else None,
            "ratio": self.ratio,
            "ratio_quartiles": self.spread,
        }


def timed(work: Callable[[], object]) -> Seconds:
    """Return a function that says how many seconds `work` takes."""

    def seconds() -> float:
        start = time.perf_counter()
        work()
        return time.perf_counter() - start

    return seconds


def in_turns(sides: Sequence[Seconds], rounds: int, warm_up: int = 1) -> list[tuple[float, ...]]:
    """Return the seconds of every side's passes; a noisy machine disturbs all sides alike.

    Args:
      sides: each does its work once and says how long that took.
      rounds: passes of each side that count.
      warm_up: passes before those. The side that begins changes from round to round.
    """
    times: list[list[float]] = [[] for _ in sides]
    for number in range(warm_up + rounds):
        order = range(len(sides)) if number % 2 else reversed(range(len(sides)))
        for side in order:
            times[side].append(sides[side]())
    return [tuple(side[warm_up:]) for side in times]


def machine() -> dict[str, Any]:
    """Return what the timings were measured on; imports JAX, so devices are taken."""
    import jax

    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "devices": [str(device.device_kind) for device in jax.devices()],
        "backend": jax.default_backend(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "load_before": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def table(rows: Sequence[Comparison], peak: float = 0.0) -> str:
    """Return the rows as a Markdown table.

    Args:
      rows: what was measured.
      peak: operations a second of the largest matrix product in the same run, to say what share of
        it each row reaches; 0 leaves those cells empty.
    """
    lines = [
        "| work | against | ours | other | ratio (quartiles) | goal | share of sgemm |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ours, other = (
            _duration(float(np.median(side)) / row.units) if side else ""
            for side in (row.ours, row.other)
        )
        ratio, share, goal = "", "", "" if row.goal is None else f"{row.goal:.2f}"
        if row.ratio is not None and row.spread is not None:
            ratio = f"{row.ratio:.2f} ({row.spread[0]:.2f} to {row.spread[1]:.2f})"
        if row.work and peak:
            share = f"{row.work * row.units / float(np.median(row.ours)) / peak:.0%}"
        lines.append(
            f"| {row.name} | {row.against} | {ours} a {row.unit} | {other} | {ratio} | {goal} "
            f"| {share} |"
        )
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1e3 * seconds:.1f} ms" if seconds >= 1e-3 else f"{1e6 * seconds:.0f} us"
