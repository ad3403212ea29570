"""UCF101 (Soomro et al., 2012): 13,320 videos of 101 actions, with its three published splits."""

import os
import pathlib
from collections.abc import Callable, Sequence

from moclip_jax.input_pipeline.datasets.definition import Source, VideoDataset
from moclip_jax.input_pipeline.datasets.split_lists import ListedVideo, read_split_lists
from moclip_jax.input_pipeline.datasets.video_folder import existing_folder, listed_sources

# The addresses that tensorflow_datasets' own builder uses.
VIDEOS_URL = "https://storage.googleapis.com/thumos14_files/UCF101_videos.zip"
LISTS_URL = "https://www.crcv.ucf.edu/data/UCF101/UCF101TrainTestSplits-RecognitionTask.zip"


class Ucf101(VideoDataset):
    """The videos and lists given, or downloaded (6.5 GB) where a folder is not given."""

    name = "ucf101_motion"

    def sources(
        self, download: Callable[[str], str | os.PathLike]
    ) -> tuple[Sequence[str], Sequence[Source]]:
        """Return the classes and videos as the lists give them."""
        config = self.config
        if config.options:
            raise ValueError(f"ucf101: takes no options, got {sorted(config.options)}")
        if config.videos:
            videos = existing_folder(config.videos, "videos")
        else:
            videos = pathlib.Path(download(VIDEOS_URL))
        if config.lists:
            lists_folder = existing_folder(config.lists, "lists")
        else:
            lists_folder = pathlib.Path(download(LISTS_URL))
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
