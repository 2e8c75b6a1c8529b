"""Imported and exported networks beside diffusers' own, with the same random weights and noise."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from genkit.data.source import Info
from genkit.diffusion.denoiser import bind, clipped
from genkit.diffusion.samplers import ddim
from genkit.diffusion.schedules import times
from genkit.interop.exporting import export_model, write_files
from genkit.interop.hub import open_repository
from genkit.interop.importing import Imported, import_model
from genkit.io.checkpoint import save_checkpoint
from genkit.models.ddpm import DdpmConfig
from genkit.models.load import Loaded, load_model
from genkit.models.sampling import prepare
from genkit.registry import find

diffusers = pytest.importorskip("diffusers", reason="diffusers is the reference here and is not installed")

PLAIN = {"attention_head_dim": None, "downsample_padding": 0, "flip_sin_to_cos": False, "freq_shift": 1}
DDPM = {**PLAIN, "norm_eps": 1e-6}
CIFAR10 = {
    **DDPM,
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
CELEBA = {  # the levels of google/ddpm-celebahq-256 at a sixteenth of its width
    **DDPM,
    "sample_size": 64,
    "block_out_channels": (8, 8, 16, 16, 32, 32),
    "norm_num_groups": 8,
    "down_block_types": (*("DownBlock2D",) * 4, "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", *("UpBlock2D",) * 4),
}
HEADS = {
    "sample_size": 16,
    "block_out_channels": (16, 24, 32),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}
SMALL = {
    "sample_size": 8,
    "block_out_channels": (16, 24),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
UNUSUAL = {
    **HEADS,
    "resnet_time_scale_shift": "scale_shift",
    "time_embedding_dim": 48,
    "center_input_sample": True,
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
    "in_channels": 1,
    "out_channels": 1,
    "sample_size": (16, 8),
}
NO_MIDDLE = {**HEADS, "add_attention": False, "norm_num_groups": 4}
MIDDLE_NORM = {**UNUSUAL, "attn_norm_num_groups": 4}
VAE = {
    "sample_size": 32,
    "block_out_channels": (16, 24, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 2,
    "norm_num_groups": 8,
    "scaling_factor": 0.3,
    "shift_factor": 0.1,
}


def shaken(model: nn.Module) -> nn.Module:
    """The model with every weight moved, those of norms and biases too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def saved(folder: Path, network: nn.Module, scheduler=None) -> Imported:
    """What genkit imports from the pipeline of `network`, or from it alone."""
    if scheduler is None:
        network.save_pretrained(folder)
    else:
        ddim_ = isinstance(scheduler, diffusers.DDIMScheduler)
        pipeline = diffusers.DDIMPipeline if ddim_ else diffusers.DDPMPipeline
        pipeline(unet=network, scheduler=scheduler).save_pretrained(folder)
    return import_model(open_repository(str(folder), print))


def checkpoint(path: Path, model: Imported) -> Loaded:
    """`model` written to `path` and loaded again."""
    config = {"model": vars(model.config)}
    save_checkpoint(path, model.tensors, model=model.family, config=config, data=model.info._asdict(), step=0)
    return load_model(path)


def built(model: Imported) -> nn.Module:
    """The network of `model` without a file, and without the schedule, which the meta device leaves empty."""
    with torch.device("meta"):
        module = find(model.family).build(model.config, model.info)
    module.load_state_dict(model.tensors, assign=True)
    return module.eval()


def relative(got: Tensor, want: Tensor) -> float:
    return ((got - want).abs().max() / want.abs().max()).item()


