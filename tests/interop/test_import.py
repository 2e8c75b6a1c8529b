"""Importing diffusers models without diffusers: golden outputs, names, and what is refused."""

import http.server
import json
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from interop_files import (
    INDEX,
    OTHER,
    SCHEDULER,
    UNET,
    VAE,
    unet_shapes,
    vae_shapes,
    waves,
    weights,
    write_model,
    write_pipeline,
)
from torch import nn

from genkit.data.source import Info
from genkit.errors import InputError, RunError
from genkit.interop.hub import open_repository
from genkit.interop.importing import Imported, import_model
from genkit.interop.names import UNET as UNET_NAMES
from genkit.interop.names import VAE as VAE_NAMES
from genkit.interop.names import to_diffusers, to_genkit
from genkit.interop.scheduler import KEYS as SCHEDULER_KEYS
from genkit.interop.scheduler import read_scheduler
from genkit.interop.unet import KEYS as UNET_KEYS
from genkit.interop.unet import read_unet, write_unet
from genkit.interop.vae import KEYS as VAE_KEYS
from genkit.interop.vae import read_vae
from genkit.models.imported_unet import ImportedUnetConfig
from genkit.registry import find


def imported(folder: Path, part: str | None = None, size: int | None = None) -> Imported:
    return import_model(open_repository(str(folder), print), part, size)


def built(model: Imported) -> nn.Module:
    module = find(model.family).build(model.config, model.info)
    module.load_state_dict(model.tensors)
    return module.eval()


def close(got: torch.Tensor, want: list[float], every: int) -> None:
    # six printed decimals of values near 1
    torch.testing.assert_close(got.flatten()[::every], torch.tensor(want), rtol=2e-6, atol=2e-6)


@torch.inference_mode()
@pytest.mark.parametrize(
    ("config", "early", "late"),
    [
        (
            UNET,
            [0.717461, -0.611422, -0.627909, 0.103022, -1.314327, 1.076464],
            [0.718684, -0.621407, -0.618766, 0.106337, -1.318478, 1.066047],
        ),
        (
            OTHER,
            [0.402286, -1.088895, 0.36574, -1.553753, 0.769606, -0.032841],
            [0.434518, -1.038298, 0.272324, -1.647829, 0.503972, -0.03367],
        ),
    ],
)
def test_unet_equals_diffusers_output(tmp_path, config, early, late):
    """Oracle: golden outputs of diffusers 0.42.1, torch 2.15, for the same files."""
    folder = write_model(tmp_path, config, weights(unet_shapes(config is OTHER)))
    network = built(imported(folder)).network
    x = waves((2, 1, 8, 8), 0.5, 1.0)
    close(network(x, torch.full((2,), 3.0)), early, 25)
    close(network(x, torch.full((2,), 700.0)), late, 25)


@torch.inference_mode()
@pytest.mark.parametrize(
    "leaves", [("to_q", "to_k", "to_v", "to_out.0"), ("query", "key", "value", "proj_attn")]
)
def test_autoencoder_equals_diffusers_output(tmp_path, leaves):
    """Oracle: golden outputs of diffusers 0.42.1 for the same files, whose attention has new or old names."""
    codec = built(imported(write_model(tmp_path, VAE, weights(vae_shapes(leaves)))))
    mean = [0.119394, -0.809568, 0.365646, 0.596262, -0.773816, 0.406684, 0.779806]
    close(codec.encode(waves((1, 3, 8, 8), 0.5, 1.0)).z, mean, 5)
    picture = [0.03724, -0.936899, -0.149192, 1.144077, -0.351531, -0.441265, 0.24299, -0.061671]
    z = waves((1, 2, 4, 4), 0.5, 1.0)
    close(codec.decode_raw(z), picture, 25)
    assert codec.decode(z).abs().max() <= 1


@pytest.mark.parametrize(("shapes", "table"), [(unet_shapes(), UNET_NAMES), (vae_shapes(), VAE_NAMES)])
def test_names_are_read_both_ways(shapes, table):
    """Oracle: there and back is the identity, and no two names fall together."""
    ours = [to_genkit(name, table) for name in shapes]
    assert [to_diffusers(name, table) for name in ours] == list(shapes)
    assert to_genkit("down_blocks.0.resnets.0.fir.weight", table) is None


