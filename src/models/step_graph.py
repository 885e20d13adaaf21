"""The forward and backward passes of a training step as one CUDA graph."""

import logging
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule
from pytorch_lightning.callbacks import GradientAccumulationScheduler
from torch import Tensor, nn

from src.errors import UserError

log = logging.getLogger(__name__)

Batch = tuple[Tensor, Tensor]
Compute = Callable[[Batch], Any]  # leaves gradients in `p.grad`; returns tensors, in dicts, lists and tuples
WARM_UP = 3  # steps before one is captured: libraries choose their kernels in the first


def fits(model: Any) -> bool:
    """Whether a model's steps shall run as a CUDA graph, by `trainer.cuda_graph`; says so where it matters.

    Raises:
        UserError: it is true, but there can be none.
    """
    trainer = model.trainer
    wanted, on_gpu = getattr(trainer, "cuda_graph", False), model.device.type == "cuda"
    if not on_gpu:
        reason = "a CUDA graph needs a GPU of NVIDIA's"
    elif trainer.world_size > 1:
        reason = "several processes average their gradients outside of it"
    elif getattr(trainer.precision_plugin, "scaler", None) is not None:
        reason = "trainer.precision=16-mixed scales gradients outside of it"
    elif trainer.accumulate_grad_batches > 1:
        reason = "trainer.accumulate_grad_batches adds gradients outside of it"
    elif torch.is_anomaly_enabled():
        reason = "trainer.detect_anomaly reads every gradient"
    else:
        reason = _of_hooks(model) or model.why_no_graph
    if wanted is True and reason:
        raise UserError(f"trainer.cuda_graph=true cannot be used, as {reason}: set trainer.cuda_graph=false")
    if on_gpu and wanted and reason:
        log.info("a step is no CUDA graph, as %s", reason)
    elif on_gpu and not wanted and not reason:
        log.info("trainer.cuda_graph=true trains small networks several times as fast on a GPU: docs/gpu.md")
    return bool(wanted) and not reason


def _of_hooks(model: Any) -> str:
    """Which hook of a callback or of the model a graph would leave out, or do wrong."""
    for owner in (*model.trainer.callbacks, model):
        name = type(owner).__name__
        if isinstance(owner, GradientAccumulationScheduler):
            return f"{name} adds gradients outside of it"
        for hook in ("on_before_backward", "on_after_backward"):
            theirs = {getattr(kind, hook) for kind in (Callback, LightningModule)}
            if not model.automatic_optimization and getattr(type(owner), hook) not in theirs:
                return f"{name}.{hook} would not be called"
    return ""


class StepGraph:
    """Replays what a step asks of the GPU, so that Python need not ask for each of its kernels again.

    Small networks on a large GPU wait for Python, not for arithmetic: docs/gpu.md. Only gradients are computed in the
    graph; optimizers, averages and logging stay outside and may read numbers that change. Random numbers are those
    of the same steps without it (https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs). What a step does in
    Python, such as counting or drawing with `random`, is done once, when it is captured.

    Args:
        parameters: whose gradients the steps compute.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._stream = torch.cuda.Stream()
        self._seen: Counter[Hashable] = Counter()
        self._captured: dict[Hashable, tuple[Batch, torch.cuda.CUDAGraph, Any, list[Tensor | None]]] = {}
        self._gradients: list[Tensor | None] = []

    def __call__(self, kind: Hashable, batch: Batch, compute: Compute) -> Any:
        """What `compute(batch)` returns, with the gradients in `p.grad`; the next step of this kind overwrites both.

        Args:
            kind: of step: everything but the batch's content that decides which kernels run.
            batch: on the GPU.
            compute: must not wait for the GPU.

        Raises:
            UserError: `compute` waits for the GPU, or does what cannot be captured.
        """
        kind = kind, *(tensor.shape for tensor in batch)
        if kind not in self._captured:
            self._seen[kind] += 1
            if self._seen[kind] <= WARM_UP:
                return self._computed(batch, compute, checks=self._seen[kind] == WARM_UP)
            self._captured[kind] = self._capture(batch, compute)
        inputs, graph, found, gradients = self._captured[kind]
        for kept, new in zip(inputs, batch, strict=True):
            kept.copy_(new)
        graph.replay()
        self._gradients = gradients
        self.put_back_gradients()
        return found

    def put_back_gradients(self) -> None:
        """Sets `p.grad` to the last step's gradients, if something has put them away."""
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient

    def _computed(self, batch: Batch, compute: Compute, checks: bool) -> Any:
        """A step without a graph, on the stream that will capture one, as torch demands."""
        self._stream.wait_stream(torch.cuda.current_stream())
        if checks:
            torch.cuda.set_sync_debug_mode("error")
        try:
            with torch.cuda.stream(self._stream):
                found = self._clean(batch, compute)
        except RuntimeError as error:
            if not checks or "synchronizing CUDA operation" not in str(error):
                raise
            raise UserError(
                "the model's step waits for the GPU, which no CUDA graph can hold: set trainer.cuda_graph=false, or"
                " find what reads a tensor, such as item() or nonzero(), with trainer.cuda_graph=false and"
                " torch.cuda.set_sync_debug_mode('warn')"
            ) from error
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.current_stream().wait_stream(self._stream)
        return found

    def _capture(self, batch: Batch, compute: Compute) -> tuple[Batch, torch.cuda.CUDAGraph, Any, list[Tensor | None]]:
        inputs = batch[0].clone(), batch[1].clone()  # clones keep the memory format
        graph = torch.cuda.CUDAGraph()
        try:
            # Else a thread that page-locks memory for the loader would break it.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                found = self._clean(inputs, compute)
        except RuntimeError as error:
            if "captur" not in str(error):  # it would have failed without one, too
                raise
            raise UserError(
                f"the model's step cannot be captured as a CUDA graph ({str(error).splitlines()[0]}): set"
                " trainer.cuda_graph=false"
            ) from error
        log.info("from now on a step is a CUDA graph")
        return inputs, graph, found, self._gradients

    def _clean(self, batch: Batch, compute: Compute) -> Any:
        """Computes gradients in new memory, so that no other graph's are added to, and remembers them."""
        for parameter in self._parameters:
            parameter.grad = None
        found = compute(batch)
        self._gradients = [parameter.grad for parameter in self._parameters]
        return found
