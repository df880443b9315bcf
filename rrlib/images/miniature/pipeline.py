"""A text-to-image pipeline of Stable Diffusion's classes, as small as one likes, untrained."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@dataclass(frozen=True)
class Size:
    """Of a miniature pipeline.

    Attributes:
        pixels: side of an image; halved between the VAE's resolutions.
        vae: channels of each of the autoencoder's resolutions, multiples of 8.
        unet: channels of each of the U-Net's resolutions, multiples of 8; all but the first look
            at the text.
        text: numbers per token.
        layers: of the text encoder.
        tokens: that a prompt may have, its start and end included.
    """

    pixels: int = 32
    vae: tuple[int, ...] = (16, 32, 32)
    unet: tuple[int, ...] = (48, 96)
    text: int = 48
    layers: int = 2
    tokens: int = 32


def tokenizer(words: Sequence[str], tokens: int) -> CLIPTokenizer:
    """CLIP's tokenizer of a vocabulary where each of these words is one token.

    Other words are spelt: letters are in the vocabulary too.

    Args:
        words: lower-case letters only.
        tokens: that a text may have.
    """
    pieces = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS)]
    merges: list[tuple[str, str]] = []
    for word in words:
        # What earlier words' merges leave of it is joined by later ones, which they come before.
        first, *rest = _split(word, merges)
        for piece in rest:
            merges.append((first, piece))
            first += piece
            pieces.append(first)
    vocabulary = {piece: k for k, piece in enumerate(dict.fromkeys([START, END, *pieces]))}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=tokens)


def _split(word: str, merges: Sequence[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding: the earliest merge first, wherever it applies."""
    pieces = [*word[:-1], f"{word[-1]}</w>"]  # CLIP marks the end of a word
    for pair in merges:
        k = 0
        while k < len(pieces) - 1:
            if (pieces[k], pieces[k + 1]) == pair:
                pieces[k : k + 2] = ["".join(pair)]
            k += 1
    return pieces


def pipeline(size: Size, words: Sequence[str], seed: int) -> StableDiffusionPipeline:
    """The pipeline with random weights, on the CPU.

    Args:
        size: of its parts.
        words: that its tokenizer knows.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    known = tokenizer(words, size.tokens)
    levels = len(size.vae)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=size.vae,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=size.pixels,
    )
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(known),
            hidden_size=size.text,
            intermediate_size=2 * size.text,
            num_hidden_layers=size.layers,
            num_attention_heads=4,
            max_position_embeddings=size.tokens,
            bos_token_id=known.bos_token_id,
            eos_token_id=known.eos_token_id,
            pad_token_id=known.pad_token_id,
        )
    )
    resolutions = len(size.unet)
    unet = UNet2DConditionModel(
        sample_size=size.pixels // 2 ** (levels - 1),
        block_out_channels=size.unet,
        layers_per_block=1,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * (resolutions - 1)),
        up_block_types=(*("CrossAttnUpBlock2D",) * (resolutions - 1), "UpBlock2D"),
        cross_attention_dim=size.text,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    # Stable Diffusion's own schedule.
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    whole = StableDiffusionPipeline(
        vae, encoder, known, unet, scheduler, None, None, requires_safety_checker=False
    )
    whole.set_progress_bar_config(disable=True)
    return whole
