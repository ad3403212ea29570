"""UCF101 (Soomro et al., 2012): 13,320 videos of 101 actions, with its three published splits."""

import pathlib
from collections.abc import Sequence

import tensorflow_datasets as tfds
from moclip_jax.input_pipeline.datasets.base import PreparedVideoBuilder, Source
from moclip_jax.input_pipeline.datasets.split_lists import ListedVideo, read_split_lists
from moclip_jax.input_pipeline.datasets.video_folder import existing_folder, listed_sources

# The addresses that tensorflow_datasets' own builder uses.
VIDEOS_URL = "https://storage.googleapis.com/thumos14_files/UCF101_videos.zip"
LISTS_URL = "https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip"


class Ucf101(PreparedVideoBuilder):
    """The videos and lists given, or downloaded (6.5 GB) where a folder is not given."""

    name = "ucf101_motion"

    def sources(
        self, dl_manager: tfds.download.DownloadManager
    ) -> tuple[Sequence[str], Sequence[Source]]:
        """Return the classes and videos as the lists give them."""
        config = self.builder_config
        if config.options:
            raise ValueError(f"ucf101: takes no options, got {sorted(config.options)}")
        if config.videos:
            videos = existing_folder(config.videos, "videos")
        else:
            videos = pathlib.Path(dl_manager.download_and_extract(VIDEOS_URL))
        if config.lists:
            lists_folder = existing_folder(config.lists, "lists")
        else:
            lists_folder = pathlib.Path(dl_manager.download_and_extract(LISTS_URL))
        # The published zip holds the lists in a folder of their own.
        if (lists_folder / "ucfTrainTestlist").is_dir():
            lists_folder = lists_folder / "ucfTrainTestlist"
        lists = read_split_lists(lists_folder)
        # By file name alone and whatever the capitals: the videos come flat or in class folders,
        # and the lists write v_HandStandPushups_* for the zip's v_HandstandPushups_*.
        files = {path.name.casefold(): path for path in videos.rglob("*.avi")}

        def find(video: ListedVideo) -> pathlib.Path | None:
            return files.get(pathlib.PurePosixPath(video.path).name.casefold())

        return lists.class_names, listed_sources(lists.splits, find, config.spec)
