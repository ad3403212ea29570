"""Preprocessing of real frames against Hugging Face's own processors."""

import io

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

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
# Of google/siglip-base-patch16-224, and of google/siglip2-base-patch16-224.
SIGLIP = {
    "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "SiglipImageProcessor", "image_std": [0.5, 0.5, 0.5], "resample": 3,
    "rescale_factor": 0.00392156862745098, "size": {"height": 224, "width": 224},
}  # fmt: skip
SIGLIP_2 = SIGLIP | {"resample": 2}


@pytest.mark.parametrize("config", [None, OPENAI, SIGLIP, SIGLIP_2])
@pytest.mark.parametrize("name", real_clips.NAMES)
def test_pixel_values_of_real_frames(name, config):
    """Bilinear, as the published code resizes; and as a hub folder's own file says, bicubic."""
    siglip = config in (SIGLIP, SIGLIP_2)
    preprocessing = ImagePreprocessing.from_hf(config, 224, siglip=siglip)
    bicubic = config in (OPENAI, SIGLIP)
    assert preprocessing.resample == ("bicubic" if bicubic else "bilinear")
    processor = (SiglipImageProcessorPil if siglip else CLIPImageProcessorPil)(
        **config or {"resample": Image.Resampling.BILINEAR}
    )
    spec = VideoSpec(width=64, height=48, clip_frames=3, frame_size=256)
    worst = 0.0
    for jpeg in read_clip(real_clips.path(name), spec).frames:
        image = Image.open(io.BytesIO(jpeg)).convert("RGB")
        expected = processor(images=image, return_tensors="np")["pixel_values"][0]
        options = preprocessing.resize_size, preprocessing.resample
        frame = clip_image(jpeg, 224, *options, square=preprocessing.square)
        ours = np.asarray(normalize_images(frame, preprocessing))
        worst = max(worst, np.abs(ours.transpose(2, 0, 1) - expected).max())
    kind = "SigLIP" if siglip else "CLIP"
    report(f"pixel values of {name}, {kind}, {preprocessing.resample}", largest=worst)
    # One grey level, divided by the smallest of the standard deviations.
    assert worst <= 1 / 255 / min(preprocessing.std) + 1e-6
