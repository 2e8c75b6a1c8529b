"""Group normalisation, with what the U-Net does around it (embedding, SiLU) in the same passes on a CPU."""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import again, norm_cpp
from .norm_cpp import Inputs as _Inputs

_PART = 512 << 10  # bytes of a map that one core works on at a time: it and its result stay in the L2 cache
_CANCELS = 1e-3  # share of the mean square below which the variance is summed again about the mean


class GroupNorm(nn.GroupNorm):
    """torch's group norm, without its slow path: see `normalise`."""

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, *) -> the same shape and layout."""
        return normalise(self, x)


def group_norm(channels: int, groups: int = 32, eps: float = 1e-6) -> GroupNorm:
    """Group normalisation with the most groups, at most `groups`, that divide `channels`.

    A group of a single channel would erase the noise level, which enters as a constant per map; so narrow
    layers (fewer than 2 `groups` channels) keep at least two channels a group.
    """
    most = min(groups, max(channels // 2, 1))
    return GroupNorm(max(g for g in range(1, most + 1) if channels % g == 0), channels, eps=eps)


def norm_silu(
    norm: nn.Module,
    x: Tensor,
    added: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    more: Tensor | None = None,
) -> Tensor:
    """silu(norm(x + added) * (1 + scale) + shift), in as few passes over `x` as the device allows.

    x: (B, C, H, W); added, scale, shift: (B, C), the last two together or not at all ("AdaGN", Dhariwal &
    Nichol 2021). more: a map whose channels follow those of x, as if they were `joined`. Any `norm` will do;
    a `GroupNorm` is fast.
    """
    if isinstance(norm, GroupNorm):
        return normalise(norm, x, added, scale, shift, activate=True, more=more)
    return F.silu(_adapted(norm(_plus(joined(x, more), added)), scale, shift))


def joined(x: Tensor, more: Tensor | None) -> Tensor:
    """The map with the channels of x, then those of `more`, if any."""
    return x if more is None else torch.cat([x, more], dim=1)


def normalise(
    norm: nn.GroupNorm,
    x: Tensor,
    added: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activate: bool = False,
    more: Tensor | None = None,
) -> Tensor:
    """As `norm_silu`, the SiLU only to `activate`.

    torch's own kernel for channels-last maps on a CPU is up to 8 times slower in groups of few channels than
    for one group, and every step around it is another trip to memory. Here channels-last maps go through the
    cache a few images at a time, with one affine map per image and channel for all that is not the SiLU.
    Elsewhere (other layouts and devices, compiled code) torch's operations do it, which compilers fuse.
    """
    return _normalise(norm, _Inputs(x, more, norm.weight, norm.bias, added, scale, shift), activate, False)[0]


def beside(
    norm: nn.Module, x: Tensor, more: Tensor | None = None, activate: bool = True
) -> tuple[Tensor, Tensor, Tensor | None]:
    """norm_silu(norm, x, more=more), or without `activate` the norm alone, and x and `more` again.

    x: (B, C, H, W), more: (B, C', H, W) or None -> (B, C + C', H, W), and both as they were. What else reads
    them, as a shortcut does, should read these: its gradient is then added in the norm's own last pass over
    them. A `GroupNorm` is not called, so its hooks do not run.
    """
    if isinstance(norm, GroupNorm):
        return _normalise(norm, _Inputs(x, more, norm.weight, norm.bias, None, None, None), activate, True)
    h = norm(joined(x, more))
    return F.silu(h) if activate else h, x, more


def _normalise(
    norm: nn.GroupNorm, inputs: _Inputs, activate: bool, beside: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The result, and the maps of `inputs`, for others to read when it is to be `beside` them."""
    given, maps = inputs, (inputs.x, inputs.more)
    settings = norm.num_groups, norm.eps, activate
    if inputs.more is not None and not (
        norm.affine and _suits(inputs.x) and _suits(inputs.more) and norm_cpp.suits(inputs)
    ):
        inputs = inputs._replace(x=joined(*maps), more=None)
    if not _suits(inputs.x) or norm.weight is None:
        return _plain(inputs, *settings), *maps
    if not torch.is_grad_enabled() or not any(t is not None and t.requires_grad for t in inputs):
        return _forward(inputs, *settings)[0], *maps
    if beside and inputs is given:
        return _Normalise.apply(*inputs, *settings, True)
    return _Normalise.apply(*inputs, *settings, False)[0], *maps


