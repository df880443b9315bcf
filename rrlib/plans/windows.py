"""Windows of trajectories as normalised plans, drawn where a network is trained."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from rrlib.plans import trajectories
from rrlib.plans.normalisers import Normaliser
from rrlib.plans.trajectories import Trajectories


@dataclass(frozen=True, eq=False)
class Windows:
    """All windows of some trajectories, on one device: a batch of them asks for no other.

    What `trajectories.cut` and `Normaliser.normalise` make, number for number.

    Attributes:
        actions, observations: as they were recorded, [M, da] and [M, do].
        starts: first step of each window, [n].
        stops: end of each episode, [N].
        centre, half: of the normaliser, [da + do].
        horizon: H, steps of a window.
    """

    actions: Tensor
    observations: Tensor
    starts: Tensor
    stops: Tensor
    centre: Tensor
    half: Tensor
    horizon: int

    @classmethod
    def of(
        cls, data: Trajectories, normaliser: Normaliser, horizon: int, device: str | torch.device
    ) -> Self:
        """Of all episodes, see `trajectories.windows`; on the CPU no number is copied."""
        arrays = {
            "actions": data.actions,
            "observations": data.observations,
            "starts": trajectories.windows(data, horizon),
            "stops": data.bounds[:, 1].copy(),
        }
        arrays |= zip(("centre", "half"), normaliser.centre_and_half, strict=True)
        there = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        return cls(horizon=horizon, **there)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n plans [n, H, da + do], actions first; the generator is of this device."""
        device = self.starts.device
        rows = torch.randint(len(self.starts), (n,), generator=generator, device=device)
        starts = self.starts[rows]
        stops = self.stops[torch.searchsorted(self.stops, starts, right=True)]
        steps = starts[:, None] + torch.arange(self.horizon, device=device)  # [n, H]
        rows = torch.minimum(steps, stops[:, None] - 1)
        actions = self.actions[rows].masked_fill((steps > rows)[..., None], 0.0)
        plans = torch.cat([actions, self.observations[rows]], -1)
        return (plans - self.centre) / self.half
