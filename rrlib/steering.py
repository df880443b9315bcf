"""Guided sampling of any denoiser by any relative reward."""

from collections.abc import Iterator
from typing import get_args

import torch
from torch import Tensor

from rrlib.denoisers import Denoiser
from rrlib.errors import InputError
from rrlib.rewards import Place, RelativeReward


def denoise(
    denoiser: Denoiser,
    start: Tensor,
    generator: torch.Generator,
    *,
    reward: RelativeReward | None = None,
    weight: float = 1.0,
    place: Place | None = None,
    anyway: bool = False,
) -> Iterator[tuple[int, Tensor]]:
    """Ancestral sampling from noise; yields (t, x_t) from (T - 1, start) to (-1, the sample).

    A step draws x_{t-1} ~ N(mu + w c_t grad rho, sigma_t^2), which is Eq. 5 discretised: c_t turns
    a score difference into a mean difference (1 if rho was fitted to means already).
    With w = 1 and an exact reward the step is the expert's own.

    Args:
        denoiser: the base.
        start: noise, [B, ...], standard normal.
        generator: of the noise of the steps.
        reward: steers; None samples the base itself.
        weight: guidance scale w, at least 0.
        place: where grad rho is taken, "x_t" or "mu_base"; None takes the reward's own.
        anyway: allow a place other than the one where the reward was fitted.

    Raises:
        InputError: `weight` negative or not finite, or the place is not the reward's.
    """
    if not 0 <= weight < float("inf"):
        raise InputError(
            f"weight={weight} is not allowed: a finite number of at least 0 is needed."
        )
    if place not in (None, *get_args(Place)):
        allowed = " or ".join(map(repr, get_args(Place)))
        raise InputError(f"place={place!r} is not allowed: {allowed} is needed.")
    if reward and place not in (None, reward.place) and not anyway:
        raise InputError(
            f"place={place!r} is not allowed: this reward was fitted at {reward.place!r}; "
            "say anyway=True to take its gradient elsewhere."
        )
    return _denoise(denoiser, start, generator, reward, weight, place)


def _denoise(denoiser, x, generator, reward, weight, place):
    yield denoiser.steps - 1, x
    for step in reversed(range(denoiser.steps)):
        x = _step(denoiser, x, step, generator, reward, weight, place)
        yield step - 1, x


@torch.no_grad()
def _step(denoiser, x, step, generator, reward, weight, place) -> Tensor:
    t = torch.full((len(x),), step, device=x.device)
    mean = denoiser.mean(x, t)
    if reward and weight:
        point = x if (place or reward.place) == "x_t" else mean
        unit = denoiser.mean_per_score(t, x) if reward.target == "score" else 1.0
        mean = mean + weight * unit * reward.gradient(point, t)
    draw = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
    return mean + denoiser.deviation(t, x) * draw


def sample(
    denoiser: Denoiser, shape: tuple[int, ...], generator: torch.Generator, **guidance
) -> Tensor:
    """Samples of x_0, [B, ...]: the end of `denoise` from fresh noise; same keywords."""
    dtype = guidance.pop("dtype", torch.float32)
    start = torch.randn(shape, generator=generator, device=generator.device, dtype=dtype)
    for _, x in denoise(denoiser, start, generator, **guidance):
        last = x
    return last
