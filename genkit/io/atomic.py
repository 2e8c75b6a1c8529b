"""Writing a file so that a reader never sees half of it, whatever interrupts the writer."""

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError

from ..errors import RunError


def atomic(path: Path, write: Callable[[Path], None]) -> None:
    """Call `write` with a temporary name beside `path`, sync the result and rename it to `path`.

    Raises:
        RunError: when the disk is full or the folder read-only; whatever stood at `path` is untouched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.chmod(
            0o666 & ~_umask()
        )  # the safetensors writer leaves files that only their owner can read
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise _unwritable(path, error) from error
    finally:
        # A read-only or vanished folder must not hide the error that is on its way up.
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically."""
    atomic(path, lambda temporary: _dump(temporary, data))


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8 to `path` atomically."""
    write_bytes(path, text.encode())


def append_text(path: Path, text: str) -> None:
    """Add `text` as UTF-8 to the end of `path`, which is made where it is missing.

    Raises:
        RunError: when the disk is full or the folder read-only.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: Exception) -> RunError:
    reason = getattr(error, "strerror", None) or str(error)
    return RunError(f"cannot write {path}: {reason}; free space or choose another -o")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _dump(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
