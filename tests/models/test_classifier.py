"""The classifier family."""

import pytest
import torch

from genkit.config import from_dict, to_dict
from genkit.data.source import Batch, Info
from genkit.errors import InputError
from genkit.models import classifier
from genkit.train.objective import Noise

TEN = tuple("0123456789")


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)])
def test_shapes(shape):
    """Oracle: logits for each class, features of the declared width; the same from JSON."""
    info = Info("x", "images", shape, 10, TEN)
    config = classifier.ClassifierConfig(width=8)
    module = classifier.build(config, info)
    x = torch.randn(2, *shape)
    assert module(x).shape == (2, 10)
    assert module.features(x).shape == (2, module.feature_dim)
    other = classifier.build(from_dict(classifier.ClassifierConfig, to_dict(config)), info)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other(x), module(x))


def test_default_shift_follows_the_size():
    """Oracle: 2 pixels of 28 or 32, none of 8, as many as asked for."""
    for size, shift, most in ((28, None, 2), (32, None, 2), (8, None, 0), (8, 1, 1), (28, 0, 0)):
        info = Info("x", "images", (1, size, size), 10, TEN)
        config = classifier.ClassifierConfig(width=2, shift=shift)
        assert classifier.objective(classifier.build(config, info), config, info).most == most


def test_labels_are_needed():
    """Oracle: the message names the source and the remedy."""
    with pytest.raises(InputError, match="labels and faces has none; use"):
        classifier.build(classifier.ClassifierConfig(), Info("faces", "images", (3, 32, 32), 10))


def test_learns_digits():
    """Oracle: a nearest neighbour gets 98.0 % of every sixth scikit-learn digit; 10 epochs pass 95 %."""
    datasets = pytest.importorskip("sklearn.datasets")
    data = datasets.load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(data.target)
    held = torch.arange(len(x)) % 6 == 5
    torch.manual_seed(0)
    info = Info("digits", "images", (1, 8, 8), 1797, TEN)
    config = classifier.ClassifierConfig(width=16, shift=0)
    module = classifier.build(config, info)
    objective = classifier.objective(module, config, info)
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    for step in range(10 * 15):
        optimizer.param_groups[0]["lr"] = 3e-3 * (1 - step / 150)
        index = torch.arange(100 * step, 100 * step + 100)
        batch = Batch(x[~held][index % 1498], y[~held][index % 1498])
        optimizer.zero_grad()
        objective.loss("main", batch, Noise(0, index)).total.backward()
        optimizer.step()
    count = int(held.sum())
    assert objective.evaluate(Batch(x[held], y[held]), Noise(0, torch.arange(count)))["accuracy"] > 0.95
