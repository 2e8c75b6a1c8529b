"""Files of a diffusers model: from a folder, or from the Hugging Face hub by plain HTTP into the cache."""

import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

from .. import cache
from ..errors import InputError, RunError
from ..io.atomic import atomic, write_bytes

HUB = "https://huggingface.co"
TIMEOUT = 30  # seconds without a byte
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
Say = Callable[[str], None]


class Repository(NamedTuple):
    """Where a model's files are: `find` gives the local path of one by its name there, or None."""

    name: str
    find: Callable[[str], Path | None]


def open_repository(source: str, say: Say) -> Repository:
    """The folder `source`, or the model `ORG/NAME` of the hub.

    Files of the hub come to the cache when they are asked for. say: told of each download.

    Raises:
        InputError: it is neither.
    """
    folder = Path(source)
    if folder.is_dir():
        return Repository(source, lambda name: path if (path := folder / name).is_file() else None)
    if folder.exists():
        raise InputError(f"{source} is a file; give the folder that holds its config.json")
    if not _ID.fullmatch(source):
        raise InputError(f"{source} is no folder, and no model of the hub, which is written ORG/NAME")
    kept = cache.folder() / "hub" / source
    return Repository(source, lambda name: _from_hub(source, name, kept / name, say))


def _from_hub(model: str, name: str, path: Path, say: Say) -> Path | None:
    """The cached copy of a file, downloaded first where it is missing; None when the hub has no such file."""
    absent = path.with_name(path.name + ".absent")  # asked once, so that a cached model works offline
    if path.is_file():
        return path
    if absent.exists():
        return None
    url = f"{os.environ.get('HF_ENDPOINT') or HUB}/{model}/resolve/main/{name}"
    remedy = f"download the folder of {model} by hand and give its path instead"
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "genkit"})
        with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
            say(f"downloading {url}" + (f" ({size / 1e6:.1f} MB)" if size > 1e6 else ""))
            atomic(path, lambda temporary: _copy(answer, temporary, size, url))
    except urllib.error.HTTPError as error:
        if error.code == 404:
            write_bytes(absent, b"")
            return None
        if error.code in (401, 403):
            raise InputError(
                f"{model} is no folder here, and no public model of the hub (HTTP {error.code})"
            ) from None
        raise InputError(f"{url} answers HTTP {error.code}; try again, or {remedy}") from None
    except (urllib.error.URLError, TimeoutError, http.client.HTTPException) as error:
        raise InputError(
            f"{model} is no folder here, and the hub cannot be reached ({_reason(error)}); {remedy}"
        ) from None
    return path


def _copy(answer: IO[bytes], temporary: Path, size: int, url: str) -> None:
    with temporary.open("wb") as file:
        while chunk := _read(answer, url):
            file.write(chunk)
        got = file.tell()
    if size and got != size:
        raise RunError(f"{url} broke off after {got} of {size} bytes; try again")


def _read(answer: IO[bytes], url: str) -> bytes:
    try:
        return answer.read(1 << 20)
    except (OSError, http.client.HTTPException) as error:
        raise RunError(f"{url} broke off ({_reason(error)}); try again") from None


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error)
