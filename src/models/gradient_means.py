"""The mean over all processes of the gradients of some parameters: by message, or through memory that they share."""

import mmap
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from functools import reduce

import torch
from torch import Tensor, nn

from src.errors import UserError

SHARED_MEMORY = "/dev/shm"  # where Linux keeps it
MOST_PROCESSES = 8  # each reads what all write, so that messages cost less from some number on


class GradientMean:
    """Averages gradients with one message, which costs less than many.

    Args:
        parameters: the same ones in all processes, and on one device.
        which: a number that only these parameters have, the same in all processes.

    Raises:
        UserError: by `take`, on the CPU, if another process takes the mean of other gradients.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], which: int) -> None:
        self._parameters = parameters
        self._which = which
        # It stays: the system would else have to find new pages at each step, which takes a millisecond and more.
        self._mean = torch.empty(count(parameters), dtype=common_type(parameters), device=parameters[0].device)
        self._means = self._laid_out(self._mean)

    @torch.no_grad()
    def take(self) -> None:
        """Waits for all processes; until the next time, each parameter's gradient is then the mean of theirs."""
        self._add_up([parameter.grad for parameter in self._parameters if parameter.grad is not None])
        self._mean /= torch.distributed.get_world_size()
        for parameter, gradient in zip(self._parameters, self._means, strict=True):
            parameter.grad = gradient.to(parameter.dtype)

    def _add_up(self, gradients: list[Tensor]) -> None:
        """Leaves the sum over all processes in `_mean`."""
        torch._foreach_copy_(self._means, gradients)
        if self._mean.device.type == "cpu":  # a GPU would have to be waited for
            agree(self._which, self._mean.device)
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

    Sockets would copy them in the kernel, in threads that take time from training on the same cores.

    Args:
        parameters: on the CPU.
        which: as above.
        written: memory that the processes share, [2, processes, numbers in all parameters].
    """

    def __init__(self, parameters: Sequence[nn.Parameter], which: int, written: Tensor) -> None:
        super().__init__(parameters, which)
        # Two in turn: while one process reads, another may already write what comes next.
        self._written = written
        self._ours = [self._laid_out(each[torch.distributed.get_rank()]) for each in written]
        self._turn = 0

    def _add_up(self, gradients: list[Tensor]) -> None:
        self._turn = 1 - self._turn
        torch._foreach_copy_(self._ours[self._turn], gradients)
        agree(self._which, self._mean.device)  # from here on, all have written
        torch.sum(self._written[self._turn], 0, out=self._mean)


def gradient_mean(parameters: Sequence[nn.Parameter], which: int, one_machine: bool) -> GradientMean:
    """What averages the gradients of these parameters; all processes ask for it together.

    Args:
        parameters: the same ones in all processes, and on one device.
        which: a number that only these parameters have, the same in all processes.
        one_machine: whether all processes run on it.

    Raises:
        UserError: another process asks for other parameters.
    """
    device, n_processes = parameters[0].device, torch.distributed.get_world_size()
    agree(which, device)
    if one_machine and device.type == "cpu" and n_processes <= MOST_PROCESSES:
        n, kind = count(parameters), common_type(parameters)
        memory = _shared_memory(2 * n_processes * n * kind.itemsize)
        if memory is not None:
            written = torch.frombuffer(memory, dtype=kind).view(2, n_processes, n)
            return SharedGradientMean(parameters, which, written)
    return GradientMean(parameters, which)


def agree(number: int, device: torch.device) -> None:
    """Waits for all processes, which must come with the same number; a barrier takes longer."""
    total = torch.tensor([number], device=device)
    torch.distributed.all_reduce(total)
    if int(total) != number * torch.distributed.get_world_size():
        raise UserError(
            "the processes computed gradients of different parameters in one step: what a network leaves out must be"
            " the same in all of them, or train in one, with trainer=default"
        )


def count(parameters: Sequence[nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)


def common_type(parameters: Sequence[nn.Parameter]) -> torch.dtype:
    return reduce(torch.promote_types, (parameter.dtype for parameter in parameters))


def _shared_memory(size: int) -> mmap.mmap | None:
    """Memory of so many bytes that all processes see; None in all where one cannot, or where there is too little."""
    names, memory = [""], None
    try:
        if torch.distributed.get_rank() == 0:
            names[0] = _allocated(size)
        torch.distributed.broadcast_object_list(names)
        with suppress(OSError, ValueError), open(names[0], "r+b") as opened:
            memory = mmap.mmap(opened.fileno(), size)
        all_see_it = torch.tensor(memory is not None)
        torch.distributed.all_reduce(all_see_it, torch.distributed.ReduceOp.MIN)
    finally:
        with suppress(OSError):  # the memory stays until its last process ends
            os.unlink(names[0])
    return memory if all_see_it else None


def _allocated(size: int) -> str:
    """A new file of shared memory; "" where there is none, or too little: half is left to the loader's workers."""
    name = ""
    with suppress(OSError, AttributeError):  # not on Windows and macOS
        free = os.statvfs(SHARED_MEMORY)
        if size <= free.f_bavail * free.f_frsize / 2:
            file, name = tempfile.mkstemp(prefix=f"gradients-{os.getpid()}-", dir=SHARED_MEMORY)
            with os.fdopen(file, "wb"):
                os.posix_fallocate(file, 0, size)  # without room, the first write would kill its process
    return name
