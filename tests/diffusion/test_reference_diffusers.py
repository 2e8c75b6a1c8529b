"""Every sampler against the schedulers of diffusers, with the same network, start, times and noise.

Live where diffusers is installed; golden numbers made by diffusers 0.42.1 elsewhere. diffusers keeps its
table of alpha_bar in float32, so genkit's schedule is built from that table: what is compared is the sampler.
"""

import pytest
import torch
from diffusion_networks import WIDTH, Smooth, relative, start, step_noise

from genkit.diffusion.denoiser import Denoiser, Prediction, bind
from genkit.diffusion.edm import euler, heun
from genkit.diffusion.multistep import dpmpp
from genkit.diffusion.samplers import ddim, ddpm
from genkit.diffusion.schedules import chain, karras, karras_times, linear, times
from genkit.diffusion.targets import solve

TARGETS = {"epsilon": "eps", "v_prediction": "v"}
STEPS = [10, 50, 1000]


def table():
    """diffusers' alpha_bar of its default linear betas."""
    return torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), 0)


# (sampler, its choice, spacing) -> row 1 of the sample after 10 steps; v prediction, the noise of step_noise.
# ddpm: the x0 of the last step.
GOLDEN = {
    ("ddim", 0.0, "leading"): [-1.602214, -1.848253, -0.1299582, 2.102819],
    ("ddim", 1.0, "leading"): [-0.9726062, -0.3662619, -0.4195349, 1.228498],
    ("ddpm", "small", "leading"): [-0.9726062, -0.3662619, -0.4195349, 1.228498],
    ("ddpm", "large", "leading"): [-0.7286553, -0.3990852, -0.7072307, 1.104992],
    ("ddpm", "learned", "leading"): [-0.9479667, -0.3921052, -0.4399969, 1.12789],
    ("euler", 0.0, "leading"): [-1.602215, -1.848252, -0.1299583, 2.102819],
    ("heun", 0.0, "leading"): [-1.867377, -2.281747, -0.0402178, 2.537968],
    ("ddim", 0.0, "trailing"): [-1.599865, -1.850962, -0.1308648, 2.101835],
    ("ddim", 1.0, "trailing"): [-0.736293, -0.3602793, -0.6811736, 1.095525],
    ("ddpm", "small", "trailing"): [-0.736293, -0.3602794, -0.6811734, 1.095525],
    ("ddpm", "large", "trailing"): [-0.5057849, -0.3588616, -0.9054991, 0.9997523],
    ("ddpm", "learned", "trailing"): [-0.6502453, -0.3553104, -0.7310667, 1.000501],
    ("euler", 0.0, "trailing"): [-1.599865, -1.850961, -0.1308647, 2.101835],
    ("heun", 0.0, "trailing"): [-1.806061, -2.161043, -0.06320796, 2.416628],
    ("dpmpp", False, "trailing"): [-1.75148, -2.071626, -0.07833245, 2.324535],
    ("dpmpp", True, "trailing"): [-1.068573, -0.5074056, -0.517894, 1.352401],
    ("euler", 0.0, "karras"): [-0.06800894, 0.01301424, 0.174929, 0.2546315],
    ("dpmpp", False, "karras"): [-0.3115122, -0.1018389, 0.106405, 0.6054574],
    ("dpmpp", True, "karras"): [0.3221417, 0.5320781, -0.4553725, -0.6140009],
}
SCHEDULE = chain(table().double().log())


def predictor(kind, outputs=WIDTH, schedule=SCHEDULE):
    """genkit's reading of the network whose answer diffusers calls `kind`; the second half is the variance.

    Written here rather than a Denoiser, so that only the sampler is compared.
    """

    def denoise(x, t):
        y = Smooth(outputs)(x, schedule.embed(t))
        share = 0.5 * (y[:, WIDTH:] + 1) if outputs > WIDTH else None
        x0, eps = solve(y[:, :WIDTH], x, schedule.alpha(t), schedule.sigma(t), TARGETS[kind])
        return Prediction(x0, eps, share)

    return denoise


def last(steps):
    *_, step = steps
    return step.x


