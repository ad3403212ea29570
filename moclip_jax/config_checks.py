"""Checks of a configuration before any work starts."""

from collections.abc import Iterator
from pathlib import Path

from ml_collections import ConfigDict

from moclip_jax.config import DATASETS, FISHER, FRAMES, SELECTION_MODES, STAGES
from moclip_jax.inference.class_phrases import PHRASES
from moclip_jax.input_pipeline.video.spec import SOURCES


def check_config(config: ConfigDict) -> None:
    """Raise ValueError that lists every setting that cannot work, with its remedy."""
    problems = list(_problems(config))
    if problems:
        raise ValueError("the configuration cannot work:\n" + "\n".join(f"  {p}" for p in problems))


def _problems(config: ConfigDict) -> Iterator[str]:
    from moclip_jax.input_pipeline.views import num_images
    from moclip_jax.models.efficientnet import EfficientNetConfig

    for stage in config.stages.split(","):
        if stage.strip() not in STAGES:
            yield f"config.stages: unknown stage '{stage.strip()}'; there are {', '.join(STAGES)}"

    dataset = config.dataset
    if dataset.name not in DATASETS:
        yield f"config.dataset.name='{dataset.name}' is unknown; there are {', '.join(DATASETS)}"
    if dataset.name in ("video_folder", "hmdb51") and not dataset.videos:
        yield "config.dataset.videos is empty; set it to the folder of class folders"
    for field in ("videos", "lists"):
        folder = dataset[field]
        if folder and not Path(folder).expanduser().is_dir():
            yield f"config.dataset.{field}='{folder}' is not a folder"
    if dataset.name in ("ucf101", "hmdb51") and not 1 <= dataset.split <= 3:
        yield f"config.dataset.split={dataset.split}; {dataset.name} has splits 1, 2 and 3"

    if config.selection.mode not in SELECTION_MODES:
        yield (
            f"config.selection.mode='{config.selection.mode}' is unknown; there are "
            f"{', '.join(SELECTION_MODES)}"
        )
    if not 0 < config.selection.heldout_fraction < 1:
        yield "config.selection.heldout_fraction must lie between 0 and 1"

    if config.features.batch_size < 0:
        yield f"config.features.batch_size={config.features.batch_size} must be 0 or more"
    if config.profile_steps < 0:
        yield f"config.profile_steps={config.profile_steps} must be 0 (no trace) or more"

    positive = {
        "video": (
            "width",
            "height",
            "qscale",
            "gop_size",
            "clip_frames",
            "frame_size",
            "max_frames",
            "max_bytes",
            "max_pixels",
            "max_seconds",
        ),
        "mesh": ("model",),
        "motion": (
            "image_size",
            "num_segments",
            "batch_size",
            "num_epochs",
            "learning_rate",
            "bound",
            "eval_every_epochs",
            "checkpoint_every_steps",
            "shuffle_buffer",
        ),
        "features": ("train_views",),
        "fusion": ("batch_size", "num_epochs", "learning_rate", "eval_every_epochs"),
        "evaluation": ("num_segments",),
        "predict": ("num_segments",),
    }
    for section, fields in positive.items():
        for field in fields:
            if config[section][field] <= 0:
                yield f"config.{section}.{field}={config[section][field]} must be positive"
    for section in ("evaluation", "predict"):
        if config[section].crops not in (1, 10):
            yield f"config.{section}.crops={config[section].crops} must be 1 or 10"

    motion = config.motion
    if motion.source not in SOURCES:
        yield (f"config.motion.source='{motion.source}' is unknown; there are {', '.join(SOURCES)}")
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
    if config.fusion.hidden < 0:
        yield f"config.fusion.hidden={config.fusion.hidden} must be 0 (a linear head) or more"
    if not 0 <= motion.flip_probability <= 1:
        yield f"config.motion.flip_probability={motion.flip_probability} is not a probability"
    if not 0 <= config.fusion.dropout < 1:
        yield f"config.fusion.dropout={config.fusion.dropout} must be at least 0 and below 1"
    for section, field in (("motion", "dtype"), ("clip", "dtype"), ("features", "motion_dtype")):
        known = ("float32", "bfloat16", *(("auto",) if section != "motion" else ()))
        if config[section][field] not in known:
            value = config[section][field]
            yield f"config.{section}.{field}='{value}' must be {' or '.join(known)}"
    if not FRAMES.fullmatch(config.clip.frame):
        yield f"config.clip.frame='{config.clip.frame}' must be middle, random or uniform_K"
    elif config.clip.frame == "random" and config.video.clip_frames < 2:
        yield "config.clip.frame='random' needs config.video.clip_frames of at least 2 to draw from"
    elif num_images(config.clip.frame) > max(1, config.video.clip_frames):
        yield (
            f"config.clip.frame='{config.clip.frame}' wants more frames than are kept; raise "
            f"config.video.clip_frames={config.video.clip_frames}"
        )
    for template in config.zero_shot.templates:
        if "{}" not in template:
            yield f"config.zero_shot.templates: '{template}' has no {{}} for the phrase"
    if config.zero_shot.phrases not in ("", *PHRASES):
        yield (
            f"config.zero_shot.phrases='{config.zero_shot.phrases}' is unknown; there are "
            f"{', '.join(PHRASES)}, or empty for the words of the class names"
        )
    if not config.zero_shot.templates:
        yield "config.zero_shot.templates is empty"


def _fisher_problems(config: ConfigDict) -> Iterator[str]:
    motion, sections = config.motion, ("evaluation", "predict")
    if motion.source != "reencode":
        yield (
            f"config.motion.backbone='{FISHER}' needs config.motion.source='reencode', whose "
            f"motion has one size and frame distance; it is '{motion.source}'"
        )
    if motion.pretrained:
        yield f"config.motion.backbone='{FISHER}' takes no config.motion.pretrained; set it to ''"
    for section in sections:
        if config[section].crops != 1:
            yield f"config.{section}.crops must be 1 for config.motion.backbone='{FISHER}'"
