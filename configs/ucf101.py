"""UCF101 with the published recipe (MoCLIP-Lite, arXiv 2509.17084).

    python -m moclip_jax.main --config=configs/ucf101.py --workdir=runs/ucf101 \
        --config.dataset.videos=/data/UCF-101 --config.dataset.lists=/data/ucfTrainTestlist

Published top-1 on split 1: zero-shot CLIP 65.0, motion only 66.5, fusion 89.2. Not run by us:
neither UCF101 nor the pretrained weights can be had on the machines we build on.

Expected cost: 13,320 videos are prepared once; the motion network then sees 9,537 x 200 x 3
fields of 224 x 224. Expect that to be the long part: 0.39 G multiply-adds forward per field,
about three times that with the gradient, 6.7 x 10^15 in all. The last stage takes minutes.
Published numbers are chosen on the test split; `--config.selection.mode=test` does the same.
Every field with its meaning stands in configs/common.py; here is what the recipe sets.
"""

from ml_collections import ConfigDict
from moclip_jax.configs import common


def get_config() -> ConfigDict:
    """Returns the published recipe on UCF101."""
    config = common.get_config()

    config.dataset.name = "ucf101"
    # Prepared once and shared by every run on this machine.
    config.dataset.data_dir = "~/tensorflow_datasets"
    # Splits 1, 2 and 3 read the same prepared videos.
    config.dataset.split = 1

    # The canonical form: MPEG-4 Part 2, I-frames every 12 frames, no B-frames.
    config.video.width = 340
    config.video.height = 256
    config.video.qscale = 1
    config.video.gop_size = 12

    # Motion network: ImageNet EfficientNet-B0 behind a 2-channel stem and an input BatchNorm.
    config.motion.backbone = "b0"
    config.motion.pretrained = "timm/efficientnet_b0.ra_in1k"
    config.motion.image_size = 224
    config.motion.resize_size = 256
    config.motion.scales = (1.0, 0.875, 0.75)
    config.motion.flip_probability = 0.5
    config.motion.bound = 20.0
    config.motion.num_segments = 3
    # Adam with coupled L2; three groups of learning rates; divided by 10 twice.
    config.motion.batch_size = 80
    config.motion.num_epochs = 200
    config.motion.learning_rate = 0.01
    config.motion.adam_eps = 1e-3
    config.motion.weight_decay = 1e-4
    config.motion.decay_epochs = (80, 160)
    config.motion.decay_factor = 0.1
    config.motion.classifier_multiplier = 1.0
    config.motion.stem_multiplier = 0.1
    config.motion.rest_multiplier = 0.01

    # Appearance: the middle frame (the published code draws one at random, also in testing).
    config.clip.source = "openai/clip-vit-base-patch32@refs/pr/15"
    config.clip.frame = "middle"

    # Zero-shot: 12 templates x our own phrases for the 101 classes.
    config.zero_shot.phrases = "ucf101"

    # Head: 1280 + 512 -> 512 -> ReLU -> dropout -> 101, with AdamW; 969,829 parameters.
    config.fusion.hidden = 512
    config.fusion.dropout = 0.5
    config.fusion.batch_size = 64
    config.fusion.num_epochs = 100
    config.fusion.learning_rate = 1e-4
    config.fusion.weight_decay = 0.01

    # Reported accuracy: 25 segments x 10 crops. The published 16.9 GFLOPs are those of 32 x 1.
    config.evaluation.num_segments = 25
    config.evaluation.crops = 10
    return config
