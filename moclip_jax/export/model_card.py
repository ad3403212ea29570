"""The model card of an export: what it recognises, how well, how it was made, and its limits.

The form is that of Mitchell et al., "Model Cards for Model Reporting" (FAT* 2019), behind the
metadata that Hugging Face's hub reads.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from ml_collections import ConfigDict

from moclip_jax.reporting.templates import render

TASK = "video-classification"
# Settings that the card lists; all of them stand in the export's metadata.json.
SETTINGS = {
    "motion": (
        "backbone", "head", "pretrained", "batch_size", "num_epochs", "num_segments",
        "learning_rate", "decay_epochs", "decay_factor", "weight_decay", "flip_probability",
    ),
    "features": ("train_views",),
    "fusion": (
        "fit", "head", "hidden", "dropout", "batch_size", "num_epochs", "learning_rate",
        "weight_decay",
    ),
}  # fmt: skip


def write_model_card(
    config: ConfigDict,
    class_names: Sequence[str],
    num_videos: Mapping[str, int],
    rows: Mapping[str, Mapping[str, Any]],
    versions: Mapping[str, str],
    path: Path,
) -> None:
    """Write the card as Markdown.

    Args:
      class_names: labels, in the order of the logits.
      num_videos: how many videos are `train`, `validation`, `test` and `rejected_test`; empty for
        weights that were trained elsewhere.
      rows: the rows of results; empty for weights that were not measured here.
      path: the file, README.md of the export.
    """
    embedded_dataset = config.dataset.name == "moving_shapes"
    embedded_clip = config.clip.source == "tiny"
    sources = [source for source in (config.clip.source, config.motion.pretrained) if source]
    # Nothing but this project's own code went into these; of others only they know the terms.
    own = embedded_dataset and embedded_clip and not config.motion.pretrained
    title = f"moclip_jax on {config.dataset.name}"
    metadata = ModelCardData(
        model_name=title,
        pipeline_tag=TASK,
        library_name="moclip_jax",
        license="apache-2.0" if own else "other",
        datasets=[config.dataset.name],
        tags=["jax", "flax", "action-recognition", "motion-vectors", "clip"],
        eval_results=[
            EvalResult(
                task_type=TASK,
                dataset_type=config.dataset.name,
                dataset_name=config.dataset.name,
                dataset_split=f"test of split {config.dataset.split}",
                metric_type="accuracy",
                metric_name=name,
                metric_value=rows["fusion"][key],
            )
            for key, name in (("top1", "top-1"), ("top5", "top-5"))
        ]
        if rows
        else None,
    )
    settings = {
        f"{section}.{name}": repr(config[section][name])
        for section, names in SETTINGS.items()
        for name in names
    }
    text = render(
        "model_card.md.jinja",
        metadata=metadata.to_yaml(),
        license=metadata.license,
        title=title,
        config=config,
        class_names=class_names,
        num_videos=num_videos,
        rows=rows,
        settings=settings | {"seed": config.seed},
        versions=versions,
        sources=sources,
        embedded_dataset=embedded_dataset,
        embedded_clip=embedded_clip,
    )
    path.write_text(text, encoding="utf-8")