def walk(scheduler, network, x, injected=False, **options):
    """diffusers' last step from x, found by its loop; injected: step k gets the noise of step k."""
    for k, t in enumerate(scheduler.timesteps):
        answer = network(scheduler.scale_model_input(x, t), t)
        noise = {"variance_noise": step_noise(k)} if injected else {}
        step = scheduler.step(answer, t, x, **noise, **options)
        x = step.prev_sample
    return step


def chain_times(scheduler):
    """genkit's times for the indices that a scheduler of diffusers visits."""
    index = scheduler.timesteps.double().unique().flip(0)
    return torch.cat([(index + 1) / 1000, torch.zeros(1, dtype=torch.float64)])


def common(kind, spacing):
    return {
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "prediction_type": kind,
        "timestep_spacing": spacing,
    }


cases = pytest.mark.parametrize(
    "kind, spacing, n", [(k, s, n) for k in TARGETS for s in ("leading", "trailing") for n in STEPS]
)


@cases
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim(kind, spacing, n, eta):
    """Oracle: DDIMScheduler, its noise injected. 1e-5 relative: float32 rounding of up to 1000 steps."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(**common(kind, spacing), clip_sample=False)
    scheduler.set_timesteps(n)
    assert torch.equal(scheduler.alphas_cumprod, table())
    path = times(n, spacing)
    assert torch.equal(chain_times(scheduler), path)
    wanted = walk(scheduler, Smooth(), start(), injected=eta > 0, eta=eta).prev_sample
    found = last(ddim(predictor(kind), SCHEDULE, start(), path, eta=eta, noise=step_noise))
    assert relative(found, wanted) < 1e-5


@cases
@pytest.mark.parametrize("variance", ["small", "large", "learned"])
def test_ddpm(kind, spacing, n, variance):
    """Oracle: DDPMScheduler, which draws its noise from a generator that genkit's noise replays.

    Its last step of trailing times adds noise where its index is not 0; the papers add none on the step to
    the data, so the x0 predicted there is compared.
    """
    diffusers = pytest.importorskip("diffusers")
    learned = variance == "learned"
    name = "learned_range" if learned else f"fixed_{variance}"
    scheduler = diffusers.DDPMScheduler(**common(kind, spacing), variance_type=name, clip_sample=False)
    scheduler.set_timesteps(n)
    outputs = 2 * WIDTH if learned else WIDTH
    step = walk(scheduler, Smooth(outputs), start(), generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(0)

    def noise(k):
        return torch.randn(start().shape, generator=generator)

    denoise, path = predictor(kind, outputs), times(n, spacing)
    found = last(ddpm(denoise, SCHEDULE, start(), path, variance=variance, noise=noise))
    assert relative(found, step.pred_original_sample) < 1e-5


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("spacing, n", [("leading", 10), ("leading", 50), *[("trailing", n) for n in STEPS]])
@pytest.mark.parametrize("sde", [False, True])
def test_dpmpp(kind, spacing, n, sde):
    """Oracle: DPMSolverMultistepScheduler, order 2, midpoint, final sigma zero.

    Its leading times are those of n + 1 steps without the last, so genkit is given its times. It keeps its
    noise levels in float32 and takes differences of their logarithms; they are replaced by float64 ones.
    """
    diffusers = pytest.importorskip("diffusers")
    algorithm = "sde-dpmsolver++" if sde else "dpmsolver++"
    scheduler = diffusers.DPMSolverMultistepScheduler(
        **common(kind, spacing), algorithm_type=algorithm, solver_order=2, solver_type="midpoint"
    )
    scheduler.set_timesteps(n)
    bar = torch.cat([table().double()[scheduler.timesteps], torch.ones(1)])
    scheduler.sigmas = ((1 - bar) / bar).sqrt()
    wanted = walk(scheduler, Smooth(), start(), injected=sde).prev_sample
    path = chain_times(scheduler)
    found = last(dpmpp(predictor(kind), SCHEDULE, start(), path, sde=sde, noise=step_noise))
    assert relative(found, wanted) < 1e-5


@cases
@pytest.mark.parametrize(
    "sampler, name", [(euler, "EulerDiscreteScheduler"), (heun, "HeunDiscreteScheduler")]
)
def test_euler_and_heun(kind, spacing, n, sampler, name):
    """Oracle: diffusers' schedulers of that name, which walk x / alpha."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)(**common(kind, spacing))
    scheduler.set_timesteps(n)
    path = times(n, spacing)
    wanted = walk(scheduler, Smooth(), start() / SCHEDULE.alpha(path[0]).item()).prev_sample
    found = last(sampler(predictor(kind), SCHEDULE, start(), path))
    assert relative(found, wanted) < 1e-5


