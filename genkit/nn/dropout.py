"""Dropout whose masks are addressed, as all randomness is: a function of the example, not of the batch."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from .. import noise


class Dropout(nn.Module):
    """In training, each activation is 0 with probability `p` and otherwise times 1 / (1 - p) (Srivastava et
    al. 2014); elsewhere nothing happens.

    key: (B, 2) int32, what the masks of the next batch are a function of, each example's of its own row. It
    is given before the forward pass (`give_keys`): torch's generator would make the masks depend on how a
    batch is split. `p` is rounded to a multiple of 2^-16.
    """

    key: Tensor | None

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p, self.key = p, None

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, *S) -> the same shape.

        Raises:
            ValueError: in training, when no keys were given.
        """
        if not self.training or self.p == 0:
            return x
        if self.key is None:
            raise ValueError("dropout in training draws from keys: call give_keys before the forward pass")
        last = x.movedim(1, -1)  # coins are counted as activations lie in memory, the channel fastest
        kept = noise.coins(self.key, last[0].numel(), 1 - self.p).view(last.shape).movedim(-1, 1)
        return x * (kept.to(x.dtype) * (1 / (1 - self.p)))

    def extra_repr(self) -> str:
        """The probability, as torch prints it."""
        return f"p={self.p}"


def dropouts(module: nn.Module) -> list[Dropout]:
    """The layers in `module` that drop anything, in order."""
    return [m for m in module.modules() if isinstance(m, Dropout) and m.p > 0]


def give_keys(layers: Sequence[Dropout], words: Callable[[int], Tensor]) -> None:
    """Give each layer its own keys out of words(number of layers): (B, layers, 2) int32."""
    if layers:
        for layer, key in zip(layers, words(len(layers)).unbind(1)):
            layer.key = key
