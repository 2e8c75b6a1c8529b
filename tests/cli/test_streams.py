"""The process's own streams: closed ones, a reader that has gone, and info of a stream."""

import io as stdio
import json
import os
import subprocess
import sys

import pytest
import torch
from cli_tools import ENV, genkit, shell

from genkit.io.latents import Latents, latents_bytes

TABLE = "nfe,fid\n1,2\n2,1\n"


def test_closed_stdout(tmp_path, monkeypatch, capfd):
    """Oracle: the figure is made though there is nowhere to print its name."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text(TABLE)
    monkeypatch.setattr(sys, "stdout", None)
    assert genkit(capfd, "plot", "sweep", "t.csv", "-o", "x.png") == (0, "", "")
    assert (tmp_path / "x.png").exists()


@pytest.mark.parametrize(
    "line, wanted",
    [
        ("genkit --version >&-", (0, "", "")),
        ("genkit nonsense 2>&-", (2, "", "")),
        (
            "genkit info - <&-",
            (2, "", "genkit: stdin held nothing; the command before the pipe may have failed\n"),
        ),
    ],
)
def test_closed_streams(tmp_path, line, wanted):
    """Oracle: the codes and lines of the same commands with open streams; no remark strays to stdout."""
    done = shell(line, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == wanted


@pytest.mark.parametrize("command", ["--version", "--help", "sample --help", "plot sweep t.csv -o x.png"])
def test_reader_has_gone(tmp_path, command):
    """Oracle: a broken pipe ends quietly with code 0, whatever was being printed."""
    (tmp_path / "t.csv").write_text(TABLE)
    reader, writer = os.pipe()
    os.close(reader)
    try:
        line = [sys.executable, "-m", "genkit_cli", *command.split()]
        done = subprocess.run(line, cwd=tmp_path, env=ENV, stdout=writer, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


def test_info_of_a_stream(tmp_path, monkeypatch, capfd):
    """Oracle: what info says of the same bytes in a file."""
    data = latents_bytes(Latents(torch.ones(2, 3, 4, 4), shift=(0.0,) * 3, scale=(1.0,) * 3))
    (tmp_path / "z.safetensors").write_bytes(data)
    code, wanted, err = genkit(capfd, "info", tmp_path / "z.safetensors", "--json")
    assert code == 0, err
    assert json.loads(wanted)["tensors"] == {"latents": [2, 3, 4, 4]}
    monkeypatch.setattr(sys, "stdin", stdio.TextIOWrapper(stdio.BytesIO(data)))
    assert genkit(capfd, "info", "-", "--json") == (0, wanted, "")


def test_info_of_a_stream_that_is_none(monkeypatch, capfd):
    """Oracle: one line that names the stream."""
    monkeypatch.setattr(sys, "stdin", stdio.TextIOWrapper(stdio.BytesIO(b"no tensors at all")))
    code, out, err = genkit(capfd, "info", "-")
    assert (code, out) == (2, "")
    assert err.startswith("genkit: standard input is not a safetensors file")


def test_a_librarys_warning_is_one_line():
    """Oracle: neither the place in the code nor the line breaks."""
    code = (
        "import warnings; from genkit_cli.console import exit_code;"
        "exit_code(lambda: warnings.warn('two\\n lines', RuntimeWarning))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENV)
    assert done.stderr == "warning: two lines\n"
