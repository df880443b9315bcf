"""Diffusers pipelines in, texts and images to and from their latents."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_log
from PIL import Image
from torch import Tensor, nn
from transformers.utils import logging as transformers_log

from rrlib.disk import atomic, reason
from rrlib.errors import InputError, shown
from rrlib.images.folders import content
from rrlib.images.folders import pipelines as pipeline_files
from rrlib.images.kinds.checks import is_adapter
from rrlib.images.kinds.choice import fault, kind_of
from rrlib.images.kinds.protocol import Kind, device_of, dtype_of
from rrlib.images.pictures import resized
from rrlib.images.prompts import check_prompts

# What makes x_t mean the same thing to two models.
SCHEDULE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "steps_offset",
    "set_alpha_to_one",
    "timestep_spacing",
    "rescale_betas_zero_snr",
    "shift",
    "flow_shift",
    "use_dynamic_shifting",
    "time_shift_type",
    "base_image_seq_len",
    "max_image_seq_len",
    "base_shift",
    "max_shift",
)


def load_pipeline(
    model_id: str | Path,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    download: bool = False,
) -> DiffusionPipeline:
    """A pipeline of images of a supported kind; a schedule of DDPM's kind is set to DDIM.

    Args:
        model_id: a folder that `save_pretrained` wrote, or a name of the Hugging Face hub: of an
            unconditional DDPM or DDIM, of Stable Diffusion 1, 2, XL or 3, or of Flux.
        device: where the networks go.
        dtype: of their weights; torch.float16 on a GPU only.
        download: fetch what the local cache of the hub lacks; else nothing is asked of a network.

    Raises:
        InputError: there is no such pipeline, its folder is not whole (see `folders.pipelines`),
            its parts do not make an image, or float16 is asked of a CPU.
    """
    if dtype == torch.float16 and torch.device(device).type == "cpu":
        raise InputError(
            f"dtype={dtype} is not allowed on device={device!r}: torch.float32 is needed there."
        )
    with _quiet():
        folder = pipeline_files.located(model_id, download)
        pipeline = pipeline_files.assembled(folder, dtype)
    pipeline.set_progress_bar_config(disable=True)
    why = fault(pipeline) or _unable(kind_of(pipeline.to(device)))
    if why:
        raise content.refusal(model_id, why)
    return pipeline


@torch.no_grad()
def _unable(model: Kind) -> str | None:
    """What fails when every network is asked once, as small as it goes; None if nothing does."""
    side = 2 * model.multiple
    try:
        told = model.embed(["a"])
        x = torch.zeros(1, model.shape[0], side, side, dtype=dtype_of(model.network))
        x = x.to(device_of(model.network))
        noise = model.predict(x, torch.tensor(0).to(x.device), told, 1.0)
        encoded = model.encode(model.decode(noise))
    except Exception as error:  # of settings that fit the weights and nothing else
        return f"its networks fail when they are asked ({type(error).__name__}: {reason(error)})"
    if not (noise.shape == x.shape and encoded.shape == x.shape and encoded.isfinite().all()):
        return "its networks do not turn finite latents into finite latents of that shape"
    return None


def save_pipeline(pipeline: DiffusionPipeline, folder: str | Path) -> None:
    """Write a folder that `load_pipeline` reads, weights rounded to float16; the original stays.

    Args:
        pipeline: of a supported kind, with no adapter on its networks.
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
    whole = copy.copy(pipeline)
    whole.register_modules(**networks)
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


def check_pair(base: DiffusionPipeline, expert: DiffusionPipeline) -> None:
    """Raise InputError unless both have one latent space and one schedule: else x_t means two.

    What their networks predict may differ, and so may all else: texts, encoders, weights.
    """
    for name, pipeline in (("base", base), ("expert", expert)):
        why = fault(pipeline)
        if why:
            raise InputError(f"{name}: this pipeline is not allowed: {why}.")
    pair = kind_of(base), kind_of(expert)
    shapes = [one.shape + one.space for one in pair]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"expert: latents (channels, height, width, scaling) {shapes[1]} are not allowed: the "
            f"base's {shapes[0]} are needed."
        )
    if bool(pair[0].tokenizers) != bool(pair[1].tokenizers):
        takes = ["texts" if one.tokenizers else "no text" for one in pair]
        raise InputError(
            f"expert: a pipeline that takes {takes[1]} is not allowed: the base takes {takes[0]}, "
            "and two of one kind are needed."
        )
    mine, theirs = (one.noise() for one in pair)
    for name in SCHEDULE:
        if mine.get(name) != theirs.get(name):
            raise InputError(
                f"expert: its scheduler's {name}={theirs.get(name)!r} is not allowed: the base's "
                f"{mine.get(name)!r} is needed."
            )


@torch.no_grad()
def embed(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str] | int,
    truncate: bool = False,
    blank: bool = False,
) -> tuple[Tensor, ...]:
    """What the network is told of texts, [B, ...] each part; of Stable Diffusion the text encoder's
    last hidden states, [B, L, d], alone.

    Args:
        pipeline: its tokenizers and text encoders are used.
        prompts: one text for each sample; of a pipeline that takes none, their number.
        truncate: cut a prompt where the tokenizer ends, instead of refusing it.
        blank: the texts are the sampler's own (the empty one stands for no condition): no check.

    Raises:
        InputError: see `check_prompts`.
    """
    own = blank and not isinstance(prompts, int)
    texts = list(prompts) if own else check_prompts(pipeline, prompts, truncate)  # type: ignore[arg-type]
    return kind_of(pipeline).embed(texts)


@torch.no_grad()
def decode(pipeline: DiffusionPipeline, latents: Tensor, batch: int = 16) -> list[Image.Image]:
    """The images of latents [B, C, H, W]."""
    model = kind_of(pipeline)
    found = []
    for part in latents.split(batch):
        pixels = ((model.decode(part) / 2 + 0.5).clamp(0, 1) * 255).round().byte()
        arrays = pixels.permute(0, 2, 3, 1).cpu().numpy()
        found += [Image.fromarray(one if one.shape[2] == 3 else one[..., 0]) for one in arrays]
    return found


@torch.no_grad()
def encode(
    pipeline: DiffusionPipeline,
    images: Sequence[Image.Image],
    batch: int = 16,
    shape: tuple[int, int, int] | None = None,
) -> Tensor:
    """The latents of images, [B, C, H, W] float32: the mean of the encoder's distribution.

    Args:
        pipeline: its VAE is used, if it has one.
        images: of any size and mode, see `pictures.resized`.
        batch: images at a time.
        shape: of a latent; None takes the pipeline's own.

    Raises:
        InputError: no image, or something else.
    """
    model = kind_of(pipeline)
    if isinstance(images, Image.Image) or not isinstance(images, Sequence) or not images:
        raise InputError(
            f"images={shown(images)} is not allowed: a list of PIL images, at least one, is needed."
        )
    for image in images:
        if not isinstance(image, Image.Image):
            raise InputError(f"image={shown(image)} is not allowed: a PIL image is needed.")
    _, height, width = shape or model.shape
    mode = "L" if not model.space and model.shape[0] == 1 else "RGB"
    size = (width * model.factor, height * model.factor)  # as PIL has it
    parts = []
    for start in range(0, len(images), batch):
        found = [resized(image, size, mode) for image in images[start : start + batch]]
        arrays = np.stack([np.asarray(image, np.float32) / 127.5 - 1 for image in found])
        pixels = torch.from_numpy(arrays.reshape(*arrays.shape[:3], -1)).permute(0, 3, 1, 2)
        parts.append(model.encode(pixels.to(device_of(model.network))))
    return torch.cat(parts)
