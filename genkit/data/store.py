"""Files below one root, read by name: a folder or a zip. Both pickle and fork, for DataLoader's workers."""

import errno
import io
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple, Protocol

from ..errors import InputError


class Store(Protocol):
    """Named files; names are relative to the root, with forward slashes."""

    path: Path

    def names(self) -> list[str]:
        """All files, sorted by name, without hidden ones."""
        ...

    def stamp(self, name: str) -> tuple[int, int]:
        """(size, CRC-32 or modification time): changes when the file's content does."""
        ...

    def open(self, name: str) -> BinaryIO:
        """A readable, seekable stream of one file's bytes.

        Raises:
            OSError: when it cannot be read.
        """
        ...


def hidden(name: str) -> bool:
    """Whether a file is the file system's or a half-written one rather than the person's."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def escapes(name: str) -> bool:
    """Whether a relative name is absolute, or climbs, on any operating system."""
    parts = re.split(r"[/\\]", name)
    return name.startswith(("/", "\\")) or bool(re.match(r"[A-Za-z]:", name)) or ".." in parts


class Folder:
    """The files of a folder and its sub-folders."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self) -> list[str]:
        return sorted(p.relative_to(self.path).as_posix() for p in self._walk(self.path, frozenset()))

    def _walk(self, folder: Path, above: frozenset[str]) -> Iterator[Path]:
        # Links to folders are followed; one that leads back to a folder above it would never end.
        real = os.path.realpath(folder)
        if real in above:
            return
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            raise InputError(f"cannot read {folder}: {error.strerror}") from None
        for entry in entries:
            if hidden(entry.name):
                continue
            if entry.is_dir():
                yield from self._walk(Path(entry.path), above | {real})
            elif entry.is_file() or entry.is_symlink():
                yield Path(entry.path)

    def stamp(self, name: str) -> tuple[int, int]:
        status = (self.path / name).stat()
        return status.st_size, status.st_mtime_ns

    def open(self, name: str) -> BinaryIO:
        return open(self.path / name, "rb")


class Member(NamedTuple):
    """Where a zip keeps one file."""

    offset: int
    packed: int
    size: int
    crc: int
    method: int


class Zip:
    """The files of a zip, read in place; any thread or process may, since only the contents table is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._members = {}
        for info in contents(path):
            if escapes(info.filename):
                remedy = "unpack it with care and zip the images again"
                raise InputError(f"{path}: entry {info.filename!r} lies outside the archive; {remedy}")
            if info.is_dir() or hidden(info.filename):
                continue
            if info.flag_bits & 1:
                raise InputError(f"{path} is encrypted; unpack it, or zip it again without a password")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                method = zipfile.compressor_names.get(info.compress_type, info.compress_type)  # type: ignore
                raise InputError(f"{path} is packed by {method}; zip it again stored or deflated")
            packed, size = info.compress_size, info.file_size
            member = Member(info.header_offset, packed, size, info.CRC, info.compress_type)
            self._members[info.filename] = member

    def names(self) -> list[str]:
        return sorted(self._members)

    def stamp(self, name: str) -> tuple[int, int]:
        member = self._members[name]
        return member.size, member.crc

    def open(self, name: str) -> BinaryIO:
        if name not in self._members:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        member = self._members[name]
        with open(self.path, "rb", buffering=0) as file:
            file.seek(member.offset)
            head = file.read(30)
            if len(head) < 30 or head[:4] != b"PK\x03\x04":
                raise OSError("its place in the zip is wrong")
            file.seek(sum(struct.unpack_from("<HH", head, 26)), os.SEEK_CUR)
            data = file.read(member.packed)
        if member.method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-15).decompress(data, member.size)
            except zlib.error as error:
                raise OSError(f"zip: {error}") from None
        if len(data) != member.size or zlib.crc32(data) != member.crc:
            raise OSError("its checksum in the zip differs")
        return io.BytesIO(data)


def contents(path: Path) -> list[zipfile.ZipInfo]:
    """The table of contents of a zip.

    Raises:
        InputError: when it is missing, unreadable or no zip.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.infolist()
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError, EOFError) as error:
        raise InputError(f"{path} is no zip, or an incomplete one ({error}); copy or make it again") from None
