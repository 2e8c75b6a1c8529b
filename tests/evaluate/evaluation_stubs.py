"""A source in memory and a classifier whose features are the pixels."""

import hashlib

import torch
from torch import Tensor, nn

from genkit.data.source import Info


def info_of(shape, count=0, fingerprint="", name="pixels"):
    """An Info for images of `shape`."""
    return Info(name=name, kind="images", shape=shape, count=count, fingerprint=fingerprint)


class Pixels:
    """Random uint8 images with a true fingerprint, which count how often they are read."""

    labels: Tensor | None = None

    def __init__(self, n=0, shape=(1, 4, 4), seed=0, data: Tensor | None = None, low=0, high=256):
        generator = torch.Generator().manual_seed(seed)
        self.data = data
        if data is None:
            self.data = torch.randint(low, high, (n, *shape), dtype=torch.uint8, generator=generator)
        sha = hashlib.sha256(self.data.numpy().tobytes()).hexdigest()
        self.info = info_of(tuple(self.data.shape[1:]), len(self.data), sha, f"pixels{seed}")
        self.reads = 0

    def __len__(self):
        return len(self.data)

    def uint8(self, indices):
        self.reads += 1
        return self.data[indices]


class Clf(nn.Module):
    """features(x) = the pixels, logits = 20 times the first three."""

    def features(self, x):
        return x.flatten(1)

    def forward(self, x):
        return 20 * x.flatten(1)[:, :3]
