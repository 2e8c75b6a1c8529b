"""Counter-based random numbers: known answers, independence of the batch, and the distributions."""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from genkit import noise


def words(counter, key):
    tensors = tuple(torch.tensor([c]) for c in counter)
    return [int(w) for w in noise.philox(tensors, key)]


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter, key, expected):
    """Oracle: kat_vectors of Random123 (Salmon et al. 2011), philox4x32 with 10 rounds."""
    assert words(counter, key) == list(expected)


@pytest.mark.parametrize(
    "seed, stream", [(0, 0), (7, noise.STEP + 3), (-5, 1), ((1 << 70) + (9 << 40) + 3, 17)]
)
@pytest.mark.parametrize("count", [1, 4, 11, 3001])
def test_the_kernel_draws_the_same_bits(seed, stream, count, monkeypatch):
    """Oracle: `philox`, which the known answers above are of; more than one thread's share of rows."""
    if noise._kernels() is None:
        pytest.skip("no C++ compiler here")
    torch.set_num_threads(2)
    index = torch.tensor([0, 3, (1 << 32) - 1, (5 << 32) + 2, *range(20, 60, 2)])[::2]
    drawn = noise.bits(seed, stream, index, count)
    monkeypatch.setattr(noise, "_kernels", lambda: None)
    assert torch.equal(drawn, noise.bits(seed, stream, index, count))


def test_fake_tensors_go_through_torch():
    """Oracle: there are no numbers to read or to write."""
    with FakeTensorMode():
        assert noise.normal(1, 2, torch.arange(3), (5,)).shape == (3, 5)


def test_rows_do_not_depend_on_the_batch():
    """Oracle: the definition; row i is a function of (seed, stream, index[i]) only."""
    whole = noise.normal(7, 3, torch.arange(50), (3, 5))
    picked = noise.normal(7, 3, torch.tensor([40, 2]), (3, 5))
    assert torch.equal(picked, whole[[40, 2]])


def test_longer_rows_begin_alike_for_uniform():
    """Oracle: the block counter runs along the row, so a prefix is a prefix."""
    index = torch.arange(4)
    assert torch.equal(noise.uniform(1, 0, index, (10,)), noise.uniform(1, 0, index, (64,))[:, :10])


@pytest.mark.parametrize("change", [{"seed": 2}, {"stream": 1}, {"index": torch.tensor([1])}])
def test_each_part_of_the_address_matters(change):
    """Oracle: another address gives unrelated numbers: equal 24-bit values are rare."""
    base = {"seed": 1, "stream": 0, "index": torch.tensor([0])}
    a = noise.uniform(**base, shape=(1000,))
    b = noise.uniform(**{**base, **change}, shape=(1000,))
    assert (a == b).float().mean() < 0.01


def test_seeds_above_32_bits_differ():
    """Oracle: the key is 64 bits wide, unlike torch's CPU generator (which keeps 32)."""
    index = torch.arange(3)
    assert not torch.equal(noise.normal(5, 0, index, (8,)), noise.normal(5 + (1 << 32), 0, index, (8,)))


def test_normal_moments():
    """Oracle: moments of N(0, 1); tolerances are 5 standard errors at n = 200,000."""
    z = noise.normal(0, 0, torch.arange(200), (1000,)).double()
    n = z.numel()
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs(z.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / n)
    # the two halves of a Box-Muller pair are uncorrelated
    assert abs((z[:, :500] * z[:, 500:]).mean()) < 5 / math.sqrt(n / 2)


def test_integers_are_uniform():
    """Oracle: chi-square with 9 degrees of freedom; 27.9 is its 99.9 % point."""
    counts = torch.bincount(noise.integers(3, 0, torch.arange(1000), 10, (20,)).flatten(), minlength=10)
    expected = 2000.0
    assert ((counts - expected) ** 2 / expected).sum() < 27.9


def test_permutation_is_one():
    """Oracle: sorted it is 0 … n - 1; two epochs differ."""
    p = noise.permutation(0, 4, 1000)
    assert torch.equal(p.sort().values, torch.arange(1000))
    assert not torch.equal(p, noise.permutation(0, 5, 1000))
    assert torch.equal(p, noise.permutation(0, 4, 1000))


def keys(n, seed=0):
    return noise.words(seed, noise.DROPOUT, torch.arange(n), (2,))


@pytest.mark.parametrize("p", [0.1, 0.2, 0.5, 0.9])
def test_coins_have_their_probability(p):
    """Oracle: 4 million coins; 5 standard errors are below 1e-3 + the rounding of p to 2^-16."""
    found = noise.coins(keys(400), 10_001, p)
    assert (found.shape, found.dtype) == ((400, 10_001), torch.bool)
    n = found.numel()
    assert abs(found.double().mean() - p) < 5 * math.sqrt(p * (1 - p) / n) + 2.0**-16
    # of each example and of each place, too: the largest of 400 and of 10,001 deviations, at most 6 sigma
    for dim, size in ((1, 10_001), (0, 400)):
        worst = (found.double().mean(dim) - p).abs().max()
        assert worst < 6 * math.sqrt(p * (1 - p) / size)


def test_coins_that_are_all_alike():
    """Oracle: by hand; a probability that rounds to 1 or 0 is one of them, and wraps around nothing."""
    for p, wanted in ((1.0, True), (1 - 1e-6, True), (0.0, False), (1e-6, False)):
        assert (noise.coins(keys(4), 999, p) == wanted).all()


def test_coins_are_independent():
    """Oracle: products of fair ±1 coins have mean 0: with near places, with near examples, with another
    seed's; 5.5 standard errors over 150 products."""
    a, b = (noise.coins(keys(200, seed), 4096, 0.5).float() * 2 - 1 for seed in (0, 1))
    pairs = [a[:, k:] * a[:, :-k] for k in range(1, 130)]
    pairs += [a[k:] * a[:-k] for k in range(1, 20)] + [a * b, a[:, ::2] * b[:, 1::2]]
    for product in pairs:
        assert abs(product.mean()) < 5.5 / math.sqrt(product.numel())
    # triples, which linear generators betray
    for i, j in ((1, 2), (1, 3), (2, 64), (16, 17)):
        triple = a[:, : -j or None] * a[:, i : a.shape[1] - j + i] * a[:, j:]
        assert abs(triple.mean()) < 5.5 / math.sqrt(triple.numel())


def test_coins_of_an_example_do_not_depend_on_the_batch():
    """Oracle: the rows of the whole batch; and fewer places are the first ones."""
    whole = noise.coins(keys(8), 100, 0.3)
    assert torch.equal(noise.coins(keys(8)[[5, 2]], 100, 0.3), whole[[5, 2]])
    assert torch.equal(noise.coins(keys(8), 31, 0.3), whole[:, :31])


def test_coins_by_hand():
    """Oracle: the hash in Python's integers."""
    key = keys(1)[0].tolist()
    low, high = (k % 2**32 for k in key)

    def word(i):
        x = (i * 0x9E3779B9 % 2**32) ^ low
        x = ((x ^ (x >> 16)) * 0x7FEB352D % 2**32) ^ high
        x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    halves = [h for i in range(10) for h in (word(i) & 0xFFFF, word(i) >> 16)]
    signed = [h - 2**16 if h >= 2**15 else h for h in halves]
    expected = [s + 2**15 < round(0.4 * 2**16) for s in signed]
    assert noise.coins(keys(1), 20, 0.4)[0].tolist() == expected
