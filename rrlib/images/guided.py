"""Pipelines of images as denoisers: classifier-free guidance, plain or safe, of any kind.

The unsafe and the safe model of the paper's section 5.3 share their weights; they differ in the
guided noise, the epsilon by which a step is taken.
So the pair that is compared is two `Guided` samplers, and not two U-Nets.
Whatever a network predicts, a sampler says it as noise, at levels of x = sqrt(abar) x_0 + ... eps.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import InitVar, dataclass
from functools import cached_property

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor

from rrlib.errors import InputError, shown
from rrlib.images import adapters, pipelines
from rrlib.images.kinds.checks import whole
from rrlib.images.kinds.choice import kind_of
from rrlib.images.kinds.protocol import Kind, Levels, device_of, dtype_of
from rrlib.images.safety import CONCEPT, CONFIGURATIONS, SafeGuidance, safe_direction
from rrlib.method.denoisers import Denoiser
from rrlib.method.networks.calls import check_still


@dataclass(frozen=True)
class Guided:
    """A pipeline's sampler: guided noise, and the DDIM step that it is used for.

    Steps are counted from 0, the noisiest. What a sampling run gathers (the momentum of safe
    guidance) is handed in and out, so a sampler may serve many runs at once.

    Attributes:
        pipeline: of one of the kinds in `kinds.choice`.
        steps: of DDIM; on a flow's levels they are Euler's.
        scale: s_g of classifier-free guidance, or the guidance that Flux is told; without a meaning
            where no text is taken.
        safety: settings of safe guidance; None for plain guidance.
        concept: what safe guidance turns from.
        negative_prompt: none; what pipelines know by this name is refused.
        adapters: names of adapters (LoRA) that are on whenever this sampler asks the pipeline, and
            no others; () for none, None leaves the pipeline as it is. One pipeline can so be both
            base and expert, its weights in memory once.
        weights: of the adapters, one for each; None is 1 for each.
        size: height and width of the images in pixels; None takes the pipeline's own.

    Raises:
        InputError: a value of another type, fewer than one step, or more than the model has; a
            pipeline of no supported kind (see `kinds.choice`), or adapters that it has not.
    """

    pipeline: DiffusionPipeline
    steps: int = 50
    scale: float = 7.5
    safety: SafeGuidance | None = None
    concept: str = CONCEPT
    negative_prompt: InitVar[str] = ""
    adapters: tuple[str, ...] | None = None
    weights: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None

    def __post_init__(self, negative_prompt: str):
        if negative_prompt:
            raise InputError(
                f"negative_prompt={shown(negative_prompt)} is not allowed: guidance starts at the "
                "empty text (safety and concept turn from another)."
            )
        model = self.model
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
        if self.safety and not model.guided:
            raise InputError(
                f"safety={shown(self.safety)} is not allowed: a pipeline that is guided from the "
                "empty text to a prompt is needed."
            )
        self._check_size()
        adapters.check(self.pipeline, self.adapters, self.weights)
        _ = self.levels
        if self.safety and self.safety.warmup >= self.steps:
            warnings.warn(
                f"steps={self.steps} is no more than the warm-up of {self.safety.warmup} steps, so "
                "safe guidance does nothing.",
                stacklevel=3,
            )

    def _check_size(self) -> None:
        size, unit = self.size, self.model.factor * self.model.multiple
        if size is None:
            return
        sides = size if isinstance(size, tuple | list) else ()
        if len(sides) != 2 or not all(whole(n, 1, 10**6) and n % unit == 0 for n in sides):
            raise InputError(
                f"size={shown(size)} is not allowed: height and width in pixels, multiples of "
                f"{unit}, are needed."
            )

    @cached_property
    def model(self) -> Kind:
        """The pipeline as one of its kind."""
        return kind_of(self.pipeline)

    @cached_property
    def levels(self) -> Levels:
        """Where it steps, and what its network is asked there."""
        found = self.model.levels(self.steps, self.shape)
        found.scheduler.set_timesteps(self.steps, device=self.device)
        return found

    @property
    def scheduler(self) -> DDIMScheduler:
        """DDIM of predicted noise on the sampler's levels; a step of it keeps no state."""
        return self.levels.scheduler

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return device_of(self.model.network)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one latent: channels, height, width."""
        channels, height, width = self.model.shape
        if self.size:
            height, width = (side // self.model.factor for side in self.size)
        return channels, height, width

    def adapted(self) -> AbstractContextManager[None]:
        """A block in which the pipeline has this sampler's adapters; after it, all is as before."""
        return adapters.adapted(self.pipeline, self.adapters, self.weights)

    def condition(self, prompts: Sequence[str] | int, truncate: bool = False) -> tuple[Tensor, ...]:
        """What the network is told of the empty text, the prompts and (safe) the concept.

        Once per prompt, however many steps follow.

        Args:
            prompts: texts; of a pipeline that takes none, the number of images.
            truncate: cut a prompt where the tokenizer ends, instead of refusing it.

        Returns:
            Each part of it, [2 or 3, B, ...], or [1, B, ...] where no guidance starts at the empty
            text; of Stable Diffusion one part, the embeddings. Nothing where no text is taken.

        Raises:
            InputError: a prompt is empty or too long, or none is taken, see `pipelines.embed`; or
                the network is in training mode, see `calls.check_still`.
        """
        check_still("pipeline", self.model.network)
        texts = ["", *([self.concept] if self.safety else [])] if self.model.guided else []
        with self.adapted():
            asked = pipelines.embed(self.pipeline, prompts, truncate)
            # The concept is cut where the tokenizer ends, as its authors' own pipeline does.
            fixed = [pipelines.embed(self.pipeline, [text], True, blank=True) for text in texts]
        rows = [*fixed[:1], asked, *fixed[1:]]
        return tuple(
            torch.stack([row[k].expand_as(part) for row in rows]) for k, part in enumerate(asked)
        )

    @torch.no_grad()
    def noise(
        self, x: Tensor, step: int, texts: tuple[Tensor, ...], momentum: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The guided noise, and the momentum after this step; float32 whatever the networks' type.

        Args:
            x: latents, [B, C, H, W].
            step: from 0, the noisiest.
            texts: of `condition`.
            momentum: what the step before gave; None at first.
        """
        return self._noise(x, self._time(step), step, texts, momentum)

    def _noise(self, x, t, step, texts, momentum):
        copies = len(texts[0]) if texts else 1
        inputs = x.float().repeat(copies, *[1] * (x.ndim - 1))
        times = t if t.ndim == 0 else t.repeat(copies)
        told = tuple(part.flatten(0, 1) for part in texts)
        noises = self._epsilon(inputs, times, told).chunk(copies)
        if copies == 1:
            return noises[0], momentum
        empty, prompt = noises[:2]  # and, of a safe sampler, the concept
        guidance = prompt - empty
        if self.safety:
            momentum = torch.zeros_like(guidance) if momentum is None else momentum
            turn, momentum = safe_direction(self.safety, empty, prompt, noises[2], momentum)
            if step >= self.safety.warmup:
                guidance = guidance - turn
        return empty + self.scale * guidance, momentum

    def _epsilon(self, x: Tensor, t: Tensor, told: tuple[Tensor, ...]) -> Tensor:
        """The network's prediction as noise, float32: of x [B, ...] at the level t, [] or [B]."""

        def network(x: Tensor, time: Tensor) -> Tensor:
            given = x.to(dtype_of(self.model.network))
            return self.model.predict(given, time, told, self.scale).float()

        with self.adapted():
            if self.levels.schedule.prediction == "epsilon":
                return network(x, t)
            return Denoiser(network, self.levels.schedule).epsilon(x, t.expand(len(x)))

    def advance(self, x: Tensor, noise: Tensor, step: int) -> Tensor:
        """The latents after DDIM's step by this noise, [B, C, H, W]."""
        self._check_step(step)
        return self.scheduler.step(noise, self._whole_times[step], x).prev_sample

    @cached_property
    def _whole_times(self) -> list[int]:
        """The levels of the steps as numbers: a device would be asked for each of them."""
        return self.scheduler.timesteps.tolist()

    def step_per_score(self, step: int) -> float:
        """What a unit of score adds to the step's result: DDIM's step is linear in the noise."""
        self._check_step(step)
        return self._steps_per_score[step]

    @cached_property
    def _steps_per_score(self) -> list[float]:
        """Of every step: worked out once, so that no step waits for a device."""
        return steps_per_score(self.scheduler, self.steps)

    def _time(self, step: int) -> Tensor:
        """The noise level of a step, [] where the networks are."""
        self._check_step(step)
        return self.scheduler.timesteps[step]

    def _check_step(self, step: int) -> None:
        if not 0 <= step < self.steps:
            raise InputError(
                f"step={shown(step)} is not allowed: a number from 0 to {self.steps - 1} is needed."
            )

    def denoiser(
        self, texts: tuple[Tensor, ...], step: int = 0, momentum: Tensor | None = None
    ) -> Denoiser:
        """The contract of `denoisers.Denoiser` for these texts: x0, score and mean at any t.

        Args:
            texts: of `condition`; a call has the same B.
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


def steps_per_score(scheduler: DDIMScheduler, steps: int) -> list[float]:
    """What a unit of score adds to each of DDIM's steps, worked out on the CPU.

    Args:
        scheduler: predicts noise; its own run, if it is in one, is left alone.
        steps: of a run.
    """
    schedule = copy.deepcopy(scheduler)
    schedule.set_timesteps(steps)
    nothing, one = torch.zeros(1), torch.ones(1)
    found = []
    for t in schedule.timesteps:
        deviation = (1 - schedule.alphas_cumprod[t].cpu()).sqrt()
        found.append(-(deviation * schedule.step(one, t, nothing).prev_sample).item())
    return found


def denoise(
    guided: Guided,
    texts: tuple[Tensor, ...],
    x: Tensor,
    shift: Callable[[Tensor, int], Tensor] | None = None,
) -> Iterator[tuple[int, Tensor]]:
    """A run from noise x [B, C, H, W]; yields (steps to go, latents), (0, the image) last.

    Args:
        guided: the sampler.
        texts: of `Guided.condition`.
        x: noise.
        shift: (latents, step) -> what is added to the step's result, such as a reward's gradient
            times a weight; None adds nothing.

    Raises:
        InputError: latents that are not finite; said before the image is given, since no step
            makes them finite again and a look at each would have a GPU wait.
    """
    momentum, finite = None, []
    yield guided.steps, x
    for step in range(guided.steps):
        noise, momentum = guided.noise(x, step, texts, momentum)
        ahead = guided.advance(x, noise, step)
        x = ahead if shift is None else ahead + shift(x, step)
        finite.append(x.isfinite().all())
        if step == guided.steps - 1:
            _check_finite(torch.stack(finite))
        yield guided.steps - 1 - step, x


def _check_finite(finite: Tensor) -> None:
    """Raise InputError unless the latents of all steps [T] are finite: the one look at them."""
    if not all(found := finite.tolist()):
        raise InputError(
            f"pipeline: its latents are not finite after step {found.index(False)}: networks, a "
            "guidance scale and weights of steering that keep them finite are needed."
        )
