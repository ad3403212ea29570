"""What a model says of a video."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Score:
    """A label and its probability.

    Attributes:
      label: a trained class, or a label of the user's own.
      probability: 0 to 1; those of all labels sum to 1, unless a video may have several.
      trained_as: the trained class that a label of the user's own names; '' for none.
    """

    label: str
    probability: float
    trained_as: str = ""


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a model recognizes in a video, or in a window of it.

    Attributes:
      video: the file or the stream's address.
      scores: the `top_k` likeliest labels, most likely first; empty where `error` is set.
      start_s: beginning in seconds since the first frame.
      end_s: end in seconds; NaN where the length is unknown.
      windows: predictions of the windows of a timeline, in order; empty where none was requested.
      error: why the file could not be used; '' where it could.
      warning: what is wrong with the file although it could be used; '' for nothing.
      reject_below: probability, 0 to 1, below which it is probably none of the trained classes; 0
        where the model has no such threshold, or chose among labels of the user's own.
    """

    video: str = ""
    scores: tuple[Score, ...] = ()
    start_s: float = 0.0
    end_s: float = math.nan
    windows: tuple["Prediction", ...] = ()
    error: str = ""
    warning: str = ""
    reject_below: float = 0.0

    @property
    def rejected(self) -> bool:
        """Whether the video probably shows none of the trained classes."""
        return bool(self.scores) and self.probability < self.reject_below

    @property
    def label(self) -> str:
        """The likeliest label; '' where `error` is set."""
        return self.scores[0].label if self.scores else ""

    @property
    def probability(self) -> float:
        """Probability of the likeliest label; 0 where `error` is set."""
        return self.scores[0].probability if self.scores else 0.0
