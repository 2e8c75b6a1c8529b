"""genkit.nn.attention: oracle is torch's own attention in float64; its float32 errors set the bounds."""

import functools

import pytest
import torch

from genkit.nn import attention
from genkit.nn.attention import attend


@pytest.fixture(autouse=True)
def compiled():
    if attention._kernels() is None:
        pytest.skip("no C++ compiler here: torch's attention is used")


@pytest.fixture
def ran(spy):
    """The names of the kernels that ran, in order."""
    return spy(attention, "_forward", "_backward")


def maps(b, queries, keys, channels, scale=1.0):
    torch.manual_seed(b + queries + keys + channels)
    return [scale * torch.randn(b, length, channels) for length in (queries, keys, keys)]


def exact(tensors, heads):
    return attention._plain(*(t.double() for t in tensors), heads)


def assert_near(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.fixture
def heads_of_any_size(monkeypatch):
    monkeypatch.setattr(attention, "_LARGEST_BACK", 64)
    monkeypatch.setattr(attention, "_LARGEST", 64)


# whole vectors of queries and keys and parts of one, heads of all sizes, other keys than queries
SHAPES = [(2, 64, 64, 96, 12), (3, 49, 49, 32, 1), (2, 1, 1, 6, 2), (2, 33, 7, 30, 3), (1, 5, 130, 64, 4)]


@pytest.mark.parametrize("shape", SHAPES)
def test_values_and_gradients_are_torchs(ran, heads_of_any_size, shape):
    *sizes, heads = shape
    tensors = [t.requires_grad_() for t in maps(*sizes)]
    slope = torch.randn(*tensors[0].shape)
    expected = exact(tensors, heads)
    wanted = torch.autograd.grad((expected * slope).sum(), tensors)
    found = attend(*tensors, heads)
    assert_near(found, expected)
    for mine, theirs in zip(torch.autograd.grad((found * slope).sum(), tensors), wanted, strict=True):
        assert_near(mine, theirs)
    with torch.no_grad():
        assert torch.equal(attend(*tensors, heads), found)
    assert ran == ["_forward", "_backward", "_forward"]


def test_scores_beyond_the_exponential(ran):
    tensors = maps(2, 20, 40, 16, scale=10.0)  # scores up to some 400
    assert_near(attend(*tensors, 2), exact(tensors, 2))
    far = maps(2, 20, 40, 16, scale=1e7)  # differences of 1e14: beyond what the reduction can take
    assert_near(attend(*far, 2), exact(far, 2))
    same = [torch.full_like(t, 1e3) for t in tensors]
    assert torch.equal(attend(*same, 2), same[0])
    assert ran == ["_forward"] * 3


def test_gradients_at_large_scores_are_as_exact_as_torchs():
    tensors = [t.requires_grad_() for t in maps(2, 40, 40, 16, scale=15.0)]  # scores up to some 1,000
    slope = torch.randn(2, 40, 16)

    def value_gradient(call, tensors, slope):
        return torch.autograd.grad((call(*tensors, 2) * slope).sum(), tensors)[2]

    wide = [t.detach().double().requires_grad_() for t in tensors]
    expected = value_gradient(attention._plain, wide, slope.double())
    errors = [
        (value_gradient(call, tensors, slope) - expected).abs().max() for call in (attend, attention._plain)
    ]
    assert errors[0] < 2 * errors[1]


def test_what_is_not_finite_stays_in_its_head():
    query, key, value = maps(2, 20, 20, 16)
    clean = attend(query, key, value, 2)
    key[1, 3, 2] = torch.nan
    found = attend(query, key, value, 2)
    assert found[1, :, :8].isnan().all()
    assert torch.equal(found[0], clean[0])
    assert torch.equal(found[1, :, 8:], clean[1, :, 8:])


def test_an_image_does_not_depend_on_its_batch():
    tensors = maps(6, 40, 40, 32)
    torch.set_num_threads(2)
    assert torch.equal(attend(*tensors, 4)[2:3], attend(*(t[2:3] for t in tensors), 4))


def test_gradients_of_a_gradient_are_torchs(ran):
    tensors = [t.requires_grad_() for t in maps(2, 9, 12, 16)]

    def penalty_gradient(call, tensors):
        gradients = torch.autograd.grad(call(*tensors, heads=2).square().sum(), tensors, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), tensors)

    doubles = [t.detach().double().requires_grad_() for t in tensors]
    expected = penalty_gradient(attention._twice_differentiable, doubles)
    for mine, theirs in zip(penalty_gradient(attend, tensors), expected, strict=True):
        assert_near(mine, theirs)
    # forward, and the value's own part in the gradient; the gradient of the gradient is torch's
    assert ran == ["_forward", "_backward"]


UNSUITED = {
    "double": lambda q, k, v: (q.double(), k.double(), v.double(), 32),
    "a large head": lambda q, k, v: (q, k, v, 2),
    "a head too large to learn": lambda q, k, v: (q.clone().requires_grad_(), k, v, 8),
    "one image, one head": lambda q, k, v: (q[:1, :, :32], k[:1, :, :32], v[:1, :, :32], 1),
    "nothing asked": lambda q, k, v: (q[:, :0], k, v, 32),
    "nothing to read": lambda q, k, v: (q, k[:, :0], v[:, :0], 32),
    "keys of one image for all": lambda q, k, v: (q, k[:1], v[:1], 32),
    "narrow values": lambda q, k, v: (q, k, v[:, :, :128], 32),
}


@pytest.mark.parametrize("what", UNSUITED)
def test_what_does_not_suit_goes_through_torch(ran, what):
    torch.set_num_threads(2)
    *tensors, heads = UNSUITED[what](*maps(2, 8, 8, 256))
    assert torch.equal(attend(*tensors, heads), attention._plain(*tensors, heads))
    assert ran == []


def test_heads_that_do_not_divide_the_channels_raise():
    with pytest.raises(RuntimeError):
        attend(*maps(2, 8, 8, 16), 3)


def test_under_autocast_it_is_torchs(ran):
    with torch.autocast("cpu", torch.bfloat16):
        assert attend(*maps(2, 8, 8, 16), 2).dtype == torch.bfloat16
    assert ran == []


def test_maps_with_gaps(ran):
    whole = maps(2, 20, 20, 96)[0]
    tensors = whole.chunk(3, dim=2)
    assert_near(attend(*tensors, 4), exact(tensors, 4))
    assert ran == ["_forward"]


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch's, about its own operation
def test_under_transforms_it_is_torchs(ran):
    tensors = maps(3, 8, 8, 16)
    found = torch.func.vmap(functools.partial(attend, heads=2))(*(t[:, None] for t in tensors))
    assert_near(found[:, 0], exact(tensors, 2))
    assert ran == []


def test_no_memory(monkeypatch):
    class Failing:
        attend = attend_back = staticmethod(lambda *a: 1)

    tensors = [t.requires_grad_() for t in maps(2, 8, 8, 16)]
    result = attend(*tensors, 2)
    monkeypatch.setattr(attention, "_kernels", Failing)
    with pytest.raises(MemoryError, match="attention"):
        attend(*tensors, 2)
    with pytest.raises(MemoryError, match="attention"):
        result.sum().backward()
