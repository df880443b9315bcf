"""What all kinds ask of a pipeline's parts, and any noise schedule of theirs as DDIM."""

import inspect
import math
from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers import DDIMScheduler, SchedulerMixin
from diffusers.schedulers import KarrasDiffusionSchedulers
from torch import nn

from rrlib.errors import shown
from rrlib.images.kinds.protocol import Levels
from rrlib.method.noise.schedulers import schedule_of

# Schedulers of variance-preserving noise: their networks can be asked at DDIM's own steps.
SCHEDULERS = {kind.name for kind in KarrasDiffusionSchedulers} - {"EDMEulerScheduler"}
SPACINGS = ("leading", "linspace", "trailing")
MOST_STEPS = 100_000  # that a schedule may have; published ones have 1000
LARGEST = 4096  # side of a latent; Stable Diffusion's is 64 to 128
SETTINGS = ("force_zeros_for_empty_prompt",)  # of a pipeline's own that change its images
PREDICTIONS = ("epsilon", "v_prediction", "sample")
# Settings of U-Nets that are asked for more than a latent, a level and a text.
FURTHER = {
    "time_cond_proj_dim": "is distilled and is told its guidance (LCM)",
    "class_embed_type": "is told a class",
    "num_class_embeds": "is told a class",
    "addition_embed_type": "is told more than texts and sizes",
    "encoder_hid_dim": "reads another encoder's texts",
    "encoder_hid_dim_type": "reads another encoder's texts",
}


def _defaults(kind: type) -> dict[str, Any]:
    return {key: value.default for key, value in inspect.signature(kind).parameters.items()}


# Of a class that does not say: Stable Diffusion's own schedule ends at the noise of t = 0.
FAMILY = _defaults(DDIMScheduler) | {"set_alpha_to_one": False}
PIXELS = _defaults(DDIMScheduler)


def ddim(name: str, config: Mapping[str, Any], pixels: bool = False) -> DDIMScheduler:
    """The schedule of a scheduler of another class as DDIM, as the pipelines of diffusers have it.

    Nothing is clipped: latents are not pixels, and of pixels a clipped prediction would not be the
    model's own. Of Stable Diffusion steps are counted from 1.

    Args:
        name: of the scheduler's class.
        config: its settings; what is missing is the class's default.
        pixels: of a model without latents, whose steps go down to the image itself.

    Raises:
        ValueError: a schedule that is not one of noise that grows from little to nearly all.
    """
    if name not in SCHEDULERS:
        raise ValueError(f"its scheduler {shown(name)} has no DDIM steps")
    own = _defaults(getattr(diffusers, name))
    family = PIXELS if pixels else FAMILY
    told = {key: config[key] for key in family if key in config}
    settings = family | {key: own[key] for key in family if key in own} | told
    settings |= {"clip_sample": False} | ({} if pixels else {"steps_offset": 1})
    steps = settings["num_train_timesteps"]
    if not whole(steps, 1, MOST_STEPS):
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
    if settings["prediction_type"] not in PREDICTIONS:
        raise ValueError(
            f"its prediction_type={shown(settings['prediction_type'])} is none of "
            f"{', '.join(map(repr, PREDICTIONS))}"
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


def schedule(scheduler: SchedulerMixin, pixels: bool = False) -> DDIMScheduler:
    """A pipeline's own schedule as DDIM. Raises ValueError, see `ddim`."""
    return ddim(type(scheduler).__name__, dict(scheduler.config), pixels)


def stepped(own: DDIMScheduler, steps: int) -> Levels:
    """The levels of so many DDIM steps; what the network predicts is read as noise."""
    settings = {key: value for key, value in own.config.items() if key in PIXELS}
    scheduler = DDIMScheduler(**settings | {"prediction_type": "epsilon"})
    scheduler.set_timesteps(steps)
    return Levels(scheduler, schedule_of(own))


def is_adapter(name: str) -> bool:
    """Whether a weight of this name is an adapter's, or hidden behind one (PEFT, diffusers)."""
    return "lora" in name or "base_layer" in name


def lacking(pipeline: Any, names: tuple[str, ...]) -> str | None:
    """The fault of a pipeline without one of these parts."""
    lacks = [name for name in names if getattr(pipeline, name, None) is None]
    return f"its class {type(pipeline).__name__} has no {lacks[0]}" if lacks else None


def asked_for_more(unet: Mapping[str, Any], without: tuple[str, ...] = ()) -> str | None:
    """The fault of a U-Net that is told more than its kind's."""
    for name, why in FURTHER.items():
        if name not in without and unet.get(name) is not None:
            return f"its U-Net {why}: {name}={shown(unet[name])}"
    return None


def odd_size(size: object, what: str) -> str | None:
    """The fault of a network's sample_size."""
    sides = list(size) if isinstance(size, list | tuple) else [size, size]
    if len(sides) == 2 and all(whole(side, 1, LARGEST) for side in sides):
        return None
    return (
        f"its {what}'s sample_size={shown(size)} is no side of a latent from 1 to {LARGEST}, nor "
        "two"
    )


def odd_scale(vae: Mapping[str, Any], shifted: bool) -> str | None:
    """The fault of a VAE's scaling; `shifted` where the kind's latents are shifted, too."""
    factor = vae["scaling_factor"]
    if not (number(factor) and 0 < factor < math.inf):
        return f"its VAE's scaling_factor={shown(factor)} is no number above 0"
    further = (*(() if shifted else ("shift_factor",)), "latents_mean", "latents_std")
    for name in further:
        if vae.get(name) is not None:
            return f"its VAE's latents are shifted or scaled in another way ({name})"
    return None


def odd_limit(tokenizer: Any, most: int, name: str = "tokenizer") -> str | None:
    """The fault of a tokenizer's limit, beside what its text encoder takes."""
    limit = tokenizer.model_max_length
    if whole(limit, 3, most):  # start, end, and at least one word
        return None
    return (
        f"its {name}'s model_max_length={shown(limit)} is no number from 3 to the {most} tokens "
        "that its text encoder takes"
    )


def input_shape(network: nn.Module) -> tuple[int, int, int]:
    """Channels, height and width of what a diffusers network takes, by its configuration."""
    size = network.config.sample_size
    sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
    return network.config.in_channels, *sides


def number(value: object) -> bool:
    """Whether it is a number, which a bool is not."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def whole(value: object, low: int, high: int) -> bool:
    """Whether it is a whole number of a range."""
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
