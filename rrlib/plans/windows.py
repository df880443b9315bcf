"""Windows of trajectories as normalised plans, drawn where a network is trained."""

from dataclasses import dataclass
from typing import Self

import numpy as np
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
        stops: end of each episode, [N].
        counts: windows of each episode and of those before it, [N].
        ahead: first step of a window less its number, for each episode, [N].
        centre, half: of the normaliser, [da + do].
        windows: how many there are.
        horizon: H, steps of a window.
    """

    actions: Tensor
    observations: Tensor
    stops: Tensor
    counts: Tensor
    ahead: Tensor
    centre: Tensor
    half: Tensor
    windows: int
    horizon: int

    @classmethod
    def of(
        cls, data: Trajectories, normaliser: Normaliser, horizon: int, device: str | torch.device
    ) -> Self:
        """Of all episodes, see `trajectories.windows`; on the CPU no number is copied."""
        starts, stops = data.bounds.T
        each = trajectories.window_counts(data, horizon)
        counts = np.cumsum(each)
        arrays = {
            "actions": data.actions,
            "observations": data.observations,
            "stops": stops.copy(),
            "counts": counts,
            "ahead": starts - counts + each,
        }
        arrays |= zip(("centre", "half"), normaliser.centre_and_half, strict=True)
        there = {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
        return cls(windows=int(each.sum()), horizon=horizon, **there)

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """n plans [n, H, da + do], actions first; the generator is of this device."""
        device = self.counts.device
        which = torch.randint(self.windows, (n,), generator=generator, device=device)
        episodes = torch.searchsorted(self.counts, which, right=True)
        starts = (which + self.ahead[episodes])[:, None]
        steps = starts + torch.arange(self.horizon, device=device)  # [n, H]
        rows = torch.minimum(steps, self.stops[episodes][:, None] - 1)
        actions = self.actions[rows].masked_fill((steps > rows)[..., None], 0.0)
        plans = torch.cat([actions, self.observations[rows]], -1)
        return (plans - self.centre) / self.half
