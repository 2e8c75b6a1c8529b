"""ddpm: the network of the paper through the recipe, training times, and a loss that exactness makes zero."""

import json

import pytest
import torch
from torch import nn

from genkit.config import from_dict, read_recipe, validate
from genkit.data.source import Batch, Info, info_from_json
from genkit.diffusion.denoiser import Denoiser
from genkit.diffusion.schedules import SCHEDULES
from genkit.diffusion.targets import coefficients
from genkit.errors import InputError
from genkit.models.ddpm import DdpmConfig, build
from genkit.objectives.diffusion import Diffusion, min_snr
from genkit.objectives.times import Times
from genkit.registry import FAMILIES, find
from genkit.train.objective import Noise

MNIST = Info("mnist", "images", (1, 28, 28), 60000, tuple("0123456789"))


def test_cifar_recipe_is_the_network_of_the_paper():
    """Oracle: 35,746,307 parameters of Ho et al. 2020's released CIFAR-10 model."""
    from cli_tools import RECIPES

    recipe = read_recipe(RECIPES / "cifar-ddpm.toml")
    fields = {k: v for k, v in recipe.items() if k in DdpmConfig.__dataclass_fields__}
    model = build(from_dict(DdpmConfig, fields), Info("cifar10", "images", (3, 32, 32), 50000))
    assert sum(p.numel() for p in model.parameters()) == 35_746_307
    assert (model.target, model.network.patch) == ("eps", 1)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_lognormal_times(schedule):
    """Oracle: mean and deviation of ln(sigma / alpha) as asked for; 5 standard errors at n = 20,000."""
    s = SCHEDULES[schedule]()
    u = (torch.arange(20_000) + 0.5) / 20_000
    t = Times(s, "lognormal", -0.5, 1.1)(u).double()
    level = (s.sigma(t) / s.alpha(t)).log()
    assert level.mean().item() == pytest.approx(-0.5, abs=0.05)
    assert level.std().item() == pytest.approx(1.1, abs=0.05)


def test_uniform_times_never_touch_the_data():
    """Oracle: u in [0, 1) gives t in (0, 1]."""
    t = Times(SCHEDULES["cosine"](), "uniform", 0, 1)(torch.tensor([0.0, 0.999]))
    assert t[0] == 1
    assert t[1] > 0


class KnowsZero(nn.Module):
    """The exact eps network for data that is all zeros: x = sigma eps."""

    def __init__(self, schedule):
        super().__init__()
        self.schedule = schedule

    def forward(self, x, level, cond=None):
        sigma = self.schedule.sigma((level + 1) / 1000)
        return x / sigma[:, None, None, None]


def test_exact_network_has_no_loss():
    """Oracle: 0 up to fp32 rounding; a network that answers 0 has the variance of eps, 1."""
    schedule = SCHEDULES["linear"]()
    batch = Batch(torch.zeros(64, 1, 8, 8))
    noise = Noise(0, torch.arange(64))
    times = Times(schedule, "uniform", 0, 1)
    exact = Diffusion(Denoiser(KnowsZero(schedule), schedule, "eps"), times)
    assert exact.loss("main", batch, noise).total < 1e-5
    silent = Diffusion(Denoiser(Silent(), schedule, "eps"), times)
    assert silent.loss("main", batch, noise).total.item() == pytest.approx(1, abs=0.1)


class Silent(nn.Module):
    """Always 0."""

    def forward(self, x, level, cond=None):
        return torch.zeros_like(x)


