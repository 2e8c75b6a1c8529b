"""A hierarchy of Gaussian latent vectors: each level explains the one below it."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from . import gaussian
from .autoencoder import Autoencoder
from .bottlenecks import Code

INACTIVE = 0.01  # share of a unit's variance that differs between images, below which it carries nothing


class Normal(NamedTuple):
    """A diagonal normal distribution. mean, log_var: (B, C, 1, 1) float32."""

    mean: Tensor
    log_var: Tensor

    def sample(self, noise: Tensor | None) -> Tensor:
        """mean + std noise; the mean without noise."""
        return self.mean if noise is None else torch.addcmul(self.mean, self.std, noise)

    def innovation(self, z: Tensor) -> Tensor:
        """The noise for which `sample` gives z."""
        return (z - self.mean) / self.std

    @property
    def std(self) -> Tensor:
        """The standard deviation of each unit."""
        return torch.exp(0.5 * self.log_var)


def normal_of(h: Tensor) -> Normal:
    """The normal whose means are the first half of h: (B, 2 C, 1, 1), and log variances the second."""
    return Normal(*gaussian.posterior(h.float()))


def normal_kl(q: Normal, p: Normal) -> Tensor:
    """KL(q || p) of each image in nats: (B,)."""
    square = q.std.square() + (q.mean - p.mean).square()
    return 0.5 * (p.log_var - q.log_var + square * torch.exp(-p.log_var) - 1.0).sum(dim=(1, 2, 3))


class Walk(NamedTuple):
    """The way of a batch up the hierarchy. z: of each level from the image up; q, p: of each level its
    posterior given the level below and its prior given the level above."""

    z: list[Tensor]
    q: list[Normal]
    p: list[Normal]


class Hierarchy(nn.Module):
    """A Markov chain of latent vectors z_1 (next to the image) … z_L (top).

    Upwards it infers: q(z_1 | h) of the encoder's h, then q(z_{l+1} | z_l) by `up`. Downwards it generates:
    p(z_L) = N(0, 1), then p(z_l | z_{l+1}) by `down`. All are diagonal normals with learned variances (Luo
    2022, section "Hierarchical variational autoencoders"; a diffusion model is the case in which every level
    has the image's size and q is fixed).

    A code holds the *innovations* of all levels, top first: e_L = z_L and e_l = (z_l - mean_p) / std_p. They
    and the levels determine each other: no level is lost in a code, `decode` needs no noise of its own, and a
    standard normal code is an ancestral sample. A zero innovation is the mean of its level.

    units: of each level, z_1 first. up, down: L - 1 modules from (B, C, 1, 1) of one level to (B, 2 C', 1, 1)
    of its neighbour above, and of its neighbour below; both in order from the image up.
    """

    has_prior, cost = True, "kl"

    def __init__(self, units: Sequence[int], up: Sequence[nn.Module], down: Sequence[nn.Module]) -> None:
        super().__init__()
        self.units, self.levels = tuple(units), len(units)
        self.up, self.down = nn.ModuleList(up), nn.ModuleList(down)

    def width_in(self, channels: int) -> int:
        """Channels wanted from the encoder: a mean and a log variance for each of z_1's."""
        return 2 * channels

    def split(self, code: Tensor) -> list[Tensor]:
        """The innovations, or the noise, of each level from the image up, of a code (B, sum(units), 1, 1)."""
        return list(code.split(self.units[::-1], dim=1))[::-1]

    def climb(self, h: Tensor, noise: Tensor | None) -> Walk:
        """The levels of h: (B, 2 units[0], 1, 1), drawn with noise (B, sum(units), 1, 1) or each a mean."""
        drawn = [None] * self.levels if noise is None else self.split(noise)
        q = [normal_of(h)]
        z = [q[0].sample(drawn[0])]
        for rise, own in zip(self.up, drawn[1:]):
            q.append(normal_of(rise(z[-1])))
            z.append(q[-1].sample(own))
        zero = torch.zeros_like(z[-1])
        p = [normal_of(fall(above)) for fall, above in zip(self.down, z[1:])]
        return Walk(z, q, [*p, Normal(zero, zero)])

    def descend(self, code: Tensor) -> Tensor:
        """z_1 of a code: (B, units[0], 1, 1)."""
        *lower, z = self.split(code)
        for fall, own in zip(reversed(self.down), reversed(lower)):
            z = normal_of(fall(z)).sample(own)
        return z

    def code_of(self, walk: Walk, drawn: bool) -> Code:
        """The code of a walk; its penalty is the KL of the whole hierarchy, in nats.

        drawn: whether the walk was with noise; see `costs`.
        """
        code = torch.cat([p.innovation(z) for p, z in zip(walk.p[::-1], walk.z[::-1])], dim=1)
        terms = costs(walk, drawn)
        logs = {f"kl_{i}": term.detach().mean() for i, term in enumerate(terms, 1)} if self.levels > 1 else {}
        return Code(code, torch.stack(terms).sum(dim=0), logs={**logs, **usage(walk)})

    def forward(self, h: Tensor, noise: Tensor | None = None) -> Code:
        """The code of h: (B, 2 units[0], 1, 1); noise: as in `climb`."""
        return self.code_of(self.climb(h, noise), noise is not None)


def costs(walk: Walk, drawn: bool) -> list[Tensor]:
    """The share of each level in the KL, (B,) nats, from the image up; their sum is what bounds log p(x).

    The top's is KL(q(z_L | z_{L-1}) || N(0, 1)). Below it, where the expectation runs over the level above
    too, it is log q(z_l | z_{l-1}) - log p(z_l | z_{l+1}) at the levels drawn: unbiased, free of noise where
    the two agree, and, as q does not look at z_{l+1}, of either sign. Without noise there is nothing to
    average, and it is the KL of the two normals.
    """
    terms = []
    for z, q, p in zip(walk.z[:-1], walk.q, walk.p):
        if drawn:
            ratio = p.innovation(z).square() - q.innovation(z).square() + p.log_var - q.log_var
            terms.append(0.5 * ratio.sum(dim=(1, 2, 3)))
        else:
            terms.append(normal_kl(q, p))
    return [*terms, normal_kl(walk.q[-1], walk.p[-1])]


@torch.no_grad()
def usage(walk: Walk) -> Mapping[str, Tensor]:
    """How many units of the hierarchy tell nothing of the image (after Burda et al. 2016, on a unit's own
    scale); nothing for a single image."""
    if len(walk.z[0]) < 2:
        return {}
    idle = []
    for q in walk.q:
        signal, spread = q.mean.var(dim=0), q.std.square().mean(dim=0)
        idle.append((signal < INACTIVE * (signal + spread)).sum())
    units = sum(q.mean[0].numel() for q in walk.q)
    collapsed = torch.stack(idle).sum().float()
    return {"collapsed": collapsed, "idle": collapsed / units}


class HierarchicalAutoencoder(nn.Module):
    """An autoencoder whose code is a hierarchy; to those who use it, an `Autoencoder`.

    encoder: (B, C, H, W) in [-1, 1] -> (B, 2 units[0], 1, 1). decoder: z_1 -> (B, C, H, W) raw output.
    logits, learn_sigma: as in `Autoencoder`.
    """

    def __init__(
        self,
        encoder: nn.Module,
        hierarchy: Hierarchy,
        decoder: nn.Module,
        *,
        logits: bool = False,
        learn_sigma: bool = False,
    ) -> None:
        super().__init__()
        self.latent_shape = (sum(hierarchy.units), 1, 1)
        first = (hierarchy.units[0], 1, 1)
        self.ends = Autoencoder(encoder, hierarchy, decoder, first, logits=logits, learn_sigma=learn_sigma)

    @property
    def bottleneck(self) -> Hierarchy:
        """The hierarchy."""
        found = self.ends.bottleneck
        assert isinstance(found, Hierarchy)
        return found

    @property
    def log_sigma(self) -> Tensor:
        """0-dim log standard deviation of a pixel; see `Autoencoder`."""
        return self.ends.log_sigma

    def encode(self, x: Tensor, *, noise: Tensor | None = None) -> Code:
        """The innovations of x: (B, C, H, W) in [-1, 1], of all levels, top first.

        noise: (B, *latent_shape) standard normal numbers sample the posterior; without them every level is
        its mean.
        """
        return self.bottleneck(self.ends.encoder(x), noise)

    def decode_raw(self, z: Tensor) -> Tensor:
        """The decoder's output for innovations z: (B, *latent_shape), as (B, C, H, W) float32."""
        return self.ends.decode_raw(self.bottleneck.descend(z))

    def decode(self, z: Tensor) -> Tensor:
        """The images of innovations z: (B, *latent_shape), as (B, C, H, W) float32 in [-1, 1]."""
        return self.ends.decode(self.bottleneck.descend(z))

    def forward(self, x: Tensor, *, noise: Tensor | None = None) -> tuple[Code, Tensor]:
        """The codes of x and the raw output for them: all that a loss needs."""
        walk = self.bottleneck.climb(self.ends.encoder(x), noise)
        return self.bottleneck.code_of(walk, noise is not None), self.ends.decode_raw(walk.z[0])
