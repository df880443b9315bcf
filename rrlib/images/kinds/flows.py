"""Transformers of flow matching: Stable Diffusion 3 and Flux.

Their latents are kept as all others' are, scaled to alpha^2 + sigma^2 = 1; `rrlib.method.noise`
says what the transformer sees and what its velocity means. There, Euler's step of a flow is DDIM's.
"""

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.nn import functional

from rrlib.errors import InputError, shown
from rrlib.images.kinds.checks import (
    MOST_STEPS,
    input_shape,
    lacking,
    odd_limit,
    odd_scale,
    odd_size,
    whole,
)
from rrlib.images.kinds.latents import Latents
from rrlib.images.kinds.protocol import Levels, device_of, dtype_of
from rrlib.method.noise.schedulers import FLOWS, schedule_of
from rrlib.method.noise.schedules import flow_schedule

WORDS = {"Stable Diffusion 3": 256, "Flux": 512}  # tokens of T5 that the pipelines read
PATCH = 2  # of Flux, whose pipeline packs latents
SHIFTS = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")


def flow_levels(scheduler: Any, steps: int, tokens: int) -> Levels:
    """Evenly spaced levels, shifted as the scheduler says; the first half a step below noise alone.

    Args:
        scheduler: of flow matching.
        steps: at least 2.
        tokens: that the transformer sees, where the shift depends on the image's size.

    Raises:
        InputError: fewer steps.
    """
    config = scheduler.config
    schedule = flow_schedule(steps, _shift(config, tokens), config.num_train_timesteps)
    settings = {"steps_offset": 0, "set_alpha_to_one": True, "clip_sample": False}
    stepper = DDIMScheduler(steps, **settings)
    stepper.alphas_cumprod = torch.tensor(schedule.abar)
    stepper.set_timesteps(steps)
    return Levels(stepper, schedule)


def _shift(config: Any, tokens: int) -> float:
    """Of s = shift u / (1 + (shift - 1) u), as the pipelines of diffusers have it."""
    if not config.get("use_dynamic_shifting"):
        return config.get("shift", config.get("flow_shift", 1.0))
    least, most, low, high = (config.get(name) for name in SHIFTS)
    mu = low + (tokens - least) * (high - low) / (most - least)
    return math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu


def _fault_of_flow(scheduler: Any) -> str | None:
    name = type(scheduler).__name__
    if name not in FLOWS and not scheduler.config.get("use_flow_sigmas"):
        return f"its scheduler {name!r} is not one of flow matching ({', '.join(FLOWS)})"
    steps = scheduler.config.num_train_timesteps
    if not whole(steps, 2, MOST_STEPS):
        return (
            f"its scheduler's num_train_timesteps={shown(steps)} is no number from 2 to "
            f"{MOST_STEPS}"
        )
    try:
        schedule_of(scheduler)
    except InputError as error:
        return f"its {str(error).rstrip('.')}"
    return None


@dataclass(frozen=True)
class _Flow(Latents):
    """What both share."""

    @property
    def multiple(self) -> int:
        """Sides of a patch of the transformer."""
        return PATCH

    @property
    def network(self) -> nn.Module:
        """The transformer."""
        return self.pipeline.transformer

    def noise(self) -> dict[str, Any]:
        """See `Kind`."""
        config = self.pipeline.scheduler.config
        names = ("shift", "flow_shift", "use_dynamic_shifting", "time_shift_type", *SHIFTS)
        return {name: config.get(name) for name in names}

    def levels(self, steps: int, shape: tuple[int, int, int]) -> Levels:
        """See `Kind`."""
        _, height, width = shape
        tokens = height * width // self.multiple**2
        return flow_levels(self.pipeline.scheduler, steps, tokens)

    def _fault(self, parts: tuple[str, ...], channels: int) -> str | None:
        found = lacking(self.pipeline, parts) or odd_scale(self.pipeline.vae.config, shifted=True)
        if found:
            return found
        latent = self.pipeline.vae.config.latent_channels
        if channels != latent:
            return (
                f"its transformer takes {channels} channels, which must be the {latent} of its "
                "latents (others are for inpainting, control or editing)"
            )
        return _fault_of_flow(self.pipeline.scheduler)