@pytest.mark.parametrize("target", ["eps", "x0", "v", "flow", "edm"])
def test_every_target_trains(target):
    """Oracle: finite gradients reach every parameter."""
    config = DdpmConfig(width=8, multipliers=(1, 1), blocks=1, target=target, schedule="linear")
    info = MNIST
    model = build(config, info)
    loss = (
        find("ddpm")
        .objective(model, config, info)
        .loss("main", Batch(torch.zeros(2, 1, 28, 28)), Noise(0, torch.arange(2)))
    )
    loss.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "kind, size, channels",
    [
        ("latents", (7, 7), [16]),
        ("latents", (8, 8), [8, 16]),
        ("latents", (8, 7), [16]),
        ("images", (28, 28), [8, 16]),
        ("images", (26, 26), [16]),  # 13x13 patches
    ],
)
def test_the_network_that_is_not_described_fits(kind, size, channels):
    """Oracle: two levels where the size can be halved, else the lower one alone; the shape comes back."""
    shape = (4, *size)
    network = build(DdpmConfig(width=8, norm_groups=4), Info("z", kind, shape, 100)).network
    assert [level.blocks[-1].conv2.out_channels for level in network.down] == channels
    x = torch.randn(2, *shape)
    assert network(x, torch.tensor([3.0, 700.0])).shape == x.shape


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"multipliers": (1, 1, 1, 1), "patch": 1}, "28x28"),
        ({"target": "eps", "schedule": "flow"}, "--target eps"),
        ({"attention": (5,)}, "attention"),
    ],
)
def test_impossible_networks(changes, message):
    """Oracle: the size or option is named."""
    with pytest.raises(InputError, match=message):
        build(DdpmConfig(width=8, **changes), MNIST)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_rebuilds_from_json(name):
    """Oracle: the same parameters from a config and an Info that went through JSON."""
    entry = find(name)
    config = entry.config()
    validate(config)
    info = info_from_json(json.loads(json.dumps(MNIST._asdict())))
    assert info == MNIST
    a, b = (
        entry.build(config, MNIST),
        entry.build(from_dict(entry.config, json.loads(json.dumps(vars(config)))), info),
    )
    assert [p.shape for p in a.parameters()] == [p.shape for p in b.parameters()]
    b.load_state_dict(a.state_dict())
    assert entry.help.endswith(".")
    assert entry.verbs


def test_labels_are_dropped_at_their_rate_and_in_training_only():
    """Oracle: a binomial share (5 standard errors at n = 4,000); labels as they are in evaluation."""
    info = MNIST
    config = DdpmConfig(width=8, multipliers=(1,), blocks=1, class_conditional=True, label_dropout=0.2)
    objective = find("ddpm").objective(build(config, info), config, info)
    label = torch.arange(4000) % 10
    batch, noise = Batch(torch.zeros(4000, 1, 1, 1), label), Noise(0, torch.arange(4000))
    shown = objective.train()._condition(batch, noise)
    dropped = shown == 10
    assert dropped.float().mean().item() == pytest.approx(0.2, abs=5 * (0.16 / 4000) ** 0.5)
    assert torch.equal(shown[~dropped], label[~dropped])
    assert torch.equal(objective.eval()._condition(batch, noise), label)


def test_min_snr_weights_the_error_of_x0_alike_for_every_target():
    """Oracle: by hand, the target's error that an error of x0 makes at fixed x_t; min(SNR, 5) of it."""
    schedule, t = SCHEDULES["cosine"](), torch.tensor([0.02, 0.3, 0.7, 0.98], dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    d0 = 0.1
    d_eps = -alpha * d0 / sigma
    wanted = (alpha / sigma).square().clamp(max=5) * d0**2
    for target in ("eps", "x0", "v", "flow", "edm"):
        p, q = coefficients(target, alpha, sigma, 0.5)
        error = (p * d0 + q * d_eps).square()
        assert torch.allclose(min_snr(schedule, target, t, 0.5) * error, wanted, rtol=1e-9)


@pytest.mark.parametrize(
    "changes, reader",
    [
        ({"label_dropout": 0.2}, "--class-conditional"),
        ({"gamma": 3.0}, "--weighting min-snr"),
        ({"vlb_weight": 0.1}, "--loss hybrid"),
        ({"time_mean": 0.0}, "--time-sampling lognormal"),
        ({"data_std": 0.6, "target": "v"}, "--target edm"),
    ],
)
def test_options_that_nothing_reads_are_refused(changes, reader):
    """Oracle: the option that would read it is named; the model itself can be built, as a checkpoint's is."""
    config = DdpmConfig(width=8, multipliers=(1,), blocks=1, **changes)
    model = build(config, MNIST)
    with pytest.raises(InputError, match=reader):
        find("ddpm").objective(model, config, MNIST)
