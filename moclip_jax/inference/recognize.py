"""Recognition of video files with an exported model: whole videos, windows of them, own words."""

import collections
import dataclasses
import functools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from moclip_jax.export.exporter import Recognizer
from moclip_jax.inference.zero_shot import class_embeddings, class_phrase
from moclip_jax.input_pipeline.video.clip import (
    Clip,
    VideoError,
    VideoSpec,
    frame_positions,
    read_clip,
)
from moclip_jax.input_pipeline.video.decode import check_video
from moclip_jax.input_pipeline.views import images, test_view
from moclip_jax.runtime.device import compiler_options
from moclip_jax.training.features import appearance_features, motion_features

# Prompts around the user's own words, which may be a thing, a person or a whole scene.
WORD_TEMPLATES = ("{}", "a photo of {}.", "a video of {}.")
# A window shorter than this has no motion to speak of.
_LEAST_FRAMES = 3
# Frames that a window may have its RGB frame from, at most, in one video.
_MOST_CLIP_FRAMES = 1000


@dataclasses.dataclass(frozen=True)
class Window:
    """Part of a video.

    Attributes:
      start_s: its beginning in seconds.
      end_s: its end in seconds.
      video: its frames, as if they were a video of their own.
    """

    start_s: float
    end_s: float
    video: Clip


class Classifier:
    """Gives videos probabilities over the model's classes, or over words of the user's own.

    Words are recognised from the picture (zero-shot CLIP). Those that name a trained class (see
    `match_words`) are told from one another by the trained head, which knows the motion too.

    Attributes:
      labels: the classes, or the words, in the order of the probabilities.
      trained_as: for each word the trained class that it names, or ''; empty without words.
      network: the motion network in the form that runs.
      clip: likewise.
    """

    def __init__(self, recognizer: Recognizer, words: Sequence[str] = ()):
        self.labels = tuple(words) or recognizer.class_names
        self.trained_as: tuple[str, ...] = ()
        self._recognizer = recognizer
        self.network, self.clip = recognizer.frozen
        self._motion = _compiled(
            self.network, lambda network, fields: motion_features(network, fields).mean(axis=1)
        )
        self._appearance = _compiled(self.clip, appearance_features)
        self._head = _compiled(
            recognizer.head,
            lambda head, motion, appearance: head(motion, appearance),
        )
        if words:
            names = [class_phrase(name) for name in recognizer.class_names]
            clip, tokenizer = recognizer.clip, recognizer.tokenizer
            self._text, class_text = (
                class_embeddings(clip, tokenizer, [[phrase] for phrase in phrases], WORD_TEMPLATES)
                for phrases in (words, names)
            )
            self._owners = match_words(words, recognizer.class_names, self._text, class_text)
            self.trained_as = tuple(
                recognizer.class_names[owner] if owner >= 0 else "" for owner in self._owners
            )
            self._logit_scale = float(np.exp(np.asarray(recognizer.clip.logit_scale[...])))

    def view(self, video: Clip) -> dict[str, np.ndarray]:
        """Returns what the networks see: `motion` and `images`, each a batch of one."""
        recognizer = self._recognizer
        motion = test_view(video, recognizer.views, recognizer.video)
        return {"motion": motion[None], "images": self._images(video)}

    def _images(self, video: Clip) -> np.ndarray:
        recognizer = self._recognizer
        return images(video, recognizer.frame, recognizer.clip.config.vision.image_size)[None]

    def probabilities(self, view: dict[str, np.ndarray]) -> np.ndarray:
        """Returns float64 `[labels]` that sum to 1, for what `view` gave."""
        motion, appearance = self.run_motion_network(view["motion"]), self.run_clip(view["images"])
        logits = self._head(motion, appearance)
        return self.combine(*(np.asarray(x[0], np.float64) for x in (logits, appearance)))

    def run_motion_network(self, motion: np.ndarray) -> jax.Array:
        """Returns float32 `[1, F]` for `motion` of `view`."""
        return self._motion(motion)

    def run_clip(self, images: np.ndarray) -> jax.Array:
        """Returns float32 `[1, D]` for `images` of `view`."""
        return self._appearance(images)

    def probabilities_of_file(self, path: str) -> np.ndarray:
        """Returns float64 `[labels]` that sum to 1.

        Raises:
          VideoError: The file cannot be read; the message names it and the reason.
        """
        return self.probabilities(self.view(read_clip(path, self._recognizer.reading)))

    def combine(
        self, logits: np.ndarray, appearance: np.ndarray, *, use_head: bool = True
    ) -> np.ndarray:
        """Returns float64 `[labels]` from the head's logits `[classes]` and CLIP's feature `[D]`.

        Without the head, words are told apart by the picture alone.
        """
        if not self.trained_as:
            return _softmax(logits)
        appearance = appearance / np.linalg.norm(appearance)
        zero_shot = _softmax(self._logit_scale * (self._text @ appearance))
        return word_probabilities(zero_shot, logits, self._owners) if use_head else zero_shot


