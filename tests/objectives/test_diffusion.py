"""The variational part of the diffusion loss: what it teaches, which steps it draws, what it remembers."""

from collections import deque

import pytest
import torch
from torch import nn

from genkit import io
from genkit.data.source import Batch, Info
from genkit.diffusion.denoiser import Denoiser
from genkit.diffusion.schedules import SCHEDULES
from genkit.errors import InputError
from genkit.models.ddpm import DdpmConfig, build
from genkit.objectives.diffusion import Bound, Diffusion
from genkit.objectives.times import ImportantSteps, Times, UniformSteps
from genkit.registry import find
from genkit.train.config import OptimConfig, RunConfig
from genkit.train.loop import Hooks, fit
from genkit.train.objective import Noise


class Two(nn.Module):
    """A mean and a variance with a parameter each."""

    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(0.3))
        self.var = nn.Parameter(torch.tensor(0.2))

    def forward(self, x, level, cond=None):
        shape = (len(x), 1, *x.shape[2:])
        return torch.cat([x * self.mean, self.var.expand(shape)], dim=1)


def made(weight, importance=False, schedule="linear", target="eps", discrete=True):
    s = SCHEDULES[schedule]()
    model = Denoiser(Two(), s, target, learn_variance=True)
    bound = Bound(s, weight=weight, importance=importance, discrete=discrete)
    return Diffusion(model, Times(s, "uniform", 0, 1), bound=bound)


def pixels(n=8, size=4):
    return (torch.arange(n * size * size) * 37 % 256).reshape(n, 1, size, size) / 127.5 - 1


def gradients(objective):
    objective.loss("main", Batch(pixels()), Noise(0, torch.arange(8))).total.backward()
    return objective.model.network.mean.grad.item(), objective.model.network.var.grad.item()


def test_the_bound_teaches_the_variance_alone_in_the_hybrid_loss():
    """Oracle: the mean's gradient is that of the squared error, to the last bit, whatever the weight."""
    plain, hybrid, heavy, bound = (gradients(made(w)) for w in (0.0, 0.001, 1.0, None))
    assert plain[0] == hybrid[0] == heavy[0] != 0
    assert plain[1] == 0
    assert heavy[1] == pytest.approx(1000 * hybrid[1], rel=1e-5)
    assert hybrid[1] != 0
    assert bound[0] != 0
    assert bound[0] != plain[0]


@pytest.mark.parametrize(
    "schedule, target", [("linear", "eps"), ("cosine", "v"), ("flow", "flow"), ("karras", "edm")]
)
@pytest.mark.parametrize("loss", ["hybrid", "vlb"])
def test_every_schedule_and_data_kind_trains(schedule, target, loss):
    """Oracle: finite gradients reach every parameter, for images and latents, with and without classes."""
    for kind, importance in (("images", "uniform"), ("latents", "importance")):
        info = Info("x", kind, (1, 8, 8), 100, ("a", "b"))
        config = DdpmConfig(
            width=8,
            multipliers=(1,),
            blocks=1,
            schedule=schedule,
            target=target,
            loss=loss,
            time_sampling=importance,
            class_conditional=True,
        )
        model = build(config, info)
        objective = find("ddpm").objective(model, config, info)
        batch = Batch(pixels(4, 8), torch.tensor([0, 1, 0, 1]))
        result = objective.loss("main", batch, Noise(0, torch.arange(4)))
        result.total.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
        assert set(result.logs) == {"loss", "mse", "vlb"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"time_sampling": "importance"}, "--loss simple"),
        ({"loss": "hybrid", "time_sampling": "lognormal"}, "lognormal"),
        ({"loss": "vlb", "weighting": "min-snr"}, "min-snr"),
    ],
)
def test_contradictions_are_refused(changes, message):
    """Oracle: the option is named."""
    with pytest.raises(InputError, match=message):
        build(DdpmConfig(width=8, multipliers=(1,), **changes), Info("x", "images", (1, 8, 8), 100))


def test_uniform_steps():
    """Oracle: every step equally often, for every u on a grid; weight 1."""
    step, weight = UniformSteps(1000)((torch.arange(4000) + 0.5) / 4000)
    assert (step.bincount(minlength=1000) == 4).all()
    assert (weight == 1).all()


def warm(steps=20, **options):
    """A history in which step i has losses around i + 1."""
    history = ImportantSteps(steps, **options)
    for k in range(history.keep):
        history.note(torch.arange(steps), torch.arange(1.0, steps + 1) + 0.1 * k)
        history.commit()
    return history


