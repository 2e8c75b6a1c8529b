"""What the network predicts. Every parameterisation is linear, target = p x0 + q eps, so one solve inverts
all."""

from collections.abc import Callable

from torch import Tensor

from ..errors import unknown

Coefficients = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]


def _edm(alpha: Tensor, sigma: Tensor, data: float) -> tuple[Tensor, Tensor]:
    """F of Karras et al. 2022 (eq. 7-8) for any alpha; with data = 1 and alpha^2 + sigma^2 = 1 it is -v."""
    norm = (sigma**2 + (data * alpha) ** 2).sqrt()
    return sigma / (data * norm), -data * alpha / norm


TARGETS: dict[str, Coefficients] = {
    "eps": lambda a, s, d: (a * 0, a * 0 + 1),  # Ho et al. 2020
    "x0": lambda a, s, d: (a * 0 + 1, a * 0),
    "v": lambda a, s, d: (-s, a),  # Salimans & Ho 2022
    "flow": lambda a, s, d: (a * 0 - 1, a * 0 + 1),  # Lipman et al. 2023: dx/dt on the straight path
    "score": lambda a, s, d: (a * 0, -1 / s),  # Song et al. 2021 (SDE)
    "edm": _edm,
}


def coefficients(target: str, alpha: Tensor, sigma: Tensor, data: float = 1.0) -> tuple[Tensor, Tensor]:
    """(p, q) with target = p x0 + q eps. alpha, sigma: any shape; data: the standard deviation of x0 (edm
    only).

    Raises:
        InputError: for an unknown target.
    """
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    return TARGETS[target](alpha, sigma, data)


def input_scale(target: str, alpha: Tensor, sigma: Tensor, data: float = 1.0) -> Tensor:
    """What x_t is multiplied by before the network sees it: c_in of Karras et al. 2022 (eq. 7) for edm,
    else 1."""
    return (sigma**2 + (data * alpha) ** 2) ** -0.5 if target == "edm" else alpha * 0 + 1


def solve(
    y: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, target: str, data: float = 1.0
) -> tuple[Tensor, Tensor]:
    """(x0, eps) from y = p x0 + q eps and x = alpha x0 + sigma eps, by Cramer's rule.

    Singular only where the quantity is undefined: eps-target at alpha = 0, x0-target at sigma = 0. Callers
    never
    evaluate there.
    """
    p, q = coefficients(target, alpha, sigma, data)
    det = alpha * q - sigma * p
    return (q * x - sigma * y) / det, (alpha * y - p * x) / det
