"""Extractors: colours and sizes, precision, and Inception's weights from a file without a network."""

import pickle
import urllib.error

import numpy as np
import pytest
import torch
from evaluation_stubs import Clf, Pixels, info_of
from PIL import Image
from torch import nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from genkit.errors import InputError, RunError
from genkit.evaluate.extractors import classifier, fit, inception, to_channels

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file like torch-fidelity's, with random weights."""
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    with pytest.MonkeyPatch.context() as patch:
        # the constructor always loads; here there is nothing to load yet
        patch.setattr(
            "torch_fidelity.feature_extractor_inceptionv3.load_state_dict_from_url", lambda *a, **k: {}
        )
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        torch.manual_seed(0)
        module = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.save(module.state_dict(), path)
    return path


def test_inception_weights_from_a_file_give_torch_fidelitys_features(weights):
    """Oracle: torch-fidelity's module itself, called on the same images (0.4.0); grey equals its RGB copy."""
    ours = inception(CPU, weights)
    theirs = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights)
    )
    images = torch.randint(
        0, 256, (2, 1, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    found = ours(images)
    features, logits = theirs(images.repeat(1, 3, 1, 1))
    # float32 convolutions summed in another order (channels_last): rounding only
    torch.testing.assert_close(found.features, features, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-6)
    assert (ours.dim, ours.classes) == (2048, 1008)
    assert features.std(0).max() > 0  # else the comparison above could not fail
    assert ours.identity.startswith("inception-v3-compat/2048 sha256:")


def test_missing_download_is_one_line_that_names_the_remedies(tmp_path, monkeypatch):
    """Oracle: the error class and the options named in it."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*args, **kwargs):
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(RunError, match=r"no route to host.*--weights PATH.*--features runs/clf") as caught:
        inception(CPU)
    assert "\n" not in str(caught.value)


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit('code from a weights file ran')",))


@pytest.mark.parametrize(
    "content",
    [b"", b"not weights", pickle.dumps(Bomb()), "state", "other"],
    ids=["empty", "text", "pickle with code", "pickle with code in a state dict", "other network"],
)
def test_foreign_weights_are_refused_in_one_line(tmp_path, content):
    """Oracle: an InputError that names the file; no code from it runs."""
    path = tmp_path / "w.pth"
    if content == "state":
        torch.save({"fc.weight": Bomb()}, path)
    elif content == "other":
        torch.save(nn.Linear(2, 2).state_dict(), path)
    else:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"w\.pth") as caught:
        inception(CPU, path)
    assert "\n" not in str(caught.value)


def test_missing_weights_file(tmp_path):
    """Oracle: an InputError that names the file."""
    with pytest.raises(InputError, match=r"none\.pth do not exist"):
        inception(CPU, tmp_path / "none.pth")


def test_colour_becomes_pillows_grey():
    """Oracle: Pillow's conversion to "L" (integer arithmetic: within one level)."""
    rgb = torch.randint(0, 256, (1, 3, 9, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pillow = np.asarray(Image.fromarray(rgb[0].permute(1, 2, 0).numpy()).convert("L")).astype(int)
    ours = to_channels(rgb, 1)
    assert ours.dtype == torch.uint8
    assert np.abs(ours[0, 0].numpy().astype(int) - pillow).max() <= 1


def test_resizing_averages_instead_of_dropping_pixels():
    """Oracle: a checkerboard of single pixels turns grey when shrunk by four; not so without antialiasing."""
    board = ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 255).to(torch.uint8)[None, None]
    small = fit(board, (3, 8, 8))
    assert small.shape == (1, 3, 8, 8)
    assert (small[..., 2:-2, 2:-2] - 127.5).abs().max() < 1.0


def test_classifier_sees_images_in_minus_one_to_one_in_float32():
    """Oracle: features that are the pixels themselves, under a bf16 autocast that must not matter."""
    extractor = classifier(Clf(), info_of((1, 4, 4)), "ab", CPU)
    images = torch.arange(32, dtype=torch.uint8).reshape(2, 1, 4, 4) * 8
    with torch.autocast("cpu", torch.bfloat16):
        found = extractor(images)
    torch.testing.assert_close(found.features, images.flatten(1).float() / 127.5 - 1)
    torch.testing.assert_close(found.logits, found.features[:, :3] * 20, rtol=1e-6, atol=1e-6)
    assert (extractor.dim, extractor.classes) == (16, 3)
    assert extractor.identity == "genkit-classifier/16 sha256:ab"


def test_what_does_not_classify_images_is_refused():
    """Oracle: the line names the reason."""
    with pytest.raises(InputError, match="has no features"):
        classifier(nn.Linear(2, 2), info_of((1, 4, 4)), "ab", CPU)
    with pytest.raises(InputError, match="trained on latents"):
        classifier(Clf(), info_of((1, 4, 4))._replace(kind="latents"), "ab", CPU)
    with pytest.raises(InputError, match="1 or 3 channels to be measured, got 4"):
        fit(Pixels(2, (4, 4, 4)).uint8(torch.arange(2)), (3, 4, 4))
