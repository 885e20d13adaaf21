"""Text encoders as they are published, real but for their size and their random weights."""

from pathlib import Path

import torch

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
WIDTH = 8  # of CLIP's embeddings; T5's have 16


def write_clip(folder: Path, seed: int = 0) -> Path:
    """A CLIP of both images and texts, with its tokenizer and its image processor."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

    torch.manual_seed(seed)
    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "th", "the</w>", "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={token: i for i, token in enumerate(tokens)}, merges=[("t", "h"), ("th", "e</w>")])
    part = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    part |= {"projection_dim": WIDTH, "initializer_factor": 10.0}  # else all texts are nearly the same
    start, end = len(tokens) - 2, len(tokens) - 1
    text = part | {
        "max_position_embeddings": 24,
        "vocab_size": len(tokens),
        "bos_token_id": start,
        "eos_token_id": end,
        "pad_token_id": end,
    }
    vision = part | {"image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    CLIPModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    square = {"height": 16, "width": 16}
    CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=square).save_pretrained(folder)
    return folder


def write_t5(folder: Path) -> Path:
    from transformers import T5Config, T5EncoderModel, T5Tokenizer

    torch.manual_seed(0)
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    T5Tokenizer(vocab=pieces, extra_ids=0).save_pretrained(folder)
    config = T5Config(vocab_size=len(pieces) + 1, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    T5EncoderModel(config).save_pretrained(folder)
    return folder
