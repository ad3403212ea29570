"""Recognize actions in video files and streams with a trained model.

`load` opens the export of a finished run; the `Recognizer` that it returns is what the commands,
the web page and the exports for other programs use.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moclip_jax.inference import stream as streams
from moclip_jax.inference.decode_ahead import decoded_ahead
from moclip_jax.inference.label_sets import LabelSet
from moclip_jax.inference.prediction import Prediction, Score
from moclip_jax.inference.program import Programs
from moclip_jax.inference.windows import equal_windows, times_of
from moclip_jax.input_pipeline import views as sample_views
from moclip_jax.input_pipeline.video.clip import Clip, VideoError, VideoSpec, read_clip
from moclip_jax.input_pipeline.video.parts import Part, read_parts
from moclip_jax.input_pipeline.video.subprocess_pool import STALL_S, SubprocessReader
from moclip_jax.input_pipeline.views import GridViews, MotionViews
from moclip_jax.models.image_preprocessing import DEFAULT_PREPROCESSING, ImagePreprocessing

if TYPE_CHECKING:
    from moclip_jax.models.moclip import MoCLIP


class Recognizer:
    """A trained model and all that turns a video into labels.

    Attributes:
      class_names: the classes, in the order of the logits.
      image_size: side in pixels of the square images that CLIP takes.
      video: form that video files are brought to.
      views: how motion fields are sampled and cropped.
      frame: which RGB frames CLIP sees: 'middle', 'random' or 'uniform_K'.
      preprocessing: how they are resized for CLIP.
      multi_label: whether a video may have several of the classes.
    """

    def __init__(
        self,
        load_model: "Callable[[], MoCLIP]",
        class_names: Sequence[str],
        *,
        image_size: int,
        video: VideoSpec,
        views: MotionViews | GridViews,
        frame: str = "middle",
        load_tokenizer: Callable[[], Any] | None = None,
        clip_dtype: str = "auto",
        motion_dtype: str = "auto",
        preprocessing: ImagePreprocessing = DEFAULT_PREPROCESSING,
        program: Path | None = None,
        folder: Path | None = None,
        reject_below: float = 0.0,
        multi_label: bool = False,
    ):
        """Make a recognizer; `load` makes one from an export. Other arguments: see the class.

        Args:
          load_model: returns the trained `MoCLIP`, texts included; called at most once.
          load_tokenizer: returns CLIP's tokenizer; called only for labels of the user's own.
          clip_dtype: `config.clip.dtype`; `motion_dtype` is `config.features.motion_dtype`.
          program: file that keeps the compiled program, from `program_file`; None for none.
          folder: the export that the model comes from.
          reject_below: see `Prediction`; `multi_label`: see `LabelSet`.
        """
        self.class_names, self.image_size = tuple(class_names), image_size
        # The limits on the length of a video are those of training.
        self.video = dataclasses.replace(video, max_frames=None, max_seconds=None)
        self.views, self.frame = views, frame
        self._load_model, self.load_tokenizer = load_model, load_tokenizer
        self._program_file, self._folder, self._reject_below = program, folder, reject_below
        self.preprocessing, self.multi_label = preprocessing, multi_label
        self._dtypes = clip_dtype, motion_dtype
        self._label_sets: dict[tuple[str, ...], LabelSet] = {}

    @property
    def reading(self) -> VideoSpec:
        """Form of a video of which only the label is wanted.

        Where CLIP sees the middle frame, that is the only RGB frame to decode.
        """
        if self.frame != "middle":
            return self.video
        # The middle frame is always kept, and it is the centre of a single part.
        return dataclasses.replace(self.video, clip_frames=1)

    @property
    def motion_wanted(self) -> Callable[[int], np.ndarray]:
        """From a number of frames to those whose motion the network sees; see `read_clip`."""
        return self.views.needed_frames

    def predict(
        self, path: str | os.PathLike[str], *, top_k: int = 5, labels: Sequence[str] = ()
    ) -> Prediction:
        """Recognize a video file.

        Args:
          path: anything that FFmpeg reads.
          top_k: number of scores to return.
          labels: labels of your own to choose from, at least two; none means the trained classes.

        Returns:
          The prediction; `windows` and `error` are empty.

        Raises:
          ValueError: there are labels, and the image tower has no text side.
          VideoError: the file cannot be read; the message names it and the reason.
        """
        clip = read_clip(path, self.reading, self.motion_wanted)
        prediction = self.predict_clip(clip, top_k=top_k, labels=labels)
        return dataclasses.replace(prediction, video=os.fspath(path))

    def predict_clip(self, clip: Clip, *, top_k: int = 5, labels: Sequence[str] = ()) -> Prediction:
        """Recognize a clip in memory, from `read_clip`; arguments as `predict`."""
        outputs, end_s = self.outputs(self.view(clip)), _seconds(clip)
        return self.prediction(outputs, top_k, labels, end_s=end_s, warning=clip.warning)

    def predict_batch(
        self,
        paths: Iterable[str | os.PathLike[str] | VideoError],
        *,
        top_k: int = 5,
        labels: Sequence[str] = (),
        window_s: float = 0.0,
        num_workers: int = 0,
        isolate: bool = False,
    ) -> Iterator[Prediction]:
        """Recognize many video files, in order; files are decoded ahead while the model works.

        At most `2 * num_workers + 1` decoded files wait, however many there are. A file that cannot
        be read gives a prediction with `error` set, and the others continue.

        Args:
          paths: the files; a `VideoError` stands for one that is already known to be bad.
          top_k: as `predict`; so is `labels`.
          window_s: length of the windows of a timeline in seconds; 0 for none.
          num_workers: files that are decoded at once; 0 means one for each core.
          isolate: decode in child processes, so that a file that crashes or hangs FFmpeg costs
            only itself. As always with processes, a script that uses it needs
            `if __name__ == "__main__":` around its own work.

        Yields:
          One prediction a file.
        """
        num_workers = num_workers or os.cpu_count() or 1
        if not isolate:
            yield from self._predict_batch(
                paths, top_k, tuple(labels), window_s, num_workers, _read_here
            )
            return
        with SubprocessReader(num_workers, STALL_S) as read:
            yield from self._predict_batch(paths, top_k, tuple(labels), window_s, num_workers, read)

    def _predict_batch(
        self,
        paths: Iterable[str | os.PathLike[str] | VideoError],
        top_k: int,
        labels: tuple[str, ...],
        window_s: float,
        num_workers: int,
        read: Callable[..., Any],
    ) -> Iterator[Prediction]:
        def decode(
            path: str | os.PathLike[str] | VideoError,
        ) -> tuple[dict[str, np.ndarray], Clip]:
            if isinstance(path, VideoError):
                raise path
            clip = read(read_clip, os.fspath(path), self.reading, self.motion_wanted)
            return self.view(clip), clip.outline

        how = {"top_k": top_k, "labels": labels, "read": read}
        for path, decoded in decoded_ahead(decode, paths, num_workers):
            name = path.path if isinstance(path, VideoError) else os.fspath(path)
            # Opened while the first file is read.
            self.programs.get(1)
            try:
                view, outline = decoded.result()
                windows = self._windows(name, outline, window_s, **how)
                parts = tuple(windows) if window_s else ()
            except VideoError as error:
                yield Prediction(name, error=str(error))
                continue
            about = {"end_s": _seconds(outline), "windows": parts, "warning": outline.warning}
            yield self.prediction(self.outputs(view), top_k, labels, video=name, **about)

    def timeline(
        self,
        path: str | os.PathLike[str],
        *,
        seconds: float = 2.0,
        top_k: int = 5,
        labels: Sequence[str] = (),
    ) -> Iterator[Prediction]:
        """Recognize what happens when: one prediction a window, in order.

        Windows are equal and begin at an I-frame, so that their motion is that of the whole video;
        they overlap by less than a group of pictures. The file is read twice: as `predict` does,
        and then window by window, each given before the next one is read.

        Args:
          path: as `predict`; so are `top_k` and `labels`.
          seconds: length of a window.

        Yields:
          The predictions, with `start_s` and `end_s`.

        Raises:
          VideoError: as `predict`, or the file's frame rate is unknown.
        """
        outline = read_clip(path, self.reading, self.motion_wanted).outline
        how = {"top_k": top_k, "labels": labels, "read": _read_here}
        yield from self._windows(os.fspath(path), outline, seconds, **how)

    def stream(
        self, address: str, *, top_k: int = 5, labels: Sequence[str] = (), **options: Any
    ) -> Iterator[Prediction]:
        """Recognize a stream that is still growing: one prediction a window, as it comes.

        Args:
          address: rtsp:// or http:// address, device, FIFO, growing file, or - for standard input.
          top_k: as `predict`; so is `labels`.
          **options: fields of `moclip_jax.inference.stream.StreamOptions`: `window_s`, `hop_s`,
            `timeout_s`, `retries`, `endless`, `container_format`.

        Yields:
          The predictions; `start_s` and `end_s` count from the connection's first frame.

        Raises:
          VideoError: the stream cannot be opened or read, also not after `retries` connections.
        """
        for event in streams.events(address, self.video, streams.StreamOptions(**options)):
            if isinstance(event, streams.StreamWindow):
                prediction = self.predict_clip(event.clip, top_k=top_k, labels=labels)
                yield dataclasses.replace(
                    prediction, video=address, start_s=event.start_s, end_s=event.end_s
                )

    def view(self, clip: Clip) -> dict[str, np.ndarray]:
        """Return what the networks see of a clip.

        `motion` and `images`, uint8, of a batch of one; `input_shapes` are those of the rest.
        """
        images = sample_views.images(
            clip,
            self.frame,
            self.image_size,
            resize_size=self.preprocessing.resize_size,
            resample=self.preprocessing.resample,
            square=self.preprocessing.square,
        )
        motion = sample_views.test_view(clip, self.views, self.video)
        return {"motion": motion[None], "images": images[None]}

    def probabilities(self, view: dict[str, np.ndarray], labels: Sequence[str] = ()) -> np.ndarray:
        """Return float64 `[labels]` as in `Score`, for what `view` gave; labels as `predict`."""
        return self.label_set(labels).probabilities(*self.outputs(view)[:2])

    def outputs(self, view: dict[str, np.ndarray]) -> tuple[np.ndarray, ...]:
        """Return logits `[classes]`, CLIP's and the motion's feature, for what `view` gave."""
        return self.programs.outputs([view])[0]

    def label_set(self, labels: Sequence[str] = ()) -> LabelSet:
        """Return the labels to choose from; their text features are computed once."""
        words = tuple(labels)
        if words not in self._label_sets:
            tokenizer = self.load_tokenizer() if words and self.load_tokenizer else None
            # A service must not keep every set that its users have requested.
            if len(self._label_sets) >= 16:
                self._label_sets.clear()
            clip = self.model.clip if words else None
            self._label_sets[words] = LabelSet(
                self.class_names, words, clip, tokenizer, self.multi_label
            )
        return self._label_sets[words]

    def push_to_hub(self, repository: str, *, private: bool = False, message: str = "") -> str:
        """Upload the export to the Hugging Face hub; see `moclip_jax.inference.hub.push`."""
        from moclip_jax.inference import hub

        if self._folder is None:
            raise ValueError("push_to_hub: this model was not opened from an export")
        return hub.push(self._folder, repository, private=private, message=message)

    @functools.cached_property
    def model(self) -> "MoCLIP":
        """The trained model, texts included."""
        return self._load_model()

    @functools.cached_property
    def inference_model(self) -> "MoCLIP":
        """The model in the form that runs fastest, without the text tower; made once."""
        from moclip_jax.models.inference import moclip_for_inference
        from moclip_jax.runtime.device import matmul_dtype

        return moclip_for_inference(self.model, *map(matmul_dtype, self._dtypes))

    @functools.cached_property
    def programs(self) -> Programs:
        """What computes the network's outputs."""
        return Programs(lambda: self.inference_model, self.input_shapes, self._program_file)

    @property
    def input_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of `motion` and `images` of one video."""
        side = self.image_size
        return {
            "motion": self.views.shape,
            "images": (sample_views.num_images(self.frame), side, side, 3),
        }

    def _windows(
        self, path: str, outline: Clip, seconds: float, **how: Any
    ) -> Iterator[Prediction]:
        try:
            parts = equal_windows(outline, seconds, self.video)
        except ValueError as error:
            raise VideoError(path, str(error)) from error
        yield from self.predict_parts(path, outline, parts, **how)

    def predict_parts(
        self,
        path: str,
        outline: Clip,
        parts: Sequence[Part],
        *,
        top_k: int = 5,
        labels: Sequence[str] = (),
        read: Callable[..., Any],
    ) -> Iterator[Prediction]:
        """Recognize parts of a file, one after the other; as `timeline`.

        Args:
          path: the file; `top_k` and `labels` are as in `predict`.
          outline: `Clip.outline` of it.
          parts: in order.
          read: calls a function of a file, as a `SubprocessReader` does.
        """
        clips = read(read_parts, path, self.video, outline, parts, self.motion_wanted)
        for part, clip in zip(parts, clips, strict=True):
            start_s, end_s = times_of(outline, part)
            prediction = self.predict_clip(clip, top_k=top_k, labels=labels)
            yield dataclasses.replace(prediction, video=path, start_s=start_s, end_s=end_s)

    def prediction(
        self, outputs: tuple[np.ndarray, ...], top_k: int, labels: Sequence[str], **about: Any
    ) -> Prediction:
        """Return what `outputs` mean; labels as `predict`, others as `Prediction`."""
        label_set = self.label_set(labels)
        odds = label_set.probabilities(*outputs[:2])
        best = np.argsort(-odds, kind="stable")[:top_k].tolist()
        scores = (Score(label_set.labels[i], float(odds[i]), label_set.trained_as[i]) for i in best)
        threshold = 0.0 if labels else self._reject_below
        return Prediction(scores=tuple(scores), reject_below=threshold, **about)


def _read_here(function: Callable[..., Any], path: str, *arguments: Any) -> Any:
    """Call a function of a file; stands where a `SubprocessReader` may be."""
    return function(path, *arguments)


def _seconds(clip: Clip) -> float:
    return clip.duration if clip.fps else math.nan


def load(path: str | os.PathLike[str]) -> Recognizer:
    """Open a trained model.

    Args:
      path: folder of a finished run, or its export; or a model on the Hugging Face hub,
        "owner/name" or "owner/name@revision", where there is no such folder.

    Raises:
      FileNotFoundError: there is no export; the message says how to make one.
      OSError: the hub cannot be reached, and the model is not in its cache.
      ValueError: it was written in a format that this version does not read, or is damaged.
    """
    from moclip_jax.inference.exported import load_model

    folder = Path(path).expanduser()
    if not folder.exists():
        from moclip_jax.inference import hub

        folder = hub.download(os.fspath(path)) if hub.is_hub_id(os.fspath(path)) else folder
    folder = folder if (folder / "metadata.json").exists() else folder / "export"
    return load_model(folder)
