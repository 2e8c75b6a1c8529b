"""Priors fitted to codes: moments, distances, addressed draws, files."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import MultivariateNormal, kl_divergence

from genkit import io
from genkit.codecs.autoencoder import Autoencoder
from genkit.codecs.bottlenecks import GaussianBottleneck, IdentityBottleneck
from genkit.errors import InputError
from genkit.models.prior import (
    Prior,
    distance,
    draw_codes,
    draw_prior,
    fit_mixture,
    load_prior,
    prior_of,
    save_prior,
)

A = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.8, 0.0], [-0.3, 0.2, 0.6]])
MEANS = torch.tensor([[4.0, 0.0, 1.0], [-4.0, 2.0, 0.0]])


def mixture(codec="abc"):
    """Two normals, a quarter and three quarters, far apart."""
    return Prior(
        "gmm", torch.tensor([0.25, 0.75]).double(), MEANS, torch.stack([A, 0.5 * A]), codec, {"n": 9}
    )


def model(bottleneck=IdentityBottleneck):
    """An autoencoder whose images are its codes."""
    return Autoencoder(nn.Identity(), bottleneck(), nn.Identity(), (3, 1, 1))


def test_draws_have_the_moments():
    """Oracle: 20,000 draws: shares, means and covariances of the components, to four standard errors."""
    z = draw_codes(mixture(), 0, torch.arange(20000), (3, 1, 1)).flatten(1)
    first = z[:, 0] > 0
    assert first.float().mean().item() == pytest.approx(0.25, abs=4 * (0.25 * 0.75 / 20000) ** 0.5)
    for rows, mean, factor in ((first, MEANS[0], A), (~first, MEANS[1], 0.5 * A)):
        part, n = z[rows], int(rows.sum())
        assert (part.mean(dim=0) - mean).abs().max() < 4 / n**0.5
        assert (torch.cov(part.T) - factor @ factor.T).abs().max() < 4 * 2**0.5 / n**0.5


def test_a_draw_is_an_address():
    """Oracle: the same code whatever else is drawn, bit for bit; another seed, another code."""
    whole = draw_codes(mixture(), 3, torch.arange(50), (3, 1, 1))
    assert torch.equal(draw_codes(mixture(), 3, torch.tensor([41, 7]), (3, 1, 1)), whole[[41, 7]])
    assert not torch.equal(draw_codes(mixture(), 4, torch.arange(50), (3, 1, 1)), whole)


def test_standard_normal_is_one_normal():
    """Oracle: a prior of mean 0 and covariance I draws what no prior draws."""
    plain = Prior("gaussian", torch.ones(1).double(), torch.zeros(1, 3), torch.eye(3)[None], "", {})
    index = torch.arange(20)
    assert torch.equal(draw_prior(model(), 5, index, plain), draw_prior(model(), 5, index))


def test_one_component_is_the_moments():
    """Oracle: the codes' mean and their (biased) covariance; the log-likelihood of that normal."""
    z = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)) @ A.T + MEANS[0]
    weights, means, factors, score, converged = fit_mixture(z, 1, 0)
    assert converged
    assert weights.tolist() == [1.0]
    torch.testing.assert_close(means[0], z.mean(dim=0))
    covariance = torch.cov(z.T, correction=0)
    torch.testing.assert_close(factors[0] @ factors[0].T, covariance, rtol=1e-4, atol=1e-4)
    exact = MultivariateNormal(z.mean(dim=0), covariance).log_prob(z).mean().item()
    assert score == pytest.approx(exact, abs=1e-3)


def test_a_mixture_is_found_again():
    """Oracle: the two far components that 4,000 codes were drawn from, in some order."""
    z = draw_codes(mixture(), 0, torch.arange(4000), (3,))
    weights, means, factors, _, _ = fit_mixture(z, 2, 0)
    order = weights.argsort()
    assert weights[order].tolist() == pytest.approx([0.25, 0.75], abs=0.03)
    assert (means[order] - MEANS).abs().max() < 0.15
    for k, factor in zip(order.tolist(), (A, 0.5 * A)):
        assert (factors[k] @ factors[k].T - factor @ factor.T).abs().max() < 0.15


