"""Your own videos: a folder for each class, with or without train and test lists.

    python -m moclip_jax.main --config=configs/video_folder.py --workdir=runs/mine \
        --config.dataset.videos=/data/my_videos

Lists in UCF101's format (classInd.txt, trainlist01.txt, testlist01.txt) are used where they lie
in the folder or in `--config.dataset.lists`; otherwise one video in four is kept for testing.

The settings train a small motion network from random weights on a CPU. With a GPU and the hub at
hand, start from ImageNet: --config.motion.backbone=b0 --config.motion.image_size=224
--config.motion.resize_size=256 --config.motion.pretrained=timm/efficientnet_b0.ra_in1k
--config.clip.source=openai/clip-vit-base-patch32@refs/pr/15.
"""

from ml_collections import ConfigDict

from moclip_jax.config import default_config


def get_config() -> ConfigDict:
    """Return settings for a folder of videos."""
    config = default_config()

    config.dataset.name = "video_folder"
    # Share of the videos of each class kept for testing where there are no lists.
    config.dataset.options.test_fraction = 0.25

    config.motion.backbone = "tiny"
    config.motion.pretrained = ""
    config.motion.image_size = 64
    config.motion.resize_size = 72
    # More of each video in a step steadies a network that starts from nothing.
    config.motion.num_segments = 8
    # The mirror image of one class may be another (forehand, backhand); raise it where it is not.
    config.motion.flip_probability = 0.0
    config.motion.batch_size = 16
    config.motion.num_epochs = 40
    config.motion.learning_rate = 0.003
    config.motion.decay_epochs = (28, 36)
    config.motion.stem_multiplier = 1.0
    config.motion.rest_multiplier = 1.0
    # A small set needs all of its training videos: keep the last epoch, hold nothing out.
    config.selection.mode = "last"

    config.clip.source = "tiny"
    config.features.batch_size = 8
    config.fusion.batch_size = 32
    config.fusion.learning_rate = 1e-3

    config.evaluation.num_segments = 25
    config.evaluation.crops = 1
    config.predict.num_segments = 25
    return config
