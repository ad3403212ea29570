"""Rows from a video file to its label: 300 frames, 32 motion fields and one picture."""

import functools
import time
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from benchmarks.clips import generated_video
from benchmarks.networks import CLASSES, Networks
from benchmarks.peer import Peer
from benchmarks.timing import Comparison, in_turns, timed
from configs import common
from input_pipeline.video import prepare_video
from moclip_jax.device_rules import compiler_options
from moclip_jax.export import Recognizer
from moclip_jax.extract_features import appearance_features, motion_features
from moclip_jax.models.fusion import FusionConfig, FusionHead
from moclip_jax.recognize import Classifier, predict_videos
from moclip_jax.train_motion import motion_views, video_spec

FRAMES = 300


def make_recognizer(networks: Networks, source: str) -> Recognizer:
    """Returns what `predict` loads, with the published protocol and random weights.

    Args:
      networks: both backbones.
      source: where motion comes from, `config.motion.source`.
    """
    config = common.get_config()
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
        clip_dtype=config.clip.dtype,
    )


def one_file(
    networks: Networks, peer: Peer, rounds: int, *, source: str, accumulated: bool
) -> Comparison:
    """A file to its label, and the seconds of each stage on both sides.

    Args:
      networks: both backbones.
      peer: the other side.
      rounds: timed passes of each side.
      source: where our motion comes from, `config.motion.source`.
      accumulated: whether the other side accumulates its fields as ours does.
    """
    recognizer = make_recognizer(networks, source)
    video = str(generated_video(networks.folder, FRAMES))
    classifier = Classifier(recognizer)
    start = time.perf_counter()
    view = classifier.view(prepare_video(video, recognizer.video))
    classifier.probabilities(view)
    first = time.perf_counter() - start
    other = peer.job(
        "file_to_label",
        weights=networks.motion_weights,
        classes=CLASSES,
        folder=networks.clip_weights,
        video=video,
        segments=recognizer.views.num_segments,
        accumulated=accumulated,
    )
    ours = timed(
        lambda: classifier.probabilities(classifier.view(prepare_video(video, recognizer.video)))
    )
    times = in_turns([ours, other], rounds)
    stages = _stages(recognizer, classifier, video)
    parts = in_turns(list(stages.values()), rounds)
    theirs = other.stages[-rounds:]
    notes = other.info | {
        "compile_s": first - float(np.median(times[0])),
        "stages_ours_s": {
            name: float(np.median(part)) for name, part in zip(stages, parts, strict=True)
        },
        "stages_other_s": {
            name: float(np.median([passed[name] for passed in theirs])) for name in theirs[0]
        },
    }
    other.drop()
    return Comparison(
        f"file to label, {FRAMES} frames, {recognizer.views.num_segments} fields, {source} motion",
        "mv-extractor, timm, transformers" + ("" if accumulated else ", nothing accumulated"),
        1,
        "file",
        *times,
        goal=1 / 3 if accumulated else None,
        notes=notes,
    )


def _stages(
    recognizer: Recognizer, classifier: Classifier, video: str
) -> dict[str, Callable[[], float]]:
    prepared = prepare_video(video, recognizer.video)
    view = classifier.view(prepared)
    network_graph, network_state = nnx.split(classifier.network)
    clip_graph, clip_state = nnx.split(classifier.clip)
    compiled = functools.partial(jax.jit, compiler_options=compiler_options())
    motion = compiled(lambda state, x: motion_features(nnx.merge(network_graph, state), x))
    appearance = compiled(lambda state, x: appearance_features(nnx.merge(clip_graph, state), x))
    return {
        "read": timed(lambda: prepare_video(video, recognizer.video)),
        "views": timed(lambda: classifier.view(prepared)),
        "motion network": timed(lambda: motion(network_state, view["motion"]).block_until_ready()),
        "CLIP": timed(lambda: appearance(clip_state, view["images"]).block_until_ready()),
    }


def many_files(networks: Networks, count: int, rounds: int) -> Comparison:
    """What it brings that a batch of files is decoded while the model works."""
    recognizer = make_recognizer(networks, "native")
    video = str(generated_video(networks.folder, FRAMES))
    classifier = Classifier(recognizer)

    def one_by_one() -> None:
        for _ in range(count):
            classifier.probabilities(classifier.view(prepare_video(video, recognizer.video)))

    times = in_turns(
        [
            timed(lambda: list(predict_videos(recognizer, [video] * count, classifier=classifier))),
            timed(one_by_one),
        ],
        rounds,
    )
    return Comparison(
        f"{count} files to labels, decoded ahead", "one by one, also ours", count, "file", *times
    )
