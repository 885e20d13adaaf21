"""A published Stable Diffusion in diffusers' layout: found, checked, and loaded by a fixed table of classes.

Whoever names one need not trust it. Weights are read from safetensors alone, no code that comes with them is run, and
no name in its files leads anywhere: not to a class, nor to another file, nor to a network.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cached_property, lru_cache
from pathlib import Path, PurePath
from types import SimpleNamespace
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import BaseModel, BeforeValidator, Field

from src.config.explain import telling
from src.errors import UserError
from src.models.pretrained import Published, Wanted, needed

KEY = "model.base"
VARIABLE = "STABLE_DIFFUSION"  # where the base is on this machine, if not where the checkpoint says
EXAMPLE = "stable-diffusion-v1-5/stable-diffusion-v1-5"
TABLES = ("*.json", "*.txt", "*.model")  # beside weights
WANTED = Wanted(
    "a Stable Diffusion in diffusers' layout",
    EXAMPLE,
    ["model_index.json", *(f"*/{each}" for each in (*TABLES, "*.safetensors"))],
    ["model_index.json", "vae/*.safetensors", "text_encoder/*.safetensors", "[tu]*/diffusion*.safetensors"],
    ["*fp16*", "*non_ema*", "safety_checker/*", "image_encoder/*", "feature_extractor/*"],
)
VARIANTS = (None, "fp16")  # of the files of weights, the better first
# Keys of configurations by which libraries would follow a name in a file.
FOLLOWED = (
    "quantization_config",
    "auto_map",
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
)
FOLLOWED_OF_TOKENIZERS = ("auto_map", "tokenizer_file", "vocab_file", "merges_file")

LEAST_TOKENS = 10  # without its files, a tokenizer has two
T5_LENGTH = 256  # tokens, as diffusers cuts them
CLIP_TOKENIZER = ("CLIPTokenizer", "CLIPTokenizerFast")
Classes = tuple[str, ...]  # the one that is loaded, and names for it in files
Number = Annotated[int, Field(strict=True, ge=1, le=1_000_000)]
Layers = Annotated[int, Field(strict=True, ge=1, le=1_000)]  # they are made before their weights are asked for
Factor = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class Numbers(BaseModel):
    """What is computed with of a part's configuration; libraries judge the rest."""

    in_channels: Number = 1
    latent_channels: Number = 1
    block_out_channels: Annotated[list[Number], Field(min_length=1, max_length=16)] = [1]
    layers_per_block: Annotated[list[Layers], BeforeValidator(lambda n: n if isinstance(n, list) else [n])] = [1]
    num_layers: Layers = 1
    num_hidden_layers: Layers = 1
    patch_size: Number = 1
    joint_attention_dim: Number = 1
    hidden_size: Number = 1
    projection_dim: Number = 1
    vocab_size: Number = 1
    max_position_embeddings: Number = 1
    scaling_factor: Annotated[Factor, Field(gt=0)] = 1.0
    shift_factor: Factor | None = None
    num_train_timesteps: Number = 1
    shift: Annotated[Factor, Field(gt=0)] = 1.0
    model_max_length: Annotated[Factor, Field(ge=2)] = 2


class Family(NamedTuple):
    """Bases that are trained and drawn with in one way.

    Attributes:
        network: the part that is trained.
        models: the class of each part with weights; those of `optional` may be missing.
        tokenizers: the class of each.
        schedulers: ways to draw by name, the usual one first.
        is_flow: whether noise and image lie on a straight line (flow matching); else diffusion.
        targets: the layers that get an adapter where none are named.
    """

    network: str
    models: Mapping[str, Classes]
    tokenizers: Mapping[str, Classes]
    schedulers: Mapping[str, str]
    is_flow: bool
    targets: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")
    optional: tuple[str, ...] = ()


