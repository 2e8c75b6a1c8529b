"""Gradients that can be differentiated again, for functions whose own backward pass cannot."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor


def gradients(
    function: Callable[..., Tensor], tensors: Sequence[Any], gradient: Tensor, needed: Sequence[bool]
) -> list[Tensor | None]:
    """The gradients of function(*tensors) by those of `tensors` that are `needed`, as a graph, else None.

    function: the same in torch's own operations. tensors: of any shapes, or None. gradient: of the result, in
    its shape.
    """
    # of views: a tensor may itself be made of another one, and that way is not this function's
    views = [None if t is None else t.view_as(t) for t in tensors]
    wanted = [t for t, wants in zip(views, needed) if wants and t is not None]
    if not wanted:
        return [None] * len(views)
    found = iter(torch.autograd.grad(function(*views), wanted, gradient, create_graph=True))
    return [next(found) if wants and t is not None else None for t, wants in zip(views, needed)]
