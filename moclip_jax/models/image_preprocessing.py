"""How images are prepared for CLIP, as Hugging Face's `preprocessor_config.json` describes it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

# Mean and standard deviation of RGB in 0..1 over CLIP's training images (Radford et al. 2021).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)

# Pillow's numbers of its filters, which Hugging Face writes.
_RESAMPLE = {2: "bilinear", 3: "bicubic"}
# What transformers' CLIPImageProcessor assumes where the file has no entry.
_HF_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "do_center_crop": True,
    "do_rescale": True,
    "do_normalize": True,
    "size": {"shortest_edge": 224},
    "crop_size": 224,
    "resample": 3,
    "rescale_factor": 1 / 255,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
}


@dataclasses.dataclass(frozen=True)
class ImagePreprocessing:
    """From an RGB image to the input of the image tower.

    The shorter side is resized, the central square is cropped, and (x * rescale_factor - mean) /
    std is computed. The defaults are those of the published MoCLIP-Lite code, which resizes
    bilinearly.

    Attributes:
      resize_size: shorter side in pixels after resizing; 0 for the side of the tower's input.
      resample: "bilinear" or "bicubic", with antialiasing as Pillow does it.
      rescale_factor: brings uint8 values to the range of mean and std.
      mean: of R, G and B.
      std: of R, G and B.
    """

    resize_size: int = 0
    resample: str = "bilinear"
    rescale_factor: float = 1 / 255
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD

    @classmethod
    def from_hf(cls, config: Mapping[str, Any] | None, image_size: int) -> "ImagePreprocessing":
        """Read the content of a Hugging Face `preprocessor_config.json`.

        Args:
          config: the content; None where there is no such file gives the defaults of this class.
            Entries that it leaves out have the defaults of transformers' CLIPImageProcessor.

        Raises:
          ValueError: if an entry is of a kind that is not supported; the message names it.
        """
        if config is None:
            return cls()
        values = _HF_DEFAULTS | dict(config)
        for name in ("do_resize", "do_center_crop"):
            if not values[name]:
                raise _error(name, values[name], "true")
        resize = _side(values["size"], "shortest_edge")
        if resize is None:
            raise _error("size", values["size"], '{"shortest_edge": NUMBER}')
        if _side(values["crop_size"], "height", "width") != image_size:
            raise _error("crop_size", values["crop_size"], f"{image_size}, as in config.json")
        if resize < image_size:
            raise _error("size", values["size"], f"{image_size} at least, which is cropped from it")
        if values["resample"] not in _RESAMPLE:
            raise _error("resample", values["resample"], "2 (bilinear) or 3 (bicubic)")
        if not values["do_normalize"]:
            values |= {"image_mean": (0.0, 0.0, 0.0), "image_std": (1.0, 1.0, 1.0)}
        for name in ("image_mean", "image_std"):
            if len(values[name]) != 3:
                raise _error(name, values[name], "three numbers")
        return cls(
            resize_size=0 if resize == image_size else resize,
            resample=_RESAMPLE[values["resample"]],
            rescale_factor=float(values["rescale_factor"]) if values["do_rescale"] else 1.0,
            mean=tuple(values["image_mean"]),
            std=tuple(values["image_std"]),
        )

    def to_hf(self, image_size: int) -> dict[str, Any]:
        """Return the content of a `preprocessor_config.json`."""
        return {
            "image_processor_type": "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": {"shortest_edge": self.resize_size or image_size},
            "resample": next(k for k, name in _RESAMPLE.items() if name == self.resample),
            "do_center_crop": True,
            "crop_size": {"height": image_size, "width": image_size},
            "do_rescale": True,
            "rescale_factor": self.rescale_factor,
            "do_normalize": True,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }


# Where a CLIP comes without the file.
DEFAULT_PREPROCESSING = ImagePreprocessing()


def check_frame_size(preprocessing: ImagePreprocessing, image_size: int, frame_size: int) -> None:
    """Raise ValueError if stored frames, `config.video.frame_size`, are too small for CLIP."""
    needed = preprocessing.resize_size or image_size
    if needed > frame_size:
        raise ValueError(
            f"config.video.frame_size={frame_size} is smaller than the {needed} pixels of "
            f"config.clip.source's images; set video.frame_size={needed} or more"
        )


def _side(size: Any, *names: str) -> int | None:
    """Return the one number of a size, or None if it has others."""
    if isinstance(size, int):
        return size
    if isinstance(size, Mapping) and set(size) == set(names) and len(set(size.values())) == 1:
        return size[names[0]]
    return None


def _error(name: str, value: Any, needed: str) -> ValueError:
    return ValueError(f"preprocessor_config.json: {name} is {value!r}; needed is {needed}")
