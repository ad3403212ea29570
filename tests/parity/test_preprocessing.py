"""CLIP's preprocessing of real frames against Hugging Face's own processor."""

import io

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil

from moclip_jax.input_pipeline.images import clip_image
from moclip_jax.input_pipeline.video.clip import VideoSpec, read_clip
from moclip_jax.models.clip import normalize_images
from moclip_jax.models.image_preprocessing import ImagePreprocessing
from tests.input_pipeline import real_clips
from tests.parity.noise import report

# Of openai/clip-vit-base-patch32, as it lies on the hub.
OPENAI = {
    "crop_size": 224, "do_center_crop": True, "do_normalize": True, "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711], "resample": 3, "size": 224,
}  # fmt: skip


@pytest.mark.parametrize("config", [None, OPENAI], ids=["bilinear", "bicubic"])
@pytest.mark.parametrize("name", real_clips.NAMES)
def test_pixel_values_of_real_frames(name, config):
    """Bilinear, as the published code resizes; and as a hub folder's own file says, bicubic."""
    preprocessing = ImagePreprocessing.from_hf(config, 224)
    assert preprocessing.resample == ("bicubic" if config else "bilinear")
    processor = CLIPImageProcessorPil(**config or {"resample": Image.Resampling.BILINEAR})
    spec = VideoSpec(width=64, height=48, clip_frames=3, frame_size=256)
    worst = 0.0
    for jpeg in read_clip(real_clips.path(name), spec).frames:
        image = Image.open(io.BytesIO(jpeg)).convert("RGB")
        expected = processor(images=image, return_tensors="np")["pixel_values"][0]
        options = preprocessing.resize_size, preprocessing.resample
        ours = np.asarray(normalize_images(clip_image(jpeg, 224, *options), preprocessing))
        worst = max(worst, np.abs(ours.transpose(2, 0, 1) - expected).max())
    report(f"pixel values of {name}, {preprocessing.resample}", largest=worst)
    # One grey level, divided by the smallest of CLIP's standard deviations.
    assert worst <= 1 / 255 / 0.2613 + 1e-6
