"""Diffusers pipelines in, texts and images to and from their latents, prompts from a file."""

import copy
import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from diffusers.utils import logging as diffusers_log
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers.utils import logging as transformers_log

from rrlib.errors import InputError

# What makes x_t mean the same thing to two models.
SCHEDULE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "steps_offset",
    "set_alpha_to_one",
    "timestep_spacing",
    "rescale_betas_zero_snr",
)


def load_pipeline(
    model_id: str | Path,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    download: bool = False,
) -> StableDiffusionPipeline:
    """A text-to-image pipeline of Stable Diffusion's classes, its schedule set to DDIM.

    Args:
        model_id: a folder that `save_pretrained` wrote, or a name of the Hugging Face hub.
        device: where the networks go.
        dtype: of their weights; torch.float16 on a GPU only.
        download: fetch what the local cache of the hub lacks; else nothing is asked of a network.

    Raises:
        InputError: there is no such pipeline, or float16 is asked of a CPU.
    """
    if dtype == torch.float16 and torch.device(device).type == "cpu":
        raise InputError(
            f"dtype={dtype} is not allowed on device={device!r}: torch.float32 is needed there."
        )
    if Path(model_id).is_dir() and not (Path(model_id) / "model_index.json").is_file():
        raise InputError(
            f"model_id='{model_id}' is not allowed: a folder with a pipeline's model_index.json "
            "is needed."
        )
    try:
        with _quiet():
            pipeline = StableDiffusionPipeline.from_pretrained(
                model_id,
                dtype=dtype,
                local_files_only=not download,
                low_cpu_mem_usage=False,  # the other way needs accelerate
                use_safetensors=True,  # other weight files are pickles
                safety_checker=None,  # it would blacken the very images that are to be told apart
                requires_safety_checker=False,
            )
    except (OSError, ValueError, TypeError, AttributeError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"model_id='{model_id}' is not allowed: the folder or name of a Stable Diffusion "
            f"pipeline with safetensors weights is needed ({reason})."
        ) from None
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def save_pipeline(pipeline: StableDiffusionPipeline, folder: str | Path) -> None:
    """Write a folder that `load_pipeline` reads, weights rounded to float16; the original stays."""
    networks = {
        name: copy.deepcopy(part).half()
        for name, part in pipeline.components.items()
        if isinstance(part, nn.Module)
    }
    parts = pipeline.components | networks
    with _quiet():
        whole = StableDiffusionPipeline(**parts, requires_safety_checker=False)
        whole.save_pretrained(folder)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of the libraries: in a chapter they would be outputs."""
    loud = [log for log in (diffusers_log, transformers_log) if log.is_progress_bar_enabled()]
    for log in loud:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log in loud:
            log.enable_progress_bar()


def check_pair(base: StableDiffusionPipeline, expert: StableDiffusionPipeline) -> None:
    """Raise InputError unless both have one latent space and one schedule: else x_t means two."""
    shapes = [_latent(pipeline) for pipeline in (base, expert)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"expert: latents (channels, size, scaling) {shapes[1]} are not allowed: the base's "
            f"{shapes[0]} are needed."
        )
    for name in SCHEDULE:
        mine, other = (dict(p.scheduler.config).get(name) for p in (base, expert))
        if mine != other:
            raise InputError(
                f"expert: its scheduler's {name}={other!r} is not allowed: the base's {mine!r} is "
                "needed."
            )


def _latent(pipeline: StableDiffusionPipeline) -> tuple:
    config = pipeline.unet.config
    return config.in_channels, config.sample_size, pipeline.vae.config.scaling_factor


def read_prompts(path: str | Path) -> list[str]:
    """The column `prompt` of a CSV file, as I2P has it.

    Raises:
        InputError: there is no such file, no such column, no row, or an empty prompt.
    """
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            rows = [(reader.line_num, row.get("prompt")) for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(
            f"prompts='{path}' is not allowed: a CSV file with a column 'prompt' is needed "
            f"({error})."
        ) from None
    if "prompt" not in columns:
        raise InputError(
            f"prompts='{path}' with the columns {columns} is not allowed: a column 'prompt' is "
            "needed."
        )
    if not rows:
        raise InputError(f"prompts='{path}' holds no prompt: at least one row is needed.")
    for line, prompt in rows:
        if not (prompt or "").strip():
            raise InputError(
                f"prompts='{path}': the prompt that ends in line {line} is empty: every row needs "
                "one."
            )
    return [prompt for _, prompt in rows]


def check_prompts(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], truncate: bool = False
) -> None:
    """Raise InputError if there are none, one is empty, or longer than the tokenizer takes."""
    if not prompts:
        raise InputError("prompts=[] is not allowed: at least one prompt is needed.")
    limit = pipeline.tokenizer.model_max_length
    for prompt in prompts:
        if not prompt.strip():
            raise InputError(f"prompt={prompt!r} is not allowed: a text is needed.")
        # The tokenizer itself would warn of what is an error here.
        length = len(pipeline.tokenizer(prompt, truncation=False, verbose=False).input_ids)
        if length > limit and not truncate:
            raise InputError(
                f"prompt={prompt!r} of {length} tokens is not allowed: at most {limit} are "
                "(truncate=True cuts it)."
            )


@torch.no_grad()
def embed(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    truncate: bool = False,
    blank: bool = False,
) -> Tensor:
    """The text encoder's last hidden states, [B, L, d].

    Args:
        pipeline: its tokenizer and text encoder are used.
        prompts: one text for each sample.
        truncate: cut a prompt where the tokenizer ends, instead of refusing it.
        blank: the texts are the sampler's own (the empty one stands for no condition): no check.

    Raises:
        InputError: see `check_prompts`.
    """
    if not blank:
        check_prompts(pipeline, prompts, truncate)
    tokenizer = pipeline.tokenizer
    limit = tokenizer.model_max_length
    tokens = tokenizer(
        list(prompts), padding="max_length", max_length=limit, truncation=True, return_tensors="pt"
    )
    encoder = pipeline.text_encoder
    # Stable Diffusion's encoders take no mask, as the pipelines of diffusers have it.
    return encoder(tokens.input_ids.to(encoder.device))[0]


@torch.no_grad()
def decode(
    pipeline: StableDiffusionPipeline, latents: Tensor, batch: int = 16
) -> list[Image.Image]:
    """The images of latents [B, C, H, W]."""
    vae = pipeline.vae
    found = []
    for part in latents.to(vae.device, vae.dtype).split(batch):
        pixels = vae.decode(part / vae.config.scaling_factor).sample.float()
        pixels = ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().byte()
        found += [Image.fromarray(image) for image in pixels.permute(0, 2, 3, 1).cpu().numpy()]
    return found


@torch.no_grad()
def encode(
    pipeline: StableDiffusionPipeline, images: Sequence[Image.Image], batch: int = 16
) -> Tensor:
    """The latents of images, [B, C, H, W] float32: the mean of the encoder's distribution.

    Raises:
        InputError: an image of another size than the pipeline's own.
    """
    vae, config = pipeline.vae, pipeline.unet.config
    side = config.sample_size * pipeline.vae_scale_factor
    for image in images:
        if image.size != (side, side):
            raise InputError(
                f"image of size {image.size} is not allowed: {(side, side)} pixels are needed."
            )
    arrays = [np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1 for image in images]
    parts = []
    for start in range(0, len(arrays), batch):
        pixels = torch.from_numpy(np.stack(arrays[start : start + batch])).permute(0, 3, 1, 2)
        found = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mean
        parts.append(found.float() * vae.config.scaling_factor)
    return torch.cat(parts)
