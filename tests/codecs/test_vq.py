"""Vector quantisation: straight-through gradients, the codebook's learning, dead codes, perplexity."""

import math

import pytest
import torch
import torch.nn.functional as F

from genkit import noise
from genkit.codecs.vq import CHECK, VectorQuantizer, decay_of, lloyd, perplexity


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def begun(codebook, steps=1001, **settings):
    """A quantiser that holds `codebook` after `steps` steps: so many that `decay` has its last value."""
    vq = VectorQuantizer(*codebook.shape, **settings)
    with torch.no_grad():
        vq.codebook.copy_(codebook)
        vq.usage.fill_(1.0)
        if vq.update == "ema":
            vq.total.copy_(torch.cat([codebook, torch.ones(len(codebook), 1)], dim=1))
        vq.steps.fill_(steps)
    return vq


def observe(vq, h, step):
    """One training step's worth of h: (B, D, H, W)."""
    code = vq(h)
    index = torch.arange(len(h)) + step * len(h)
    vq.observe(h, code.tokens, noise.uniform(0, noise.CODEBOOK, index, (h[0, 0].numel(),)))


def test_straight_through_by_hand():
    """Oracle: z is the code to the last bit; its gradient passes to h unchanged, plus that of the commitment,
    2 beta (h - e) / D averaged over positions."""
    codebook = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    vq = begun(codebook)
    h = torch.tensor([0.9, 0.7]).view(1, 2, 1, 1).requires_grad_()
    code = vq(h)
    assert torch.equal(code.z.flatten(), codebook[1])
    assert code.tokens.item() == 1
    slope = torch.tensor([3.0, -2.0]).view(1, 2, 1, 1)
    ((code.z * slope).sum() + code.penalty.sum()).backward()
    commitment = 0.25 * 2 * torch.tensor([-0.1, -0.3]) / 2
    torch.testing.assert_close(h.grad.flatten(), slope.flatten() + commitment)
    assert code.penalty.item() == pytest.approx(0.25 * (0.01 + 0.09) / 2)


def test_codebook_loss_by_hand():
    """Oracle: the gradient of a code is 2 (e - h) / D; unused codes have none (eq. 3, second term)."""
    vq = begun(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), update="loss", commitment=0.0)
    h = torch.tensor([0.9, 0.7]).view(1, 2, 1, 1)
    vq(h).penalty.sum().backward()
    torch.testing.assert_close(vq.codebook.grad, torch.tensor([[0.0, 0.0], [0.1, 0.3]]))


def clusters(n=400):
    """(n, 2) points around four corners, and the corner of each."""
    label = torch.arange(n) % 4
    corner = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]])
    return corner[label] + 0.2 * numbers(n, 2), label


def test_lloyd_finds_the_means_of_clusters():
    """Oracle: the mean of each cluster, by its label."""
    x, label = clusters()
    found = lloyd(x, torch.tensor([[1.0, 1.0], [3.0, 1.0], [1.0, 3.0], [3.0, 3.0]]))
    means = torch.stack([x[label == k].mean(dim=0) for k in range(4)])
    torch.testing.assert_close(found, means)


def test_running_means_reach_k_means():
    """Oracle: k-means on the same data, to which the exponential means converge by 0.9^k."""
    x, label = clusters()
    h = x.view(100, 4, 2).permute(0, 2, 1)[..., None]
    vq = begun(torch.tensor([[1.0, 1.0], [3.0, 1.0], [1.0, 3.0], [3.0, 3.0]]), decay=0.9)
    for step in range(150):
        observe(vq, h, step)
        vq.stepped()
    means = torch.stack([x[label == k].mean(dim=0) for k in range(4)])
    torch.testing.assert_close(vq.codebook, means, atol=1e-5, rtol=0)
    usage = 100.0 + (1.0 - 100.0) * 0.99**150
    torch.testing.assert_close(vq.usage, torch.full((4,), usage), atol=1e-3, rtol=0)


def test_running_mean_of_one_step_by_hand():
    """Oracle: N <- g N + (1 - g) n, m <- g m + (1 - g) sum, e = m / N (van den Oord et al. 2017, A.1)."""
    vq = begun(torch.tensor([[0.0], [10.0]]), decay=0.75)
    observe(vq, torch.tensor([1.0, 2.0, 9.0]).view(3, 1, 1, 1), 0)
    vq.stepped()
    expected = [0.25 * 3 / (0.75 + 0.5), (0.75 * 10 + 0.25 * 9) / 1.0]
    torch.testing.assert_close(vq.codebook.flatten(), torch.tensor(expected))


def test_running_means_are_short_at_first():
    """Oracle: the products of (1 + n) / (10 + n) weigh step k like k^8, so that the mean of the steps up to n
    is 9/10 of n; later the decay is the one asked for. One step by hand, after one step."""
    mean = 0.0
    for n in range(800):
        mean += (1 - decay_of(n, 0.99)) * (n - mean)
    assert mean == pytest.approx(0.9 * 800, rel=0.01)
    assert decay_of(2000, 0.99) == 0.99
    vq = begun(torch.tensor([[0.0], [10.0]]), steps=1)
    observe(vq, torch.tensor([9.0, 9.0, 6.0]).view(3, 1, 1, 1), 0)
    vq.stepped()
    kept, new = 2 / 11, 9 / 11
    assert vq.codebook[1].item() == pytest.approx((kept * 10 + new * 24) / (kept + new * 3))


