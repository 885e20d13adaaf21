"""Networks that draw what lies between two conditions."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import embedding


def draw_between(sampler: nn.Module, noise: Tensor, condition: Tensor, others: Tensor, weight: Tensor) -> Tensor:
    """Images [N, C, H, W] on the way from `condition` (weight 0) to `others` (weight 1).

    A sampler with a method `between` draws them itself; any other must learn of its condition through `nn.Embedding`
    alone, whose outputs are mixed.
    """
    between: Any = getattr(sampler, "between", None)
    if between is not None:
        return between(noise, condition, others, weight)
    with mixed_embeddings(sampler, others, weight):
        return sampler(noise, condition)


@contextmanager
def mixed_embeddings(network: nn.Module, others: Tensor, weight: Tensor) -> Iterator[None]:
    """For the block, every embedding in `network` mixes what it says of its input with what it says of `others`.

    Args:
        network: it must learn of its condition through `nn.Embedding` alone.
        others: the other condition, int64 [N].
        weight: the share of `others`, [N].
    """

    def mix(module: nn.Module, _: Any, output: Tensor) -> Tensor:
        assert isinstance(module, nn.Embedding)
        return output.lerp(embedding(others, module.weight), weight[:, None].to(output))

    hooks = [m.register_forward_hook(mix) for m in network.modules() if isinstance(m, nn.Embedding)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
