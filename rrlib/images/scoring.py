"""A reward of images at work: it scores finished ones and steers those that are drawn."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor

from rrlib.errors import InputError
from rrlib.images import pipelines
from rrlib.images.guided import Guided
from rrlib.images.pictures import Picture, pictures
from rrlib.method.rewards import RelativeReward


@dataclass(frozen=True)
class ImageReward:
    """A relative reward of images.

    Attributes:
        reward: rho(x_t, t) of latents; t counts the steps still to go after this one.
        about: what its user must know, such as the held-out prompts' numbers, and `comparisons`,
            the models, prompts and schedule that it was fitted to (`images.comparisons.generate`).
    """

    reward: RelativeReward
    about: Mapping

    @torch.no_grad()
    def score(
        self,
        images: Tensor | Picture | Iterable[Picture],
        pipeline: DiffusionPipeline | None = None,
        batch: int = 64,
    ) -> Tensor:
        """rho of finished images at t = 0, [B], on the CPU: the higher, the more the expert's.

        The reward was fitted to the latents before the last step; that step is a small one.

        Args:
            images: latents [B, C, H, W], or pictures of any form that `pictures` takes, of any
                size and mode: they are turned, converted, cut and resized (`pictures.resized`).
            pipeline: either of the two, whose VAE turns pictures into latents.
            batch: images at a time.

        Raises:
            InputError: pictures without a pipeline, or none.
        """
        if not isinstance(images, Tensor):
            images = pictures(images)
            if pipeline is None:
                raise InputError(
                    "pipeline=None is not allowed with PIL images: the pipeline whose VAE turns "
                    "them into latents is needed."
                )
            shape = tuple(self.reward.network.mean.shape[1:])
            images = pipelines.encode(pipeline, images, shape=shape)
        device = next(self.reward.network.parameters()).device
        parts = (part.to(device, torch.float32) for part in images.split(batch))
        found = [
            self.reward(x, torch.zeros(len(x), dtype=torch.long, device=device)) for x in parts
        ]
        return torch.cat(found).cpu()

    def shift(self, x: Tensor, step: int, weight: float = 1.0) -> Tensor:
        """What steers `images.guided.denoise`: w grad rho, [B, C, H, W], for the step from 0.

        The reward is fitted to what a DDIM step of the expert adds to the base's, so with an exact
        reward and w = 1 the step is the expert's own. `steers` also checks whose step it is.

        Raises:
            InputError: a step that the reward was not fitted at.
        """
        steps = len(self.reward.network.unit)
        if not 0 <= step < steps:
            raise InputError(
                f"step={step} is not allowed: one from 0 to {steps - 1}, the last of the reward's "
                "steps, is needed."
            )
        t = torch.full((len(x),), steps - 1 - step, device=x.device)
        return weight * self.reward.gradient(x, t)

    def steers(self, guided: Guided, weight: float) -> Callable[[Tensor, int], Tensor]:
        """The `shift` that steers `images.guided.denoise`, of a reward in means or in scores.

        Raises:
            InputError: a sampler of other steps, timesteps or noise levels than the reward's fit.
        """
        self._check(guided)
        scores = self.reward.target == "score"

        def shift(x: Tensor, step: int) -> Tensor:
            worth = guided.step_per_score(step) if scores else 1.0
            return self.shift(x, step, weight * worth)

        return shift

    def _check(self, guided: Guided) -> None:
        """At t the reward knows latents of one noise level alone."""
        steps = len(self.reward.network.unit)
        if guided.steps != steps:
            raise InputError(
                f"guided: steps={guided.steps} is not allowed: {steps}, as the reward was fitted "
                "with, is needed."
            )
        check_schedule("guided", self.about, guided.scheduler)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file, weights rounded to float16."""
        self.reward.save(path, self.about)


def score(
    reward: RelativeReward,
    images: Tensor | Picture | Iterable[Picture],
    *,
    pipeline: DiffusionPipeline | None = None,
    batch: int = 64,
) -> Tensor:
    """`ImageReward.score` of a reward as `rrlib.load_reward` gives it."""
    return ImageReward(reward, reward.about).score(images, pipeline, batch)


def schedule(scheduler: DDIMScheduler) -> dict[str, list]:
    """A run's timesteps and the noise levels there (alphas_cumprod), from its first step."""
    timesteps = scheduler.timesteps.cpu()
    levels = scheduler.alphas_cumprod.cpu()[timesteps]
    return {"timesteps": timesteps.tolist(), "levels": levels.tolist()}


def check_schedule(name: str, about: Mapping, scheduler: DDIMScheduler) -> None:
    """Raise InputError unless a run has the levels that a reward says it was fitted at.

    Rewards of earlier versions do not say more than their steps.

    Args:
        name: of what has the scheduler, for the message.
        about: the reward's.
        scheduler: in a run of as many steps.
    """
    fitted = about.get("comparisons", {}).get("about") or {}
    for what, mine in schedule(scheduler).items():
        wanted = fitted.get(what, mine)
        if not np.allclose(mine, wanted, rtol=1e-4, atol=1e-9):
            raise InputError(
                f"{name}: {what} from {mine[0]:.6g} to {mine[-1]:.6g} are not allowed: those of "
                f"the reward's fit, from {wanted[0]:.6g} to {wanted[-1]:.6g}, are needed."
            )
