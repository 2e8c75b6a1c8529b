"""The discrete bottleneck: vectors become the nearest of K codes (van den Oord et al. 2017).

The codebook learns between steps, not in the forward pass: `observe` adds up what the micro-batches of a step
saw, and `stepped` updates once from the sum over all of them and all processes. So neither accumulation nor
data parallelism changes the result.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import dist
from ..nn.nearest import nearest
from .bottlenecks import Code

CHECK = 50  # steps between looks for dead codes
USAGE = 0.99  # decay of the count of what each code is used for
DEAD = 0.1  # a code used less than this share of the average is dead
CANDIDATES = 4  # vectors of an image that may become codes at such a look
LLOYD = 10  # iterations of k-means at the start
UPDATES = ("ema", "loss")


def totals(x: Tensor, token: Tensor, k: int) -> Tensor:
    """(k, D + 1): the sum of the rows of x (N, D) of each token, and in the last column their number."""
    ones = x.new_ones(len(x), 1)
    return x.new_zeros(k, x.shape[1] + 1).index_add_(0, token, torch.cat([x, ones], dim=1))


def centroids(total: Tensor, otherwise: Tensor) -> Tensor:
    """(K, D) means of what `totals` added up; where nothing was, rows of `otherwise`."""
    count = total[:, -1:]
    return torch.where(count > 1e-5, total[:, :-1] / count.clamp(min=1e-5), otherwise)


def lloyd(x: Tensor, codes: Tensor, iterations: int = LLOYD) -> Tensor:
    """(K, D) codes after some iterations of k-means on x (N, D); a code that nothing is nearest to stays."""
    for _ in range(iterations):
        codes = centroids(totals(x, nearest(x, codes), len(codes)), codes)
    return codes


def perplexity(usage: Tensor) -> Tensor:
    """0-dim exp(entropy) of the distribution that usage (K,) is proportional to: from 1 to K codes in use."""
    p = usage / usage.sum().clamp(min=1e-12)
    return torch.exp(-torch.special.xlogy(p, p).sum())


def decay_of(step: int, last: float) -> float:
    """The decay of running means after `step` steps: `last`, but less while they are over more than the last
    tenth of the steps; the vectors of an encoder that has just begun to learn are soon out of date.

    The paper's is constant.
    """
    return min(last, (1 + step) / (10 + step))


class VectorQuantizer(nn.Module):
    """A codebook of `codes` vectors of `channels`; gradients pass straight through to the encoder.

    update "ema": codes are running means of the vectors that chose them (appendix A.1 of the paper);
    "loss": parameters, drawn to those vectors by the codebook loss of its eq. 3.
    commitment: beta of eq. 3. decay: of the running means, see `decay_of`. start: "kmeans" or "data".
    The first step runs without quantisation, and its vectors make the first codebook.
    """

    has_prior, cost, random = False, "commitment", False
    codebook: Tensor
    total: Tensor
    usage: Tensor
    steps: Tensor

    def __init__(
        self,
        codes: int,
        channels: int,
        *,
        update: str = "ema",
        commitment: float = 0.25,
        decay: float = 0.9,
        start: str = "kmeans",
    ) -> None:
        super().__init__()
        self.codes, self.channels, self.update = codes, channels, update
        self.commitment, self.decay, self.start = commitment, decay, start
        if update == "loss":
            self.codebook = nn.Parameter(torch.zeros(codes, channels))
        else:
            self.register_buffer("codebook", torch.zeros(codes, channels))
            self.register_buffer("total", torch.zeros(codes, channels + 1))
        self.register_buffer("usage", torch.zeros(codes))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._done: int | None = None  # `steps`, known without asking the device
        self._seen: Tensor | None = None
        self._vectors: list[Tensor] = []
        self.register_load_state_dict_post_hook(_forget)

    def width_in(self, channels: int) -> int:
        """Channels wanted from the encoder."""
        return channels

    def forward(self, h: Tensor, noise: Tensor | None = None) -> Code:
        """The code of h: (B, D, H, W); its penalty is beta times the mean squared distance of the encoder's
        vectors to their codes, and with update "loss" that of the codes to the vectors. `noise` has no use.
        """
        h = h.float()
        with torch.autocast(h.device.type, enabled=False):
            tokens = self.tokens(h.detach())
            code = self.lookup(tokens)
            penalty = self.commitment * F.mse_loss(h, code.detach(), reduction="none").mean(dim=(1, 2, 3))
            if self.update == "loss":
                pull = F.mse_loss(code, h.detach(), reduction="none").mean(dim=(1, 2, 3))
                penalty = penalty + pull
        begun = self.steps > 0
        # h - h.detach() is 0 with the gradient of h: z equals the code to the last bit
        z = torch.where(begun, code.detach() + (h - h.detach()), h)
        return Code(z, penalty * begun, tokens, self._logs(tokens))

    @torch.no_grad()
    def _logs(self, tokens: Tensor) -> dict[str, Tensor]:
        """Perplexity and share of live codes: of the running usage in training, else of these tokens."""
        usage = self.usage
        if not self.training:
            usage = torch.bincount(tokens.flatten(), minlength=self.codes).float()
        least = DEAD * usage.mean() if self.training else 0.5
        return {"perplexity": perplexity(usage), "live": (usage > least).float().mean()}

    def tokens(self, h: Tensor) -> Tensor:
        """(B, H, W) int64 tokens of h: (B, D, H, W) float32."""
        b, d, height, width = h.shape
        flat = h.permute(0, 2, 3, 1).reshape(-1, d)
        return nearest(flat, self.codebook.detach()).view(b, height, width)

    def lookup(self, tokens: Tensor) -> Tensor:
        """(B, D, H, W) codes of (B, H, W) int64 tokens.

        Raises:
            IndexError: a token is outside the codebook.
        """
        return F.embedding(tokens, self.codebook).permute(0, 3, 1, 2)

    def snap(self, z: Tensor) -> Tensor:
        """The codes nearest to z: (B, D, H, W), such as a diffusion model's samples."""
        return self.lookup(self.tokens(z.float()))

    @torch.compiler.disable
    @torch.no_grad()
    def observe(self, h: Tensor, tokens: Tensor, keys: Tensor) -> None:
        """Take note of a training micro-batch: its vectors h (B, D, H, W) and their tokens (B, H, W).

        keys: (B, H * W) uniform random numbers, addressed; they choose the vectors that may become codes.
        """
        flat = h.detach().float().permute(0, 2, 3, 1).flatten(1, 2)
        seen = totals(flat.flatten(0, 1), tokens.flatten(), self.codes)
        self._seen = seen if self._seen is None else self._seen + seen
        done = self._steps_done()
        if done == 0 or (done + 1) % CHECK == 0:
            count = keys.shape[1] if done == 0 else min(CANDIDATES, keys.shape[1])
            chosen = keys.topk(count, dim=1).indices[..., None].expand(-1, -1, flat.shape[2])
            self._vectors.append(flat.gather(1, chosen))

    @torch.no_grad()
    def stepped(self) -> None:
        """Learn from all that was observed since the last call, in every process."""
        if self._seen is None:
            return
        seen, vectors = dist.total(self._seen), self._candidates()
        done = self._steps_done()
        self._seen, self._vectors = None, []
        if done == 0 and vectors is not None:
            self._begin(vectors)
        else:
            self.usage.mul_(USAGE).add_(seen[:, -1], alpha=1 - USAGE)
            if self.update == "ema":
                decay = decay_of(done, self.decay)
                self.total.mul_(decay).add_(seen, alpha=1 - decay)
                self.codebook.copy_(centroids(self.total, self.codebook))
            if vectors is not None:
                self._restart(vectors)
        self.steps.add_(1)
        self._done = done + 1

    def _steps_done(self) -> int:
        if self._done is None:
            self._done = int(self.steps)
        return self._done

    def _candidates(self) -> Tensor | None:
        """(N, D) vectors of this step that may become codes, one of every image before the second of any;
        None between two looks. In order of position, whatever the number of processes."""
        if not self._vectors:
            return None
        return dist.gather_rows(torch.cat(self._vectors)).transpose(0, 1).flatten(0, 1)

    def _begin(self, vectors: Tensor) -> None:
        """Make the first codebook from vectors (N, D) in random order; with N < K some codes are equal, and
        the restart takes care of them."""
        codes = vectors[torch.arange(self.codes, device=vectors.device) % len(vectors)]
        if self.start == "kmeans":
            codes = lloyd(vectors, codes)
        seen = totals(vectors, nearest(vectors, codes), self.codes)
        self.codebook.copy_(codes)
        self.usage.copy_(seen[:, -1])
        if self.update == "ema":
            self.total.copy_(seen)

    def _restart(self, vectors: Tensor) -> None:
        """Put codes that are hardly used where vectors (N, D) of the last batch are."""
        dead = (self.usage < DEAD * self.usage.mean()).nonzero().flatten()[: len(vectors)]
        fresh = vectors[: len(dead)]
        self.codebook.index_copy_(0, dead, fresh)
        if self.update == "ema":
            # it counts as an average code: the next vectors move it, but none moves it far at once
            count = self.usage.mean().expand(len(dead), 1)
            self.total.index_copy_(0, dead, torch.cat([fresh * count, count], dim=1))


def _forget(module: nn.Module, incompatible: object) -> None:
    """After loading, the number of steps is what the file says."""
    module._done = None  # type: ignore[assignment]
