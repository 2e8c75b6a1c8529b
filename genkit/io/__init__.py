"""Files: atomic writes and checked reads of checkpoints, latents and pictures."""

from .atomic import append_text, atomic, write_bytes, write_text
from .checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from .latents import Latents, load_latents, save_latents
from .stdin import read_stdin
from .tensors import digest, load_tensors, read_metadata, save_tensors

__all__ = [
    "Checkpoint",
    "Latents",
    "append_text",
    "atomic",
    "digest",
    "load_checkpoint",
    "load_latents",
    "load_tensors",
    "read_metadata",
    "read_stdin",
    "save_checkpoint",
    "save_latents",
    "save_tensors",
    "write_bytes",
    "write_text",
]
