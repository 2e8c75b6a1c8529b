"""Data sets by name: MNIST, Fashion-MNIST and CIFAR-10 through torchvision, scikit-learn's digits."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import InputError, unknown

SPLITS = ("train", "test")
TORCHVISION = {"mnist": "MNIST", "fashion-mnist": "FashionMNIST", "cifar10": "CIFAR10"}
NAMES = (*TORCHVISION, "digits", "shapes")


class Arrays(NamedTuple):
    """A whole data set. pixels: (N, H, W, C) uint8; labels: (N,) int64."""

    pixels: np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    captions: list[str] | None = None


def data_root(root: Path | None) -> Path:
    """Where named data sets lie: `root`, else $GENKIT_DATA, else the user's cache."""
    if root is not None:
        return root
    if os.environ.get("GENKIT_DATA"):
        return Path(os.environ["GENKIT_DATA"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "genkit"


def load_named(name: str, split: str, root: Path | None, side: int | None) -> Arrays:
    """The data set `name`; `side` is the size that drawn images should have, scanned ones keep theirs.

    Raises:
        InputError: for an unknown name or split, or files that are missing and cannot be downloaded.
    """
    if split not in SPLITS:
        raise unknown(f"split of {name}", split, SPLITS)
    if name == "digits":
        return digits(split)
    if name == "shapes":
        from .shapes import shapes

        return shapes(split, side or 32)
    if name not in TORCHVISION:
        raise unknown("data set", name, NAMES)
    return through_torchvision(name, split, data_root(root) / name)


def digits(split: str) -> Arrays:
    """scikit-learn's 1,797 scanned digits, 8×8 in 17 grey levels; every fifth of a class is for testing."""
    from sklearn.datasets import load_digits

    data = load_digits()
    labels = data.target.astype(np.int64)
    rank = np.empty_like(labels)
    for digit in range(10):
        rank[labels == digit] = np.arange((labels == digit).sum())
    keep = (rank % 5 == 4) == (split == "test")
    pixels = np.rint(data.images[keep] * (255 / 16)).astype(np.uint8)[..., None]
    return Arrays(pixels, labels[keep], tuple("0123456789"))


def through_torchvision(name: str, split: str, folder: Path) -> Arrays:
    """A data set in torchvision's own layout in `folder`, downloaded there when it is missing."""
    import torchvision

    make = getattr(torchvision.datasets, TORCHVISION[name])
    data = read(make, name, folder, split == "train")
    pixels = np.asarray(data.data)
    classes = tuple("0123456789") if name == "mnist" else tuple(data.classes)
    return Arrays(
        pixels if pixels.ndim == 4 else pixels[..., None], np.asarray(data.targets, np.int64), classes
    )


def read(make: Callable[..., Any], name: str, folder: Path, train: bool) -> Any:
    """The torchvision data set, downloaded first where its files are missing.

    Raises:
        InputError: when they are damaged, or missing without a network.
    """
    try:
        return make(root=folder, train=train, download=False)
    except RuntimeError:
        pass  # torchvision's word for missing files
    except (OSError, EOFError, ValueError, AssertionError) as error:
        why = str(error) or "not in its format"
        raise InputError(
            f"{name} in {folder} is damaged ({why}); delete that folder to load it again"
        ) from None
    where = f"put torchvision's files into {folder / layout(name)}, or say where they are with --data-root"
    try:
        with contextlib.redirect_stdout(sys.stderr), no_empty_folders(folder / layout(name)):
            print(f"{name} is not in {folder}; downloading", file=sys.stderr)
            return make(root=folder, train=train, download=True)
    except (OSError, EOFError, ValueError, AssertionError, RuntimeError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"{name} is not in {folder} and cannot be downloaded ({why}); {where}") from None


@contextlib.contextmanager
def no_empty_folders(folder: Path) -> Iterator[None]:
    """Within, `folder` may be made; when that leads nowhere, what is new and empty of its path goes again."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    finally:
        for path in new:
            with contextlib.suppress(OSError):
                path.rmdir()


def layout(name: str) -> str:
    """Where inside its folder torchvision looks for a data set's files."""
    return "cifar-10-batches-py" if name == "cifar10" else f"{TORCHVISION[name]}/raw"