# By the class that model_index.json names. All that is ever loaded stands here.
FAMILIES = {
    "StableDiffusionPipeline": Family(
        "unet",
        {"unet": ("UNet2DConditionModel",), "vae": ("AutoencoderKL",), "text_encoder": ("CLIPTextModel",)},
        {"tokenizer": CLIP_TOKENIZER},
        {
            "ddim": "DDIMScheduler",
            "pndm": "PNDMScheduler",
            "dpm": "DPMSolverMultistepScheduler",
            "euler": "EulerDiscreteScheduler",
            "heun": "HeunDiscreteScheduler",
            "unipc": "UniPCMultistepScheduler",
        },
        is_flow=False,
    ),
    "StableDiffusion3Pipeline": Family(
        "transformer",
        {
            "transformer": ("SD3Transformer2DModel",),
            "vae": ("AutoencoderKL",),
            "text_encoder": ("CLIPTextModelWithProjection",),
            "text_encoder_2": ("CLIPTextModelWithProjection",),
            "text_encoder_3": ("T5EncoderModel",),
        },
        {
            "tokenizer": CLIP_TOKENIZER,
            "tokenizer_2": CLIP_TOKENIZER,
            "tokenizer_3": ("T5Tokenizer", "T5TokenizerFast"),
        },
        {"euler": "FlowMatchEulerDiscreteScheduler", "heun": "FlowMatchHeunDiscreteScheduler"},
        is_flow=True,
        optional=("text_encoder_3", "tokenizer_3"),
    ),
}
KNOWN = "choose Stable Diffusion 1.5, 2.1, 3 or 3.5"
ALL_SCHEDULERS = tuple(dict.fromkeys(name for family in FAMILIES.values() for name in family.schedulers))


