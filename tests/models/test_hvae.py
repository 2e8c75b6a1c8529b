"""The hvae family: its options, its refusals, the vae at one level, its learning."""

import pytest
import torch

from genkit.config import from_dict, to_dict
from genkit.data.source import Batch, Info
from genkit.errors import InputError
from genkit.models import hvae, vae
from genkit.train.objective import Noise

MNIST = Info("mnist", "images", (1, 28, 28), 60000)
SMALL = Info("small", "images", (1, 8, 8), 4)


@pytest.mark.parametrize(
    "settings, units",
    [({}, 112), ({"latents": "8"}, 8), ({"latents": "9,5,4,3", "arch": "mlp", "width": 16, "hidden": 8}, 21)],
)
def test_round_trip_shapes(settings, units):
    """Oracle: a vector of all levels' units; pixels of the data's shape in [-1, 1]."""
    module = hvae.build(hvae.HvaeConfig(**settings), MNIST).eval()
    x = torch.rand(2, *MNIST.shape) * 2 - 1
    code = module.encode(x)
    assert module.latent_shape == (units, 1, 1)
    assert code.z.shape == (2, units, 1, 1)
    assert code.penalty.shape == (2,)
    y = module.decode(code.z)
    assert y.shape == x.shape
    assert y.abs().max() <= 1


@pytest.mark.parametrize("latents", ["", "0", "64,,16", "64;32", "64,0", "-1,2", "4x7x7", "64, 32"])
def test_impossible_levels_are_the_users_error(latents):
    """Oracle: the message names the option and the value."""
    with pytest.raises(InputError, match="--latents") as error:
        hvae.build(hvae.HvaeConfig(latents=latents), MNIST)
    assert repr(latents) in str(error.value)


def test_latents_are_refused():
    """Oracle: the message names the source."""
    with pytest.raises(InputError, match=r"codes\.safetensors"):
        hvae.build(hvae.HvaeConfig(), Info("codes.safetensors", "latents", (4, 8, 8), 10))


def test_rebuilt_from_json():
    """Oracle: the same codes from a module rebuilt from the JSON configuration with the saved weights."""
    config = hvae.HvaeConfig(latents="6,4", width=8, hidden=8, recon="gaussian")
    module = hvae.build(config, MNIST)
    other = hvae.build(from_dict(hvae.HvaeConfig, to_dict(config)), MNIST)
    other.load_state_dict(module.state_dict())
    x = torch.zeros(1, 1, 28, 28)
    assert torch.equal(module.encode(x).z, other.encode(x).z)
    assert torch.equal(module.log_sigma, other.log_sigma)


@pytest.mark.parametrize("recon", ["bce", "mse", "gaussian"])
def test_one_level_is_the_vae(recon):
    """Oracle: the vae family's loss and gradients on the same weights, images and noise."""
    torch.manual_seed(0)
    about = vae.VaeConfig(latent="5", arch="mlp", width=16, recon=recon, beta=0.7)
    config = hvae.HvaeConfig(latents="5", arch="mlp", width=16, recon=recon, beta=0.7)
    usual, one = vae.build(about, SMALL), hvae.build(config, SMALL)
    one.load_state_dict({f"ends.{k}": v for k, v in usual.state_dict().items()})
    batch = Batch(torch.rand(4, 1, 8, 8) * 2 - 1)
    step = Noise(0, torch.arange(4))
    losses = [
        family.objective(module, settings, SMALL).loss("main", batch, step)
        for family, module, settings in ((vae, usual, about), (hvae, one, config))
    ]
    torch.testing.assert_close(losses[1].total, losses[0].total)
    for loss in losses:
        loss.total.backward()
    mine = dict(one.named_parameters())
    for name, parameter in usual.named_parameters():
        torch.testing.assert_close(mine[f"ends.{name}"].grad, parameter.grad)


def test_logs_hold_every_level():
    """Oracle: the names; the KL is the sum of its levels, to rounding."""
    config = hvae.HvaeConfig(latents="6,4,2", arch="mlp", width=16, hidden=8)
    objective = hvae.objective(hvae.build(config, SMALL), config, SMALL)
    batch = Batch(torch.rand(4, 1, 8, 8) * 2 - 1)
    logs = objective.loss("main", batch, Noise(0, torch.arange(4))).logs
    assert {"loss", "recon", "kl", "kl_1", "kl_2", "kl_3", "collapsed", "idle"} <= set(logs)
    torch.testing.assert_close(logs["kl_1"] + logs["kl_2"] + logs["kl_3"], logs["kl"])
    torch.testing.assert_close(logs["loss"], logs["recon"] + logs["kl"])


def test_every_parameter_learns():
    """Oracle: a gradient for each parameter, those between the levels and log sigma among them."""
    config = hvae.HvaeConfig(latents="6,4,2", arch="mlp", width=16, hidden=8, recon="gaussian")
    module = hvae.build(config, SMALL)
    objective = hvae.objective(module, config, SMALL)
    batch = Batch(torch.rand(4, 1, 8, 8) * 2 - 1)
    objective.loss("main", batch, Noise(0, torch.arange(4))).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())


def test_codes_share_the_levels_above():
    """Oracle: by hand, for 3 levels of 3, 2 and 1 units, the top first: level 2 and below drawn afresh share
    1 unit, level 1 alone shares 3."""
    module = hvae.build(hvae.HvaeConfig(latents="3,2,1", arch="mlp", width=4, hidden=4), SMALL)
    for level, shared in ((2, 1), (1, 3)):
        codes = hvae.below(module.bottleneck, level, 4, torch.device("cpu"))
        same = (codes == codes[:1]).all(dim=0).flatten()
        assert same.tolist() == [True] * shared + [False] * (6 - shared)


def test_preview_shows_every_level():
    """Oracle: 6 images, 6 reconstructions, 12 new ones, and a row of 6 for each level below the top."""
    config = hvae.HvaeConfig(latents="6,4,2", arch="mlp", width=16, hidden=8)
    module = hvae.build(config, SMALL)
    batch = Batch(torch.rand(32, 1, 8, 8) * 2 - 1)
    grid = hvae.preview(module, config, SMALL, batch)
    assert grid.shape == (36, 1, 8, 8)
    assert torch.equal(grid[:6], batch.x[:6])
    torch.testing.assert_close(grid[6:12], module.decode(module.encode(batch.x[:6]).z))


def test_learns_two_pictures():
    """Oracle: a set of two pictures needs ln 2 nats of code and none of pixels; 150 steps come close."""
    torch.manual_seed(0)
    config = hvae.HvaeConfig(latents="4,2", arch="mlp", width=64, hidden=32)
    module = hvae.build(config, SMALL)
    objective = hvae.objective(module, config, SMALL)
    pictures = torch.ones(2, 1, 8, 8)
    pictures[0, :, :4], pictures[1, :, :, 4:] = -1, -1
    batch = Batch(pictures.repeat(16, 1, 1, 1))
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
    losses = []
    for step in range(150):
        loss = objective.loss("main", batch, Noise(0, torch.arange(32) + 32 * step)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10
    assert sum(losses[-10:]) / 10 > 0.69  # ln 2; one batch's estimate may lie below by chance
