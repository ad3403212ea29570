"""The first run: the whole recipe on the embedded data set, without a download.

    python -m moclip_jax.main --config=configs/demo.py --workdir=runs/demo

36 classes (6 shapes x 6 motions) are drawn, encoded as MPEG-4 and recognised. Expected: fusion
above 0.90 top-1; zero-shot and the CLIP head near 1/6 (a still does not show the motion); motion
alone below 0.45 (a motion field hardly shows the shape). Minutes on two CPU cores.
"""

from ml_collections import ConfigDict

from moclip_jax.config import default_config


def get_config() -> ConfigDict:
    """Return the demo's settings."""
    config = default_config()

    config.dataset.name = "moving_shapes"
    # Every group is one background and palette, and holds one clip of each of the 36 classes.
    config.dataset.options.num_train_groups = 30
    config.dataset.options.num_test_groups = 8
    config.dataset.options.num_frames = 24

    config.video.width = 128
    config.video.height = 128
    config.video.clip_frames = 1
    config.video.frame_size = 128

    # From random weights: one learning rate for all parts, and a larger one than for ImageNet's.
    config.motion.backbone = "tiny"
    config.motion.pretrained = ""
    config.motion.image_size = 64
    config.motion.resize_size = 72
    config.motion.batch_size = 60
    config.motion.num_epochs = 14
    config.motion.learning_rate = 0.003
    config.motion.decay_epochs = (9, 12)
    config.motion.stem_multiplier = 1.0
    config.motion.rest_multiplier = 1.0

    config.clip.source = "tiny"
    # So small that there is nothing to gain; this way all processors give the same numbers.
    config.clip.dtype = "float32"
    config.zero_shot.templates = ("a photo of a {}.", "a picture of a {}.", "a {}.")

    config.features.train_views = 4
    config.features.motion_dtype = "float32"
    config.features.batch_size = 36

    config.fusion.batch_size = 64
    config.fusion.num_epochs = 60
    config.fusion.learning_rate = 1e-3

    config.evaluation.num_segments = 8
    config.evaluation.crops = 1
    config.predict.num_segments = 8
    return config
