"""The U-Net: sizes, conditioning and numerics against closed forms and hand-written equivalents."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genkit.nn.blocks import Attention, Downsample, Upsample, group_norm, sinusoid
from genkit.nn.unet import UNet


def tiny(**changes: object) -> UNet:
    settings = {"size": 8, "width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (4,)}
    return UNet(1, 1, **{**settings, **changes})


def filled(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model with random weights everywhere: the zero-initialised layers would hide what is tested."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def picture(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_defaults_are_the_cifar10_network():
    """Oracle: 35,746,307 parameters in google/ddpm-cifar10-32 (Ho et al. 2020 report 35.7 million)."""
    with torch.device("meta"):
        model = UNet(3, 3, 32)
    assert sum(p.numel() for p in model.parameters()) == 35_746_307


def test_defaults_have_attention_at_16_and_in_the_middle():
    """Oracle: Ho et al. 2020, appendix B: 2 blocks down, 3 up at 16x16, 1 in the middle; one head of 256."""
    with torch.device("meta"):
        model = UNet(3, 3, 32)
    found = {name: m for name, m in model.named_modules() if isinstance(m, Attention)}
    assert sorted(found) == [
        "down.1.attentions.0",
        "down.1.attentions.1",
        "middle_attention",
        "up.2.attentions.0",
        "up.2.attentions.1",
        "up.2.attentions.2",
    ]
    assert all(m.heads == 1 and m.query.in_features == 256 for m in found.values())


def test_sinusoid_equals_its_formula():
    """Oracle: sin and cos of t / 10000^(i / (half - 1)), written with scalars."""
    times = (0.0, 3.5, 999.0)
    got = sinusoid(torch.tensor(times), 8)
    want = [[f(t / 10000 ** (i / 3)) for f in (math.sin, math.cos) for i in range(4)] for t in times]
    # float32 angles near 1000 are spaced by 6e-5.
    torch.testing.assert_close(got, torch.tensor(want), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("channels", "groups"), [(1, 1), (2, 1), (6, 3), (8, 4), (48, 24), (64, 32), (128, 32), (100, 25)]
)
def test_group_norm_divides_and_keeps_two_channels_a_group(channels: int, groups: int):
    """Oracle: the largest divisor of `channels` that is at most 32 and at most channels / 2, by hand."""
    assert group_norm(channels).num_groups == groups


@pytest.mark.parametrize("heads", [1, 2])
def test_attention_equals_softmax_written_out(heads: int):
    """Oracle: x + W_o softmax(q k^T / sqrt(d)) v, one head and one position at a time, in float64."""
    layer = filled(Attention(8, head_dim=8 // heads)).double()
    x = picture(1, 8, 2, 3).double()
    h = layer.norm(x)[0].flatten(1).T
    q, k, v = layer.query(h), layer.key(h), layer.value(h)
    parts = []
    for i in range(heads):
        d = 8 // heads
        at = slice(i * d, (i + 1) * d)
        parts.append(torch.stack([(k[:, at] @ row / math.sqrt(d)).softmax(0) @ v[:, at] for row in q[:, at]]))
    want = x + layer.out(torch.cat(parts, 1)).T.reshape(1, 8, 2, 3)
    torch.testing.assert_close(layer(x), want)


def test_downsample_looks_right_and_down():
    """Oracle: a kernel that copies its last tap reads x[2i + 2, 2j + 2], zero beyond the edge."""
    layer = Downsample(1)
    with torch.no_grad():
        layer.conv.weight.zero_()[0, 0, 2, 2] = 1
        layer.conv.bias.zero_()
    x = picture(1, 1, 4, 4)
    want = torch.zeros(1, 1, 2, 2)
    want[0, 0, 0, 0] = x[0, 0, 2, 2]
    torch.testing.assert_close(layer(x), want)


def test_upsample_repeats_pixels():
    """Oracle: repeat_interleave, under a kernel that copies its centre."""
    layer = Upsample(1)
    with torch.no_grad():
        layer.conv.weight.zero_()[0, 0, 1, 1] = 1
        layer.conv.bias.zero_()
    x = picture(1, 1, 3, 2)
    torch.testing.assert_close(layer(x), x.repeat_interleave(2, 2).repeat_interleave(2, 3))


def test_upsample_is_the_convolution_of_the_doubled_map():
    """Oracle: conv2d of the interpolated map, in float64, and the gradient of its weights."""
    layer = filled(Upsample(3)).double()
    x = picture(2, 3, 4, 5).double().contiguous(memory_format=torch.channels_last)
    want = layer.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
    got = layer(x)
    torch.testing.assert_close(got, want)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), list(layer.parameters())) for y in (got, want))):
        torch.testing.assert_close(a, b)


def test_starts_at_zero():
    """Oracle: the last convolution is zero, hence the output, while its weights do get a gradient."""
    model = tiny()
    out = model(picture(2, 1, 8, 8), torch.tensor([0.0, 500.0]))
    assert out.abs().max() == 0
    (out - 1).square().mean().backward()
    assert model.conv_out.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("size", "patch", "multipliers"), [(28, 1, (1, 2, 2)), (28, 2, (1, 2)), (7, 1, (1,)), (32, 4, (1, 2))]
)
@pytest.mark.parametrize("scale_shift", [False, True])
def test_shapes(size: int, patch: int, multipliers: tuple[int, ...], scale_shift: bool):
    """Oracle: the input's height and width, `channels_out` channels, and a gradient for every weight."""
    settings = {"width": 8, "blocks": 1, "head_dim": 4, "skip_scale": 0.5**0.5, "attention": (size // patch,)}
    model = UNet(2, 4, size, multipliers=multipliers, patch=patch, scale_shift=scale_shift, **settings)
    out = filled(model).train()(picture(2, 2, size, size), torch.tensor([1.0, 2.0]))
    assert out.shape == (2, 4, size, size)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_another_size_than_built_for():
    """Oracle: the network is fully convolutional, so a rectangle of multiples of the factor works."""
    assert filled(tiny())(picture(1, 1, 12, 4), torch.ones(1)).shape == (1, 1, 12, 4)


def test_patch_is_pixel_unshuffle_outside():
    """Oracle: the network without patch on hand-made space-to-depth channels, with the same weights."""
    folded, plain = filled(tiny(patch=2, size=16)), UNet(4, 4, 8, 8, (1, 2), 1, (4,)).eval()
    plain.load_state_dict(folded.state_dict())
    x, t = picture(2, 1, 16, 16), torch.tensor([3.0, 700.0])
    channels = torch.stack([x[:, 0, i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)
    parts = plain(channels, t)
    want = torch.zeros_like(x)
    for n, (i, j) in enumerate((i, j) for i in (0, 1) for j in (0, 1)):
        want[:, 0, i::2, j::2] = parts[:, n]
    torch.testing.assert_close(folded(x, t), want)


def test_no_label_is_the_null_class():
    """Oracle: label None equals index `classes` for every example; another class differs."""
    model = filled(tiny(classes=3))
    x, t = picture(2, 1, 8, 8), torch.tensor([3.0, 700.0])
    with torch.inference_mode():
        torch.testing.assert_close(model(x, t), model(x, t, torch.tensor([3, 3])), rtol=0, atol=0)
        assert (model(x, t, torch.tensor([0, 3])) - model(x, t))[0].abs().max() > 1e-3


def test_noise_level_is_per_example():
    """Oracle: a batch of two levels equals two batches of one, and the levels matter."""
    model = filled(tiny())
    x = picture(1, 1, 8, 8).expand(2, 1, 8, 8)
    with torch.inference_mode():
        both = model(x, torch.tensor([3.0, 700.0]))
        torch.testing.assert_close(both[:1], model(x[:1], torch.tensor([3.0])))
        torch.testing.assert_close(both[1:], model(x[1:], torch.tensor([700.0])))
        assert (both[0] - both[1]).abs().max() > 1e-3


@pytest.mark.parametrize("scale_shift", [False, True])
def test_bfloat16_weights_and_channels_last_agree_with_float32(scale_shift: bool):
    """Oracle: the float32 network. bf16 keeps 8 bits (0.4 %) a rounding, accumulated over some 20 layers."""
    model = filled(tiny(width=32, scale_shift=scale_shift))
    x, t = picture(4, 1, 8, 8), torch.tensor([0.0, 3.0, 300.0, 700.0])
    with torch.inference_mode():
        want = model(x, t)
        last = model.to(memory_format=torch.channels_last)(x, t)
        torch.testing.assert_close(last, want, rtol=1e-4, atol=1e-4 * want.std().item())
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(x, t)
        half = model.to(torch.bfloat16)(x, t)
    for got in (mixed, half):
        assert got.dtype == torch.float32
        assert F.mse_loss(got, want).sqrt() < 0.05 * want.std()


def test_wrong_requests_name_the_value_and_the_remedy():
    """Oracle: ValueError with the number that is wrong."""
    with pytest.raises(ValueError, match=r"multiple of 8 .*got 28x28: use fewer multipliers"):
        UNet(1, 1, 28)
    with pytest.raises(ValueError, match=r"multiple of 2 .*got 8x7"):
        tiny()(picture(1, 1, 8, 7), torch.ones(1))
    with pytest.raises(ValueError, match=r"feature-map sizes \[8, 4\], got \[16\]"):
        tiny(attention=(16,))
    with pytest.raises(ValueError, match=r"multiple of head_dim .*16 and 5"):
        tiny(head_dim=5)
    with pytest.raises(ValueError, match="classes=0"):
        tiny()(picture(1, 1, 8, 8), torch.ones(1), torch.tensor([1]))
