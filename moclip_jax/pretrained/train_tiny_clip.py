"""Trains the embedded tiny CLIP, or measures it; or a SigLIP of its size.

    python -m moclip_jax.pretrained.train_tiny_clip             # trains and writes the folder
    python -m moclip_jax.pretrained.train_tiny_clip --evaluate  # prints the held-out accuracies
    python -m moclip_jax.pretrained.train_tiny_clip --kind=siglip --folder=FOLDER

Training takes about 20 minutes on two CPU cores and is a function of `--seed` alone (up to the
rounding of the machine's float32).
"""

import dataclasses
import functools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import app, flags
from flax import nnx

from moclip_jax.input_pipeline.datasets.shape_masks import SHAPES
from moclip_jax.models.clip import CLIP, CLIPConfig, normalize_images
from moclip_jax.models.clip_config import CLIPTextConfig, CLIPVisionConfig
from moclip_jax.models.image_preprocessing import ImagePreprocessing
from moclip_jax.pretrained.clip_vocabulary import learn_tokenizer
from moclip_jax.pretrained.folders import TINY_CLIP
from moclip_jax.pretrained.tiny_clip_data import (
    IMAGE_SIZE,
    TRAINED_LENGTH,
    ImageSet,
    corpus,
    matches,
    random_caption,
    training_images,
)
from moclip_jax.pretrained.tiny_clip_evaluation import evaluate, model_card
from moclip_jax.pretrained.tokenizers import tokenize
from moclip_jax.pretrained.towers import load_tower, save_tower

_EVALUATE = flags.DEFINE_bool("evaluate", False, "Only measure the folder's model, and print.")
_FOLDER = flags.DEFINE_string("folder", str(TINY_CLIP), "Where the model is, or is written.")
_KIND = flags.DEFINE_enum("kind", "clip", ["clip", "siglip"], "What is trained.")
_SEED = flags.DEFINE_integer("seed", 0, "Of the initial weights, the batches and the captions.")


# CLIP's own length, for longer texts than those trained on.
_MAX_LENGTH = 77


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Hyperparameters of the training.

    The learning rate rises to its highest over the warm-up and falls to 0 along a cosine. Weight
    decay is that of AdamW, on matrices only.
    """

    num_images: int = 24000
    num_steps: int = 10000
    batch_size: int = 64
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.05
    num_merges: int = 500


# At the rate of the CLIP, attention pooling does not learn.
_SIGLIP = Pipeline(num_images=12000, num_steps=4000, learning_rate=1e-3)


def tiny_config(vocab_size: int, eos_token_id: int, *, siglip: bool = False) -> CLIPConfig:
    """Return the sizes of the tiny CLIP, or of a SigLIP like it."""
    kind: dict[str, Any] = {}
    if siglip:
        kind = {
            "activation": "gelu_pytorch_tanh",
            "layer_norm_eps": 1e-6,
            "preprocessing": ImagePreprocessing.from_hf(None, IMAGE_SIZE, siglip=True),
        }
    return CLIPConfig(
        vision=CLIPVisionConfig(
            image_size=IMAGE_SIZE,
            patch_size=8,
            hidden_size=64,
            num_layers=3,
            num_heads=2,
            mlp_size=256,
            pooling="attention" if siglip else "class_token",
        ),
        text=CLIPTextConfig(
            vocab_size=vocab_size,
            max_length=TRAINED_LENGTH,
            hidden_size=64,
            num_layers=2,
            num_heads=2,
            mlp_size=256,
            eos_token_id=eos_token_id,
            pooling="last_token" if siglip else "end_token",
        ),
        projection_dim=64,
        **kind,
    )


def planar_positions(config: CLIPVisionConfig) -> jax.Array:
    """Return where to start the position embeddings: float32 [tokens, hidden_size].

    Sines and cosines of the patch's row and column, which are trained on like the rest. From random
    values, training takes several times as many steps to learn which patches are neighbours (Beyer
    et al. 2022, arXiv 2205.01580, start from them for the same reason).
    """
    side = config.image_size // config.patch_size
    bands = config.hidden_size // 4
    # From two patches a period, the finest there is, to four times the image.
    frequencies = np.pi * np.geomspace(1, 1 / (2 * side), bands)
    waves = np.arange(side)[:, None] * frequencies
    axis = np.concatenate([np.sin(waves), np.cos(waves)], axis=-1)  # [side, hidden / 2]
    rows = np.broadcast_to(axis[:, None], (side, side, 2 * bands))
    columns = np.broadcast_to(axis[None], (side, side, 2 * bands))
    patches = np.concatenate([rows, columns], axis=-1).reshape(side * side, -1)
    first = np.zeros((int(config.pooling == "class_token"), config.hidden_size))
    return jnp.asarray(0.3 * np.concatenate([first, patches]), jnp.float32)


def contrastive_loss(logits: jax.Array, match: jax.Array) -> jax.Array:
    """Return CLIP's symmetric cross-entropy where several captions may be true of an image.

    The target is uniform over all that match (Yang et al. 2022, UniCL, arXiv 2204.03610): with so
    few captions, half of the others of a batch would be false negatives. `match` is bool [n, n],
    like the logits images by captions; every row and every column has one at least.
    """
    target = match.astype(jnp.float32)
    by_image = optax.softmax_cross_entropy(logits, target / target.sum(1, keepdims=True))
    by_caption = optax.softmax_cross_entropy(logits.T, target.T / target.T.sum(1, keepdims=True))
    return (by_image.mean() + by_caption.mean()) / 2


def siglip_loss(logits: jax.Array, match: jax.Array) -> jax.Array:
    """Return SigLIP's loss, in which each pair alone matches or does not, plus `contrastive_loss`.

    Zhai et al. 2023 (arXiv 2303.15343); here the mean over the pairs. In batches of 64 it alone
    stays where every pair has the same probability. The contrastive loss leaves that plateau, and
    the sigmoid loss fits the scale and the bias. Arguments are those of `contrastive_loss`.
    """
    pairs = optax.sigmoid_binary_cross_entropy(logits, match.astype(jnp.float32))
    return contrastive_loss(logits, match) + pairs.mean()


def train_batches(
    data: ImageSet, tokenizer: Any, max_length: int, recipe: Pipeline, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (images uint8 [n, s, s, 3], tokens int32 [n, L], match bool [n, n]) for each step."""
    rng = np.random.default_rng(seed)
    for _ in range(recipe.num_steps):
        chosen = rng.integers(len(data.images), size=recipe.batch_size)
        shapes = data.shapes[chosen]
        looks = [data.looks[index] for index in chosen]
        captions = [
            random_caption(rng, SHAPES[shape], look)
            for shape, look in zip(shapes, looks, strict=True)
        ]
        # The eight symmetries of the square keep every caption true.
        images = np.rot90(data.images[chosen], int(rng.integers(4)), axes=(1, 2))
        if rng.random() < 0.5:
            images = images[:, :, ::-1]
        tokens = tokenize(tokenizer, [caption.text for caption in captions], max_length)
        yield np.ascontiguousarray(images), tokens, matches(captions, shapes, looks)


