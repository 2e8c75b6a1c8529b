"""Exporting to diffusers' files, without diffusers: what is written, and what is refused."""

import json

import pytest
import safetensors.torch
import torch
from interop_files import SCHEDULER, UNET, VAE, vae_shapes, weights, write_model, write_pipeline

from genkit.data.source import Info
from genkit.errors import InputError
from genkit.interop.exporting import export_model, write_files
from genkit.interop.hub import open_repository
from genkit.interop.importing import Imported, import_model
from genkit.io.checkpoint import save_checkpoint
from genkit.models.ddpm import DdpmConfig
from genkit.models.load import Loaded, load_model
from genkit.registry import find


def imported(folder) -> Imported:
    return import_model(open_repository(str(folder), print))


def loaded(path, model: Imported) -> Loaded:
    config = {"model": vars(model.config)}
    save_checkpoint(path, model.tensors, model=model.family, config=config, data=model.info._asdict(), step=0)
    return load_model(path)


def told(path, wanted) -> dict:
    """What `path` says of the keys of `wanted`."""
    values = json.loads(path.read_text())
    return {k: values.get(k) for k in wanted if k[0] != "_"}


def test_a_pipeline_comes_back_bit_for_bit(tmp_path):
    """Oracle: every tensor and every setting of the folder that was imported."""
    scheduler = {**SCHEDULER, "num_train_timesteps": 200, "prediction_type": "v_prediction"}
    model = imported(write_pipeline(tmp_path / "in", scheduler=scheduler))
    write_files(export_model(loaded(tmp_path / "x.safetensors", model)), tmp_path / "out")
    file = "unet/diffusion_pytorch_model.safetensors"
    got, want = (safetensors.torch.load_file(tmp_path / d / file) for d in ("out", "in"))
    assert got.keys() == want.keys()
    assert all(torch.equal(got[k], want[k]) for k in want)
    plain = {k: v for k, v in UNET.items() if k[0] != "_"}
    assert told(tmp_path / "out/unet/config.json", plain) == plain
    plain = {k: v for k, v in scheduler.items() if k[0] != "_"}
    assert told(tmp_path / "out/scheduler/scheduler_config.json", plain) == plain
    again = imported(tmp_path / "out")
    assert (again.config, again.info.shape) == (model.config, model.info.shape)


@pytest.mark.parametrize(
    "changes", [{}, {"use_quant_conv": False, "shift_factor": 0.25, "force_upcast": False}]
)
def test_an_autoencoder_comes_back_bit_for_bit(tmp_path, changes):
    """Oracle: every tensor and every setting of the folder that was imported."""
    config = {**VAE, **changes}
    tensors = {
        k: v
        for k, v in weights(vae_shapes()).items()
        if not (k.startswith("quant_conv") and "use_quant_conv" in changes)
    }
    model = imported(write_model(tmp_path / "in", config, tensors))
    write_files(export_model(loaded(tmp_path / "x.safetensors", model)), tmp_path / "out")
    got = safetensors.torch.load_file(tmp_path / "out/diffusion_pytorch_model.safetensors")
    assert got.keys() == tensors.keys()
    assert all(torch.equal(got[k], tensors[k]) for k in tensors)
    plain = {k: v for k, v in config.items() if k[0] != "_"}
    assert told(tmp_path / "out/config.json", plain) == plain


def ddpm(path, channels: int = 1, size: int = 8, kind: str = "images", **settings) -> Loaded:
    """A new ddpm, saved and loaded."""
    config = DdpmConfig(**{"width": 16, "blocks": 1, "norm_groups": 8, **settings})
    info = Info("digits", kind, (channels, size, size), 1, classes=tuple("ab"))
    module = find("ddpm").build(config, info)
    save_checkpoint(
        path,
        module.state_dict(),
        model="ddpm",
        config={"model": vars(config)},
        data=info._asdict(),
        step=1,
    )
    return load_model(path)


@pytest.mark.parametrize(
    "settings",
    [
        {"scale_shift": False},
        {"loss": "hybrid", "target": "eps"},
        {"attention": (4,), "norm_groups": 32, "width": 64},
    ],
)
def test_a_trained_ddpm_is_the_same_network_abroad(tmp_path, settings):
    """Oracle: its own output, from the network that its export is imported as."""
    mine = ddpm(tmp_path / "x.safetensors", **settings)
    with torch.no_grad():
        for i, parameter in enumerate(mine.module.parameters()):
            parameter.add_(0.1 * torch.sin(torch.arange(parameter.numel()) + i).reshape(parameter.shape))
    write_files(export_model(mine), tmp_path / "out")
    back = imported(tmp_path / "out")
    module = find(back.family).build(back.config, back.info)
    module.load_state_dict(back.tensors)
    x, t = torch.sin(torch.arange(64.0)).reshape(1, 1, 8, 8), torch.tensor(0.5)
    with torch.inference_mode():
        for got, want in zip(module.eval()(x, t)[:2], mine.module(x, t)[:2]):
            torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch": 2}, "--patch 1"),
        ({"class_conditional": True}, "class_conditional"),
        ({"target": "flow"}, "target flow"),
        ({"schedule": "karras", "target": "edm"}, "target edm"),
        ({"schedule": "flow"}, "schedule flow"),
        ({"multipliers": (2, 4)}, r"multipliers\[0\] 2"),
        ({"width": 8, "norm_groups": 32}, "norms of 4, 8, 12, 16 groups"),
        ({"kind": "latents"}, "data of kind latents"),
    ],
)
def test_what_diffusers_lacks_is_refused_by_name(tmp_path, settings, message):
    """Oracle: one line with the setting."""
    with pytest.raises(InputError, match=message) as error:
        export_model(ddpm(tmp_path / "x.safetensors", **settings))
    assert "\n" not in str(error.value)


def test_all_that_diffusers_lacks_is_in_one_line(tmp_path):
    """Oracle: every setting of a model that has them all, once, with its remedy where there is one."""
    settings = {"patch": 2, "class_conditional": True, "target": "edm", "schedule": "karras"}
    groups = {"width": 8, "norm_groups": 32, "multipliers": (2, 4)}
    with pytest.raises(InputError) as error:
        export_model(ddpm(tmp_path / "x.safetensors", kind="latents", **settings, **groups))
    line = str(error.value)
    assert "\n" not in line
    parts = ("data of kind latents", "patch 2", "class_conditional", "multipliers[0] 2", "target edm")
    for part in (*parts, "schedule karras", "--norm-groups", "x.safetensors"):
        assert line.count(part) == 1, part
