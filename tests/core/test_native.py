"""Compiled kernels: made once, kept, made again, and done without."""

import os
import platform
import subprocess
import sys
from contextlib import nullcontext

import pytest

from genkit import native

needs_compiler = pytest.mark.skipif(
    native._compiler() is None or platform.system() != "Linux", reason="no C++ compiler, or another system"
)


@needs_compiler
def test_libraries_are_kept_until_something_changes(home, tmp_path):
    folder = home / "own"
    source = tmp_path / "add.cpp"
    source.write_text('extern "C" int add(int a, int b) { return a + b; }')
    code = (
        "from pathlib import Path; from genkit.native import library; import sys;"
        "print(library(Path(sys.argv[1])).add(2, 3))"
    )

    def run(**env):
        env = {**os.environ, "GENKIT_CACHE": str(folder), **env}
        return subprocess.run(
            [sys.executable, "-c", code, str(source)], capture_output=True, text=True, env=env
        )

    assert run().stdout == "5\n"
    (kept,) = (folder / "native").iterdir()
    before = kept.stat().st_mtime_ns
    assert run().stdout == "5\n"
    assert kept.stat().st_mtime_ns == before
    kept.write_bytes(b"damaged")
    assert run().stdout == "5\n"
    source.write_text(source.read_text().replace("+", "*"))
    assert run().stdout == "6\n"


def absent_home():
    """What pathlib does for a user whom no file of users knows."""
    raise RuntimeError("Could not determine home directory.")


@needs_compiler
@pytest.mark.parametrize("why", ["a file in the way", "nobody's home", "a full disk"])
def test_what_cannot_be_kept_is_made_for_the_process(why, monkeypatch, tmp_path):
    source, file = tmp_path / "one.cpp", tmp_path / "file"
    source.write_text('extern "C" int one() { return 1; }')
    file.write_text("no folder")
    if why == "a file in the way":
        monkeypatch.setenv("GENKIT_CACHE", str(file))
    elif why == "a full disk":
        full, compiler = tmp_path / "full", " ".join(native._compiler())
        file.write_text(
            f"""case "$*" in *{full}*) echo 'ld: No space left' >&2; exit 1; esac; {compiler} "$@" """
        )
        monkeypatch.setenv("GENKIT_CACHE", str(full))
        monkeypatch.setenv("CXX", f"sh {file}")
    else:
        monkeypatch.delenv("GENKIT_CACHE")
        monkeypatch.setattr("pathlib.Path.home", absent_home)
    library = native.library.__wrapped__(source)
    assert library is not None
    assert library.one() == 1
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == [file, source]


@pytest.mark.parametrize(
    "why, warning",
    [
        ("off", None),
        ("another system", None),
        ("no compiler", None),
        ("absent compiler", "empty runs without its C.. kernels: .*absent"),
        ("open quote", "empty runs without its C.. kernels: No closing quotation"),
        pytest.param("not C++", "empty runs without its C.. kernels: .*error", marks=needs_compiler),
    ],
)
def test_without_a_library_there_is_none(why, warning, monkeypatch, tmp_path, home):
    source = tmp_path / "empty.cpp"
    source.write_text("not C++" if why == "not C++" else "")
    if why == "off":
        monkeypatch.setenv("GENKIT_NATIVE", "0")
    elif why == "no compiler":
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
    elif why == "absent compiler":
        monkeypatch.setenv("CXX", str(tmp_path / "absent"))
    elif why == "open quote":
        monkeypatch.setenv("CXX", "g++ '")
    elif why == "another system":
        monkeypatch.setattr("platform.system", lambda: "Darwin")
    with pytest.warns(RuntimeWarning, match=warning) if warning else nullcontext():
        assert native.library.__wrapped__(source) is None
    assert not list(home.glob("native/*empty*"))