@pytest.mark.parametrize("update", ["ema", "loss"])
@pytest.mark.parametrize("start", ["kmeans", "data"])
def test_first_step_passes_through_and_makes_the_codebook(update, start):
    """Oracle: z is h and costs nothing; afterwards every cluster has a code near its mean."""
    x, label = clusters()
    h = x.view(100, 4, 2).permute(0, 2, 1)[..., None]
    vq = VectorQuantizer(16, 2, update=update, start=start)
    code = vq(h)
    assert torch.equal(code.z, h)
    assert code.penalty.sum() == 0
    observe(vq, h, 0)
    vq.stepped()
    means = torch.stack([x[label == k].mean(dim=0) for k in range(4)])
    assert torch.cdist(means, vq.codebook.detach()).min(dim=1).values.max() < 0.4
    assert int(vq.steps) == 1


@pytest.mark.parametrize("update", ["ema", "loss"])
def test_dead_codes_come_back(update):
    """Oracle: seven of eight codes far from all data are unused, and all live after ten looks: two for them,
    and the others for the first, which then lies between the clusters and has lost all of them; its count
    falls from 160 to a tenth of the mean, 5, in 350 steps at 0.99 each."""
    x, _ = clusters()
    h = x.view(100, 4, 2).permute(0, 2, 1)[..., None]
    codebook = torch.full((8, 2), 100.0) + torch.arange(8.0)[:, None]
    codebook[0] = 2.0
    vq = begun(codebook, update=update, decay=0.9)
    assert vq(h).tokens.unique().tolist() == [0]
    for step in range(1, 10 * CHECK + 1):
        observe(vq, h, step)
        vq.stepped()
    assert vq(h).tokens.unique().tolist() == list(range(8))
    assert vq.codebook.max() < 5


def test_accumulation_changes_nothing():
    """Oracle: the whole batch at once, over start, means and restarts; 1e-5 for the order of sums."""
    books = []
    for parts in (1, 4):
        vq = VectorQuantizer(32, 2)
        for step in range(CHECK + 2):
            h = numbers(16, 2, 3, 3, seed=step)
            keys = noise.uniform(0, noise.CODEBOOK, torch.arange(16) + 16 * step, (9,))
            for part, key in zip(h.chunk(parts), keys.chunk(parts)):
                vq.observe(part, vq(part).tokens, key)
            vq.stepped()
        books.append(vq.codebook)
    torch.testing.assert_close(*books, atol=1e-5, rtol=0)


def test_perplexity_in_closed_form():
    """Oracle: exp(entropy): k of equal use give k, and (1/2, 1/4, 1/4) gives 2^1.5."""
    assert perplexity(torch.tensor([3.0, 3.0, 0.0, 3.0])).item() == pytest.approx(3.0)
    assert perplexity(torch.tensor([2.0, 1.0, 1.0])).item() == pytest.approx(2**1.5)
    assert perplexity(torch.zeros(4)).item() == pytest.approx(1.0)


def test_logs_are_of_the_running_usage_in_training_and_of_the_batch_after():
    """Oracle: counted by hand."""
    vq = begun(torch.tensor([[0.0], [1.0], [2.0], [50.0]]))
    vq.usage.copy_(torch.tensor([4.0, 4.0, 0.0, 0.0]))
    h = torch.tensor([0.0, 1.0, 2.0]).view(3, 1, 1, 1)
    logs = vq(h).logs
    assert (logs["perplexity"].item(), logs["live"].item()) == (pytest.approx(2.0), 0.5)
    logs = vq.eval()(h).logs
    assert (logs["perplexity"].item(), logs["live"].item()) == (pytest.approx(3.0), 0.75)


def test_state_goes_through_a_file_bit_for_bit():
    """Oracle: a quiet run; the other one is written after 60 steps and read into a new module."""

    def walk(vq, start, stop):
        for step in range(start, stop):
            h = numbers(8, 2, 2, 2, seed=step)
            observe(vq, h, step)
            vq.stepped()
        return vq

    whole, first = (walk(VectorQuantizer(16, 2), 0, n) for n in (120, 60))
    second = VectorQuantizer(16, 2)
    second(numbers(1, 2, 2, 2))
    second.load_state_dict(first.state_dict())
    walk(second, 60, 120)
    assert all(torch.equal(v, second.state_dict()[k]) for k, v in whole.state_dict().items())


def test_lookup_and_snap():
    """Oracle: the embedding; snap is the identity on codes and takes its neighbourhood to a code."""
    vq = begun(numbers(6, 3))
    tokens = torch.tensor([[[0, 5], [2, 3]]])
    z = vq.lookup(tokens)
    torch.testing.assert_close(z, F.embedding(tokens, vq.codebook).permute(0, 3, 1, 2))
    assert torch.equal(vq.snap(z), z)
    assert torch.equal(vq.snap(z + 1e-3), z)
    assert math.prod(z.shape) == 12
