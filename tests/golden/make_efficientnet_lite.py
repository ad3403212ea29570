"""Makes efficientnet_lite.npz: what timm's EfficientNet-Lites give; see make_efficientnet.py.

In the environment of `make parity` or in that of make_efficientnet.py:

    PYTHONPATH=. .venv-parity/bin/python tests/golden/make_efficientnet_lite.py \\
      tests/golden/efficientnet_lite.npz
"""

import sys

from benchmarks.torch_worker import import_timm

timm = import_timm()

from make_efficientnet import run_model, store  # noqa: E402

# name: variant, input channels, classes, input shape [N, H, W].
MODELS = {
    "lite0_rgb": ("lite0", 3, 1000, (2, 64, 64)),
    "lite0_224": ("lite0", 3, 1000, (1, 224, 224)),
    "lite2_odd": ("lite2", 3, 1000, (2, 45, 70)),
    "lite0_motion": ("lite0", 2, 101, (4, 96, 96)),
}


def run_lite(name, dtype):
    variant, in_channels, num_classes, shape = MODELS[name]
    sizes = {"in_chans": in_channels, "num_classes": num_classes}
    model = timm.create_model(f"tf_efficientnet_{variant}", pretrained=False, **sizes)
    return run_model(name, model, shape, dtype)


if __name__ == "__main__":
    runs = {name: lambda dtype, name=name: run_lite(name, dtype) for name in MODELS}
    store(runs, sys.argv[1])
