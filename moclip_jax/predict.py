"""Command line of recognition: videos in, labels out."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tensorflow as tf
from flax import nnx

from input_pipeline.dataset import example_from_video, view_of_example
from input_pipeline.video import PreparedVideo, VideoError, prepare_video
from moclip_jax import stream
from moclip_jax.export import Recognizer, load_export
from moclip_jax.extract_features import appearance_features, motion_features
from moclip_jax.zero_shot import class_embeddings

# Prompts around the user's own words, which may be a thing, a person or a whole scene.
WORD_TEMPLATES = ("{}", "a photo of {}.", "a video of {}.")


def make_classifier(
    recognizer: Recognizer, classes: Sequence[str] = ()
) -> Callable[[str | PreparedVideo], np.ndarray]:
    """Returns a function from a video to probabilities `[classes]` that sum to 1.

    Args:
      recognizer: an exported model.
      classes: words of the user's own to choose from, recognised from the picture alone
        (zero-shot); none means the classes the model was trained on, with motion.

    Raises (the returned function):
      VideoError: the file cannot be read; the message names it and the reason.
    """
    if classes:
        text = class_embeddings(
            recognizer.clip, recognizer.tokenizer, [[name] for name in classes], WORD_TEMPLATES
        )
    else:
        text = recognizer.text
    graphdef, state = nnx.split((recognizer.network, recognizer.clip, recognizer.head))

    @jax.jit
    def probabilities(state: Any, fields: jax.Array, images: jax.Array) -> jax.Array:
        network, clip, head = nnx.merge(graphdef, state)
        appearance = appearance_features(clip, images)
        if classes:
            appearance = appearance / jnp.linalg.norm(appearance, axis=-1, keepdims=True)
            logits = jnp.exp(clip.logit_scale[...]) * (appearance @ text.T)
        else:
            logits = head(motion_features(network, fields).mean(axis=1), appearance)
        return jax.nn.softmax(logits.astype(jnp.float32), axis=-1)[0]

    def classify(video: str | PreparedVideo) -> np.ndarray:
        if isinstance(video, str):
            video = prepare_video(video, recognizer.video)
        view = view_of_example(
            example_from_video(video),
            recognizer.video,
            motion=recognizer.views,
            frames=recognizer.frame,
            image_size=recognizer.clip.config.vision.image_size,
            # Only a random frame needs it; the same file always gets the same label.
            seed=tf.zeros([2], tf.int64),
        )
        fields, images = (np.asarray(view[name])[None] for name in ("motion", "images"))
        return np.asarray(probabilities(state, fields, images))

    return classify


def predict_videos(
    recognizer: Recognizer, videos: Sequence[str], *, topk: int = 5, classes: Sequence[str] = ()
) -> Iterator[dict[str, Any]]:
    """Yields one result a video, in order.

    A result holds `video` and either `predictions`, a list of `label` and `probability` (0 to 1),
    most likely first, or `error`, a sentence; one bad video does not stop the others.
    """
    names = tuple(classes) or recognizer.class_names
    classify = make_classifier(recognizer, classes)
    for video in videos:
        try:
            scores = classify(video)
        except VideoError as error:
            yield {"video": video, "error": str(error)}
            continue
        yield {"video": video, "predictions": guesses(scores, names, topk)}


def guesses(scores: np.ndarray, names: Sequence[str], topk: int) -> list[dict[str, Any]]:
    """Returns `label` and `probability` of the `topk` most likely classes, most likely first."""
    best = np.argsort(-scores, kind="stable")[:topk]
    return [{"label": names[i], "probability": round(float(scores[i]), 6)} for i in best]


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Returns the command line's values; exits with status 2 where it is not of the right form."""
    parser = argparse.ArgumentParser(
        prog="python -m moclip_jax.predict",
        description="Label videos with a trained model.",
        epilog="example: python -m moclip_jax.predict --workdir=runs/demo --topk=3 *.mp4",
    )
    parser.add_argument("--workdir", required=True, help="folder of a finished run, or its export")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--topk", type=int, default=5, help="labels to give for each video")
    parser.add_argument("--classes", help="your own labels, 'a dog running,a person juggling'")
    parser.add_argument("videos", nargs="*", metavar="VIDEO", help="any file FFmpeg can read")
    stream.add_arguments(parser)
    arguments = parser.parse_args(argv)
    stream.check_arguments(parser, arguments)
    if arguments.classes is not None:
        arguments.classes = [word.strip() for word in arguments.classes.split(",") if word.strip()]
        if len(arguments.classes) < 2:
            parser.error("--classes needs at least two labels, separated by commas")
    if arguments.topk < 1:
        parser.error(f"--topk={arguments.topk} must be at least 1")
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a result for each video; returns 1 if any failed."""
    arguments = parse_arguments(argv)
    workdir = Path(arguments.workdir).expanduser()
    try:
        recognizer = load_export(
            workdir if (workdir / "metadata.json").exists() else workdir / "export"
        )
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.stream:
        classify = make_classifier(recognizer, arguments.classes or ())
        names = arguments.classes or recognizer.class_names
        return stream.run(
            arguments,
            recognizer.video,
            lambda video: guesses(classify(video), names, arguments.topk),
        )
    failed = False
    for result in predict_videos(
        recognizer, arguments.videos, topk=arguments.topk, classes=arguments.classes or ()
    ):
        failed |= "error" in result
        if arguments.json:
            print(json.dumps(result), flush=True)
        elif "error" in result:
            print(f"{result['video']}: error: {result['error']}", flush=True)
        else:
            print(result["video"])
            for guess in result["predictions"]:
                print(f"  {guess['probability']:6.1%}  {guess['label']}", flush=True)
    return int(failed)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(130)
