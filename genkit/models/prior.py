"""Priors of autoencoders: the standard normal, or a mixture of normals fitted to a model's own codes."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import io
from .. import noise as rng
from ..errors import InputError
from ..io.checkpoint import command_line, versions
from ..io.tensors import json_field

KINDS = ("gaussian", "gmm")
PRIOR = "prior.safetensors"  # beside the model
MOST = 1024  # units of a code: the covariances hold their square


class Prior(NamedTuple):
    """A mixture of K normals over codes of D units, flattened, and what is known of the codes."""

    kind: str
    weights: Tensor  # (K,) float64, sum 1
    means: Tensor  # (K, D) float32
    factors: Tensor  # (K, D, D) float32: lower triangular L with covariance L L^T
    codec: str  # sha256 of the model's weights
    about: dict[str, Any]  # n, log_likelihood (nats a code), kl and kl_unit (nats), source …
    sha256: str = ""  # of the prior itself, as it stands in a file


class Parts(NamedTuple):
    """The parts of a model's own prior to draw from, of a model whose classes take one each."""

    label: Tensor  # (B,) int64 class of each code
    classes: int  # of the model


def draw_prior(
    model: Any, seed: int, index: Tensor, prior: Prior | None = None, parts: Parts | None = None
) -> Tensor:
    """(B, C, H, W) images in [-1, 1]: the decoded codes of images `index` (B,) of `seed`.

    model: an Autoencoder, or a generator. Codes are drawn from `prior`, or else from the model's own, or
    from the `parts` of that.
    """
    shape = tuple(model.latent_shape)
    if prior is not None:
        return model.decode(draw_codes(prior, seed, index, shape))
    return model.decode(own_codes(model, seed, index, parts))


def own_codes(model: Any, seed: int, index: Tensor, parts: Parts | None = None) -> Tensor:
    """(B, C, H, W) codes of the prior that `model` was trained to have: standard normal, unless its
    bottleneck draws them; of `parts` alone where they are given."""
    shape = tuple(model.latent_shape)
    draw = getattr(getattr(model, "bottleneck", None), "draw", None)
    if draw is None:
        return rng.normal(seed, rng.INITIAL, index, shape)
    return draw(seed, index, shape) if parts is None else draw(seed, index, shape, *parts)


