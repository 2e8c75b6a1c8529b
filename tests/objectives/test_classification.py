"""Classification loss and its augmentation."""

import math

import pytest
import torch
from torch import nn

from genkit.data.source import Batch
from genkit.objectives.classification import Classification, shift
from genkit.train.objective import Noise


def test_shift_moves_whole_pixels():
    """Oracle: rolled by hand; u = 0 is an offset of -most, u = 1/2 of 0, u -> 1 of +most."""
    x = torch.zeros(3, 2, 6, 6)
    x[:, :, 2:4, 2:4] = torch.arange(4.0).view(2, 2) + 1
    u = torch.tensor([[0.0, 0.5], [0.5, 0.5], [0.999, 0.0]])
    y = shift(x, u, 1)
    # out[i] = in[i + by]: the picture moves against the offset
    expected = torch.stack([x[0].roll(1, dims=1), x[1], x[2].roll((-1, 1), dims=(1, 2))])
    assert torch.equal(y, expected)
    assert y.stride() == x.stride()


def test_shift_repeats_the_border():
    """Oracle: torch's replicate padding."""
    x = torch.randn(1, 3, 5, 7, generator=torch.Generator().manual_seed(0))
    padded = nn.functional.pad(x, (2, 2, 2, 2), mode="replicate")
    assert torch.equal(shift(x, torch.tensor([[0.0, 0.999]]), 2), padded[:, :, 0:5, 4:11])


def test_shifts_are_uniform():
    """Oracle: each of the 5 x 5 shifts of a dot has probability 1/25; 5,000 draws, 5 standard deviations."""
    x = torch.zeros(5000, 1, 9, 9)
    x[:, :, 4, 4] = 1
    count = shift(x, Noise(0, torch.arange(5000)).uniform(64, (2,)), 2).sum(dim=(0, 1))[2:7, 2:7]
    assert count.sum() == 5000
    assert (count - 200).abs().max() < 5 * math.sqrt(5000 / 25 * 24 / 25)


def _batch() -> tuple[nn.Module, Batch, Noise]:
    """A model whose logits are the pixels of a 1x3 image."""
    x = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0]]).view(2, 1, 1, 3)
    return nn.Flatten(), Batch(x, torch.tensor([0, 2])), Noise(0, torch.arange(2))


def test_cross_entropy_by_hand():
    """Oracle: -log softmax written out; one of two right."""
    model, batch, noise = _batch()
    logs = Classification(model).loss("main", batch, noise).logs
    exact = (math.log(math.exp(2) + 2) - 2 + math.log(math.e + 2)) / 2
    assert logs["loss"].item() == pytest.approx(exact, rel=1e-6)
    assert logs["accuracy"] == 0.5


def test_smoothing_is_for_training_only():
    """Oracle: smoothing s mixes in the mean over classes of -log p with weight s; evaluation has none."""
    model, batch, noise = _batch()
    objective = Classification(model, smoothing=0.3)
    uniform = -torch.log_softmax(model(batch.x), dim=1).mean()
    plain = Classification(model).loss("main", batch, noise).total
    torch.testing.assert_close(objective.loss("main", batch, noise).total, 0.7 * plain + 0.3 * uniform)
    torch.testing.assert_close(objective.evaluate(batch, noise)["loss"], plain)


def test_evaluation_does_not_shift():
    """Oracle: the loss without augmentation; with it, some draw among these differs."""
    model, batch, _ = _batch()
    noise = Noise(0, torch.arange(2) + 10)
    plain, shifted = Classification(model), Classification(model, most=1)
    assert torch.equal(shifted.evaluate(batch, noise)["loss"], plain.evaluate(batch, noise)["loss"])
    assert any(
        shifted.loss("main", batch, Noise(s, torch.arange(2))).total != plain.loss("main", batch, noise).total
        for s in range(5)
    )


def test_labels_are_needed():
    """Oracle: an error that says so."""
    model, batch, noise = _batch()
    with pytest.raises(ValueError, match="labels"):
        Classification(model).loss("main", batch._replace(label=None), noise)
