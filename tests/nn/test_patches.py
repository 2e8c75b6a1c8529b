"""Convolutions as products of patches. The oracle is torch's convolution: in float64 for values, in float32
for gradients and the rest."""

import pytest
import torch
import torch.nn.functional as F

from genkit.nn import patches
from genkit.nn.convolution import Conv2d, ConvTranspose2d
from genkit.nn.winograd import Conv3x3

CLOSE = 1e-5  # relative to the largest value: sums of up to a thousand products, each 2^-24 = 6e-8 off


@pytest.fixture(autouse=True)
def kernels():
    if patches._kernels() is None:
        pytest.skip("no C++ compiler here: torch's convolution is used")


@pytest.fixture
def ran(spy):
    """The names of the kernels that ran, in order."""
    return spy(patches, "_gather", "_scatter", "_weight_gradients")


def assert_near(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= CLOSE * expected.abs().max()


def maps(n, channels, height, width):
    torch.manual_seed(n + channels + height + width)
    return torch.randn(n, channels, height, width).to(memory_format=torch.channels_last)


# (channels in, channels out, kernel, stride, padding), then (images, height, width): one channel and many,
# lines of a patch below and above a vector and whole ones, windows that hang over all edges, rows and columns
# that no window reaches, panels of all widths, channels that fill no vector, more patches than a block has
SHAPES = [
    ((1, 32, 4, 2, 1), (5, 28, 28)),
    ((32, 64, 4, 2, 1), (3, 14, 10)),
    ((3, 20, 3, 2, 1), (2, 9, 8)),
    ((16, 48, 3, 2, 0), (2, 8, 9)),
    ((7, 80, 5, 1, 2), (2, 6, 3)),
    ((2, 16, 5, 3, 4), (3, 4, 5)),
    ((40, 112, 4, 4, 0), (2, 8, 10)),
    ((1, 1, 2, 1, 0), (1, 2, 2)),
    ((16, 32, 3, 2, 1), (2, 1, 9)),
    ((4, 32, 3, 1, 1), (1, 13, 5)),
]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sizes, shape", SHAPES)
def test_convolutions_equal_torchs(sizes, shape, threads, direct, ran):
    torch.set_num_threads(threads)
    x = maps(shape[0], sizes[0], *shape[1:]).requires_grad_()
    layer = Conv2d(*sizes).to(memory_format=torch.channels_last)
    wanted = [x, *layer.parameters()]
    slope = torch.randn_like(layer(x))
    ran.clear()

    def value_and_gradients():
        y = layer(x)
        return y, *torch.autograd.grad((y * slope).sum(), wanted)

    found = value_and_gradients()
    assert ran == ["_gather", "_scatter", "_weight_gradients"]
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    double = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), *sizes[3:])
    assert_near(found[0].double(), double)
    for one, expected in zip(found, direct(value_and_gradients), strict=True):
        assert_near(one, expected)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("sizes, shape", [*SHAPES, ((5, 16, 2, 3, 0), (2, 4, 1))])
def test_transposed_convolutions_equal_torchs(sizes, shape, threads, direct, ran):
    torch.set_num_threads(threads)
    y = maps(shape[0], sizes[0], *shape[1:]).requires_grad_()
    layer = ConvTranspose2d(*sizes).to(memory_format=torch.channels_last)
    wanted = [y, *layer.parameters()]
    slope = torch.randn_like(layer(y))
    ran.clear()

    def value_and_gradients():
        x = layer(y)
        return x, *torch.autograd.grad((x * slope).sum(), wanted)

    found = value_and_gradients()
    assert ran == ["_scatter", "_gather", "_weight_gradients"]
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    double = F.conv_transpose2d(y.double(), layer.weight.double(), layer.bias.double(), *sizes[3:])
    assert_near(found[0].double(), double)
    for one, expected in zip(found, direct(value_and_gradients), strict=True):
        assert_near(one, expected)


@pytest.mark.parametrize("height, width", [(8, 6), (7, 9)])
def test_more_zeros_below_and_on_the_right(height, width, direct, ran):
    x, layer = maps(3, 16, height, width).requires_grad_(), Conv2d(16, 32, 3, 2)

    def value_and_gradients():
        y = layer(x, more=(1, 1))
        return y, *torch.autograd.grad(y.square().sum(), [x, layer.weight])

    padded = F.pad(x, (0, 1, 0, 1)).double()
    found = value_and_gradients()
    assert_near(found[0].double(), F.conv2d(padded, layer.weight.double(), layer.bias.double(), 2))
    assert ran == ["_gather", "_scatter", "_weight_gradients"]
    for one, expected in zip(found, direct(value_and_gradients), strict=True):
        assert_near(one, expected)


