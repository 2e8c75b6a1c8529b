"""The adversarial autoencoder: its priors, what its critic is told, who learns from what."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from genkit.codecs.priors import OUTWARD, PRIORS, RADIUS, SIDEWAYS, SIZE, PriorBottleneck
from genkit.config import to_dict
from genkit.data.source import Batch, Info
from genkit.io.checkpoint import save_checkpoint
from genkit.models import aae
from genkit.models.load import load_model
from genkit.models.prior import draw_prior, own_codes
from genkit.objectives.matching import Bounded
from genkit.objectives.reconstruction import image_nats, psnr
from genkit.train.objective import Noise

DIGITS = Info("digits", "images", (1, 8, 8), 100, classes=tuple("0123456789"))


def many(n=40000):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 2, generator=g), torch.rand(n, generator=g)


def test_mixture_is_ten_normals_on_a_ring():
    """Oracle: the moments of each tenth of the places, in its own outward and sideways directions; 4 standard
    errors of 4,000 draws."""
    normal, place = many()
    z = PRIORS["mixture"].draw(normal, place)
    for k in range(10):
        rows = z[(place >= k / 10) & (place < (k + 1) / 10)]
        angle = 2 * math.pi * k / 10
        turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        std, mean = torch.std_mean(rows @ turn, dim=0)
        error = 4 / math.sqrt(len(rows))
        torch.testing.assert_close(mean, torch.tensor([RADIUS, 0.0]), atol=error * OUTWARD, rtol=0)
        torch.testing.assert_close(std, torch.tensor([OUTWARD, SIDEWAYS]), atol=error * OUTWARD, rtol=0)


def test_swiss_roll_is_about_as_dense_everywhere():
    """Oracle: the outer half of a spiral's length lies beyond sqrt(1/2) of its radius; the radius grows by
    the same step every turn; consecutive places lie side by side."""
    _, place = many()
    place = place.sort().values
    z = PRIORS["swiss-roll"].draw(torch.zeros(len(place), 2), place)
    radius = z.norm(dim=1)
    assert (radius > SIZE / math.sqrt(2)).float().mean().item() == pytest.approx(0.5, abs=0.02)
    torch.testing.assert_close(radius, SIZE * place.sqrt())
    assert (z[1:] - z[:-1]).norm(dim=1)[1000:].max() < 0.05


def test_draws_are_addressed():
    """Oracle: rows drawn alone, of the bottleneck's own prior; standard normal for a model without one."""
    bottleneck, index = PriorBottleneck("mixture"), torch.arange(7)
    z = bottleneck.draw(3, index, (2, 1, 1))
    assert torch.equal(z[4:5], bottleneck.draw(3, index[4:5], (2, 1, 1)))
    module = aae.build(aae.AaeConfig(prior="mixture", width=4), DIGITS)
    assert torch.equal(own_codes(module, 3, index), z)
    torch.testing.assert_close(draw_prior(module, 3, index), module.decode(z))


def objective(**settings):
    torch.manual_seed(0)
    config = aae.AaeConfig(width=8, **settings)
    return aae.objective(aae.build(config, DIGITS), config, DIGITS)


def batch(n=6):
    g = torch.Generator().manual_seed(0)
    return Batch(torch.rand(n, 1, 8, 8, generator=g) * 2 - 1, torch.arange(n) % 10)


def test_each_side_learns_from_its_own_loss_only():
    """Oracle: with no weight on the critic's opinion, coders have the gradient of the reconstruction alone;
    with any, the critic has that of telling prior from codes, and its scores of codes reach the encoder."""
    x, noise = batch(), Noise(0, torch.arange(6))

    def gradients(game, total):
        game.zero_grad(set_to_none=True)
        total.backward()
        return {name: p.grad for name, p in game.named_parameters() if p.grad is not None}

    plain, game = objective(critic_weight=0.0), objective(critic_weight=3.0, critic_bound=1e9)
    torch.testing.assert_close(
        {k: g for k, g in gradients(plain, plain.loss("main", x, noise).total).items() if "model" in k},
        gradients(plain, plain.nats(plain.model(x.x)[1], x.x)),
    )
    found = gradients(game, game.loss("main", x, noise).total)
    with torch.no_grad():
        real, z = game.prior(x, noise), game.model.encode(x.x).z.flatten(1)
    critic = F.softplus(-game.critic(real)).mean() + F.softplus(game.critic(z)).mean()
    expected = gradients(game, critic)
    assert expected.keys() == {k for k in found if k.startswith("critic.")}
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient)
    misled = F.softplus(-game.critic(game.model.encode(x.x).z.flatten(1))).mean()
    expected = gradients(game, game.nats(game.model(x.x)[1], x.x) + 3.0 * misled)
    for name, gradient in expected.items():
        if name.startswith("model."):
            torch.testing.assert_close(found[name], gradient)


