"""What rrlib's samplers ask of a text-to-image pipeline, and any noise schedule of it as DDIM."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers import DDIMScheduler, SchedulerMixin
from diffusers.schedulers import KarrasDiffusionSchedulers

from rrlib.errors import shown

PARTS = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")
# Schedulers of variance-preserving noise: their networks can be asked at DDIM's own steps.
SCHEDULERS = {kind.name for kind in KarrasDiffusionSchedulers} - {"EDMEulerScheduler"}
SPACINGS = ("leading", "linspace", "trailing")
MOST_STEPS = 100_000  # that a schedule may have; published ones have 1000
LARGEST = 4096  # side of a latent; Stable Diffusion's is 64 to 128
# Settings of U-Nets that are asked for more than a latent, a level and a text.
FURTHER = {
    "time_cond_proj_dim": "is distilled and is told its guidance (LCM)",
    "class_embed_type": "is told a class",
    "num_class_embeds": "is told a class",
    "addition_embed_type": "is told more than the text (Stable Diffusion XL)",
    "encoder_hid_dim": "reads another encoder's texts",
    "encoder_hid_dim_type": "reads another encoder's texts",
}


def _defaults(kind: type) -> dict[str, Any]:
    return {key: value.default for key, value in inspect.signature(kind).parameters.items()}


# Of a class that does not say: Stable Diffusion's own schedule ends at the noise of t = 0.
FAMILY = _defaults(DDIMScheduler) | {"set_alpha_to_one": False}


def ddim(name: str, config: Mapping[str, Any]) -> DDIMScheduler:
    """The schedule of a scheduler of another class as DDIM, as the pipelines of diffusers have it.

    Stable Diffusion's latents are not pixels: they are never clipped, and steps are counted from 1.

    Args:
        name: of the scheduler's class.
        config: its settings; what is missing is the class's default.

    Raises:
        ValueError: a schedule that is not one of noise that grows from little to nearly all.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"its scheduler {shown(name)} has no DDIM steps")
    own = _defaults(getattr(diffusers, name))
    told = {key: config[key] for key in FAMILY if key in config}
    settings = FAMILY | {key: own[key] for key in FAMILY if key in own} | told
    settings |= {"clip_sample": False, "steps_offset": 1}
    steps = settings["num_train_timesteps"]
    if not _whole(steps, 1, MOST_STEPS):
        raise ValueError(
            f"its scheduler's num_train_timesteps={shown(steps)} is no number from 1 to "
            f"{MOST_STEPS}"
        )
    if settings["timestep_spacing"] not in SPACINGS:
        raise ValueError(
            f"its scheduler's timestep_spacing={shown(settings['timestep_spacing'])} is none of "
            f"{', '.join(SPACINGS)}"
        )
    if settings["timestep_spacing"] == "linspace":
        # DDIM's step goes down by a fixed number of levels, and levels of this kind are further
        # apart: each network would be asked at another level than its latents have.
        settings["timestep_spacing"] = "leading"
    for key in ("thresholding", "use_flow_sigmas"):  # of pixels; of another kind of noise
        if config.get(key):
            raise ValueError(f"its scheduler's {key}={shown(config[key])} is not for such latents")
    if settings["prediction_type"] != "epsilon":
        raise ValueError(
            f"its prediction_type={shown(settings['prediction_type'])} is not 'epsilon', the noise"
        )
    if settings["rescale_betas_zero_snr"]:
        raise ValueError(
            "its schedule ends in noise alone (rescale_betas_zero_snr), where a predicted noise "
            "says nothing of the image"
        )
    try:
        found = DDIMScheduler(**settings)
    except Exception as error:  # a setting of another type, a schedule of no known name
        raise ValueError(
            f"its scheduler's settings make none ({type(error).__name__}: {str(error)[:100]})"
        ) from None
    kept = found.alphas_cumprod
    falls = len(kept) == steps and kept.isfinite().all() and (kept[1:] <= kept[:-1]).all()
    if not (falls and kept[-1] > 0 and kept[0] < 1):
        raise ValueError(
            f"its scheduler's betas (beta_schedule={shown(settings['beta_schedule'])}, "
            f"{shown(settings['beta_start'])} to {shown(settings['beta_end'])}) do not make noise "
            "grow from little to nearly all"
        )
    return found


def schedule(scheduler: SchedulerMixin) -> DDIMScheduler:
    """A pipeline's own schedule as DDIM. Raises ValueError, see `ddim`."""
    return ddim(type(scheduler).__name__, dict(scheduler.config))


def is_adapter(name: str) -> bool:
    """Whether a weight of this name is an adapter's, or hidden behind one (PEFT, diffusers)."""
    return "lora" in name or "base_layer" in name


def fault(pipeline: Any) -> str | None:
    """Why the samplers cannot use this pipeline, in a clause; None where they can."""
    lacks = [name for name in PARTS if getattr(pipeline, name, None) is None]
    if lacks:
        return (
            f"its class {type(pipeline).__name__} has no {lacks[0]}, so it makes no image of a text"
        )
    if getattr(pipeline, "text_encoder_2", None) is not None:
        return "it has a second text encoder (Stable Diffusion XL), which would be left out"
    unet, vae, text = pipeline.unet.config, pipeline.vae.config, pipeline.text_encoder.config
    for name, why in FURTHER.items():
        if unet.get(name) is not None:
            return f"its U-Net {why}: {name}={shown(unet[name])}"
    if not unet.in_channels == unet.out_channels == vae.latent_channels:
        return (
            f"its U-Net takes {unet.in_channels} channels and gives {unet.out_channels}, which "
            f"must both be the {vae.latent_channels} of its latents (other numbers are for "
            "inpainting, depth or learned variances)"
        )
    if unet.cross_attention_dim != text.hidden_size:
        return (
            f"its U-Net reads texts of {shown(unet.cross_attention_dim)} numbers a token and its "
            f"text encoder writes {text.hidden_size}"
        )
    size = unet.sample_size
    sides = list(size) if isinstance(size, list | tuple) else [size, size]
    if len(sides) != 2 or not all(_whole(side, 1, LARGEST) for side in sides):
        return (
            f"its U-Net's sample_size={shown(size)} is no side of a latent from 1 to {LARGEST}, "
            "nor two"
        )
    factor = vae.scaling_factor
    if not (_number(factor) and 0 < factor < math.inf):
        return f"its VAE's scaling_factor={shown(factor)} is no number above 0"
    for name in ("shift_factor", "latents_mean", "latents_std"):
        if vae.get(name) is not None:
            return f"its VAE's latents are shifted or scaled in another way ({name})"
    most, limit = text.max_position_embeddings, pipeline.tokenizer.model_max_length
    if not _whole(limit, 3, most):  # start, end, and at least one word
        return (
            f"its tokenizer's model_max_length={shown(limit)} is no number from 3 to the {most} "
            "tokens that its text encoder takes"
        )
    try:
        schedule(pipeline.scheduler)
    except ValueError as error:
        return str(error)
    return None


def latent_shape(pipeline: Any) -> tuple[int, int, int]:
    """Of one latent of a pipeline without `fault`: channels, height, width."""
    config = pipeline.unet.config
    size = config.sample_size
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return config.in_channels, height, width


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
