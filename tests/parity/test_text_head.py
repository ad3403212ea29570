"""The head that starts from the words against torch, live: its gradients and twenty steps."""

import jax
import numpy as np
import optax
import torch
from flax import nnx
from torch.nn import functional

from moclip_jax.models.fusion import FusionConfig
from moclip_jax.models.text_head import ClassText, TextHead
from moclip_jax.training.optimizers import head_optimizer
from tests.parity.head_training import train_ours
from tests.parity.noise import report

CLASSES, WIDTH, MOTION, VIDEOS, SCALE = 101, 512, 1280, 64, 100.0


class TextHeadTorch(torch.nn.Module):
    """scale * (unit(image) + M unit(motion)) . (words + delta), written from its description."""

    def __init__(self, words: np.ndarray):
        super().__init__()
        self.register_buffer("words", torch.tensor(words))
        self.delta = torch.nn.Parameter(torch.zeros(CLASSES, WIDTH))
        self.map = torch.nn.Linear(MOTION, WIDTH, bias=False)
        torch.nn.init.zeros_(self.map.weight)

    def forward(self, motion, appearance):
        motion, appearance = (functional.normalize(x.mean(1), dim=-1) for x in (motion, appearance))
        return SCALE * (appearance + self.map(motion)) @ (self.words + self.delta).T


def steps_of(model: TextHeadTorch, batches: list[dict[str, np.ndarray]]) -> tuple:
    """Return the losses of AdamW, and the gradients of the last step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01)
    losses = []
    for batch in batches:
        inputs = (torch.tensor(batch[n]).to(model.delta.dtype) for n in ("motion", "appearance"))
        loss = functional.cross_entropy(model(*inputs), torch.tensor(batch["label"]).long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model.delta.grad.numpy(), model.map.weight.grad.numpy()


def test_gradients_and_twenty_steps_of_the_text_head_follow_torch():
    """Losses, gradients after training has left the start, and trained weights."""
    rng = np.random.default_rng(0)
    words = rng.standard_normal((CLASSES, WIDTH), np.float32)
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    batches = [
        {
            "motion": rng.random((VIDEOS, 3, MOTION), np.float32),
            "appearance": rng.standard_normal((VIDEOS, 2, WIDTH), np.float32),
            "label": rng.integers(0, CLASSES, VIDEOS).astype(np.int32),
        }
        for _ in range(20)
    ]
    config = FusionConfig(
        motion_features=MOTION, appearance_features=WIDTH, num_classes=CLASSES, head="text",
        normalize=True,
    )  # fmt: skip
    head = TextHead(config, rngs=nnx.Rngs(0))
    head.start_from(ClassText(words, SCALE, 0.0))
    losses, before = train_ours(head, head_optimizer(), batches[:19], jax.random.key(0))

    graph, params, rest = nnx.split(before, nnx.Param, ...)

    def loss_fn(params):
        logits = nnx.merge(graph, params, rest)(batches[19]["motion"], batches[19]["appearance"])
        return optax.softmax_cross_entropy_with_integer_labels(logits, batches[19]["label"]).mean()

    last, grads = jax.value_and_grad(loss_fn)(params)
    ours = {"losses": np.array([*losses, float(last)])}
    ours |= {"delta": np.asarray(grads["delta"][...]), "map": np.asarray(grads["motion"][...]).T}

    def of_torch(dtype: torch.dtype) -> dict[str, np.ndarray]:
        model = TextHeadTorch(words).to(dtype)
        found, delta, weight = steps_of(model, batches)
        return {"losses": np.array(found), "delta": delta, "map": weight}

    exact, single = of_torch(torch.float64), of_torch(torch.float32)
    for name, value in ours.items():
        noise, of_single = (np.abs(x - exact[name]).max() for x in (value, single[name]))
        report(f"text head, {name} from torch in float64", ours=noise, torch=of_single)
        # Relative to the largest; 19 steps of Adam in float32 lie before these gradients.
        assert noise < 1e-5 * np.abs(exact[name]).max(), name
