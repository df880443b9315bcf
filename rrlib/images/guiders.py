"""A reward of images as a guider of diffusers' modular pipelines."""

from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.guiders import ClassifierFreeGuidance
from diffusers.guiders.guider_utils import GuiderOutput
from torch import Tensor, nn

from rrlib.errors import InputError
from rrlib.images.guided import steps_per_score
from rrlib.images.scoring import check_schedule
from rrlib.method.rewards import RelativeReward


class RewardGuidance(ClassifierFreeGuidance):
    """Classifier-free guidance, and the gradient of a relative reward, in a modular pipeline.

    ``pipeline.update_components(guider=RewardGuidance(reward, pipeline.scheduler, 1.0))``

    Each step's noise becomes eps - w sqrt(1 - abar) grad rho (Eq. 5 in noises) at the latents that
    the network sees. Of a reward of target "mean", which is fitted to steps of DDIM as
    `images.pairs.learn` does, grad rho is divided by what a unit of score adds to the step.

    Args:
        reward: fitted at "x_t", of as many steps of noise as the pipeline takes.
        scheduler: the pipeline's own, a DDIMScheduler that predicts noise.
        reward_scale: w; 0 leaves classifier-free guidance as it is.
        options: of `ClassifierFreeGuidance`, such as guidance_scale.

    Raises:
        InputError: another scheduler or place; when the pipeline runs, another number of steps, or
            other levels than those that the reward says it was fitted at.
    """

    def __init__(
        self,
        reward: RelativeReward,
        scheduler: DDIMScheduler,
        reward_scale: float = 1.0,
        **options: Any,
    ):
        super().__init__(**options)
        kind = type(scheduler).__name__
        if (
            not isinstance(scheduler, DDIMScheduler)
            or scheduler.config.prediction_type != "epsilon"
        ):
            raise InputError(
                f"scheduler: {kind} is not allowed: a DDIMScheduler that predicts noise is needed."
            )
        if reward.place != "x_t":
            raise InputError(
                f"reward: place={reward.place!r} is not allowed: one fitted at 'x_t' is needed, "
                "for a guider sees no means."
            )
        self.reward, self.scheduler, self.reward_scale = reward, scheduler, reward_scale
        self._seen: Tensor | None = None
        self._run: tuple[Tensor | None, list[float], list[float]] = (None, [], [])  # its tables
        self._hook: torch.utils.hooks.RemovableHandle | None = None

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Have the network tell which latents it is given."""
        super().prepare_models(denoiser)

        def see(_: nn.Module, arguments: tuple, options: dict) -> None:
            self._seen = arguments[0] if arguments else options["sample"]

        self._hook = denoiser.register_forward_pre_hook(see, with_kwargs=True)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """Let the network alone again."""
        super().cleanup_models(denoiser)
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        """The guided noise, with what the reward adds to it."""
        found = super().forward(pred_cond, pred_uncond)
        if not (self._enabled and self.reward_scale):
            return found
        steps = self.reward.steps
        if steps is None or self._num_inference_steps != steps or self._seen is None:
            raise InputError(
                f"num_inference_steps={self._num_inference_steps} is not allowed: "
                f"{steps}, the steps of the reward's fit, are needed."
            )
        x, step = self._seen, int(self._step)
        t = torch.full((len(x),), steps - 1 - step, device=x.device)
        gradient = self.reward.gradient(x.float(), t)
        deviation, per_score = self._tables(step)
        if self.reward.target == "mean":
            gradient = gradient / per_score
        added = self.reward_scale * deviation * gradient
        found.pred = found.pred - added.to(found.pred)
        return found

    def _tables(self, step: int) -> tuple[float, float]:
        """sqrt(1 - abar) of a step, and what a unit of score adds to DDIM's result of it."""
        schedule = self.scheduler
        if self._run[0] is not schedule.timesteps:  # a run has set its own
            check_schedule("scheduler", self.reward.about, schedule)
            levels = schedule.alphas_cumprod.cpu()[schedule.timesteps.cpu()]
            per_score = steps_per_score(schedule, len(schedule.timesteps))
            self._run = schedule.timesteps, (1 - levels).sqrt().tolist(), per_score
        _, deviations, per_score = self._run
        return deviations[step], per_score[step]
