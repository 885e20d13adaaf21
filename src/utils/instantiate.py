"""Build a part of the configuration, with errors a person can act on."""

from typing import Any

import hydra
from hydra.errors import InstantiationException
from omegaconf import DictConfig

from src.utils.errors import UserError, explain_instantiation


def instantiate(config: DictConfig, key: str, **kwargs: Any) -> Any:
    """Builds `config[key]` with plain Python values.

    Raises:
        UserError: the part refused its arguments, or its `_target_` cannot be imported.
    """
    try:
        return hydra.utils.instantiate(config[key], _convert_="all", **kwargs)
    except InstantiationException as error:
        raise UserError(explain_instantiation(error)) from error


def instantiate_each(config: DictConfig, group: str) -> list[Any]:
    """Builds every entry of a group such as `callbacks`; an entry set to null is left out."""
    parts: Any = config.get(group) or {}
    return [instantiate(parts, name) for name in parts if parts[name] is not None]