def draw_codes(prior: Prior, seed: int, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) codes of a fitted prior; row i depends on `seed` and index[i] only."""
    device = index.device
    u = rng.uniform(seed, rng.COMPONENT, index).double()
    edges = prior.weights.to(device).cumsum(0)
    # rounding may leave the last edge below u
    k = torch.searchsorted(edges, u, right=True).clamp(max=len(edges) - 1)
    z = rng.normal(seed, rng.INITIAL, index, (math.prod(shape),))
    means, factors = prior.means.to(device), prior.factors.to(device)
    # row by row: a batched product rounds by the batch's size, and a code must not depend on its company
    rows = [torch.mv(factors[j], row) for j, row in zip(k.tolist(), z)]
    return (means[k] + torch.stack(rows)).reshape(len(index), *shape)


def fit_mixture(codes: Tensor, components: int, seed: int) -> tuple[Tensor, Tensor, Tensor, float, bool]:
    """(weights, means, factors, log-likelihood in nats a code, whether it converged) of a mixture of full
    covariances fitted to codes (N, D) by expectation maximisation; one component is the moments' Gaussian.

    Raises:
        InputError: there are fewer codes than components.
    """
    from sklearn.mixture import GaussianMixture

    n = len(codes)
    if n < max(2, components):
        raise InputError(f"{n} codes are too few for {components} components; give more images")
    data = codes.double().cpu().numpy()
    # a unit that never changes would make the covariance singular
    ridge = 1e-6 * max(float(data.var(axis=0).mean()), 1e-6)
    model = GaussianMixture(components, reg_covar=ridge, max_iter=200, random_state=seed % 2**32)
    model.fit(data)
    factors = torch.linalg.cholesky(torch.from_numpy(model.covariances_))
    weights, means = torch.from_numpy(model.weights_), torch.from_numpy(model.means_)
    return weights, means.float(), factors.float(), float(model.score(data)), bool(model.converged_)


def distance(codes: Tensor) -> float:
    """KL(N(m, S) || N(0, I)) in nats, m and S the moments of codes (N, D): how far q(z) is from N(0, I),
    as far as two moments tell. Infinite where S is singular."""
    z = codes.double()
    mean, covariance = z.mean(dim=0), torch.cov(z.T).reshape(z.shape[1], z.shape[1])
    sign, log_det = torch.linalg.slogdet(covariance)
    if sign <= 0:
        return math.inf
    trace = covariance.diagonal().sum()
    return float(0.5 * (trace + mean.square().sum() - z.shape[1] - log_det))


def save_prior(path: Path, prior: Prior) -> str:
    """Write a prior atomically; returns the sha256 of its numbers."""
    tensors = {"weights": prior.weights, "means": prior.means, "factors": prior.factors}
    metadata = {
        "prior": prior.kind,
        "codec": prior.codec,
        "about": json.dumps(prior.about),
        "versions": json.dumps(versions()),
        "command": command_line(),
    }
    return io.save_tensors(path, tensors, "prior", metadata)


def load_prior(path: Path) -> Prior:
    """The prior at `path`.

    Raises:
        InputError: the file is missing, damaged, no prior, or its numbers make no mixture.
    """
    if not path.is_file():
        raise InputError(f"prior {path} does not exist; make one with `genkit fit-prior RUN`")
    tensors, metadata = io.load_tensors(path, ("prior",))
    weights, means, factors = (tensors.get(k, torch.zeros(0)) for k in ("weights", "means", "factors"))
    k, units = means.shape if means.ndim == 2 else (0, 0)
    if k == 0 or weights.shape != (k,) or factors.shape != (k, units, units):
        raise InputError(f"{path} holds no mixture of normals; make it again with `genkit fit-prior`")
    if bool((weights < 0).any()) or abs(float(weights.sum()) - 1.0) > 1e-6:
        raise InputError(f"{path}: the weights of its components do not add up to 1; make it again")
    about = json_field(str(path), metadata, "about")
    kind, codec = metadata.get("prior", "?"), metadata.get("codec", "")
    return Prior(kind, weights.double(), means, factors, codec, about, metadata["sha256"])


def prior_of(model: Any, path: Path, sha256: str, asked: str | None) -> tuple[Prior | None, str]:
    """(what to draw codes of the checkpoint at `path` from, a remark); None is the model's own prior.

    asked: a prior's file, `own` for what the model was trained to have, or None: the one fitted to this model
    and kept beside it, else its own.

    Raises:
        InputError: there is none, or it was fitted on another model.
    """
    beside = path.parent / PRIOR
    bottleneck = getattr(model, "bottleneck", None)  # a generator has no encoder, and none
    owns = bottleneck is None or bottleneck.has_prior
    if asked == "own":
        return None, "" if owns else "standard normal codes, which this model was not trained to have"
    if asked is None and not beside.is_file():
        if not owns:
            raise InputError(f"{path} has no prior of its own; fit one with `genkit fit-prior {path.parent}`")
        return None, ""
    file = beside if asked is None else Path(asked)
    prior = load_prior(file)
    if prior.codec != sha256:
        raise InputError(
            f"{file} was fitted on another model ({prior.codec[:12]}) than {path} ({sha256[:12]}); "
            f"run `genkit fit-prior {path.parent}`, or use --prior own"
        )
    if prior.means.shape[1] != math.prod(model.latent_shape):
        raise InputError(
            f"{file} is for codes of {prior.means.shape[1]} units, {path} has {model.latent_shape}"
        )
    return prior, f"{file} ({prior.kind}, {len(prior.weights)} components)"
