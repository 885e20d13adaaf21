"""Spectral normalisation of whole networks (Miyato et al. 2018)."""

from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrizations, parametrize


def add_spectral_norm(option: str, name: str, network: nn.Module, embeddings: bool) -> None:
    """Divides every weight matrix of a network by its largest singular value.

    Args:
        option: the model's option that asks for it, for the message.
        name: what the network is called there.
        network: changed in place.
        embeddings: whether embeddings are included.

    Raises:
        ValueError: a layer has a norm of its own.
    """
    kinds = (nn.Linear, _ConvNd, nn.Embedding) if embeddings else (nn.Linear, _ConvNd)
    for module in [*network.modules()]:
        if isinstance(module, kinds):
            if parametrize.is_parametrized(module, "weight") or hasattr(module, "weight_orig"):
                raise ValueError(f"{option} is true, but the {name} brings its own: set it to false")
            parametrizations.spectral_norm(module)
