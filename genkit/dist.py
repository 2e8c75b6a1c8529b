"""Data parallelism under torchrun: rank, world size, reductions, and the split of an index range."""

import os

import torch
import torch.distributed as dist
from torch import Tensor


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
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")


def stop() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def barrier() -> None:
    """Wait until every process is here."""
    if dist.is_initialized():
        dist.barrier()


def mean(values: Tensor) -> Tensor:
    """The mean of `values` over all processes."""
    if not dist.is_initialized():
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values / world()


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether `flag` is true in any process."""
    if not dist.is_initialized():
        return flag
    value = torch.tensor(float(flag), device=device)
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return bool(value.item())


def share(n: int) -> range:
    """This process's contiguous part of 0 … n - 1; the parts differ in length by at most one."""
    r, w = rank(), world()
    return range(n * r // w, n * (r + 1) // w)


def gather_rows(rows: Tensor) -> Tensor:
    """The rows (n, …) of every process, in order of rank, on every process; n may differ between
    processes."""
    if not dist.is_initialized():
        return rows
    count = torch.tensor([len(rows)], device=rows.device)
    counts = [torch.zeros_like(count) for _ in range(world())]
    dist.all_gather(counts, count)
    longest = int(max(c.item() for c in counts))
    padded = rows.new_zeros((longest, *rows.shape[1:]))
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world())]
    dist.all_gather(parts, padded.contiguous())
    return torch.cat([part[: int(c.item())] for part, c in zip(parts, counts)])


def gather_lists(items: list[str] | None) -> list[str] | None:
    """The items of every process, in order of rank, on every process."""
    if not dist.is_initialized():
        return items
    parts: list[list[str] | None] = [None] * world()
    dist.all_gather_object(parts, items)
    return [item for part in parts for item in part or []] or None
