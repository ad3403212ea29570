"""Motion whose order alone tells the class, for the heads that see the order.

    python -m moclip_jax.main --config=configs/demo_order.py --workdir=runs/order

Four classes: a star that rises first or falls first, grows first or shrinks first. Each clip holds
both motions of its pair, at the same places and for the same time, and its middle frame tells
nothing. Averages over segments therefore tell the pair and guess the order, with chance 50 % (train
with --config.motion.head=mean --config.fusion.head=mean to see it). Expected: above 0.95 top-1 in
the rows motion and fusion.
"""

from ml_collections import ConfigDict

from moclip_jax.configs import demo


def get_config() -> ConfigDict:
    """Return the settings."""
    config = demo.get_config()

    config.dataset.options.turning = True
    config.dataset.options.shapes = ("star",)
    config.dataset.options.num_train_groups = 60
    config.dataset.options.num_test_groups = 20
    # The motion turns where a group of pictures begins, so that none holds both directions.
    config.video.gop_size = 6

    config.motion.head = "temporal"
    # One field from either half of each of the four groups of pictures.
    config.motion.num_segments = 8
    config.motion.batch_size = 24
    config.motion.num_epochs = 10
    config.motion.decay_epochs = (7, 9)
    config.fusion.head = "temporal"
    config.features.batch_size = 24
    config.fusion.batch_size = 24
    return config
