"""Drawing from the prior of an autoencoder."""

from typing import Any

from torch import Tensor

from .. import noise as rng


def draw_prior(model: Any, seed: int, index: Tensor) -> Tensor:
    """(B, C, H, W) images in [-1, 1]: the decoded standard normal codes of images `index` (B,) of `seed`.

    model: an Autoencoder with a Gaussian prior.
    """
    return model.decode(rng.normal(seed, rng.INITIAL, index, model.latent_shape))