def _compiled(module: nnx.Module, function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Returns a compiled function of what `function` takes after the module; gives float32."""
    graph, state = nnx.split(module)

    @functools.partial(jax.jit, compiler_options=compiler_options())
    def compiled(state: Any, *inputs: Any) -> jax.Array:
        return function(nnx.merge(graph, state), *inputs).astype(jnp.float32)

    return functools.partial(compiled, state)


def match_words(
    words: Sequence[str],
    class_names: Sequence[str],
    word_text: np.ndarray,
    class_text: np.ndarray,
) -> np.ndarray:
    """Says which words name a trained class.

    A word does if it is the class's name (capitals, `_` and CamelCase aside), or if CLIP's text
    tower finds it nearer to that class than any two of the trained classes are to each other.

    Args:
      words: of the user.
      class_names: of the model.
      word_text: unit-length text features `[words, D]`.
      class_text: unit-length text features `[classes, D]`, by the same templates.

    Returns:
      int `[words]`, the position of the class, or -1.
    """
    names = {class_phrase(name): position for position, name in enumerate(class_names)}
    between = class_text @ class_text.T
    np.fill_diagonal(between, -np.inf)
    cosines = word_text @ class_text.T
    nearest = cosines.argmax(axis=1)
    # A hair more than rounding: if CLIP cannot tell two classes apart, words match by name alone.
    limit = between.max() + 1e-4 if len(class_names) > 1 else np.inf
    near = cosines.max(axis=1) > limit
    return np.array(
        [
            names.get(class_phrase(word), position if is_near else -1)
            for word, position, is_near in zip(words, nearest.tolist(), near, strict=True)
        ]
    )


def word_probabilities(zero_shot: np.ndarray, logits: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Combines zero-shot CLIP and the trained head over words.

    How likely the words that name trained classes are together, against all others, only zero-shot
    CLIP can say: the head was trained on nothing else than its classes. How this share divides
    among them the head says, which saw motion and picture in training. Several words for one class
    divide its part as zero-shot CLIP does. So words that name no class leave zero-shot as it is,
    and the names of all classes give the trained head's own probabilities.

    Args:
      zero_shot: probabilities `[words]`.
      logits: of the trained head `[classes]`.
      owners: from `match_words`.

    Returns:
      float64 `[words]` that sum to 1.
    """
    known = owners >= 0
    if not known.any():
        return zero_shot
    classes, position = np.unique(owners[known], return_inverse=True)
    share = zero_shot[known]
    of_class = np.bincount(position, share)[position]
    same = np.divide(share, of_class, out=np.zeros_like(share), where=of_class > 0)
    combined = zero_shot.astype(np.float64)
    combined[known] = share.sum() * _softmax(logits[classes])[position] * same
    return combined / combined.sum()


def split_windows(video: Clip, seconds: float, spec: VideoSpec) -> list[Window]:
    """Cuts a video into equal windows of about `seconds`, at least one.

    A window begins with the I-frame at or before its place, so that its motion is accumulated as in
    the whole video; it then overlaps the one before by less than `spec.gop_size` frames.

    Raises:
      ValueError: the video declares no frame rate, so that its seconds are not known.
    """
    if not video.fps:
        raise ValueError("declares no frame rate, so a timeline has no seconds")
    length = video.num_frames
    count = round(length / video.fps / seconds)
    count = min(max(count, 1), max(length // _LEAST_FRAMES, 1))
    starts = video.group_starts()
    windows = []
    for number in range(count):
        begin, end = (length * n // count for n in (number, number + 1))
        begin = int(starts[np.searchsorted(starts, begin, side="right") - 1])
        # At least one RGB frame: the last before the window's end.
        chosen = (video.frame_indices >= begin) & (video.frame_indices < end)
        if not chosen.any():
            chosen[max(int(np.searchsorted(video.frame_indices, end)) - 1, 0)] = True
        part = video.part(begin, end, chosen)
        windows.append(Window(begin / video.fps, end / video.fps, part))
    return windows


def read_here(function: Callable[..., Any], path: str, *arguments: Any) -> Any:
    """Calls `function(path, *arguments)`; stands where an `SubprocessReader` may be."""
    return function(path, *arguments)


def decode_for_windows(
    path: str, seconds: float, spec: VideoSpec, read: Callable[..., Any] = read_here
) -> Clip:
    """Prepares a video with an RGB frame for each of its windows, besides those of `spec`."""
    checked = read(check_video, path, spec.limits)
    windows = round(checked.num_packets / checked.fps / seconds) if checked.fps else 1
    # An odd multiple of equal parts has, among its centres, those of the parts themselves.
    multiple = -(-windows // spec.clip_frames) | 1
    most = (_MOST_CLIP_FRAMES // spec.clip_frames - 1) | 1
    frames = spec.clip_frames * min(multiple, most)
    return read(read_clip, path, dataclasses.replace(spec, clip_frames=frames))


def with_frames_of(video: Clip, spec: VideoSpec) -> Clip:
    """Returns the video with the RGB frames alone that `spec` keeps."""
    wanted = frame_positions(video.num_frames, spec.clip_frames)
    return video.with_frames(np.isin(video.frame_indices, wanted))


def make_classifier(
    recognizer: Recognizer, classes: Sequence[str] = ()
) -> Callable[[str], np.ndarray]:
    """Returns a function from a video file to probabilities `[classes]` that sum to 1.

    Args:
      recognizer: an exported model.
      classes: words of the user's own to choose from; none means the model's classes.

    Raises (the returned function):
      VideoError: the file cannot be read; the message names it and the reason.
    """
    return Classifier(recognizer, classes).probabilities_of_file


def best_labels(classifier: Classifier, scores: np.ndarray, topk: int) -> list[dict[str, Any]]:
    """Returns `label`, `probability` and, for such words, `trained_as`, most likely first."""
    order = np.argsort(-scores, kind="stable")[:topk]
    trained_as = classifier.trained_as or ("",) * len(scores)
    return [
        {"label": classifier.labels[i], "probability": round(float(scores[i]), 6)}
        | ({"trained_as": trained_as[i]} if trained_as[i] else {})
        for i in order
    ]


def predict_videos(
    recognizer: Recognizer,
    videos: Iterable[str | VideoError],
    *,
    topk: int = 5,
    classes: Sequence[str] = (),
    window_s: float = 0.0,
    num_workers: int = 0,
    read: Callable[..., Any] = read_here,
    classifier: Classifier | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields one result a video, in order; files are decoded ahead while the model works.

    A result holds `video` and either `predictions`, a list of `label` and `probability` (0 to 1),
    most likely first, or `error`, a sentence; one bad video does not stop the others. Words that
    name a trained class carry it as `trained_as`. With windows there is `timeline` too, a list of
    `start` and `end` in seconds and `predictions`.

    Args:
      recognizer: an exported model.
      videos: files; an error stands for a file already known to be bad.
      topk: labels to give.
      classes: words of the user's own; none means the model's classes.
      window_s: length of the timeline's windows in seconds; 0 for no timeline.
      num_workers: threads that decode; 0 means one for each core.
      read: calls a function of a file; an
        `moclip_jax.input_pipeline.video.subprocess_pool.SubprocessReader` keeps a file that
        crashes FFmpeg from ending the program.
      classifier: one that is made already, with what it has compiled; `classes` are then its own.
    """
    classifier = classifier or Classifier(recognizer, classes)
    spec = recognizer.video

    def decode(video: str | VideoError) -> tuple[dict[str, np.ndarray], list[Window]]:
        if isinstance(video, VideoError):
            raise video
        if not window_s:
            return classifier.view(read(read_clip, video, recognizer.reading)), []
        prepared = decode_for_windows(video, window_s, spec, read)
        try:
            windows = split_windows(prepared, window_s, spec)
        except ValueError as error:
            raise VideoError(video, str(error)) from error
        return classifier.view(with_frames_of(prepared, spec)), windows

    def best(scores: np.ndarray) -> list[dict[str, Any]]:
        return best_labels(classifier, scores, topk)

    for video, decoded in decoded_ahead(decode, videos, num_workers or os.cpu_count() or 1):
        name = video.path if isinstance(video, VideoError) else video
        try:
            view, windows = decoded.result()
        except VideoError as error:
            yield {"video": name, "error": str(error)}
            continue
        result = {"video": name, "predictions": best(classifier.probabilities(view))}
        if window_s:
            result["timeline"] = [
                {
                    "start": round(window.start_s, 3),
                    "end": round(window.end_s, 3),
                    "predictions": best(classifier.probabilities(classifier.view(window.video))),
                }
                for window in windows
            ]
        yield result


def decoded_ahead(
    decode: Callable[[Any], Any], videos: Iterable[Any], num_workers: int
) -> Iterator[tuple[Any, Future]]:
    """Yields each video and its decoding, in order; few wait decoded, whatever their number.

    Threads, because FFmpeg and TensorFlow work outside Python's lock.
    """
    pool = ThreadPoolExecutor(num_workers)
    pending: collections.deque[tuple[Any, Future]] = collections.deque()
    try:
        for video in videos:
            pending.append((video, pool.submit(decode, video)))
            if len(pending) > 2 * num_workers:
                yield pending.popleft()
        while pending:
            yield pending.popleft()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _softmax(logits: np.ndarray) -> np.ndarray:
    odds = np.exp(logits - logits.max())
    return odds / odds.sum()
