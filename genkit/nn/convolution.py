"""Convolutions with a stride or few channels, and transposed ones, by the kernel that is fastest on a CPU."""

from torch import Tensor, nn

from . import patches, winograd
from .patches import learns


class Conv2d(winograd.Keeping, nn.Conv2d):
    """`nn.Conv2d` with zeros around: the same parameters and, to rounding, results.

    On a CPU, float32 maps with a stride or few channels take kernels of their own, forward and backward, and
    leave them in channels-last layout: with a stride of 2 and many channels those of `winograd`, whose errors
    and kept weights are as `Conv3x3` says, else those of `patches`. What does not suit goes through torch's
    convolution, as everything does on a machine without a C++ compiler.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, padding)
        self._kept = {}

    def forward(self, x: Tensor, more: tuple[int, int] = (0, 0)) -> Tensor:
        """x: (B, C, H, W) -> (B, K, h, w).

        more: rows of zeros below and columns of zeros on the right, on top of the layer's own padding.
        """
        weight, bias, padding = self.weight, self.bias, int(self.padding[0])
        if self.stride[0] == 2:
            form = winograd.Form(kernel=self.kernel_size[0], padding=padding)
            learning = learns(x, weight, bias)
            if winograd.suits(x, weight, bias, form, learning) and form.halves(x.shape, more):
                return winograd.convolve(x, weight, bias, None, form, learning, self.transformed)
        return patches.convolve(x, weight, bias, self.stride[0], padding, more)


class ConvTranspose2d(nn.ConvTranspose2d):
    """`nn.ConvTranspose2d`, as `Conv2d` is `nn.Conv2d`."""

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(channels_in, channels_out, kernel, stride, padding)

    def forward(self, y: Tensor) -> Tensor:  # type: ignore[override]
        """y: (B, K, h, w) -> (B, C, H, W)."""
        return patches.spread(y, self.weight, self.bias, self.stride[0], int(self.padding[0]))
