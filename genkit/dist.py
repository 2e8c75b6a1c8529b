"""Data parallelism under torchrun: rank, world size, reductions, and the split of an index range."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from .errors import InputError

T = TypeVar("T")


def rank() -> int:
    """This process's number, 0 without torchrun."""
    return int(os.environ.get("RANK", 0))


def world() -> int:
    """The number of processes, 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_main() -> bool:
    """Whether this process writes the files and talks to the person."""
    return rank() == 0


def start(device: torch.device) -> None:
    """Join the process group that torchrun describes; nothing to do for a single process."""
    if world() > 1 and not dist.is_initialized():
        if device.type == "cuda":
            torch.cuda.set_device(device)
        with _stdout_to_stderr():
            # results are gathered on the CPU, gradients where they are
            dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Within, what is written to stdout goes to stderr: stdout is for data, and the gloo of torch 2.9 prints
    there whom it is connected to."""
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


def stop() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def on_main(work: Callable[[], T]) -> T:
    """What `work` returns in the main process, in every process; an InputError there is raised everywhere."""
    if not dist.is_initialized():
        return work()
    answer: list[Any] = [None, None]
    if is_main():
        try:
            answer[0] = work()
        except InputError as error:
            answer[1] = str(error)
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise InputError(answer[1])
    return answer[0]


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is true in any process."""
    if not dist.is_initialized():
        return flag
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def total(x: Tensor) -> Tensor:
    """The sum of `x` over all processes, in every process; `x` itself is overwritten with it."""
    if dist.is_initialized():
        dist.all_reduce(x)
    return x


def share(n: int) -> range:
    """This process's contiguous part of 0 … n - 1; the parts differ in length by at most one."""
    r, w = rank(), world()
    return range(n * r // w, n * (r + 1) // w)


def average(value: Tensor) -> Tensor:
    """The mean of `value` over the processes, for a loss that is no sum over examples.

    Its gradient is the one of this process's `value`: averaged over the processes, as gradients are, that is
    the gradient of the loss of the whole batch.
    """
    if not dist.is_initialized():
        return value
    return value + (total(value.detach().clone()) / world() - value).detach()


def gather_rows(rows: Tensor) -> Tensor:
    """The rows (n, …) of every process, in order of rank, on every process.

    n may differ between processes; one without rows takes their shape from the others.
    """
    if not dist.is_initialized():
        return rows
    shapes: list[Any] = [None] * world()
    dist.all_gather_object(shapes, tuple(rows.shape))
    shape = next((s for s in shapes if s[0]), shapes[0])[1:]
    padded = rows.new_zeros((max(s[0] for s in shapes), *shape))
    if len(rows):
        padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world())]
    dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[: s[0]] for part, s in zip(parts, shapes)])


def gather_lists(items: list[str] | None) -> list[str] | None:
    """The items of every process, in order of rank, on every process."""
    if not dist.is_initialized():
        return items
    parts: list[list[str] | None] = [None] * world()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part or []] or None
