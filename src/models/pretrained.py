"""Published CLIP and T5 models, of which this project trains nothing: in a folder, or by their name on a hub.

Whoever names one need not trust it: weights are read from safetensors alone, and no code that comes with them is run.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from src.config.explain import telling
from src.errors import UserError

log = logging.getLogger(__name__)

TEXT_EXTRAS = "pip install -r requirements-text.txt"
EXAMPLE = "openai/clip-vit-large-patch14"
# All that is read of a model; only this is downloaded.
FILES = (
    *("config.json", "preprocessor_config.json", "model.safetensors", "model-*.safetensors"),
    *("model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt"),
    *("spiece.model", "special_tokens_map.json", "added_tokens.json"),
)
CLIP = ("CLIPTokenizer", "CLIPTextModelWithProjection")
KINDS = {"clip": CLIP, "clip_text_model": CLIP, "t5": ("T5Tokenizer", "T5EncoderModel")}
HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+", re.ASCII)
TIMEOUT_S = 10.0  # for the hub to answer


class Wanted(NamedTuple):
    """What is asked of a folder or a hub.

    Attributes:
        what: in words.
        example: a name on the hub.
        files: patterns of all that is read, and downloaded.
        least: patterns of which each must have a file.
        left_out: patterns of what is not downloaded all the same.
    """

    what: str
    example: str
    files: Sequence[str]
    least: Sequence[str]
    left_out: Sequence[str] = ()


WANTED = Wanted("a CLIP or T5 model", EXAMPLE, FILES, ["*.safetensors"])


class Published:
    """A model that others have published: its files are in a folder, or have a name on the Hugging Face hub.

    Args:
        name: the folder, or the name on the hub.
        key: what it is called in the configuration, for messages.
        download: whether to ask the hub for what this machine does not have.
        wanted: what it has to be.

    Attributes:
        name: the whole path of the folder, or the name on the hub.
        folder: where the files are.

    Raises:
        UserError: they are not there.
    """

    def __init__(self, name: str | None, key: str, download: bool, wanted: Wanted) -> None:
        if not name:
            raise UserError(
                f"{key} must be set: type {key}=DIR for a folder that holds {wanted.what}, or a name on the Hugging"
                f" Face hub such as {key}={wanted.example}"
            )
        self.key = key
        self.folder = find(name, key, download, wanted)
        self.name = str(self.folder) if Path(name).expanduser().is_dir() else name

    def refused(self, why: str) -> UserError:
        return UserError(f"{self.key}={self.name} {why}")


class Pretrained(Published):
    """A CLIP or a T5.

    Args:
        name: a folder, or a name on the Hugging Face hub.
        key: what it is called in the configuration, for messages.
        download: whether to ask the hub for what this machine does not have.

    Attributes:
        sha256: checksum of all files, in hexadecimal.
        kind: `clip`, `clip_text_model` or `t5`.
        width: length of the embedding of a text.

    Raises:
        UserError: they are not there, or not those of a CLIP or T5 model as safetensors.
    """

    def __init__(self, name: str | None, key: str, download: bool = True) -> None:
        super().__init__(name, key, download, WANTED)
        files = sorted(file for file in self.folder.iterdir() if any(fnmatch(file.name, each) for each in FILES))
        if not any(file.suffix == ".safetensors" for file in files):
            raise self.refused("holds no model.safetensors, and other formats may run code: save it by save_pretrained")
        try:
            config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
            self.kind = config["model_type"]
            text = config["text_config"] if self.kind == "clip" else config
            # What is as usual is not written down.
            self.width = int(text.get("d_model" if self.kind == "t5" else "projection_dim", 512))
            hashed = hashlib.sha256()
            for file in files:
                with open(file, "rb") as content:
                    hashed.update(f"{file.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
            self.sha256 = hashed.hexdigest()
        except Exception as error:  # a stranger's file may be anything
            raise self.refused(f"cannot be read ({type(error).__name__} {telling(str(error))})") from error
        if self.kind not in KINDS:
            raise self.refused(f"holds a model of type {self.kind!r}: choose a CLIP or T5 model, such as {EXAMPLE}")

    def load(self, kind: str) -> Any:
        """A class of transformers with these weights, float32, in evaluation mode.

        Raises:
            UserError: the package is missing, or the files do not hold such a model.
        """
        transformers = needed("transformers", self.key)
        transformers.logging.set_verbosity_error()  # it would list the weights that are not asked for
        transformers.logging.disable_progress_bar()
        try:
            model, said = getattr(transformers, kind).from_pretrained(
                self.folder,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except Exception as error:  # of many kinds, for files that are damaged or do not fit
            raise self.refused(f"cannot be loaded ({telling(str(error))})") from error
        if lacks := sorted(said["missing_keys"]):  # they would be random
            raise self.refused(f"lacks weights of a {kind} ({', '.join(lacks[:3])}): choose another")
        return model.eval().requires_grad_(False)

    def text_encoder(self) -> Callable[[str], Tensor]:
        """What makes a text float32 [width]: CLIP its projected embedding, T5 the mean of those of its tokens.

        Texts are embedded one by one, so that no embedding depends on what others there are.

        Raises:
            UserError: the package is missing, or the files hold no text encoder with its tokenizer.
        """
        tokenizer_kind, model_kind = KINDS[self.kind]
        model = self.load(model_kind)
        n_tokens, n_known = 0, model.config.vocab_size
        with suppress(Exception):
            # Without its files, this makes a tokenizer of two tokens and says nothing.
            kind = getattr(needed("transformers", self.key), tokenizer_kind)
            tokenizer = kind.from_pretrained(self.folder, local_files_only=True)
            n_tokens = len(tokenizer)
        if not 0.9 * n_known <= n_tokens <= n_known:  # T5 knows a few more, to make the number round
            raise self.refused(
                f"has a tokenizer of {n_tokens:,} tokens for a text encoder of {n_known:,}: put its tokenizer.json, or"
                " vocab.json and merges.txt, into the folder"
            )
        longest = getattr(model.config, "max_position_embeddings", 512)

        @torch.no_grad()
        def embed(text: str) -> Tensor:
            tokens = tokenizer(text, truncation=True, max_length=longest, return_tensors="pt")
            found = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            return found.last_hidden_state[0].mean(0) if self.kind == "t5" else found.text_embeds[0]

        return embed


def find(name: str, key: str, download: bool, wanted: Wanted) -> Path:
    """The folder of a model.

    Raises:
        UserError: it is not there.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if not HUB_NAME.fullmatch(name):
        raise UserError(f"{key}={name} is not a folder: name one that holds {wanted.what}, or {key}={wanted.example}")
    hub = needed("huggingface_hub", key)
    options = {
        "allow_patterns": list(wanted.files),
        "ignore_patterns": list(wanted.left_out),
        "etag_timeout": TIMEOUT_S,
    }
    with suppress(Exception):
        folder = Path(hub.snapshot_download(name, local_files_only=True, **options))
        if all(any(folder.glob(each)) for each in wanted.least):  # else somebody has asked for a part of it
            return folder
    if not download:
        raise UserError(f"{key}={name} is not on this machine: type hf download {name}")
    log.info("downloading %s from the Hugging Face hub", name)
    try:
        return Path(hub.snapshot_download(name, **options))
    except Exception as error:  # of the hub, the network and the disk
        why = telling(str(error)).removeprefix("Got: ")
        raise UserError(
            f"{key}={name} is not a folder, and could not be downloaded from the Hugging Face hub ({why}): check the"
            f" name, or copy the model to this machine and type {key}=DIR"
        ) from error


def needed(package: str, key: str) -> Any:
    """A package of requirements-text.txt, which is imported when it is needed.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise UserError(f"{key} needs {error.name or package}: {TEXT_EXTRAS}") from error
