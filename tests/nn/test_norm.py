"""Group norm of channels-last maps: values and gradients against torch's own operations."""

import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genkit.nn import norm as module
from genkit.nn import norm_cpp
from genkit.nn.norm import GroupNorm, norm_silu, normalise


def reference(
    norm: GroupNorm,
    x: Tensor,
    added: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    activate: bool,
) -> Tensor:
    """The same by torch's kernels on a contiguous map."""
    x = x.contiguous()
    h = x if added is None else x + added[:, :, None, None]
    h = F.group_norm(h, norm.num_groups, norm.weight, norm.bias, norm.eps)
    if scale is not None and shift is not None:
        h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
    return F.silu(h) if activate else h


def setting(
    groups: int = 4,
    told: str = "",
    size: tuple[int, int] = (3, 5),
    images: int = 5,
    dtype: torch.dtype = torch.float64,
) -> tuple[GroupNorm, list[Tensor | None]]:
    """A norm of 8 channels with random weights, and [x, added, scale, shift] as `told` wants."""
    generator = torch.Generator().manual_seed(groups)
    norm = GroupNorm(groups, 8, eps=1e-6)
    for parameter in norm.parameters():
        parameter.data = torch.randn(8, generator=generator)
    x = torch.randn(images, 8, *size, generator=generator) + 0.5
    vectors = [torch.randn(images, 8, generator=generator) for _ in range(3)]
    wanted = ("added" in told, "scale" in told, "scale" in told)
    tensors = [x.contiguous(memory_format=torch.channels_last)]
    tensors += [v if w else None for v, w in zip(vectors, wanted)]
    return norm.to(dtype), [t if t is None else t.to(dtype).requires_grad_() for t in tensors]


CASES = list(product((1, 4, 8), ("", "added", "scale", "added scale"), (False, True)))


@pytest.fixture(autouse=True)
def two_images_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five images of 15 pixels go through in parts of 2, 2 and 1."""
    monkeypatch.setattr(module, "_PART", 2 * 4 * 15 * 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)


@pytest.mark.parametrize(("groups", "told", "activate"), CASES)
def test_values_and_gradients_equal_torchs(groups: int, told: str, activate: bool):
    """Oracle: F.group_norm and silu on the contiguous map, in float64: equal to rounding."""
    norm, given = setting(groups, told)
    leaves = [t for t in (*given, norm.weight, norm.bias) if t is not None]
    want = reference(norm, *given, activate)
    got = normalise(norm, *given, activate=activate)
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert type(got.grad_fn).__name__ == "_NormaliseBackward"
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    weights = torch.randn(want.shape, dtype=want.dtype, generator=torch.Generator().manual_seed(9))
    for a, b in zip(*(torch.autograd.grad((y * weights).sum(), leaves) for y in (got, want))):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    with torch.inference_mode():
        torch.testing.assert_close(normalise(norm, *given, activate=activate), want, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("told", ["added", "scale"])
def test_first_and_second_derivatives(told: str):
    """Oracle: finite differences in float64 (gradcheck, gradgradcheck)."""
    norm, given = setting(told=told, size=(2, 1), images=3)
    leaves = [t for t in (*given, norm.weight, norm.bias) if t is not None]

    def f(*_: Tensor) -> Tensor:
        return norm_silu(norm, *given)

    assert torch.autograd.gradcheck(f, leaves)
    assert torch.autograd.gradgradcheck(f, leaves)


def test_float32_is_as_exact_as_torchs():
    """Oracle: float64. 24 bits keep 6e-8 a rounding; 1e-5 of the largest value allows for the sums."""
    norm, given = setting(told="added", dtype=torch.float32, size=(16, 16))
    exact, precise = setting(told="added", size=(16, 16))
    got, want = norm_silu(norm, *given), reference(exact, *precise, activate=True)
    assert (got - want).abs().max() < 1e-5 * want.abs().max()
    (dx,), (wanted,) = (torch.autograd.grad(y.sum(), t[0]) for y, t in ((got, given), (want, precise)))
    assert (dx - wanted).abs().max() < 1e-5 * wanted.abs().max()


def test_a_large_mean_does_not_cancel():
    """Oracle: float64. A mean 1000 times the deviation leaves 1e-4 of float32's 6e-8 in the input itself; a
    variance by differences would keep no digit."""
    norm, (x, *_) = setting(groups=1, dtype=torch.float32, size=(16, 16))
    far = (x.detach() + 1000).contiguous(memory_format=torch.channels_last)
    want = reference(norm.double(), far.double(), None, None, None, False)
    assert (normalise(norm.float(), far) - want).abs().max() < 1e-3


def test_constant_maps_stay_finite():
    """Oracle: a map without variance is the bias, and its gradient is finite."""
    norm, (x, *_) = setting(dtype=torch.float32)
    for value in (0.0, 3.0):
        flat = torch.full_like(x, value, requires_grad=True)
        out = normalise(norm, flat)
        torch.testing.assert_close(out, norm.bias[:, None, None].expand_as(out), rtol=0, atol=1e-3)
        out.square().sum().backward()
        assert flat.grad.isfinite().all()


def test_bfloat16_maps_have_float32_statistics():
    """Oracle: float32 arithmetic on the bf16 map. The result is rounded once, half a bf16 step or 0.4 %; so
    are the SiLU's gradient, on the way, and each gradient."""
    norm, given = setting(told="scale", dtype=torch.float32)
    low = [t.detach().bfloat16().requires_grad_() if t is not None else None for t in given]
    high = [t.detach().float().requires_grad_() if t is not None else None for t in low]
    got, want = norm_silu(norm, *low), reference(norm, *high, activate=True)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want, rtol=0.004, atol=1e-6)
    got.float().sum().backward()
    want.sum().backward()
    for a, b in zip(low, high):
        if a is not None:
            assert a.grad.dtype == torch.bfloat16
            torch.testing.assert_close(a.grad.float(), b.grad, rtol=0.008, atol=0.01 * b.grad.std().item())


