"""Encoders and decoders of autoencoders."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genkit.nn import winograd
from genkit.nn.coders import Chain, ConvDecoder, ConvEncoder, halvings, mlp_decoder, mlp_encoder
from genkit.nn.norm import GroupNorm
from genkit.nn.winograd import Conv3x3


def test_chain_is_a_sequence(spy):
    """Oracle: `nn.Sequential`. The pairs that are one step stand beside layers alone."""
    shuffles = spy(F, "pixel_shuffle")
    layers = [GroupNorm(4, 16), nn.SiLU(), GroupNorm(2, 16), nn.Conv2d(16, 16, 1), Conv3x3(16, 64)]
    layers += [nn.PixelShuffle(2), Conv3x3(16, 4), nn.PixelShuffle(2), GroupNorm(1, 1), nn.SiLU()]
    x = torch.randn(20, 16, 8, 5).contiguous(memory_format=torch.channels_last)
    chain, plain = Chain(*layers), nn.Sequential(*layers)
    assert list(chain.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(chain(x), plain(x), rtol=1e-4, atol=1e-4)
    if winograd._kernels() is not None:
        assert shuffles == ["pixel_shuffle"] * 2  # the plain one's
    torch.testing.assert_close(Chain(nn.SiLU())(x), F.silu(x))
    larger = Chain(Conv3x3(16, 18), nn.PixelShuffle(3))
    torch.testing.assert_close(larger(x), nn.Sequential(*larger)(x), rtol=1e-4, atol=1e-4)


def test_mlp_is_the_pytorch_example():
    """Oracle: 784-400-20 counted by hand, 784*400 + 400 + 2 (400*20 + 20) + 20*400 + 400 + 400*784 + 784."""
    encoder = mlp_encoder((1, 28, 28), (40, 1, 1))
    decoder = mlp_decoder((20, 1, 1), (1, 28, 28))
    count = sum(p.numel() for m in (encoder, decoder) for p in m.parameters())
    assert count == 652_824
    assert decoder(torch.zeros(2, 20, 1, 1)).shape == (2, 1, 28, 28)


def test_mlp_sees_brightness():
    """Oracle: a black image is all zeros to the first layer, so only biases speak."""
    encoder = mlp_encoder((1, 4, 4), (3, 1, 1), width=5)
    expected = encoder[4](encoder[2].bias.relu())
    torch.testing.assert_close(encoder(torch.full((1, 1, 4, 4), -1.0)).flatten(), expected)


@pytest.mark.parametrize(
    "image, code, times",
    [
        ((1, 28, 28), (4, 7, 7), 2),
        ((3, 32, 32), (4, 8, 8), 2),
        ((3, 32, 48), (4, 4, 6), 3),
        ((1, 28, 28), (1, 28, 28), 0),
        ((1, 8, 8), (10, 1, 1), 1),
        ((1, 7, 7), (10, 1, 1), 0),
        ((1, 28, 28), (20, 1, 1), 2),
        ((3, 64, 64), (20, 1, 1), 4),
    ],
)
def test_halvings(image, code, times):
    """Oracle: by hand; a vector is read off the first map of at most 7 pixels a side."""
    assert halvings(image, code) == times


@pytest.mark.parametrize("code", [(4, 5, 5), (4, 7, 14), (4, 56, 56), (4, 9, 9), (4, 3, 3)])
def test_a_map_that_does_not_fit_is_refused(code):
    """Oracle: none of them is 28x28 over one power of two."""
    with pytest.raises(ValueError, match="28x28"):
        halvings((1, 28, 28), code)


@pytest.mark.parametrize(
    "image, code",
    [
        ((1, 28, 28), (20, 1, 1)),
        ((3, 30, 45), (5, 1, 1)),  # odd on the way down
        ((3, 33, 8), (5, 1, 1)),
        ((1, 8, 8), (4, 2, 2)),
        ((2, 16, 16), (4, 4, 4)),
        ((3, 32, 32), (4, 8, 8)),
        ((1, 28, 28), (3, 28, 28)),
        ((1, 4, 4), (6, 1, 1)),
    ],
)
@pytest.mark.parametrize("blocks", [0, 1])
def test_conv_shapes(image, code, blocks):
    """Oracle: an encoder maps images to the shape asked for, and its decoder maps back."""
    x = torch.zeros(2, *image)
    z = ConvEncoder(image, code, width=4, blocks=blocks)(x)
    assert z.shape == (2, *code)
    assert ConvDecoder(code, image, width=4, blocks=blocks)(z).shape == x.shape


def test_examples_do_not_mix():
    """Oracle: changing one image of a batch leaves the codes of the others as they were."""
    torch.manual_seed(0)
    encoder = ConvEncoder((1, 16, 16), (4, 4, 4), width=8).eval()
    x = torch.randn(3, 1, 16, 16)
    y = x.clone()
    y[1] += 1.0
    a, b = encoder(x), encoder(y)
    assert torch.equal(a[[0, 2]], b[[0, 2]])
    assert not torch.equal(a[1], b[1])


def test_a_dense_layer_stands_between_maps_and_vectors_only():
    """Oracle: its parameters counted by hand, 64 units of the last map and 5 of the code; a map has none."""

    def added(code):
        pairs = [
            (ConvEncoder((1, 8, 8), code, 4, 0, d), ConvDecoder(code, (1, 8, 8), 4, 0, d)) for d in (0, 7)
        ]
        without, dense = ([sum(p.numel() for p in m.parameters()) for m in pair] for pair in pairs)
        return [b - a for a, b in zip(without, dense)]

    units, code, hidden = 4 * 4 * 4, 5, 7
    there = (units + 1) * hidden + (hidden + 1) * code - (units + 1) * code
    back = (code + 1) * hidden + (hidden + 1) * units - (code + 1) * units
    assert added((code, 1, 1)) == [there, back]
    assert added((code, 4, 4)) == [0, 0]