def test_pipeline_carries_its_schedule(tmp_path):
    """Oracle: the JSON that was written; diffusers' defaults for what it leaves out."""
    scheduler = {
        **SCHEDULER,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.001,
        "beta_end": 0.01,
        "num_train_timesteps": 400,
        "prediction_type": "v_prediction",
        "timestep_spacing": "trailing",
    }
    model = imported(write_pipeline(tmp_path, scheduler=scheduler))
    got, config = built(model), model.config
    assert (got.target, config.clip, config.sampler, config.spacing) == ("v", False, "ddim", "trailing")
    beta = torch.linspace(0.001**0.5, 0.01**0.5, 400, dtype=torch.float64) ** 2
    bar = (1 - beta).cumprod(0)
    t = torch.tensor([1, 200, 400], dtype=torch.float64) / 400
    torch.testing.assert_close(got.schedule.alpha(t), bar[[0, 199, 399]].sqrt(), rtol=1e-12, atol=0)
    torch.testing.assert_close(got.schedule.embed(t), torch.tensor([0.0, 199.0, 399.0]).double())


def test_settings_of_the_hub_s_first_networks():
    """Oracle: the config.json of google/ddpm-cat-256, and the weights diffusers 0.42.1 counts for it."""
    values = {
        "_class_name": "UNet2DModel",
        "_diffusers_version": "0.0.4",
        "act_fn": "silu",
        "attention_head_dim": None,
        "block_out_channels": [128, 128, 256, 256, 512, 512],
        "center_input_sample": False,
        "down_block_types": [*["DownBlock2D"] * 4, "AttnDownBlock2D", "DownBlock2D"],
        "downsample_padding": 0,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
        "in_channels": 3,
        "layers_per_block": 2,
        "mid_block_scale_factor": 1,
        "norm_eps": 1e-06,
        "norm_num_groups": 32,
        "out_channels": 3,
        "sample_size": 256,
        "time_embedding_type": "positional",
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D", *["UpBlock2D"] * 4],
    }
    fields, shape = read_unet(values, "config.json")
    assert shape == (3, 256, 256)
    with torch.device("meta"):
        module = find("diffusers-unet").build(ImportedUnetConfig(**fields), Info("cat", "images", shape, 0))
    assert sum(p.numel() for p in module.parameters()) == 113_673_219
    written = write_unet(ImportedUnetConfig(**fields), shape)
    assert {k: written.get(k) for k in values if k[0] != "_"} == {
        k: v for k, v in values.items() if k[0] != "_"
    }


def test_flat_pipelines_and_notes(tmp_path):
    """Oracle: the layout of the hub's first pipelines, all in one folder; bare ones tell what they lack."""
    flat = write_model(
        tmp_path,
        UNET,
        weights(unet_shapes()),
        model_index=INDEX,
        scheduler_config={**SCHEDULER, "timesteps": 1000},
    )
    model = imported(flat)
    assert (model.family, model.config.schedule, model.notes) == ("diffusers-unet", "cosine", ())
    bare = write_model(tmp_path / "bare", UNET, weights(unet_shapes()))
    assert "linear schedule" in imported(bare).notes[0]