class Scaled(torch.nn.Module):
    """The network told ln(sigma) / 4, as diffusers' EDM schedulers do, on genkit's scale of 1000."""

    def forward(self, x, level, cond=None):
        return Smooth()(x, 1000 * level)


@pytest.mark.parametrize("n", STEPS)
@pytest.mark.parametrize("algorithm", ["euler", "dpmsolver++", "sde-dpmsolver++"])
def test_edm_schedulers(n, algorithm):
    """Oracle: EDMEulerScheduler and EDMDPMSolverMultistepScheduler with their preconditioning."""
    diffusers = pytest.importorskip("diffusers")
    if algorithm == "euler":
        scheduler = diffusers.EDMEulerScheduler()
    else:
        scheduler = diffusers.EDMDPMSolverMultistepScheduler(algorithm_type=algorithm)
    scheduler.set_timesteps(n)
    schedule = karras()
    path, sde = karras_times(n, schedule), algorithm.startswith("sde")
    assert torch.allclose(schedule.sigma(path), scheduler.sigmas.double(), rtol=1e-5, atol=0)
    scheduler.sigmas = schedule.sigma(path)
    options = {"generator": torch.Generator().manual_seed(0)} if sde else {}
    wanted = walk(scheduler, Scaled(), 80 * start(), **options).prev_sample
    generator = torch.Generator().manual_seed(0)

    def noise(k):
        return torch.randn(start().shape, generator=generator)

    if algorithm == "euler":
        found = last(euler(edm_denoise, schedule, 80 * start(), path))
    else:
        found = last(dpmpp(edm_denoise, schedule, 80 * start(), path, sde=sde, noise=noise))
    assert relative(found, wanted) < 1e-5


def edm_denoise(x, t):
    """genkit's preconditioning of the network (`Scaled` is for diffusers, which scales no level)."""
    schedule = karras()
    return bind(Denoiser(Smooth(), schedule, "edm", 0.5))(x, t)


def replay(case):
    """genkit's sample for a golden case."""
    sampler, choice, spacing = case
    edm = spacing == "karras"
    schedule = karras() if edm else SCHEDULE
    denoise = edm_denoise if edm else predictor("v_prediction", 2 * WIDTH if choice == "learned" else WIDTH)
    path = times(10, spacing, schedule=schedule)
    x = 80 * start() if edm else start()
    if sampler == "ddim":
        return last(ddim(denoise, schedule, x, path, eta=choice, noise=step_noise))
    if sampler == "ddpm":
        return last(ddpm(denoise, schedule, x, path, variance=choice, noise=step_noise))
    if sampler == "dpmpp":
        return last(dpmpp(denoise, schedule, x, path, sde=choice, noise=step_noise))
    return last({"euler": euler, "heun": heun}[sampler](denoise, schedule, x, path))


@pytest.mark.parametrize("case, wanted", GOLDEN.items(), ids=str)
def test_golden(case, wanted):
    """Oracle: diffusers 0.42.1. 3e-5 of values of size 3: its noise levels are float32."""
    assert replay(case)[1, :4].tolist() == pytest.approx(wanted, abs=3e-5)


def test_the_float32_table_is_a_small_difference():
    """Oracle: DDIM-50 on genkit's own float64 linear schedule; diffusers' float32 table moves it by less than
    1e-5."""
    schedule, path = linear(), times(50, "leading")
    a = last(ddim(predictor("v_prediction"), SCHEDULE, start(), path))
    b = last(ddim(predictor("v_prediction", schedule=schedule), schedule, start(), path))
    assert relative(a, b) < 1e-5
