"""Checks of a configuration before any work starts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from moclip_jax.config import (
    DATASETS,
    FISHER,
    FRAMES,
    PRETRAINING_STAGES,
    SELECTION_MODES,
    STAGES,
    stages_of,
)
from moclip_jax.inference.class_phrases import PHRASES
from moclip_jax.input_pipeline.video.spec import SOURCES


def check_config(config: ConfigDict) -> None:
    """Raise ValueError that lists every setting that cannot work, with its remedy."""
    problems = list(_problems(config))
    if problems:
        raise ValueError("the configuration cannot work:\n" + "\n".join(f"  {p}" for p in problems))


_DTYPES = ("float32", "bfloat16")
_CHOICES: dict[str, tuple[Any, ...]] = {
    "dataset.name": DATASETS,
    "selection.mode": SELECTION_MODES,
    "motion.source": SOURCES,
    "motion.dtype": _DTYPES,
    "clip.dtype": (*_DTYPES, "auto"),
    "features.motion_dtype": (*_DTYPES, "auto"),
    "zero_shot.phrases": (*PHRASES, ""),
    "fusion.fit": ("gradient", "ridge"),
    "evaluation.crops": (1, 10),
    "predict.crops": (1, 10),
}
# Sections, and their fields that must be above 0.
_POSITIVE = {
    "video": "width height qscale gop_size clip_frames frame_size "
    "max_frames max_bytes max_pixels max_seconds",
    "mesh": "model",
    "motion": "image_size num_segments batch_size num_epochs learning_rate bound "
    "eval_every_epochs checkpoint_every_steps shuffle_buffer",
    "features": "train_views",
    "pretraining": "num_epochs batch_size learning_rate",
    "fusion": "token_layers batch_size num_epochs learning_rate eval_every_epochs",
    "evaluation": "num_segments",
    "predict": "num_segments",
}


def _problems(config: ConfigDict) -> Iterator[str]:
    from moclip_jax.input_pipeline.views import num_images
    from moclip_jax.models.clip_config import IMAGE_FEATURES
    from moclip_jax.models.efficientnet_config import EfficientNetConfig
    from moclip_jax.models.heads import AVERAGING_HEADS, HEADS
    from moclip_jax.models.motion_network import MOTION_HEADS
    from moclip_jax.models.temporal import ATTENTION_HEADS

    def setting(name: str) -> tuple[Any, str]:
        """Return the value of SECTION.FIELD, and both as they are written on the command line."""
        section, field = name.split(".")
        value = config[section][field]
        return value, f"config.{name}={value!r}"

    known_stages = dict.fromkeys((*STAGES, *PRETRAINING_STAGES))
    for stage in config.stages.split(","):
        if stage.strip() not in known_stages:
            yield (
                f"config.stages: unknown stage '{stage.strip()}'; there are "
                f"{', '.join(known_stages)}"
            )
    of_models = {
        "motion.head": MOTION_HEADS,
        "clip.features": IMAGE_FEATURES,
        "fusion.head": tuple(HEADS),
    }
    for name, known in (_CHOICES | of_models).items():
        value, written = setting(name)
        if value not in known:
            *others, last = (str(choice) or "empty" for choice in known)
            yield f"{written} must be {', '.join(others)} or {last}"
    for section, fields in _POSITIVE.items():
        for field in fields.split():
            value, written = setting(f"{section}.{field}")
            if value <= 0:
                yield f"{written} must be positive"

    dataset, motion, clip = config.dataset, config.motion, config.clip
    if dataset.name in ("video_folder", "hmdb51") and not dataset.videos:
        yield "config.dataset.videos is empty; set it to the folder of class folders"
    for field in ("videos", "lists"):
        path = Path(dataset[field]).expanduser()
        is_list = (dataset.name, field) == ("video_list", "lists") and path.is_file()
        if dataset[field] and not (path.is_dir() or is_list):
            yield f"config.dataset.{field}='{dataset[field]}' is not a folder"
    if dataset.name in ("ucf101", "hmdb51") and not 1 <= dataset.split <= 3:
        yield f"config.dataset.split={dataset.split}; {dataset.name} has splits 1, 2 and 3"
    if not 0 < config.selection.heldout_fraction < 1:
        yield "config.selection.heldout_fraction must lie between 0 and 1"
    for field in ("shots", "num_classes"):
        value, written = setting(f"selection.{field}")
        if value < 0:
            yield f"{written} must be 0 (all) or more"
    if config.selection.shot_list and not Path(config.selection.shot_list).expanduser().is_file():
        yield f"config.selection.shot_list='{config.selection.shot_list}' is not a file"
    if config.features.batch_size < 0:
        yield f"config.features.batch_size={config.features.batch_size} must be 0 or more"
    if config.profile_steps < 0:
        yield f"config.profile_steps={config.profile_steps} must be 0 (no trace) or more"
    if config.time_budget < 0:
        yield f"config.time_budget={config.time_budget} must be 0 (none) or more minutes"
    if motion.backbone == FISHER:
        yield from _fisher_problems(config)
    else:
        try:
            EfficientNetConfig.named(motion.backbone)
        except ValueError as error:
            yield f"config.motion.backbone: {error}, or {FISHER}"
    if motion.resize_size < motion.image_size:
        yield (
            f"config.motion.resize_size={motion.resize_size} is smaller than the crop of "
            f"config.motion.image_size={motion.image_size}"
        )
    if not motion.scales or not all(0 < scale <= 1 for scale in motion.scales):
        yield f"config.motion.scales={motion.scales} must lie in (0, 1]"
    if list(motion.decay_epochs) != sorted(set(motion.decay_epochs)):
        yield f"config.motion.decay_epochs={motion.decay_epochs} must rise"
    if motion.decay_epochs and motion.decay_epochs[-1] >= motion.num_epochs:
        yield (
            f"config.motion.decay_epochs={motion.decay_epochs} reaches past "
            f"config.motion.num_epochs={motion.num_epochs}; shorten it too"
        )
    ordered = motion.head != "mean" or config.fusion.head not in AVERAGING_HEADS
    if ordered and motion.num_segments < 2:
        yield (
            f"config.motion.num_segments={motion.num_segments} has no order; the heads other than "
            "mean and text need at least 2"
        )
    if config.fusion.head == "text":
        if clip.features != "projected":
            yield "config.fusion.head='text' reads embeddings; set config.clip.features='projected'"
        yield from _alpha_problems(config)
    if config.fusion.head == "attention":
        if config.fusion.hidden % ATTENTION_HEADS or config.fusion.hidden == 0:
            yield (
                f"config.fusion.hidden={config.fusion.hidden} must be a multiple of "
                f"{ATTENTION_HEADS} where config.fusion.head is attention"
            )
        if config.fusion.normalize:
            yield "config.fusion.normalize is of the heads mean and temporal; attention has its own"
    if config.fusion.fit == "ridge" and (config.fusion.head != "mean" or config.fusion.hidden):
        yield (
            f"config.fusion.fit='ridge' makes a linear head; config.fusion.head="
            f"'{config.fusion.head}' must be mean and config.fusion.hidden={config.fusion.hidden} 0"
        )
    if "pretrain" in stages_of(config):
        yield from _pretraining_problems(config)
    elif dataset.options.get("unlabelled"):
        yield (
            "config.dataset.options.unlabelled=True gives no classes; set "
            f"config.stages='{config.stages}' to '{','.join(PRETRAINING_STAGES)}'"
        )
    if dataset.options.get("multi_label"):
        yield from _multi_label_problems(config)
    if not 0 <= motion.flip_probability <= 1:
        yield f"config.motion.flip_probability={motion.flip_probability} is not a probability"
    if config.fusion.hidden < 0:
        yield f"config.fusion.hidden={config.fusion.hidden} must be 0 (a linear head) or more"
    if not 0 <= config.fusion.dropout < 1:
        yield f"config.fusion.dropout={config.fusion.dropout} must be at least 0 and below 1"
    if not FRAMES.fullmatch(clip.frame):
        yield f"config.clip.frame='{clip.frame}' must be middle, random or uniform_K"
    elif clip.frame == "random" and config.video.clip_frames < 2:
        yield "config.clip.frame='random' needs config.video.clip_frames of at least 2 to draw from"
    elif num_images(clip.frame) > max(1, config.video.clip_frames):
        yield (
            f"config.clip.frame='{clip.frame}' wants more frames than are kept; raise "
            f"config.video.clip_frames={config.video.clip_frames}"
        )
    if not config.zero_shot.templates:
        yield "config.zero_shot.templates is empty"
    for template in config.zero_shot.templates:
        if "{}" not in template:
            yield f"config.zero_shot.templates: '{template}' has no {{}} for the phrase"


def _alpha_problems(config: ConfigDict) -> Iterator[str]:
    alpha = config.fusion.alpha
    if alpha == "auto":
        if config.selection.mode != "heldout":
            yield (
                "config.fusion.alpha='auto' is chosen on held-out groups; set it to a number, or "
                f"config.selection.mode='{config.selection.mode}' to 'heldout'"
            )
        return
    try:
        known = 0 <= float(alpha) <= 1
    except ValueError:
        known = False
    if not known:
        yield f"config.fusion.alpha='{alpha}' must be auto or a number from 0 to 1"


def _pretraining_problems(config: ConfigDict) -> Iterator[str]:
    others = [s.strip() for s in config.stages.split(",") if s.strip() not in PRETRAINING_STAGES]
    if others:
        yield (
            f"config.stages='{config.stages}': pretrain is a run of its own; leave out "
            f"{', '.join(others)}, and name its folder in config.motion.pretrained afterwards"
        )
    if config.motion.backbone == FISHER:
        yield f"config.motion.backbone='{FISHER}' has nothing to pretrain; choose an EfficientNet"
    if config.time_budget:
        yield "config.time_budget is of the stage motion; set it to 0 to pretrain"


def _multi_label_problems(config: ConfigDict) -> Iterator[str]:
    needed = "needs one label a video, which config.dataset.options.multi_label=True does not give"
    if config.balanced_loss:
        yield f"config.balanced_loss=True {needed}; set it to False"
    if config.fusion.head == "text":
        yield f"config.fusion.head='text' {needed}; choose another head"
    for field, unset in (("shots", 0), ("shot_list", "")):
        if config.selection[field]:
            yield f"config.selection.{field} {needed}; set it to {unset!r}"


def _fisher_problems(config: ConfigDict) -> Iterator[str]:
    motion, sections = config.motion, ("evaluation", "predict")
    if motion.source != "reencode":
        yield (
            f"config.motion.backbone='{FISHER}' needs config.motion.source='reencode', whose "
            f"motion has one size and frame distance; it is '{motion.source}'"
        )
    if motion.head != "mean" or config.fusion.head == "temporal":
        yield (
            f"config.motion.backbone='{FISHER}' has one feature vector for all segments, without "
            "their order; set config.motion.head and config.fusion.head to 'mean'"
        )
    if motion.pretrained:
        yield f"config.motion.backbone='{FISHER}' takes no config.motion.pretrained; set it to ''"
    for section in sections:
        if config[section].crops != 1:
            yield f"config.{section}.crops must be 1 for config.motion.backbone='{FISHER}'"
