"""Stage `export`: one folder that `predict` loads alone; and loading it again."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from flax import nnx
from ml_collections import ConfigDict

from moclip_jax.config import motion_network_config, motion_views, video_spec
from moclip_jax.export.model_card import write_model_card
from moclip_jax.input_pipeline.batches import MotionViews, view_of_example
from moclip_jax.input_pipeline.video.clip import VideoSpec
from moclip_jax.models.clip import CLIP, CLIPConfig
from moclip_jax.models.fusion import FusionConfig, FusionHead
from moclip_jax.models.inference import clip_for_inference, motion_network_for_inference
from moclip_jax.models.motion_network import MotionNetwork
from moclip_jax.pretrained import load_tokenizer
from moclip_jax.runtime.device import computation_dtype, matmul_dtype
from moclip_jax.runtime.files import write_json
from moclip_jax.runtime.tree_io import load_tree, save_tree
from moclip_jax.runtime.versions import package_versions

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Recognizer:
    """Everything that turns a video into labels.

    Attributes:
      class_names: labels, in the order of the logits.
      network: the trained motion network.
      clip: the frozen CLIP with both towers.
      tokenizer: CLIP's.
      head: the trained fusion head.
      text: unit-length text features of the classes `[classes, D]`.
      templates: zero-shot prompts with {} for a phrase.
      video: how a file is brought to the canonical form.
      views: how its motion is sampled.
      frame: which RGB frame CLIP sees.
      clip_dtype: `config.clip.dtype`.
      motion_dtype: `config.features.motion_dtype`.
    """

    class_names: tuple[str, ...]
    network: MotionNetwork
    clip: CLIP
    tokenizer: Any
    head: FusionHead
    text: np.ndarray
    templates: tuple[str, ...]
    video: VideoSpec
    views: MotionViews
    frame: str
    clip_dtype: str
    motion_dtype: str

    @property
    def reading(self) -> VideoSpec:
        """How a file is brought to the canonical form where nothing but its label is wanted.

        Its RGB frames are then those alone that CLIP sees, if that is the middle one.
        """
        if self.frame != "middle":
            return self.video
        # The middle frame is always kept, and it is the centre of a single part.
        return dataclasses.replace(self.video, clip_frames=1)

    @functools.cached_property
    def frozen(self) -> tuple[MotionNetwork, CLIP]:
        """The motion network and CLIP's image tower in the forms that run; made once."""
        clip = clip_for_inference(self.clip, matmul_dtype(self.clip_dtype))
        return motion_network_for_inference(self.network, matmul_dtype(self.motion_dtype)), clip

    def view(self, example: Mapping[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns what the networks see of a video: `motion` and `images` (TensorFlow ops).

        Args:
          example: as `moclip_jax.input_pipeline.views.example_from_video` gives.
        """
        return self._view(example, self.views)

    def images(self, example: Mapping[str, tf.Tensor]) -> tf.Tensor:
        """Returns the `images` of `view` alone (TensorFlow ops).

        Args:
          example: as `moclip_jax.input_pipeline.views.pictures_from_video` gives.
        """
        return self._view(example, None)["images"]

    def _view(
        self, example: Mapping[str, tf.Tensor], motion: MotionViews | None
    ) -> dict[str, tf.Tensor]:
        return view_of_example(
            example,
            self.video,
            motion=motion,
            frames=self.frame,
            image_size=self.clip.config.vision.image_size,
            # Only a random frame needs it; the same file always gets the same label.
            seed=tf.zeros([2], tf.int64),
        )


def _fusion_settings(head: FusionHead) -> dict[str, Any]:
    return dataclasses.asdict(head.config)


def export_model(
    config: ConfigDict,
    class_names: Sequence[str],
    network: MotionNetwork,
    clip: CLIP,
    tokenizer: Any,
    head: FusionHead,
    text: np.ndarray,
    rows: dict[str, Any],
    num_videos: Mapping[str, int],
    directory: Path,
) -> None:
    """Writes parameters (Orbax), tokenizer, `metadata.json` and the model card."""
    save_tree(
        directory / "parameters",
        {
            "motion": nnx.state(network),
            "clip": nnx.state(clip),
            "head": nnx.state(head),
            "text": jnp.asarray(text),
        },
    )
    tokenizer.save_pretrained(directory / "tokenizer")
    versions = package_versions()
    write_json(
        directory / "metadata.json",
        {
            "format": FORMAT,
            "class_names": class_names,
            "config": json.loads(config.to_json()),
            "clip": clip.config.to_hf(),
            "head": _fusion_settings(head),
            "rows": rows,
            "versions": versions,
        },
    )
    write_model_card(config, class_names, num_videos, rows, versions, directory / "README.md")


def export_folder(workdir: Path) -> Path:
    """Returns the export of a finished run; a folder that is an export itself is returned."""
    return workdir if (workdir / "metadata.json").exists() else workdir / "export"


def load_export(directory: Path) -> Recognizer:
    """Returns the model that `export_model` wrote.

    Raises:
      FileNotFoundError: there is no export; the message says how to make one.
      ValueError: it was written in a format that this version does not read.
    """
    path = directory / "metadata.json"
    if not path.exists():
        raise FileNotFoundError(
            f"no exported model at {directory}; finish a run first: "
            f"python -m moclip_jax.main --config=CONFIG --workdir={directory.parent}"
        )
    metadata = json.loads(path.read_text())
    if metadata["format"] != FORMAT:
        raise ValueError(f"{path} has format {metadata['format']}; this version reads {FORMAT}")
    config = ConfigDict(metadata["config"])
    # Exports of before there was a choice.
    config.motion.source = config.motion.get("source", "reencode")
    class_names = tuple(metadata["class_names"])
    clip_config = dataclasses.replace(
        CLIPConfig.from_hf(metadata["clip"]),
        dtype=computation_dtype(config.clip.dtype),
    )
    head_config = FusionConfig(**metadata["head"])

    def build() -> tuple[MotionNetwork, CLIP, FusionHead]:
        rngs = nnx.Rngs(0)
        return (
            MotionNetwork(motion_network_config(config.motion, len(class_names)), rngs=rngs),
            CLIP(clip_config, rngs=rngs),
            FusionHead(head_config, rngs=rngs),
        )

    network, clip, head = nnx.eval_shape(build)
    parameters = load_tree(
        directory / "parameters",
        {
            "motion": nnx.state(network),
            "clip": nnx.state(clip),
            "head": nnx.state(head),
            "text": jax.ShapeDtypeStruct(
                (len(class_names), clip_config.projection_dim), jnp.float32
            ),
        },
    )
    nnx.update(network, parameters["motion"])
    nnx.update(clip, parameters["clip"])
    nnx.update(head, parameters["head"])
    return Recognizer(
        class_names=class_names,
        network=network,
        clip=clip,
        tokenizer=load_tokenizer(directory / "tokenizer"),
        head=head,
        text=np.asarray(parameters["text"]),
        templates=tuple(config.zero_shot.templates),
        video=video_spec(config),
        views=motion_views(
            config.motion, num_segments=config.predict.num_segments, crops=config.predict.crops
        ),
        frame=config.clip.frame,
        clip_dtype=config.clip.dtype,
        # Exports of before there was a choice are as the network was trained.
        motion_dtype=config.features.get("motion_dtype", config.motion.dtype),
    )
