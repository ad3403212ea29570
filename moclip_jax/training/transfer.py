"""Test a trained model on another data set, whose classes it knows by their words.

RUN is the folder of a finished run with the head `text`. The videos are those of the configuration,
brought to the form that the run was trained with.
"""

import copy
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from moclip_jax.inference.class_phrases import class_phrase
from moclip_jax.runtime import cli, distributed

_RUN = flags.DEFINE_string("run", None, "folder of the finished run whose model is tested")


@dataclasses.dataclass(frozen=True)
class WordScores:
    """What a head says of the test videos of a data set, for its class names.

    Attributes:
      logits: for each `alpha`, float32 `[videos, classes]`; those of 0 are zero-shot CLIP's.
      labels: int `[videos]`.
      rejected: classes of the test videos that could not be read, int `[n]`.
      trained: how many of the classes the run was trained on; these keep what it learned of them.
    """

    logits: dict[float, np.ndarray]
    labels: np.ndarray
    rejected: np.ndarray
    trained: int


def check_head(name: str) -> None:
    """Raise ValueError if a head of that name knows no classes by their words."""
    if name != "text":
        raise ValueError(
            f"config.fusion.head='{name}' knows its trained classes alone; train with "
            "config.fusion.head=text"
        )


def word_scores(run: Path, config: ConfigDict, workdir: Path) -> WordScores:
    """Score the test videos of `config.dataset` with the model of a finished run.

    Args:
      run: Folder of the finished run.
      config: Its sections `dataset` and `zero_shot` count, all others are those of the run.
      workdir: Folder for the features, and the prepared videos unless `config.dataset.data_dir`
        names another; what is done there is not done again.

    Raises:
      ValueError: The head of the run is not `text`, or the folder holds features of another model
        or other videos.
    """
    from moclip_jax import load
    from moclip_jax.inference.zero_shot import class_embeddings, class_phrases
    from moclip_jax.models.clip import CLIP
    from moclip_jax.models.text_head import TextHead
    from moclip_jax.runtime.sharding import connect, make_mesh
    from moclip_jax.training.evaluate import fused_logits
    from moclip_jax.training.features import extract_features, load_features
    from moclip_jax.training.heads import ALPHAS
    from moclip_jax.training.prepare import open_dataset, video_splits
    from moclip_jax.training.stage_settings import dataset_settings, features_settings
    from moclip_jax.training.stages import StageRecord

    recognizer = load(run)
    model = recognizer.model
    check_head(model.head.config.head)
    assert isinstance(model.head, TextHead) and isinstance(model.clip, CLIP)
    metadata = json.loads((run.expanduser() / "export" / "metadata.json").read_text())
    settings = copy.deepcopy(config)
    for section, values in metadata["config"].items():
        if section not in ("dataset", "zero_shot"):
            settings[section] = ConfigDict(values) if isinstance(values, dict) else values
    settings.selection.update(mode="last", num_classes=0, shots=0, shot_list="")
    dataset = open_dataset(settings, workdir)
    splits = video_splits(settings, dataset) | {"train": [], "validation": []}

    depends = dataset_settings(settings) | features_settings(settings)
    made_from = {"split": settings.dataset.split, "run": metadata["parameters_sha256"]}
    record = StageRecord(workdir, "features", depends | made_from)
    if not distributed.run_on_main(record.is_done):
        mesh = make_mesh(model=settings.mesh.model)
        connect(mesh)
        distributed.run_on_main(record.begin)
        arguments = settings, dataset, splits, model.motion, model.clip, mesh
        extract_features(*arguments, workdir / "features")
        distributed.run_on_main(record.finish)
    features = load_features(
        workdir / "features", "test", len(splits["test"]), each_view=False, each_segment=False
    )
    assert recognizer.load_tokenizer is not None  # As of every run with this head.
    phrases = class_phrases(dataset.class_names, config.zero_shot.phrases)
    text = class_embeddings(
        model.clip, recognizer.load_tokenizer(), phrases, config.zero_shot.templates
    )
    known = {class_phrase(name): place for place, name in enumerate(recognizer.class_names)}
    trained = [known.get(class_phrase(name), -1) for name in dataset.class_names]
    head = model.head.for_classes(text, trained)
    return WordScores(
        {float(alpha): fused_logits(head.interpolated(alpha), features) for alpha in ALPHAS},
        features.label,
        dataset.labels(splits["rejected_test"]),
        sum(place >= 0 for place in trained),
    )


def format_transfer(rows: dict[str, dict[str, Any]]) -> str:
    """Return a Markdown table of percentages, for `{alpha: {column: value}}`."""
    columns = list(next(iter(rows.values())))
    lines = [["alpha", *columns], ["---"] * (1 + len(columns))]
    lines += [
        ["0 (zero-shot)" if float(alpha) == 0 else alpha, *(values[c] for c in columns)]
        for alpha, values in rows.items()
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(config: ConfigDict, workdir: Path) -> None:
    """Print top-1 for each alpha."""
    from moclip_jax.training.metrics import balanced_accuracy, topk_accuracy

    if not _RUN.value:
        raise ValueError("--run is missing; pass the folder of a finished run")
    scores = word_scores(Path(_RUN.value), config, workdir)
    rows = {
        f"{alpha:.1f}": {
            "top-1": f"{100 * topk_accuracy(logits, scores.labels, 1, len(scores.rejected)):.1f}",
            "balanced": f"{100 * balanced_accuracy(logits, scores.labels, scores.rejected):.1f}",
        }
        for alpha, logits in scores.logits.items()
    }
    if distributed.is_main_process():
        classes = next(iter(scores.logits.values())).shape[1]
        print(f"{scores.trained} of {classes} classes were trained under these names\n")
        print(format_transfer(rows))


if __name__ == "__main__":
    cli.start(
        main,
        (
            "--run=runs/ucf101 --config=hmdb51 \\\n"
            "      --workdir=runs/transfer --config.dataset.videos=/data/hmdb51",
        ),
    )
