"""Adversarial losses and penalties, by hand on linear critics; the two phases of a GAN."""

import math

import pytest
import torch
from torch import nn

from genkit.data.source import Batch
from genkit.nn.adversarial import Critic, Generator
from genkit.objectives.adversarial import (
    GAN_LOSSES,
    Gan,
    accuracy,
    critic_loss,
    generator_loss,
    gradient_penalty,
    slope,
)
from genkit.train.objective import Noise

REAL, FAKE = torch.tensor([2.0, -0.5]), torch.tensor([-3.0, 0.25])


@pytest.mark.parametrize(
    "kind, critic, generator",
    [
        (
            "nonsaturating",
            (math.log1p(math.exp(-2)) + math.log1p(math.exp(0.5))) / 2
            + (math.log1p(math.exp(-3)) + math.log1p(math.exp(0.25))) / 2,
            (math.log1p(math.exp(3)) + math.log1p(math.exp(-0.25))) / 2,
        ),
        ("hinge", (0 + 1.5) / 2 + (0 + 1.25) / 2, 1.375),
        ("wgan-gp", -1.375 - 0.75, 1.375),
    ],
)
def test_losses_by_hand(kind, critic, generator):
    """Oracle: the formulas, in float64."""
    assert critic_loss(REAL, FAKE, kind).item() == pytest.approx(critic, rel=1e-6)
    assert generator_loss(FAKE, kind).item() == pytest.approx(generator, rel=1e-6)


def test_accuracy_by_hand():
    """Oracle: one of two real and one of two generated are right."""
    assert accuracy(REAL, FAKE).item() == 0.5


class Linear(nn.Module):
    """A critic whose slope is its weight everywhere."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[3.0, 0.0], [0.0, 4.0]]).view(1, 1, 2, 2))

    def forward(self, x):
        return (x * self.weight).sum(dim=(1, 2, 3))[:, None]


def test_penalties_of_a_linear_critic():
    """Oracle: |w| = 5 at any x: R1 25 with gradient 2 w, (5 - 1)^2 with gradient 2 (5 - 1) w / 5."""
    critic, x = Linear(), torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    x.requires_grad_()
    steep = slope(critic(x), x)
    torch.testing.assert_close(steep, torch.full((4,), 25.0))
    steep.mean().backward()
    torch.testing.assert_close(critic.weight.grad, 2 * critic.weight.detach())
    critic.weight.grad = None
    penalty = gradient_penalty(critic, x.detach(), -x.detach(), torch.rand(4, 1, 1, 1))
    assert penalty.item() == pytest.approx(16.0, rel=1e-5)
    penalty.backward()
    torch.testing.assert_close(critic.weight.grad, 1.6 * critic.weight.detach())


class Square(nn.Module):
    """A critic whose slope at x is 2 x."""

    def forward(self, x):
        return x.square().sum(dim=(1, 2, 3))[:, None]


def test_the_penalty_is_taken_between_the_images():
    """Oracle: real + mix (fake - real), where the slope of |x|^2 is 2 |x|."""
    real, fake, mix = torch.full((1, 1, 1, 1), 1.0), torch.full((1, 1, 1, 1), 3.0), torch.tensor(0.25)
    found = gradient_penalty(Square(), real, fake, mix.view(1, 1, 1, 1))
    assert found.item() == pytest.approx((2 * 1.5 - 1) ** 2, rel=1e-5)


def game(kind, **settings):
    torch.manual_seed(0)
    return Gan(Generator(4, (1, 8, 8), 8), Critic((1, 8, 8), 8), kind, **settings)


@pytest.mark.parametrize("kind", GAN_LOSSES)
def test_each_phase_reaches_its_own_side_only(kind):
    """Oracle: parameters with a gradient are those of the phase."""
    objective = game(kind, r1=1.0)
    batch, noise = Batch(torch.rand(4, 1, 8, 8)), Noise(0, torch.arange(4))
    for phase in objective.phases():
        objective.zero_grad(set_to_none=True)
        objective.loss(phase.name, batch, noise).total.backward()
        moved = {id(p) for p in objective.parameters() if p.grad is not None}
        assert moved == {id(p) for p in phase.parameters}


def test_r1_counts_half_its_weight():
    """Oracle: the same loss without it, plus r1 / 2 times the logged squared slope."""
    batch, noise = Batch(torch.rand(4, 1, 8, 8)), Noise(0, torch.arange(4))
    plain = game("hinge").loss("critic", batch, noise)
    weighed = game("hinge", r1=3.0).loss("critic", batch, noise)
    assert weighed.total.item() == pytest.approx(
        plain.total.item() + 1.5 * weighed.logs["r1"].item(), rel=1e-5
    )


def test_a_generator_learns_one_picture():
    """Oracle: the only picture there is, to a tenth of the distance it begins with."""
    objective = game("nonsaturating", r1=1.0)
    picture = torch.ones(1, 1, 8, 8)
    picture[..., :4] = -1
    x, optimizers = picture.expand(16, -1, -1, -1), {}
    for phase in objective.phases():
        optimizers[phase.name] = torch.optim.Adam(phase.parameters, lr=5e-3, betas=(0.0, 0.99))
    z = torch.randn(16, 4, 1, 1)
    before = (objective.model(z) - picture).square().mean().item()
    for step in range(150):
        for name, optimizer in optimizers.items():
            objective.zero_grad(set_to_none=True)
            objective.loss(name, Batch(x), Noise(0, torch.arange(16) + 16 * step)).total.backward()
            optimizer.step()
    assert (objective.model(z) - picture).square().mean().item() < 0.1 * before
