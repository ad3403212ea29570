"""CLIP's preprocessing of real frames against Hugging Face's own processor."""

import io

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from moclip_jax.input_pipeline.images import clip_image
from moclip_jax.input_pipeline.video.clip import VideoSpec, read_clip
from moclip_jax.models.clip import normalize_images
from tests.input_pipeline import real_clips
from tests.parity.noise import report


@pytest.mark.parametrize("name", real_clips.NAMES)
def test_pixel_values_of_real_frames(name):
    """Bilinear, as the published code resizes (the processor's own default is bicubic)."""
    processor = CLIPImageProcessorPil(resample=Image.Resampling.BILINEAR)
    spec = VideoSpec(width=64, height=48, clip_frames=3, frame_size=256)
    worst = 0.0
    for jpeg in read_clip(real_clips.path(name), spec).frames:
        image = Image.open(io.BytesIO(jpeg)).convert("RGB")
        expected = processor(images=image, return_tensors="np")["pixel_values"][0]
        ours = np.asarray(normalize_images(clip_image(jpeg, 224)))
        worst = max(worst, np.abs(ours.transpose(2, 0, 1) - expected).max())
    report(f"pixel values of {name}", largest=worst)
    # One grey level, divided by the smallest of CLIP's standard deviations.
    assert worst <= 1 / 255 / 0.2613 + 1e-6
