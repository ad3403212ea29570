"""RGB frames as CLIP sees them (Pillow)."""

import io

import numpy as np
from PIL import Image

RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def clip_image(
    jpeg: bytes,
    size: int,
    resize_size: int = 0,
    resample: str = "bilinear",
    *,
    square: bool = False,
) -> np.ndarray:
    """Decode an image, resize its shorter side and crop the central square.

    As the preprocessing that CLIP was trained with (Radford et al., 2021; torchvision and Hugging
    Face alike): Pillow's antialiased resize, by default bilinear as the published MoCLIP-Lite does
    it; the longer side becomes `int(resize_size * longer / shorter)`.

    Args:
      size: Side of the crop in pixels.
      resize_size: Shorter side after resizing, at least `size`; 0 for `size`.
      square: Resize both sides to `size` instead, as SigLIP's preprocessing does.

    Returns:
      uint8 `[size, size, 3]` RGB.
    """
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    if square:
        return np.asarray(image.resize((size, size), RESAMPLE[resample]))
    shorter = min(image.size)
    width, height = ((resize_size or size) * side // shorter for side in image.size)
    resized = image.resize((width, height), RESAMPLE[resample])
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))