@torch.inference_mode()
@pytest.mark.parametrize(
    "config",
    [CIFAR10, CELEBA, HEADS, UNUSUAL, NO_MIDDLE, MIDDLE_NORM],
    ids=["cifar10", "celeba", "heads", "unusual", "no middle", "middle norm"],
)
def test_unet_forward(tmp_path, config):
    """Oracle: diffusers' forward pass. Some 30 float32 layers summed in another order: a few 1e-6."""
    reference = shaken(diffusers.UNet2DModel(**config))
    model = saved(tmp_path, reference)
    mine = built(model).network
    x = noise(1, *model.info.shape)
    for t in (999,) if config is CIFAR10 else (0, 999):
        want = reference(x, torch.tensor(t)).sample
        assert want.std() > 0.05
        assert relative(mine(x, torch.full((1,), float(t))), want) <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize(
    ("prediction", "spacing", "clip"),
    [
        ("epsilon", "leading", True),
        ("epsilon", "trailing", False),
        ("v_prediction", "trailing", True),
        ("v_prediction", "leading", False),
        ("sample", "leading", True),
    ],
)
def test_ddim_50(tmp_path, prediction, spacing, clip):
    """Oracle: 50 steps of diffusers' scheduler from the same noise.

    With `use_clipped_model_output`, the form of Ho et al. that genkit has: eps agrees with the clipped x0.
    Differences of 1e-6 a step add up over 50 steps.
    """
    reference = shaken(diffusers.UNet2DModel(**SMALL))
    schedule = {"beta_schedule": "squaredcos_cap_v2"} if prediction == "v_prediction" else {}
    scheduler = diffusers.DDIMScheduler(
        timestep_spacing=spacing, prediction_type=prediction, clip_sample=clip, **schedule
    )
    model = saved(tmp_path, reference, scheduler)
    assert (model.config.clip, model.config.spacing) == (clip, spacing)
    mine = prepare(checkpoint(tmp_path / "x.safetensors", model).module, torch.device("cpu"), "fp32", False)
    start = noise(2, 3, 8, 8)
    denoise = clipped(bind(mine), mine.schedule) if clip else bind(mine)
    *_, last = ddim(denoise, mine.schedule, start, times(50, spacing))
    scheduler.set_timesteps(50)
    want = start
    for t in scheduler.timesteps:
        output = reference(want, t).sample
        want = scheduler.step(output, t, want, use_clipped_model_output=True).prev_sample
    assert relative(last.x, want) <= 1e-4


@torch.inference_mode()
def test_ddpm_pipeline_with_learned_variance(tmp_path):
    """Oracle: diffusers' one-step mean and variance, from the 6 channels of its network."""
    reference = shaken(diffusers.UNet2DModel(**{**HEADS, "out_channels": 6}))
    scheduler = diffusers.DDPMScheduler(variance_type="learned_range", clip_sample=False)
    mine = checkpoint(tmp_path / "x.safetensors", saved(tmp_path, reference, scheduler)).module
    x, t = noise(1, 3, 16, 16), 400
    answer = mine(x, torch.tensor((t + 1) / 1000, dtype=torch.float64))
    eps, raw = reference(x, torch.tensor(t)).sample.chunk(2, dim=1)
    assert relative(answer.eps, eps) <= 1e-5
    want = scheduler._get_variance(t, predicted_variance=raw)
    low, high = (scheduler._get_variance(t, variance_type=v).log() for v in ("fixed_small", "fixed_large"))
    assert relative(answer.var * high + (1 - answer.var) * low, want) <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("changes", [{}, {"use_quant_conv": False, "use_post_quant_conv": False}])
