"""AdamW (Loshchilov & Hutter 2019) without the work that torch's repeats at every step."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class AdamW(torch.optim.AdamW):
    """`torch.optim.AdamW`, fused, for one group of parameters: the same state and the same numbers.

    torch sorts the parameters and their state into lists at every step, which for a small network takes four
    times as long as the arithmetic. Here they are kept from the first step on.
    """

    _lists: tuple[list[Tensor], ...] | None = None
    # of which the steps of the parameters are elements: counted in one operation
    _counts: Tensor | None = None

    def __init__(
        self, parameters: list[torch.nn.Parameter], lr: float, betas: tuple[float, float], weight_decay: float
    ) -> None:
        super().__init__(parameters, lr=lr, betas=betas, weight_decay=weight_decay, fused=True)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """As of torch; parameters without a gradient stay as they are.

        Unlike torch's fused step, it tells their versions, by which a layer knows that its weights changed.
        """
        if closure is None:
            self.update()
            return None
        loss = super().step(closure)
        torch.autograd.graph.increment_version(self.param_groups[0]["params"])
        return loss

    def update(self) -> None:
        """`step` without a closure, past torch's hooks and its marks for profilers: a small network would
        notice them. The first step, and one with a gradient missing, are torch's own."""
        (group,) = self.param_groups
        parameters = group["params"]
        gradients = [p.grad for p in parameters]
        if self._lists is None or self._counts is None or any(g is None for g in gradients):
            super().step()
            self._remember(parameters)
        else:
            averages, squares, steps = self._lists
            with torch.no_grad():
                self._counts += 1
                torch._fused_adamw_(
                    parameters,
                    gradients,
                    averages,
                    squares,
                    [],
                    steps,
                    amsgrad=False,
                    lr=group["lr"],
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    maximize=False,
                )
        torch.autograd.graph.increment_version(parameters)

    def _remember(self, parameters: list[Tensor]) -> None:
        """Keep the state in lists, once every parameter has one."""
        known = [self.state[p] for p in parameters if p in self.state]
        if self._lists is None and len(known) == len(parameters):
            self._counts = torch.stack([state["step"] for state in known])
            for state, count in zip(known, self._counts.unbind()):
                state["step"] = count
            names = ("exp_avg", "exp_avg_sq", "step")
            self._lists = tuple([state[name] for state in known] for name in names)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As of torch."""
        super().load_state_dict(state_dict)
        self._lists = self._counts = None  # the state is another one now
