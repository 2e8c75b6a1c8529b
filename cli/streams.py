"""Inputs that may be a path or `-` for stdin."""

import sys
from pathlib import Path

from genkit.errors import InputError


def read_input(text: str) -> Path | bytes:
    """The path, or the bytes of stdin for `-`.

    Raises:
        InputError: when stdin is a terminal or empty, or the path does not exist.
    """
    if text != "-":
        path = Path(text)
        if not path.exists():
            raise InputError(f"{path} does not exist")
        return path
    if sys.stdin.isatty():
        raise InputError(
            "- reads a tensor stream from stdin; pipe one in, such as `genkit sample ddim -o - | …`"
        )
    data = sys.stdin.buffer.read()
    if not data:
        raise InputError("stdin held nothing; the command before the pipe may have failed")
    return data
