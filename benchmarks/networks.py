"""Rows of the networks: a product, B0 and Lite0 forward, B0 in training, CLIP's image tower."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from benchmarks.peer import Peer, PeerJob
from benchmarks.timing import Comparison, in_turns, timed
from moclip_jax.config import default_config
from moclip_jax.models.clip import CLIP, CLIPConfig, normalize_images
from moclip_jax.models.efficientnet import EfficientNetConfig
from moclip_jax.models.flops import multiply_adds
from moclip_jax.models.inference import clip_for_inference, motion_network_for_inference
from moclip_jax.models.motion_network import MotionNetwork, MotionNetworkConfig
from moclip_jax.pretrained import TINY_CLIP, load_tower, save_efficientnet, save_tower
from moclip_jax.runtime.device import compiler_options, matmul_dtype
from moclip_jax.runtime.sharding import make_mesh
from moclip_jax.training.optimizers import motion_optimizer
from moclip_jax.training.trainer import TrainState, make_train_step

CLASSES = 101
# Of one product; large enough that memory is no matter.
SGEMM_SIDE = 2048


@dataclasses.dataclass(frozen=True)
class Networks:
    """The full-size networks with random weights, and those weights in the upstream formats.

    Attributes:
      motion: EfficientNet-B0 on motion fields.
      clip: ViT-B/32.
      tokenizer: the embedded CLIP's, whose numbers all lie in the large vocabulary.
      folder: holds the weights, `clip/` and those of the motion network.
      architecture: the motion network's name in timm.
    """

    motion: MotionNetwork
    clip: CLIP
    tokenizer: Any
    folder: Path
    architecture: str = "efficientnet_b0"

    @property
    def variant(self) -> str:
        """The motion network's name in the tables."""
        return "B0" if self.architecture == "efficientnet_b0" else "Lite0"

    @property
    def motion_weights(self) -> str:
        """The file that timm's model loads."""
        return str(self.folder / f"{self.architecture}.safetensors")

    def with_lite0(self) -> "Networks":
        """Return these with EfficientNet-Lite0 as the motion network, and write its weights."""
        made = dataclasses.replace(
            self, motion=_motion_network("lite0"), architecture="tf_efficientnet_lite0"
        )
        save_efficientnet(made.motion.backbone, made.motion_weights)
        return made

    @property
    def clip_weights(self) -> str:
        """The folder that transformers' model loads."""
        return str(self.folder / "clip")


def make_networks(folder: Path) -> Networks:
    """Make both networks, and writes their weights to `folder` for the other side."""
    motion = _motion_network("b0")
    save_efficientnet(motion.backbone, folder / "efficientnet_b0.safetensors")
    _, tokenizer = load_tower(TINY_CLIP)
    clip_config = CLIPConfig.named("vit_b32")
    text = dataclasses.replace(clip_config.text, eos_token_id=tokenizer.eos_token_id)
    clip_config = dataclasses.replace(clip_config, text=text)
    clip = nnx.jit(lambda: CLIP(clip_config, rngs=nnx.Rngs(1)))()
    save_tower(clip, tokenizer, folder / "clip")
    return Networks(motion, clip, tokenizer, folder)


def _motion_network(variant: str) -> MotionNetwork:
    backbone = EfficientNetConfig.named(variant, in_channels=2, num_classes=CLASSES)
    config = MotionNetworkConfig(backbone)
    return nnx.jit(lambda: MotionNetwork(config, rngs=nnx.Rngs(0)))()


def random_fields(*shape: int) -> np.ndarray:
    """Return uint8 `[*shape, 224, 224, 2]`: patches of motion around 128, as fields have."""
    rng = np.random.default_rng(0)
    coarse = rng.normal(128, 30, (*shape, 28, 28, 2)).clip(0, 255).astype(np.uint8)
    return coarse.repeat(8, axis=-3).repeat(8, axis=-2)


def compiled(function: Callable, *arguments: Any) -> tuple[Callable, float]:
    """Return the compiled function and the seconds that tracing and compiling took."""
    start = time.perf_counter()
    result = jax.jit(function, compiler_options=compiler_options()).lower(*arguments).compile()
    return result, time.perf_counter() - start


def difference(ours: Any, other: PeerJob) -> float:
    """Return the largest difference between both sides' results, as a share of the largest."""
    theirs = other.output()
    return float(np.abs(np.asarray(ours) - theirs).max() / np.abs(theirs).max())


