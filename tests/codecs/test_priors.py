"""Parts of a prior for classes: where they lie, and that their codes are addressed."""

import math

import pytest
import torch

from genkit.codecs.autoencoder import Autoencoder
from genkit.codecs.bottlenecks import IdentityBottleneck
from genkit.codecs.priors import OUTWARD, PRIORS, RADIUS, SIDEWAYS, PriorBottleneck, place_in
from genkit.models.prior import Parts, draw_prior, own_codes

INDEX = torch.arange(4000)
LABEL = INDEX % 10


def test_last_place_stays_in_its_part():
    """Oracle: by hand. 8 + (1 - 2^-24) is 9 in float32, and would be of part 9."""
    last = torch.full((10,), 1 - 2.0**-24)
    part = torch.arange(10)
    assert torch.equal(torch.floor(10 * place_in(part, last, 10)).long(), part)
    assert torch.equal(torch.floor(10 * place_in(part, 0 * last, 10)).long(), part)


def test_each_class_of_the_mixture_is_its_normal():
    """Oracle: mean (4, 0) and deviations (0.8, 0.3) in the normal's own directions; 4.5 standard errors of
    the 400 draws of each class."""
    z = PriorBottleneck("mixture").draw(0, INDEX, (2, 1, 1), LABEL, 10).flatten(1)
    for k in range(10):
        a = 2 * math.pi * k / 10
        turn = torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])
        std, mean = torch.std_mean(z[k == LABEL] @ turn, dim=0)
        for i, (wanted, spread) in enumerate(((RADIUS, OUTWARD), (0.0, SIDEWAYS))):
            assert mean[i].item() == pytest.approx(wanted, abs=4.5 * spread / 400**0.5)
            assert std[i].item() == pytest.approx(spread, abs=4.5 * spread / 800**0.5)


def test_each_class_of_the_swiss_roll_is_its_stretch():
    """Oracle: the radius is 4 sqrt(place), place being within the class's share of [0, 1); of 3 classes, up
    to 5 standard deviations of the blur."""
    label = INDEX % 3
    z = PriorBottleneck("swiss-roll").draw(0, INDEX, (2, 1, 1), label, 3).flatten(1)
    assert z.dtype == torch.float32
    radius = z.norm(dim=1)
    for k in range(3):
        low, high = (4 * math.sqrt((k + end) / 3) for end in (0, 1))
        mine = radius[label == k]
        assert low - 0.5 < mine.min() < low + 0.5
        assert high - 0.5 < mine.max() < high + 0.5


def test_a_code_is_an_address():
    """Oracle: rows drawn alone, bit for bit; all of the prior is drawn as before there were parts."""
    bottleneck, shape = PriorBottleneck("mixture"), (2, 1, 1)
    z = bottleneck.draw(3, INDEX, shape, LABEL, 10)
    some = torch.tensor([41, 7])
    assert torch.equal(bottleneck.draw(3, some, shape, LABEL[some], 10), z[some])
    assert not torch.equal(bottleneck.draw(4, INDEX, shape, LABEL, 10), z)
    assert not torch.equal(bottleneck.draw(3, INDEX, shape), z)


def test_images_are_of_their_parts():
    """Oracle: the codes of the bottleneck's own draw, through a decoder that changes nothing."""
    nothing = torch.nn.Identity()
    model = Autoencoder(nothing, PriorBottleneck("mixture"), nothing, (2, 1, 1))
    parts = Parts(LABEL[:9], 10)
    z = model.bottleneck.draw(5, INDEX[:9], (2, 1, 1), LABEL[:9], 10)
    assert torch.equal(own_codes(model, 5, INDEX[:9], parts), z)
    assert torch.equal(draw_prior(model, 5, INDEX[:9], parts=parts), model.decode(z))
    plain = Autoencoder(nothing, IdentityBottleneck(), nothing, (2, 1, 1))
    assert own_codes(plain, 5, INDEX[:9]).shape == (9, 2, 1, 1)
    assert PRIORS["gaussian"].parts == 1
