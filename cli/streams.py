"""Inputs that may be a path or `-` for stdin."""

from pathlib import Path

from genkit.errors import InputError
from genkit.io import read_stdin


def read_input(text: str, wanted: str = "") -> Path | bytes:
    """The path, or the bytes of stdin for `-`.

    wanted: what the path should have been, for the refusal.

    Raises:
        InputError: when stdin is a terminal or empty, or the path does not exist.
    """
    if text == "-":
        return read_stdin()
    path = Path(text)
    if not path.exists():
        raise InputError(f"{path} does not exist{f'; {wanted}' if wanted else ''}")
    return path
