"""What several processes do with the gradients of networks that train in turn."""

from collections.abc import Iterator
from contextlib import contextmanager
from zlib import crc32

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DDPStrategy
from torch import Tensor, nn

from src.models.gradient_means import GradientMean, gradient_mean


class AveragedGradients(DDPStrategy):
    """DDP; but where a model steps its optimizers by hand, gradients are averaged after a backward pass.

    After the backward pass of one network, torch's wrapper would average the gradients of all, and look through the
    graph for those that have none. A model that Lightning optimises has the wrapper, which averages while that pass
    still runs.
    """

    _left: list[tuple[int, nn.Parameter]]  # whose gradients the next average takes along, numbered
    _means: dict[int, GradientMean]  # by a number that stands for their parameters, in all processes the same one
    _leaves = False

    def configure_ddp(self) -> None:
        model = self.lightning_module
        assert model is not None
        if model.automatic_optimization:
            super().configure_ddp()
            return
        self._left, self._means = [], {}
        for tensor in model.state_dict().values():
            torch.distributed.broadcast(tensor, src=0)

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Leaves the gradients of the backward passes inside to the next one outside."""
        model = self.lightning_module
        if model is not None and model.automatic_optimization:
            with super().block_backward_sync():
                yield
            return
        self._leaves = True
        try:
            yield
        finally:
            self._leaves = False

    def post_backward(self, closure_loss: Tensor) -> None:
        super().post_backward(closure_loss)
        model = self.lightning_module
        assert model is not None
        if model.automatic_optimization:
            return
        numbered = enumerate(model.parameters())
        self._left += [(i, p) for i, p in numbered if p.requires_grad and p.grad is not None]
        if self._leaves:
            return
        numbers, parameters = zip(*self._left, strict=True)
        which = crc32(repr(numbers).encode())
        if which not in self._means:
            self._means[which] = gradient_mean(parameters, which, one_machine=self.num_nodes == 1)
        self._means[which].take()
        self._left = []


def can_wait(trainer: Trainer) -> bool:
    """Whether gradients may be left to the next average, with `trainer.strategy.block_backward_sync()`.

    With float16 they may not: Lightning changes their scale with each optimizer's step.
    """
    scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
    return isinstance(trainer.strategy, AveragedGradients) and not scaled
