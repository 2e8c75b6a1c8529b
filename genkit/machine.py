"""What this machine offers: the device, the precision that pays on it, and a process set up for speed."""

import ctypes
import os
import platform
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch

from .errors import InputError

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_KEEP = (1 << 31) - 1  # what mallopt can be told at most
_HUGE, _MADV_HUGEPAGE = 3 << 29, 14  # bytes of the heap in huge pages, less than _KEEP; mman.h


def tune() -> None:
    """Set this process up for arithmetic on a CPU, before any: torch's threads inherit it.

    Numbers too small for full precision (denormals) become 0: arithmetic on them is many times slower.
    AdamW's mean of a gradient that has become 0 (of a unit that died, of a pixel that is hardly ever lit)
    halves every 7 steps, and after 900 it is one: they cost an MLP VAE on MNIST a fifth of its time.
    """
    if _keep_freed_blocks():
        _ask_for_huge_pages()
    for kind in (np.float32, np.float64):
        np.finfo(kind)  # looked up and kept now: before 2.4, numpy warns of a process without denormals
    torch.set_flush_denormal(True)


def _keep_freed_blocks() -> bool:
    """Make glibc keep freed blocks instead of returning them to the system; True where it could.

    torch frees and asks again for the same large blocks at every step, and each fresh page costs a fault:
    this alone is worth 1.4-1.6x in eager fp32 convolutions on a CPU. Elsewhere (musl, macOS) nothing happens.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_THRESHOLD, _KEEP), (_M_TRIM_THRESHOLD, _KEEP), (_M_TOP_PAD, 64 << 20))
    done = [mallopt(which, value) for which, value in settings]  # all of them, whatever one returns
    return all(done)


def _ask_for_huge_pages() -> None:
    """Make Linux lay the heap in pages of 2 MB where it would use 4 KB, if it has them for who asks.

    A step of a network goes through hundreds of megabytes: looking up that many small pages cost the training
    of a U-Net a seventh of its time. The heap must have its size before: what is added later, also after 2 GB
    of it were given back, is not in it.
    """
    libc = ctypes.CDLL(None)
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if block := libc.malloc(_HUGE):  # addresses only: nothing is touched
        page = 1 << 21
        begin = -(-block // page) * page
        libc.madvise(begin, (block + _HUGE - begin) // page * page, _MADV_HUGEPAGE)
        libc.free(block)  # kept, as all blocks are


def pick_device(name: str = "auto") -> torch.device:
    """The device called `name`; auto is CUDA where there is some, else the CPU; cuda is this process's own.

    Raises:
        InputError: when it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', 0)}"
    try:
        device = torch.device(name)
        torch.ones(1, device=device).item()  # "meta" has tensors, but no numbers in them
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used here ({reason}); try --device auto") from None
    return device


def fast_bf16(device: torch.device) -> bool:
    """Whether `device` has units that multiply matrices in bf16 faster than in float32.

    A CPU has them with AMX, by design: it was not measured. Those with vector instructions alone do not
    count: on a Xeon they run at half of float32's rate (4 times slower training of a U-Net, 1.6 times of an
    MLP). On EPYCs they are faster, but not what convolutional networks gain by the float32 kernels of `nn`,
    as far as figures of two machines can be compared.
    """
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and bool(torch.cpu._is_amx_tile_supported())


def resolve_precision(name: str, device: torch.device) -> str:
    """ "bf16" or "fp32"; auto is bf16 where the hardware is faster with it."""
    return ("bf16" if fast_bf16(device) else "fp32") if name == "auto" else name


def autocast(device: torch.device, precision: str) -> Any:
    """The context in which convolutions and matrix products run in bf16, or one that does nothing."""
    if precision == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
