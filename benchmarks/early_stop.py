"""What an early stop would save: motion fields in a spread order until the label is settled.

    python -m benchmarks.early_stop --workdir=runs/demo

From the stored features of a finished run's test videos. After each further field the head sees the
mean of the fields so far; a video stops when the likeliest label has been above a threshold twice
in a row. Beside it, what as many fields for every video give (`predict.num_segments`).
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from moclip_jax.runtime.cli import CommandParser, run

THRESHOLDS = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999)


def spread_order(count: int) -> list[int]:
    """Return 0 to `count` - 1 in the order of the van der Corput sequence."""
    bits = max(1, (count - 1).bit_length())
    reversed_ = (int(f"{number:0{bits}b}"[::-1], 2) for number in range(2**bits))
    return [number for number in reversed_ if number < count]


def stops(probabilities: np.ndarray, threshold: float) -> np.ndarray:
    """Return after how many fields each video stops.

    Args:
      probabilities: `[fields, videos, classes]`, after each further field.
      threshold: of the likeliest label.
    """
    labels, sure = probabilities.argmax(axis=-1), probabilities.max(axis=-1) > threshold
    settled = sure[1:] & sure[:-1] & (labels[1:] == labels[:-1])
    return np.where(settled.any(axis=0), settled.argmax(axis=0) + 2, len(labels))


def main(argv: Sequence[str] | None = None) -> int:
    """Print a Markdown table; returns the exit status."""
    parser = CommandParser(
        "benchmarks.early_stop",
        "Measure what an early stop of the motion fields would save, and what it would cost.",
        ("--workdir=runs/demo",),
    )
    parser.add_argument(
        "--workdir", required=True, metavar="DIR", help="a finished run with a head of means"
    )
    workdir = Path(parser.parse(argv).workdir).expanduser()
    return run(lambda: measure(workdir))


def measure(workdir: Path) -> None:
    """Print the table."""
    import jax

    from moclip_jax.inference.recognizer import load
    from moclip_jax.models.moclip import fused_logits
    from moclip_jax.training.features import load_features

    files = (workdir / "features" / "test").glob("[0-9]*.npz")
    videos = sum(len(np.load(path)["label"]) for path in files)
    features = load_features(workdir / "features", "test", videos)
    head = load(workdir).model.head
    count = features.motion.shape[2]
    order = spread_order(count)
    after = np.stack(
        [
            jax.nn.softmax(
                fused_logits(head, features.motion[:, :, order[:seen]], features.appearance)
            )
            for seen in range(1, count + 1)
        ]
    )
    labels = after.argmax(axis=-1)

    def line(rule: str, seen: np.ndarray) -> str:
        chosen = labels[seen - 1, np.arange(videos)]
        right, same = (np.mean(chosen == other) for other in (features.label, labels[-1]))
        return f"| {rule} | {seen.mean() / count:.0%} | {right:.1%} | {same:.1%} |"

    print(f"{videos} test videos, {count} fields each\n")
    print("| fields | share | top-1 | the label of all fields |\n|---|---|---|---|")
    for seen in sorted({1, 2, 3, 4, 6, 8, 12, 16, 24, count}):
        if seen <= count:
            print(line(f"{seen} for every video", np.full(videos, seen)))
    for threshold in THRESHOLDS:
        print(line(f"until above {threshold:g}", stops(after, threshold)))


if __name__ == "__main__":
    raise SystemExit(main())