def test_vae_of_a_pipeline(tmp_path):
    """Oracle: the vae/ folder of a pipeline of another kind; --size moves its latents."""
    index = {"_class_name": "StableDiffusionPipeline", "vae": ["diffusers", "AutoencoderKL"]}
    write_model(tmp_path / "vae", VAE, weights(vae_shapes()))
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    model = imported(tmp_path, size=16)
    assert model.info.shape == (3, 16, 16)
    assert built(model).latent_shape == (2, 8, 8)
    assert (model.config.scaling_factor, "StableDiffusionPipeline" in model.notes[0]) == (0.5, True)
    with pytest.raises(InputError, match="StableDiffusionPipeline"):
        imported(tmp_path, "unet")
    with pytest.raises(InputError, match="multiples of 2 pixels, got 9x9"):
        imported(tmp_path, size=9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"time_embedding_type": "fourier"}, 'time_embedding_type = "fourier" is not supported'),
        ({"act_fn": "gelu"}, 'act_fn = "gelu"'),
        ({"num_class_embeds": 10}, "num_class_embeds = 10"),
        ({"mid_block_type": None}, "mid_block_type = null"),
        ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor = 1.4"),
        ({"downsample_type": "resnet"}, 'downsample_type = "resnet"'),
        ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, 'down_block_types = "SkipDownBlock2D"'),
        ({"up_block_types": ["UpBlock2D"]}, "block_out_channels has 2 levels"),
        ({"in_channels": 4}, "in_channels = 4"),
        ({"out_channels": 3}, "out_channels = 3"),
        ({"block_out_channels": [8, 0]}, r"block_out_channels = \[8, 0\]"),
        ({"block_out_channels": []}, r"block_out_channels = \[\]"),
        ({"norm_num_groups": "4"}, 'norm_num_groups = "4"'),
        ({"norm_num_groups": 3}, "divisible by num_groups"),
        ({"attention_head_dim": 5}, "multiple of head_dim"),
        ({"sample_size": None}, "--size"),
        ({"sample_size": 9}, "multiple of 2"),
        ({"brand_new_option": 1}, "brand_new_option = 1 is not supported"),
        ({"_class_name": "UNet2DConditionModel"}, '_class_name = "UNet2DConditionModel"'),
    ],
)
def test_unknown_networks_are_refused_by_name(tmp_path, changes, message):
    """Oracle: one line with the file, the key and its value."""
    folder = write_model(tmp_path, {**UNET, **changes}, weights(unet_shapes()))
    with pytest.raises(InputError, match=message) as error:
        imported(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thresholding": True}, "thresholding = true"),
        ({"beta_schedule": "sigmoid"}, 'beta_schedule = "sigmoid"'),
        ({"prediction_type": "flow"}, 'prediction_type = "flow"'),
        ({"trained_betas": [0.1]}, r"trained_betas = \[0.1\]"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr = true"),
        ({"clip_sample": True, "clip_sample_range": 2.0}, "clip_sample_range = 2.0"),
        ({"set_alpha_to_one": False}, "set_alpha_to_one = false"),
        ({"_class_name": "PNDMScheduler"}, '_class_name = "PNDMScheduler"'),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned"}, 'variance_type = "learned"'),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, "out_channels = 1"),
    ],
)
def test_unknown_schedules_are_refused_by_name(tmp_path, changes, message):
    """Oracle: one line with the file, the key and its value."""
    with pytest.raises(InputError, match=message):
        imported(write_pipeline(tmp_path, scheduler={**SCHEDULER, **changes}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents_mean": [0.0]}, "latents_mean"),
        ({"down_block_types": ["AttnDownEncoderBlock2D", "DownEncoderBlock2D"]}, "AttnDownEncoderBlock2D"),
        ({"in_channels": 4}, "in_channels = 4"),
        ({"latent_channels": 3}, "has shape"),
        ({"use_quant_conv": False}, "holds quant_conv.bias and 1 more"),
    ],
)
def test_unknown_autoencoders_are_refused_by_name(tmp_path, changes, message):
    """Oracle: one line with the key and its value, or the first tensor that disagrees."""
    with pytest.raises(InputError, match=message):
        imported(write_model(tmp_path, {**VAE, **changes}, weights(vae_shapes())))


STRANGE = [None, True, 0, -1, 1, 2.5, "x", [], [0], [8, 16], [[8]], [None, None], {}, float("nan"), 10**6]


@pytest.mark.parametrize(
    ("read", "keys", "values"),
    [(read_unet, UNET_KEYS, UNET), (read_vae, VAE_KEYS, VAE), (read_scheduler, SCHEDULER_KEYS, SCHEDULER)],
)
def test_any_value_is_taken_or_refused(read, keys, values):
    """Oracle: every key with every kind of value is read, or is an InputError that names the key."""
    said = []
    for key in (*keys, "_class_name"):
        for value in STRANGE:
            try:
                read({**values, key: value}, "file")
            except InputError as error:
                said.append(str(error))
    assert len(said) > 5 * len(keys)
    assert all(line.startswith("file: ") and " is not supported; " in line for line in said)


@pytest.mark.parametrize("value", STRANGE)
def test_any_index_is_taken_or_refused(tmp_path, value):
    """Oracle: InputError for a model_index.json with anything in it."""
    for key in ("_class_name", "unet"):
        folder = tmp_path / key
        folder.mkdir()
        (folder / "model_index.json").write_text(json.dumps({**INDEX, key: value}))
        with pytest.raises(InputError):
            imported(folder)


def test_weights_that_disagree_are_named(tmp_path):
    """Oracle: the tensor's name in the file; a truncated file; NaN."""
    tensors = weights(unet_shapes())
    name = "mid_block.attentions.0.to_k.bias"
    folder = write_model(tmp_path, UNET, {k: v for k, v in tensors.items() if k != name})
    with pytest.raises(InputError, match=f"lacks {name}"):
        imported(folder)
    write_model(tmp_path, UNET, {**tensors, name: torch.full((16,), float("nan"))})
    with pytest.raises(InputError, match=f"{name} holds NaN"):
        imported(folder)
    file = folder / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match="truncated or damaged"):
        imported(folder)
    file.unlink()
    with pytest.raises(InputError, match=r"neither diffusion_pytorch_model.safetensors nor"):
        imported(folder)


class Evil:
    """Unpickles to a call of os.system."""

    def __reduce__(self):
        import os

        return os.system, ("touch pwned",)


