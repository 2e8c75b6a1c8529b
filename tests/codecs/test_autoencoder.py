"""Autoencoder: what its parts hand on to each other."""

import math

import pytest
import torch
from torch import nn

from genkit.codecs.autoencoder import MIN_LOG_SIGMA, Autoencoder
from genkit.codecs.bottlenecks import IdentityBottleneck


def _scale(**kwargs: bool) -> Autoencoder:
    """An autoencoder whose raw output is its input."""
    return Autoencoder(nn.Identity(), IdentityBottleneck(), nn.Identity(), (1, 2, 2), **kwargs)


def test_decode_gives_pixels():
    """Oracle: tanh(l / 2) = 2 sigmoid(l) - 1 for logits; values outside [-1, 1] clamped otherwise."""
    raw = torch.tensor([-3.0, -0.5, 0.5, 3.0]).view(1, 1, 2, 2)
    torch.testing.assert_close(_scale(logits=True).decode(raw), torch.tanh(raw / 2))
    assert torch.equal(_scale().decode(raw), torch.tensor([-1.0, -0.5, 0.5, 1.0]).view(1, 1, 2, 2))
    assert torch.equal(_scale(logits=True).decode_raw(raw), raw)


def test_forward_is_encode_then_decode_raw():
    """Oracle: the two called by hand."""
    x = torch.randn(3, 1, 2, 2)
    code, raw = _scale()(x)
    assert torch.equal(code.z, x)
    assert torch.equal(raw, x)


def test_log_sigma_is_floored_softly():
    """Oracle: softplus from the floor: the raw value far above it, the floor far below, with a gradient."""
    model = _scale(learn_sigma=True)
    raw = model.raw_log_sigma
    assert raw is not None
    assert model.log_sigma.item() == pytest.approx(
        math.log1p(math.exp(-MIN_LOG_SIGMA)) + MIN_LOG_SIGMA, abs=1e-6
    )
    raw.data.fill_(-12.0)
    assert MIN_LOG_SIGMA < model.log_sigma.item() < MIN_LOG_SIGMA + 0.01
    model.log_sigma.backward()
    assert raw.grad is not None
    assert raw.grad.item() > 0
    with pytest.raises(ValueError, match="learn_sigma"):
        _ = _scale().log_sigma


def test_fixed_sigma_is_no_parameter():
    """Oracle: its logarithm; nothing to learn, and nothing in the file: the configuration keeps it."""
    model = _scale(learn_sigma=True, sigma=0.1)
    assert model.log_sigma.item() == pytest.approx(math.log(0.1))
    assert not list(model.parameters())
    assert not model.state_dict()
