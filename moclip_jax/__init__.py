"""Video action recognition in JAX from one CLIP frame and the codec's motion vectors.

    >>> import moclip_jax
    >>> model = moclip_jax.load("runs/demo")
    >>> prediction = model.predict("clip.mp4", top_k=3)
    >>> len(prediction.scores)
    3
    >>> 0 < prediction.probability <= 1
    True
    >>> own = model.predict("clip.mp4", labels=["a star", "a ring"])
    >>> sorted(score.label for score in own.scores)
    ['a ring', 'a star']
    >>> [bool(result.error) for result in model.predict_batch(["clip.mp4", "absent.mp4"])]
    [False, True]
    >>> [window.start_s for window in model.timeline("clip.mp4", seconds=2)][0]
    0.0

Names are imported when they are first used, so that `import moclip_jax` is fast.
"""

from typing import TYPE_CHECKING

from moclip_jax.runtime.lazy_imports import lazy_imports

__version__ = "0.2.0.dev0"

if TYPE_CHECKING:
    from moclip_jax.inference.prediction import Prediction as Prediction
    from moclip_jax.inference.prediction import Score as Score
    from moclip_jax.inference.recognizer import Recognizer as Recognizer
    from moclip_jax.inference.recognizer import load as load
    from moclip_jax.input_pipeline.video.clip import Clip as Clip
    from moclip_jax.input_pipeline.video.clip import VideoSpec as VideoSpec
    from moclip_jax.input_pipeline.video.clip import read_clip as read_clip
    from moclip_jax.input_pipeline.video.decode import VideoError as VideoError
    from moclip_jax.input_pipeline.video.motion_vectors import (
        accumulate_motion as accumulate_motion,
    )
    from moclip_jax.input_pipeline.video.motion_vectors import (
        read_motion_vectors as read_motion_vectors,
    )
    from moclip_jax.models.clip import CLIP as CLIP
    from moclip_jax.models.fusion import FusionHead as FusionHead
    from moclip_jax.models.moclip import MoCLIP as MoCLIP
    from moclip_jax.models.moclip import MoCLIPConfig as MoCLIPConfig
    from moclip_jax.models.motion_network import MotionNetwork as MotionNetwork
    from moclip_jax.pretrained.timm_efficientnet import load_efficientnet as load_efficientnet
    from moclip_jax.pretrained.towers import load_tower as load_tower

_HOMES = {
    "CLIP": "models.clip",
    "Clip": "input_pipeline.video.clip",
    "FusionHead": "models.fusion",
    "MoCLIP": "models.moclip",
    "MoCLIPConfig": "models.moclip",
    "MotionNetwork": "models.motion_network",
    "Prediction": "inference.prediction",
    "Recognizer": "inference.recognizer",
    "Score": "inference.prediction",
    "VideoError": "input_pipeline.video.decode",
    "VideoSpec": "input_pipeline.video.clip",
    "accumulate_motion": "input_pipeline.video.motion_vectors",
    "load": "inference.recognizer",
    "load_efficientnet": "pretrained.timm_efficientnet",
    "load_tower": "pretrained.towers",
    "read_clip": "input_pipeline.video.clip",
    "read_motion_vectors": "input_pipeline.video.motion_vectors",
}

__all__ = [*_HOMES, "__version__"]
__getattr__, __dir__ = lazy_imports(__name__, _HOMES)