@pytest.mark.parametrize("shape", [(2, 8, 4, 4), (2, 8, 7), (0, 8, 4, 4)])
def test_other_maps_go_to_torch(shape: tuple[int, ...]):
    """Oracle: nn.GroupNorm, bit for bit."""
    norm, _ = setting(dtype=torch.float32)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    want = torch.nn.GroupNorm.forward(norm, x)
    assert torch.equal(norm(x), want)


def test_a_norm_of_another_kind():
    """Oracle: the formula written out around the identity."""
    _, (x, added, scale, shift) = setting(told="added scale")
    e, a, b = (v[:, :, None, None] for v in (added, scale, shift))
    want = F.silu((x + e) * (1 + a) + b)
    torch.testing.assert_close(norm_silu(torch.nn.Identity(), x, added, scale, shift), want)


def test_an_image_does_not_depend_on_its_batch() -> None:
    """Oracle: the same image alone, to the bit, beside one whose variance has to be summed again."""
    norm = GroupNorm(4, 8)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 3, 5, generator=generator).contiguous(memory_format=torch.channels_last)
    x[1] = 1000 + 1e-3 * x[1]
    with torch.no_grad():
        assert torch.equal(norm_silu(norm, x)[:1], norm_silu(norm, x[:1]))


@pytest.fixture
def kernels(spy):
    """The names of the passes that norm.cpp did."""
    if norm_cpp._kernels() is None:
        pytest.skip("no C++ compiler here: torch's operations are used")
    return spy(norm_cpp, "forward", "backward")


# groups of 2, 16 and 24 channels and one of all; vectors of channels by fours and what is left; few pixels,
# and more than are summed at once; a mean so large that squares cancel
@pytest.mark.parametrize("groups, channels", [(8, 16), (3, 48), (2, 48), (1, 80), (5, 80)])
@pytest.mark.parametrize("told", ["", "added", "scale", "added scale"])
@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize("size, mean, threads", [((3, 5), 0.5, 1), ((9, 15), 0.5, 2), ((3, 5), 100.0, 2)])
def test_kernels_equal_double_precision(
    groups, channels, told, activate, size, mean, threads, kernels, monkeypatch
):
    """Oracle: torch's operations in float64, on the same numbers."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    torch.manual_seed(groups + channels)
    norm = GroupNorm(groups, channels, eps=1e-6)
    for parameter in norm.parameters():
        parameter.data = torch.randn(channels)
    x = (torch.randn(3, channels, *size) + mean).contiguous(memory_format=torch.channels_last)
    added, scale, shift = (torch.randn(3, channels) for _ in range(3))
    given = [x, added if "added" in told else None, *((scale, shift) if "scale" in told else (None, None))]
    slope = torch.randn(3, channels, *size)

    def run(norm, given, slope, function):
        given = [None if t is None else t.clone().requires_grad_() for t in given]
        result = function(norm, *given, activate)
        leaves = [t for t in (*given, *norm.parameters()) if t is not None]
        return result, *torch.autograd.grad(result, leaves, slope)

    found = run(norm, given, slope, normalise)
    assert kernels == ["forward", "backward"]
    wide = [None if t is None else t.double() for t in given]
    expected = run(copy.deepcopy(norm).double(), wide, slope.double(), reference)
    # the statistics of numbers around 100 lose a factor of 100
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= (3e-6 if mean < 1 else 2e-4) * b.abs().max()


# parts that end within a group, between groups, and between vectors that a pass takes at once
@pytest.mark.parametrize("groups, split, channels", [(3, 16, 48), (2, 16, 32), (1, 80, 96), (5, 32, 80)])
@pytest.mark.parametrize("told, activate", [("", False), ("added scale", True)])
@pytest.mark.parametrize("mean", [0.5, 100.0])
def test_two_maps_equal_the_joined_one_in_double_precision(
    groups, split, channels, told, activate, mean, kernels, monkeypatch
):
    """Oracle: torch's operations in float64 on the joined map."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    torch.manual_seed(groups + channels)
    norm = GroupNorm(groups, channels, eps=1e-6)
    for parameter in norm.parameters():
        parameter.data = torch.randn(channels)
    x = (torch.randn(3, channels, 9, 15) + mean).split([split, channels - split], 1)
    x, more = (t.contiguous(memory_format=torch.channels_last) for t in x)
    told = [torch.randn(3, channels) if told else None for _ in range(3)]
    slope = torch.randn(3, channels, 9, 15)

    def run(norm, slope, tensors, function):
        tensors = [None if t is None else t.clone().requires_grad_() for t in tensors]
        result = function(norm, *tensors)
        leaves = [t for t in (*tensors, *norm.parameters()) if t is not None]
        return result, *torch.autograd.grad(result, leaves, slope)

    found = run(norm, slope, (x, more, *told), lambda n, x, m, *t: normalise(n, x, *t, activate, more=m))
    assert kernels == ["forward", "backward"]
    expected = run(
        copy.deepcopy(norm).double(),
        slope.double(),
        [None if t is None else t.double() for t in (x, more, *told)],
        lambda n, x, m, *t: reference(n, torch.cat([x, m], 1), *t, activate),
    )
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= (3e-6 if mean < 1 else 2e-4) * b.abs().max()


