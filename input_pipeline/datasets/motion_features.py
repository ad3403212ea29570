"""How a prepared video's motion lies in the records.

Without TensorFlow, which the workers that prepare videos need not load.
"""

from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from moclip_jax.input_pipeline.datasets.motion_storage import pack_displacements
from moclip_jax.input_pipeline.video.clip import Clip, VideoSpec


def record_features(spec: VideoSpec) -> dict[str, Any]:
    """Return the TFDS features of a stored video's motion.

    Canonical displacements are packed by groups of pictures, see `motion_storage`. Of a stream's
    own, records hold the grid's cells in a row: sizes differ from video to video, and a TFDS tensor
    has one free dimension at no cost.
    """
    stored = {"is_intra": tfds.features.Tensor(shape=(None,), dtype=np.bool_)}
    if spec.source == "reencode":
        stored["displacements"] = tfds.features.Sequence(tfds.features.Text())
        return stored
    stored["is_bidirectional"] = tfds.features.Tensor(shape=(None,), dtype=np.bool_)
    stored["future"] = tfds.features.Tensor(shape=(None,), dtype=np.bool_, encoding="zlib")
    stored["height"] = stored["width"] = stored["orientation"] = np.int32
    stored["source"] = tfds.features.Text()
    stored["displacements"] = tfds.features.Tensor(shape=(None, 2), dtype=np.int16, encoding="zlib")
    return stored


def record_values(prepared: Clip, spec: VideoSpec) -> dict[str, Any]:
    """Return a prepared video's values of `record_features`."""
    names = tuple(record_features(spec))
    values = {name: getattr(prepared, name) for name in names}
    if spec.source == "reencode":
        values["displacements"] = pack_displacements(prepared.displacements, prepared.is_intra)
    else:
        values["displacements"] = prepared.displacements.reshape(-1, 2)
        values["future"] = prepared.future.reshape(-1)
    return values
