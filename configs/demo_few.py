"""The embedded data set with few videos of each class, for the head that starts from the words.

    moclip-jax few-shot --config=demo_few --workdir=runs/few_shot --shots=2,4,8,16 --num_seeds=3
    moclip-jax base-to-novel --config=demo_few --workdir=runs/novel --num_seeds=3

Motion is fitted in closed form, without epochs, and the head begins at zero-shot CLIP; see
docs/few_shot.md.
"""

from ml_collections import ConfigDict

from moclip_jax.configs import demo


def get_config() -> ConfigDict:
    """Return the settings."""
    config = demo.get_config()
    # Every video is trained on; alpha is not chosen.
    config.selection.mode = "last"
    config.motion.backbone = "fisher"
    # Windows of 16 of the 24 frames.
    config.motion.num_segments = 2
    config.evaluation.num_segments = 2
    config.predict.num_segments = 2
    config.fusion.head = "text"
    config.fusion.alpha = "1"
    config.fusion.learning_rate = 1e-4
    config.fusion.batch_size = 24
    return config