@pytest.mark.parametrize("kind", [Conv2d, ConvTranspose2d])
@pytest.mark.parametrize("of", ["transposed", "expanded", "with no bias"])
def test_weights_that_are_views(kind, of, direct):
    """As spectral norm gives them."""
    x = maps(3, 16, 6, 6).requires_grad_()
    function = patches.convolve if kind is Conv2d else patches.spread
    given = torch.randn(24, 16, 4, 4) if kind is Conv2d else torch.randn(16, 24, 4, 4)
    if of == "transposed":
        given = given.transpose(2, 3).flip(0)
    elif of == "expanded":
        given = given[:1].expand(16, -1, -1, -1)
    weight = given.requires_grad_()
    channels = weight.shape[0 if kind is Conv2d else 1]
    bias = None if of == "with no bias" else torch.randn(channels)

    def value_and_gradients():
        y = function(x, weight, bias, 2, 1)
        return y, *torch.autograd.grad(y.square().sum(), [x, weight])

    for found, expected in zip(value_and_gradients(), direct(value_and_gradients), strict=True):
        assert_near(found, expected)


@pytest.mark.parametrize("kind", [Conv2d, ConvTranspose2d])
@pytest.mark.parametrize("learns", ["x", "weight", "bias"])
def test_one_gradient_alone(kind, learns, direct):
    layer, x = kind(16, 8, 4, 2, 1).requires_grad_(False), maps(3, 16, 6, 6)
    wanted = (x if learns == "x" else getattr(layer, learns)).requires_grad_()

    def gradient():
        return torch.autograd.grad(layer(x).square().sum(), wanted)[0]

    assert_near(gradient(), direct(gradient))


@pytest.mark.parametrize("kind, more", [(Conv2d, {}), (Conv2d, {"more": (1, 0)}), (ConvTranspose2d, {})])
@pytest.mark.parametrize("of", ["x", "weight", "bias"])
def test_gradients_of_a_gradient_are_torchs(kind, of, more, direct):
    layer, x = kind(16, 8, 3, 2, 1), maps(3, 16, 6, 6).requires_grad_()
    first = x if of == "x" else getattr(layer, of)

    def penalty_gradient():
        (g,) = torch.autograd.grad(layer(x, **more).pow(3).sum(), first, create_graph=True)
        return torch.autograd.grad(g.square().sum(), [x, layer.weight])

    for found, expected in zip(penalty_gradient(), direct(penalty_gradient), strict=True):
        assert_near(found, expected)


@pytest.mark.parametrize("kind", [Conv2d, ConvTranspose2d])
def test_maps_and_gradients_of_any_layout(kind, direct):
    """A layer whose weights are channels-last takes other maps, and whatever comes back from them."""
    layer = kind(16, 8, 4, 2, 1).to(memory_format=torch.channels_last)
    x = maps(3, 16, 6, 6).contiguous().requires_grad_()

    def gradients():
        def packed(t):
            return t.detach().clone(memory_format=torch.contiguous_format)

        with torch.autograd.graph.saved_tensors_hooks(packed, lambda t: t):
            return torch.autograd.grad(layer(x).sum(), [x, layer.weight])  # of a sum: one number, expanded

    for found, expected in zip(gradients(), direct(gradients), strict=True):
        assert_near(found, expected)


@pytest.mark.parametrize("kind", [Conv2d, ConvTranspose2d])
def test_gradients_are_the_same_every_time(kind):
    torch.set_num_threads(2)
    layer, x = kind(15, 8, 4, 2, 1), maps(30, 15, 12, 12)  # 16 would go another way
    first, second = (torch.autograd.grad(layer(x).square().sum(), layer.weight)[0] for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("kind", [Conv2d, ConvTranspose2d])
def test_an_image_does_not_depend_on_its_batch(kind):
    layer, x = kind(15, 40, 4, 2, 1), maps(24, 15, 12, 12)
    with torch.no_grad():
        parts = torch.cat([layer(part) for part in x.split([1, 2, 5, 16])])
        assert torch.equal(layer(x), parts)


def test_bands_of_an_image_equal_the_whole():
    """Where there are fewer images than threads, these share its rows."""
    layer, x = ConvTranspose2d(16, 3, 6, 2, 2), maps(1, 16, 7, 5)
    with torch.no_grad():
        whole = layer(x)
        for threads in (2, 3, 5, 40):
            torch.set_num_threads(threads)
            assert torch.equal(layer(x), whole)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch's own, on first use
def test_tangents_go_through_torch(ran):
    """Oracle: the convolution is linear."""
    layer, x, tangent = Conv2d(16, 8, 4, 2, 1).requires_grad_(False), maps(3, 16, 6, 6), maps(3, 16, 6, 6)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        found = torch.autograd.forward_ad.unpack_dual(layer(dual)).tangent
    assert ran == []
    assert_near(found, layer(tangent) - layer(torch.zeros_like(x)))


def test_transforms_of_functions_go_through_torch(direct):
    layer, x = Conv2d(16, 8, 4, 2, 1), maps(3, 16, 6, 6)

    def gradient():
        return torch.func.grad(lambda x: layer(x).square().sum())(x)

    assert_near(gradient(), direct(gradient))


@pytest.mark.parametrize("case", ["layout", "double", "autocast", "large", "no images", "one image alone"])
def test_what_does_not_suit_goes_through_torch(case, ran):
    layer, x = Conv2d(16, 16, 4, 2, 1), maps(4, 16, 8, 8)
    if case == "layout":
        x = x.contiguous()
    elif case == "double":
        layer, x = layer.double(), x.double()
    elif case == "large":
        layer, x = Conv2d(128, 256, 4, 2, 1), maps(2, 128, 4, 4)
    elif case == "no images":
        x = x[:0]
    elif case == "one image alone":
        x = x[0]
    with torch.no_grad(), torch.autocast("cpu", enabled=case == "autocast"):
        assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, 2, 1))
    assert ran == []