@dataclass(frozen=True)
class StableDiffusion3(_Flow):
    """See `Kind`: two CLIP encoders and, where there is one, T5."""

    guided: ClassVar[bool] = True

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a latent."""
        return input_shape(self.network)

    @property
    def multiple(self) -> int:
        """Sides of a patch of the transformer."""
        return self.network.config.patch_size

    @property
    def tokenizers(self) -> tuple:
        """Two or three."""
        names = ("tokenizer", "tokenizer_2", "tokenizer_3")
        return tuple(found for name in names if (found := getattr(self.pipeline, name, None)))

    def fault(self) -> str | None:
        """See `Kind`."""
        first = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        config = self.network.config
        found = self._fault(("vae", "scheduler", *first), config.in_channels)
        most = [getattr(self.pipeline, name).config.max_position_embeddings for name in first[:2]]
        return (
            found
            or odd_size(config.sample_size, "transformer")
            or odd_limit(self.pipeline.tokenizer, min(most))
        )

    def embed(self, prompts: list[str]) -> tuple[Tensor, ...]:
        """Tokens of all encoders, [B, L, d], and both CLIP encoders' pooled, [B, p]."""
        third = self.tokenizers[2:]
        limit = min([WORDS["Stable Diffusion 3"], *(one.model_max_length for one in third)])
        states, _, pooled, _ = self.pipeline.encode_prompt(
            prompts,
            None,
            None,
            device=device_of(self.network),
            do_classifier_free_guidance=False,
            max_sequence_length=limit,
        )
        return states, pooled

    def predict(self, x: Tensor, time: Tensor, told: tuple[Tensor, ...], guidance: float) -> Tensor:
        """See `Kind`."""
        options = {"encoder_hidden_states": told[0], "pooled_projections": told[1]}
        return self.network(hidden_states=x, timestep=time.expand(len(x)), **options).sample


@dataclass(frozen=True)
class Flux(_Flow):
    """See `Kind`: CLIP's pooled text and T5's tokens.

    A transformer that is told its guidance is asked once a step, as the sampler's scale has it; of
    others guidance starts at the empty text.
    """

    @property
    def guided(self) -> bool:
        """Unless it is told its guidance."""
        return not self.network.config.guidance_embeds

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of a latent, as the pipeline draws it where no size is said."""
        side = self.pipeline.default_sample_size
        return self.network.config.in_channels // PATCH**2, side, side

    @property
    def tokenizers(self) -> tuple:
        """Two."""
        return self.pipeline.tokenizer, self.pipeline.tokenizer_2

    def fault(self) -> str | None:
        """See `Kind`."""
        texts = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
        channels = self.network.config.in_channels // PATCH**2
        found = self._fault(("vae", "scheduler", *texts), channels)
        return found or odd_limit(
            self.pipeline.tokenizer, self.pipeline.text_encoder.config.max_position_embeddings
        )

    def embed(self, prompts: list[str]) -> tuple[Tensor, ...]:
        """T5's tokens, [B, L, d], and CLIP's pooled text, [B, p]."""
        limit = min(WORDS["Flux"], self.pipeline.tokenizer_2.model_max_length)
        states, pooled, _ = self.pipeline.encode_prompt(
            prompts, None, device=device_of(self.network), max_sequence_length=limit
        )
        return states, pooled

    def predict(self, x: Tensor, time: Tensor, told: tuple[Tensor, ...], guidance: float) -> Tensor:
        """See `Kind`: latents are cut into patches, and the time is s itself."""
        states, pooled = told
        height, width = (side // PATCH for side in x.shape[-2:])
        sides = (torch.arange(side, device=x.device) for side in (height, width))
        rows, columns = torch.meshgrid(*sides, indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], -1).flatten(0, 1)
        options = {"device": x.device, "dtype": dtype_of(self.network)}
        told_guidance = None if self.guided else torch.full((len(x),), guidance, device=x.device)
        out = self.network(
            hidden_states=functional.pixel_unshuffle(x, PATCH).flatten(2).mT,
            timestep=time.expand(len(x)).to(x.dtype) / 1000,
            guidance=told_guidance,
            pooled_projections=pooled,
            encoder_hidden_states=states,
            txt_ids=torch.zeros(states.shape[1], 3, **options),
            img_ids=places.to(**options),
        ).sample
        return functional.pixel_shuffle(out.mT.unflatten(2, (height, width)), PATCH)