@pytest.mark.parametrize("recon", ["bce", "mse"])
def test_reconstruction_is_in_nats_of_an_image(recon):
    """Oracle: `image_nats`, without the constant of a normal of sigma 1; PSNR of what `decode` gives."""
    game, x = objective(recon=recon), batch()
    found = game.evaluate(x, Noise(0, torch.arange(6)))
    constant = 32 * math.log(2 * math.pi) if recon == "mse" else 0.0
    code, raw = game.model(x.x)
    torch.testing.assert_close(found["loss"], image_nats(recon, raw, x.x, None).mean() - constant)
    torch.testing.assert_close(found["psnr"], psnr(x.x, game.model.decode(code.z)).mean())


def test_weight_and_bound_by_the_units():
    """Oracle: 48 over the units; a bound of its own in the plane; what is asked for wins."""
    games = (objective(), objective(latent="2"), objective(critic_weight=7.0, critic_bound=3.0))
    assert [(game.weight, game.bound) for game in games] == [(6.0, 0.5), (24.0, 2.0), (7.0, 3.0)]


def test_an_earlier_checkpoint_loads(tmp_path):
    """Oracle: one that names the pace its critic had gives the same weights."""
    config = aae.AaeConfig(width=8)
    module, path = aae.build(config, DIGITS), tmp_path / "model.safetensors"
    old = {"model": {**to_dict(config), "critic_lr": 0.2}}
    save_checkpoint(path, module.state_dict(), model="aae", config=old, data=DIGITS._asdict(), step=1)
    torch.testing.assert_close(load_model(path).module.state_dict(), module.state_dict())


def test_a_class_takes_its_part_of_the_prior_and_is_told():
    """Oracle: the nearest of the ten means is the label's, but for 4-sigma draws; the one-hot vector."""
    game = objective(prior="mixture", class_conditional=True)
    label = torch.arange(500) % 10
    drawn = game.prior(Batch(torch.zeros(500, 1, 8, 8), label), Noise(0, torch.arange(500)))
    angle = 2 * math.pi * torch.arange(10) / 10
    means = RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)
    assert (torch.cdist(drawn, means).argmin(dim=1) == label).float().mean() > 0.95
    told = game.told(drawn[:6], batch())
    assert torch.equal(told, torch.cat([drawn[:6], F.one_hot(label[:6], 10).float()], dim=1))


def test_codes_take_the_shape_of_the_prior():
    """Oracle: codes that begin far too small come near the prior's standard deviation of 1 and its mean."""
    x = load_digits().images[:1000, None]
    x = torch.from_numpy(x).float() / 8 - 1
    torch.manual_seed(0)
    config = aae.AaeConfig(latent="2", arch="mlp", critic_weight=30.0, critic_bound=0.5)
    game = aae.objective(aae.build(config, DIGITS), config, DIGITS)
    (phase,) = game.phases()
    optimizer = torch.optim.Adam(phase.parameters, lr=2e-3, betas=(0.5, 0.999))
    assert game.model.encode(x).z.std() < 0.25
    for step in range(300):
        rows = (torch.arange(64) * 13 + 7 * step) % 1000
        game.zero_grad(set_to_none=True)
        game.loss("main", Batch(x[rows]), Noise(0, torch.arange(64) + 64 * step)).total.backward()
        optimizer.step()
    std, mean = torch.std_mean(game.model.encode(x).z.flatten(1), dim=0)
    assert std.min() > 0.5
    assert std.max() < 1.5
    assert mean.norm() < 0.5


def test_a_critic_pulls_a_code_no_further_than_its_bound():
    """Oracle: gradients by hand; the second as it is where it is short, cut to the bound where it is long."""
    z = torch.zeros(3, 2, requires_grad=True)
    first, second = Bounded.apply(z, 0.5)
    of_image = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 0.0]])
    of_critic = torch.tensor([[0.0, 1.0], [0.0, 9.0], [4.0, 3.0]])
    torch.autograd.backward([first, second], [of_image, of_critic])
    torch.testing.assert_close(z.grad, torch.tensor([[3.0, 1.0], [3.0, 1.5], [0.0, 0.0]]))
