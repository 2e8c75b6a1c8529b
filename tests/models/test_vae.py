"""The vae family: its options, its refusals, its learning."""

import pytest
import torch

from genkit.config import from_dict, to_dict
from genkit.data.source import Batch, Info
from genkit.errors import InputError
from genkit.io.checkpoint import save_checkpoint
from genkit.models import vae
from genkit.models.load import load_model
from genkit.train.objective import Noise

MNIST = Info("mnist", "images", (1, 28, 28), 60000)
CIFAR = Info("cifar10", "images", (3, 32, 32), 50000)


@pytest.mark.parametrize(
    "settings, info, shape",
    [
        ({}, MNIST, (20, 1, 1)),
        ({"arch": "mlp", "latent": "2"}, MNIST, (2, 1, 1)),
        ({"latent": "4x7x7"}, MNIST, (4, 7, 7)),
        ({"latent": "4x8x8", "recon": "gaussian"}, CIFAR, (4, 8, 8)),
        ({"latent": "4x8x8", "bottleneck": "none", "recon": "mse"}, CIFAR, (4, 8, 8)),
        ({"latent": "4x14x14", "arch": "mlp"}, MNIST, (4, 14, 14)),
    ],
)
def test_round_trip_shapes(settings, info, shape):
    """Oracle: the latent shape asked for; pixels of the data's shape in [-1, 1]."""
    module = vae.build(vae.VaeConfig(**settings), info)
    x = torch.rand(2, *info.shape) * 2 - 1
    code = module.encode(x)
    assert module.latent_shape == shape
    assert code.z.shape == (2, *shape)
    assert code.penalty.shape == (2,)
    y = module.decode(code.z)
    assert y.shape == x.shape
    assert y.abs().max() <= 1


@pytest.mark.parametrize(
    "latent", ["4x5x5", "4x7x14", "4x56x56", "0", "", "4x7", "4,7,7", "-3", "4x0x0", "20 "]
)
def test_an_impossible_latent_is_the_users_error(latent):
    """Oracle: the message names the option, and where it can, what would fit."""
    with pytest.raises(InputError, match="--latent") as error:
        vae.build(vae.VaeConfig(latent=latent), MNIST)
    if latent.startswith(("4x5", "4x7x", "4x5")):
        assert "4x28x28, 4x14x14, 4x7x7, or" in str(error.value)


def test_latents_are_refused():
    """Oracle: the message names the source."""
    with pytest.raises(InputError, match=r"codes\.safetensors"):
        vae.build(vae.VaeConfig(), Info("codes.safetensors", "latents", (4, 8, 8), 10))


def test_rebuilt_from_json():
    """Oracle: the same outputs from a module rebuilt from the JSON configuration with the saved weights."""
    config = vae.VaeConfig(latent="4x7x7", width=8, recon="gaussian")
    module = vae.build(config, MNIST)
    other = vae.build(from_dict(vae.VaeConfig, to_dict(config)), MNIST)
    other.load_state_dict(module.state_dict())
    x = torch.zeros(1, 1, 28, 28)
    assert torch.equal(module.encode(x).z, other.encode(x).z)


def test_preview_shows_images_then_reconstructions():
    """Oracle: 24 pictures of 12 images, and 12 new ones unless the bottleneck has no prior."""
    batch = Batch(torch.rand(36, 1, 28, 28) * 2 - 1)
    for bottleneck, count in (("gaussian", 36), ("none", 24)):
        config = vae.VaeConfig(width=4, bottleneck=bottleneck)
        module = vae.build(config, MNIST)
        grid = vae.preview(module, config, MNIST, batch)
        assert grid.shape == (count, 1, 28, 28)
        assert torch.equal(grid[:6], batch.x[:6])
        torch.testing.assert_close(grid[6:12], module.decode(module.encode(batch.x[:6]).z))


@pytest.mark.parametrize("settings", [{"arch": "mlp", "width": 64}, {"latent": "4x2x2", "width": 16}])
def test_learns_two_pictures(settings):
    """Oracle: a set of two pictures needs ln 2 nats of code and none of pixels; 150 steps come close.

    Half of what the untrained model needs would already prove that gradients reach both ends; it is a tenth.
    """
    torch.manual_seed(0)
    info = Info("two", "images", (1, 8, 8), 2)
    config = vae.VaeConfig(**{"latent": "4", **settings})
    module = vae.build(config, info)
    objective = vae.objective(module, config, info)
    pictures = torch.ones(2, 1, 8, 8)
    pictures[0, :, :4], pictures[1, :, :, 4:] = -1, -1
    x = pictures.repeat(16, 1, 1, 1)
    optimizer = torch.optim.Adam(module.parameters(), lr=5e-3)
    losses = []
    for step in range(150):
        loss = objective.loss("main", Batch(x), Noise(0, torch.arange(32) + 32 * step)).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 10
    assert losses[-1] > 0.69  # ln 2: the -ELBO of a uniform choice of two pictures cannot be less on average


@pytest.mark.parametrize("before, now", [(True, "threshold"), (False, "none")])
def test_a_checkpoint_from_before_binarise_had_kinds(tmp_path, before, now):
    """Oracle: the option was a flag once, and files written then are read as what they meant."""
    config = vae.VaeConfig(arch="mlp", latent="2", width=4, binarise=now)
    module = vae.build(config, MNIST)
    old = {"model": {**to_dict(config), "binarise": before}}
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, module.state_dict(), model="vae", config=old, data=MNIST._asdict(), step=1)
    loaded = load_model(path)
    assert loaded.config.binarise == now
    torch.testing.assert_close(loaded.module.state_dict(), module.state_dict())


def test_a_checkpoint_from_before_the_dense_layer(tmp_path):
    """Oracle: files without the setting had no such layer."""
    config = vae.VaeConfig(latent="2", width=4, dense=0)
    module = vae.build(config, MNIST)
    old = {"model": {k: v for k, v in to_dict(config).items() if k != "dense"}}
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, module.state_dict(), model="vae", config=old, data=MNIST._asdict(), step=1)
    loaded = load_model(path)
    assert loaded.config.dense == 0
    torch.testing.assert_close(loaded.module.state_dict(), module.state_dict())
