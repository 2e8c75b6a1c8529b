"""The ae family: plain, denoising and sparse; its refusals."""

import pytest
import torch

from genkit.config import from_dict, to_dict
from genkit.data.source import Batch, Info
from genkit.errors import InputError
from genkit.models import ae
from genkit.train.objective import Noise

MNIST = Info("mnist", "images", (1, 28, 28), 60000)
SMALL = Info("small", "images", (1, 8, 8), 64)


@pytest.mark.parametrize(
    "settings, shape",
    [
        ({}, (20, 1, 1)),
        ({"arch": "mlp", "latent": "2", "corrupt": "gaussian:0.3"}, (2, 1, 1)),
        ({"latent": "4x7x7", "sparsity": 0.05, "recon": "mse"}, (4, 7, 7)),
        ({"latent": "64", "arch": "mlp", "sparsity": 0.1, "recon": "gaussian"}, (64, 1, 1)),
    ],
)
def test_round_trip(settings, shape):
    """Oracle: the latent shape asked for, pixels in [-1, 1], and the same from the JSON configuration."""
    config = ae.AeConfig(**settings)
    module = ae.build(config, MNIST)
    x = torch.rand(2, 1, 28, 28) * 2 - 1
    z = module.encode(x).z
    assert z.shape == (2, *shape)
    assert module.decode(z).abs().max() <= 1
    if config.sparsity:
        assert ((z > 0) & (z < 1)).all()
    other = ae.build(from_dict(ae.AeConfig, to_dict(config)), MNIST)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.encode(x).z, z)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"sparsity": 0.0}, "inside (0, 1), got 0"),
        ({"sparsity": 1.0}, "inside (0, 1), got 1"),
        ({"sparsity": -0.1}, "inside (0, 1)"),
        ({"sparsity_weight": 2.0}, "add --sparsity"),
        ({"sigma": 0.1}, "--recon gaussian"),
        ({"latent": "4x5x5"}, "--latent 4x5x5"),
        ({"corrupt": "blur:1"}, "unknown corruption"),
        ({"corrupt": "mask:2"}, "inside (0, 1)"),
    ],
)
def test_refusals(settings, message):
    """Oracle: the words that name the value or the remedy."""
    config = ae.AeConfig(**settings)
    with pytest.raises(InputError) as error:
        ae.objective(ae.build(config, MNIST), config, MNIST)
    assert message in str(error.value)


def test_denoising_sees_the_corrupted_and_aims_at_the_clean():
    """Oracle: the loss by hand from the objective's own corruption; what is reported on held-out data."""
    torch.manual_seed(0)
    config = ae.AeConfig(latent="4", arch="mlp", width=16, corrupt="mask:0.5", recon="mse")
    objective = ae.objective(ae.build(config, SMALL), config, SMALL).eval()
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    noise = Noise(0, torch.arange(4))
    seen = objective.corrupt(x, noise)
    assert (seen == -1).float().mean() > 0.3
    raw = objective.model.decode_raw(objective.model.encode(seen).z)
    logs = objective.evaluate(Batch(x), noise)
    torch.testing.assert_close(logs["loss"], 0.5 * (raw - x).square().sum() / 4)
    mse = (raw.clamp(-1, 1) - x).square().flatten(1).mean(dim=1)
    torch.testing.assert_close(logs["psnr"], (10 * torch.log10(4 / mse)).mean())
    mse = (seen - x).square().flatten(1).mean(dim=1)
    torch.testing.assert_close(logs["psnr_corrupted"], (10 * torch.log10(4 / mse)).mean())
    assert "kl" not in logs


def test_previews_fill_rows_of_six():
    """Oracle: three pairs of rows, or two threes with the corrupted between."""
    batch = Batch(torch.rand(32, 1, 8, 8) * 2 - 1)
    for corrupt in ("none", "saltpepper:0.2"):
        config = ae.AeConfig(latent="4", width=4, corrupt=corrupt)
        grid = ae.preview(ae.build(config, SMALL), config, SMALL, batch)
        assert grid.shape == (36, 1, 8, 8)
        assert torch.equal(grid[:6], batch.x[:6])


def test_sparse_units_learn_to_rest():
    """Oracle: from 0.5, the mean activation comes within 20 % of rho under a strong weight."""
    torch.manual_seed(0)
    config = ae.AeConfig(latent="24", arch="mlp", width=32, sparsity=0.1, sparsity_weight=5.0)
    objective = ae.objective(ae.build(config, SMALL), config, SMALL)
    x = torch.rand(32, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    optimizer = torch.optim.Adam(objective.parameters(), lr=1e-2)
    for step in range(150):
        loss = objective.loss("main", Batch(x), Noise(0, torch.arange(32) + 32 * step))
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    assert loss.logs["activation"].item() == pytest.approx(0.1, rel=0.2)
