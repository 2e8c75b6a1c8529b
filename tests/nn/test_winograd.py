"""3x3 convolutions in few multiplications. The oracle is torch's convolution: in float64 for values, in
float32 for gradients and the rest."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F

from genkit.nn import patches, winograd
from genkit.nn.winograd import Conv3x3

# relative to the largest value: float32 has 2^-24 = 6e-8, the transforms lose some two or three digits of it
CLOSE = 3e-5


pytestmark = pytest.mark.usefixtures("winograd_kernels")


@pytest.fixture
def ran(spy):
    """The names of the kernels that ran, in order."""
    return spy(winograd, "_run", "_weight_gradients")


def layer_and_maps(channels, out, n, height, width):
    torch.manual_seed(channels + out + n + height + width)
    layer = Conv3x3(channels, out).to(memory_format=torch.channels_last)
    x = torch.randn(n, channels, height, width).to(memory_format=torch.channels_last)
    return layer, x


def assert_near(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= CLOSE * expected.abs().max()


# whole tiles, torn ones at both edges, parts of one, panels of both widths, few and many tiles, two threads
@pytest.mark.parametrize(
    "channels, out, n, height, width, threads",
    [
        (16, 16, 3, 8, 8, 1),
        (32, 48, 5, 7, 13, 1),
        (48, 32, 12, 2, 3, 1),
        (16, 80, 4, 5, 29, 2),
        (128, 64, 1, 32, 32, 2),
        (512, 512, 3, 8, 8, 1),
        (32, 9, 5, 9, 9, 1),
        (16, 37, 5, 9, 9, 2),
        (32, 32, 5, 14, 10, 2),  # the last two tiles have 3 pixels
        (32, 32, 9, 6, 5, 1),  # all of them, and the last has 2
    ],
)
def test_equals_the_sum_in_double_precision(channels, out, n, height, width, threads, ran):
    layer, x = layer_and_maps(channels, out, n, height, width)
    torch.set_num_threads(threads)
    expected = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    with torch.no_grad():
        found = layer(x)
    assert ran == ["_run"]
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert_near(found.double(), expected)


@pytest.mark.parametrize("height, width", [(4, 4), (7, 3)])
def test_doubled_is_the_convolution_of_repeated_pixels(height, width, ran):
    layer, x = layer_and_maps(32, 48, 6, height, width)
    repeated = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3).double()
    with torch.no_grad():
        found = layer(x, doubled=True)
    assert ran == ["_run"]
    assert_near(found.double(), F.conv2d(repeated, layer.weight.double(), layer.bias.double(), padding=1))


@pytest.mark.parametrize("out", [48, 9])  # the kernel adds to whole vectors of channels
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_plus_is_added(out, layout, direct, ran):
    layer, x = layer_and_maps(16, out, 12, 8, 9)
    plus = torch.randn(12, out, 8, 9).contiguous(memory_format=layout).requires_grad_()

    def value_and_gradients():
        y = layer(x, plus=plus)
        return y, *torch.autograd.grad(y.square().sum(), [plus, layer.weight])

    for found, expected in zip(value_and_gradients(), direct(value_and_gradients), strict=True):
        assert_near(found, expected)
    assert ran == ["_run", "_weight_gradients"]
    with torch.no_grad():
        assert_near(layer(x, plus=plus), layer(x) + plus)


@pytest.mark.parametrize("out", [48, 9])
@pytest.mark.parametrize("doubled", [False, True])
@pytest.mark.parametrize("sums", ["a part a thread", "one part"])
@pytest.mark.parametrize("x_too", [True, False])
@pytest.mark.parametrize("height, width", [(9, 14), (7, 12)])  # both have tiles of 4 pixels and of 3
def test_gradients_are_torchs(direct, ran, height, width, x_too, sums, doubled, out, monkeypatch):
    torch.set_num_threads(2)
    if sums == "one part":
        monkeypatch.setattr(winograd, "_SUMS", 1)
    layer, x = layer_and_maps(32, out, 12, height, width)
    x.requires_grad_(x_too)
    wanted = [layer.weight, layer.bias, *([x] if x_too else [])]
    slope = torch.randn(12, out, height << doubled, width << doubled)

    def gradients():
        return torch.autograd.grad((layer(x, doubled=doubled) * slope).sum(), wanted)

    for found, expected in zip(gradients(), direct(gradients), strict=True):
        assert_near(found, expected)
    assert ran == ["_run", *(["_run"] if x_too else []), "_weight_gradients"]


@pytest.mark.parametrize("learns", ["weight", "bias"])
def test_gradients_of_saved_maps_in_another_layout(learns, direct):
    layer, x = layer_and_maps(32, 20, 6, 9, 14)
    layer.requires_grad_(False)
    wanted = getattr(layer, learns).requires_grad_()

    def gradient():
        def packed(t):
            return t.detach().clone(memory_format=torch.contiguous_format)

        with torch.autograd.graph.saved_tensors_hooks(packed, lambda t: t):
            return torch.autograd.grad(layer(x).square().sum(), wanted)[0]

    assert_near(gradient(), direct(gradient))


# corners of 16 channels, which fill no panel, of 32, which fill half of one, of 64; whole tiles and torn ones
@pytest.mark.parametrize("out", [64, 128, 256])
@pytest.mark.parametrize("height, width", [(8, 8), (7, 9)])
def test_shuffled_is_the_pixel_shuffle(out, height, width, direct, ran):
    layer, x = layer_and_maps(32, out, 20, height, width)
    x.requires_grad_()
    slope = torch.randn(20, out // 4, 2 * height, 2 * width)

    def value_and_gradients():
        y = layer(x, shuffled=True)
        return y, *torch.autograd.grad((y * slope).sum(), [x, *layer.parameters()])

    found = value_and_gradients()
    assert ran == ["_run", "_run", "_weight_gradients"]
    assert found[0].is_contiguous(memory_format=torch.channels_last)
    assert_near(found[0].double(), F.pixel_shuffle(F.conv2d(*as_double(layer, x), padding=1), 2))
    for one, expected in zip(found, direct(value_and_gradients), strict=True):
        assert_near(one, expected)


def as_double(layer, x):
    return x.double(), layer.weight.double(), layer.bias.double()


@pytest.mark.parametrize("learns", ["bias", "x with a graph"])
def test_some_gradients_of_a_shuffled_map(learns, direct):
    layer, x = layer_and_maps(16, 64, 12, 8, 9)
    layer.requires_grad_(False)
    wanted = layer.bias.requires_grad_() if learns == "bias" else x.requires_grad_()

    def gradient():
        y = layer(x, shuffled=True)
        return torch.autograd.grad(y.square().sum(), wanted, create_graph=learns != "bias")[0]

    assert_near(gradient(), direct(gradient))


def test_frozen_weights_are_kept_for_either_order_of_channels():
    layer, x = layer_and_maps(16, 64, 6, 8, 9)
    layer.requires_grad_(False)
    for _ in range(2):
        assert_near(layer(x, shuffled=True), F.pixel_shuffle(layer(x), 2))
    assert len(layer._kept) == 2


@pytest.mark.parametrize("out, layout", [(96, torch.channels_last), (64, torch.contiguous_format)])
def test_shuffled_by_torch_where_the_kernels_cannot(out, layout):
    layer, x = layer_and_maps(16, out, 12, 8, 9)
    x = x.contiguous(memory_format=layout)
    assert_near(layer(x, shuffled=True), F.pixel_shuffle(F.conv2d(x, layer.weight, layer.bias, padding=1), 2))


@pytest.mark.parametrize("other", [{"plus": torch.zeros(2, 16, 16, 16)}, {"doubled": True}])
def test_shuffled_is_alone(other):
    layer, x = layer_and_maps(16, 64, 2, 8, 8)
    with pytest.raises(ValueError, match="shuffled"):
        layer(x, shuffled=True, **other)


@pytest.mark.parametrize("out, shuffled", [(1, False), (64, True), (96, True)])
def test_a_weight_that_is_made_is_made_once_and_hooks_run_once(out, shuffled):
    layer, x = layer_and_maps(16, out, 20, 8, 8)
    made, hooked = [], []

    class Same(torch.nn.Module):
        def forward(self, weight):
            made.append(1)
            return weight * 1.0

    torch.nn.utils.parametrize.register_parametrization(layer, "weight", Same())
    layer.register_forward_hook(lambda *a: hooked.append(1))
    made.clear()
    layer(x, shuffled=shuffled)
    assert len(made) == (2 if out == 96 else 1)  # 96 are no corners of vectors: the layer is asked again
    assert len(hooked) == 1


# few channels on either side: products of patches
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "channels, out, shuffled",
    [
        (32, 1, False),
        (48, 6, False),
        (1, 32, False),
        (5, 37, False),
        (32, 4, True),
        (32, 12, True),
        (3, 64, True),
    ],
)
def test_thin_maps(channels, out, shuffled, bias, direct, ran, spy):
    patches._kernels()  # which try themselves the first time
    by_patches = spy(patches, "_gather", "_scatter")
    layer, x = layer_and_maps(channels, out, 5, 9, 7)
    if not bias:
        layer.bias = None
    x.requires_grad_()

    def value_and_gradients():
        y = layer(x, shuffled=shuffled)
        return y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])

    for found, expected in zip(value_and_gradients(), direct(value_and_gradients), strict=True):
        assert_near(found, expected)
    assert ran == []
    assert sorted(by_patches) == ["_gather", "_scatter"]


def test_gradients_are_the_same_every_time():
    torch.set_num_threads(2)
    layer, x = layer_and_maps(32, 32, 16, 12, 12)
    first, second = (torch.autograd.grad(layer(x).square().sum(), layer.weight)[0] for _ in range(2))
    assert torch.equal(first, second)


def test_gradient_of_an_expanded_gradient(direct, ran):
    layer, x = layer_and_maps(16, 16, 16, 8, 8)
    x.requires_grad_()

    def gradient():
        return torch.autograd.grad(layer(x).sum(), x)[0]  # the gradient of a sum is one number, expanded

    assert_near(gradient(), direct(gradient))
    assert ran[:2] == ["_run", "_run"]


def test_gradients_of_a_gradient_of_a_layer_used_twice(direct, ran):
    layer, x = layer_and_maps(16, 16, 16, 8, 8)

    def first_gradients():  # with a graph: one path to the weights is through x
        y = layer(layer(x).sin()).square().sum()
        return torch.autograd.grad(y, list(layer.parameters()), create_graph=True)

    for found, expected in zip(first_gradients(), direct(first_gradients), strict=True):
        assert_near(found, expected)
    assert ran == ["_run", "_run"]


def test_only_plus_learns_with_a_graph(ran):
    layer, x = layer_and_maps(16, 16, 16, 8, 8)
    layer.requires_grad_(False)
    plus = torch.zeros(16, 16, 8, 8, requires_grad=True)
    (found,) = torch.autograd.grad(layer(x, plus=plus).square().sum(), plus, create_graph=True)
    assert_near(found, 2 * layer(x))
    assert ran == ["_run", "_run"]


@pytest.mark.parametrize("doubled", [False, True])
def test_gradients_of_a_gradient_are_torchs(direct, ran, doubled):
    layer, x = layer_and_maps(16, 32, 16, 8, 8)
    x.requires_grad_()

    def penalty_gradient():
        (g,) = torch.autograd.grad(layer(x, doubled=doubled).square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), [x, layer.weight])

    for found, expected in zip(penalty_gradient(), direct(penalty_gradient), strict=True):
        assert_near(found, expected)
    # forward, and the value's own part in the gradient; the gradient of the gradient is torch's
    assert ran == ["_run", "_run", "_weight_gradients"]


def test_an_image_does_not_depend_on_its_batch():
    layer, x = layer_and_maps(32, 32, 24, 12, 12)
    with torch.no_grad():
        whole = layer(x)
        parts = torch.cat([layer(part) for part in x.split([2, 5, 17])])
        alone = layer(x[:1])  # too few tiles for the kernels
    assert torch.equal(whole, parts)
    assert_near(alone, whole[:1])


def test_kept_weights_follow_the_parameters():
    layer, x = layer_and_maps(16, 16, 4, 8, 8)
    layer.requires_grad_(False)
    layer(x)
    assert layer._kept
    other = Conv3x3(16, 16).requires_grad_(False)

    def assert_follows():
        assert_near(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1))

    layer.weight.mul_(2)  # in place, as an average of weights is put in
    assert_follows()
    layer.load_state_dict(other.state_dict())
    assert_follows()
    layer.load_state_dict({k: 3 * v for k, v in other.state_dict().items()}, assign=True)
    assert_follows()
    for _ in range(3):  # memory that was given back may be given out again
        layer.weight.data = layer.weight.data + 1
        assert_follows()
    layer.double().float()
    assert_follows()


def test_frozen_weights_are_transformed_once_each_way(direct, monkeypatch):
    layer, x = layer_and_maps(16, 16, 16, 8, 8)
    layer.requires_grad_(False)
    x.requires_grad_()
    made, transform = [], winograd._transform
    monkeypatch.setattr(winograd, "_transform", lambda *a: (made.append(a[2:]), transform(*a))[1])

    def gradient():
        return torch.autograd.grad(layer(x).square().sum(), x)[0]

    for _ in range(2):
        assert_near(gradient(), direct(gradient))
    assert made == [(winograd.Form(), False), (winograd.Form(), True)]
    layer.weight.mul_(2)
    assert_near(gradient(), direct(gradient))


def test_copies_and_pickles_leave_the_kept_weights_behind():
    layer, x = layer_and_maps(16, 16, 4, 8, 8)
    layer.requires_grad_(False)
    expected = layer(x)
    size = len(pickle.dumps(Conv3x3(16, 16)))
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert not other._kept
        assert torch.equal(other(x), expected)
    assert len(pickle.dumps(layer)) < 1.1 * size


@pytest.mark.parametrize("plus", [torch.ones(1, 16, 1, 1), torch.ones(12, 16, 8, 8).double()])
def test_a_plus_of_another_kind_is_added_by_torch(plus, direct):
    layer, x = layer_and_maps(16, 16, 12, 8, 8)

    def value_and_gradient():
        y = layer(x, plus=plus)
        return y, *torch.autograd.grad(y.square().sum(), layer.weight)

    for found, expected in zip(value_and_gradient(), direct(value_and_gradient), strict=True):
        assert found.dtype == expected.dtype
        assert_near(found, expected)


def test_memory_of_another_kind_is_torchs_business(ran):
    layer, x = layer_and_maps(16, 16, 12, 8, 8)
    layer.requires_grad_(False)
    layer.bias.data = layer.bias.data.bfloat16()
    with pytest.raises(RuntimeError, match="type"):
        layer(x)
    Conv3x3(16, 16).to("meta")(x)  # whatever torch makes of it
    assert ran == []


def test_transforms_of_functions_go_through_torch(direct):
    layer, x = layer_and_maps(16, 16, 12, 8, 8)

    def gradient():
        return torch.func.grad(lambda x: layer(x).square().sum())(x)

    assert_near(gradient(), direct(gradient))


def test_no_images():
    layer, x = layer_and_maps(16, 16, 12, 8, 8)
    assert layer(x[:0]).shape == (0, 16, 8, 8)


@pytest.mark.parametrize(
    "case",
    [
        "few tiles",
        "few tiles with gradients",
        "odd channels",
        "layout",
        "double",
        "autocast",
        "large",
        "inference weights",
    ],
)
def test_what_does_not_suit_goes_through_torch(case, ran):
    layer, x = layer_and_maps(16, 16, 4, 8, 8)
    learns = case == "few tiles with gradients"
    with torch.set_grad_enabled(learns), torch.autocast("cpu", enabled=case == "autocast"):
        if case == "few tiles":
            x = x[:2]
        elif case == "odd channels":
            layer, x = layer_and_maps(24, 24, 4, 8, 8)
        elif case == "layout":
            x = x.contiguous()
        elif case == "double":
            layer, x = layer.double(), x.double()
        elif case == "large":
            layer, x = layer_and_maps(1024, 512, 3, 8, 8)
        elif case == "inference weights":
            with torch.inference_mode():
                layer = Conv3x3(16, 16).requires_grad_(False)
                assert_near(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1))
            assert not layer._kept  # whether they change cannot be seen
            return
        found = layer(x)
        expected = F.conv2d(x, layer.weight, layer.bias, padding=1)
    assert ran == []
    assert torch.equal(found, expected)


def test_parameters_are_those_of_torchs_layer():
    torch.manual_seed(0)
    ours = Conv3x3(16, 32)
    torch.manual_seed(0)
    theirs = torch.nn.Conv2d(16, 32, 3, padding=1)
    ours.load_state_dict(theirs.state_dict())  # the same names and shapes
    torch.manual_seed(0)
    for a, b in zip(Conv3x3(16, 32).parameters(), theirs.parameters(), strict=True):
        assert torch.equal(a, b)