def test_a_unit_that_never_changes_can_be_fitted():
    """Oracle: finite numbers; the distance of a singular covariance is infinite."""
    z = torch.randn(100, 3, generator=torch.Generator().manual_seed(0))
    z[:, 1] = 2.0
    _, means, factors, score, _ = fit_mixture(z, 2, 0)
    assert means.isfinite().all()
    assert factors.isfinite().all()
    assert math.isfinite(score)
    assert distance(z) == math.inf
    with pytest.raises(InputError, match="too few"):
        fit_mixture(z[:3], 5, 0)


def test_distance_is_the_kl_of_the_moments():
    """Oracle: torch.distributions between the normal of the codes' moments and N(0, I)."""
    z = torch.randn(400, 3, generator=torch.Generator().manual_seed(0)).double() @ A.T.double() + 0.3
    moments = MultivariateNormal(z.mean(dim=0), torch.cov(z.T))
    standard = MultivariateNormal(torch.zeros(3).double(), torch.eye(3).double())
    assert distance(z) == pytest.approx(kl_divergence(moments, standard).item(), rel=1e-9)
    assert distance(torch.randn(50000, 1, generator=torch.Generator().manual_seed(0))) < 1e-3


def test_file_round_trip(tmp_path):
    """Oracle: the same draws; the model's hash and what was measured."""
    path = tmp_path / "prior.safetensors"
    sha256 = save_prior(path, mixture())
    back = load_prior(path)
    assert (back.kind, back.codec, back.about, back.sha256) == ("gmm", "abc", {"n": 9}, sha256)
    index = torch.arange(30)
    assert torch.equal(draw_codes(back, 0, index, (3,)), draw_codes(mixture(), 0, index, (3,)))


def test_which_prior(tmp_path):
    """Oracle: the file asked for, `own`, the file beside the model, the model's own; in that order."""
    path = tmp_path / "model.safetensors"
    with pytest.raises(InputError, match="genkit fit-prior"):
        prior_of(model(), path, "abc", None)
    assert prior_of(model(GaussianBottleneck), path, "abc", None)[0] is None
    assert prior_of(model(), path, "abc", "own")[0] is None
    save_prior(tmp_path / "prior.safetensors", mixture())
    found, words = prior_of(model(GaussianBottleneck), path, "abc", None)
    assert found is not None
    assert "gmm, 2 components" in words
    assert prior_of(model(GaussianBottleneck), path, "abc", "own")[0] is None
    with pytest.raises(InputError, match="fitted on another model") as error:
        prior_of(model(), path, "def", None)
    assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="does not exist"):
        prior_of(model(), path, "abc", str(tmp_path / "none.safetensors"))
    wide = Autoencoder(nn.Identity(), IdentityBottleneck(), nn.Identity(), (4, 1, 1))
    with pytest.raises(InputError, match="codes of 3 units"):
        prior_of(wide, path, "abc", None)


@pytest.mark.parametrize("wrong", ["weights", "shape", "missing"])
def test_numbers_that_are_no_mixture(tmp_path, wrong):
    """Oracle: the file is named."""
    path = tmp_path / "prior.safetensors"
    tensors = {"weights": torch.tensor([0.5, 0.6]).double(), "means": MEANS, "factors": torch.stack([A, A])}
    if wrong == "shape":
        tensors["factors"] = torch.stack([A, A, A])
    if wrong == "missing":
        del tensors["means"]
    io.save_tensors(path, tensors, "prior", {"prior": "gmm", "codec": "abc", "about": "{}"})
    with pytest.raises(InputError, match=r"prior\.safetensors"):
        load_prior(path)