def lengthen(clip: CLIP, tokenizer: Any, max_length: int) -> tuple[CLIP, Any]:
    """Return the same CLIP and tokenizer for texts of up to `max_length` tokens.

    The added positions repeat the last trained one: longer texts are not learnt, but they are
    accepted. Texts of the trained lengths keep their features, bit for bit.
    """
    config = dataclasses.replace(
        clip.config, text=dataclasses.replace(clip.config.text, max_length=max_length)
    )
    longer = CLIP(config, rngs=nnx.Rngs(0))
    table = clip.text.position_embedding
    positions = table[...]
    added = jnp.repeat(positions[-1:], max_length - len(positions), axis=0)
    table.set_value(jnp.concatenate([positions, added]))
    nnx.update(longer, nnx.state(clip))
    table.set_value(positions)
    tokenizer.model_max_length = max_length
    return longer, tokenizer


def train(recipe: Pipeline, seed: int, *, siglip: bool = False) -> tuple[CLIP, Any]:
    """Return the trained CLIP, or SigLIP, and its tokenizer."""
    start = time.monotonic()
    tokenizer = learn_tokenizer(corpus(), num_merges=recipe.num_merges, max_length=TRAINED_LENGTH)
    config = tiny_config(len(tokenizer), tokenizer.eos_token_id, siglip=siglip)
    loss_function = siglip_loss if siglip else contrastive_loss
    clip = nnx.jit(lambda: CLIP(config, rngs=nnx.Rngs(seed)))()
    clip.vision.position_embedding[...] = planar_positions(config.vision)
    if siglip:
        # So large that its attention is not the mean over all patches at the start.
        clip.vision.pooling.probe[...] *= 24
    graph, params = nnx.split(clip)
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, recipe.learning_rate, recipe.warmup_steps, recipe.num_steps
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(
            schedule,
            b2=0.98,  # CLIP's own, steadier than 0.999
            weight_decay=recipe.weight_decay,
            mask=jax.tree.map(lambda leaf: leaf.ndim > 1, params),
        ),
    )

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params, optimizer_state, images, tokens, match):
        def loss_of(params):
            clip = nnx.merge(graph, params)
            return loss_function(
                clip(normalize_images(images, config.preprocessing), tokens), match
            )

        loss, gradients = jax.value_and_grad(loss_of)(params)
        updates, optimizer_state = optimizer.update(gradients, optimizer_state, params)
        return optax.apply_updates(params, updates), optimizer_state, loss

    data = training_images(recipe.num_images)
    print(f"{len(data.images)} images drawn in {time.monotonic() - start:.0f} s", flush=True)
    optimizer_state = optimizer.init(params)
    batches = train_batches(data, tokenizer, config.text.max_length, recipe, seed)
    for step, batch in enumerate(batches, start=1):
        params, optimizer_state, loss = train_step(params, optimizer_state, *batch)
        if step % 100 == 0 or step == recipe.num_steps:
            spent = time.monotonic() - start
            print(f"step {step}/{recipe.num_steps} loss {loss:.4f}, {spent:.0f} s", flush=True)
    trained = nnx.merge(graph, params)
    # A SigLIP reads texts of one length, that of its training.
    return (trained, tokenizer) if siglip else lengthen(trained, tokenizer, _MAX_LENGTH)


def main(argv: list[str]) -> None:
    """Train and writes the folder unless `--evaluate`; then measures what lies in it."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments: {' '.join(argv[1:])}")
    folder, siglip = Path(_FOLDER.value), _KIND.value == "siglip"
    if siglip and folder == TINY_CLIP:
        raise app.UsageError("--kind=siglip needs a --folder of its own")
    if not _EVALUATE.value:
        save_tower(*train(_SIGLIP if siglip else Pipeline(), _SEED.value, siglip=siglip), folder)
    clip, tokenizer = load_tower(folder)
    assert isinstance(clip, CLIP)
    accuracies = evaluate(clip, tokenizer)
    for name, accuracy in accuracies.items():
        print(f"{name}: {accuracy:.4f}")
    if not _EVALUATE.value:
        (folder / "README.md").write_text(model_card(clip, accuracies))


if __name__ == "__main__":
    app.run(main)
