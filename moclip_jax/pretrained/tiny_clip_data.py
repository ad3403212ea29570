"""Captioned images to train and test the embedded tiny CLIP on."""

import dataclasses
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from moclip_jax.input_pipeline.datasets.shapes import (
    COLORS,
    MOTIONS,
    SHAPES,
    Appearance,
    appearance,
    render_clip,
)

IMAGE_SIZE = 48
# Tokens; training captions are short, and attention over padding costs time.
TRAINED_LENGTH = 32
RENDERED_SIZE = 128  # that of the embedded data set
CLIP_FRAMES = 24  # that of its clips

# Far from the groups of any data set, and from each other.
TRAIN_GROUPS = 2**60
TEST_GROUPS = 2**61

TEMPLATES = (
    "{}",
    "a {}.",
    "a photo of a {}.",
    "a picture of a {}.",
    "an image of a {}.",
    "a drawing of a {}.",
    "a video of a {}.",
    "a still from a video of a {}.",
    "a close-up photo of a {}.",
    "a blurry photo of a {}.",
    "an example of a {}.",
    "there is a {} here.",
    "this is a {}.",
    "we see a {}.",
)


@dataclasses.dataclass(frozen=True)
class Caption:
    """A caption and what it claims; None where it says nothing."""

    text: str
    shape: str
    color: str | None
    size: str | None


@dataclasses.dataclass(frozen=True)
class ImageSet:
    """Images and what is true of them.

    Attributes:
      images: uint8 [n, IMAGE_SIZE, IMAGE_SIZE, 3].
      shapes: int32 [n], indices into `SHAPES`.
      looks: n colours and sizes.
    """

    images: np.ndarray
    shapes: np.ndarray
    looks: list[Appearance]


def random_caption(rng: np.random.Generator, shape: str, look: Appearance) -> Caption:
    """State the shape in one of many ways, and sometimes its colour and size.

    Half of the captions name a motion, drawn without a look at the image: class names of the
    data set do so, too, and the text tower must find the shape in them nevertheless.
    """
    color = look.color if rng.random() < 0.25 else None
    size = look.size if rng.random() < 0.15 else None
    motion = str(rng.choice(MOTIONS)) if rng.random() < 0.5 else None
    words = " ".join(word for word in (size, color, shape, motion) if word)
    return Caption(str(rng.choice(TEMPLATES)).format(words), shape, color, size)


def matches(captions: list[Caption], shapes: np.ndarray, looks: list[Appearance]) -> np.ndarray:
    """Return which caption is true of which image: bool [images, captions]."""

    def agree(claims: Sequence[str | None], truth: Sequence[str | None]) -> np.ndarray:
        claimed, true = np.array(claims, object)[None], np.array(truth, object)[:, None]
        return (claimed == true) | (claimed == None)  # noqa: E711 (elementwise)

    return (
        agree([caption.shape for caption in captions], [SHAPES[index] for index in shapes])
        & agree([caption.color for caption in captions], [look.color for look in looks])
        & agree([caption.size for caption in captions], [look.size for look in looks])
    )


def corpus() -> list[str]:
    """Return the texts that the vocabulary is learnt from: every word there is, in its place."""
    nouns = [
        f"{color} {shape} {motion}" for color in COLORS for shape in SHAPES for motion in MOTIONS
    ]
    sized = [f"{size} {noun}" for size in ("small", "large") for noun in nouns]
    return [template.format(noun) for template in TEMPLATES for noun in sized]


def training_images(num_images: int) -> ImageSet:
    """Draw frames of clips, shapes in turn, each from a group of its own.

    Half are middle frames and half any frame of a clip, half have the marks of JPEG. Away from the
    middle a shape may have grown or shrunk, so captions of those images state no size.
    """
    images, looks = [], []
    for index in range(num_images):
        group = TRAIN_GROUPS + index
        rng = np.random.default_rng((TRAIN_GROUPS, index))
        middle = rng.random() < 0.5
        shown = CLIP_FRAMES // 2 if middle else int(rng.integers(CLIP_FRAMES))
        frame = render_clip(
            SHAPES[index % len(SHAPES)],
            str(rng.choice(MOTIONS)),
            group_seed=group,
            clip_seed=0,
            num_frames=CLIP_FRAMES,
            height=RENDERED_SIZE,
            width=RENDERED_SIZE,
            shown=[shown],
        )
        image = Image.fromarray(frame[0])
        if rng.random() < 0.5:
            coded = io.BytesIO()
            image.save(coded, "JPEG", quality=int(rng.integers(60, 96)))
            image = Image.open(coded)
        images.append(shrink(image))
        look = appearance(group_seed=group, clip_seed=0)
        looks.append(look if middle else dataclasses.replace(look, size=None))
    shapes = np.arange(num_images, dtype=np.int32) % len(SHAPES)
    return ImageSet(np.stack(images), shapes, looks)


def shrink(image: Image.Image) -> np.ndarray:
    """Return the square image as uint8 [IMAGE_SIZE, IMAGE_SIZE, 3], bilinear with antialias."""
    return np.asarray(image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR))
