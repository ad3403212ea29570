"""The motion network once more, in torch, written from the method and not from our JAX code.

Used by `make parity` only: torch is no dependency of the project.
"""

import torch
from torch import nn

# Expansion, output channels, blocks, kernel size, stride of the first block (B0).
STAGES = (
    (1, 16, 1, 3, 1),
    (6, 24, 2, 3, 2),
    (6, 40, 2, 5, 2),
    (6, 80, 3, 3, 2),
    (6, 112, 3, 5, 1),
    (6, 192, 4, 5, 2),
    (6, 320, 1, 3, 1),
)


def conv_norm(inputs, outputs, size=1, stride=1, groups=1, activation=True):
    """Convolution without bias, BatchNorm and, if requested, SiLU."""
    layers = [
        nn.Conv2d(inputs, outputs, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
    ]
    return nn.Sequential(*layers, *([nn.SiLU()] if activation else []))


class SqueezeExcite(nn.Module):
    """Channel gate; the bottleneck is a quarter of the block's input."""

    def __init__(self, channels, squeezed):
        super().__init__()
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, squeezed, 1),
            nn.SiLU(),
            nn.Conv2d(squeezed, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x):
        """[N, C, H, W] -> [N, C, H, W]."""
        return x * self.gate(x)


class Block(nn.Module):
    """Inverted residual."""

    def __init__(self, inputs, outputs, expansion, size, stride):
        super().__init__()
        inner = inputs * expansion
        layers = [conv_norm(inputs, inner)] if expansion > 1 else []
        layers += [
            conv_norm(inner, inner, size, stride, groups=inner),
            SqueezeExcite(inner, inputs // 4),
            conv_norm(inner, outputs, activation=False),
        ]
        self.layers = nn.Sequential(*layers)
        self.skip = stride == 1 and inputs == outputs

    def forward(self, x):
        """[N, inputs, H, W] -> [N, outputs, H', W']."""
        return self.layers(x) + x if self.skip else self.layers(x)


class MotionNetworkTorch(nn.Module):
    """BatchNorm of the input, EfficientNet-B0, logits averaged over the segments."""

    def __init__(self, num_classes, in_channels=2):
        super().__init__()
        self.input_norm = nn.BatchNorm2d(in_channels)
        layers, channels = [conv_norm(in_channels, 32, 3, 2)], 32
        for expansion, outputs, blocks, size, stride in STAGES:
            for index in range(blocks):
                layers.append(Block(channels, outputs, expansion, size, stride if not index else 1))
                channels = outputs
        layers += [conv_norm(channels, 1280), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.backbone = nn.Sequential(*layers)
        self.classifier = nn.Linear(1280, num_classes)

    def forward(self, fields):
        """Returns logits [B, classes] of float fields [B, S, 2, H, W], scaled to [-0.5, 0.5]."""
        batch, segments = fields.shape[:2]
        features = self.backbone(self.input_norm(fields.flatten(0, 1)))
        return self.classifier(features).view(batch, segments, -1).mean(1)


def arrays_in_order(module: nn.Module) -> list:
    """Weights and statistics in the order of the modules, without torch's counters of batches.

    That is timm's own order for its EfficientNets (`tests/parity/test_motion_network.py`).
    """
    state = module.state_dict()
    return [value for name, value in state.items() if not name.endswith("num_batches_tracked")]


def set_arrays_in_order(module: nn.Module, arrays) -> None:
    """Copies arrays in the order of `arrays_in_order` into a module."""
    with torch.no_grad():
        for target, source in zip(arrays_in_order(module), arrays, strict=True):
            assert target.shape == source.shape
            target.copy_(torch.tensor(source))
