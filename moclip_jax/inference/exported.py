"""Read the folder that stage `export` writes."""

import functools
import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from moclip_jax.config import network_views, video_spec
from moclip_jax.inference.program import program_file
from moclip_jax.inference.recognizer import Recognizer
from moclip_jax.models.image_preprocessing import ImagePreprocessing

FORMAT = 1
METADATA, PARAMETERS, TOKENIZER = "metadata.json", "parameters", "tokenizer"
# The same arrays as in `parameters`, which open in a tenth of the time.
SAFETENSORS = "parameters.safetensors"


def load_model(folder: Path) -> Recognizer:
    """Return the model in an export; see `moclip_jax.load`."""
    path = folder / METADATA
    if not path.exists():
        raise FileNotFoundError(
            f"no exported model at {folder}; finish a run first: "
            f"python -m moclip_jax.main --config=CONFIG --workdir={folder.parent}"
        )
    metadata = json.loads(path.read_text())
    if metadata["format"] != FORMAT:
        raise ValueError(f"{path} has format {metadata['format']}; this version reads {FORMAT}")
    config = ConfigDict(metadata["config"])
    # Exports of before there was a choice.
    config.motion.source = config.motion.get("source", "reencode")
    config.motion.head = config.motion.get("head", "mean")
    program = None
    if "parameters_sha256" in metadata:
        used = ("config", "clip", "head", "class_names", "parameters_sha256", "preprocessor")
        program = program_file({name: metadata.get(name) for name in used})
    # Of a CLIP as Hugging Face has it; of an ImageNet tower, which has no other part, without it.
    image_size = metadata["clip"].get("vision_config", metadata["clip"])["image_size"]
    recognizer = Recognizer(
        functools.partial(_build, folder, metadata, config),
        metadata["class_names"],
        image_size=image_size,
        video=video_spec(config),
        views=network_views(
            config, num_segments=config.predict.num_segments, crops=config.predict.crops
        ),
        frame=config.clip.frame,
        load_tokenizer=functools.partial(_load_tokenizer, folder / TOKENIZER)
        if "text_config" in metadata["clip"]
        else None,
        clip_dtype=config.clip.dtype,
        # Exports of before there was a choice are as the network was trained.
        motion_dtype=config.features.get("motion_dtype", config.motion.dtype),
        preprocessing=ImagePreprocessing.from_hf(metadata.get("preprocessor"), image_size),
        program=program,
        folder=folder,
        reject_below=metadata.get("reject_below", 0.0),
        multi_label=config.dataset.options.get("multi_label", False),
    )
    if program is None or not program.exists():
        # Damage is reported now, not at the first video.
        _ = recognizer.model
    return recognizer


def _build(folder: Path, metadata: dict[str, Any], config: ConfigDict) -> Any:
    from moclip_jax.inference.parameters import build_model

    files = (folder / SAFETENSORS, folder / PARAMETERS)
    return build_model(metadata, config, *files)


def _load_tokenizer(folder: Path) -> Any:
    # Imported late: only labels of the user's own need transformers.
    from moclip_jax.pretrained import load_tokenizer

    return load_tokenizer(folder)