def sgemm(peer: Peer, rounds: int) -> tuple[Comparison, float]:
    """Time one product; returns the row and our operations a second."""
    matrix = jax.random.uniform(jax.random.key(0), (SGEMM_SIDE, SGEMM_SIDE), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    ours = timed(lambda: product(matrix).block_until_ready())
    times = in_turns([ours, peer.job("sgemm", side=SGEMM_SIDE)], max(rounds, 15))
    work = 2.0 * SGEMM_SIDE**3
    row = Comparison(
        f"sgemm, {SGEMM_SIDE} x {SGEMM_SIDE}", "PyTorch", 1, "product", *times, work=work
    )
    # The fastest pass: the limit of the machine, not what its other users left of it.
    return row, work / min(times[0])


def motion_inference(
    networks: Networks,
    peer: Peer,
    fields: int,
    rounds: int,
    *,
    narrow: bool = False,
) -> Comparison:
    """Logits of one video's fields.

    Args:
      networks: both backbones.
      peer: the other side.
      fields: of the video.
      rounds: timed passes of each side.
      narrow: both sides multiply in bfloat16; else in float32.
    """
    network = networks.motion
    trained = nnx.state(network)
    if narrow:
        backbone = dataclasses.replace(network.config.backbone, dtype=jnp.bfloat16)
        network = nnx.eval_shape(
            lambda: MotionNetwork(MotionNetworkConfig(backbone), rngs=nnx.Rngs(0))
        )
        nnx.update(network, trained)
    graphdef, state = nnx.split(motion_network_for_inference(network))
    inputs = random_fields(1, fields)
    forward, seconds = compiled(lambda state, x: nnx.merge(graphdef, state)(x), state, inputs)
    other = peer.job(
        "motion_inference",
        weights=networks.motion_weights,
        classes=CLASSES,
        architecture=networks.architecture,
        fields=_saved(networks.folder, "fields", inputs),
        narrow=narrow,
    )
    ours = timed(lambda: jax.block_until_ready(forward(state, inputs)))
    times = in_turns([ours, other], rounds)
    work = 2.0 * multiply_adds(lambda state, x: nnx.merge(graphdef, state)(x), state, inputs[:, :1])
    notes = other.info | {
        "compile_s": seconds,
        "difference": difference(forward(state, inputs), other),
    }
    other.drop()
    return Comparison(
        f"motion network {networks.variant}, {fields} fields"
        + (", products in bfloat16" if narrow else ""),
        "timm, autocast to bfloat16" if narrow else "timm",
        fields,
        "field",
        *times,
        goal=0.45 if networks.variant == "B0" and not narrow else None,
        work=work,
        notes=notes,
    )


def motion_training(networks: Networks, peer: Peer, videos: int, rounds: int) -> Comparison:
    """One step of motion training: forward, backward, update."""
    motion = default_config().motion
    inputs = random_fields(videos, motion.num_segments)
    labels = np.arange(videos, dtype=np.int32)
    graphdef, params, stats = nnx.split(networks.motion, nnx.Param, ...)
    params, stats = jax.tree.map(jnp.copy, (params, stats))
    optimizer = motion_optimizer(params, learning_rate=motion.learning_rate)
    step = make_train_step(
        graphdef,
        lambda model, batch, train, key: model(batch["motion"], train=train),
        optimizer,
        make_mesh(jax.devices()[:1]),
    )
    state = TrainState(jnp.zeros((), jnp.int32), params, stats, optimizer.init(params))
    batch, key = {"motion": inputs, "label": labels}, jax.random.key(0)
    start = time.perf_counter()
    train_step = step.lower(state, batch, key).compile()
    notes: dict[str, Any] = {"compile_s": time.perf_counter() - start}

    def one_step() -> None:
        nonlocal state
        state, sums = train_step(state, batch, key)
        notes.setdefault("loss", float(sums["loss"]) / videos)
        jax.block_until_ready(state)

    other = peer.job(
        "motion_training",
        weights=networks.motion_weights,
        classes=CLASSES,
        fields=_saved(networks.folder, "fields", inputs),
        labels=_saved(networks.folder, "labels", labels),
    )
    ours = timed(one_step)
    # The first pass of both sides, from the same weights, gives the same loss.
    first = ours(), other()
    del first
    notes |= other.info | {"difference": abs(notes["loss"] / float(other.output()) - 1)}
    times = in_turns([ours, other], rounds)
    other.drop()
    fields = videos * motion.num_segments
    return Comparison(
        f"motion training step, {videos} videos x {motion.num_segments} fields",
        "timm, torch.optim.Adam",
        fields,
        "field",
        *times,
        goal=1.0,
        notes=notes,
    )


def clip_tower(
    networks: Networks,
    peer: Peer,
    batch: int,
    rounds: int,
    *,
    dtype: str = "float32",
    narrow: bool = False,
    goal: float | None = None,
) -> Comparison:
    """Embeddings of a batch of images.

    Args:
      networks: both backbones.
      peer: the other side.
      batch: images in the batch.
      rounds: timed passes of each side.
      dtype: of our products, as `config.clip.dtype` names it.
      narrow: whether the other side multiplies in bfloat16; else in float32.
      goal: see `Comparison`.
    """
    products = matmul_dtype(dtype)
    graphdef, state = nnx.split(clip_for_inference(networks.clip, products).vision)
    images = np.random.default_rng(0).integers(0, 256, (batch, 224, 224, 3), np.uint8)
    inputs = np.asarray(normalize_images(images))
    forward, seconds = compiled(lambda state, x: nnx.merge(graphdef, state)(x), state, inputs)
    other = peer.job(
        "clip_tower",
        folder=networks.clip_weights,
        images=_saved(networks.folder, "images", inputs),
        narrow=narrow,
    )
    ours = timed(lambda: jax.block_until_ready(forward(state, inputs)))
    times = in_turns([ours, other], rounds)
    work = 2.0 * multiply_adds(lambda state, x: nnx.merge(graphdef, state)(x), state, inputs[:1])
    notes = other.info | {
        "compile_s": seconds,
        "difference": difference(forward(state, inputs), other),
    }
    other.drop()
    return Comparison(
        f"CLIP ViT-B/32, {batch} image{'s' * (batch > 1)}, clip.dtype={dtype} ({products})",
        "transformers" + (", autocast to bfloat16" if narrow else ""),
        batch,
        "image",
        *times,
        goal=goal,
        work=work,
        notes=notes,
    )


def _saved(folder: Path, name: str, values: np.ndarray) -> str:
    path = folder / f"{name}.npy"
    np.save(path, values)
    return str(path)
