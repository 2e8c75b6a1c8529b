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
from pathlib import Path

from . import cache

_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC")
_TIMEOUT = 60.0  # seconds; it takes about one


@functools.cache
def library(source: Path) -> ctypes.CDLL | None:
    """The functions of a C++ file, or None where they cannot be had; callers then do without.

    That is where $GENKIT_NATIVE is 0, elsewhere than on Linux, and without a C++ compiler ($CXX, c++, g++ or
    clang++). What is compiled lies under native/ in the cache folder, under the hash of all that it depends
    on; where nothing can be kept, it is this process's own.
    """
    if os.environ.get("GENKIT_NATIVE") == "0" or platform.system() != "Linux":
        return None
    try:
        compiler = _compiler()
        return None if compiler is None else _loaded(source, compiler)
    except (OSError, subprocess.SubprocessError):
        return None


def _compiler() -> list[str] | None:
    """The command that compiles C++."""
    if chosen := shlex.split(os.environ.get("CXX", "")):
        return chosen
    found = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    return None if found is None else [found]


def _loaded(source: Path, compiler: list[str]) -> ctypes.CDLL:
    """The library made of `source`, from the cache where it is there and whole."""
    path = cache.folder() / "native" / f"{source.stem}-{_key(source, compiler)}.so"
    if path.is_file():
        try:
            return ctypes.CDLL(str(path))
        except OSError:
            pass  # damaged: made again
    kept = _writable(path.parent)
    with tempfile.TemporaryDirectory(dir=path.parent if kept else None) as folder:
        made = Path(folder) / path.name
        command = [*compiler, *_FLAGS, "-o", str(made), str(source)]
        subprocess.run(command, capture_output=True, check=True, timeout=_TIMEOUT)
        if not kept:
            return ctypes.CDLL(str(made))
        os.replace(made, path)
        return ctypes.CDLL(str(path))


def _writable(folder: Path) -> bool:
    """Whether files can be put into `folder`, made where it is missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _key(source: Path, compiler: list[str]) -> str:
    """A hash of all that the library depends on."""
    asked = subprocess.run([*compiler, "--version"], capture_output=True, check=True, timeout=_TIMEOUT)
    texts = [path.read_bytes() for path in [source, *sorted(source.parent.glob("*.h"))]]
    parts = [*texts, shlex.join([*compiler, *_FLAGS]).encode(), asked.stdout, _processor()]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _processor() -> bytes:
    """What -march=native means here: homes are shared between machines."""
    lines = Path("/proc/cpuinfo").read_bytes().split(b"\n\n", 1)[0].splitlines()
    telling = (b"model name", b"flags", b"Features", b"CPU part")
    return b"\n".join(line for line in lines if line.startswith(telling))
