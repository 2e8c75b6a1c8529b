"""Corruptions of images: how much of them, and whose numbers decide."""

import pytest
import torch

from genkit.errors import InputError
from genkit.objectives.corruption import Corruption, parse_corruption
from genkit.train.objective import Noise

X = torch.full((64, 3, 20, 20), 0.25)
NOISE = Noise(0, torch.arange(64))


def test_mask_turns_a_share_of_pixels_black():
    """Oracle: 25,600 coins of 0.3: four standard deviations are 0.0115; all channels of a pixel share one."""
    y = Corruption("mask", 0.3)(X, NOISE)
    black = y == -1
    assert black.float().mean().item() == pytest.approx(0.3, abs=0.0115)
    assert torch.equal(y[~black], X[~black])
    assert torch.equal(black[:, 0], black[:, 2])


def test_salt_and_pepper_in_equal_parts():
    """Oracle: 25,600 coins: 0.1 black and 0.1 white at a strength of 0.2, to four standard deviations."""
    y = Corruption("saltpepper", 0.2)(X, NOISE)[:, 0]
    for value in (-1.0, 1.0):
        assert (y == value).float().mean().item() == pytest.approx(0.1, abs=0.0075)
    assert (y == 0.25).float().mean().item() == pytest.approx(0.8, abs=0.01)


def test_gaussian_is_in_brightness():
    """Oracle: a deviation of 0.3 of brightness is 0.6 of pixels in [-1, 1]; 76,800 numbers, 4 errors."""
    y = Corruption("gaussian", 0.3)(X, NOISE) - X
    assert y.std().item() == pytest.approx(0.6, abs=4 * 0.6 / (2 * 76800) ** 0.5)
    assert abs(y.mean().item()) < 4 * 0.6 / 76800**0.5


@pytest.mark.parametrize("text", ["gaussian:0.3", "mask:0.5", "saltpepper:0.1"])
def test_an_images_damage_is_its_own(text):
    """Oracle: the same rows whatever the batch; other positions and seeds are damaged otherwise."""
    corrupt = parse_corruption(text)
    assert corrupt is not None
    whole = corrupt(X, NOISE)
    assert torch.equal(corrupt(X[10:13], Noise(0, torch.arange(10, 13))), whole[10:13])
    assert not torch.equal(whole[0], whole[1])
    assert not torch.equal(corrupt(X, Noise(1, torch.arange(64))), whole)


def test_none_is_nothing():
    """Oracle: None."""
    assert parse_corruption("none") is None


@pytest.mark.parametrize(
    "text, message",
    [
        ("blur:0.3", "unknown corruption in --corrupt 'blur'"),
        ("gausian:0.3", "did you mean 'gaussian'"),
        ("gaussian", "gaussian:0.3"),
        ("mask:", "mask:0.5"),
        ("mask:half", "'mask:half'"),
        ("gaussian:0", "(0, 10]"),
        ("gaussian:-1", "(0, 10]"),
        ("gaussian:nan", "(0, 10]"),
        ("gaussian:inf", "(0, 10]"),
        ("mask:1.5", "inside (0, 1)"),
        ("mask:1", "inside (0, 1)"),
        ("saltpepper:0", "inside (0, 1)"),
        ("saltpepper:nan", "inside (0, 1)"),
        ("", "unknown corruption"),
    ],
)
def test_refusals(text, message):
    """Oracle: the words that name the value or what fits."""
    with pytest.raises(InputError) as error:
        parse_corruption(text)
    assert message in str(error.value)
