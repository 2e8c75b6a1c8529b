"""MNIST for the training benchmarks, or random images of its shape where there is none."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from bench_duel import ROOT

COUNT = 60_000


def add_data(parser: argparse.ArgumentParser) -> None:
    """--data-root."""
    default = os.environ.get("GENKIT_DATA", str(ROOT.parent / "shared" / "data"))
    parser.add_argument("--data-root", type=Path, default=Path(default), help="folder with mnist/ in it")


def has_mnist(args: argparse.Namespace) -> bool:
    """Whether MNIST lies below --data-root, so that no side downloads it."""
    return (args.data_root / "mnist" / "MNIST" / "raw" / "train-images-idx3-ubyte").exists()


def vision_or_random(
    args: argparse.Namespace, size: int | None = None, channels: int = 1, split: str = "train"
):
    """genkit's source: MNIST, or noise of its shape."""
    if has_mnist(args):
        from genkit.data.open import open_source

        return open_source(f"mnist:{split}", root=args.data_root, size=size, channels=channels)
    import numpy as np

    from genkit.data.resident import resident_images

    side = size or 28
    return resident_images(
        "random", np.random.default_rng(0).integers(0, 256, (COUNT, side, side, channels), np.uint8)
    )


def torchvision_mnist(args: argparse.Namespace, transform: Callable):
    """torchvision's data set: MNIST, or its stand-in of random pictures."""
    from torchvision import datasets

    if has_mnist(args):
        return datasets.MNIST(str(args.data_root / "mnist"), train=True, transform=transform, download=False)
    from PIL import Image

    class Random:
        """Pictures decoded from an array one by one, as datasets.MNIST does."""

        def __init__(self) -> None:
            import numpy as np

            self.pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 28, 28), np.uint8)

        def __len__(self) -> int:
            return COUNT

        def __getitem__(self, i: int):
            return transform(Image.fromarray(self.pixels[i])), 0

    return Random()
