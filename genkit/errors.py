"""The two errors that a person sees as one line; everything else is a bug or the machine's fault."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """The request or an input is wrong: names the value, the file and the remedy (exit code 2)."""


class RunError(RuntimeError):
    """The work failed on the way, through no fault of the request: disk full, non-finite loss (exit code
    1)."""


def unknown(kind: str, name: str, known: Iterable[str]) -> InputError:
    """An InputError for a name that is not among `known`, with the closest one suggested."""
    names = sorted(known)
    close = get_close_matches(name, names, n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"choose from {', '.join(names)}"
    return InputError(f"unknown {kind} {name!r}; {hint}")


def with_article(noun: str) -> str:
    """`noun` behind its article."""
    return f"{'an' if noun[0] in 'aeiou' or noun == 'hvae' else 'a'} {noun}"
