"""genkit.nn.blocks: 1x1 convolutions and residual blocks of a pair of maps; oracle is the joined map."""

import copy

import pytest
import torch
from torch import nn

from genkit.nn.blocks import Conv1x1, ResBlock
from genkit.nn.norm import group_norm


def pair(a=16, b=32, layout=torch.channels_last, size=(6, 5)):
    torch.manual_seed(a + b)
    return [torch.randn(4, c, *size).contiguous(memory_format=layout).requires_grad_() for c in (a, b)]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_1x1_convolution_of_two_maps_is_torchs_of_the_joined_one(layout):
    maps = pair(layout=layout)
    layer = Conv1x1(48, 24).to(memory_format=layout)
    slope = torch.randn(4, 24, 6, 5)
    leaves = [*maps, *layer.parameters()]
    found, expected = layer(*maps), nn.Conv2d.forward(layer, torch.cat(maps, 1))
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=layout)
    for a, b in zip(
        *(torch.autograd.grad((y * slope).sum(), leaves) for y in (found, expected)), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
    with torch.no_grad():
        torch.testing.assert_close(layer(*maps), expected)
        torch.testing.assert_close(layer(torch.cat(maps, 1)), expected)


def test_a_1x1_convolution_under_autocast():
    layer = Conv1x1(48, 24).to(memory_format=torch.channels_last)
    maps = pair()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = layer(*maps)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), layer(*maps), rtol=0.02, atol=0.05)


def identity(channels):
    return nn.Identity()


@pytest.mark.parametrize("norm", [group_norm, identity])
@pytest.mark.parametrize("out", [64, 48])  # 48: the shortcut is the identity
@pytest.mark.parametrize("size", [(6, 5), (16, 16)])
def test_a_residual_block_of_two_maps_is_that_of_the_joined_one(norm, out, size):
    torch.manual_seed(0)
    block = ResBlock(48, out, 8, norm=norm).to(memory_format=torch.channels_last)
    maps, embedding = pair(size=size), torch.randn(4, 8)
    leaves = [*maps, *block.parameters()]
    exact = copy.deepcopy(block).double()
    wide = [t.detach().double().requires_grad_() for t in maps]
    found = block(maps[0], embedding, maps[1])
    expected = exact(torch.cat(wide, 1), embedding.double())
    torch.testing.assert_close(found, expected.float(), rtol=1e-4, atol=1e-4)
    gradients = (
        torch.autograd.grad(y.pow(2).mean(), given)
        for y, given in ((found, leaves), (expected, [*wide, *exact.parameters()]))
    )
    for a, b in zip(*gradients, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def test_an_empty_batch_and_maps_of_other_sizes():
    layer = Conv1x1(48, 24).to(memory_format=torch.channels_last)
    maps = pair()
    assert layer(*(t[:0] for t in maps)).shape == (0, 24, 6, 5)
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        layer(maps[0], maps[1].transpose(2, 3).contiguous(memory_format=torch.channels_last))


def test_a_shortcut_put_in_its_place_is_called():
    block = ResBlock(48, 48, None)
    maps = pair()
    block.shortcut = nn.Conv2d(48, 48, 1)
    expected = block.conv2.bias[:, None, None] + block.shortcut(torch.cat(maps, 1))
    nn.init.zeros_(block.conv2.weight)
    torch.testing.assert_close(block(maps[0], skip=maps[1]), expected)
