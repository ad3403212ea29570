"""Rows from a video file to its label: 300 frames, 32 motion fields and one picture."""

from collections.abc import Callable

import jax
import numpy as np
from flax import nnx
from moclip_jax.input_pipeline.video.clip import read_clip

from benchmarks.clips import generated_video
from benchmarks.networks import CLASSES, Networks
from benchmarks.peer import Peer
from benchmarks.timing import Comparison, in_turns, timed
from moclip_jax.config import default_config, motion_views, video_spec
from moclip_jax.export.exporter import Recognizer
from moclip_jax.inference.recognize import Classifier, predict_videos
from moclip_jax.models.fusion import FusionConfig, FusionHead
from moclip_jax.runtime.device import matmul_dtype

FRAMES = 300


def make_recognizer(networks: Networks, source: str, dtype: str = "auto") -> Recognizer:
    """Returns what `predict` loads, with the published protocol and random weights.

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
    return Recognizer(
        class_names=tuple(f"class {number}" for number in range(CLASSES)),
        network=networks.motion,
        clip=networks.clip,
        tokenizer=networks.tokenizer,
        head=head,
        text=np.zeros((CLASSES, networks.clip.config.projection_dim), np.float32),
        templates=tuple(config.zero_shot.templates),
        video=video_spec(config),
        views=motion_views(config.motion, num_segments=config.predict.num_segments),
        frame=config.clip.frame,
        clip_dtype=dtype,
        motion_dtype=dtype,
    )


class OurSide:
    """What `recognize.make_classifier` does with a file.

    Args:
      networks: both backbones.
      source: as `make_recognizer`.
      dtype: as `make_recognizer`.

    Attributes:
      dtype: as it was given, and what it means here.
      recognizer: what `predict` loads.
      classifier: compiled.
      video: the file.
      compile_s: seconds that the first file took longer than another; programs that a side before
        has compiled may come from the cache.
    """

    def __init__(self, networks: Networks, source: str, dtype: str = "auto"):
        self.dtype = f"{dtype} ({matmul_dtype(dtype).name})" if dtype == "auto" else dtype
        self.recognizer = make_recognizer(networks, source, dtype)
        self.classifier = Classifier(self.recognizer)
        self.video = str(generated_video(networks.folder, FRAMES))
        first, second = (timed(self.label)() for _ in range(2))
        self.compile_s = first - second

    def label(self) -> None:
        """From the file to its label."""
        self.classifier.probabilities_of_file(self.video)


def one_file(
    networks: Networks,
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
      networks: both backbones.
      peer: the other side.
      rounds: timed passes of each side.
      side: ours.
      accumulated: whether the other side accumulates its fields as ours does.
      reencoded: whether it encodes the file anew first.
      narrow: whether it multiplies in bfloat16.
      goal: the most that ours may take of the other's time.
    """
    recognizer = side.recognizer
    other = peer.job(
        "file_to_label",
        weights=networks.motion_weights,
        classes=CLASSES,
        folder=networks.clip_weights,
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
        f"{recognizer.video.source} motion, {side.dtype}",
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
    classifier = side.classifier
    prepared = read_clip(side.video, side.recognizer.reading)
    view = classifier.view(prepared)
    return {
        "read": timed(lambda: read_clip(side.video, side.recognizer.reading)),
        "views": timed(lambda: classifier.view(prepared)),
        "motion network": timed(
            lambda: jax.block_until_ready(classifier.run_motion_network(view["motion"]))
        ),
        "CLIP": timed(lambda: jax.block_until_ready(classifier.run_clip(view["images"]))),
    }


def many_files(side: OurSide, count: int, rounds: int) -> Comparison:
    """What it brings that a batch of files is decoded while the model works."""

    def together() -> None:
        files = [side.video] * count
        list(predict_videos(side.recognizer, files, classifier=side.classifier))

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
