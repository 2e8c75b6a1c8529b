"""The device that a person asks for, and the process that works on it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from genkit.errors import InputError
from genkit.machine import _keep_freed_blocks, pick_device, resolve_precision


def test_the_cpu_is_always_there():
    """Oracle: its name."""
    assert pick_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["meta", "cuda:77", "toaster", ""])
def test_unusable_devices_are_refused(name):
    """Oracle: the message: a device must be able to compute a number."""
    with pytest.raises(InputError, match=f"device '{name}' cannot be used here .*; try --device auto"):
        pick_device(name)


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.parametrize("name", ["auto", "bf16", "fp32"])
def test_auto_is_bf16_on_a_cpu_with_amx_only(name, tiles, monkeypatch):
    """Oracle: the rule; bf16 by vector instructions alone is slower than the float32 kernels."""
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: tiles)
    wanted = {"auto": "bf16" if tiles else "fp32"}.get(name, name)
    assert resolve_precision(name, pick_device("cpu")) == wanted


def test_denormals_are_flushed_by_every_thread():
    """Oracle: half the smallest normal number of IEEE 754 is no normal number; its bits are 0 only if it was
    made 0. Every bit counts: to a thread that flushes, a denormal that another one made reads as 0, too."""
    code = (
        "import torch; from genkit import machine; machine.tune(); torch.set_num_threads(2); "
        "x = torch.full((1 << 20,), 1.2e-38).mul_(0.5); left = x.view(torch.int32).count_nonzero().item(); "
        "print(left if torch.set_flush_denormal(True) else 'unsupported')"
    )
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    if run.stdout.strip() == "unsupported":
        pytest.skip("this processor keeps denormals")
    assert (run.stdout.strip(), run.stderr) == ("0", "")


def test_tensors_lie_where_huge_pages_are_asked_for():
    """Oracle: the flags of the mapping that the middle of 64 MB of numbers lies in; "hg" was asked for."""
    maps = Path("/proc/self/smaps")
    if not maps.is_file() or "VmFlags" not in maps.read_text() or not _keep_freed_blocks():
        pytest.skip("nothing to ask here")
    if not Path("/sys/kernel/mm/transparent_hugepage").is_dir():
        pytest.skip("no huge pages here")
    code = (
        "import torch; from genkit import machine; machine.tune(); x = torch.ones(1 << 24); "
        "print(x[1 << 23:].data_ptr()); print(open('/proc/self/smaps').read())"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    address, *lines = run.stdout.splitlines()
    inside = False
    for line in lines:
        if span := re.match("([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(span[1], 16) <= int(address) < int(span[2], 16)
        elif inside and line.startswith("VmFlags:"):
            assert "hg" in line.split()
            return
    pytest.fail("the tensor lies nowhere")


def test_embedded_data_open_without_a_warning():
    """Oracle: silence; numpy before 2.4 looks for denormals when scikit-learn is imported, and says so."""
    code = (
        "from genkit import machine; machine.tune(); "
        "from genkit.data import open_source; open_source('digits')"
    )
    run = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code], capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
