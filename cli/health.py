"""Signs that a training run goes wrong, and what to do about each."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

LONG = 500  # steps that a sign must last


class Sign(NamedTuple):
    """seen: the logged means -> whether it is there now; text: what it means, and the remedy."""

    seen: Callable[[Mapping[str, float]], bool]
    text: str


SIGNS = {
    "posterior": Sign(
        lambda logs: logs.get("idle", 0.0) > 0.9,
        "more than nine in ten latent units carry nothing of the image; try --kl-warmup 2000, "
        "--free-bits 0.1, a lower --beta or a smaller --latent",
    ),
    "critic": Sign(
        # a classifier logs an accuracy as well, and may well be right
        lambda logs: "critic" in logs and logs.get("accuracy", 0.0) > 0.95,
        "the critic is right more than 95 times in 100, so it has little left to teach; for gan try a "
        "larger --r1, a lower --critic-lr or --spectral-norm, for vqgan and vae a later --disc-start or "
        "--spectral-norm, for aae a smaller --latent",
    ),
    "codebook": Sign(
        lambda logs: logs.get("live", 1.0) < 0.5,
        "more than half of the codebook is not in use; try a smaller --codes, a lower --lr or a larger "
        "--batch-size",
    ),
}


class Health:
    """Says each sign once, when it has lasted for LONG steps."""

    def __init__(self, start: int = 0) -> None:
        self.since: dict[str, int] = {}
        self.last = start
        self.said: set[str] = set()

    def check(self, step: int, logs: Mapping[str, float]) -> list[str]:
        """The warnings due after `step`; logs: means since the call before."""
        due = []
        for name, sign in SIGNS.items():
            if not sign.seen(logs):
                self.since.pop(name, None)
            elif step - self.since.setdefault(name, self.last) >= LONG and name not in self.said:
                self.said.add(name)
                due.append(f"warning: for {step - self.since[name]} steps {sign.text}")
        self.last = step
        return due