def test_a_map_of_other_channels_is_torchs_business(ran):
    with pytest.raises(RuntimeError, match="channels"):
        Conv2d(16, 16, 4, 2, 1)(maps(4, 8, 8, 8))
    with pytest.raises(RuntimeError, match="channels"):
        ConvTranspose2d(16, 16, 4, 2, 1)(maps(4, 8, 8, 8))
    assert ran == []


THIN = {
    "as layers have it": lambda k, c: torch.randn(k, c, 3, 3),
    "channels last": lambda k, c: torch.randn(k, c, 3, 3).to(memory_format=torch.channels_last),
    "transposed": lambda k, c: torch.randn(c, k, 3, 3).transpose(0, 1),
    "a part": lambda k, c: torch.randn(k, c + 3, 5, 4)[:, 2:-1, 1:4, :3],
    "expanded": lambda k, c: torch.randn(1, c, 3, 1).expand(k, -1, -1, 3),
}


@pytest.mark.parametrize("size", [(5, 7), (1, 6), (6, 1)])
@pytest.mark.parametrize("shuffled", [False, True])
@pytest.mark.parametrize("of", THIN)
@pytest.mark.parametrize("threads", [1, 3])  # of 2 images: in bands of rows
def test_few_channels(of, shuffled, size, threads, ran):
    """Oracle: torch's operations in double precision, the gradients together and each alone."""
    torch.set_num_threads(threads)
    weight, bias = THIN[of](4 if shuffled else 3, 24), torch.randn(4, 2)[: 4 if shuffled else 3, 1]
    tensors = maps(2, 24, *size), weight, bias

    def results(call, dtype):
        found = []
        for wanted in ([0], [1], [2], [0, 1, 2]):
            given = [t.detach().to(dtype).requires_grad_(i in wanted) for i, t in enumerate(tensors)]
            y = call(*given, shuffled)
            found += [y, *torch.autograd.grad(y.square().sum(), [given[i] for i in wanted])]
        return found

    expected = results(patches._plainly_thinned, torch.float64)
    for found, exact in zip(results(patches.thin, torch.float32), expected, strict=True):
        assert_near(found.double(), exact)
    assert sorted(ran) == ["_gather"] * 2 + ["_scatter"] * 4 + ["_weight_gradients"] * 2


@pytest.mark.parametrize("shuffled", [False, True])
def test_few_channels_gradients_of_a_gradient(shuffled):
    """Oracle: torch's operations in double precision."""
    tensors = [maps(2, 16, 4, 5), torch.randn(4, 16, 3, 3), torch.randn(4)]

    def second(call, dtype):
        given = [t.detach().to(dtype).requires_grad_() for t in tensors]
        loss = call(*given, shuffled).pow(3).sum()
        firsts = torch.autograd.grad(loss, given, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in firsts), given)

    expected = second(patches._plainly_thinned, torch.float64)
    for found, exact in zip(second(patches.thin, torch.float32), expected, strict=True):
        assert_near(found.double(), exact)


@pytest.mark.parametrize("channels", [8, 20])
@pytest.mark.parametrize("shuffled", [False, True])
def test_few_channels_of_a_map_of_others_are_torchs_business(channels, shuffled, ran):
    with pytest.raises(RuntimeError, match="channels"):
        Conv3x3(16, 12 if shuffled else 3)(maps(2, channels, 6, 6), shuffled=shuffled)
    assert ran == []


@pytest.mark.parametrize("out", [2, 6])
def test_few_channels_that_make_no_corners_are_torchs_business(out, ran):
    with pytest.raises(RuntimeError, match="divisible"):
        Conv3x3(16, out)(maps(2, 16, 6, 6), shuffled=True)
    assert ran == []


def test_a_window_larger_than_the_map_is_torchs_business(ran):
    with pytest.raises(RuntimeError, match="Kernel size"):
        Conv2d(16, 16, 4, 2)(maps(4, 16, 3, 3))
    assert ran == []


@pytest.mark.parametrize("kind", [Conv2d, ConvTranspose2d])
def test_no_memory(kind, monkeypatch):
    class Failing:
        patches_pack = patches_gather = patches_scatter = patches_weights = staticmethod(lambda *a: 1)

    layer, x = kind(16, 8, 4, 2, 1), maps(3, 16, 6, 6)
    result = layer(x)
    monkeypatch.setattr(patches, "_kernels", Failing)
    with pytest.raises(MemoryError, match="convolution"):
        layer(x)
    with pytest.raises(MemoryError, match="convolution"):
        result.sum().backward()