def test_autoencoder(tmp_path, changes):
    """Oracle: diffusers' posterior mean, log variance and decoded pictures, also at another size."""
    reference = shaken(diffusers.AutoencoderKL(**{**VAE, **changes}))
    mine = checkpoint(tmp_path / "x.safetensors", saved(tmp_path, reference)).module
    for side in (32, 48):
        x, z = noise(1, 3, side, side), noise(1, 4, side // 4, side // 4)
        posterior = reference.encode(x).latent_dist
        assert relative(mine.encode(x).z, posterior.mean) <= 1e-5
        one = torch.ones_like(posterior.mean)
        spread = mine.encode(x, noise=one).z - mine.encode(x).z
        assert relative(spread, posterior.std) <= 1e-5
        assert relative(mine.decode_raw(z), reference.decode(z).sample) <= 1e-5


@torch.inference_mode()
@pytest.mark.parametrize("config", [HEADS, UNUSUAL, NO_MIDDLE, MIDDLE_NORM])
def test_unet_round_trip(tmp_path, config):
    """Oracle: what diffusers loads from the export is bit for bit what it saved, settings included."""
    reference = shaken(diffusers.UNet2DModel(**config))
    scheduler = diffusers.DDPMScheduler(beta_schedule="scaled_linear", variance_type="fixed_large")
    model = saved(tmp_path / "in", reference, scheduler)
    loaded = checkpoint(tmp_path / "x.safetensors", model)
    write_files(export_model(loaded), tmp_path / "out")
    again = diffusers.DDPMPipeline.from_pretrained(tmp_path / "out")
    tensors, want = again.unet.state_dict(), reference.state_dict()
    assert tensors.keys() == want.keys()
    assert all(torch.equal(tensors[k], want[k]) for k in want)
    for got, original in ((again.unet.config, reference.config), (again.scheduler.config, scheduler.config)):
        told = {k: list(v) if isinstance(v, tuple) else v for k, v in original.items() if k[0] != "_"}
        assert {k: list(v) if isinstance(v, tuple) else v for k, v in got.items() if k[0] != "_"} == told
    second = import_model(open_repository(str(tmp_path / "out"), print))
    assert second.config == model.config
    assert all(torch.equal(second.tensors[k], v) for k, v in model.tensors.items())


def test_autoencoder_round_trip(tmp_path):
    """Oracle: what diffusers loads from the export is bit for bit what it saved, settings included."""
    reference = shaken(diffusers.AutoencoderKL(**VAE))
    model = saved(tmp_path / "in", reference)
    write_files(export_model(checkpoint(tmp_path / "x.safetensors", model)), tmp_path / "out")
    again = diffusers.AutoencoderKL.from_pretrained(tmp_path / "out")
    want = reference.state_dict()
    assert all(torch.equal(again.state_dict()[k], want[k]) for k in want)
    assert {k: v for k, v in again.config.items() if k[0] != "_"} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in reference.config.items() if k[0] != "_"
    }


@torch.inference_mode()
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"scale_shift": False, "attention": (8,), "norm_groups": 8, "width": 16},
        {"head_dim": 8, "norm_groups": 1, "target": "eps", "schedule": "linear", "multipliers": (1, 2, 3)},
        {"middle_attention": False, "target": "x0", "schedule": "scaled-linear"},
    ],
)
def test_ddpm_exports(tmp_path, settings):
    """Oracle: genkit's own DDIM-20; diffusers loads the folder and draws the same pictures from it."""
    config = DdpmConfig(**{"width": 64, "blocks": 1, "patch": 1, **settings})
    info = Info("digits", "images", (1, 8, 8), 1)
    module = shaken(find("ddpm").build(config, info))
    path = tmp_path / "x.safetensors"
    save_checkpoint(
        path, module.state_dict(), model="ddpm", config={"model": vars(config)}, data=info._asdict(), step=1
    )
    write_files(export_model(load_model(path)), tmp_path / "out")
    pipeline = diffusers.DDIMPipeline.from_pretrained(tmp_path / "out")
    pipeline.set_progress_bar_config(disable=True)
    start = torch.randn((2, 1, 8, 8), generator=torch.Generator().manual_seed(3))
    want = pipeline(
        2,
        torch.Generator().manual_seed(3),
        num_inference_steps=20,
        use_clipped_model_output=True,
        output_type="pt",
    ).images
    *_, last = ddim(clipped(bind(module), module.schedule), module.schedule, start, times(20))
    assert want.std() > 0.05
    torch.testing.assert_close((last.x / 2 + 0.5).clamp(0, 1), want, rtol=0, atol=1e-4)
