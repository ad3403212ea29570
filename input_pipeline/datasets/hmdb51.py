"""HMDB51 (Kuehne et al., 2011): 6,766 videos of 51 actions, with its three published splits.

The lists are 153 files `<class>_test_split<N>.txt`, one for each class and split, with a line
`file.avi 0|1|2` for every video of the class: 1 is training, 2 is testing, 0 is neither.
"""

import functools
import os
import pathlib
import re
from collections.abc import Callable, Sequence

from moclip_jax.input_pipeline.datasets.definition import Source, VideoDataset, VideoEntry
from moclip_jax.input_pipeline.datasets.split_lists import normal_path, read_lines, split_number
from moclip_jax.input_pipeline.datasets.video_folder import existing_folder
from moclip_jax.input_pipeline.video.clip import read_clip

_LIST = re.compile(r"(.+)_test_split([1-9])\.txt")
_SUBSETS = {"0": "unused", "1": "train", "2": "test"}


class Hmdb51(VideoDataset):
    """The videos, in a folder for each class, and the lists, as the published archives unpack."""

    name = "hmdb51_motion"

    def sources(
        self, download: Callable[[str], str | os.PathLike]
    ) -> tuple[Sequence[str], Sequence[Source]]:
        """Return the classes, by name, and the videos as the lists give them."""
        del download  # The published archives are RAR, which must be unpacked by hand.
        config = self.config
        if config.options:
            raise ValueError(f"hmdb51: takes no options, got {sorted(config.options)}")
        videos = existing_folder(config.videos, "videos")
        lists = existing_folder(config.lists or config.videos, "lists")
        found = {
            match.groups(): path
            for path in lists.iterdir()
            if (match := _LIST.fullmatch(path.name))
        }
        class_names = sorted({name for name, _ in found})
        splits = sorted({split for _, split in found})
        if not found:
            raise ValueError(f"{lists}: no lists such as brush_hair_test_split1.txt")
        sources = []
        for label, name in enumerate(class_names):
            subsets: dict[str, dict[str, str]] = {}
            for split in splits:
                if (name, split) not in found:
                    raise ValueError(f"{lists / f'{name}_test_split{split}.txt'}: no such list")
                for file, subset in _read_list(found[name, split]).items():
                    subsets.setdefault(file, {})[split] = subset
            for file, by_split in subsets.items():
                path = videos / name / file
                if not path.is_file():
                    raise ValueError(f"{path}: no such file, though the lists name it")
                entry = VideoEntry(
                    name=f"{name}/{file}",
                    label=label,
                    group=_group(file, name),
                    subsets=tuple(by_split.get(split, "unused") for split in splits),
                )
                sources.append(Source(entry, functools.partial(read_clip, str(path), config.spec)))
        return class_names, sources


def _read_list(path: pathlib.Path) -> dict[str, str]:
    subsets = {}
    for number, line in read_lines(path):
        file, subset = split_number(line)
        if subset not in _SUBSETS:
            raise ValueError(f"{path}:{number}: must be 'file.avi 0|1|2', is {line!r}")
        subsets[normal_path(file, f"{path}:{number}")] = _SUBSETS[subset]
    return subsets


def _group(file: str, class_name: str) -> str:
    """Return the source of a clip: the part of its name before that of the class."""
    before, found, _ = file.partition(f"_{class_name}_")
    return f"{class_name}/{before}" if found else f"{class_name}/{file}"
