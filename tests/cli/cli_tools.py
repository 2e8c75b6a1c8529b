"""Running the command line inside the test's process, or as a real one."""

import os
import subprocess
import sys
from pathlib import Path

from genkit_cli.main import main

RECIPES = Path(__file__).parents[2] / "recipes"
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}


def genkit(capfd, *arguments: str) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of a command run in this process."""
    try:
        code = main([str(a) for a in arguments])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capfd.readouterr()
    return code, out, err


def start(*arguments: str, cwd: Path, **options) -> subprocess.Popen:
    """A command as its own process."""
    command = [sys.executable, "-m", "genkit_cli", *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, env=ENV, **options)


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess:
    """A shell line in which `genkit` is this installation's command."""
    line = line.replace("genkit ", f"{sys.executable} -m genkit_cli ")
    return subprocess.run(["bash", "-c", line], cwd=cwd, env=ENV, capture_output=True, text=True)


TINY_DDPM = ("--width", "8", "--multipliers", "1,1", "--blocks", "1", "--batch-size", "16")
TINY_VAE = ("--arch", "conv", "--width", "8", "--blocks", "0", "--batch-size", "32")