def _plain(inputs: _Inputs, groups: int, eps: float, activate: bool) -> Tensor:
    x = joined(inputs.x, inputs.more)
    h = F.group_norm(_plus(x, inputs.added), groups, inputs.weight, inputs.bias, eps)
    h = _adapted(h, inputs.scale, inputs.shift)
    return F.silu(h) if activate else h


def _suits(x: Tensor) -> bool:
    return (
        x.device.type == "cpu"
        and x.ndim == 4
        and x.numel() > 0
        and not torch.compiler.is_compiling()
        and not x.is_contiguous()
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def _plus(x: Tensor, added: Tensor | None) -> Tensor:
    return x if added is None else x + added[:, :, None, None]


def _adapted(h: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    if scale is None or shift is None:
        return h
    return h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]


class _Found(NamedTuple):
    """What the forward pass found: mean of each channel (B, C) without `added`, mean and 1 / std of each
    group (B, G, 1), and the affine map, gain and offset (B, 1, C), from x to the argument of the SiLU."""

    channel: Tensor
    mean: Tensor
    rstd: Tensor
    gain: Tensor
    offset: Tensor


class _Others(NamedTuple):
    """Gradients that are added to those of the maps: what others than the norm read of them gave."""

    x: Tensor | None = None
    more: Tensor | None = None


class _Sums(NamedTuple):
    """Sums over pixels, (B, C): of the gradient of the affine map's value, of that times (x + added), and of
    the gradient of x."""

    plain: Tensor
    times: Tensor
    result: Tensor


def _rows(x: Tensor) -> Tensor:
    """(B, H W, C) view of a channels-last map."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _map(rows: Tensor, like: Tensor) -> Tensor:
    """The rows as a channels-last map of the height and width of `like`."""
    return rows.unflatten(1, like.shape[2:]).permute(0, 3, 1, 2)


def _wide(x: Tensor) -> torch.dtype:
    """The dtype of the arithmetic."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _parts(rows: Tensor) -> tuple[list[slice], Tensor]:
    """Slices of a few images each, and scratch memory for one of them."""
    n, pixels, channels = rows.shape
    step = min(n, max(1, torch.get_num_threads() * _PART // (4 * pixels * channels)))
    scratch = rows.new_empty((step, pixels, channels), dtype=_wide(rows))
    return [slice(i, min(i + step, n)) for i in range(0, n, step)], scratch


def _squares(rows: Tensor, centre: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sums over pixels of `rows` and of its squares, (B, C); of the squares of rows - centre (B, 1, C)."""
    n, _, channels = rows.shape
    plain, square = (rows.new_empty((n, channels), dtype=_wide(rows)) for _ in range(2))
    parts, scratch = _parts(rows)
    for part in parts:
        v = rows[part].to(scratch.dtype)
        t = scratch[: len(v)]
        torch.sum(v, 1, out=plain[part])
        if centre is not None:
            v = torch.sub(v, centre[part], out=t)
        torch.sum(torch.mul(v, v, out=t), 1, out=square[part])
    return plain, square


def _moments(rows: Tensor, added: Tensor | None, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means of the channels of `rows` (B, C); mean and variance of the groups of rows + added, (B, G, 1)."""
    n, pixels, channels = rows.shape
    shape = (n, groups, channels // groups)
    channel, square = (t.div_(pixels) for t in _squares(rows, None))
    moved = channel
    if added is not None:
        moved = channel + added
        square += added * (channel + moved)
    mean, square = (t.view(shape).mean(2, keepdim=True) for t in (moved, square))
    variance = square - mean * mean
    cancelled = variance < _CANCELS * square
    if bool(cancelled.any()):
        centre = mean.expand(shape).reshape(n, channels)
        centre = centre if added is None else centre - added
        square = _squares(rows, centre[:, None])[1].div_(pixels)
        # only where needed: no group's result depends on the rest of the batch
        variance = torch.where(cancelled, square.view(shape).mean(2, keepdim=True), variance)
    return channel, mean, variance


def _forward(inputs: _Inputs, groups: int, eps: float, activate: bool) -> tuple[Tensor, tuple[Tensor, ...]]:
    """The result, in the layout and dtype of x, and what the backward pass needs besides: in one piece where
    the kernels found it, else `_Found`."""
    if norm_cpp.suits(inputs):
        result, piece = norm_cpp.forward(inputs, groups, eps, activate)
        return result, (piece,)
    rows, wide = _rows(inputs.x), _wide(inputs.x)
    weight, bias, added, scale, shift = (None if t is None else t.to(wide) for t in inputs[2:])
    assert weight is not None
    assert bias is not None
    channel, mean, variance = _moments(rows, added, groups)
    rstd = (variance + eps).rsqrt_()
    gain = rstd * weight.view(groups, -1)
    offset = (bias.view(groups, -1) - mean * gain).view(channel.shape)
    gain = gain.view(channel.shape)
    if scale is not None and shift is not None:
        gain, offset = gain * (1 + scale), offset * (1 + scale) + shift
    if added is not None:
        offset = torch.addcmul(offset, gain, added)
    gain, offset = gain[:, None], offset[:, None]

    result = torch.empty_like(rows)
    parts, scratch = _parts(rows)
    for part in parts:
        out = result[part]
        t = out if out.dtype == wide else scratch[: len(out)]
        torch.addcmul(offset[part], rows[part].to(wide), gain[part], out=t)
        if activate:
            F.silu(t, inplace=True)
        if t is not out:
            out.copy_(t)
    return _map(result, inputs.x), _Found(channel, mean, rstd, gain, offset)


def _backward(
    inputs: _Inputs,
    found: tuple[Tensor, ...],
    gradient: Tensor,
    groups: int,
    activate: bool,
    plus: _Others,
) -> list[Tensor | None]:
    """The gradients of all inputs. found: as `_forward` gives it."""
    if len(found) == 1:
        if norm_cpp.suits(inputs, gradient, *plus):
            return norm_cpp.backward(gradient, inputs, found[0], groups, activate, plus)
        channel, gain, offset, mean, rstd = norm_cpp.parts(found[0], len(inputs.weight), groups)
        found = channel, mean[..., None], rstd[..., None], gain[:, None], offset[:, None]
    piece = _Found(*found)
    dx, dmore, sums = _map_gradients(inputs, piece, gradient, groups, activate, plus)
    return [dx, dmore, *_small_gradients(inputs, piece, sums, groups)]


def _map_gradients(
    inputs: _Inputs, found: _Found, gradient: Tensor, groups: int, activate: bool, plus: _Others
) -> tuple[Tensor, Tensor | None, _Sums]:
    """The gradients of x and `more`, and the sums from which those of the others follow."""
    rows, wide = _rows(inputs.x), _wide(inputs.x)
    grads = _rows(gradient.contiguous(memory_format=torch.channels_last))
    if inputs.more is not None:
        maps, split = joined(inputs.x, inputs.more), inputs.x.shape[1]
        whole = inputs._replace(x=maps, more=None)
        both, _, summed = _map_gradients(whole, found, gradient, groups, activate, _Others())
        return _sum(both[:, :split], plus.x), _sum(both[:, split:], plus.more), summed
    # the SiLU's gradient waits in `result` for the sums; without a SiLU it is `grads` itself
    result = torch.empty_like(rows)
    inner = result if activate else grads
    plain, times = (torch.empty_like(found.channel) for _ in range(2))
    parts, scratch = _parts(rows)
    for part in parts:
        v, g = rows[part].to(wide), grads[part].to(wide)
        t = scratch[: len(v)]
        if activate:
            out = result[part]
            u = torch.addcmul(found.offset[part], v, found.gain[part], out=out if out.dtype == wide else None)
            g = torch.ops.aten.silu_backward.grad_input(g, u, grad_input=u)
            if u is not out:
                out.copy_(u)
        torch.sum(g, 1, out=plain[part])
        torch.sum(torch.mul(g, v, out=t), 1, out=times[part])

    if inputs.added is not None:
        times = torch.addcmul(times, inputs.added.to(wide), plain)
    slope, level = _through_statistics(inputs, found, plain, times, groups)
    for part in parts:
        t = scratch[: part.stop - part.start]
        torch.addcmul(level[part], rows[part].to(wide), slope[part], out=t)
        torch.addcmul(
            t, inner[part].to(wide), found.gain[part], out=t if result.dtype != wide else result[part]
        )
        if result.dtype != wide:
            result[part] = t
    total = found.gain[:, 0] * plain + rows.shape[1] * (slope[:, 0] * found.channel + level[:, 0])
    return _sum(_map(result, inputs.x), plus.x), None, _Sums(plain, times, total)


def _through_statistics(
    inputs: _Inputs, found: _Found, plain: Tensor, times: Tensor, groups: int
) -> tuple[Tensor, Tensor]:
    """(slope, level), (B, 1, C): what mean and variance add to the gradient of x is slope * x + level.

    With h = x + added, y = (h - mean) / std, dy its gradient and < > the mean over a group, the gradient of h
    is (dy - <dy> - y <dy y>) / std.
    """
    n, channels = plain.shape
    shape = (n, groups, channels // groups)
    weight = inputs.weight if inputs.scale is None else inputs.weight * (1 + inputs.scale)
    pixels = inputs.x.shape[2] * inputs.x.shape[3]
    mean_dy, mean_dyh = ((weight * t).view(shape).mean(2, keepdim=True) / pixels for t in (plain, times))
    slope = (found.mean * mean_dy - mean_dyh) * found.rstd.pow(3)
    level = -mean_dy * found.rstd - slope * found.mean
    slope, level = (t.expand(shape).reshape(n, 1, channels) for t in (slope, level))
    if inputs.added is not None:
        level = torch.addcmul(level, slope, inputs.added[:, None].to(slope.dtype))
    return slope, level


class _Normalise(torch.autograd.Function):
    """`_forward` with its gradient; gradients of the gradient go through torch's own operations.

    Gives the maps, too, where they are to be read again `beside` it.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor | None, ...]:
        inputs, (*ctx.settings, beside) = _Inputs(*args[:7]), args[7:]
        ctx.set_materialize_grads(False)
        groups, eps, activate = ctx.settings
        result, found = _forward(inputs, groups, eps, activate)
        ctx.save_for_backward(*inputs, *found)
        return (result, inputs.x, inputs.more) if beside else (result,)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        saved, (groups, eps, activate) = ctx.saved_tensors, ctx.settings
        inputs, plus = _Inputs(*saved[:7]), _Others(*others)
        if gradient is None:
            return (*plus, *[None] * 9)
        if torch.is_grad_enabled():

            def plain(*tensors: Any) -> Tensor:
                return _plain(_Inputs(*tensors), groups, eps, activate)

            dx, dmore, *small = again.gradients(plain, inputs, gradient, ctx.needs_input_grad[:7])
            dx, dmore = (b if a is None else _sum(a, b) for a, b in zip((dx, dmore), plus))
            return (dx, dmore, *small, *[None] * 4)
        return (*_backward(inputs, saved[7:], gradient, groups, activate, plus), *[None] * 4)


def _sum(a: Tensor, b: Tensor | None) -> Tensor:
    """Of gradients, where None is 0."""
    return a if b is None else a + b


def _small_gradients(inputs: _Inputs, found: _Found, sums: _Sums, groups: int) -> list[Tensor | None]:
    """Gradients of all but the maps, each in the dtype of its tensor."""
    _, _, weight, bias, added, scale, _ = inputs
    n, channels = sums.plain.shape
    shape = (n, groups, channels // groups)
    centred = sums.times.view(shape) - found.mean * sums.plain.view(shape)
    normed = (centred * found.rstd).view(n, channels)  # times the normalised map instead of x
    gain, plain = normed, sums.plain
    if scale is not None:
        gain, plain = gain * (1 + scale), plain * (1 + scale)
    gradients: list[Tensor | None] = [gain.sum(0), plain.sum(0), None, None, None]
    if added is not None:
        gradients[2] = sums.result
    if scale is not None:
        gradients[3], gradients[4] = normed * weight + sums.plain * bias, sums.plain
    return [None if g is None or t is None else g.to(t.dtype) for g, t in zip(gradients, inputs[2:])]
