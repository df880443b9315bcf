"""Policies of action chunks given an observation (Diffusion Policy, Chi et al. 2023)."""

from typing import Any

import numpy as np
import torch
from diffusers.models.embeddings import get_timestep_embedding
from torch import Tensor, nn

from rrlib.errors import InputError
from rrlib.method.denoisers import Denoiser
from rrlib.plans.activations import Mish, mish
from rrlib.plans.trajectories import Trajectories

TIME_FEATURES = 32


class _Block(nn.Module):
    """Two convolutions; the condition scales and shifts what lies between them (FiLM)."""

    def __init__(self, inputs: int, outputs: int, context: int):
        super().__init__()
        self.first = nn.Conv1d(inputs, outputs, 5, padding=2)
        self.second = nn.Conv1d(outputs, outputs, 5, padding=2)
        self.norms = nn.ModuleList(nn.GroupNorm(8, outputs) for _ in range(2))
        self.film = nn.Linear(context, 2 * outputs)
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        scale, shift = self.film(context)[..., None].chunk(2, 1)
        inner = mish(self.norms[0](self.first(x))) * (1 + scale) + shift
        return mish(self.norms[1](self.second(inner))) + self.skip(x)


class ChunkNetwork(nn.Module):
    """A U-Net of action chunks [B, H, da] with a global condition [B, c].

    Args:
        width: da, numbers per action.
        context: c, numbers of the condition, such as an observation.
        channels: of the whole and of the halved horizon, multiples of 8.

    >>> network = ChunkNetwork(width=2, context=4)
    >>> network(torch.zeros(3, 8, 2), torch.tensor([0, 1, 2]), torch.zeros(3, 4)).shape
    torch.Size([3, 8, 2])
    """

    def __init__(self, width: int, context: int, channels: tuple[int, int] = (32, 64)):
        super().__init__()
        outer, inner = channels
        told = TIME_FEATURES + context
        self.context = context
        self.told = nn.Sequential(nn.Linear(told, inner), Mish(), nn.Linear(inner, inner))
        self.down = _Block(width, outer, inner)
        self.narrow = nn.Conv1d(outer, outer, 3, 2, 1)
        self.middle = _Block(outer, inner, inner)
        self.widen = nn.ConvTranspose1d(inner, outer, 4, 2, 1)
        self.up = _Block(2 * outer, outer, inner)
        self.out = nn.Conv1d(outer, width, 1)

    def forward(self, x: Tensor, t: Tensor, condition: Tensor) -> Tensor:
        """Prediction [B, H, da] for x [B, H, da] at t [B] under a condition [B, c].

        Raises:
            InputError: an odd horizon, or a condition of another width.
        """
        if x.ndim != 3 or x.shape[1] % 2:
            raise InputError(
                f"x of shape {tuple(x.shape)} is not allowed: chunks [B, H, da] of an even H are "
                "needed."
            )
        if condition.shape != (len(x), self.context):
            raise InputError(
                f"condition of shape {tuple(condition.shape)} is not allowed: "
                f"[{len(x)}, {self.context}] is needed."
            )
        time = get_timestep_embedding(t, TIME_FEATURES).to(x)
        context = self.told(torch.cat([time, condition], 1))
        fine = self.down(x.mT, context)
        coarse = self.widen(self.middle(self.narrow(fine), context))
        return self.out(self.up(torch.cat([fine, coarse], 1), context)).mT


def action_chunks(data: Trajectories, horizon: int, every: int = 1) -> tuple[Tensor, Tensor]:
    """Each run of H actions of an episode, [n, H, da], and the observation before it, [n, do].

    Args:
        data: trajectories; none of the runs crosses an episode's end.
        horizon: H.
        every: steps from one run to the next.

    Raises:
        InputError: a number out of range, or no episode of H steps.
    """
    if horizon < 1 or every < 1:
        raise InputError(
            f"horizon={horizon}, every={every} are not allowed: at least 1 is needed of each."
        )
    starts = [np.arange(first, end - horizon + 1, every) for first, end in data.bounds]
    rows = np.concatenate(starts)
    if not len(rows):
        raise InputError(
            f"horizon={horizon} is not allowed: an episode of so many steps is needed."
        )
    chunks = data.actions[rows[:, None] + np.arange(horizon)]
    return torch.from_numpy(chunks), torch.from_numpy(data.observations[rows])


def chunk_loss(
    denoiser: Denoiser, chunks: Tensor, conditions: Tensor, generator: torch.Generator
) -> Tensor:
    """Mean squared error of a network's x0 of chunks [B, H, da] under their conditions, [].

    Raises:
        InputError: a network that predicts something else than x_0.
    """
    if denoiser.schedule.prediction != "sample":
        raise InputError(
            f"scheduler: prediction_type={denoiser.schedule.prediction!r} is not allowed: this "
            "loss is of x0, 'sample' is needed."
        )
    t = torch.randint(denoiser.steps, (len(chunks),), generator=generator, device=chunks.device)
    x_t = denoiser.noise(chunks, t, generator)
    return (denoiser.told(conditions).predict(x_t, t) - chunks).square().mean()


def from_lerobot(policy: Any) -> Denoiser:
    """A LeRobot `DiffusionPolicy` as a denoiser of its action chunks [B, horizon, da].

    Its condition is what the policy makes of a batch of observations,
    ``policy.diffusion._prepare_global_conditioning(batch)``, [B, c]; chunks are in the policy's own
    normalised units. LeRobot normalises each data set by itself: two policies have a common x_t
    only if their action statistics agree (see `Normaliser.factor_to`).

    Args:
        policy: an object with `diffusion.unet(x, timestep, global_cond=...)` and
            `diffusion.noise_scheduler`, as LeRobot's class has.

    Raises:
        InputError: an object of another kind, or a scheduler that cannot be read.
    """
    model = getattr(policy, "diffusion", None)
    unet, scheduler = (getattr(model, name, None) for name in ("unet", "noise_scheduler"))
    if unet is None or scheduler is None:
        raise InputError(
            f"policy: {type(policy).__name__} is not allowed: LeRobot's DiffusionPolicy, with "
            "diffusion.unet and diffusion.noise_scheduler, is needed."
        )
    return Denoiser(lambda x, t, condition: unet(x, t, global_cond=condition), scheduler)
