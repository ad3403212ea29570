"""The embedded data set `moving_shapes`: rendered clips, encoded as MPEG-4 like any video."""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence

from moclip_jax.input_pipeline.datasets.definition import (
    Source,
    VideoDataset,
    VideoEntry,
    read_options,
)
from moclip_jax.input_pipeline.datasets.shapes import (
    MOTIONS,
    REVERSIBLE_MOTIONS,
    SHAPES,
    render_clip,
)
from moclip_jax.input_pipeline.video.clip import Clip, VideoSpec, clip_from_frames

FPS = 12.0
# First group seed. The tiny CLIP was trained on groups of lower seeds, and two data sets of up to
# this many groups share none.
_GROUPS_PER_SEED = 1_000_000


@dataclasses.dataclass(frozen=True)
class MovingShapesOptions:
    """Options of the data set.

    Attributes:
      num_train_groups: Groups (background and palette) of the training subset.
      num_test_groups: Groups of the test subset; none is shared.
      clips_per_group: Clips of each class in each group.
      num_frames: Frames of a clip.
      height: Height of the frames in pixels; must be the spec's.
      width: Width of the frames in pixels; must be the spec's.
      seed: Another seed gives other groups.
      shapes: Which shapes there are.
      turning: Classes that differ only in what comes first, such as "star rising first" and "star
        falling first", see `shapes.py`.
    """

    num_train_groups: int = 12
    num_test_groups: int = 4
    clips_per_group: int = 1
    num_frames: int = 24
    height: int = 128
    width: int = 128
    seed: int = 0
    shapes: Sequence[str] = SHAPES
    turning: bool = False

    def __post_init__(self):
        if not self.shapes or not set(self.shapes) <= set(SHAPES):
            raise ValueError(
                f"moving_shapes: shapes are {list(self.shapes)}; choose from {', '.join(SHAPES)}"
            )
        for name, low in (
            ("num_train_groups", 1),
            ("num_test_groups", 1),
            ("clips_per_group", 1),
            ("num_frames", 3),
            ("seed", 0),
        ):
            if getattr(self, name) < low:
                raise ValueError(f"moving_shapes: {name} is {getattr(self, name)}, least is {low}")
        if self.num_train_groups + self.num_test_groups > _GROUPS_PER_SEED:
            raise ValueError(f"moving_shapes: more than {_GROUPS_PER_SEED} groups")


class MovingShapes(VideoDataset):
    """Class = shape and motion; groups never cross from the training to the test subset."""

    name = "moving_shapes"

    def sources(
        self, download: Callable[[str], str | os.PathLike]
    ) -> tuple[Sequence[str], Sequence[Source]]:
        """Return the class names '<shape> <motion>' and every clip, still to be rendered.

        Turning motions are called '<shape> <motion> first'.
        """
        del download  # Nothing to download.
        options = read_options(MovingShapesOptions, self.name, self.config.options)
        spec = self.config.spec
        if (options.height, options.width) != (spec.height, spec.width):
            raise ValueError(
                f"moving_shapes: renders {options.width}x{options.height} but VideoSpec is "
                f"{spec.width}x{spec.height}; make them equal, scaling would blur the motion"
            )
        motions = REVERSIBLE_MOTIONS if options.turning else MOTIONS
        classes = [(shape, motion) for shape in options.shapes for motion in motions]
        sources = []
        for group in range(options.num_train_groups + options.num_test_groups):
            subset = "train" if group < options.num_train_groups else "test"
            for label, (shape, motion) in enumerate(classes):
                for clip in range(options.clips_per_group):
                    entry = VideoEntry(
                        name=f"{shape}_{motion}_g{group:03d}_c{clip:02d}",
                        label=label,
                        group=f"g{group:03d}",
                        subsets=(subset,),
                    )
                    prepare = functools.partial(
                        _render_and_prepare,
                        shape,
                        motion,
                        (options.seed + 1) * _GROUPS_PER_SEED + group,
                        label * options.clips_per_group + clip,
                        options,
                        spec,
                    )
                    sources.append(Source(entry, prepare))
        first = " first" if options.turning else ""
        return [f"{shape} {motion}{first}" for shape, motion in classes], sources


def _render_and_prepare(
    shape: str,
    motion: str,
    group_seed: int,
    clip_seed: int,
    options: MovingShapesOptions,
    spec: VideoSpec,
) -> Clip:
    frames = render_clip(
        shape,
        motion,
        group_seed=group_seed,
        clip_seed=clip_seed,
        num_frames=options.num_frames,
        height=options.height,
        width=options.width,
        turning=options.turning,
    )
    return clip_from_frames(frames, spec, FPS)
