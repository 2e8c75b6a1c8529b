"""The samplers as the command line knows them: name -> options, help and the call."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from genkit.config import arg
from genkit.diffusion.denoiser import Denoise
from genkit.diffusion.edm import euler, heun
from genkit.diffusion.multistep import dpmpp
from genkit.diffusion.samplers import VARIANCES, Step, StepNoise, ddim, ddpm
from genkit.diffusion.schedules import SPACINGS, Schedule

_SAMPLER = "Sampler"


@dataclass(frozen=True)
class SamplerConfig:
    """How a diffusion model is sampled."""

    steps: int = arg(50, "Network evaluations.", min=1, panel=_SAMPLER)
    spacing: str = arg("trailing", "How the times are spaced.", choices=SPACINGS, panel=_SAMPLER)
    clip: bool | None = arg(
        None,
        "Keep each predicted image in [-1, 1]; default: yes for images, no for latents and for --noise.",
        panel=_SAMPLER,
    )
    noise: str | None = arg(
        None, "Start from this noise file (`genkit invert`) instead of the seed.", panel=_SAMPLER
    )


@dataclass(frozen=True)
class DdimConfig(SamplerConfig):
    """DDIM's own choice."""

    eta: float = arg(
        0.0, "Share of DDPM's noise: 0 deterministic, 1 as much as DDPM.", min=0.0, max=1.0, panel=_SAMPLER
    )


@dataclass(frozen=True)
class DdpmConfig(SamplerConfig):
    """DDPM's own choices."""

    steps: int = arg(1000, "Network evaluations.", min=1, panel=_SAMPLER)
    variance: str = arg(
        "small",
        "Variance of a step: the posterior's, the forward step's, the one the model learned, or none.",
        choices=VARIANCES,
        panel=_SAMPLER,
    )


@dataclass(frozen=True)
class ChurnConfig(SamplerConfig):
    """The choices of Karras et al. 2022, alg. 2; sigma stands for sigma / alpha."""

    churn: float = arg(0.0, "S_churn: new noise over the whole chain; 0 is the ODE.", min=0.0, panel=_SAMPLER)
    churn_min: float = arg(0.0, "S_min: no new noise below this sigma.", min=0.0, panel=_SAMPLER)
    churn_max: float = arg(1e9, "S_max: no new noise above this sigma.", min=0.0, panel=_SAMPLER)
    churn_noise: float = arg(1.0, "S_noise: standard deviation of the new noise.", min=0.0, panel=_SAMPLER)


@dataclass(frozen=True)
class HeunConfig(ChurnConfig):
    """Heun's second-order steps."""

    steps: int = arg(
        18, "Sampler steps; each but the last evaluates the network twice.", min=1, panel=_SAMPLER
    )
    spacing: str = arg("karras", "How the times are spaced.", choices=SPACINGS, panel=_SAMPLER)


@dataclass(frozen=True)
class DpmppConfig(SamplerConfig):
    """DPM-Solver++'s own choices."""

    steps: int = arg(20, "Network evaluations.", min=1, panel=_SAMPLER)
    sde: bool = arg(False, "Its stochastic form.", panel=_SAMPLER)


Run = Callable[[Any, Denoise, Schedule, Tensor, Tensor, Callable[[int], Tensor]], Iterator[Step]]


class Method(NamedTuple):
    """help: of the command; config: its options; run: (options, denoise, schedule, x, times, noise) -> steps;
    calls: network evaluations of so many steps."""

    help: str
    config: type[SamplerConfig]
    run: Run
    calls: Callable[[int], int] = lambda steps: steps


def _ddim(
    c: DdimConfig, denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor, noise: StepNoise
) -> Iterator[Step]:
    return ddim(denoise, schedule, x, times, eta=c.eta, noise=noise)


def _ddpm(
    c: DdpmConfig, denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor, noise: StepNoise
) -> Iterator[Step]:
    return ddpm(denoise, schedule, x, times, variance=c.variance, noise=noise)


def _churned(solver: Any) -> Run:
    def run(
        c: ChurnConfig, denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor, noise: StepNoise
    ) -> Iterator[Step]:
        return solver(
            denoise,
            schedule,
            x,
            times,
            churn=c.churn,
            churn_min=c.churn_min,
            churn_max=c.churn_max,
            churn_noise=c.churn_noise,
            noise=noise,
        )

    return run


def _dpmpp(
    c: DpmppConfig, denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor, noise: StepNoise
) -> Iterator[Step]:
    return dpmpp(denoise, schedule, x, times, sde=c.sde, noise=noise)


METHODS = {
    "ddim": Method("DDIM (Song et al. 2021): few steps, deterministic at --eta 0.", DdimConfig, _ddim),
    "ddpm": Method(
        "Ancestral sampling (Ho et al. 2020), on all steps or a thinned chain.", DdpmConfig, _ddpm
    ),
    "dpmpp": Method(
        "DPM-Solver++ 2M (Lu et al. 2022): second order at one evaluation a step.", DpmppConfig, _dpmpp
    ),
    "heun": Method(
        "Heun's method with churn (Karras et al. 2022, alg. 2): second order, two evaluations a step.",
        HeunConfig,
        _churned(heun),
        lambda steps: 2 * steps - 1,
    ),
    "euler": Method(
        "Euler's method with churn (Karras et al. 2022): DDIM where there is none.",
        ChurnConfig,
        _churned(euler),
    ),
}
