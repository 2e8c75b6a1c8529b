"""The loss of a classifier."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import noise as rng
from ..data.source import Batch
from ..train.objective import Loss, Noise, Objective


def shift(x: Tensor, u: Tensor, most: int) -> Tensor:
    """x moved by a whole number of pixels, -most … most on each axis; border pixels fill what is uncovered.

    x: (B, C, H, W); u: (B, 2) in [0, 1), which says how far.
    """
    height, width = x.shape[2:]
    by = torch.floor(u * (2 * most + 1)).long() - most
    row = (torch.arange(height, device=x.device) + by[:, :1]).clamp(0, height - 1)
    column = (torch.arange(width, device=x.device) + by[:, 1:]).clamp(0, width - 1)
    pixel = (row[:, :, None] * width + column[:, None, :]).flatten(1)
    # x[...] would permute, and a permuted single channel passes for channels_last, slow in norms on a CPU
    return x.flatten(2).gather(2, pixel[:, None].expand(-1, x.shape[1], -1)).view(x.shape)


class Classification(Objective):
    """Cross-entropy in nats of (B,) labels; the model maps (B, C, H, W) to (B, classes) logits.

    smoothing: share of the label's probability spread over all classes (Szegedy et al. 2016), in training.
    most: pixels by which training images are shifted at random, at most; 0 leaves them as they are.
    noisy: mix noise in: x cos(a) + eps sin(a), the angle a uniform on [0, pi / 2] and told to the model in
    units of pi / 2. Every schedule's x_t is of this form up to a factor, so one classifier guides them all.
    """

    def __init__(self, model: nn.Module, smoothing: float = 0.0, most: int = 0, noisy: bool = False) -> None:
        super().__init__()
        self.model, self.smoothing, self.most, self.noisy = model, smoothing, most, noisy

    def loss(self, phase: str, batch: Batch, noise: Noise) -> Loss:
        """Cross-entropy on shifted images; logs it and the share of images classified right.

        Raises:
            ValueError: the batch has no labels.
        """
        x = shift(batch.x, noise.uniform(rng.SHIFT, (2,)), self.most) if self.most else batch.x
        level = noise.uniform(rng.TIME) if self.noisy else None
        if level is not None:
            angle = (0.5 * torch.pi * level)[:, None, None, None]
            x = x * torch.cos(angle) + noise.normal(rng.EPS, tuple(x.shape[1:])) * torch.sin(angle)
        return self._loss(x, batch.label, self.smoothing, level)

    @torch.no_grad()
    def evaluate(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Cross-entropy and accuracy on the images as they are, against the labels as they are."""
        return self._loss(batch.x, batch.label, 0.0).logs

    def _loss(self, x: Tensor, label: Tensor | None, smoothing: float, level: Tensor | None = None) -> Loss:
        if label is None:
            raise ValueError("a classifier needs labels and this batch has none")
        logits = (self.model(x) if level is None else self.model(x, level)).float()
        total = F.cross_entropy(logits, label, label_smoothing=smoothing)
        accuracy = (logits.argmax(dim=1) == label).float().mean()
        return Loss(total, {"loss": total.detach(), "accuracy": accuracy})
