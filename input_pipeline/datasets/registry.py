"""The data sets by the names that `config.dataset.name` takes."""

from moclip_jax.input_pipeline.datasets.definition import VideoDataset
from moclip_jax.input_pipeline.datasets.hmdb51 import Hmdb51
from moclip_jax.input_pipeline.datasets.moving_shapes import MovingShapes
from moclip_jax.input_pipeline.datasets.ucf101 import Ucf101
from moclip_jax.input_pipeline.datasets.video_folder import VideoFolder
from moclip_jax.input_pipeline.datasets.video_list import VideoList

DATASETS: dict[str, type[VideoDataset]] = {
    "hmdb51": Hmdb51,
    "moving_shapes": MovingShapes,
    "ucf101": Ucf101,
    "video_folder": VideoFolder,
    "video_list": VideoList,
}
