"""HMDB51 with the published recipe.

    python -m moclip_jax.main --config=configs/hmdb51.py --workdir=runs/hmdb51 \
        --config.dataset.videos=/data/hmdb51 --config.dataset.lists=/data/testTrainMulti_7030_splits

The archives are RAR files: unpack the videos to a folder for each class, and the lists to one
folder. Not run by us: HMDB51 cannot be had on the machines we build on; its builder is tested on a
fixture in its format. All settings are those of UCF101.
"""

from ml_collections import ConfigDict
from moclip_jax.configs import ucf101


def get_config() -> ConfigDict:
    """Returns the published recipe on HMDB51."""
    config = ucf101.get_config()
    config.dataset.name = "hmdb51"
    config.zero_shot.phrases = "hmdb51"
    return config
