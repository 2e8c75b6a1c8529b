"""What turns images into features: torch-fidelity's Inception, or any genkit classifier."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from ..data.source import Info
from ..dist import is_main
from ..errors import InputError, RunError
from ..io import digest

CLASSIFIER = "genkit-classifier"  # how the identity of a classifier begins
_REMEDY = "pass --weights PATH, or measure with a classifier of your own: --features runs/clf"
_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow's "L"


class Features(NamedTuple):
    """What an extractor says of B images. features: (B, D) float32; logits: (B, K) float32 or None."""

    features: Tensor
    logits: Tensor | None = None


@dataclass(frozen=True)
class Extractor:
    """A feature extractor on its device. Two extractors with the same identity give comparable numbers."""

    identity: str  # architecture, layer and the sha256 of the weights
    dim: int
    classes: int  # K of the logits; 0 for none
    note: str  # how images are brought to the size and the channels of the network
    device: torch.device
    apply: Callable[[Tensor], Features]
    names: tuple[str, ...] = ()  # of the classes, where they are those of a data set

    def __call__(self, images: Tensor) -> Features:
        """The features of uint8 images (B, 1 or 3, H, W), computed in float32 without autocast or TF32."""
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")
        try:
            with (
                torch.inference_mode(),
                torch.backends.cudnn.flags(enabled=True, allow_tf32=False),
                torch.autocast(self.device.type, enabled=False),
            ):
                return self.apply(images.to(self.device))
        finally:
            torch.set_float32_matmul_precision(precision)


def inception(device: torch.device, weights: Path | None = None) -> Extractor:
    """FID's Inception-v3 as torch-fidelity ported it from TensorFlow: 2048 features, logits without bias.

    weights: torch-fidelity's `weights-inception-2015-12-05-6726825d.pth`; None takes the copy in torch.hub's
    folder and downloads it where there is none.

    Raises:
        InputError: `weights` is missing or holds something else.
        RunError: the weights are not here and cannot be downloaded.
    """
    module = _load_inception(weights or _download()).to(device, memory_format=torch.channels_last)
    identity = f"inception-v3-compat/2048 sha256:{digest(module.state_dict())}"

    def apply(images: Tensor) -> Features:
        features, logits = module(to_channels(images, 3))
        return Features(features, logits)

    note = "299x299 inside torch-fidelity (bilinear as in TensorFlow 1), grey becomes RGB"
    return Extractor(identity, 2048, module.fc.out_features, note, device, apply)


def classifier(module: nn.Module, info: Info, sha256: str, device: torch.device) -> Extractor:
    """A genkit classifier as extractor: `module.features(x)` is (B, D), `module(x)` the logits, x in [-1, 1].

    Where `module.head` is a linear layer it is taken for the last one, so that features are computed once.
    info: of the data it was trained on; sha256: of its weights (`Checkpoint.sha256`).

    Raises:
        InputError: it has no `features`, does not classify, or was trained on something else than images.
    """
    channels, height, width = info.shape
    if info.kind != "images" or channels not in (1, 3):
        raise InputError(
            f"the classifier was trained on {info.kind} of shape {info.shape}; eval-fid needs images"
        )
    if not hasattr(module, "features"):
        raise InputError(
            f"{type(module).__name__} has no features; --features needs a `classifier` checkpoint"
        )
    module = module.to(device).float().eval()
    head = getattr(module, "head", None)

    def apply(images: Tensor) -> Features:
        x = fit(images, info.shape) / 127.5 - 1
        features = module.features(x)  # type: ignore[operator]
        logits = head(features) if isinstance(head, nn.Linear) else module(x)
        return Features(features.float(), logits.float())

    dim, classes = _probe(apply, info, device, type(module).__name__)
    note = f"{width}x{height} (bilinear, antialiased, where the size differs), "
    note += "colour becomes grey by luma" if channels == 1 else "grey becomes RGB"
    return Extractor(f"{CLASSIFIER}/{dim} sha256:{sha256}", dim, classes, note, device, apply, info.classes)


def _probe(
    apply: Callable[[Tensor], Features], info: Info, device: torch.device, name: str
) -> tuple[int, int]:
    """(D, K) of one black image's features and logits."""
    try:
        with torch.inference_mode():
            features, logits = apply(torch.zeros(1, *info.shape, dtype=torch.uint8, device=device))
    except ValueError as error:
        raise InputError(f"{name} cannot be used as --features: {error}") from None
    if features.ndim != 2 or logits is None or logits.ndim != 2:
        raise InputError(f"{name} must give (B, D) features and (B, K) logits to be used as --features")
    return features.shape[1], logits.shape[1]


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Images (B, 1 or 3, H, W) with 1 or 3 channels: grey is repeated, colour weighted to luma. Keeps dtype.

    Raises:
        InputError: they have another number of channels.
    """
    have = images.shape[1]
    if have not in (1, 3):
        raise InputError(f"images must have 1 or 3 channels to be measured, got {have}")
    if have == channels:
        return images
    if channels == 3:
        return images.expand(-1, 3, -1, -1)
    luma = (images.float() * torch.tensor(_LUMA, device=images.device)[:, None, None]).sum(1, keepdim=True)
    return luma if images.is_floating_point() else luma.round().to(images.dtype)


def fit(images: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """uint8 images as float32 (B, *shape) in 0 … 255."""
    x = to_channels(images.float(), shape[0])
    if x.shape[2:] != shape[1:]:
        x = F.interpolate(x, size=shape[1:], mode="bilinear", antialias=True, align_corners=False)
    return x


def _download() -> Path:
    """The file of torch-fidelity's Inception weights in torch.hub's folder, fetched if it is not there."""
    path = Path(torch.hub.get_dir()) / "checkpoints" / URL_INCEPTION_V3.rsplit("/", 1)[1]
    if path.is_file():
        return path
    prefix = path.stem.rsplit("-", 1)[1]  # the name ends in the first digits of the file's sha256
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), prefix, progress=is_main())
    except (
        OSError,
        RuntimeError,
    ) as error:  # URLError and timeouts are OSErrors; a wrong hash is a RuntimeError
        raise RunError(f"cannot download {URL_INCEPTION_V3} ({_reason(error)}); {_REMEDY}") from None
    return path


def _load_inception(path: Path) -> FeatureExtractorInceptionV3:
    # torch-fidelity unpickles freely; reading the file as bare tensors first refuses one that would run code.
    try:
        torch.load(path, map_location="cpu", weights_only=True)
        return FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(path)
        )
    except FileNotFoundError:
        raise InputError(f"weights {path} do not exist; {_REMEDY}") from None
    except (RuntimeError, OSError, EOFError, TypeError, KeyError, pickle.UnpicklingError) as error:
        raise InputError(
            f"{path} does not hold torch-fidelity's Inception weights ({_reason(error)})"
        ) from None


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(":") if text else type(error).__name__