class DiffusionBase(Published):
    """The files of a Stable Diffusion, and what they hold, loaded when it is asked for.

    Args:
        name: a folder, or a name on the Hugging Face hub.
        key: what it is called in the configuration, for messages.
        download: whether to ask the hub for what this machine does not have.

    Attributes:
        kind: the class that its model_index.json names, a key of `FAMILIES`.
        configs: the configuration of each part that is there.
        sha256: checksum of all files that are read, in hexadecimal.

    Raises:
        UserError: they are not there, damaged, or those of another kind of model.
    """

    def __init__(self, name: str | None, key: str = KEY, download: bool = False) -> None:
        super().__init__(name, key, download, WANTED)
        try:
            self._check()
        except UserError as error:
            if self.name == str(self.folder) or not download:
                raise
            raise UserError(f"{error}, or delete {self.folder} to download it again") from error

    def _check(self) -> None:
        if not (self.folder / "model_index.json").is_file():
            single = next((each.name for each in self.folder.iterdir() if each.suffix in (".safetensors", ".ckpt")), "")
            way = f"; {single} becomes one by StableDiffusionPipeline.from_single_file(...).save_pretrained(DIR)"
            raise self.refused(f"has no model_index.json: name a folder in diffusers' layout{way if single else ''}")
        index = self._json("model_index.json")
        kind = index.get("_class_name")
        self.kind = str(kind)
        if self.kind not in FAMILIES:
            raise self.refused(f"holds a model of kind {self.kind[:60]!r}, which cannot be fine-tuned here: {KNOWN}")
        self.family = FAMILIES[self.kind]
        self.configs: dict[str, dict[str, Any]] = {}
        self._variants: dict[str, str | None] = {}
        used = ["model_index.json"]
        for library, kinds in (("diffusers", self.family.models), ("transformers", self.family.tokenizers)):
            for part, names in kinds.items():
                stated = index.get(part)
                if part in self.family.optional and stated in (None, [None, None]):
                    continue
                ours = "transformers" if part.startswith("text_encoder") else library
                if not isinstance(stated, list) or len(stated) != 2 or stated[0] != ours or stated[1] not in names:
                    shown = ".".join(map(str, stated)) if isinstance(stated, list) else stated
                    raise self.refused(
                        f"states {str(shown)[:80]} for its {part}, which is no {ours}.{names[0]}: {KNOWN}"
                    )
                used += self._tokenizer_files(part) if part in self.family.tokenizers else self._model_files(part)
        self.configs["scheduler"] = self._config("scheduler/scheduler_config.json", ())
        used.append("scheduler/scheduler_config.json")
        self._check_fit()
        stamps = tuple((each, *_stamp(self.folder / each)) for each in sorted(set(used)))
        self.sha256 = _hash_files(self.folder, stamps)

    def _json(self, file: str) -> dict[str, Any]:
        path = self.folder / file
        if not path.is_file():
            raise self.refused(f"lacks {file}, as if it was only half downloaded: copy or download it again")
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(found, dict):
                raise ValueError("it is not a table of keys")
        except Exception as error:  # a stranger's file may be anything
            raise self.refused(
                f"has a damaged {file} ({telling(str(error))[:100]}): copy or download it again"
            ) from error
        return found

    def _config(self, file: str, followed: tuple[str, ...]) -> dict[str, Any]:
        """The configuration of a part, which leads nowhere and whose numbers can be computed with."""
        config = self._json(file)
        tables: list[Any] = [config]
        for table in tables:  # a library may take a part's own out of a larger one
            if isinstance(table, dict):
                if asked := [key for key in followed if table.get(key)]:
                    raise self.refused(f"asks for {asked[0]} in {file}, which is not followed: choose a plain model")
                tables += table.values()
        try:
            Numbers.model_validate(config)
        except ValueError as error:
            raise self.refused(
                f"has a damaged {file} ({telling(str(error))[:200]}): copy or download it again"
            ) from error
        return config

    def _tokenizer_files(self, part: str) -> list[str]:
        """The files of a tokenizer, as paths in the folder."""
        if (self.folder / part / "tokenizer_config.json").is_file():
            self._config(f"{part}/tokenizer_config.json", FOLLOWED_OF_TOKENIZERS)
        found = [each for pattern in TABLES for each in (self.folder / part).glob(pattern) if each.is_file()]
        if not found:
            raise self.refused(f"lacks the files of its {part}, as if it was only half downloaded: copy it again")
        return [f"{part}/{each.name}" for each in found]

    def _model_files(self, part: str) -> list[str]:
        """The files of a part with weights, each of which is whole, as paths in the folder."""
        self.configs[part] = self._config(f"{part}/config.json", FOLLOWED)
        if (self.folder / part / "adapter_config.json").exists():  # transformers would load what it names instead
            raise self.refused(f"has an adapter_config.json beside its {part}: remove that file")
        stem = "model" if part.startswith("text_encoder") else "diffusion_pytorch_model"
        for variant in VARIANTS:
            single = f"{part}/{stem}.{variant + '.' if variant else ''}safetensors"
            index = f"{part}/{stem}.safetensors.index.{variant + '.' if variant else ''}json"
            files = [each for each in (single, index) if (self.folder / each).exists()]
            if not files:
                continue
            self._variants[part] = variant
            weights = [single] if single in files else []
            if index in files:
                weights += self._shards(part, index)
            for each in weights:
                self._check_whole(each)
            return [f"{part}/config.json", *files, *weights]
        there = [each.name for each in (self.folder / part).iterdir() if each.suffix in (".bin", ".ckpt", ".pt")]
        why = f" ({there[0]} may run code): save it by save_pretrained" if there else ": copy or download it again"
        raise self.refused(f"lacks {part}/{stem}.safetensors{why}")

    def _shards(self, part: str, index: str) -> list[str]:
        """The files that a table of shards names, all of which must lie beside it."""
        table = self._json(index).get("weight_map")
        names = sorted({str(each) for each in table.values()}) if isinstance(table, dict) else []
        if not names or any(PurePath(n).name != n or "\\" in n or not n.endswith(".safetensors") for n in names):
            raise self.refused(f"has a damaged {index}, which must name the files beside it: copy or download it again")
        return [f"{part}/{name}" for name in names]

    def _check_whole(self, file: str) -> None:
        path = self.folder / file
        if not path.is_file():
            raise self.refused(f"lacks {file}, as if it was only half downloaded: copy or download it again")
        try:
            with needed("safetensors", self.key).safe_open(path, framework="pt"):  # compares lengths, reads no weights
                pass
        except UserError:
            raise
        except Exception as error:  # safetensors' own, and the system's
            raise self.refused(
                f"has a damaged {file} ({telling(str(error))[:100]}): copy or download it again"
            ) from error

    def _check_fit(self) -> None:
        """Refuses what is trained otherwise than by noise in latents and a text."""
        network, latents = self.configs[self.family.network], self.configs["vae"].get("latent_channels", 4)
        has = network.get("in_channels", 4 if not self.family.is_flow else 16)
        if has != latents:
            why = "as for inpainting" if isinstance(has, int) and isinstance(latents, int) and has > latents else ""
            raise self.refused(
                f"has a network of {has} channels for latents of {latents}{', ' * bool(why)}{why}, which cannot be"
                f" fine-tuned here: {KNOWN}"
            )
        for option in ("addition_embed_type", "class_embed_type", "time_cond_proj_dim", "encoder_hid_dim_type"):
            if network.get(option) is not None:
                raise self.refused(f"has a network with {option}, which cannot be fine-tuned here: {KNOWN}")
        if not self.family.is_flow and self.prediction not in ("epsilon", "v_prediction"):
            raise self.refused(f"predicts {self.prediction!r}, not epsilon or v_prediction: {KNOWN}")

    # What it holds

    @property
    def prediction(self) -> str:
        """What the network predicts: `epsilon`, the noise, or `v_prediction`."""
        return str(self.configs["scheduler"].get("prediction_type", "epsilon"))

    @property
    def scale(self) -> int:
        """Pixels of an image for one of its latents, in each direction."""
        return 2 ** (len(self.configs["vae"].get("block_out_channels", [1])) - 1)

    @property
    def latent_shift_and_scale(self) -> tuple[float, float]:
        """What the network sees of the VAE's latents is (latents - shift) * scale."""
        shift = self.configs["vae"].get("shift_factor") if self.family.is_flow else None  # as diffusers' pipelines do
        return shift or 0.0, self.configs["vae"].get("scaling_factor", 0.18215)

    @property
    def tokenizers(self) -> list[str]:
        """The tokenizers that it has."""
        return [part for part in self.family.tokenizers if part.replace("tokenizer", "text_encoder") in self.configs]

    @property
    def usual_scheduler(self) -> str:
        """Its own way to draw, or the family's where it names another."""
        stated = self.configs["scheduler"].get("_class_name")
        names = [name for name, kind in self.family.schedulers.items() if kind == stated]
        return [*names, *self.family.schedulers][0]

    def load(self, part: str) -> Any:
        """A part with weights, float32, in evaluation mode and frozen.

        Raises:
            UserError: a package is missing, or the files do not hold such a model.
        """
        package = "transformers" if part.startswith("text_encoder") else "diffusers"
        kind = self.family.models[part][0]
        dtype = {"dtype" if package == "transformers" else "torch_dtype": torch.float32}
        try:
            model, said = getattr(library(package, self.key), kind).from_pretrained(
                self.folder / part,
                local_files_only=True,
                use_safetensors=True,
                variant=self._variants[part],
                output_loading_info=True,
                **dtype,
            )
        except UserError:
            raise
        except Exception as error:  # of many kinds, for files that are damaged or do not fit
            raise self.refused(f"has a {part} that cannot be loaded ({telling(str(error))[:200]})") from error
        if lacks := sorted(said["missing_keys"]):  # they would be random
            raise self.refused(f"has a {part} that lacks weights of a {kind} ({', '.join(lacks[:3])}): choose another")
        if not all(bool(each.isfinite().all()) for each in model.parameters()):
            raise self.refused(f"has a {part} whose weights are not finite: copy or download it again")
        return model.eval().requires_grad_(False)

    def tokenizer(self, part: str) -> Any:
        """Refuses one that cannot be of its text encoder: made without its files, it says nothing."""
        encoder = part.replace("tokenizer", "text_encoder")
        n_known, n_tokens, made = self.configs[encoder].get("vocab_size", 49408), 0, None
        names = self.family.tokenizers[part]
        kind = getattr(library("transformers", self.key), names[0])
        with suppress(Exception):
            made = kind.from_pretrained(self.folder / part, local_files_only=True)
            n_tokens = len(made)
        if made is None or not LEAST_TOKENS <= n_tokens <= n_known:
            raise self.refused(
                f"has a {part} of {n_tokens:,} tokens for a text encoder of {n_known:,}: put its tokenizer.json, or"
                f" vocab.json and merges.txt, into {part}/"
            )
        longest = self.configs[encoder].get("max_position_embeddings", 77 if "CLIPTokenizer" in names else T5_LENGTH)
        made.model_max_length = min(made.model_max_length, longest)
        return made

    def text_parts(self) -> dict[str, Any]:
        """Its text encoders and tokenizers, None where it does without one."""
        parts = [part for part in self.family.models if part.startswith("text_encoder")]
        made = {part: self.load(part) if part in self.configs else None for part in parts}
        return made | {part: self.tokenizer(part) for part in self.tokenizers}

    def pipeline(self, **parts: Any) -> Any:
        """Diffusers' own pipeline of these parts, which knows how it reads text; all others are missing."""
        kind = getattr(library("diffusers", self.key), self.kind)
        every = dict.fromkeys((*self.family.models, *self.family.tokenizers)) | parts
        if self.family.is_flow:  # it asks its network how wide the text is that a missing encoder would give
            usual = {"sample_size": 128, "patch_size": 2, "joint_attention_dim": 4096}
            every["transformer"] = Stated(config=Stated(**usual | self.configs["transformer"]))
        else:
            every |= {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        return kind(scheduler=self._plain_scheduler, **every)

    @cached_property
    def _plain_scheduler(self) -> Any:
        kind = self.family.schedulers[self.usual_scheduler]
        return getattr(library("diffusers", self.key), kind).from_config(dict(self.configs["scheduler"]))

    @cached_property
    def _scheduler_config(self) -> Any:
        return self.pipeline().scheduler.config  # diffusers corrects what old files say

    def scheduler(self, name: str) -> Any:
        """A way to draw, which keeps state: one for each drawing.

        Raises:
            UserError: the base's configuration does not suit it.
        """
        kind = getattr(library("diffusers", self.key), self.family.schedulers[name])
        try:
            return kind.from_config(self._scheduler_config)
        except Exception as error:
            raise self.refused(f"cannot be drawn with scheduler={name} ({telling(str(error))[:200]})") from error

    def shift_of(self, scheduler: Any, shape: Sequence[int]) -> dict[str, float]:
        """What some schedulers of flow matching must know of latents [N, c, h, w], as diffusers tells them."""
        config = scheduler.config
        if not config.get("use_dynamic_shifting"):
            return {}
        from diffusers.pipelines.stable_diffusion_3.pipeline_stable_diffusion_3 import calculate_shift

        patch = self.configs[self.family.network].get("patch_size", 2)
        usual = {"base_image_seq_len": 256, "max_image_seq_len": 4096, "base_shift": 0.5, "max_shift": 1.16}
        options = [config.get(name, value) for name, value in usual.items()]
        return {"mu": calculate_shift((shape[-2] // patch) * (shape[-1] // patch), *options)}

    def noise_levels(self) -> torch.Tensor:
        """Of diffusion: what is left of an image at each time, float32 [T], `alphas_cumprod`."""
        kind = library("diffusers", self.key).DDPMScheduler
        try:
            levels = kind.from_config(self._scheduler_config).alphas_cumprod.float()
            if not bool(((levels >= 0) & (levels <= 1)).all()):
                raise ValueError("its betas leave no level of noise between 0 and 1")
            return levels
        except UserError:
            raise
        except Exception as error:
            raise self.refused(f"has a scheduler that cannot be used ({telling(str(error))[:200]})") from error


class Stated(SimpleNamespace):
    """A part that is not loaded, of which a pipeline knows the configuration."""


def find_base(name: str, sha256: str) -> DiffusionBase:
    """The base with this checksum on this machine. Nothing is downloaded: a stranger's checkpoint may name it.

    Raises:
        UserError: it is not there, or is another one.
    """
    why = ""
    for key, each in {VARIABLE: os.environ.get(VARIABLE), KEY: name}.items():
        if not each:
            continue
        try:
            found = DiffusionBase(each, key)
        except UserError as error:
            why = why or str(error)
            continue
        if found.sha256 == sha256:
            return found
        why = (
            f"{key}={each} is not the base that the model was trained with (its checksum begins with"
            f" {found.sha256[:8]}, not {sha256[:8]})"
        )
    raise UserError(f"{why}, or set {VARIABLE}=DIR in .env to where the base is")


def library(name: str, key: str) -> Any:
    """Diffusers or transformers, which is imported when it is needed, and told to be quiet."""
    found = needed(name, key)
    logging_of = found.utils.logging
    logging_of.set_verbosity_error()
    logging_of.disable_progress_bar()
    return found


def _stamp(path: Path) -> tuple[int, int]:
    about = path.stat()
    return about.st_size, about.st_mtime_ns


@lru_cache(8)  # of gigabytes, which a run and its model ask for
def _hash_files(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    hashed = hashlib.sha256()
    for name, *_ in stamps:
        with open(folder / name, "rb") as content:
            hashed.update(f"{name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return hashed.hexdigest()
