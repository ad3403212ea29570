"""Makes efficientnet.npz: what timm's EfficientNets and torch's layers give.

Run it in an environment of its own (neither torch nor timm is a dependency of this project):

    python -m venv /tmp/timmenv
    /tmp/timmenv/bin/pip install torch==2.14.1 torchvision==0.29.1 timm==1.0.31 numpy==2.4.6
    /tmp/timmenv/bin/python tests/golden/make_efficientnet.py tests/golden/efficientnet.npz

Weights and inputs are not stored: `efficientnet_recipe.py` makes them from their names on both
sides. The sums that are stored tell if the recipe ever gave other numbers.

Everything is computed twice, in float32 and in float64. The float64 numbers are stored, and with
them how far torch's own float32 is from them: the noise that no implementation can get below.
"""

import json
import sys

import numpy as np
import timm
import torch
import torch.nn.functional as F
from efficientnet_recipe import normal, projections, scale, weight
from timm.models.efficientnet import _gen_efficientnet

# name: width, depth, input channels, classes, input shape [N, H, W].
MODELS = {
    "b0_rgb": (1.0, 1.0, 3, 1000, (2, 64, 64)),
    "b0_motion": (1.0, 1.0, 2, 101, (4, 128, 128)),
    "tiny_motion": (0.25, 0.25, 2, 7, (4, 45, 70)),
}
DEPTHWISE = [(k, s, size) for k in (1, 3, 5) for s in (1, 2) for size in ((8, 8), (7, 10), (1, 3))]


def b0(name):
    """Returns timm's model of an entry of MODELS, and the shape of its input."""
    width, depth, in_channels, num_classes, shape = MODELS[name]
    sizes = {"in_chans": in_channels, "num_classes": num_classes}
    if (width, depth) == (1.0, 1.0):
        return timm.create_model("efficientnet_b0", **sizes), shape
    scaled = {"channel_multiplier": width, "depth_multiplier": depth}
    return _gen_efficientnet("efficientnet_b0", **scaled, **sizes), shape


def run_model(name, model, shape, dtype):
    batch, height, side = shape
    in_channels, num_classes = model.conv_stem.in_channels, model.num_classes
    state = model.state_dict()
    keys = [key for key in state if not key.endswith("num_batches_tracked")]
    state |= {key: torch.tensor(weight(key, tuple(state[key].shape))) for key in keys}
    model.load_state_dict(state, strict=True)
    model = model.to(dtype)
    x = torch.tensor(normal(f"{name}/input", (batch, in_channels, height, side))).to(dtype)
    labels = torch.arange(batch) % num_classes

    results = {}
    model.eval()
    with torch.no_grad():
        results["eval_features"] = model.forward_head(model.forward_features(x), pre_logits=True)
        results["eval_logits"] = model(x)
    if in_channels == 2:
        model.train()
        results["train_logits"] = model(x)
        F.cross_entropy(results["train_logits"], labels).backward()
        statistics = {key: v for key, v in model.state_dict().items() if "running" in key}
        gradients = {key: parameter.grad for key, parameter in model.named_parameters()}
        for group, arrays in (("statistics", statistics), ("gradients", gradients)):
            results[group] = torch.tensor(
                np.stack([projections(key, value.numpy()) for key, value in arrays.items()])
            )
    results = {key: value.detach().numpy() for key, value in results.items()}
    results["shapes"] = np.array(json.dumps({key: list(state[key].shape) for key in keys}))
    results["checksum"] = np.float64(
        sum(np.abs(weight(key, tuple(state[key].shape))).sum() for key in keys)
    )
    return results


def run_depthwise(dtype):
    results = {}
    for k, stride, (height, width) in DEPTHWISE:
        key = f"k{k}_s{stride}_{height}x{width}"
        x = torch.tensor(normal(f"{key}/x", (2, 3, height, width))).to(dtype).requires_grad_()
        w = torch.tensor(normal(f"{key}/w", (3, 1, k, k))).to(dtype).requires_grad_()
        y = F.conv2d(x, w, stride=stride, padding=k // 2, groups=3)
        y.backward(torch.tensor(normal(f"{key}/g", tuple(y.shape))).to(dtype))
        for name, value in (("y", y), ("gx", x.grad), ("gw", w.grad)):
            results[f"{key}/{name}"] = value.detach().numpy()
    return results


def run_batch_norm(dtype):
    norm = torch.nn.BatchNorm2d(3).to(dtype)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor(normal("weight", (3,))))
        norm.bias.copy_(torch.tensor(normal("bias", (3,))))
    results = {}
    for step in range(3):
        # A mean far from zero: E[x^2] - E[x]^2 would lose the variance in float32.
        x = torch.tensor(normal(f"x{step}", (4, 3, 5, 7)) + 100.0).to(dtype).requires_grad_()
        norm.zero_grad()
        y = norm(x)
        y.backward(torch.tensor(normal(f"g{step}", (4, 3, 5, 7))).to(dtype))
        for name, value in (
            ("y", y),
            ("gx", x.grad),
            ("gweight", norm.weight.grad),
            ("gbias", norm.bias.grad),
            ("mean", norm.running_mean),
            ("var", norm.running_var),
        ):
            results[f"{step}/{name}"] = value.detach().numpy().copy()
    norm.eval()
    results["eval"] = norm(x).detach().numpy()
    return results


def main(path):
    runs = {name: lambda dtype, name=name: run_model(name, *b0(name), dtype) for name in MODELS}
    runs |= {"depthwise": run_depthwise, "batch_norm": run_batch_norm}
    store(runs, path)


def store(runs, path):
    """Computes each run in both dtypes and writes all of them."""
    torch.manual_seed(0)
    stored = {"versions": np.array(f"torch {torch.__version__}, timm {timm.__version__}")}
    for name, run in runs.items():
        single, double = run(torch.float32), run(torch.float64)
        for key, value in double.items():
            if not np.issubdtype(value.dtype, np.floating):
                stored[f"{name}/{key}"] = value
                continue
            error = np.abs(single[key] - value).max()
            print(f"{name}/{key}: max {np.abs(value).max():.3g}, float32 differs by {error:.2g}")
            exact = key in ("statistics", "gradients", "checksum")
            stored[f"{name}/{key}"] = value if exact else value.astype(np.float32)
            if key in ("statistics", "gradients"):
                noise = np.abs(single[key] - value) / scale(value)
                stored[f"{name}/{key}_noise"] = noise.max(0)
                print("   relative to the scale, worst:", noise.max(0))
    np.savez_compressed(path, **stored)


if __name__ == "__main__":
    main(sys.argv[1])
