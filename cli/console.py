"""The two streams and the exit code: stdout is data only, stderr is for people."""

import json
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType, TracebackType
from typing import Any

from genkit.errors import InputError, RunError


def is_main() -> bool:
    """Whether this process talks to the person; the same as genkit.dist's, without importing torch."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """A line for the person, from the main process only."""
    if is_main():
        print(text, file=sys.stderr, flush=True)


def emit(value: Any, as_json: bool = False) -> None:
    """A line of data: a path, or with `as_json` one JSON object."""
    if is_main():
        print(json.dumps(value) if as_json else value, flush=True)


def emit_bytes(data: bytes) -> None:
    """A tensor stream."""
    if is_main():
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


def open_streams() -> None:
    """Give the streams that the caller closed to the null device.

    Otherwise the next file to be opened takes a stream's number, and print(file=None) writes to stdout what
    stderr was to have.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115  (open for the life of the process)


def quiet_stdout() -> None:
    """After a broken pipe: whoever read from us has enough, and closing stdout must not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def exit_code(work: Callable[[], object]) -> int:
    """Run `work` and turn how it ended into an exit code: 0, 1 failed on the way, 2 wrong request, 130
    interrupted.

    A broken pipe is no failure: 0.
    """
    debug = os.environ.get("GENKIT_DEBUG") == "1"
    try:
        with nullcontext() if debug else _warnings_in_one_line():
            work()
        sys.stdout.flush()
        return 0
    except BrokenPipeError:
        quiet_stdout()
        return 0
    except SystemExit as stop:
        # typer and rich turn a broken pipe into exit code 1
        if not isinstance(stop.__context__, BrokenPipeError):
            raise
        quiet_stdout()
        return 0
    except KeyboardInterrupt:
        say("genkit: interrupted")
        return 130
    except (InputError, RunError, OSError, MemoryError) as error:
        if debug:
            raise
        say(f"genkit: {' '.join(str(error).split()) or type(error).__name__}")
        return 2 if isinstance(error, InputError) else 1
    except RuntimeError as error:
        if debug or "out of memory" not in str(error):
            raise
        print("genkit: out of memory; try a smaller --batch-size", file=sys.stderr)
        return 1


@contextmanager
def _warnings_in_one_line() -> Iterator[None]:
    """Within: what libraries warn of is said without the place in the code."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_, **__: f"warning: {' '.join(str(message).split())}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


class Interrupt:
    """Whether SIGINT or SIGTERM has come while it was being watched for; a second one ends the process at
    once."""

    def __init__(self) -> None:
        self.seen = False

    def __call__(self) -> bool:
        return self.seen

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.seen:
            raise KeyboardInterrupt
        self.seen = True

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within: signals are noted instead of raised."""
        old = {s: signal.signal(s, self._note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)


class Meter:
    """A progress bar on a terminal; one plain line every `interval` seconds elsewhere."""

    def __init__(self, label: str, total: int, interval: float = 10.0, start: int = 0) -> None:
        self.label, self.total, self.interval = label, total, interval
        self.done, self.began, self.last = start, time.monotonic(), time.monotonic()
        self.text, self.shown = "", start
        self.bar: Any = None

    def __enter__(self) -> "Meter":
        if is_main() and sys.stderr.isatty():
            self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()
        elif kind is None and self.done > self.shown:
            self._line()

    def _draw(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.bar = Progress(*columns, TextColumn("{task.fields[text]}"), console=Console(stderr=True))
        self.bar.start()
        self.bar.add_task(self.label, total=self.total, completed=self.done, text="")

    def update(self, done: int, text: str | None = None) -> None:
        """Show that `done` of the total is finished; `text` is shown beside it until the next one."""
        self.done, self.text = done, self.text if text is None else text
        if self.bar is not None:
            self.bar.update(0, completed=done, text=self.text)
        elif time.monotonic() - self.last >= self.interval:
            self._line()

    def _line(self) -> None:
        now = time.monotonic()
        # the pace since the last line: start-up and earlier company would spoil an average
        rate = (self.done - self.shown) / max(1e-9, now - self.last)
        left = (self.total - self.done) / rate if rate else 0
        eta = f" {_clock(left)} left" if self.done < self.total else f" in {_clock(now - self.began)}"
        say(f"{self.label} {self.done}/{self.total}{eta}{'  ' if self.text else ''}{self.text}")
        self.last, self.shown = now, self.done


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
