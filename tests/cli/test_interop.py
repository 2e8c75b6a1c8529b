"""genkit import and genkit export: every verb takes an imported model."""

import json

import numpy as np
import pytest
import torch
from cli_tools import TINY_DDPM, genkit
from interop_files import UNET, VAE, unet_shapes, vae_shapes, weights, write_model, write_pipeline
from PIL import Image

from genkit import io

FAST = ("--device", "cpu", "--precision", "fp32")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a pipeline and an autoencoder, which the test stands in."""
    monkeypatch.chdir(tmp_path)
    write_pipeline(tmp_path / "pipeline")
    write_model(tmp_path / "kl", VAE, weights(vae_shapes()))
    return tmp_path


def test_an_imported_pipeline_serves_the_diffusion_verbs(here, capfd):
    """Oracle: exit code 0 and the files; what info shows; the export equals the import."""
    assert genkit(capfd, "import", "pipeline", "-o", "unet.safetensors")[:2] == (0, "unet.safetensors\n")
    code, out, _ = genkit(capfd, "info", "unet.safetensors", "--json")
    about = json.loads(out)
    assert (code, about["model"], about["config"]["model"]["schedule"]) == (0, "diffusers-unet", "cosine")
    few = ("-m", "unet.safetensors", "--steps", "3", *FAST)
    for method in ("ddim", "ddpm", "heun", "euler", "dpmpp"):
        assert genkit(capfd, "sample", method, "-n", "2", "-o", f"{method}.png", *few)[0] == 0
    assert genkit(capfd, "invert", "digits", "-n", "2", "-o", "noise.safetensors", *few)[0] == 0
    assert genkit(capfd, "interpolate", "1", "2", "-n", "3", "-o", "path.png", *few)[0] == 0
    assert genkit(capfd, "export", "-m", "unet.safetensors", "-o", "out")[:2] == (0, "out\n")
    assert genkit(capfd, "import", "out", "-o", "unet.safetensors")[0] == 0


def test_an_imported_pipeline_keeps_its_spacing(here, capfd):
    """Oracle: what --spacing leading gives, diffusers' own default, and no longer where another is asked for;
    an interpolation's end is what `sample ddim` draws of that seed (fp32 rounding)."""
    assert genkit(capfd, "import", "pipeline", "-o", "unet.safetensors")[0] == 0
    few = ("-m", "unet.safetensors", "--steps", "3", *FAST)
    Image.new("L", (8, 8), 255).save(here / "mask.png")
    verbs = {
        "invert": ("invert", "digits", "-n", "1"),
        "inpaint": ("inpaint", "digits", "-n", "1", "--mask", "mask.png", "--resample", "1"),
        "sample": ("sample", "ddim", "-n", "1"),
    }
    for name, verb in verbs.items():
        found = {}
        for spacing in (None, "leading", "trailing"):
            asked = ("--spacing", spacing) if spacing else ()
            code, _, err = genkit(capfd, *verb, *few, *asked, "-o", "x.safetensors")
            assert code == 0, err
            found[spacing] = io.load_latents(here / "x.safetensors", ("noise", "images"))
            if name == "invert":
                assert found[spacing].extra["spacing"] == (spacing or "leading")
        assert torch.equal(found[None].z, found["leading"].z)
        assert not torch.allclose(found[None].z, found["trailing"].z, atol=1e-3)
    assert genkit(capfd, *verbs["sample"], "--seed", "5", *few, "-o", "one/")[0] == 0
    assert genkit(capfd, "interpolate", "5", "6", "-n", "2", *few, "-o", "two/")[0] == 0
    one, two = (np.asarray(Image.open(here / f"{k}/000000.png"), np.int16) for k in ("one", "two"))
    assert np.abs(one - two).max() <= 1


def test_an_imported_autoencoder_is_a_codec(here, capfd):
    """Oracle: exit code 0, the default place under runs/, the scaling factor in info and in the export."""
    assert genkit(capfd, "import", "kl", "--json")[0] == 0
    picture = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    (here / "pictures").mkdir()
    Image.fromarray(picture).save(here / "pictures" / "a.png")
    encode = ("encode", "pictures", "-m", "runs/kl", "-o", "z.safetensors")
    assert genkit(capfd, *encode, *FAST)[0] == 0
    assert genkit(capfd, "decode", "z.safetensors", "-m", "runs/kl", "-o", "back.png", *FAST)[0] == 0
    about = json.loads(genkit(capfd, "info", "runs/kl", "--json")[1])
    assert about["config"]["model"]["scaling_factor"] == 0.5
    assert genkit(capfd, "export", "-o", "out")[0] == 0
    assert json.loads((here / "out/config.json").read_text())["scaling_factor"] == 0.5
    code, _, err = genkit(capfd, "sample", "prior", "-m", "runs/kl")
    assert (code, "does not serve `sample prior`" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("import", "nowhere"), "no folder, and no model of the hub"),
        (("import", "pipeline/model_index.json"), "is a file"),
        (("import", "empty"), "no model_index.json and no config.json"),
        (("import", "pipeline", "--part", "vae"), "vae = null is not supported"),
        (("import", "pipeline", "--part", "vea"), "did you mean 'vae'"),
        (("import", "odd"), 'act_fn = "mish"'),
        (("import", "pipeline", "-o", "x.bin"), "x.bin"),
        (("import", "kl", "-o", "taken.safetensors"), "holds another model; use --fresh"),
        (("export", "-m", "clf.safetensors"), "does not exist"),
        (("export",), "no model under runs/"),
        (("export", "-m", "taken.safetensors", "-o", "pipeline"), "use --fresh or another -o"),
        (("export", "-m", "taken.safetensors", "-o", "odd/config.json"), "is a file"),
        (("train", "diffusers-unet"), "unknown command 'diffusers-unet'"),
    ],
)
def test_wrong_requests_are_one_line(here, capfd, arguments, message):
    """Oracle: exit code 2 and one line that names the value."""
    (here / "empty").mkdir()
    write_model(here / "odd", {**UNET, "act_fn": "mish"}, weights(unet_shapes()))
    assert genkit(capfd, "import", "pipeline", "-o", "taken.safetensors")[0] == 0
    code, out, err = genkit(capfd, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_export_names_all_obstacles_in_one_line(here, capfd):
    """Oracle: both settings of the model, and the folder that holds another; nothing is written there."""
    settings = ("--class-conditional", "--target", "flow", "--norm-groups", "2", "--steps", "1")
    assert genkit(capfd, "train", "ddpm", *TINY_DDPM, *settings, *FAST, "-o", "runs/odd")[0] == 0
    before = (here / "pipeline/unet/config.json").read_bytes()
    code, out, err = genkit(capfd, "export", "-m", "runs/odd", "-o", "pipeline")
    assert (code, out, err.count("\n")) == (2, "", 1)
    for part in ("class_conditional (it has no null class)", "target flow", "pipeline holds a model already"):
        assert part in err
    assert (here / "pipeline/unet/config.json").read_bytes() == before
