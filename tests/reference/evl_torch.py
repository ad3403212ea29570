"""EVL's decoder once more, in torch, written from the method (arXiv 2208.03550).

Used by `make parity`, and by `tests/golden/make_evl.py`. What dropout keeps is told to it.
"""

import torch
from torch import nn
from torch.nn import functional


class CrossAttention(nn.Module):
    """Of each patch with those of a neighbouring frame, by given queries and keys."""

    def __init__(self, width, grid):
        super().__init__()
        self.grid = grid
        self.before = nn.Parameter(torch.zeros((2 * grid - 1) ** 2, width))
        self.after = nn.Parameter(torch.zeros((2 * grid - 1) ** 2, width))

    def offset(self, query, key):
        """Index of the vector for the way from one patch to another."""
        rows = query // self.grid - key // self.grid + self.grid - 1
        columns = query % self.grid - key % self.grid + self.grid - 1
        return rows * (2 * self.grid - 1) + columns

    def forward(self, query, key):
        """[N, T, 1 + patches, heads, size], both -> [N, T, 1 + patches, width]."""
        batch, frames, tokens, _, size = query.shape
        patches = tokens - 1
        result = torch.zeros(batch, frames, tokens, self.before.shape[1], dtype=query.dtype)
        index = torch.tensor([[self.offset(q, k) for k in range(patches)] for q in range(patches)])
        for frame in range(frames):
            for other, vectors in ((frame - 1, self.before), (frame + 1, self.after)):
                if not 0 <= other < frames:
                    continue
                mine = query[:, frame, 1:].transpose(1, 2)
                theirs = key[:, other, 1:].transpose(1, 2)
                weights = (mine @ theirs.transpose(2, 3) / size**0.5).softmax(-1).mean(1)
                for patch in range(patches):
                    result[:, frame, 1 + patch] += weights[:, patch] @ vectors[index[patch]]
        return result


class DecoderLayer(nn.Module):
    """Query attends to tokens; then an MLP with QuickGELU."""

    def __init__(self, width, heads):
        super().__init__()
        self.query_norm, self.token_norm, self.mlp_norm = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.heads = heads

    def forward(self, x, tokens, kept, keep):
        """x [N, width], tokens [N, T, width] -> [N, width]."""
        tokens = self.token_norm(tokens)

        def split(y):
            return y.unflatten(-1, (self.heads, -1)).transpose(-3, -2)

        mixed = functional.scaled_dot_product_attention(
            split(self.query(self.query_norm(x))[:, None]),
            split(self.key(tokens)),
            split(self.value(tokens)),
        )
        x = x + self.out(mixed.transpose(1, 2).flatten(1))
        hidden = self.fc1(self.mlp_norm(x))
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        return x + self.fc2(hidden * kept / keep)


class EVLHeadTorch(nn.Module):
    """The decoder, and the fusion's hidden layer and classifier on motion and its output."""

    def __init__(self, layers, width, grid, heads, frames, motion, hidden, classes):
        super().__init__()
        self.start = nn.Parameter(torch.zeros(width))
        self.convs = nn.ModuleList(
            [nn.Conv1d(width, width, 3, padding=1, groups=width) for _ in range(layers)]
        )
        self.positions = nn.Parameter(torch.zeros(layers, frames, width))
        self.cross = nn.ModuleList([CrossAttention(width, grid) for _ in range(layers)])
        self.layers = nn.ModuleList([DecoderLayer(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.hidden = nn.Linear(motion + width, hidden)
        self.classifier = nn.Linear(hidden, classes)
        self.heads = heads

    def forward(self, motion, tokens, kept=None, keep=1.0):
        """Logits [N, classes] of [N, S, Dm] and [N, T, layers, 3, 1 + patches, width].

        `kept`: a mask for the MLP of each layer [N, 4 width], and one for the fusion [N, hidden].
        """
        kept = kept or [torch.ones(())] * (len(self.layers) + 1)
        x = self.start.expand(len(tokens), -1)
        for number, layer in enumerate(self.layers):
            out, query, key = tokens[:, :, number].unbind(2)
            # Time last, each channel of each token alone.
            over_time = out.permute(0, 2, 3, 1).flatten(0, 1)
            convolved = self.convs[number](over_time).unflatten(0, out.shape[0:1] + out.shape[2:3])
            seen = out + convolved.permute(0, 3, 1, 2) + self.positions[number][:, None]
            query, key = (y.unflatten(-1, (self.heads, -1)) for y in (query, key))
            seen = seen + self.cross[number](query, key)
            x = layer(x, seen.flatten(1, 2), kept[number], keep)
        joined = torch.cat([motion.mean(1), self.norm(x)], -1)
        hidden = functional.relu(self.hidden(joined)) * kept[-1] / keep
        return self.classifier(hidden)
