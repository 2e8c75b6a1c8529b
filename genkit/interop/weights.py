"""The weights file of a diffusers model."""

import pickle
import zipfile
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ..errors import InputError
from .hub import Repository

STEM = "diffusion_pytorch_model"


def read_weights(repository: Repository, folder: str) -> tuple[dict[str, Tensor], Path]:
    """(tensors, the file they are from): safetensors where there are, else `.bin`, of which only tensors are
    read.

    folder: inside the repository, "" or ending in a slash.

    Raises:
        InputError: there is no such file, or it is damaged, or holds more than tensors.
    """
    for suffix, read in ((".safetensors", _safetensors), (".bin", _pickle)):
        path = repository.find(f"{folder}{STEM}{suffix}")
        if path is not None:
            return read(path), path
    raise InputError(f"{repository.name} has neither {folder}{STEM}.safetensors nor {folder}{STEM}.bin")


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (SafetensorError, ValueError, OSError) as error:
        raise InputError(f"{path} is truncated or damaged ({error}); download it again") from None


def _pickle(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} is damaged or holds code beside tensors, and genkit runs none; "
            f"get its {STEM}.safetensors instead"
        ) from None
    except (RuntimeError, EOFError, ValueError, zipfile.BadZipFile, OSError, KeyError) as error:
        line = " ".join(str(error).split())[:160]
        raise InputError(f"{path} is truncated or damaged ({line}); download it again") from None
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise InputError(f"{path} holds more than named tensors; get its {STEM}.safetensors instead")
    return found
