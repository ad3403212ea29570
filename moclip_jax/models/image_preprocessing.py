"""How images are prepared for a tower, as Hugging Face's `preprocessor_config.json` has it."""

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
# What its SiglipImageProcessor assumes.
_SIGLIP_DEFAULTS = _HF_DEFAULTS | {
    "do_center_crop": False,
    "size": {"height": 224, "width": 224},
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
}


@dataclasses.dataclass(frozen=True)
class ImagePreprocessing:
    """From an RGB image to the input of the image tower.

    The shorter side is resized and the central square is cropped, or both sides are resized; then
    (x * rescale_factor - mean) / std is computed. The defaults are those of the published
    MoCLIP-Lite code, which resizes bilinearly.

    Attributes:
      resize_size: shorter side in pixels after resizing; 0 for the side of the tower's input.
      resample: "bilinear" or "bicubic", with antialiasing as Pillow does it.
      rescale_factor: brings uint8 values to the range of mean and std.
      mean: of R, G and B.
      std: of R, G and B.
      square: both sides are resized to that of the input, whatever the image's; nothing is cropped.
    """

    resize_size: int = 0
    resample: str = "bilinear"
    rescale_factor: float = 1 / 255
    mean: tuple[float, float, float] = CLIP_MEAN
    std: tuple[float, float, float] = CLIP_STD
    # Not in the text that fingerprints of earlier runs hold.
    square: bool = dataclasses.field(default=False, repr=False)

    def __str__(self) -> str:
        return repr(self) + ", square" * self.square

    @classmethod
    def from_hf(
        cls, config: Mapping[str, Any] | None, image_size: int, *, siglip: bool = False
    ) -> "ImagePreprocessing":
        """Read the content of a Hugging Face `preprocessor_config.json`.

        Args:
          config: the content; None where there is no such file gives the defaults of this class.
            Entries that it leaves out have the defaults of transformers' CLIPImageProcessor.
          siglip: defaults are those of its SiglipImageProcessor, of the image's size, instead.

        Raises:
          ValueError: if an entry is of a kind that is not supported; the message names it.
        """
        if config is None:
            if not siglip:
                return cls()
            config = {"size": {"height": image_size, "width": image_size}}
        values = (_SIGLIP_DEFAULTS if siglip else _HF_DEFAULTS) | dict(config)
        if not values["do_resize"]:
            raise _error("do_resize", values["do_resize"], "true")
        square = isinstance(values["size"], Mapping) and "height" in values["size"]
        resize = _side(values["size"], *(("height", "width") if square else ("shortest_edge",)))
        if resize is None:
            needed = '{"shortest_edge": NUMBER}, or height and width that are equal'
            raise _error("size", values["size"], needed)
        if square and resize != image_size:
            raise _error("size", values["size"], f"{image_size}, as in config.json")
        if not square and not values["do_center_crop"]:
            raise _error("do_center_crop", values["do_center_crop"], "true")
        crop = _side(values["crop_size"], "height", "width")
        if values["do_center_crop"] and crop != image_size:
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
            square=square,
        )

    def to_hf(self, image_size: int) -> dict[str, Any]:
        """Return the content of a `preprocessor_config.json`."""
        sides = {"height": image_size, "width": image_size}
        return {
            # Which class computes it: transformers' SigLIP processor is the one that crops nothing.
            "image_processor_type": "SiglipImageProcessor" if self.square else "CLIPImageProcessor",
            "do_convert_rgb": True,
            "do_resize": True,
            "size": sides if self.square else {"shortest_edge": self.resize_size or image_size},
            "resample": next(k for k, name in _RESAMPLE.items() if name == self.resample),
            "do_center_crop": not self.square,
            "crop_size": sides,
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
