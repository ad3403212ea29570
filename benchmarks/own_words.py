"""What the trained head adds to `predict --classes`, on the demo's test videos.

    python -m benchmarks.own_words --workdir=runs/demo

The words are the full names of all classes of the first N shapes ("star rising", which the model
was trained on) and, for each other shape, one word for it alone ("a ring", which it was not). A
video is right if its own word is the likeliest. Zero-shot is CLIP's image alone.
"""

from pathlib import Path

import numpy as np

from moclip_jax.runtime.cli import CommandParser, run


def main(argv: list[str] | None = None) -> int:
    """Print one line a number of named shapes."""
    parser = CommandParser(
        "benchmarks.own_words",
        "Measure what the trained head adds to predict --classes, on the demo's test videos.",
        ("--workdir=runs/demo",),
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="a finished demo")
    workdir = Path(parser.parse(argv).workdir).expanduser()
    return run(lambda: _measure(workdir))


def _measure(workdir: Path) -> None:
    from moclip_jax.inference.recognizer import load
    from moclip_jax.training.evaluate import fused_logits
    from moclip_jax.training.features import load_features

    recognizer = load(workdir)
    count = sum(
        len(np.load(path)["label"]) for path in (workdir / "features" / "test").glob("*.npz")
    )
    features = load_features(workdir / "features", "test", count)
    logits = np.asarray(fused_logits(recognizer.model.head, features), np.float64)
    names = [recognizer.class_names[label] for label in features.label]
    shapes = list(dict.fromkeys(name.split()[0] for name in recognizer.class_names))
    print(f"{count} test videos\nnamed shapes  words  zero-shot  with the head")
    for named in range(len(shapes) + 1):
        full = [name for name in recognizer.class_names if name.split()[0] in shapes[:named]]
        words = full + [f"a {shape}" for shape in shapes[named:]]
        label_set = recognizer.label_set(words)
        right = {False: 0, True: 0}
        for name, scores, appearance in zip(
            names, logits, features.appearance.mean(axis=1), strict=True
        ):
            truth = name if name in full else f"a {name.split()[0]}"
            for with_head in right:
                got = label_set.probabilities(scores, appearance, use_head=with_head)
                right[with_head] += words[int(np.argmax(got))] == truth
        print(
            f"{named:12}  {len(words):5}  {100 * right[False] / count:9.1f}  "
            f"{100 * right[True] / count:13.1f}"
        )


if __name__ == "__main__":
    raise SystemExit(main())
