"""The processes that train one model together, started by torchrun; a process on its own is a world of size one.

with process_group("cuda") as distributed:  # reads what torchrun set in the environment
    objective = distributed.wrap(objective)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.distributed.nn.functional  # see `process_group`
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from semsam_model.errors import ConfigError

#: Counts of this process -> their mean over all processes that share a batch.
ReduceMean = Callable[[Tensor], Tensor]


def no_reduce(counts: Tensor) -> Tensor:
    """The counts of a batch that no other process shares."""
    return counts


@dataclass(frozen=True)
class Distributed:
    """This process, number `rank` of `world_size`, and its device."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def wrap(self, module: nn.Module) -> nn.Module:
        """The module, whose gradients are now means over the processes; its parameters become those of the first."""
        if self.world_size == 1:
            return module
        # Which heads are used depends on the batch: one without names, say, has no use for the name head.
        return DistributedDataParallel(
            module,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            find_unused_parameters=True,
            forward_sync_buffers=False,
        )

    def sync_gradients(self, wrapped: Any, now: bool) -> AbstractContextManager[None]:
        """Around forward and backward of a wrapped module: whether gradients are averaged now, or kept for later."""
        if now or not isinstance(wrapped, DistributedDataParallel):
            return nullcontext()
        return wrapped.no_sync()

    def barrier(self) -> None:
        """Wait until every process is here."""
        if self.world_size > 1:
            dist.barrier()

    def mean(self, values: Tensor) -> Tensor:
        """Over the processes, the same in each; without gradients."""
        if self.world_size == 1:
            return values
        total = values.detach().clone()
        dist.all_reduce(total)
        return total / self.world_size

    def gather(self, values: Sequence[float]) -> np.ndarray:
        """The values of every process, (world_size, len(values)) float64, the same in each."""
        if self.world_size == 1:
            return np.array([values], np.float64)
        own = torch.tensor(values, dtype=torch.float64, device=self.device if dist.get_backend() == "nccl" else "cpu")
        every = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(every, own)
        return torch.stack(every).cpu().numpy()


@contextmanager
def process_group(device: str) -> Iterator[Distributed]:
    """Join the other processes of torchrun while the block runs; without torchrun, a world of size one.

    Each has a CUDA device of its own, or shares one where the machine has fewer: one process of a small network cannot
    keep a GPU busy. Raises ConfigError when one CUDA device is asked for by its number, or there is none.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Distributed(torch.device(device))
        return
    own, backend = torch.device(device), "gloo"
    if own.type == "cuda":
        if own.index is not None:
            raise ConfigError(f"device {device}: torchrun gives each process its device; say cuda")
        devices = torch.cuda.device_count()
        if not devices:
            raise ConfigError(f"device {device}: this machine has no CUDA device; say cpu")
        if int(os.environ["LOCAL_WORLD_SIZE"]) <= devices:
            backend = "nccl"  # which refuses two processes on one device
        own = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % devices)
        torch.cuda.set_device(own)
    if dist.is_initialized():  # by the caller, whose group it stays
        yield Distributed(own, dist.get_rank(), count)
        return
    # torch.distributed.nn.functional has the group of the moment of its import as the default of its arguments. First
    # imported by DistributedDataParallel, it would hold this group for ever, and threads of a group that was never torn
    # down may abort the process when the interpreter ends: "terminate called without an active exception".
    dist.init_process_group(backend)
    try:
        yield Distributed(own, dist.get_rank(), count)
    finally:
        dist.destroy_process_group()
