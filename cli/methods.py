"""The samplers as the command line knows them: name -> options, help and the call."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from torch import Tensor

from genkit.config import arg, check_read
from genkit.diffusion.denoiser import Denoise
from genkit.diffusion.edm import euler, heun
from genkit.diffusion.multistep import dpmpp
from genkit.diffusion.samplers import VARIANCES, Step, StepNoise, ddim, ddpm
from genkit.diffusion.schedules import SPACINGS, Schedule
from genkit.errors import InputError
from genkit.models.load import Loaded

_SAMPLER = "Sampler"


@dataclass(frozen=True)
class SamplerConfig:
    """How a diffusion model is sampled."""

    steps: int | None = arg(None, "Network evaluations; default: 50.", min=1, panel=_SAMPLER)
    spacing: str | None = arg(
        None,
        "How the times are spaced; default: trailing (ddim and ddpm: as an imported pipeline has it).",
        choices=SPACINGS,
        panel=_SAMPLER,
    )
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

    steps: int | None = arg(None, "Network evaluations; default: 1000.", min=1, panel=_SAMPLER)
    variance: str | None = arg(
        None,
        "Variance of a step. small: the posterior's, large: the forward step's, learned: the model's, "
        "zero: none; default: small, or as an imported pipeline has it.",
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

    steps: int | None = arg(
        None,
        "Sampler steps, each but the last of two network evaluations; default: 18.",
        min=1,
        panel=_SAMPLER,
    )


@dataclass(frozen=True)
class DpmppConfig(SamplerConfig):
    """DPM-Solver++'s own choices."""

    steps: int | None = arg(None, "Network evaluations; default: 20.", min=1, panel=_SAMPLER)
    sde: bool = arg(False, "Its stochastic form.", panel=_SAMPLER)


Run = Callable[[Any, Denoise, Schedule, Tensor, Tensor, Callable[[int], Tensor]], Iterator[Step]]


class Method(NamedTuple):
    """help: of the command; config: its options; run: (options, denoise, schedule, x, times, noise) -> steps;
    usual: options that are not given; calls: network evaluations of so many steps; papers: whether a
    pipeline's own spacing and variance are meant for it."""

    help: str
    config: type[SamplerConfig]
    run: Run
    usual: Mapping[str, Any]
    calls: Callable[[int], int] = lambda steps: steps
    papers: bool = False


def _ddim(
    c: DdimConfig, denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor, noise: StepNoise
) -> Iterator[Step]:
    return ddim(denoise, schedule, x, times, eta=c.eta, noise=noise)


def _ddpm(
    c: DdpmConfig, denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor, noise: StepNoise
) -> Iterator[Step]:
    assert c.variance is not None
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
    "ddim": Method(
        "DDIM (Song et al. 2021): few steps, deterministic at --eta 0.",
        DdimConfig,
        _ddim,
        {"steps": 50, "spacing": "trailing"},
        papers=True,
    ),
    "ddpm": Method(
        "Ancestral sampling (Ho et al. 2020), on all steps or a thinned chain.",
        DdpmConfig,
        _ddpm,
        {"steps": 1000, "spacing": "trailing", "variance": "small"},
        papers=True,
    ),
    "dpmpp": Method(
        "DPM-Solver++ 2M (Lu et al. 2022): second order at one evaluation a step.",
        DpmppConfig,
        _dpmpp,
        {"steps": 20, "spacing": "trailing"},
    ),
    "heun": Method(
        "Heun's method with churn (Karras et al. 2022, alg. 2): second order, two evaluations a step.",
        HeunConfig,
        _churned(heun),
        # evenly spaced times of the karras schedule are Karras et al.'s levels already; on other schedules
        # those spend most steps where next to nothing is left to do
        {"steps": 18, "spacing": "trailing"},
        calls=lambda steps: 2 * steps - 1,
    ),
    "euler": Method(
        "Euler's method with churn (Karras et al. 2022): DDIM where there is none.",
        ChurnConfig,
        _churned(euler),
        {"steps": 50, "spacing": "trailing"},
    ),
}


def own_spacing(asked: str | None, loaded: Loaded) -> str:
    """How DDIM's and DDPM's times are spaced: as asked, else as the checkpoint's pipeline has it, else
    trailing; for the verbs that walk such times without being one of `METHODS`."""
    spacing = settled("ddim", DdimConfig(spacing=asked), loaded, {}).spacing
    assert spacing is not None
    return spacing


def check_churn(sampler: SamplerConfig) -> None:
    """Refuse limits of a churn that there is not.

    Raises:
        InputError: they are given without --churn, or leave nothing between them.
    """
    if not isinstance(sampler, ChurnConfig):
        return
    churned = sampler.churn > 0, "--churn"
    check_read(sampler, dict.fromkeys(("churn_min", "churn_max", "churn_noise"), churned))
    low, high = sampler.churn_min, sampler.churn_max
    if low > high:
        raise InputError(f"--churn-min {low:g} lies above --churn-max {high:g}, so nothing would churn")


def settled(name: str, sampler: SamplerConfig, loaded: Loaded, made: Mapping[str, Any]) -> SamplerConfig:
    """`sampler` with every option decided: as given, else as the noise was `made`, else as the checkpoint's
    pipeline has it, else the method's usual value.

    Raises:
        InputError: the variance that the model learned, of one that learned none.
    """
    method = METHODS[name]
    pipeline = {k: getattr(loaded.config, k, None) for k in ("spacing", "variance")} if method.papers else {}
    chosen = {}
    for option, usual in method.usual.items():
        known = (getattr(sampler, option), made.get(option), pipeline.get(option), usual)
        chosen[option] = next(value for value in known if value is not None)
    if chosen.get("variance") == "learned" and not getattr(loaded.module, "learn_variance", False):
        raise InputError(
            f"{loaded.checkpoint.path} has no learned variance; use --variance small, or train with "
            "--loss hybrid"
        )
    return replace(sampler, **chosen)
