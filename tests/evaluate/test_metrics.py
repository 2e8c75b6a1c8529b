"""FID, its interval, KID, precision and recall, inception score."""

import pytest
import torch
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

from genkit.evaluate.metrics import (
    _influence,
    confidence,
    fid,
    fid_interval,
    inception_score,
    kid,
    precision_recall,
)
from genkit.evaluate.statistics import Statistics, moments


def normal(seed, n, dim):
    """(n, dim) float32 normal features whose spread falls from 1 to 0.1."""
    z = torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))
    return z * torch.linspace(1, 0.1, dim)


def of(features):
    """Statistics of bare features."""
    return Statistics(*moments(features), name="test", n=len(features), features=features)


def test_fid_of_diagonal_gaussians_in_closed_form():
    """Oracle: |mu1 - mu2|² + sum (s1 - s2)² for standard deviations s."""
    s1, s2 = torch.linspace(0.5, 2, 9, dtype=torch.float64), torch.linspace(1, 0, 9, dtype=torch.float64)
    mu = torch.arange(9, dtype=torch.float64) / 10
    one, two = Statistics(mu, torch.diag(s1**2), "a"), Statistics(-mu, torch.diag(s2**2), "b")
    assert fid(one, two) == pytest.approx((4 * mu**2 + (s1 - s2) ** 2).sum().item(), rel=1e-12)


def test_fid_of_features_is_torch_fidelitys():
    """Oracle: torch-fidelity 0.4.0's own statistics and distance, in float64; ours are summed in chunks."""
    a, b = normal(0, 5000, 8), normal(1, 300, 8) + 0.1
    theirs = fid_statistics_to_metric(
        fid_features_to_statistics(a.double()), fid_features_to_statistics(b.double()), verbose=False
    )
    assert fid(of(a), of(b)) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)


def test_equal_sets_have_distance_zero():
    """Oracle: a distance is 0 between equals; more dimensions than images make the covariance singular."""
    for n in (1000, 20):
        same = of(normal(0, n, 32))
        # sqrt of float64 noise in the null space of a 32 x 32 product: 32 sqrt(1e-16)
        assert fid(same, same) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("n, dim", [(400, 16), (20, 32)], ids=["full rank", "fewer images than dimensions"])
def test_interval_has_the_width_of_the_sampling_distribution(n, dim):
    """Oracle: the spread of FID over 100 independent sets; the error may overstate it, not understate it."""
    real = of(normal(0, 2000, dim))
    values, found = [], []
    for k in range(100):
        fake = of(normal(1 + k, n, dim) * 1.1 + 0.1)
        values.append(fid(fake, real))
        if k < 30:
            found.append(fid_interval(values[-1], fake.features, fake, real))
    values = torch.tensor(values)
    mean_error = torch.tensor([e.error for e in found]).mean()
    # the spread of 100 values is known to 7 %
    assert 0.85 < mean_error / values.std() < 1.6
    hits = sum(e.low <= values.mean() <= e.high for e in found)
    assert hits >= 26  # 95 % nominal; fewer has a probability of 2 %


def test_interval_is_a_function_of_the_seed():
    """Oracle: equality; and the percentiles agree with the normal interval of the standard error to 25 %."""
    real, fake = of(normal(0, 500, 8)), of(normal(1, 400, 8) + 0.2)
    value = fid(fake, real)
    one = fid_interval(value, fake.features, fake, real, seed=3)
    assert one == fid_interval(value, fake.features, fake, real, seed=3)
    assert one != fid_interval(value, fake.features, fake, real, seed=4)
    assert one.low < value < one.high
    # the 2.5 % quantile of 200 draws has a relative error of about 10 %
    assert (one.high - one.low) / (2 * 1.96 * one.error) == pytest.approx(1, abs=0.25)


def test_influence_is_the_derivative_of_fid():
    """Oracle: FID when one image's weight is raised a little, by finite differences."""
    x, real = normal(1, 60, 5).double() + 0.3, of(normal(0, 500, 5))

    def weighted(w):
        mu = (w[:, None] * x).sum(0)
        c = x - mu
        # with n / (n - 1), the unbiased covariance at equal weights
        return fid(Statistics(mu, (w[:, None] * c).T @ c * (60 / 59), "w"), real)

    equal = torch.full((60,), 1 / 60, dtype=torch.float64)
    ours = _influence(x, of(x), real)
    for i in (0, 17, 59):
        step = 1e-5 * (torch.eye(60, dtype=torch.float64)[i] - equal)
        slope = (weighted(equal + step) - weighted(equal - step)) / 2e-5
        # the covariance's n / (n - 1) is no part of ours
        assert slope == pytest.approx(ours[i].item(), rel=0.03, abs=0.03)


def test_kid_is_the_mean_mmd_of_every_pair():
    """Oracle: the unbiased MMD² of (x.y / D + 1)³ by three explicit double loops over pairs."""
    a, b = normal(0, 12, 6), normal(1, 12, 6) + 1

    def kernel(x, y):
        return (float(x @ y) / 6 + 1) ** 3

    def within(s):
        return sum(kernel(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j) / (12 * 11)

    across = sum(kernel(x, y) for x in a for y in b) / 144
    found = kid(a, b)
    assert found.value == pytest.approx(within(a) + within(b) - 2 * across, rel=1e-4)
    assert found.spread is None


def test_kid_of_unequal_sets_is_spread_over_subsets():
    """Oracle: with all fakes in each subset, the mean over real subsets is the U-statistic of all."""
    a, b = normal(0, 10, 6), normal(1, 40, 6) + 1
    found = kid(a, b)

    def within(s):
        gram = (s @ s.T / 6 + 1) ** 3
        return (gram.sum() - gram.trace()) / (len(s) * (len(s) - 1))

    expected = within(a) + within(b) - 2 * ((a @ b.T / 6 + 1) ** 3).mean()
    assert found.spread > 0
    # 100 subsets: the mean is known to a tenth of their spread; four of those
    assert found.value == pytest.approx(expected.item(), abs=0.4 * found.spread)
    assert found == kid(a, b)


def test_precision_and_recall_tell_fidelity_from_coverage():
    """Oracle: fakes from one of two equally large clusters are all near real ones and cover half of those."""
    one, other = normal(0, 100, 4) * 0.1, normal(1, 100, 4) * 0.1 + 10
    found = precision_recall(one[:100].clone(), torch.cat([one, other]))
    assert found.precision == 1.0
    assert found.recall == 0.5
    assert precision_recall(one[:2], other[:3]) == (0.0, 0.0)


def test_inception_score_and_confidence_of_known_predictions():
    """Oracle: sure predictions, even over K classes, score K; undecided ones score 1 with entropy ln K."""
    sure = 50 * torch.eye(5).repeat(40, 1)
    assert inception_score(sure).value == pytest.approx(5, rel=0.1)  # each split holds 20 shuffled images
    assert confidence(sure) == pytest.approx((1.0, 0.0, 5.0), abs=1e-6)
    flat = torch.zeros(200, 5)
    assert inception_score(flat).value == pytest.approx(1, abs=1e-9)
    assert confidence(flat) == pytest.approx((0.0, torch.tensor(5.0).log().item(), 5.0), abs=1e-6)
    collapsed = 50 * torch.eye(5)[[0]].repeat(9, 1)
    assert confidence(collapsed).classes == pytest.approx(1)
    assert inception_score(collapsed).value == pytest.approx(1)
