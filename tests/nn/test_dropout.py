"""Dropout whose masks are addressed: true dropout, the same for any batch and any layout in memory."""

import pytest
import torch

from genkit import noise
from genkit.nn.dropout import Dropout, dropouts, give_keys
from genkit.nn.unet import UNet


def key(n):
    return noise.words(0, noise.DROPOUT, torch.arange(n), (2,))


def test_values_are_zero_or_scaled():
    """Oracle: the definition; of 61,440 activations a share p is 0, to 5 standard errors."""
    layer, x = Dropout(0.2), torch.rand(4, 15, 32, 32) + 1.0
    layer.key = key(4)
    y = layer(x)
    dropped = y == 0
    assert torch.allclose(y, torch.where(dropped, 0.0, x / 0.8))
    assert abs(dropped.float().mean() - 0.2) < 5 * (0.16 / x.numel()) ** 0.5


def test_gradient_passes_where_the_activation_did():
    """Oracle: the mask over 1 - p."""
    layer, x = Dropout(0.5), torch.ones(2, 8, 4, 4, requires_grad=True)
    layer.key = key(2)
    y = layer(x)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_layout_and_batch_do_not_matter():
    """Oracle: the contiguous batch; an example alone, and channels_last memory, drop the same activations."""
    layer, x = Dropout(0.3), torch.ones(3, 5, 4, 3)
    layer.key = key(3)
    whole = layer(x)
    turned = layer(x.contiguous(memory_format=torch.channels_last))
    assert torch.equal(whole, turned)
    assert turned.is_contiguous(memory_format=torch.channels_last)
    layer.key = key(3)[1:2]
    assert torch.equal(layer(x[1:2]), whole[1:2])
    assert layer(x[1:2].bfloat16()).dtype == torch.bfloat16


def test_without_training_nothing_happens():
    """Oracle: the input itself, and no state that a checkpoint would hold."""
    x = torch.ones(2, 3, 4, 4)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0)(x) is x
    assert not Dropout(0.5).state_dict()


def test_without_keys_it_is_refused():
    """Oracle: the message names the remedy."""
    with pytest.raises(ValueError, match="give_keys"):
        Dropout(0.5)(torch.ones(2, 3, 4, 4))


def test_layers_of_a_network_get_keys_of_their_own():
    """Oracle: as many layers as residual blocks, no two keys alike, none where p is 0."""
    net = UNet(1, 1, 8, width=8, multipliers=(1, 1), blocks=1, attention=(), dropout=0.1)
    layers = dropouts(net)
    give_keys(layers, lambda count: noise.words(0, noise.DROPOUT, torch.arange(4), (count, 2)))
    assert not dropouts(UNet(1, 1, 8, width=8, multipliers=(1, 1), blocks=1, attention=()))
    seen = {tuple(layer.key.flatten().tolist()) for layer in layers}
    assert len(seen) == len(layers) > 3
