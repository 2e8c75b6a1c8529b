"""Which examples stand for all."""

import pytest
import torch

from genkit.data.resident import resident_images
from genkit.evaluate.extractors import Features
from genkit.evaluate.features import extract
from genkit.evaluate.subset import spread


@pytest.mark.parametrize("n, limit", [(10, 4), (1000, 100), (7, 6), (10**6, 2048)])
def test_one_of_each_stretch(n, limit):
    """Oracle: example i lies between i n / m and (i + 1) n / m, rounded down; the same every time."""
    found = spread(n, limit)
    edges = torch.arange(limit + 1) * n // limit
    assert (edges[:-1] <= found).all()
    assert (found < edges[1:]).all()
    assert torch.equal(found, spread(n, limit))


def test_all_are_all():
    """Oracle: by hand."""
    for limit in (None, 3, 9):
        assert torch.equal(spread(3, limit), torch.arange(3))


@pytest.mark.parametrize("label", [lambda i: i // 100, lambda i: i % 10], ids=["sorted", "in turn"])
def test_every_class_has_its_share(label):
    """Oracle: 10 classes of 100 are a tenth of 100 examples each; the standard deviation of a random share is
    3, and the first 100 or every tenth would have one class alone."""
    shares = torch.bincount(label(spread(1000, 100)), minlength=10)
    assert shares.min() >= 2
    assert shares.max() <= 20


class Mean:
    """Features that are the mean of the pixels."""

    dim, classes, device, identity = 1, 0, torch.device("cpu"), "mean"

    def __call__(self, images):
        return Features(images.float().mean(dim=(1, 2, 3))[:, None], None)


def test_features_are_of_the_spread_images():
    """Oracle: images whose pixels are their index."""
    pixels = torch.arange(200, dtype=torch.uint8)[:, None, None, None].expand(-1, 4, 4, 1).contiguous()
    source = resident_images("x", pixels.numpy())
    found = extract(source, Mean(), limit=20, batch_size=7).features[:, 0]
    assert found.tolist() == spread(200, 20).tolist()
