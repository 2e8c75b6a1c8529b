"""-log p of pixels as coins. Oracle, where none is named: torch's own function in double precision."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from genkit.objectives import bernoulli
from genkit.objectives.bernoulli import nats


@pytest.fixture
def ran(spy):
    """The calls of the kernel."""
    if bernoulli._kernels() is None:
        pytest.skip("no C++ compiler here: torch's function is used")
    return spy(bernoulli, "_summed")


def pixels(*shape: int, scale: float = 3.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits and brightnesses in [-1, 1]."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(shape, generator=generator) * scale
    return logits, torch.rand(shape, generator=generator) * 2 - 1


def exact(logits: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """The nats and their gradient."""
    wide = logits.double().detach().requires_grad_()
    total = F.binary_cross_entropy_with_logits(wide, 0.5 * x.double() + 0.5, reduction="sum")
    return total.detach(), torch.autograd.grad(total, wide)[0]


# one number, parts of a vector, and chunks whose last is a part
@pytest.mark.parametrize("n", [1, 15, 16, 17, 4095, 4096, 4097, 28 * 28 * 13])
@pytest.mark.parametrize("scale", [0.01, 3.0, 30.0])
def test_value_and_gradient(n, scale, ran):
    logits, x = pixels(n, scale=scale)
    total, slope = exact(logits, x)
    logits.requires_grad_()
    found = nats(logits, x)
    assert found.dtype == torch.float32
    assert found.shape == ()
    assert found.item() == pytest.approx(total.item(), rel=3e-7)
    gradient = torch.autograd.grad(7 * found, logits)[0]
    torch.testing.assert_close(gradient.double(), 7 * slope, rtol=1e-6, atol=2e-6)
    with torch.no_grad():
        assert torch.equal(nats(logits, x), found)
    assert ran == ["_summed"] * 2


def test_the_mean_over_images(ran):
    logits, x = pixels(6, 5, 7)
    total, slope = exact(logits, x)
    logits.requires_grad_()
    found = nats(logits, x, 6)
    assert found.item() == pytest.approx(total.item() / 6, rel=3e-7)
    for times in (1, 3):  # the first as it was found on the way
        gradient = torch.autograd.grad(times * found, logits, retain_graph=True)[0]
        torch.testing.assert_close(gradient.double(), times * slope / 6, rtol=1e-6, atol=1e-6)
    assert ran == ["_summed"]


def test_maps_with_their_channels_last(ran):
    logits, x = (t.to(memory_format=torch.channels_last) for t in pixels(2, 3, 4, 5))
    total, slope = exact(logits, x)
    logits.requires_grad_()
    found = nats(logits, x)
    assert found.item() == pytest.approx(total.item(), rel=3e-7)
    gradient = torch.autograd.grad(found, logits)[0]
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-6, atol=2e-6)
    assert gradient.stride() == logits.stride()
    assert ran == ["_summed"]


def test_the_device_is_that_of_the_tensors(ran):
    logits, x = pixels(20)
    with torch.device("meta"):
        found = nats(logits, x)
    assert torch.equal(found, nats(logits, x))
    assert ran == ["_summed"] * 2


def test_no_images_cost_nothing(ran):
    assert nats(*pixels(0, 3)) == 0
    assert ran == []


@pytest.mark.parametrize("logit", [0.0, -0.0, 1e-30, 50.0, -50.0, 100.0, -100.0, 1e4, -1e4])
@pytest.mark.parametrize("x", [-1.0, 1.0, 0.25])
def test_logits_near_and_far(logit, x, ran):
    logits, x = torch.full((3,), logit, requires_grad=True), torch.full((3,), x)
    total, slope = exact(logits, x)
    found = nats(logits, x)
    assert found.item() == pytest.approx(total.item(), rel=3e-7, abs=1e-20)
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0].double(), slope, rtol=1e-6, atol=1e-7)
    assert ran == ["_summed"]


def test_a_sum_does_not_depend_on_threads(ran):
    logits, x = pixels(50_001)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(nats(logits, x))
    assert torch.equal(*found)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("place", [0, 16])  # in a vector, and in the numbers after the last
def test_what_is_not_a_number_is_seen(which, place, ran):
    logits, x = pixels(17)
    (logits, x)[which][place] = torch.nan
    logits.requires_grad_()
    total = nats(logits, x)
    assert total.isnan()
    gradient = torch.autograd.grad(total, logits)[0]
    assert gradient.isnan().nonzero().tolist() == [[place]]
    assert ran == ["_summed"]


def test_gradients_of_a_gradient_are_torchs(ran):
    logits, x = pixels(3, 2, 5)
    logits.requires_grad_()

    def penalty_gradient(call, v):
        gradient = torch.autograd.grad(call(v, x.to(v.dtype), 3), v, create_graph=True)[0]
        return torch.autograd.grad(gradient.square().sum(), v)[0]

    expected = penalty_gradient(bernoulli._plain, logits.detach().double().requires_grad_())
    torch.testing.assert_close(penalty_gradient(nats, logits).double(), expected, rtol=1e-5, atol=1e-6)
    assert ran == ["_summed"]


UNSUITED = {
    "double": lambda v, x: (v.double(), x.double()),
    "maps that lie otherwise": lambda v, x: (v.to(memory_format=torch.channels_last), x),
    "parts of maps": lambda v, x: (v[:, :, 1:], x[:, :, 1:]),
    "pixels of which a gradient is asked": lambda v, x: (v, x.requires_grad_()),
}


@pytest.mark.parametrize("what", UNSUITED)
def test_what_does_not_suit_goes_through_torch(what, ran):
    logits, x = UNSUITED[what](*pixels(2, 3, 4, 4))
    assert torch.equal(nats(logits, x), bernoulli._plain(logits, x, 1))
    assert ran == []


def test_shapes_that_differ_raise():
    with pytest.raises(ValueError):
        nats(torch.zeros(2, 3), torch.zeros(2, 1))


def test_without_a_compiler_it_is_torchs(without_kernels):
    logits, x = pixels(50)
    logits.requires_grad_()
    found = without_kernels(lambda: nats(logits, x), bernoulli)
    assert torch.equal(found, bernoulli._plain(logits, x, 1))
