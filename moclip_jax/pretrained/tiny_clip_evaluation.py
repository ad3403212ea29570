"""How good the embedded tiny CLIP is on groups that it was not trained on, and its model card."""

import io
import tempfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from PIL import Image

from moclip_jax.input_pipeline.datasets.shapes import MOTIONS, SHAPES, render_clip, render_still
from moclip_jax.input_pipeline.video.clip import VideoSpec, clip_from_frames, read_clip
from moclip_jax.models.clip import CLIP, normalize_images
from moclip_jax.pretrained.tiny_clip_data import RENDERED_SIZE, TEST_GROUPS, TRAINED_LENGTH, shrink
from moclip_jax.pretrained.tokenizers import tokenize

_SPEC = VideoSpec(
    width=RENDERED_SIZE, height=RENDERED_SIZE, clip_frames=4, frame_size=RENDERED_SIZE
)
_PROMPTS = ("a photo of a {}.", "a picture of a {}.", "a {}.")


def evaluate(
    clip: CLIP, tokenizer: Any, *, num_stills: int = 1200, num_clips: int = 360
) -> dict[str, float]:
    """Measure zero-shot accuracies on held-out groups.

    Args:
      num_stills: images, shapes in turn.
      num_clips: clips, classes in turn.

    Returns:
      Top-1 accuracies in 0..1 by what was measured: which of the 6 shapes, on stills, on the
      middle and on all 4 stored frames of prepared clips, and on the middle frames of MPEG-4
      files; and the classes "<shape> <motion>" on the middle frames, where a still can know 1/6.
    """
    shape_texts = _text_features(clip, tokenizer, SHAPES)
    class_names = [f"{shape} {motion}" for shape in SHAPES for motion in MOTIONS]
    class_texts = _text_features(clip, tokenizer, class_names)

    stills = np.stack(
        [
            shrink(
                Image.fromarray(
                    render_still(
                        SHAPES[index % len(SHAPES)],
                        group_seed=TEST_GROUPS + index,
                        clip_seed=0,
                        height=RENDERED_SIZE,
                        width=RENDERED_SIZE,
                    )
                )
            )
            for index in range(num_stills)
        ]
    )
    middles: list[np.ndarray] = []
    everywhere: list[np.ndarray] = []
    decoded: list[np.ndarray] = []
    for index in range(num_clips):
        frames = _class_clip(index)
        prepared = clip_from_frames(frames, _SPEC, fps=25.0)
        stored = [_read(jpeg) for jpeg in prepared.frames]
        middle = list(prepared.frame_indices).index(len(frames) // 2)
        middles.append(stored[middle])
        everywhere.extend(image for place, image in enumerate(stored) if place != middle)
        decoded.append(_middle_of_file(frames))
    shape_of_clip = np.arange(num_clips) // len(MOTIONS) % len(SHAPES)
    class_of_clip = np.arange(num_clips) % len(class_names)

    features = _image_features(clip, np.stack(middles))
    return {
        "shape, stills": _accuracy(
            _image_features(clip, stills), shape_texts, np.arange(num_stills) % len(SHAPES)
        ),
        "shape, middle frames of prepared clips": _accuracy(features, shape_texts, shape_of_clip),
        "shape, other frames of prepared clips": _accuracy(
            _image_features(clip, np.stack(everywhere)),
            shape_texts,
            np.repeat(shape_of_clip, len(everywhere) // num_clips),
        ),
        "shape, middle frames of MPEG-4 files": _accuracy(
            _image_features(clip, np.stack(decoded)), shape_texts, shape_of_clip
        ),
        "shape, from the class names": _accuracy(
            features, class_texts, shape_of_clip, classes_per_label=len(MOTIONS)
        ),
        "shape and motion, from the class names": _accuracy(features, class_texts, class_of_clip),
    }


def model_card(clip: CLIP, accuracies: Mapping[str, float]) -> str:
    """Return the README.md of the folder."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(clip, nnx.Param)))
    vision, text = clip.config.vision, clip.config.text
    rows = "\n".join(f"| {name} | {accuracy:.4f} |" for name, accuracy in accuracies.items())
    kind, losses = "CLIP", "CLIP's contrastive loss"
    if clip.config.is_siglip:
        kind, losses = "SigLIP", "SigLIP's loss and CLIP's"
    return f"""# Tiny {kind}

A {kind} of {parameters:,} parameters in Hugging Face's format. It knows the images of the embedded
data set `moving_shapes` and nothing else: {", ".join(SHAPES)}, in eight colours.

| | image tower | text tower |
|---|---|---|
| input | {vision.image_size} x {vision.image_size} pixels, patches of {vision.patch_size} | \
{text.max_length} tokens of {text.vocab_size} |
| width, layers, heads | {vision.hidden_size}, {vision.num_layers}, {vision.num_heads} | \
{text.hidden_size}, {text.num_layers}, {text.num_heads} |

## What it is for

It lets zero-shot classification, the text tower and the loader run without a download, in the demo
and in the tests. It is not a CLIP for real images.

    from moclip_jax.pretrained import load_tower
    clip, tokenizer = load_tower("tiny")

## Training

From random weights by `python -m moclip_jax.pretrained.train_tiny_clip` (about 20 minutes on two
CPU cores), with {losses} where all captions that are true of an image count as
matches, on captioned frames of clips rendered by `input_pipeline/datasets/shapes.py`, half of them
the middle frame, from groups (background and palette) that no data set uses. No image and no text
of anyone else went in.

## Accuracy

Zero-shot top-1 on held-out groups, as
`python -m moclip_jax.pretrained.train_tiny_clip --evaluate` prints it:

| what, on what | accuracy |
|---|---|
{rows}

The last row is at chance, 1/6: a single frame does not show which of 6 motions it is from.
Captions name motions at random, so that "star spinning" still finds the star.

## Limits

- It does not know words that are not in its captions, nor images of anything else.
- It was trained on texts of up to {TRAINED_LENGTH} tokens; longer ones are read, but their
  rest was never trained.
- Frames far from a clip's middle, where a shape may be large, small or at the edge, are a little
  harder (third row).

## Licence

Apache-2.0, like the code that rendered its images and trained it.
"""


def _text_features(clip: CLIP, tokenizer: Any, names: tuple[str, ...] | list[str]) -> jax.Array:
    prompts = [prompt.format(name) for name in names for prompt in _PROMPTS]
    tokens = tokenize(tokenizer, prompts, clip.config.text.max_length)
    features = _normalize(jax.jit(clip.encode_text)(jnp.asarray(tokens)))
    return _normalize(features.reshape(len(names), len(_PROMPTS), -1).mean(1))


def _image_features(clip: CLIP, images: np.ndarray) -> jax.Array:
    encode = jax.jit(
        lambda batch: clip.encode_image(normalize_images(batch, clip.config.preprocessing))
    )
    size = 120
    return _normalize(
        jnp.concatenate(
            [encode(images[start : start + size]) for start in range(0, len(images), size)]
        )
    )


def _normalize(features: jax.Array) -> jax.Array:
    return features / jnp.linalg.norm(features, axis=-1, keepdims=True)


def _accuracy(
    images: jax.Array, texts: jax.Array, labels: np.ndarray, classes_per_label: int = 1
) -> float:
    best = np.asarray(jnp.argmax(images @ texts.T, axis=-1)) // classes_per_label
    return float(np.mean(best == labels))


def _class_clip(index: int) -> np.ndarray:
    """Draw a clip of class `index` modulo 36, from a group of its own."""
    return render_clip(
        SHAPES[index // len(MOTIONS) % len(SHAPES)],
        MOTIONS[index % len(MOTIONS)],
        group_seed=TEST_GROUPS + index,
        clip_seed=1,
        num_frames=24,
        height=RENDERED_SIZE,
        width=RENDERED_SIZE,
    )


def _middle_of_file(frames: np.ndarray) -> np.ndarray:
    """Return the middle frame after a way through an MPEG-4 file and JPEG."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.avi"
        with av.open(path, "w") as output:
            stream = output.add_stream("mpeg4", rate=Fraction(25))
            stream.height, stream.width = frames.shape[1:3]
            stream.pix_fmt = "yuv420p"
            stream.codec_context.qmin = stream.codec_context.qmax = 4
            for frame in frames:
                output.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            output.mux(stream.encode(None))
        prepared = read_clip(path, _SPEC)
    middle = list(prepared.frame_indices).index(len(frames) // 2)
    return _read(prepared.frames[middle])


def _read(jpeg: bytes) -> np.ndarray:
    return shrink(Image.open(io.BytesIO(jpeg)))
