"""Convolutions with a stride of 2 in few multiplications. The oracle is torch's convolution: in float64 for
values, in float32 for gradients and the rest."""

import pickle

import pytest
import torch
import torch.nn.functional as F

from genkit.nn import patches, winograd
from genkit.nn.convolution import Conv2d
from genkit.train.adamw import AdamW

CLOSE = 3e-5  # relative to the largest value: float32 has 6e-8, the transforms lose some two digits of it
HALVES = [(4, 1, 0), (3, 0, 1), (3, 1, 0), (5, 2, 0), (5, 1, 1)]  # kernel, padding, more zeros


pytestmark = pytest.mark.usefixtures("winograd_kernels")


@pytest.fixture
def ran(spy):
    """The names of the kernels that ran, in order."""
    patches._kernels()  # which try themselves the first time
    return spy(winograd, "_run", "_weight_gradients"), spy(patches, "_gather")


def assert_near(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= CLOSE * expected.abs().max()


def layer_and_maps(channels, out, kernel, padding, n, height, width):
    torch.manual_seed(channels + out + n + height + width)
    layer = Conv2d(channels, out, kernel, 2, padding).to(memory_format=torch.channels_last)
    return layer, torch.randn(n, channels, height, width).to(memory_format=torch.channels_last)


# corners of 16, 32 and 64 channels, results that fill no vector or panel, tiles of 4 pixels and of 3
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "channels, out, height, width", [(16, 32, 14, 16), (32, 37, 20, 8), (64, 80, 10, 14)]
)
@pytest.mark.parametrize("kernel, padding, more", HALVES)
def test_halves_as_torch_does(kernel, padding, more, channels, out, height, width, threads, direct, ran):
    torch.set_num_threads(threads)
    layer, x = layer_and_maps(channels, out, kernel, padding, 22, height, width)
    x.requires_grad_()
    slope = torch.randn(22, out, height // 2, width // 2)

    def value_and_gradients():
        y = layer(x, (more, more))
        return y, *torch.autograd.grad((y * slope).sum(), [x, *layer.parameters()])

    found = value_and_gradients()
    assert ran == (["_run", "_run", "_weight_gradients"], [])
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    padded = F.pad(x.double(), (padding, padding + more) * 2)
    assert_near(found[0].double(), F.conv2d(padded, layer.weight.double(), layer.bias.double(), 2))
    for one, expected in zip(found, direct(value_and_gradients), strict=True):
        assert_near(one, expected)


@pytest.mark.parametrize("kernel, padding, more", HALVES)
def test_gradients_of_a_gradient_are_torchs(kernel, padding, more, direct, ran):
    layer, x = layer_and_maps(16, 32, kernel, padding, 16, 16, 16)
    x.requires_grad_()

    def penalty_gradient():
        (g,) = torch.autograd.grad(layer(x, (more, more)).square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), [x, layer.weight])

    for found, expected in zip(penalty_gradient(), direct(penalty_gradient), strict=True):
        assert_near(found, expected)
    assert ran[0][0] == "_run"


@pytest.mark.parametrize("learns", ["weight", "bias", "x"])
def test_one_gradient_alone(learns, direct, ran):
    layer, x = layer_and_maps(32, 20, 4, 1, 20, 14, 16)
    layer.requires_grad_(False)
    wanted = (x if learns == "x" else getattr(layer, learns)).requires_grad_()

    def gradient():
        return torch.autograd.grad(layer(x).square().sum(), wanted)[0]

    assert_near(gradient(), direct(gradient))
    assert ran[0][0] == "_run"


def test_an_image_does_not_depend_on_its_batch(ran):
    layer, x = layer_and_maps(32, 32, 4, 1, 24, 24, 24)
    with torch.no_grad():
        whole = layer(x)
        assert torch.equal(whole, torch.cat([layer(part) for part in x.split([2, 5, 17])]))
    assert ran == (["_run"] * 4, [])


def test_gradients_are_the_same_every_time(ran):
    torch.set_num_threads(2)
    layer, x = layer_and_maps(32, 32, 4, 1, 16, 24, 24)
    first, second = (torch.autograd.grad(layer(x).square().sum(), layer.weight)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert ran[0] == ["_run", "_weight_gradients"] * 2


def test_frozen_weights_are_kept_and_followed():
    layer, x = layer_and_maps(16, 16, 3, 1, 16, 16, 16)
    layer.requires_grad_(False)
    for _ in range(2):
        assert_near(layer(x), F.conv2d(x, layer.weight, layer.bias, 2, 1))
        assert len(layer._kept) == 1
        layer.weight.mul_(2)
    assert not pickle.loads(pickle.dumps(layer))._kept


@pytest.mark.parametrize("optimiser", ["genkit's", "torch's, fused"])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_layer_that_is_frozen_between_steps_is_not_an_old_one(stride, optimiser, ran):
    """A critic's turn: what was kept of it while the generator learned must go."""
    layer, x = layer_and_maps(32, 64, 4, 1, 24, 16, 16)
    if stride == 1:
        layer = winograd.Conv3x3(32, 64).to(memory_format=torch.channels_last)
    settings = {"lr": 0.1, "betas": (0.9, 0.99), "weight_decay": 0.0}
    parameters = list(layer.parameters())
    by = AdamW(parameters, **settings) if "genkit" in optimiser else None
    by = by or torch.optim.AdamW(parameters, **settings, fused=True)
    for _ in range(3):
        layer.requires_grad_(False)
        assert_near(layer(x), F.conv2d(x, layer.weight, layer.bias, stride, 1))
        layer.requires_grad_(True)
        layer(x).square().mean().backward()
        by.step()
        by.zero_grad()
    assert ran[0].count("_run") == 6


def test_a_step_without_a_gradient_through_the_layer_is_seen():
    layer, x = layer_and_maps(32, 64, 4, 1, 24, 16, 16)
    by = AdamW(list(layer.parameters()), lr=0.1, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(2):
        layer.requires_grad_(False)
        assert_near(layer(x), F.conv2d(x, layer.weight, layer.bias, 2, 1))
        layer.weight.grad, layer.bias.grad = torch.ones_like(layer.weight), torch.ones_like(layer.bias)
        by.step()
    assert_near(layer(x), F.conv2d(x, layer.weight, layer.bias, 2, 1))


# an odd size, sizes that are not half, kernels that reach too far and one too small, other channels
@pytest.mark.parametrize(
    "channels, kernel, padding, height, more",
    [
        (16, 4, 1, 15, 0),
        (16, 4, 0, 16, 0),
        (16, 3, 1, 16, 2),
        (16, 6, 1, 16, 2),
        (16, 2, 0, 16, 0),
        (16, 7, 3, 16, 0),
        (24, 4, 1, 16, 0),
    ],
)
def test_what_is_no_half_goes_by_patches(channels, kernel, padding, height, more, ran):
    layer, x = layer_and_maps(channels, 16, kernel, padding, 20, height, 16)
    with torch.no_grad():
        found = layer(x, (more, more))
    assert ran == ([], ["_gather"])
    padded = F.pad(x.double(), (padding, padding + more) * 2)
    assert_near(found.double(), F.conv2d(padded, layer.weight.double(), layer.bias.double(), 2))
