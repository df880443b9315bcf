"""Latent diffusion as a denoiser: classifier-free guidance, plain or safe, of any pipeline.

The unsafe and the safe model of the paper's section 5.3 share their weights; they differ in the
guided noise, the epsilon by which a step is taken.
So the pair that is compared is two `Guided` samplers, and not two U-Nets.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import InitVar, dataclass
from functools import cached_property

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor

from rrlib.denoisers import Denoiser
from rrlib.errors import InputError, shown
from rrlib.images.pipeline_checks import fault, latent_shape, schedule
from rrlib.images.pipelines import embed

# What the safe sampler turns from, in the words of safe latent diffusion's own model card.
CONCEPT = (
    "an image showing hate, harassment, violence, suffering, humiliation, harm, suicide, sexual, "
    "nudity, bodily fluids, blood, obscene gestures, illegal activity, drug use, theft, vandalism, "
    "weapons, child abuse, brutality, cruelty"
)


@dataclass(frozen=True)
class SafeGuidance:
    """Safe latent diffusion's settings (Schramowski et al. 2022).

    Attributes:
        warmup: delta, steps before the guidance sets in; the momentum is gathered meanwhile.
        scale: s_S, how soon the guidance acts in full.
        threshold: lambda; it acts where eps_prompt - eps_concept lies below.
        momentum: s_m, weight of the momentum.
        decay: beta_m, share of the momentum that a step keeps.
    """

    warmup: int
    scale: float
    threshold: float
    momentum: float
    decay: float


CONFIGURATIONS = {
    "weak": SafeGuidance(15, 20, 0.0, 0.0, 0.0),
    "medium": SafeGuidance(10, 1000, 0.01, 0.3, 0.4),
    "strong": SafeGuidance(7, 2000, 0.025, 0.5, 0.7),
    "max": SafeGuidance(0, 5000, 1.0, 0.5, 0.7),  # the paper's runs
}


def safe_direction(
    safety: SafeGuidance, empty: Tensor, prompt: Tensor, concept: Tensor, momentum: Tensor
) -> tuple[Tensor, Tensor]:
    """What safe guidance takes from the direction of the prompt, and the momentum after it.

    Args:
        safety: its settings.
        empty, prompt, concept: the noise predicted for each text, [B, ...].
        momentum: v, [B, ...]; zero at first.

    Returns:
        g = (eps_S - eps_u) mu + s_m v and v' = beta_m v + (1 - beta_m) g, both [B, ...].
    """
    apart = prompt - concept
    strength = (apart.abs() * safety.scale).clamp(max=1)
    strength = torch.where(apart < safety.threshold, strength, 0.0)
    direction = (concept - empty) * strength + safety.momentum * momentum
    return direction, safety.decay * momentum + (1 - safety.decay) * direction


@dataclass(frozen=True)
class Guided:
    """A pipeline's sampler: guided noise, and the DDIM step that it is used for.

    Steps are counted from 0, the noisiest. What a sampling run gathers (the momentum of safe
    guidance) is handed in and out, so a sampler may serve many runs at once.

    Attributes:
        pipeline: of Stable Diffusion's classes.
        steps: of DDIM.
        scale: s_g of classifier-free guidance.
        safety: settings of safe guidance; None for plain guidance.
        concept: what safe guidance turns from.
        negative_prompt: none; what pipelines know by this name is refused.

    Raises:
        InputError: a value of another type, fewer than one step, or more than the model has; a
            pipeline that makes no image of a text by predicted noise (see `pipeline_checks.fault`).
    """

    pipeline: StableDiffusionPipeline
    steps: int = 50
    scale: float = 7.5
    safety: SafeGuidance | None = None
    concept: str = CONCEPT
    negative_prompt: InitVar[str] = ""

    def __post_init__(self, negative_prompt: str):
        if negative_prompt:
            raise InputError(
                f"negative_prompt={shown(negative_prompt)} is not allowed: guidance starts at the "
                "empty text (safety and concept turn from another)."
            )
        why = fault(self.pipeline)
        if why:
            raise InputError(f"pipeline: this one is not allowed: {why}.")
        most = self.pipeline.scheduler.config.num_train_timesteps
        steps, scale = self.steps, self.scale
        if not isinstance(steps, int) or isinstance(steps, bool) or not 1 <= steps <= most:
            raise InputError(
                f"steps={shown(steps)} is not allowed: a number from 1 to the pipeline's {most} is "
                "needed."
            )
        if not isinstance(scale, int | float) or not math.isfinite(scale):
            raise InputError(f"scale={shown(scale)} is not allowed: a finite number is needed.")
        if not isinstance(self.safety, SafeGuidance | None):
            raise InputError(
                f"safety={shown(self.safety)} is not allowed: None or a SafeGuidance is needed, "
                f"such as CONFIGURATIONS['max'] (there are {', '.join(CONFIGURATIONS)})."
            )
        if not isinstance(self.concept, str):
            raise InputError(f"concept={shown(self.concept)} is not allowed: a text is needed.")
        if self.safety and self.safety.warmup >= self.steps:
            warnings.warn(
                f"steps={self.steps} is no more than the warm-up of {self.safety.warmup} steps, so "
                "safe guidance does nothing.",
                stacklevel=3,
            )

    @cached_property
    def scheduler(self) -> DDIMScheduler:
        """DDIM on the pipeline's own schedule; a step of it keeps no state."""
        scheduler = schedule(self.pipeline.scheduler)
        scheduler.set_timesteps(self.steps, device=self.device)
        return scheduler

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return self.pipeline.unet.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one latent: channels, height, width."""
        return latent_shape(self.pipeline)

    def condition(self, prompts: Sequence[str], truncate: bool = False) -> Tensor:
        """Embeddings of the empty text, the prompts and (safe) the concept, [2 or 3, B, L, d].

        Once per prompt, however many steps follow.

        Raises:
            InputError: a prompt is empty or too long, see `pipelines.embed`.
        """
        texts = ["", *([self.concept] if self.safety else [])]
        # The concept is cut where the tokenizer ends, as its authors' own pipeline does.
        fixed = [embed(self.pipeline, [text], truncate=True, blank=True) for text in texts]
        asked = embed(self.pipeline, prompts, truncate)
        parts = [fixed[0].expand_as(asked), asked, *(part.expand_as(asked) for part in fixed[1:])]
        return torch.stack(parts)

    @torch.no_grad()
    def noise(
        self, x: Tensor, step: int, texts: Tensor, momentum: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The guided noise, and the momentum after this step; float32 whatever the networks' type.

        Args:
            x: latents, [B, C, H, W].
            step: from 0, the noisiest.
            texts: of `condition`, [2 or 3, B, L, d].
            momentum: what the step before gave; None at first.
        """
        return self._noise(x, self._time(step), step, texts, momentum)

    def _noise(self, x, t, step, texts, momentum):
        copies = len(texts)
        inputs = x.to(self.pipeline.unet.dtype).repeat(copies, *[1] * (x.ndim - 1))
        times = t if t.ndim == 0 else t.repeat(copies)
        out = self.pipeline.unet(inputs, times, encoder_hidden_states=texts.flatten(0, 1)).sample
        noises = out.float().chunk(copies)  # of the empty text, the prompt, the concept
        empty, prompt = noises[:2]
        guidance = prompt - empty
        if self.safety:
            momentum = torch.zeros_like(guidance) if momentum is None else momentum
            turn, momentum = safe_direction(self.safety, empty, prompt, noises[2], momentum)
            if step >= self.safety.warmup:
                guidance = guidance - turn
        return empty + self.scale * guidance, momentum

    def advance(self, x: Tensor, noise: Tensor, step: int) -> Tensor:
        """The latents after DDIM's step by this noise, [B, C, H, W]."""
        return self.scheduler.step(noise, self._time(step), x).prev_sample

    def step_per_score(self, step: int) -> float:
        """What a unit of score adds to the step's result: DDIM's step is linear in the noise."""
        self._time(step)
        return self._steps_per_score[step]

    @cached_property
    def _steps_per_score(self) -> list[float]:
        """Of every step: worked out once, on the CPU, so that no step waits for a device."""
        schedule = copy.deepcopy(self.scheduler)
        schedule.set_timesteps(self.steps)
        nothing, one = torch.zeros(1), torch.ones(1)
        found = []
        for t in schedule.timesteps:
            deviation = (1 - schedule.alphas_cumprod[t].cpu()).sqrt()
            found.append(-(deviation * schedule.step(one, t, nothing).prev_sample).item())
        return found

    def _time(self, step: int) -> Tensor:
        """The noise level of a step."""
        if not 0 <= step < self.steps:
            raise InputError(
                f"step={shown(step)} is not allowed: a number from 0 to {self.steps - 1} is needed."
            )
        return self.scheduler.timesteps[step]

    def denoiser(self, texts: Tensor, step: int = 0, momentum: Tensor | None = None) -> Denoiser:
        """The contract of `denoisers.Denoiser` for these texts: x0, score and mean at any t.

        Args:
            texts: of `condition`, [2 or 3, B, L, d]; a call has the same B.
            step, momentum: of a safe sampler, where in its run it is asked; ignored by a plain one.
        """

        @torch.no_grad()
        def network(x: Tensor, t: Tensor) -> Tensor:
            return self._noise(x, t, step, texts, momentum)[0]

        return Denoiser(network, self.scheduler)

    def start(self, n: int, generator: torch.Generator) -> Tensor:
        """Noise to begin from, [n, C, H, W] float32."""
        shape = (n, *self.shape)
        return torch.randn(shape, generator=generator, device=generator.device).to(self.device)


def denoise(
    guided: Guided,
    texts: Tensor,
    x: Tensor,
    shift: Callable[[Tensor, int], Tensor] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """DDIM's run from noise x [B, C, H, W]; yields (steps to go, latents), (0, the image) last.

    Args:
        guided: the sampler.
        texts: of `Guided.condition`.
        x: noise.
        shift: (latents, step) -> what is added to the step's result, such as a reward's gradient
            times a weight; None adds nothing.

    Raises:
        InputError: latents that are not finite, see `check_finite`.
    """
    momentum = None
    yield guided.steps, x
    for step in range(guided.steps):
        noise, momentum = guided.noise(x, step, texts, momentum)
        ahead = guided.advance(x, noise, step)
        x = ahead if shift is None else ahead + shift(x, step)
        check_finite(x, step)
        yield guided.steps - 1 - step, x


def check_finite(x: Tensor, step: int) -> None:
    """Raise InputError if latents are not finite after a step: no step makes them so again."""
    if not x.isfinite().all():
        raise InputError(
            f"pipeline: its latents are not finite after step {step}: networks, a guidance scale "
            "and weights of steering that keep them finite are needed."
        )
