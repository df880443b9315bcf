"""Diffusers pipelines in, texts and images to and from their latents, prompts from a file."""

import copy
import csv
import errno
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging as diffusers_log
from PIL import Image
from torch import Tensor, nn
from transformers.utils import logging as transformers_log

from rrlib.disk import atomic, reason
from rrlib.errors import InputError, shown
from rrlib.images import pipeline_files
from rrlib.images.pipeline_checks import fault, is_adapter, latent_shape, schedule

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
        InputError: there is no such pipeline, its folder is not whole (see `pipeline_files.parts`),
            its parts do not make an image of a text by predicted noise, or float16 is asked of a
            CPU.
    """
    if dtype == torch.float16 and torch.device(device).type == "cpu":
        raise InputError(
            f"dtype={dtype} is not allowed on device={device!r}: torch.float32 is needed there."
        )
    with _quiet():
        folder = pipeline_files.located(model_id, download)
        parts = pipeline_files.parts(folder, dtype)
        # Its safety checker would blacken the very images that are to be told apart.
        rest = {"safety_checker": None, "feature_extractor": None}
        pipeline = StableDiffusionPipeline(**parts, **rest, requires_safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    why = fault(pipeline) or _unable(pipeline.to(device))
    if why:
        raise pipeline_files.refusal(model_id, why)
    return pipeline


@torch.no_grad()
def _unable(pipeline: StableDiffusionPipeline) -> str | None:
    """What fails when every network is asked once, as small as it goes; None if nothing does."""
    unet, vae, encoder = pipeline.unet, pipeline.vae, pipeline.text_encoder
    side = 2 ** len(unet.config.block_out_channels)
    try:
        tokens = pipeline.tokenizer("a", padding="max_length", return_tensors="pt").input_ids
        texts = encoder(tokens.to(encoder.device))[0]
        x = torch.zeros(1, unet.config.in_channels, side, side, dtype=unet.dtype).to(unet.device)
        noise = unet(x, torch.tensor(0).to(x.device), encoder_hidden_states=texts).sample
        pixels = vae.decode(noise).sample
        encoded = vae.encode(pixels).latent_dist.mean
    except Exception as error:  # of settings that fit the weights and nothing else
        return f"its networks fail when they are asked ({type(error).__name__}: {reason(error)})"
    if not (noise.shape == x.shape and encoded.shape == x.shape and encoded.isfinite().all()):
        return "its networks do not turn finite latents into finite latents of that shape"
    return None


def save_pipeline(pipeline: StableDiffusionPipeline, folder: str | Path) -> None:
    """Write a folder that `load_pipeline` reads, weights rounded to float16; the original stays.

    Args:
        pipeline: of Stable Diffusion's classes, with no adapter on its networks.
        folder: new, empty, or of an earlier pipeline, which is replaced.

    Raises:
        InputError: the folder holds something else or cannot be written, a network carries an
            adapter, or a weight has no half precision.
    """
    networks = {}
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module):
            networks[name] = copy.deepcopy(part).half()
            _check_saved(name, networks[name])
    folder = Path(folder)
    known = {"model_index.json", *pipeline.components}
    other = sorted({path.name for path in folder.glob("*")} - known)
    if other:
        raise InputError(
            f"folder='{folder}' is not allowed: it holds {other[0]!r}; a new or empty folder, or "
            "a pipeline's is needed."
        )
    whole = StableDiffusionPipeline(
        **(pipeline.components | networks), requires_safety_checker=False
    )
    with _quiet(), atomic(folder) as temporary:
        whole.save_pretrained(temporary)


def _check_saved(name: str, network: nn.Module) -> None:
    """Raise InputError if a network's file would not be what its settings ask for."""
    adapted = [key for key in network.state_dict() if is_adapter(key)]
    if adapted:
        raise InputError(
            f"pipeline: its {name} carries an adapter ({shown(adapted[0])}), which a folder would "
            "not: fuse it (fuse_lora) and unload it (unload_lora_weights) first."
        )
    for key, value in network.state_dict().items():
        if not value.isfinite().all():
            raise InputError(
                f"pipeline: {key!r} of its {name} is not allowed: weights that are finite in half "
                "precision are needed."
            )


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
    for name, pipeline in (("base", base), ("expert", expert)):
        why = fault(pipeline)
        if why:
            raise InputError(f"{name}: this pipeline is not allowed: {why}.")
    shapes = [(*latent_shape(p), p.vae.config.scaling_factor) for p in (base, expert)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"expert: latents (channels, height, width, scaling) {shapes[1]} are not allowed: the "
            f"base's {shapes[0]} are needed."
        )
    schedules = [schedule(p.scheduler).config for p in (base, expert)]
    for name in SCHEDULE:
        mine, other = (config[name] for config in schedules)
        if mine != other:
            raise InputError(
                f"expert: its scheduler's {name}={other!r} is not allowed: the base's {mine!r} is "
                "needed."
            )


