"""`preprocessor_config.json` of a CLIP folder is followed."""

import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image
from transformers import CLIPImageProcessorPil, SiglipImageProcessorPil

from moclip_jax.configs import testing
from moclip_jax.input_pipeline.images import clip_image
from moclip_jax.models.clip import normalize_images
from moclip_jax.models.clip_config import CLIPConfig
from moclip_jax.models.image_preprocessing import ImagePreprocessing, check_frame_size
from moclip_jax.pretrained import TINY_CLIP, load_tower, save_tower
from moclip_jax.training import pipeline

PROCESSORS = {
    "openai": {  # As OpenAI's folders have it: sizes are numbers, the factor is left out.
        "do_resize": True, "size": 48, "resample": 3, "do_center_crop": True, "crop_size": 48,
        "do_normalize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    },
    "bilinear": {"size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48},
                 "resample": 2},
    "larger": {"size": {"shortest_edge": 60}, "crop_size": 48, "resample": 3},
    "other numbers": {"size": 48, "crop_size": 48, "image_mean": [0.5, 0.4, 0.3],
                      "image_std": [0.5, 0.25, 0.2], "rescale_factor": 1 / 128},
    "square": {"size": {"height": 48, "width": 48}, "crop_size": 48, "resample": 2},
    "siglip": {  # As Google's folders have it.
        "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5, 0.5, 0.5],
        "image_processor_type": "SiglipImageProcessor", "image_std": [0.5, 0.5, 0.5],
        "do_center_crop": None, "resample": 3, "rescale_factor": 0.00392156862745098,
        "size": {"height": 48, "width": 48},
    },
    "bytes": {"size": 48, "crop_size": 48, "do_normalize": False, "do_rescale": False},
}  # fmt: skip


def write_folder(folder, processor):
    shutil.copytree(TINY_CLIP, folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def write_jpeg(width, height, seed=0):
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 8, width // 8, 3), np.uint8))
    buffer = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


@pytest.mark.parametrize("size", [(128, 96), (97, 131), (256, 256), (64, 200)])
@pytest.mark.parametrize("name", list(PROCESSORS))
def test_images_are_those_of_transformers_own_processor(tmp_path, name, size):
    """Within one grey level."""
    folder = write_folder(tmp_path / "clip", PROCESSORS[name])
    preprocessing = load_tower(folder)[0].config.preprocessing
    jpeg = write_jpeg(*size, seed=size[0])
    image = Image.open(io.BytesIO(jpeg)).convert("RGB")
    kind = SiglipImageProcessorPil if name == "siglip" else CLIPImageProcessorPil
    processor = kind.from_pretrained(folder)
    expected = processor(images=image, return_tensors="np")["pixel_values"][0].transpose(1, 2, 0)
    level = preprocessing.rescale_factor / np.array(preprocessing.std)
    options = 48, preprocessing.resize_size, preprocessing.resample
    frame = clip_image(jpeg, *options, square=preprocessing.square)
    ours = np.asarray(normalize_images(frame, preprocessing))
    assert ours.shape == (48, 48, 3)
    assert (np.abs(ours - expected) <= level * 1.001).all()


def test_without_the_file_images_are_as_the_published_code_makes_them():
    clip, _ = load_tower("tiny")
    assert clip.config.preprocessing == ImagePreprocessing()
    assert (clip.config.preprocessing.resample, clip.config.preprocessing.resize_size) == (
        "bilinear", 0,
    )  # fmt: skip


@pytest.mark.parametrize("name", list(PROCESSORS))
def test_a_saved_clip_keeps_its_preprocessing(tmp_path, name):
    clip, tokenizer = load_tower(write_folder(tmp_path / "clip", PROCESSORS[name]))
    save_tower(clip, tokenizer, tmp_path / "saved")
    assert load_tower(tmp_path / "saved")[0].config == clip.config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"do_resize": False}, "do_resize is False; needed is true"),
        ({"size": {"height": 48, "width": 40}}, "size is .*; needed is .*shortest_edge"),
        ({"size": {"height": 40, "width": 40}}, "size is .*; needed is 48, as in config.json"),
        ({"do_center_crop": False}, "do_center_crop is False; needed is true"),
        ({"crop_size": 40}, "crop_size is 40; needed is 48, as in config.json"),
        ({"size": 40}, "size is 40; needed is 48 at least, which is cropped from it"),
        ({"resample": 1}, r"resample is 1; needed is 2 \(bilinear\) or 3 \(bicubic\)"),
        ({"image_mean": [0.5]}, r"image_mean is \[0.5\]; needed is three numbers"),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, change, message):
    """The message begins with `preprocessor_config.json: ... is ...; needed is ...`."""
    folder = write_folder(tmp_path / "clip", {"size": 48, "crop_size": 48} | change)
    with pytest.raises(ValueError, match=rf"clip: preprocessor_config\.json: {message}"):
        load_tower(folder)


def test_a_tower_larger_than_the_stored_frames_is_rejected_before_any_work(tmp_path):
    message = (
        "config.video.frame_size=128 is smaller than the 160 pixels of config.clip.source's "
        "images; set video.frame_size=160 or more"
    )
    processor = PROCESSORS["openai"] | {"size": 160}
    config = testing.get_config()
    config.clip.source = str(write_folder(tmp_path / "clip", processor))
    with pytest.raises(ValueError, match=re.escape(message)):
        pipeline.run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "prepare").exists()
    # The sizes of OpenAI's largest CLIP, and of the default frames.
    with pytest.raises(ValueError, match=r"set video\.frame_size=336 or more"):
        check_frame_size(ImagePreprocessing(), 336, 256)
    check_frame_size(ImagePreprocessing(), CLIPConfig.named("vit_l14").vision.image_size, 256)
