"""What a pipe brings."""

import sys

from .. import dist
from ..errors import InputError


def read_stdin() -> bytes:
    """All bytes of stdin.

    Raises:
        InputError: stdin is a terminal or empty, or several processes would each get a part of it.
    """
    if dist.world() > 1:
        raise InputError(f"- cannot be read by {dist.world()} processes; write a file and name it")
    if sys.stdin.isatty():
        raise InputError(
            "- reads a tensor stream from stdin; pipe one in, such as `genkit sample ddim -o - | …`"
        )
    data = sys.stdin.buffer.read()
    if not data:
        raise InputError("stdin held nothing; the command before the pipe may have failed")
    return data
