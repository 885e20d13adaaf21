"""Stable Diffusion as it is published, real but for its size and its random weights, in diffusers' own layout."""

from pathlib import Path
from typing import Any

import torch

from tests.models.tiny_encoders import LETTERS

N_TOKENS = 32  # of a text, at most


def clip_tokenizer() -> Any:
    """Letters, digits and a few merges: a real byte-pair encoding, though a small one."""
    from transformers import CLIPTokenizer

    tokens = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "th", "the</w>", "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=[("t", "h"), ("th", "e</w>")], model_max_length=N_TOKENS)


def clip_config(width: int, **options: Any) -> Any:
    from transformers import CLIPTextConfig

    n = len(clip_tokenizer())
    options = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": 2} | options
    options |= {"vocab_size": n, "bos_token_id": n - 2, "eos_token_id": n - 1, "pad_token_id": n - 1}
    return CLIPTextConfig(num_attention_heads=2, max_position_embeddings=N_TOKENS, projection_dim=width, **options)


def vae(n_channels: int = 4, **options: Any) -> Any:
    from diffusers import AutoencoderKL

    options = {"block_out_channels": [8, 16], "norm_num_groups": 4, "sample_size": 32} | options
    kinds = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    return AutoencoderKL(latent_channels=n_channels, **kinds, **options)


def write_stable_diffusion(folder: Path, scheduler: Any = None, seed: int = 0, **unet: Any) -> Path:
    """A Stable Diffusion of the first generation; `unet` are options of its network."""
    from diffusers import PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel

    torch.manual_seed(seed)
    options: dict[str, Any] = {
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "cross_attention_dim": 16,
        "attention_head_dim": 2,
        "sample_size": 16,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    } | unet
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    made = StableDiffusionPipeline(
        vae=vae(),
        text_encoder=CLIPTextModel(clip_config(options["cross_attention_dim"])),
        tokenizer=clip_tokenizer(),
        unet=UNet2DConditionModel(**options),
        scheduler=scheduler or PNDMScheduler(**betas, set_alpha_to_one=False, skip_prk_steps=True),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.save_pretrained(folder)
    return folder


def write_stable_diffusion_3(folder: Path, seed: int = 0) -> Path:
    """A Stable Diffusion 3 without its third text encoder, as many use it."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection

    torch.manual_seed(seed)
    transformer = SD3Transformer2DModel(
        sample_size=16,
        patch_size=1,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=32,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=24,
    )
    made = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5),
        text_encoder=CLIPTextModelWithProjection(clip_config(16)),
        tokenizer=clip_tokenizer(),
        text_encoder_2=CLIPTextModelWithProjection(clip_config(16)),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=None,
        tokenizer_3=None,
    )
    made.save_pretrained(folder)
    return folder