@pytest.mark.parametrize("pair", [False, True])
def test_what_kernels_found_serves_torchs_backward_pass(pair, kernels, monkeypatch):
    """Oracle: the kernels' own gradients. A gradient may come that they do not take."""
    torch.manual_seed(0)
    norm = GroupNorm(4, 48)
    x, more = (torch.randn(3, c, 4, 5).contiguous(memory_format=torch.channels_last) for c in (16, 32))
    maps = [x, more] if pair else [torch.cat([x, more], 1)]
    told = [torch.randn(3, 48) for _ in range(3)]
    leaves = [t.requires_grad_() for t in (*maps, *told, *norm.parameters())]
    slope = torch.randn(3, 48, 4, 5)

    def result():
        return normalise(norm, maps[0], *told, activate=True, more=maps[1] if pair else None)

    expected = torch.autograd.grad(result(), leaves, slope)
    y = result()
    monkeypatch.setattr(norm_cpp, "suits", lambda *a: False)
    for found, wanted in zip(torch.autograd.grad(y, leaves, slope), expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert kernels == ["forward", "backward", "forward"]


@pytest.mark.parametrize("case", ["as it is", "no kernel", "layout", "dtype", "part of a vector"])
def test_two_maps_that_kernels_do_not_take_are_joined(case, monkeypatch):
    """Oracle: torch's operations on the joined map; a gradient through the gradient too."""
    torch.manual_seed(0)
    norm = GroupNorm(4, 48)
    parts = (8, 40) if case == "part of a vector" else (16, 32)
    x, more = (torch.randn(3, c, 4, 5).contiguous(memory_format=torch.channels_last) for c in parts)
    if case == "no kernel":
        monkeypatch.setattr(norm_cpp, "_kernels", lambda: None)
    elif case == "layout":
        more = more.contiguous()
    elif case == "dtype":
        x, more, norm = x.double(), more.double(), norm.double()
    tensors = [x.requires_grad_(), more.requires_grad_()]
    for create_graph in (False, True):
        found, expected = (
            torch.autograd.grad(y.pow(3).sum(), tensors, create_graph=create_graph)
            for y in (
                normalise(norm, x, more=more),
                reference(norm, torch.cat([x, more], 1), None, None, None, False),
            )
        )
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("used", ["both", "the norm alone", "the map alone"])
@pytest.mark.parametrize("activate", [False, True])
@pytest.mark.parametrize("two", [False, True])
@pytest.mark.parametrize("kernel", [False, True])
@pytest.mark.parametrize("create_graph", [False, True])
def test_what_is_read_beside_a_norm(used, activate, two, kernel, create_graph, kernels, monkeypatch):
    """Oracle: autograd's own sum of the gradients, in float64."""
    torch.manual_seed(0)
    if not kernel:
        monkeypatch.setattr(norm_cpp, "_kernels", lambda: None)
    norm = GroupNorm(4, 48)
    x, more = (torch.randn(3, c, 4, 5).contiguous(memory_format=torch.channels_last) for c in (16, 32))
    maps = [x, more] if two else [torch.cat([x, more], 1)]
    slopes = torch.randn(3, 48, 4, 5).split([t.shape[1] for t in maps], 1)

    def gradients(norm, maps, slopes, beside):
        maps = [t.detach().requires_grad_() for t in maps]
        h, *read = beside(norm, *maps, activate=activate)
        value = h.pow(3).sum() if used != "the map alone" else 0
        if used != "the norm alone":
            value = value + sum((t.sin() * s).sum() for t, s in zip(read, slopes))
        leaves = [*maps, *(norm.parameters() if used != "the map alone" else ())]
        return torch.autograd.grad(value, leaves, create_graph=create_graph)

    def apart(norm, x, more=None, activate=True):
        return normalise(norm, x, more=more, activate=activate), x, more

    found = gradients(norm, maps, slopes, module.beside)
    backward = kernel and used != "the map alone" and not create_graph
    assert kernels == ["forward"] * kernel + ["backward"] * backward
    wide = [t.double() for t in maps], [t.double() for t in slopes]
    expected = gradients(copy.deepcopy(norm).double(), *wide, apart)
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 3e-6 * b.abs().max()


def test_second_gradients_of_what_is_read_beside_a_norm():
    """Oracle: autograd's own sum of the gradients, in float64."""
    torch.manual_seed(0)
    norm = GroupNorm(4, 32)
    x = torch.randn(3, 32, 4, 5).contiguous(memory_format=torch.channels_last)

    def second(norm, x, beside):
        x = x.detach().requires_grad_()
        h, read, _ = beside(norm, x)
        (first,) = torch.autograd.grad((h.pow(2) * read.sin()).sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [x, norm.weight])

    found = second(norm, x, module.beside)
    expected = second(copy.deepcopy(norm).double(), x.double(), lambda n, x: (norm_silu(n, x), x, None))
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("change", ["more threads than images", "another layout"])
@pytest.mark.parametrize("two", [False, True])
def test_backward_where_the_saved_maps_or_the_threads_have_changed(change, two, kernels, monkeypatch):
    """Oracle: the same without the change. Saved tensors that went to disk and back have a layout of their
    own."""
    threads = [2]
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads[0])
    torch.manual_seed(0)
    norm = GroupNorm(4, 48)
    parts = (16, 32) if two else (48,)
    maps = [torch.randn(3, c, 4, 5).contiguous(memory_format=torch.channels_last) for c in parts]

    def gradients():
        threads[0] = 2
        tensors = [t.detach().requires_grad_() for t in maps]
        h, *read = module.beside(norm, *tensors)
        value = h.pow(3).sum() + sum(t.sin().sum() for t in read if t is not None)
        threads[0] = 4 if change == "more threads than images" else 2
        return torch.autograd.grad(value, [*tensors, norm.weight])

    def packed(t):
        return t.detach().clone(memory_format=torch.contiguous_format)

    if change == "another layout":
        with torch.autograd.graph.saved_tensors_hooks(packed, lambda t: t):
            found = gradients()
    else:
        found = gradients()
        change = ""
    for a, b in zip(found, gradients(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_two_maps_of_different_sizes():
    x, more = (torch.randn(3, 16, s, 4).contiguous(memory_format=torch.channels_last) for s in (4, 5))
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        normalise(GroupNorm(4, 32), x, more=more)


@pytest.mark.parametrize(
    "case", ["other channels", "a row for all", "scale alone", "float64 vector", "layout"]
)
def test_kernels_leave_the_rest_to_torch(case, kernels, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    norm = GroupNorm(4, 16)
    x = torch.randn(3, 16, 4, 4).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        if case == "other channels":
            with pytest.raises(RuntimeError):
                norm(torch.randn(3, 32, 4, 4).contiguous(memory_format=torch.channels_last))
        elif case == "a row for all":
            row = torch.randn(1, 16)
            assert torch.allclose(
                normalise(norm, x, row), reference(norm, x, row, None, None, False), atol=1e-5
            )
        elif case == "scale alone":
            assert torch.allclose(normalise(norm, x, scale=torch.ones(3, 16)), norm(x), atol=1e-5)
            kernels.clear()  # the second one's
        elif case == "float64 vector":
            normalise(norm, x, torch.randn(3, 16).double())
        else:
            norm(x.contiguous())
    assert kernels == []


def test_gradients_with_a_graph_of_a_norm_used_twice():
    norm = GroupNorm(4, 16)
    norm.weight.data.normal_()
    x = torch.randn(3, 16, 4, 4).contiguous(memory_format=torch.channels_last)

    def gradients(function):
        y = function(norm, function(norm, x).sin()).pow(3).sum()
        return torch.autograd.grad(y, list(norm.parameters()), create_graph=True)

    def plain(norm, x):
        return F.group_norm(x, 4, norm.weight, norm.bias, norm.eps)

    for a, b in zip(gradients(normalise), gradients(plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
