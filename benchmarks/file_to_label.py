"""Rows from a video file to its label: 300 frames, 32 motion fields and one image."""

import functools
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from benchmarks.clips import generated_video
from benchmarks.networks import CLASSES, Networks
from benchmarks.peer import Peer
from benchmarks.timing import Comparison, in_turns, timed
from moclip_jax.config import default_config, motion_views, video_spec
from moclip_jax.inference.recognizer import Recognizer
from moclip_jax.input_pipeline.video.clip import read_clip
from moclip_jax.models.fusion import FusionConfig, FusionHead
from moclip_jax.models.moclip import (
    MoCLIP,
    MoCLIPConfig,
    appearance_features,
    motion_features,
)
from moclip_jax.runtime.device import compiler_options, matmul_dtype

FRAMES = 300


def make_recognizer(networks: Networks, source: str, dtype: str = "auto") -> Recognizer:
    """Return what `predict` loads, with the published protocol and random weights.

    Args:
      networks: both backbones.
      source: where motion comes from, `config.motion.source`.
      dtype: of both networks' products, as `config.clip.dtype` and `config.features.motion_dtype`.
    """
    config = default_config()
    config.motion.source = source
    head = FusionHead(
        FusionConfig(
            motion_features=networks.motion.config.num_features,
            appearance_features=networks.clip.config.projection_dim,
            num_classes=CLASSES,
        ),
        rngs=nnx.Rngs(2),
    )
    parts = MoCLIPConfig(networks.motion.config, networks.clip.config, head.config)
    model = nnx.eval_shape(lambda: MoCLIP(parts, rngs=nnx.Rngs(0)))
    model.motion, model.clip, model.head = networks.motion, networks.clip, head
    return Recognizer(
        lambda: model,
        [f"class {number}" for number in range(CLASSES)],
        image_size=networks.clip.config.vision.image_size,
        video=video_spec(config),
        views=motion_views(config.motion, num_segments=config.predict.num_segments),
        frame=config.clip.frame,
        clip_dtype=dtype,
        motion_dtype=dtype,
    )


class OurSide:
    """What `Recognizer.predict` does with a file.

    Args:
      networks: both backbones.
      source: as `make_recognizer`.
      dtype: as `make_recognizer`.

    Attributes:
      networks: as they were given.
      dtype: as it was given, and what it means here.
      recognizer: what `predict` loads.
      video: the file.
      compile_s: seconds that the first file took longer than another; programs that a side before
        has compiled may come from the cache.
    """

    def __init__(self, networks: Networks, source: str, dtype: str = "auto"):
        self.networks = networks
        self.dtype = f"{dtype} ({matmul_dtype(dtype).name})" if dtype == "auto" else dtype
        self.recognizer = make_recognizer(networks, source, dtype)
        self.video = str(generated_video(networks.folder, FRAMES))
        first, second = (timed(self.label)() for _ in range(2))
        self.compile_s = first - second

    def label(self) -> None:
        """From the file to its label."""
        self.recognizer.predict(self.video)


def one_file(
    peer: Peer,
    rounds: int,
    side: OurSide,
    *,
    accumulated: bool = True,
    reencoded: bool = False,
    narrow: bool = False,
    goal: float | None = None,
) -> Comparison:
    """A file to its label, and the seconds of each stage on both sides.

    Args:
      peer: the other side.
      rounds: timed passes of each side.
      side: ours.
      accumulated: whether the other side accumulates its fields as ours does.
      reencoded: whether it re-encodes the file first.
      narrow: whether it multiplies in bfloat16.
      goal: the most that ours may take of the other's time.
    """
    networks, recognizer = side.networks, side.recognizer
    other = peer.job(
        "file_to_label",
        weights=networks.motion_weights,
        classes=CLASSES,
        architecture=networks.architecture,
        clip=networks.clip_weights,
        video=side.video,
        segments=recognizer.views.num_segments,
        accumulated=accumulated,
        reencoded=reencoded,
        narrow=narrow,
    )
    times = in_turns([timed(side.label), other], rounds)
    stages = _stages(side)
    parts = in_turns(list(stages.values()), rounds)
    theirs = other.stages[-rounds:]
    notes = other.info | {
        "compile_s": side.compile_s,
        "stages_ours_s": {
            name: float(np.median(part)) for name, part in zip(stages, parts, strict=True)
        },
        "stages_other_s": {
            name: float(np.median([passed[name] for passed in theirs])) for name in theirs[0]
        },
    }
    other.drop()
    return Comparison(
        f"file to label, {FRAMES} frames, {recognizer.views.num_segments} fields, "
        f"{recognizer.video.source} motion, {networks.variant}, {side.dtype}",
        ("FFmpeg's encoder, " if reencoded else "")
        + "mv-extractor, timm, transformers"
        + (", autocast to bfloat16" if narrow else "")
        + ("" if accumulated else ", nothing accumulated"),
        1,
        "file",
        *times,
        goal=goal,
        notes=notes,
    )


def _stages(side: OurSide) -> dict[str, Callable[[], float]]:
    recognizer = side.recognizer
    clip = read_clip(side.video, recognizer.reading)
    view = recognizer.view(clip)
    model = recognizer.inference_model
    motion = _compiled(model.motion, motion_features)
    appearance = _compiled(model.clip, appearance_features)
    return {
        "read": timed(lambda: read_clip(side.video, side.recognizer.reading)),
        "views": timed(lambda: recognizer.view(clip)),
        "motion network": timed(lambda: jax.block_until_ready(motion(view["motion"]))),
        "CLIP": timed(lambda: jax.block_until_ready(appearance(view["images"]))),
    }


def _compiled(module: nnx.Module, function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    graph, state = nnx.split(module)
    options = compiler_options()

    @functools.partial(jax.jit, compiler_options=options)
    def compiled(state, inputs):
        return function(nnx.merge(graph, state), inputs)

    return functools.partial(compiled, state)


def many_files(side: OurSide, count: int, rounds: int) -> Comparison:
    """What it brings that a batch of files is decoded while the model works."""

    def together() -> None:
        files = [side.video] * count
        list(side.recognizer.predict_batch(files))

    def one_by_one() -> None:
        for _ in range(count):
            side.label()

    return Comparison(
        f"{count} files to labels, decoded ahead",
        "one by one, also ours",
        count,
        "file",
        *in_turns([timed(together), timed(one_by_one)], rounds),
    )
