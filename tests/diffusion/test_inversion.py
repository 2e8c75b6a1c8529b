"""Null-text inversion on a small random network, whose guided sampling leaves the inverted trajectory."""

import pytest
import torch
from torch import nn

from genkit.diffusion.denoiser import Denoiser, bind
from genkit.diffusion.guidance import classifier_free
from genkit.diffusion.inversion import invert, null_at, null_text
from genkit.diffusion.samplers import ddim
from genkit.diffusion.schedules import cosine, times
from genkit.errors import InputError

SCALE, STEPS, E = 3.0, 20, 24


class Toy(nn.Module):
    """A smooth random network of 12 numbers, a noise level and one of 4 classes (or none)."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.label = nn.Parameter(0.7 * torch.randn(5, E, generator=g))
        self.into = nn.Parameter(torch.randn(12, 48, generator=g) / 12**0.5)
        self.told = nn.Parameter(torch.randn(E, 48, generator=g) / E**0.5)
        self.out = nn.Parameter(torch.randn(48, 12, generator=g) / 48**0.5)

    def embed_label(self, label):
        return self.label[label]

    def forward(self, x, level, cond=None):
        e = cond if cond.is_floating_point() else self.label[cond]
        return torch.tanh(x @ self.into + e @ self.told + level[:, None] / 1000) @ self.out


@pytest.fixture
def case():
    """A model, the labels of 4 points, the trajectory of their inversion, and its times."""
    model = Denoiser(Toy(), cosine(), "v", classes=4)
    model.requires_grad_(False)
    x = torch.randn(4, 12, generator=torch.Generator().manual_seed(1))
    cond, path = torch.arange(4), times(STEPS)
    with torch.inference_mode():
        steps = invert(bind(model, cond), model.schedule, x, path, refine=3)
        trajectory = [x, *(step.x for step in steps)][::-1]
    return model, cond, trajectory, path


def fit(case, rows=slice(None), **options):
    model, cond, trajectory, path = case
    part = [x[rows] for x in trajectory]
    cond = cond[rows]
    return null_text(model, model.schedule, cond, model.null(len(cond)), SCALE, part, path, **options)


def error(case, null):
    """(B,) mean squared distance of the guided sample from the data."""
    model, cond, trajectory, path = case
    denoise = classifier_free(model, cond, null, SCALE)
    *_, end = ddim(denoise, model.schedule, trajectory[0], path)
    return (end.x - trajectory[-1]).square().mean(dim=1)


def test_null_text_brings_the_guided_sample_back(case):
    """Oracle: the data themselves; the error falls twentyfold for every image and 200-fold on average."""
    model, path = case[0], case[3]
    nulls = fit(case, inner=30, tolerance=1e-7)
    assert len(nulls) == STEPS
    assert nulls[0].shape == (4, E)
    plain = error(case, model.null(4))
    fitted = error(case, null_at(torch.stack(nulls, dim=1), path))
    assert plain.min() > 0.01
    assert (fitted < 0.05 * plain).all(), (plain, fitted)
    assert fitted.mean() < 0.005 * plain.mean()


def test_images_of_a_batch_do_not_see_each_other(case):
    """Oracle: each image alone. Adam divides small gradients by their size, so rounding grows: 1e-3 of
    embeddings of size 0.7."""
    together = torch.stack(fit(case), dim=1)
    alone = torch.cat([torch.stack(fit(case, slice(i, i + 1)), dim=1) for i in range(4)])
    assert (together - alone).abs().max() < 1e-3


def test_an_image_that_is_done_stands_still(case):
    """Oracle: under a tolerance above every error, the model's own null embedding, to the bit."""
    model = case[0]
    nulls = fit(case, tolerance=1e9)
    assert all(torch.equal(null, model.embed(model.null(4))) for null in nulls)


def test_null_text_within_inference_mode(case):
    """Oracle: the result outside of it; the weights keep neither changes nor gradients."""
    model = case[0]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    outside = fit(case)
    with torch.inference_mode():
        inside = fit(case)
    assert all(torch.equal(a, b) for a, b in zip(outside, inside))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_null_text_refuses_16_bits(case):
    """Oracle: one line with the remedy."""
    case[0].to(torch.bfloat16)
    with pytest.raises(InputError, match="--precision fp32"):
        fit(case)


def test_null_at_finds_the_step_of_a_time():
    """Oracle: the embeddings' own numbers, also between two times."""
    nulls = torch.arange(3.0).reshape(1, 3, 1)
    null = null_at(nulls, torch.tensor([0.9, 0.6, 0.3, 0.0], dtype=torch.float64))
    assert [null(torch.tensor(t)).item() for t in (0.9, 0.7, 0.31, 0.1)] == [0, 1, 2, 2]
