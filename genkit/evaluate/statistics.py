"""Mean and covariance of features, and the files that hold them."""

import json
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..data.source import Info
from ..errors import InputError
from ..io import load_tensors, read_metadata, save_tensors
from ..io.checkpoint import command_line, versions
from ..io.tensors import json_field
from .extractors import Extractor, Features

_CHUNK = 4096  # rows that are held in float64 at a time


class Statistics(NamedTuple):
    """What FID needs of a set of images and, where features are kept, what the other metrics need too."""

    mu: Tensor  # (D,) float64
    sigma: Tensor  # (D, D) float64
    name: str
    n: int | None = None  # images measured; None where the file does not say
    extractor: str | None = None  # identity; None where the file does not say
    fingerprint: str = ""
    size: tuple[int, int, int] | None = None  # (C, H, W) of the images
    features: Tensor | None = None  # (n, D) float32
    logits: Tensor | None = None  # (n, K) float32


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D), both float64, of (n, D) features; n at least 2."""
    n, dim = features.shape
    mu = features.sum(0, dtype=torch.float64) / n
    sigma = torch.zeros(dim, dim, dtype=torch.float64)
    for part in features.split(_CHUNK):
        centred = part.double() - mu
        sigma.addmm_(centred.T, centred)
    return mu, sigma / (n - 1)


def measure(found: Features, info: Info, extractor: Extractor) -> Statistics:
    """The statistics of features that `extractor` found in the source that `info` describes."""
    mu, sigma = moments(found.features)
    n = len(found.features)
    return Statistics(
        mu,
        sigma,
        info.name,
        n,
        extractor.identity,
        info.fingerprint,
        info.shape,
        found.features,
        found.logits,
    )


def is_statistics(path: Path) -> bool:
    """Whether `path` is a file of statistics: an `.npz`, or a `.safetensors` that says so."""
    if path.suffix == ".npz":
        return path.is_file()
    return (
        path.suffix == ".safetensors" and path.is_file() and read_metadata(path).get("kind") == "statistics"
    )


def load_statistics(path: Path) -> Statistics:
    """The statistics in genkit's own file, or an `.npz` with `mu` and `sigma` (pytorch-fid, EDM, clean-fid).

    Raises:
        InputError: it is missing, damaged or something else.
    """
    if path.suffix == ".npz":
        return _load_npz(path)
    tensors, metadata = load_tensors(path, ("statistics",))
    n, size = json_field(str(path), metadata, "n"), json_field(str(path), metadata, "size")
    statistics = Statistics(
        *_checked(path, tensors.get("mu"), tensors.get("sigma")),
        name=str(path),
        n=n,
        extractor=metadata.get("extractor") or None,
        fingerprint=metadata.get("fingerprint", ""),
        size=tuple(size) if size else None,
        features=tensors.get("features"),
        logits=tensors.get("logits"),
    )
    for rows in (statistics.features, statistics.logits):
        if rows is not None and (rows.ndim != 2 or len(rows) != n):
            raise InputError(f"{path}: features and logits must have one row for each of the {n} images")
    return statistics


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Write `statistics` atomically, with the features that it carries.

    Raises:
        RunError: the disk is full or the folder read-only.
    """
    tensors = {"mu": statistics.mu, "sigma": statistics.sigma}
    tensors |= {
        k: v for k, v in (("features", statistics.features), ("logits", statistics.logits)) if v is not None
    }
    metadata = {
        "source": statistics.name,
        "n": json.dumps(statistics.n),
        "extractor": statistics.extractor or "",
        "fingerprint": statistics.fingerprint,
        "size": json.dumps(statistics.size),
        "versions": json.dumps(versions()),
        "command": command_line(),
    }
    save_tensors(path, tensors, "statistics", metadata)


def _load_npz(path: Path) -> Statistics:
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise InputError(f"{path} holds a bare array; an .npz with 'mu' and 'sigma' is needed")
        with archive:
            missing = sorted({"mu", "sigma"} - set(archive.files))
            if missing:
                raise InputError(
                    f"{path} has no array {missing[0]!r}; it holds {', '.join(archive.files) or 'nothing'}"
                )
            mu, sigma = archive["mu"], archive["sigma"]
    except FileNotFoundError:
        raise InputError(f"statistics {path} do not exist") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        if isinstance(error, InputError):
            raise
        reason = "it holds pickled objects" if "pickle" in str(error) else str(error).splitlines()[0]
        raise InputError(f"{path} is not a readable .npz of plain arrays ({reason})") from None
    if not all(np.issubdtype(a.dtype, np.floating) for a in (mu, sigma)):
        raise InputError(f"{path}: mu and sigma must be floating point, got {mu.dtype} and {sigma.dtype}")
    tensors = (torch.from_numpy(np.ascontiguousarray(a, dtype=np.float64)) for a in (mu, sigma))
    return Statistics(*_checked(path, *tensors), name=str(path))


def _checked(path: Path, mu: Tensor | None, sigma: Tensor | None) -> tuple[Tensor, Tensor]:
    """(mu, sigma) in float64, found to be a mean and a covariance."""
    if mu is None or sigma is None or mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        shapes = [None if t is None else tuple(t.shape) for t in (mu, sigma)]
        raise InputError(f"{path}: mu must be (D,) and sigma (D, D), got {shapes[0]} and {shapes[1]}")
    mu, sigma = mu.double(), sigma.double()
    if not (mu.isfinite().all() and sigma.isfinite().all()):
        raise InputError(f"{path}: mu or sigma holds NaN or infinity")
    # published files are float32 or float64; their rounding is far below this
    if (sigma.diagonal() < 0).any() or not torch.allclose(sigma, sigma.T, rtol=1e-3, atol=1e-5):
        raise InputError(
            f"{path}: sigma is no covariance: it must be symmetric with a diagonal of at least 0"
        )
    return mu, sigma
