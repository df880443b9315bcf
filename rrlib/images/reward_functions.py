"""A reward of images in the form in which codes that fine-tune image models call one."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from rrlib.errors import InputError, shown
from rrlib.images.pictures import Picture
from rrlib.images.scoring import ImageReward
from rrlib.method.rewards import RelativeReward

Images: TypeAlias = Tensor | np.ndarray | Sequence[Picture]
RewardFunction: TypeAlias = Callable[..., tuple[np.ndarray, dict[str, Any]]]


def reward_function(
    reward: ImageReward | RelativeReward, pipeline: DiffusionPipeline, batch: int = 64
) -> RewardFunction:
    """``fn(images, prompts, metadata) -> (scores, info)``, as ddpo-pytorch and flow_grpo call it.

    Images are a tensor [B, 3, H, W] of numbers from 0 to 1, a uint8 array [B, H, W, 3], or pictures
    that `images.pictures` takes; scores are float32 [B], the higher, the more the expert's; info is
    empty. Prompts and metadata are not looked at, for a reward of images has seen neither, but as
    many of them as images are needed, where there are any.

    Args:
        reward: of `images.pairs.learn`, `images.pairs.load` or `rrlib.load_reward`.
        pipeline: either of the pair, whose VAE turns pictures into latents.
        batch: images at a time.

    Raises:
        InputError: when it is called, with images of another form, or another number of prompts.
    """
    mine = reward if isinstance(reward, ImageReward) else ImageReward(reward, reward.about)

    def fn(
        images: Images,
        prompts: Sequence[str] | None = None,
        metadata: Iterable[Any] | Mapping | None = None,
    ) -> tuple[np.ndarray, dict[str, Any]]:
        found = _pictures(images)
        if prompts is not None and len(prompts) != len(found):
            raise InputError(
                f"prompts: {len(prompts)} for {len(found)} images are not allowed: one for each is "
                "needed."
            )
        return mine.score(found, pipeline, batch).numpy().astype(np.float32), {}

    return fn


def _pictures(images: Images) -> Sequence[Picture]:
    """Pictures of a batch of whatever form."""
    if isinstance(images, np.ndarray) and images.ndim != 4:
        raise InputError(
            f"images: an array of shape {images.shape} is not allowed: [B, H, W, 3] is needed."
        )
    if not isinstance(images, Tensor):
        return list(images)
    low, high = (float(images.min()), float(images.max())) if images.numel() else (0.0, 0.0)
    if images.ndim != 4 or images.shape[1] != 3 or not images.is_floating_point():
        told = f"a {images.dtype} tensor {tuple(images.shape)}"
    elif not -0.01 <= low <= high <= 1.01:  # rounding, and NaN, which is no number
        told = f"numbers from {low:.3g} to {high:.3g}"
    else:
        pixels = (images.float() * 255).round().clamp(0, 255).to(torch.uint8)
        return list(pixels.permute(0, 2, 3, 1).cpu().numpy())
    raise InputError(
        f"images: {shown(told)} is not allowed: a tensor [B, 3, H, W] of numbers from 0 to 1 is "
        "needed."
    )
