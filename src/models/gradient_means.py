"""The mean over all processes of the gradients of some parameters: by message, or through memory that they share."""

import mmap
import os
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor, nn

SHARED_MEMORY = "/dev/shm"  # where Linux keeps it


class GradientMean:
    """Averages gradients with one message, which costs less than many.

    Args:
        parameters: the same ones in all processes, on one device and of one type.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = parameters
        first = parameters[0]
        # It stays: the system would else have to find new pages at each step, which takes a millisecond and more.
        self._mean = torch.empty(count(parameters), dtype=first.dtype, device=first.device)
        self._means = self._laid_out(self._mean)

    def take(self) -> None:
        """Waits for all processes; until the next time, each parameter's gradient is then the mean of theirs."""
        self._add_up([parameter.grad for parameter in self._parameters if parameter.grad is not None])
        self._mean /= torch.distributed.get_world_size()
        for parameter, gradient in zip(self._parameters, self._means, strict=True):
            parameter.grad = gradient

    def _add_up(self, gradients: list[Tensor]) -> None:
        """Leaves the sum over all processes in `_mean`."""
        torch._foreach_copy_(self._means, gradients)
        torch.distributed.all_reduce(self._mean)

    def _laid_out(self, memory: Tensor) -> list[Tensor]:
        """Views of flat memory, each laid out as its parameter, which fused optimizers take for granted."""
        found = []
        for parameter, part in zip(self._parameters, memory.split([p.numel() for p in self._parameters]), strict=True):
            dense = torch.empty_like(parameter, device="meta")
            found.append(part.as_strided(dense.shape, dense.stride(), part.storage_offset()))
        return found


class SharedGradientMean(GradientMean):
    """Averages gradients of one machine's processes, each of which reads what all have written.

    Through sockets it would take several times as long: docs/processes.md.

    Args:
        parameters: on the CPU.
        written: memory that the processes share, [2, processes, numbers in all parameters].
    """

    def __init__(self, parameters: Sequence[nn.Parameter], written: Tensor) -> None:
        super().__init__(parameters)
        # Two in turn: while one process reads, another may already write what comes next.
        self._written = written
        self._ours = [self._laid_out(each[torch.distributed.get_rank()]) for each in written]
        self._turn = 0
        self._nothing = torch.zeros(1)

    def _add_up(self, gradients: list[Tensor]) -> None:
        self._turn = 1 - self._turn
        torch._foreach_copy_(self._ours[self._turn], gradients)
        torch.distributed.all_reduce(self._nothing)  # all have written; a barrier takes longer
        torch.sum(self._written[self._turn], 0, out=self._mean)


def gradient_mean(parameters: Sequence[nn.Parameter]) -> GradientMean:
    """What averages the gradients of these parameters; all processes ask for it together."""
    n_processes, n, kind = torch.distributed.get_world_size(), count(parameters), parameters[0].dtype
    memory = None
    if parameters[0].device.type == "cpu":
        memory = _shared_memory(2 * n_processes * n * kind.itemsize)
    if memory is None:
        return GradientMean(parameters)
    return SharedGradientMean(parameters, torch.frombuffer(memory, dtype=kind).view(2, n_processes, n))


def count(parameters: Sequence[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def _shared_memory(size: int) -> mmap.mmap | None:
    """Memory of so many bytes that all processes see; None in all where one cannot, as on another machine."""
    names, memory = [""], None
    if torch.distributed.get_rank() == 0 and sys.platform == "linux":
        with suppress(OSError):
            file, names[0] = tempfile.mkstemp(dir=SHARED_MEMORY)
            with os.fdopen(file, "wb"):
                os.posix_fallocate(file, 0, size)  # else, without room, a process would be killed as it writes
    torch.distributed.broadcast_object_list(names)
    with suppress(OSError, ValueError), open(names[0], "r+b") as opened:
        memory = mmap.mmap(opened.fileno(), size)
    all_see_it = torch.tensor(memory is not None)
    torch.distributed.all_reduce(all_see_it, torch.distributed.ReduceOp.MIN)
    with suppress(OSError):  # the memory stays until its last process ends
        os.unlink(names[0])
    return memory if all_see_it else None
