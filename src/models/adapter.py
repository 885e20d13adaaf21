"""Low-rank adapters (LoRA; Hu et al. 2021): put into a network, switched off and on, and saved for others to use."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from src.models.pretrained import needed

WEIGHTS, KOHYA, CARD = "pytorch_lora_weights.safetensors", "kohya_lora_weights.safetensors", "README.md"
# What the names of a text encoder's weights begin with where they are published, which new versions leave out.
PUBLISHED = "text_model."


def add_adapter(
    network: nn.Module, rank: int, alpha: float, dropout: float, targets: Sequence[str] | Literal["all"], key: str
) -> None:
    """Puts an adapter into a frozen network: its second matrix is 0, so that nothing changes at first.

    Args:
        rank: of the matrices.
        alpha: scales them, by alpha / rank.
        dropout: share of an adapter's inputs that are left out in training.
        targets: the ends of the names of layers that get one; `all`: every linear layer and convolution.
        key: what is blamed where peft is missing.

    Raises:
        ValueError: no layer has such a name, or one of another kind than a linear or a convolution has.
    """
    peft = needed("peft", key)
    layers = {name: module for name, module in network.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))}
    if targets == "all":
        targets = [*layers]
    for each in targets:
        if not any(f".{name}".endswith(f".{each}") for name in layers):
            ends = {name if name.count(".") == 0 else ".".join(name.split(".")[-2:]) for name in layers}
            known = sorted({end if end[-1].isdigit() else end.rpartition(".")[2] for end in ends})
            raise ValueError(
                f"targets is {list(targets)}, but the base has no linear layer or convolution {each!r}: choose among"
                f" {', '.join(known[:40])}, or all"
            )
    options = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout, "init_lora_weights": "gaussian"}
    try:
        peft.inject_adapter_in_model(peft.LoraConfig(target_modules=list(targets), **options), network)
    except ValueError as error:
        raise ValueError(f"targets is {list(targets)}, of which some cannot be adapted: {error}") from error


@contextmanager
def without_adapter(network: nn.Module) -> Iterator[None]:
    """For the block, the network is as it was published."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    layers = [module for module in network.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def save_adapter(networks: Mapping[str, nn.Module], kind: str, folder: Path, card: str) -> list[Path]:
    """Writes the adapters of a base's parts, by name such as `unet`, for others to use:

    - `pytorch_lora_weights.safetensors`, which `load_lora_weights` of diffusers' pipelines reads;
    - `kohya_lora_weights.safetensors`, the same under the names that ComfyUI and others know, of a `unet`;
    - `README.md`, the model card.

    Returns:
        The files.
    """
    import diffusers
    from peft.utils import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    options: dict[str, Any] = {}
    flat: dict[str, Tensor] = {}
    for part, network in networks.items():
        weights = {k: v.detach().float().cpu().contiguous() for k, v in get_peft_model_state_dict(network).items()}
        config = network.peft_config["default"].to_dict()  # type: ignore[union-attr,index]
        for name, weight in weights.items():
            # Under these names, of two dimensions or four; alpha stands beside them.
            module, _, end = name.partition(".lora_")
            prefix = "lora_unet" if part == "unet" else "lora_te_text_model"
            at = f"{prefix}_{module.removeprefix(PUBLISHED).replace('.', '_')}"
            flat[f"{at}.{'lora_down' if end[0] == 'A' else 'lora_up'}.weight"] = weight
            flat[f"{at}.alpha"] = torch.tensor(float(config["lora_alpha"]))
        if part.startswith("text_encoder"):
            weights = {f"{PUBLISHED}{name.removeprefix(PUBLISHED)}": weight for name, weight in weights.items()}
        options[f"{part}_lora_layers"] = weights
        # What a reader cannot tell from the weights, and what every version of peft knows.
        known = {
            "r": config["r"],
            "lora_alpha": config["lora_alpha"],
            "target_modules": sorted(config["target_modules"]),
        }
        options[f"{part}_lora_adapter_metadata"] = known
    getattr(diffusers, kind).save_lora_weights(folder, weight_name=WEIGHTS, **options)
    made = [folder / WEIGHTS]
    if "unet" in networks:
        save_file(flat, folder / KOHYA, {"format": "pt"})
        made.append(folder / KOHYA)
    (folder / CARD).write_text(card, encoding="utf-8")
    return [*made, folder / CARD]


MODEL_CARD = """\
---
base_model: {base}
library_name: diffusers
pipeline_tag: text-to-image
tags:
- text-to-image
- diffusers
- lora
- template:sd-lora
---

# LoRA for {base}

An adapter of rank {rank} (alpha {alpha}) for a {kind}, trained on {n} pictures of {data} at {img_size} pixels:
{batches} batches of {batch_size}.

```python
from diffusers import {kind}

pipeline = {kind}.from_pretrained("{base}")
pipeline.load_lora_weights("FOLDER", weight_name="pytorch_lora_weights.safetensors")
pipeline("{prompt}").images[0].save("image.png")
```

`kohya_lora_weights.safetensors`, where it is there, is the same for ComfyUI and others. The licence of the base holds
for this adapter, too. The checksum of the base's files, as this project's runs state it, is {sha256}.
"""
