"""RGB frames as CLIP sees them (Pillow)."""

import io

import numpy as np
from PIL import Image


def clip_image(jpeg: bytes, size: int) -> np.ndarray:
    """Decode an image, bring its shorter side to `size` and take the middle square.

    As the preprocessing that CLIP was trained with (Radford et al., 2021; torchvision and Hugging
    Face alike): Pillow's antialiased resize, here bilinear as the published MoCLIP-Lite does it;
    the longer side becomes `int(size * longer / shorter)`.

    Args:
      jpeg: An image file.
      size: Side in pixels.

    Returns:
      uint8 `[size, size, 3]` RGB.
    """
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    shorter = min(image.size)
    width, height = (size * side // shorter for side in image.size)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return np.asarray(resized.crop((left, top, left + size, top + size)))