def read_prompts(path: str | Path) -> list[str]:
    """The column `prompt` of a CSV file, as I2P has it; each prompt is kept to the letter.

    Raises:
        InputError: there is no such file, it is no CSV file in UTF-8, has not one column `prompt`,
            no row, a row of more or fewer fields than columns, or an empty prompt.
    """
    rows = list(_rows(path))
    columns = rows[0][1] if rows else []
    if columns.count("prompt") != 1:
        raise InputError(
            f"prompts='{path}' with the columns {shown(columns)} is not allowed: a column "
            "'prompt' is needed."
        )
    if len(rows) == 1:
        raise InputError(f"prompts='{path}' holds no prompt: at least one row is needed.")
    place = columns.index("prompt")
    for line, row in rows[1:]:
        if len(row) != len(columns):
            raise InputError(
                f"prompts='{path}': the row that ends in line {line} has {len(row)} fields for "
                f"{len(columns)} columns: a prompt with a comma needs quotes around it."
            )
        if not row[place].strip():
            raise InputError(
                f"prompts='{path}': the prompt that ends in line {line} is empty: every row needs "
                "one."
            )
    return [row[place] for _, row in rows[1:]]


def _rows(path: str | Path) -> Iterator[tuple[int, list[str]]]:
    """The number of its last line and the fields of each row of a CSV file that is not blank."""
    needed = "a CSV file in UTF-8 with a column 'prompt' is needed"
    try:
        if not Path(path).is_file():
            raise FileNotFoundError(errno.ENOENT, "")
        content = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise InputError(
            f"prompts={shown(str(path), 200)} is not allowed: {needed} ({reason(error)})."
        ) from None
    start = 0  # of the last row that began
    try:
        text = content.decode("utf-8-sig")
        if "\0" in text:
            line = text[: text.index("\0")].count("\n") + 1
            raise InputError(f"prompts='{path}': line {line} holds a NUL: {needed}.")
        reader = csv.reader(io.StringIO(text, newline=""), strict=True)
        for row in reader:
            if row:
                yield reader.line_num, row
            start = reader.line_num
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"prompts='{path}': line {line} is not in UTF-8: {needed}.") from None
    except csv.Error as error:
        raise InputError(
            f"prompts='{path}': the row that begins in line {start + 1} cannot be read "
            f"({reason(error)}): {needed}."
        ) from None


def check_prompts(
    pipeline: StableDiffusionPipeline, prompts: Sequence[str], truncate: bool = False
) -> None:
    """Raise InputError unless these are texts that the tokenizer knows and takes whole.

    Args:
        pipeline: its tokenizer is used.
        prompts: at least one, each a text with no letter or sign that is unknown to the tokenizer.
        truncate: a longer text than the tokenizer takes is allowed, too.
    """
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        raise InputError(f"prompts={shown(prompts)} is not allowed: a list of texts is needed.")
    if not prompts:
        raise InputError("prompts=[] is not allowed: at least one prompt is needed.")
    tokenizer = pipeline.tokenizer
    limit = tokenizer.model_max_length
    for prompt in prompts:
        if not isinstance(prompt, str) or not prompt.strip():
            raise InputError(f"prompt={shown(prompt)} is not allowed: a text is needed.")
        # The tokenizer itself would warn of what is an error here.
        tokens = tokenizer(prompt, truncation=False, verbose=False).input_ids
        if len(tokens) > limit and not truncate:
            raise InputError(
                f"prompt={shown(prompt)} of {len(tokens)} tokens is not allowed: at most {limit} "
                "are (truncate=True cuts it)."
            )
        # What a small vocabulary lacks becomes the token of the end, and the text another.
        if {tokenizer.unk_token_id, tokenizer.eos_token_id} & set(tokens[1:-1]):
            raise InputError(
                f"prompt={shown(prompt)} is not allowed: letters and signs of the tokenizer's "
                "vocabulary are needed."
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
        InputError: no image, something else, or one of another size than the pipeline's own.
    """
    vae, (_, height, width) = pipeline.vae, latent_shape(pipeline)
    size = (width * pipeline.vae_scale_factor, height * pipeline.vae_scale_factor)  # as PIL has it
    if isinstance(images, Image.Image) or not isinstance(images, Sequence) or not images:
        raise InputError(
            f"images={shown(images)} is not allowed: a list of PIL images, at least one, is needed."
        )
    for image in images:
        if not isinstance(image, Image.Image):
            raise InputError(f"image={shown(image)} is not allowed: a PIL image is needed.")
        if image.size != size:
            raise InputError(
                f"image of size {image.size} is not allowed: {size} pixels are needed."
            )
    arrays = [np.asarray(image.convert("RGB"), np.float32) / 127.5 - 1 for image in images]
    parts = []
    for start in range(0, len(arrays), batch):
        pixels = torch.from_numpy(np.stack(arrays[start : start + batch])).permute(0, 3, 1, 2)
        found = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.mean
        parts.append(found.float() * vae.config.scaling_factor)
    return torch.cat(parts)
