"""Wall time of `genkit --help`, as a person waits for it.

python tests/bench/bench_help.py [COMMAND …]
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from bench_duel import load, machine, versions


def command() -> list[str]:
    """The installed `genkit`: the one beside this Python, else the first on the path."""
    beside = Path(sys.executable).with_name("genkit")
    found = str(beside) if beside.exists() else shutil.which("genkit")
    if found is None:
        sys.exit("genkit is not installed for this Python; pip install -e . first, or name the command")
    return [found]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", nargs="*", help="what to time, with --help added; default: genkit")
    parser.add_argument("--rounds", type=int, default=21)
    args = parser.parse_args()
    wanted = [*(args.command or command()), "--help"]
    print(f"# {' '.join(wanted)}\n{machine()}\n{versions()}\nload average: {load()}\n")
    times = []
    for _ in range(args.rounds + 2):
        began = time.perf_counter()
        subprocess.run(wanted, stdout=subprocess.DEVNULL, check=True)
        times.append(time.perf_counter() - began)
    times = times[2:]  # the first two fill the system's file cache and Python's bytecode cache
    print(
        f"median {statistics.median(times):.3f} s, {min(times):.3f} … {max(times):.3f} s, {args.rounds} runs"
    )
