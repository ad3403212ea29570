"""Pretrain the motion network on a folder of videos without labels, for another run to start from.

    python -m moclip_jax.main --config=configs/pretrain.py --workdir=runs/pretrained \
        --config.dataset.videos=/data/any_videos
    python -m moclip_jax.main --config=configs/ucf101.py --workdir=runs/ucf101 \
        --config.motion.pretrained=runs/pretrained/pretrain \
        --config.motion.stem_multiplier=1 --config.motion.rest_multiplier=1

Expected: more accuracy where labels are few, see docs/few_shot.md, measured with the network `tiny`
on small sets; 200 epochs of b0 were not run and need a GPU. For a small set on a CPU:
--config.motion.backbone=tiny --config.motion.image_size=64 --config.motion.resize_size=72, in both
runs. All videos below the folder are trained on, whatever their subfolders; of a data set whose
test split you report, use its own configuration with --config.stages=prepare,pretrain instead.
"""

from ml_collections import ConfigDict

from moclip_jax.config import PRETRAINING_STAGES, default_config


def get_config() -> ConfigDict:
    """Return settings for a folder of videos without labels."""
    config = default_config()
    config.stages = ",".join(PRETRAINING_STAGES)

    config.dataset.name = "video_folder"
    config.dataset.options.unlabelled = True
    # There is no accuracy to choose an epoch by: all videos are trained on.
    config.selection.mode = "last"

    # From random weights; config.motion.pretrained starts from other ones.
    config.motion.pretrained = ""
    return config