def test_bin_is_read_without_running_it(tmp_path, monkeypatch):
    """Oracle: the same weights as from safetensors; a pickle that calls something is refused, not called."""
    monkeypatch.chdir(tmp_path)
    tensors = weights(unet_shapes())
    want = imported(write_model(tmp_path / "a", UNET, tensors)).tensors
    (tmp_path / "a" / "diffusion_pytorch_model.safetensors").unlink()
    file = tmp_path / "a" / "diffusion_pytorch_model.bin"
    torch.save(tensors, file)
    got = imported(tmp_path / "a").tensors
    assert all(torch.equal(got[k], want[k]) for k in want)
    torch.save({**tensors, "conv_in.weight": Evil()}, file)
    with pytest.raises(InputError, match="holds code"):
        imported(tmp_path / "a")
    assert not (tmp_path / "pwned").exists()
    file.write_bytes(b"PK\x03\x04 half a file")
    with pytest.raises(InputError, match="damaged"):
        imported(tmp_path / "a")
    torch.save([1, 2], file)
    with pytest.raises(InputError, match="more than named tensors"):
        imported(tmp_path / "a")


def test_half_precision_files_become_float32(tmp_path):
    """Oracle: the rounded values exactly."""
    tensors = {k: v.half() for k, v in weights(unet_shapes()).items()}
    got = imported(write_model(tmp_path, UNET, tensors)).tensors
    assert {v.dtype for v in got.values()} == {torch.float32}
    assert torch.equal(got["network.conv_in.weight"], tensors["conv_in.weight"].float())


class Hub(http.server.SimpleHTTPRequestHandler):
    """Serves a folder as ORG/NAME/resolve/main/FILE and counts what it is asked."""

    asked: list[str]

    def do_GET(self):
        self.server.asked.append(self.path)
        self.path = self.path.replace("/resolve/main", "")
        if "private" in self.path:
            self.send_error(401)
            return
        super().do_GET()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub on this machine that serves tmp_path / "hub"."""
    root = tmp_path / "hub"
    root.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), lambda *a: Hub(*a, directory=str(root)))
    server.asked = []
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.chdir(tmp_path)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_hub_models_are_downloaded_once(tmp_path, hub, home):
    """Oracle: the folder's tensors, only the files needed, and nothing asked the second time."""
    write_pipeline(tmp_path / "hub" / "org" / "tiny")
    (tmp_path / "hub" / "org" / "tiny" / "README.md").write_text("not needed")
    said = []
    model = import_model(open_repository("org/tiny", said.append))
    want = imported(tmp_path / "hub" / "org" / "tiny").tensors
    assert all(torch.equal(model.tensors[k], want[k]) for k in want)
    assert not any("README" in path for path in hub.asked)
    assert any("diffusion_pytorch_model.safetensors" in line for line in said)
    before = len(hub.asked)
    import_model(open_repository("org/tiny", said.append))
    assert len(hub.asked) == before
    assert not list((home / "hub").rglob("*.tmp"))


def test_flat_hub_models_need_no_network_again(tmp_path, hub):
    """Oracle: what the hub said it has not is remembered too, so the cached model works offline."""
    flat = tmp_path / "hub" / "org" / "flat"
    write_model(flat, UNET, weights(unet_shapes()), model_index=INDEX, scheduler_config=SCHEDULER)
    import_model(open_repository("org/flat", print))
    before = len(hub.asked)
    assert import_model(open_repository("org/flat", print)).config.schedule == "cosine"
    assert len(hub.asked) == before


def test_hub_failures_say_what_to_do(tmp_path, hub, monkeypatch, home):
    """Oracle: one line each for a missing model, a private one, a broken transfer and no network."""
    with pytest.raises(InputError, match=r"org/none has no model_index.json"):
        import_model(open_repository("org/none", print))
    with pytest.raises(InputError, match="no public model of the hub"):
        import_model(open_repository("org/private", print))
    with pytest.raises(InputError, match="no folder, and no model of the hub"):
        open_repository("not a model", print)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="by hand and give its path instead"):
        import_model(open_repository("org/tiny", print))


def test_a_broken_transfer_leaves_nothing(tmp_path, hub, monkeypatch, home):
    """Oracle: RunError with both sizes, and no file in the cache."""
    write_pipeline(tmp_path / "hub" / "org" / "tiny")
    monkeypatch.setattr(Hub, "copyfile", lambda self, source, out: out.write(source.read()[:-1]))
    with pytest.raises(RunError, match="broke off after"):
        import_model(open_repository("org/tiny", print))
    assert not list((home / "hub").rglob("*.json"))


def test_safetensors_come_before_bin(tmp_path):
    """Oracle: the values of the safetensors file where both are there."""
    folder = write_model(tmp_path, UNET, weights(unet_shapes()))
    torch.save({"conv_in.weight": Evil()}, folder / "diffusion_pytorch_model.bin")
    got = imported(folder).tensors["network.conv_in.weight"]
    raw = safetensors.torch.load_file(folder / "diffusion_pytorch_model.safetensors")
    assert torch.equal(got, raw["conv_in.weight"])
