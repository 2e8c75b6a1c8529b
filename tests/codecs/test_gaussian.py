"""Samples of normals and their divergences. Oracle, where none is named: torch's operations in double
precision, and `torch.distributions`."""

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from genkit.codecs import gaussian
from genkit.codecs.gaussian import coded


@pytest.fixture
def ran(spy):
    """The calls of the kernels."""
    if gaussian._kernels() is None:
        pytest.skip("no C++ compiler here: torch's operations are used")
    return spy(gaussian, "_forward", "_backward")


def setting(*shape: int, scale: float = 1.5) -> tuple[Tensor, Tensor]:
    """Parameters and noise, channels-last, of codes (B, C, H, W)."""
    generator = torch.Generator().manual_seed(0)
    b, c, height, width = shape
    h = torch.randn(b, 2 * c, height, width, generator=generator) * scale
    noise = torch.randn(shape, generator=generator)
    return h.contiguous(memory_format=torch.channels_last), noise


SHAPES = [(5, 20, 1, 1), (3, 16, 1, 1), (2, 1, 3, 5), (4, 4, 7, 7), (3, 33, 2, 1), (600, 20, 1, 1)]


@pytest.mark.parametrize("shape", SHAPES)
def test_values(shape, ran):
    h, noise = setting(*shape)
    mean, log_var = h.double().chunk(2, dim=1)
    std = (0.5 * log_var).exp()
    exact = kl_divergence(Normal(mean, std), Normal(0.0, 1.0))
    z, kl, penalty = coded(h, noise)
    torch.testing.assert_close(z.double(), mean + std * noise, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(kl.double(), exact, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(penalty.double(), exact.sum(dim=(1, 2, 3)), rtol=1e-6, atol=1e-5)
    assert ran == ["_forward"]


USES = {"all": "zkp", "the code": "z", "units": "k", "penalty": "p", "code and penalty": "zp"}


@pytest.mark.parametrize("used", USES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gradients(shape, used, ran):
    h, noise = setting(*shape)
    h[0, :, 0, 0] = torch.linspace(-41, 31.3, h.shape[1])  # log variances beyond their bounds
    generator = torch.Generator().manual_seed(1)

    def gradient(call, h, noise):
        h = h.clone().requires_grad_()
        found = dict(zip("zkp", call(h, noise)))
        generator.manual_seed(1)
        slopes = {name: torch.randn(v.shape, generator=generator) for name, v in found.items()}
        total = sum((found[name] * slopes[name].to(h.dtype)).sum() for name in USES[used])
        return torch.autograd.grad(total, h)[0]

    found, exact = gradient(coded, h, noise), gradient(gaussian._plain, h.double(), noise.double())
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5)
    assert ran == ["_forward", "_backward"]


def test_gradients_of_a_gradient(ran):
    h, noise = setting(3, 4, 2, 2)

    def second(call, h, noise):
        h = h.clone().requires_grad_()
        z, kl, penalty = call(h, noise)
        total = (z.square() * kl).sum() + penalty.square().sum()
        (first,) = torch.autograd.grad(total, h, create_graph=True)
        return torch.autograd.grad(first.square().sum(), h)[0]

    found, exact = second(coded, h, noise), second(gaussian._plain, h.double(), noise.double())
    assert (found - exact).abs().max() <= 1e-5 * exact.abs().max()
    assert ran[0] == "_forward"


@pytest.mark.parametrize("create_graph", [False, True])
def test_what_nobody_asks_the_gradient_of(create_graph):
    class Deaf(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            return z.clone()

        @staticmethod
        def backward(ctx, gradient):
            return None

    h, noise = setting(3, 4, 2, 2)
    h.requires_grad_()
    total = Deaf.apply(coded(h, noise)[0]).sum()
    assert torch.autograd.grad(total, h, create_graph=create_graph, allow_unused=True) == (None,)


@pytest.mark.parametrize("channel", [0, 1, 20, 21])  # means and log variances
def test_what_is_not_a_number_is_seen_in_its_image(channel, ran):
    h, noise = setting(3, 20, 1, 1)
    clean = coded(h, noise)
    h[1, channel] = torch.nan
    for found, before in zip(coded(h, noise), clean, strict=True):
        assert found[1].isnan().any()
        assert torch.equal(found[[0, 2]], before[[0, 2]])


def test_an_image_does_not_depend_on_its_batch(ran):
    h, noise = setting(900, 20, 1, 1)
    torch.set_num_threads(2)
    for whole, one in zip(coded(h, noise), coded(h[7:8], noise[7:8]), strict=True):
        assert torch.equal(whole[7:8], one)


UNSUITED = {
    "double": lambda h, noise: (h.double(), noise.double()),
    "channels first": lambda h, noise: (h.contiguous(), noise),
    "one noise for all": lambda h, noise: (h, noise[:1]),
    "noise of which a gradient is asked": lambda h, noise: (h, noise.requires_grad_()),
    "no noise": lambda h, noise: (h, None),
}


@pytest.mark.parametrize("what", UNSUITED)
def test_what_does_not_suit_goes_through_torch(what, ran):
    h, noise = UNSUITED[what](*setting(3, 4, 2, 2))
    for found, expected in zip(coded(h, noise), gaussian._plain(h, noise), strict=True):
        assert torch.equal(found, expected)
    assert ran == []


def test_the_mean_without_noise():
    h, _ = setting(3, 4, 2, 2)
    assert torch.equal(coded(h, None)[0], h[:, :4])


def test_without_a_compiler_it_is_torchs(without_kernels):
    h, noise = setting(3, 4, 2, 2)
    found = without_kernels(lambda: coded(h, noise), gaussian)
    assert all(map(torch.equal, found, gaussian._plain(h, noise)))
