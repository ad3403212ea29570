"""Pretraining without labels: the loss, the crops, and a run from a folder to a motion network."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from moclip_jax.config import motion_network_config
from moclip_jax.configs import testing
from moclip_jax.models.batch_norm import BatchNorm
from moclip_jax.models.motion_network import MotionNetwork
from moclip_jax.pretrained import load_efficientnet
from moclip_jax.runtime.sharding import make_mesh, replicate, shard_batch
from moclip_jax.training import pipeline
from moclip_jax.training.losses import cross_entropy
from moclip_jax.training.pretraining import (
    TEMPERATURE,
    ContrastiveNetwork,
    contrastive_logits,
    info_nce_logits,
    motion_crop,
)
from moclip_jax.training.trainer import TrainState, make_train_step
from tests.input_pipeline.video_fixtures import drifting_frames, write_video


def test_the_loss_is_info_nce_by_its_definition():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 6, 5)).astype(np.float32)
    own = np.array([3, 4, 5])
    losses = cross_entropy(info_nce_logits(first[:3], second, own), jnp.zeros(3, jnp.int32))
    for row, place in enumerate(own):
        each = np.exp([first[row] @ other / TEMPERATURE for other in second.astype(np.float64)])
        np.testing.assert_allclose(losses[row], -np.log(each[place] / each.sum()), rtol=1e-4)


def test_a_crop_holds_what_moves_and_camera_motion_does_not_count():
    """A moving square of 6 pixels on a pan; 200 crops of half to all of the field."""
    clip = np.full((3, 40, 40, 2), 150, np.uint8)
    clip[:, 30:36, 4:10] = (90, 128)
    keys = jax.random.split(jax.random.key(0), 200)
    crops = jax.vmap(lambda key: motion_crop(clip, key, 20))(keys)
    assert crops.shape == (200, 3, 20, 20, 2) and crops.dtype == jnp.float32
    pan, square = 150 / 255 - 0.5, 90 / 255 - 0.5
    np.testing.assert_allclose(crops.max(), pan, atol=1e-5)
    found = np.isclose(crops[..., 0].min(axis=(1, 2, 3)), square, atol=0.03)
    assert found.mean() > 0.95
    # All segments are cut at one place, and places and sizes differ.
    np.testing.assert_array_equal(crops[:, 0], crops[:, 2])
    areas = (crops[:, 0, ..., 0] < 0.5 * (pan + square)).sum(axis=(1, 2))
    assert np.quantile(areas, 0.2) < 15 and areas.max() > 30


class Toy(nnx.Module):
    """Features of segments as a motion network has them, but quick to compile."""

    config = types.SimpleNamespace(num_features=8)

    def __init__(self, rngs: nnx.Rngs):
        self.linear = nnx.Linear(32 * 32 * 2, 8, use_bias=False, rngs=rngs)
        self.norm = BatchNorm(8)

    def features(self, clips: jax.Array, *, train: bool) -> jax.Array:
        return self.norm(self.linear(clips.reshape(*clips.shape[:2], -1)), train=train)


@pytest.mark.four_devices
def test_on_four_devices_a_clip_is_compared_with_those_of_all():
    """The step of one device, whose batch holds all of them."""
    model = ContrastiveNetwork(Toy(nnx.Rngs(0)), rngs=nnx.Rngs(1))
    fields = np.random.default_rng(0).integers(100, 156, (8, 4, 36, 36, 2)).astype(np.uint8)
    batch = {"motion": fields, "label": np.zeros(8, np.int32)}

    def step_on(devices):
        mesh = make_mesh(devices)
        graph, params, stats = nnx.split(model, nnx.Param, ...)
        optimizer = optax.sgd(0.1)
        state = TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))

        def logits(model, batch, train, key):
            return contrastive_logits(model, batch, train, key, image_size=32)

        step = make_train_step(graph, logits, optimizer, mesh)
        state, key = replicate((jax.tree.map(jnp.copy, state), jax.random.key(1)), mesh)
        state, sums = step(state, shard_batch(batch, mesh), key)
        return jax.tree.leaves(state.params), {name: float(sums[name]) for name in sums}

    one, of_one = step_on(jax.devices()[:1])
    four, of_four = step_on(jax.devices())
    assert of_one == pytest.approx(of_four, rel=1e-4)
    # InfoNCE over the 8 clips of the whole batch, not over the 2 of a device.
    assert of_one["count"] == 8 and of_one["loss"] / 8 > np.log(3)
    for a, b in zip(one, four, strict=True):
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=2e-4)


def test_a_run_starts_from_weights_pretrained_on_a_folder_without_labels(tmp_path, capsys):
    """Sixteen drifting textures anywhere below a folder; then the embedded data set."""
    for number in range(16):
        folder = tmp_path / "videos" / f"{number % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        step = ((4, 0), (0, 4), (-4, 0), (0, -4))[number % 4]
        frames = drifting_frames(12, 128, 128, step=step, seed=number)
        write_video(folder / f"{number}.mp4", frames)
    (tmp_path / "videos" / "notes.txt").write_text("no video")
    config = testing.get_config()
    config.stages = "prepare,pretrain"
    config.dataset.name, config.dataset.videos = "video_folder", str(tmp_path / "videos")
    config.dataset.options = {"unlabelled": True}
    config.selection.mode = "last"
    config.pretraining.batch_size, config.pretraining.num_epochs = 8, 3
    assert pipeline.run(config, tmp_path / "pretrained") is None
    printed = capsys.readouterr().out
    weights = tmp_path / "pretrained" / "pretrain"
    assert f"--config.motion.pretrained={weights}" in printed
    assert "16 videos of 1 classes, 0 rejected; train 16" in printed
    assert pipeline.run(config, tmp_path / "pretrained") is None
    assert "pretrain: done before, skipped" in capsys.readouterr().out

    trained = load_efficientnet(weights, 2, 1, variant="tiny")
    start = MotionNetwork(motion_network_config(config.motion, 1), rngs=nnx.Rngs(config.seed))
    kernels = [np.asarray(net.stem.kernel[...]) for net in (trained, start.backbone)]
    assert np.abs(kernels[0] - kernels[1]).max() > 1e-4

    supervised = testing.get_config()
    supervised.motion.pretrained = str(weights)
    network = pipeline.initial_motion_network(supervised, 36)
    for path, value in nnx.to_flat_state(nnx.state(network.backbone)):
        if path[0] != "classifier":
            expected = nnx.to_flat_state(nnx.state(trained))
            np.testing.assert_array_equal(value[...], dict(expected)[path][...], err_msg=str(path))


def test_a_folder_without_labels_is_for_pretraining_alone(tmp_path):
    config = testing.get_config()
    config.dataset.name, config.dataset.videos = "video_folder", str(tmp_path)
    config.dataset.options = {"unlabelled": True}
    with pytest.raises(ValueError, match="unlabelled=True gives no classes"):
        pipeline.run(config, tmp_path / "run")
    config.stages = "prepare,pretrain,motion"
    with pytest.raises(ValueError, match="pretrain is a run of its own; leave out motion"):
        pipeline.run(config, tmp_path / "run")
    config.stages = "prepare,pretrain"
    (tmp_path / "notes.txt").write_text("no video")
    with pytest.raises(ValueError, match="no video in it"):
        pipeline.run(config, tmp_path / "run")
