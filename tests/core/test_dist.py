"""What joining a process group must not do."""

import os

from genkit.dist import _stdout_to_stderr


def test_nothing_strays_to_stdout_meanwhile(capfd):
    """Oracle: what is written past Python, as gloo writes: within on stderr, afterwards on stdout again."""
    with _stdout_to_stderr():
        os.write(1, b"greeting")
    os.write(1, b"data")
    assert capfd.readouterr() == ("data", "greeting")
