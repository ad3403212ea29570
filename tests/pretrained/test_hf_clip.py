"""CLIP folders: one to one with transformers' names, rejected when damaged, found or explained."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file

from moclip_jax.models.clip import CLIPConfig
from moclip_jax.pretrained import TINY_CLIP, load_tokenizer, load_tower, save_tower, tokenize
from moclip_jax.pretrained.hf_clip_weights import clip_from_hf, clip_to_hf
from tests.golden.clip_recipe import CONFIGS, make_weight

GOLDEN = Path(__file__).parents[1] / "golden" / "clip.npz"


@pytest.fixture(scope="module")
def tiny():
    return load_tower("tiny")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the tiny CLIP's folder, to damage."""
    return shutil.copytree(TINY_CLIP, tmp_path / "clip")


def _weights(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN) as golden:
        shapes = json.loads(str(golden[f"{name}/shapes"]))
    return {key: make_weight(name, key, tuple(shape)) for key, shape in shapes.items()}


@pytest.mark.parametrize("name", ["quick_gelu", "gelu", "metaclip_2", "siglip"])
def test_weights_go_to_our_parameters_and_back_bit_for_bit(name):
    """The names and shapes are those of torch's own state_dict, kept in the golden file."""
    weights = _weights(name)
    clip = clip_from_hf(CLIPConfig.from_hf(CONFIGS[name]), weights)
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(clip))) == sum(
        value.size for value in weights.values()
    )
    back = clip_to_hf(clip)
    assert back.keys() == weights.keys()
    for key, value in weights.items():
        np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_every_mismatch_is_named_at_once():
    weights = _weights("gelu")
    missing = "text_model.encoder.layers.1.self_attn.k_proj.bias"
    del weights[missing]
    weights["vision_model.extra.weight"] = np.zeros((2, 3), np.float32)
    # Old checkpoints carry these; they are no weights.
    weights["text_model.embeddings.position_ids"] = np.arange(12)[None]
    with pytest.raises(ValueError, match="do not match") as caught:
        clip_from_hf(CLIPConfig.from_hf(CONFIGS["gelu"]), weights)
    message = str(caught.value)
    assert f"{missing} (32,) is missing" in message
    assert "vision_model.extra.weight (2, 3) is unknown" in message
    assert "position_ids" not in message


def test_wrong_shape_is_named():
    weights = _weights("quick_gelu")
    weights["visual_projection.weight"] = weights["visual_projection.weight"].T
    message = r"visual_projection.weight is \(48, 24\), needed is \(24, 48\)"
    with pytest.raises(ValueError, match=message):
        clip_from_hf(CLIPConfig.from_hf(CONFIGS["quick_gelu"]), weights)


def test_save_and_load_give_the_same_model(tiny, tmp_path):
    clip, tokenizer = tiny
    save_tower(clip, tokenizer, tmp_path / "new" / "folder")
    again, tokenizer_again = load_tower(tmp_path / "new" / "folder")
    assert again.config == clip.config
    jax.tree.map(np.testing.assert_array_equal, nnx.state(again), nnx.state(clip))
    text = ["a photo of a star spinning."]
    np.testing.assert_array_equal(
        tokenize(tokenizer_again, text, 32), tokenize(tokenizer, text, 32)
    )


def test_sharded_weights_and_half_precision(folder):
    """Two files and their index, in float16, read as one and held as float32."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, keys in shards.items():
        save_file({key: weights[key].astype(np.float16) for key in keys}, folder / file)
    index = {"weight_map": {key: file for file, keys in shards.items() for key in keys}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    clip, _ = load_tower(folder)
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(clip))} == {jnp.dtype("float32")}
    for key, value in clip_to_hf(clip).items():
        np.testing.assert_array_equal(value, weights[key].astype(np.float16).astype(np.float32))

    (folder / "b.safetensors").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"has no b\.safetensors, which .* names; download it"
    ):
        load_tower(folder)


def test_dtype_is_that_of_the_computation():
    clip, _ = load_tower("tiny", dtype=jnp.bfloat16)
    assert clip.config.dtype == clip.vision.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(nnx.state(clip))} == {jnp.dtype("float32")}


def test_pickles_are_rejected_and_never_opened(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"pytorch_model\.bin is a pickle, which can execute code.*refs/pr"
    ):
        load_tower(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", r"has no config\.json; download it into that folder"),
        ("model.safetensors", r"has no model\.safetensors\. Models without it on the hub"),
        ("tokenizer.json", r"has no tokenizer: none of tokenizer\.json, vocab\.json"),
    ],
)
def test_a_missing_file_is_named(folder, name, message):
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=message):
        load_tower(folder)


@pytest.mark.parametrize(
    ("name", "message"),
    [("config.json", "is not JSON: "), ("model.safetensors", "is damaged .*; download it again")],
)
def test_a_damaged_file_is_named(folder, name, message):
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=rf"clip: .*{name} {message}"):
        load_tower(folder)


def test_another_models_tokenizer_is_rejected(folder):
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] -= 1
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="belong to different models"):
        load_tower(folder)


def test_a_source_that_is_not_there_says_what_to_download(tmp_path):
    """The tests run with HF_HUB_OFFLINE=1: the hub is as far as behind a dead network."""
    with pytest.raises(FileNotFoundError, match=r"no folder.*the embedded CLIP is 'tiny'"):
        load_tower(tmp_path / "absent")
    with pytest.raises(OSError, match="not a local folder") as caught:
        load_tower("some-owner/some-clip@refs/pr/15")
    command = "hf download some-owner/some-clip --revision refs/pr/15 --local-dir clip"
    assert command in str(caught.value)
    file = tmp_path / "weights.safetensors"
    file.touch()
    with pytest.raises(NotADirectoryError, match="is a file; a tower is a folder"):
        load_tower(file)


def test_hub_ids_download_no_pickles(monkeypatch, folder):
    """Stands in for the hub: what is asked of it, and that its answer is what is loaded."""
    asked = {}

    def download(repository, **options):
        asked.update(options, repository=repository)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    load_tower("owner/name@v2")
    assert asked["repository"] == "owner/name" and asked["revision"] == "v2"
    assert not any("bin" in pattern or pattern == "*" for pattern in asked["allow_patterns"])


def test_tokens_are_start_words_end_and_padding(tiny):
    clip, tokenizer = tiny
    tokens = tokenize(tokenizer, ["A  Star", "a small red cross."], 12)
    assert tokens.dtype == np.int32 and tokens.shape == (2, 12)
    end = clip.config.text.eos_token_id
    assert (tokens[:, 0] == tokenizer.bos_token_id).all()
    assert list(tokens[0]).index(end) == 3  # start, two words
    assert (tokens[0, 3:] == end).all()
    # CLIP's tokenizer knows neither case nor repeated spaces.
    np.testing.assert_array_equal(tokens[:1], tokenize(tokenizer, ["a star"], 12))
    with pytest.raises(ValueError, match=r"red cross.* more than this CLIP's 4; shorten it"):
        tokenize(tokenizer, ["a small red cross."], 4)


def test_any_text_can_be_tokenized(tiny):
    """Byte level: no letter is unknown, which would read as the end of the text."""
    clip, tokenizer = tiny
    for text in ("größer", "日本", "a\tb\n1", "{}~☃"):
        row = tokenizer(text)["input_ids"]
        assert clip.config.text.eos_token_id not in row[:-1]


def test_tokenizer_alone(folder, tmp_path):
    assert load_tokenizer(folder)("a star")["input_ids"]
    with pytest.raises(FileNotFoundError, match="no tokenizer"):
        load_tokenizer(tmp_path)
