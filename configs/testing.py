"""The smallest run in which every stage is the real one; for tests, in seconds.

    python -m moclip_jax.main --config=configs/testing.py --workdir=/tmp/testing

The accuracies mean nothing: there are too few clips and epochs.
"""

from ml_collections import ConfigDict

from moclip_jax.configs import demo


def get_config() -> ConfigDict:
    """Return the testing settings."""
    config = demo.get_config()
    config.dataset.num_workers = 1
    config.dataset.options.num_train_groups = 2
    config.dataset.options.num_test_groups = 1
    config.dataset.options.num_frames = 8
    config.video.gop_size = 4
    config.selection.heldout_fraction = 0.5
    config.motion.image_size = 32
    config.motion.resize_size = 36
    config.motion.batch_size = 12
    config.motion.num_epochs = 2
    config.motion.decay_epochs = (1,)
    config.features.train_views = 2
    config.features.batch_size = 8
    config.fusion.batch_size = 12
    config.fusion.num_epochs = 2
    config.evaluation.num_segments = 3
    config.predict.num_segments = 3
    return config
