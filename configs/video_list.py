"""Videos that a CSV file or lists of lines `path label` name, here or in a bucket.

    python -m moclip_jax.main --config=configs/video_list.py --workdir=runs/mine \
        --config.dataset.lists=/data/list.csv --config.dataset.videos=/data

All other settings are those of `video_folder.py`, which says what to change for large sets. The
lists are described in docs/data.md, several labels a video in docs/multi_label.md.
"""

from ml_collections import ConfigDict

from moclip_jax.configs import video_folder


def get_config() -> ConfigDict:
    """Return settings for lists of videos."""
    config = video_folder.get_config()
    config.dataset.name = "video_list"
    # skip leaves out listed files that are not there; multi_label is for several labels a video.
    config.dataset.options = ConfigDict({"missing": "error", "multi_label": False})
    # Several labels have no class weights; the models in closed form weigh classes alike anyway.
    config.balanced_loss = False
    return config
