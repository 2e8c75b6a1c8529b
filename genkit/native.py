"""C++ kernels for the CPU: compiled by the machine's own compiler when first wanted, and kept."""

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from . import cache

_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_PLAIN = (Tensor, nn.Parameter)
POINTER, LONG, INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int  # what kernels are told
_TIMEOUT = 60.0  # seconds; it takes about one


@functools.cache
def library(source: Path) -> ctypes.CDLL | None:
    """The functions of a C++ file, or None where they cannot be had; callers then do without.

    That is where $GENKIT_NATIVE is 0, elsewhere than on Linux, without a C++ compiler ($CXX, c++, g++ or
    clang++), and, with a warning, where that fails. What is compiled lies under native/ in the cache folder,
    under the hash of all that it depends on; where nothing can be kept, it is this process's own.
    """
    if os.environ.get("GENKIT_NATIVE") == "0" or platform.system() != "Linux":
        return None
    try:
        compiler = _compiler()
        return None if compiler is None else _loaded(source, compiler)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        said = (getattr(error, "stderr", None) or b"").decode(errors="replace").strip().splitlines()
        reason = next((line for line in said if "error" in line or "failed" in line), str(error))
        warnings.warn(f"{source.stem} runs without its C++ kernels: {reason}", RuntimeWarning, stacklevel=2)
        return None


def readable(*tensors: Tensor | None) -> bool:
    """Whether kernels of float32 on a CPU can read all of these (None is none) from their addresses."""
    for t in tensors:  # no generator: every layer asks
        if t is not None and (t.dtype is not torch.float32 or not plain(t)):
            return False
    return eager()


def plain(t: Tensor) -> bool:
    """Whether the tensor's numbers lie on the CPU, and it is no more than they."""
    return t.is_cpu and type(t) in _PLAIN


def eager() -> bool:
    """Whether operations run as they are called, and only as such, so that what runs in between need not be
    torch's."""
    return not (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or torch._C._are_functorch_transforms_active()
        or torch._C._len_torch_dispatch_stack() > 0
        or forward_ad._current_level >= 0
    )


def check(failed: int, what: str) -> None:
    """Raise what a kernel for `what` could not.

    Raises:
        MemoryError: it had no memory for its scratch.
    """
    if failed:
        raise MemoryError(f"no memory left for {what}")


@functools.lru_cache(maxsize=1024)
def longs(numbers: tuple[int, ...]) -> ctypes.Array[ctypes.c_int64]:
    """The numbers, one behind the other, as kernels take them: kept, so never to be changed."""
    return (LONG * len(numbers))(*numbers)


def addresses(*tensors: Tensor | None) -> list[int | None]:
    """Where the numbers of the tensors lie, None for none; they must outlive the call that gets this."""
    return [None if t is None else t.data_ptr() for t in tensors]


def _compiler() -> list[str] | None:
    """The command that compiles C++."""
    if chosen := shlex.split(os.environ.get("CXX", "")):
        return chosen
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return None if found is None else [found]


def _loaded(source: Path, compiler: list[str]) -> ctypes.CDLL:
    """The library made of `source`, from the cache where it is there."""
    folder = _folder()
    path = None if folder is None else folder / f"{source.stem}-{_key(source, compiler)}.so"
    if path is not None and path.is_file():
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            pass  # damaged: made again
    try:
        return _made(source, compiler, path)
    except (OSError, subprocess.CalledProcessError):
        if path is None:
            raise
        return _made(source, compiler, None)  # the folder may be full; if not, this fails as well


def _made(source: Path, compiler: list[str], path: Path | None) -> ctypes.CDLL:
    """The library compiled from `source`, and kept as `path`."""
    with tempfile.TemporaryDirectory(dir=None if path is None else path.parent) as temporary:
        made = Path(temporary) / f"{source.stem}.so"
        command = [*compiler, *_FLAGS, "-o", str(made), str(source)]
        subprocess.run(command, capture_output=True, check=True, timeout=_TIMEOUT)
        if path is not None:
            with made.open("rb") as file:
                os.fsync(file.fileno())  # half a library would end every later process
            made = made.replace(path)
        return ctypes.CDLL(str(made))


def _folder() -> Path | None:
    """Where libraries are kept; None where nothing can be."""
    try:
        folder = cache.folder() / "native"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: nobody's home
        return None
    return folder if os.access(folder, os.W_OK) else None


def _key(source: Path, compiler: list[str]) -> str:
    """A hash of all that the library depends on."""
    headers = {*source.parent.glob("*.h"), *(Path(__file__).parent / "nn").glob("*.h")}
    texts = [path.read_bytes() for path in [source, *sorted(headers)]]
    parts = [*texts, shlex.join([*compiler, *_FLAGS]).encode(), _version(*compiler), _processor()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


@functools.cache
def _version(*compiler: str) -> bytes:
    """What the compiler says it is."""
    command = [*compiler, "--version"]
    return subprocess.run(command, capture_output=True, check=True, timeout=_TIMEOUT).stdout


def _processor() -> bytes:
    """What -march=native means here: homes are shared between machines."""
    lines = Path("/proc/cpuinfo").read_bytes().split(b"\n\n", 1)[0].splitlines()
    telling = (b"model name", b"flags", b"Features", b"CPU part")
    return b"\n".join(line for line in lines if line.startswith(telling))
