"""The classifier network."""

import pytest
import torch

from genkit.nn.convnet import ConvNet, Residual


def test_residual_starts_as_the_identity():
    """Oracle: its input."""
    x = torch.randn(2, 8, 5, 5)
    assert torch.equal(Residual(8)(x), x)
    assert torch.equal(Residual(8, embedding=3)(x, torch.randn(2, 3)), x)


@pytest.mark.parametrize(
    "shape, stride", [((1, 28, 28), 2), ((3, 32, 32), 2), ((1, 8, 8), 1), ((3, 20, 31), 2)]
)
def test_shapes(shape, stride):
    """Oracle: (B, feature_dim) features of four times the width, (B, classes) logits."""
    net = ConvNet(shape[0], 7, width=8, stride=stride)
    x = torch.zeros(2, *shape)
    assert net.feature_dim == 32
    assert net.features(x).shape == (2, 32)
    assert net(x).shape == (2, 7)


def test_logits_are_the_head_of_the_features():
    """Oracle: the last linear layer applied by hand."""
    net = ConvNet(1, 5, width=8)
    x = torch.randn(3, 1, 28, 28)
    assert torch.equal(net(x), net.features(x) @ net.head.weight.T + net.head.bias)


def test_an_image_is_judged_alone():
    """Oracle: logits of the images one at a time; the tolerance is for float32 rounding."""
    torch.manual_seed(0)
    net = ConvNet(1, 5, width=8).train()
    x = torch.randn(4, 1, 28, 28)
    alone = torch.cat([net(row[None]) for row in x])
    torch.testing.assert_close(net(x), alone, atol=1e-5, rtol=1e-5)


def test_noise_level_goes_with_conditional():
    """Oracle: a conditional network's answer depends on the level, 0 by default; a plain one refuses it."""
    torch.manual_seed(0)
    net = ConvNet(1, 5, width=8, conditional=True)
    for block in net.modules():
        if isinstance(block, Residual):
            torch.nn.init.normal_(block.conv2.weight, std=0.1)
    x = torch.randn(2, 1, 28, 28)
    assert not torch.allclose(net(x, torch.zeros(2)), net(x, torch.full((2,), 0.5)))
    assert torch.equal(net(x), net(x, torch.zeros(2)))
    with pytest.raises(ValueError, match="takes no noise_level"):
        ConvNet(1, 5, width=8)(x, torch.zeros(2))
