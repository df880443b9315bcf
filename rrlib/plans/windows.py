"""Windows of trajectories as normalised plans, drawn where a network is trained."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from rrlib.plans import trajectories
from rrlib.plans.trajectories import Normaliser, Trajectories


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
        found = trajectories.windows(data, horizon)
        arrays = data.actions, data.observations, found, data.bounds[:, 1].copy()
        rows = [torch.from_numpy(array).to(device) for array in arrays]
        ruler = [torch.from_numpy(side).to(device) for side in normaliser.centre_and_half]
        return cls(*rows, *ruler, horizon)

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
