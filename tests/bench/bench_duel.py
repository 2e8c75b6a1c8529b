"""What the benchmarks share: each side in a process of its own, turn after turn, and a table of medians.

Sides take turns (A B A B …) because a machine's speed drifts over minutes; each has its own process
because what one side changes in it (malloc, threads, compiled code) must not help or hurt the other.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TextIO

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # the checkout's genkit, also where another one is installed


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
CLOCK_HELP = (
    "cpu: processor time of the side's process, for a machine that others use too; "
    "with OMP_NUM_THREADS=1, as it adds up over threads"
)


def add_clock(parser: argparse.ArgumentParser) -> None:
    """--clock."""
    parser.add_argument("--clock", default="wall", choices=tuple(CLOCKS), help=CLOCK_HELP)


def answers() -> TextIO:
    """Where a side answers the referee; from now on stdout is stderr: what libraries print must not get
    between the answers."""
    stream = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return stream


def answer(stream: TextIO, seconds: float, images: int, about: dict[str, object]) -> None:
    """Tell the referee what was done, in which time."""
    print(json.dumps({"seconds": seconds, "images": images, **about}), file=stream, flush=True)


class Turns:
    """A side's view: it works for as long as `tick`, called after every unit of work, says so.

    warm: units before the first turn; size: units a turn; images: images a unit; clock: one of `CLOCKS`.
    """

    def __init__(self, warm: int, size: int, images: int, clock: str = "wall") -> None:
        self.left, self.size, self.images = warm, size, images
        self.about: dict[str, object] = {}
        self.answers = answers()
        self.clock = CLOCKS[clock]
        self.began = self.clock()

    def tick(self) -> bool:
        """Count a unit; at the end of a turn, answer with its time and wait for the next. False: all over."""
        self.left -= 1
        if self.left:
            return True
        answer(self.answers, self.clock() - self.began, self.size * self.images, self.about)
        self.left = self.size
        go = sys.stdin.readline() == "go\n"
        self.began = self.clock()
        return go


class Budget:
    """A time to spend on training: `spent`, asked after every step, counts it and says whether to stop."""

    def __init__(self, seconds: float, clock: str = "wall") -> None:
        self.seconds, self.clock = seconds, CLOCKS[clock]
        self.times: list[float] = []  # since the beginning, after each step
        self.begin()

    def begin(self) -> None:
        """The time runs from now on."""
        self.began = self.clock()

    def spent(self) -> bool:
        """Whether the time is over."""
        self.times.append(self.clock() - self.began)
        return self.times[-1] >= self.seconds


def repeat(work: Callable[[], object], turns: Turns) -> None:
    """Work for as long as the turns go on."""
    while True:
        work()
        if not turns.tick():
            return


class Side:
    """A side's process, seen by the referee."""

    def __init__(self, name: str) -> None:
        self.name = name
        command = [sys.executable, *sys.argv, "--side", name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.times: list[float] = []
        self.about = self._answer()
        self.warm = self.about.pop("seconds")
        self.images = self.about.pop("images")

    def _answer(self) -> dict:
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended before its answer; its error is above")
        return json.loads(line)

    def turn(self) -> None:
        """One timed turn."""
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        self.times.append(self._answer()["seconds"])
        time.sleep(0.2)  # its threads spin for a moment before they sleep

    def end(self) -> None:
        """Tell the process that it is over; what it still does is not timed."""
        self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()


def add_turns(parser: argparse.ArgumentParser) -> None:
    """--rounds and, for the processes of the sides, --side."""
    parser.add_argument("--rounds", type=int, default=5, help="turns of each side")
    parser.add_argument("--side", help=argparse.SUPPRESS)


def duel(
    title: str, sides: dict[str, Callable[[argparse.Namespace], None]], parser: argparse.ArgumentParser
) -> None:
    """Run the benchmark. sides: name -> what its process does; the first is compared with the others.

    Adds --rounds, --sides and, for the processes themselves, --side.
    """
    add_turns(parser)
    parser.add_argument("--sides", default=",".join(sides), help="which sides, comma-separated; default: all")
    args = parser.parse_args()
    if args.side:
        sides[args.side](args)
        return
    print(heading(title), flush=True)
    players = compete(args.sides.split(","), args.rounds)
    print(f"load average after: {load()}   (this benchmark itself keeps it near {os.cpu_count()})\n")
    print(table(players), flush=True)


def heading(title: str) -> str:
    """What a benchmark prints first: its title, the machine, versions and the load."""
    return f"# {title}\n{machine()}\n{versions()}\nload average before: {load()}"


def compete(names: list[str], rounds: int) -> list[Side]:
    """The sides of these names after their turns."""
    players = [Side(name) for name in names]
    for _ in range(rounds):
        for player in players:
            player.turn()
    for player in players:
        player.end()
    return players


def table(players: list[Side]) -> str:
    """A Markdown table; the ratio is that of medians, above 1 where the first side is faster."""
    first = statistics.median(players[0].times)
    rows = [
        "| side | median s | min … max s | images/s | first side is faster by | warm-up s | about |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for p in players:
        median = statistics.median(p.times)
        about = ", ".join(f"{k} {v}" for k, v in p.about.items())
        rows.append(
            f"| {p.name} | {median:.3f} | {min(p.times):.3f} … {max(p.times):.3f} | {p.images / median:,.1f} "
            f"| {median / first:.2f}x | {p.warm:.1f} | {about} |"
        )
    return "\n".join([*rows, f"\n{len(players[0].times)} turns a side, {players[0].images} images a turn"])


def machine() -> str:
    """The processor, its cores, and the system."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text("utf-8").splitlines()
        model = next((s.split(":")[1].strip() for s in lines if s.startswith("model name")), model)
        flags = next((s for s in lines if s.startswith("flags")), "")
        model += " with AVX-512 bf16" if "avx512_bf16" in flags else ""
    return f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"


def versions() -> str:
    """Versions of what takes part, and genkit's commit."""
    found = [f"python {platform.python_version()}"]
    for name in ("torch", "torchvision", "diffusers", "denoising-diffusion-pytorch", "pythae"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue

    def git(*words: str) -> str:
        result = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True)
        return result.stdout.strip()

    changed = " with changes" if git("status", "--porcelain", "--", "genkit", "cli") else ""
    return f"{', '.join(found)}, genkit {git('rev-parse', '--short', 'HEAD') or 'of no commit'}{changed}"


def load() -> str:
    """The system's load over 1, 5 and 15 minutes."""
    return " ".join(f"{v:.2f}" for v in os.getloadavg())
