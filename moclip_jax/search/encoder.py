"""What chunks and texts become: CLIP features, and probabilities of a trained model's classes."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from moclip_jax.input_pipeline.images import clip_image
from moclip_jax.input_pipeline.video.spec import VideoSpec
from moclip_jax.search.chunks import Chunk, ChunkForm

# Images of one call, so that the program is compiled once.
_BATCH = 8


class Encoder(Protocol):
    """Turns chunks and texts into vectors.

    Attributes:
      identity: What an index remembers of it, and `open_encoder` opens it by.
      class_names: The trained classes; none for a CLIP alone.
      video: Form of videos that it takes.
    """

    identity: dict[str, str]
    class_names: tuple[str, ...]
    video: VideoSpec

    def chunks(self, chunks: Sequence[Chunk]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return what is kept of chunks, float32.

        Returns:
          Unit vectors `[n, D]`, probabilities `[n, classes]`, and features of the motion `[n, Dm]`;
          a CLIP alone has no classes and no features of motion.
        """

    @property
    def text(self) -> "Callable[[str], np.ndarray]":
        """From a text to its unit vector, float32 `[D]`."""


def open_encoder(identity: dict[str, str]) -> "Encoder":
    """Open `{"clip": SOURCE}` or `{"workdir": FOLDER}`.

    Raises:
      OSError: As `load_tower` or `moclip_jax.load`.
      ValueError: As these.
    """
    if "workdir" in identity:
        return TrainedEncoder(identity["workdir"])
    return ClipEncoder(identity["clip"])


class ClipEncoder:
    """A CLIP, of which words are searched for in pictures."""

    class_names: tuple[str, ...] = ()

    def __init__(self, source: str):
        """Load it: `source` as `moclip_jax.load_tower` takes it."""
        from moclip_jax.pretrained import load_tower

        self.identity = {"clip": source}
        self.video = VideoSpec(source="auto", max_frames=None, max_seconds=None)
        self.clip, tokenizer = load_tower(source)
        _check_text_side(self.clip, source)
        self.text = TextTower(self.clip, tokenizer)

    def chunks(self, chunks: Sequence[Chunk]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Encoder`."""
        nothing = np.zeros((len(chunks), 0), np.float32)
        return self.images([chunk.jpeg for chunk in chunks]), nothing, nothing

    def images(self, jpegs: Sequence[bytes]) -> np.ndarray:
        """Return the unit vectors of images, float32 `[n, D]`."""
        config = self.clip.config
        size, prepared = config.image_size, config.preprocessing
        pixels = np.stack(
            [
                clip_image(
                    jpeg, size, prepared.resize_size, prepared.resample, square=prepared.square
                )
                for jpeg in jpegs
            ]
        )
        padded = np.concatenate([pixels, np.repeat(pixels[-1:], -len(pixels) % _BATCH, axis=0)])
        found = [
            np.asarray(self._encode(padded[i : i + _BATCH])) for i in range(0, len(padded), _BATCH)
        ]
        return _unit(np.concatenate(found)[: len(pixels)])

    @functools.cached_property
    def _encode(self) -> Callable[[np.ndarray], Any]:
        import jax
        import jax.numpy as jnp
        from flax import nnx

        from moclip_jax.models.clip import normalize_images
        from moclip_jax.models.inference import clip_for_inference
        from moclip_jax.runtime.device import compiler_options, matmul_dtype

        graph, state = nnx.split(clip_for_inference(self.clip, matmul_dtype("auto")))
        prepared = self.clip.config.preprocessing

        def encode(state: nnx.State, images: jax.Array) -> jax.Array:
            features = nnx.merge(graph, state).image_features(normalize_images(images, prepared))
            return features.astype(jnp.float32)

        return functools.partial(jax.jit(encode, compiler_options=compiler_options()), state)


class TrainedEncoder:
    """A trained model: its CLIP for words, and its own classes, which know the motion."""

    def __init__(self, workdir: str):
        """Load it: folder of a finished run, or its export."""
        from moclip_jax.inference.recognizer import load

        self._model = load(workdir)
        self.identity = {"workdir": workdir}
        self.class_names, self.video = self._model.class_names, self._model.reading

    def chunks(self, chunks: Sequence[Chunk]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """See `Encoder`."""
        vectors, probabilities, motions = [], [], []
        for chunk in chunks:
            assert chunk.clip is not None
            logits, appearance, motion = self._model.outputs(self._model.view(chunk.clip))
            odds = np.exp(logits - logits.max())
            vectors.append(appearance)
            probabilities.append(odds / odds.sum())
            motions.append(motion)
        kept = _unit(np.stack(vectors)), np.stack(probabilities).astype(np.float32)
        return *kept, np.stack(motions)

    @functools.cached_property
    def text(self) -> "TextTower":
        """See `Encoder`."""
        _check_text_side(self._model.model.clip, self.identity["workdir"])
        assert self._model.load_tokenizer is not None
        return TextTower(self._model.model.clip, self._model.load_tokenizer())


def _check_text_side(clip: Any, source: str) -> None:
    from moclip_jax.models.imagenet_tower import ImageNetTower

    if isinstance(clip, ImageNetTower):
        raise ValueError(
            f"{source}: its image network has no text side, so words cannot be searched for; "
            "choose a CLIP, or a run with one"
        )


class TextTower:
    """Turns texts into unit vectors, the mean of a few prompts around each (`WORD_TEMPLATES`)."""

    def __init__(self, clip: Any, tokenizer: Any):
        self._clip, self._tokenizer = clip, tokenizer

    def __call__(self, text: str) -> np.ndarray:
        """Return the unit vector of a text, float32 `[D]`."""
        from moclip_jax.inference.label_sets import WORD_TEMPLATES
        from moclip_jax.pretrained import tokenize

        prompts = [template.format(text) for template in WORD_TEMPLATES]
        tokens = np.asarray(tokenize(self._tokenizer, prompts, self._clip.config.text.max_length))
        return _unit(np.asarray(self._encode(tokens)).mean(axis=0))

    @functools.cached_property
    def _encode(self) -> Callable[[np.ndarray], Any]:
        import jax
        import jax.numpy as jnp
        from flax import nnx

        graph, state = nnx.split(self._clip)

        def encode(state: nnx.State, tokens: jax.Array) -> jax.Array:
            return nnx.merge(graph, state).encode_text(tokens).astype(jnp.float32)

        return functools.partial(jax.jit(encode), state)


def chunk_form(encoder: Encoder, longest_s: float) -> ChunkForm:
    """Return how chunks are made for an encoder."""
    return ChunkForm(encoder.video, longest_s, with_motion=bool(encoder.class_names))


def absolute(identity: dict[str, str]) -> dict[str, str]:
    """Return an identity that holds from other folders too."""
    return {
        kind: str(Path(name).expanduser().resolve()) if Path(name).expanduser().exists() else name
        for kind, name in identity.items()
    }


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