def test_probabilities_follow_the_second_moment():
    """Oracle: the paper's formula by hand; uniform until every step has its ten losses."""
    history = ImportantSteps(20)
    assert torch.allclose(history.probabilities(), torch.full((20,), 0.05, dtype=torch.float64))
    history = warm()
    rows = torch.arange(1.0, 21, dtype=torch.float64)[:, None] + 0.1 * torch.arange(10, dtype=torch.float64)
    size = rows.square().mean(dim=1).sqrt()
    wanted = 0.999 * size / size.sum() + 0.001 / 20
    assert torch.allclose(history.probabilities(), wanted, rtol=1e-6)


def test_importance_sampling_is_unbiased():
    """Oracle: the mean of f over all steps, for an f that is unlike the losses; u on a grid of 2^20, whose
    quadrature error is below 20 / 2^20 of the largest value."""
    history = warm()
    f = torch.linspace(3, -1, 20, dtype=torch.float64).sin() + 2
    step, weight = history((torch.arange(1 << 20) + 0.5) / (1 << 20))
    assert (weight.double() * f[step]).mean().item() == pytest.approx(f.mean().item(), rel=1e-4)


def test_history_is_that_of_a_queue_for_any_split():
    """Oracle: a deque of ten for each step; the same buffers whether the losses come at once or in parts."""
    g = torch.Generator().manual_seed(0)
    whole, parts = ImportantSteps(7), ImportantSteps(7)
    queues = [deque(maxlen=10) for _ in range(7)]
    for size in (64, 64, 5, 200):
        step, loss = torch.randint(7, (size,), generator=g), torch.rand(size, generator=g)
        for s, value in zip(step.tolist(), loss.tolist()):
            queues[s].append(value)
        whole.note(step, loss)
        for s, part in zip(step.tensor_split(4), loss.tensor_split(4)):
            parts.note(s, part)
        whole.commit()
        parts.commit()
    assert torch.equal(whole.losses, parts.losses)
    assert torch.equal(whole.seen, parts.seen)
    for row, queue in zip(whole.losses, queues):
        assert sorted(row.tolist()) == pytest.approx(sorted(queue))


def test_evaluation_is_not_remembered():
    """Oracle: an empty list."""
    objective = made(None, importance=True).eval()
    objective.evaluate(Batch(pixels()), Noise(0, torch.arange(8)))
    assert objective.bound.steps._pending == []


class Pixels:
    """64 small images."""

    info = Info("tiny", "images", (1, 4, 4), 64)

    def __len__(self):
        return 64

    def batches(self, indices, device):
        return (Batch(pixels(64)[i]) for i in indices)


def train(out, stop_at=None, **changes):
    """The objective and its weights after 20 steps with a warm history."""
    objective = made(None, importance=True)
    g = torch.Generator().manual_seed(0)
    objective.bound.steps.losses[:1000] = torch.rand(1000, 10, generator=g) + 0.1
    objective.bound.steps.seen += 10
    optim = OptimConfig(steps=20, batch_size=16, lr=1e-2, precision="fp32", **changes)
    seen = []

    def stop():
        seen.append(1)
        return stop_at is not None and len(seen) >= stop_at

    def save(model, step):
        io.save_checkpoint(
            out / "model.safetensors", model.state_dict(), model="tiny", config={}, data={}, step=step
        )

    run = RunConfig(device="cpu", log_every=1e9, save_every=1e9)
    fit(objective, Pixels(), optim=optim, run=run, out=out, save=save, settings={}, hooks=Hooks(stop=stop))
    return objective


def test_history_survives_an_interruption(tmp_path):
    """Oracle: the uninterrupted run, bit for bit, history and weights."""
    whole = train(tmp_path / "a").state_dict()
    train(tmp_path / "b", stop_at=7)
    rest = train(tmp_path / "b").state_dict()
    assert all(torch.equal(whole[k], rest[k]) for k in whole)
    assert whole["bound.steps.seen"].sum() == 10_000 + 20 * 16


def test_history_does_not_depend_on_accumulation(tmp_path):
    """Oracle: the same batches in one part: the same steps are drawn, losses to fp32 rounding."""
    one, four = (train(tmp_path / f"{k}", accumulate=k).state_dict() for k in (1, 4))
    assert torch.equal(one["bound.steps.seen"], four["bound.steps.seen"])
    assert torch.allclose(one["bound.steps.losses"], four["bound.steps.losses"], rtol=1e-3)
    assert torch.allclose(one["model.network.mean"], four["model.network.mean"], rtol=1e-4)
