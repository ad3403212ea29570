"""Compare the head that starts from the words with one that starts at random, with few videos.

    python -m benchmarks.text_start --workdir=DIR --shots=2,4 --num_seeds=10

For each number of shots and seed, `configs/demo_few.py` fits the motion model and computes features
once; the head `text` is trained twice on these, once from the text embeddings and once from random
unit vectors in their place. It prints top-1 of both on the test split.
"""

import argparse
import statistics
from pathlib import Path

import numpy as np

from moclip_jax.configs import demo_few
from moclip_jax.models.text_head import ClassText
from moclip_jax.training import pipeline
from moclip_jax.training.evaluate import fused_logits
from moclip_jax.training.heads import load_head, train_heads
from moclip_jax.training.metrics import topk_accuracy


def top1_of_starts(workdir: Path, data_dir: Path, shots: int, seed: int) -> dict[str, float]:
    """Return top-1 of the head from both starts, in percent."""
    config = demo_few.get_config()
    config.stages, config.seed, config.selection.shots = "prepare,motion,features", seed, shots
    config.dataset.data_dir = str(data_dir)
    run = pipeline.Pipeline(config, workdir)
    run.run()
    words = ClassText.of_clip(run.clip_and_tokenizer[0], run.text)
    noise = np.random.default_rng(seed).standard_normal(run.text.shape, np.float32)
    random = noise / np.linalg.norm(noise, axis=1, keepdims=True)
    starts = {"text": words, "random": words._replace(embeddings=random)}
    test, head_config, top1 = run.features("test"), run.head_configs["fusion"], {}
    for name, start in starts.items():
        train_heads(
            config,
            run.features("train"),
            run.features("validation"),
            {"fusion": head_config},
            run.mesh,
            workdir / name,
            class_text=start,
        )
        head = load_head(head_config, workdir / name / "fusion")
        top1[name] = 100 * topk_accuracy(fused_logits(head, test), test.label, 1)
    return top1


def main() -> None:
    """Print a line for each number of shots."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, required=True)
    parser.add_argument("--shots", default="2,4")
    parser.add_argument("--num_seeds", type=int, default=10)
    arguments = parser.parse_args()
    for shots in map(int, arguments.shots.split(",")):
        runs = [
            top1_of_starts(
                arguments.workdir / f"shots{shots}_seed{seed}",
                arguments.workdir / "data",
                shots,
                seed,
            )
            for seed in range(arguments.num_seeds)
        ]
        means = " ".join(
            f"{name} {statistics.mean(r[name] for r in runs):.1f} "
            f"+- {statistics.stdev(r[name] for r in runs):.1f},"
            for name in ("text", "random")
        )
        better = sum(run["text"] > run["random"] for run in runs)
        print(f"K={shots}: {means} text is better in {better} of {len(runs)}", flush=True)


if __name__ == "__main__":
    main()
