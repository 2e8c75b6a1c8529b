"""Generators and critics of any size, and spectral norm."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genkit.nn.adversarial import Critic, Generator, PatchCritic, levels
from genkit.nn.spectral import Normalised, Spectral


@pytest.mark.parametrize(
    "side, bottom",
    [(8, 4), (16, 4), (28, 4), (32, 4), (64, 4), (30, 4), (7, 4), (48, 6), (40, 5), (6, 6), (3, 3)],
)
def test_the_bottom_is_four_to_six_pixels(side, bottom):
    """Oracle: the side halved by hand, rounding up."""
    assert -(-side >> levels((1, side, side))) == bottom


@pytest.mark.parametrize("image", [(1, 8, 8), (3, 16, 16), (1, 28, 28), (3, 64, 64), (1, 30, 25), (3, 5, 7)])
def test_shapes(image):
    """Oracle: the image's shape in [-1, 1]; one finite score an image; every parameter takes part."""
    generator, critic = Generator(6, image, width=4), Critic(image, width=4)
    fake = generator(torch.randn(3, 6, 1, 1))
    assert fake.shape == (3, *image)
    assert fake.abs().max() <= 1
    score = critic(fake)
    assert score.shape == (3, 1)
    score.square().sum().backward()
    for p in (*generator.parameters(), *critic.parameters()):
        assert p.grad is not None
        assert p.grad.isfinite().all()


def test_networks_do_not_mix_the_batch():
    """Oracle: each image alone."""
    torch.manual_seed(0)
    generator, critic, patches = Generator(6, (1, 16, 16), 8), Critic((1, 16, 16), 8), PatchCritic(1, 8)
    z = torch.randn(4, 6, 1, 1)
    for f in (generator, lambda z: critic(generator(z)), lambda z: patches(generator(z))):
        alone = torch.cat([f(row[None]) for row in z])
        torch.testing.assert_close(f(z), alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("depth, pixels", [(1, 14), (2, 30), (3, 62)])
def test_a_patch_is_as_large_as_stated(depth, pixels):
    """Oracle: without norms, which see all of an image, the pixels that change one score in the middle."""
    critic = PatchCritic(1, 4, depth)
    critic.layers = nn.Sequential(*(m for m in critic.layers if isinstance(m, nn.Conv2d)))
    for layer in critic.layers:
        nn.init.constant_(layer.weight, 1.0)
    x = torch.zeros(1, 1, 96, 96, requires_grad=True)
    score = critic(x)
    middle = score.shape[2] // 2
    score[0, 0, middle, middle].backward()
    assert (x.grad != 0).any(dim=2).sum() == pixels


def test_spectral_norm_divides_by_the_largest_singular_value():
    """Oracle: torch.linalg.svdvals of the flattened kernel, after 60 iterations."""
    torch.manual_seed(0)
    net = Normalised(nn.Sequential(nn.Conv2d(3, 5, 3), nn.Flatten(), nn.Linear(20, 2)))
    for _ in range(60):
        net.stepped()
    for layer in (net.module[0], net.module[2]):
        assert torch.linalg.svdvals(layer.weight.flatten(1)).max().item() == pytest.approx(1.0, abs=1e-4)
    assert net(torch.zeros(1, 3, 4, 4)).shape == (1, 2)


def test_spectral_norm_rests_within_a_step():
    """Oracle: the same weights after any number of passes, in training too; one step changes them."""
    net = Normalised(nn.Linear(4, 4))
    before = net.module.weight.clone()
    net.train()(torch.zeros(1, 4))
    assert torch.equal(net.module.weight, before)
    with torch.no_grad():
        net.module.parametrizations.weight.original.add_(torch.eye(4))
    net.stepped()
    assert not torch.allclose(net.module.weight, before)


def test_the_gradient_of_spectral_norm():
    """Oracle: eq. 12 of Miyato et al. 2018: (g - <g, W / sigma> u v^T) / sigma."""
    torch.manual_seed(0)
    weight, g = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4)
    norm = Spectral(weight.detach())
    (norm(weight) * g).sum().backward()
    sigma = norm.u @ weight.detach() @ norm.v
    expected = (g - (g * weight.detach() / sigma).sum() * torch.outer(norm.u, norm.v)) / sigma
    torch.testing.assert_close(weight.grad, expected)
    assert F.normalize(norm.u, dim=0).allclose(norm.u)
