"""The numbers of plans: one normaliser for base and expert."""

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from rrlib.errors import InputError, shown
from rrlib.plans.trajectories import Trajectories

Plans = TypeVar("Plans", np.ndarray, torch.Tensor)


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Min-max to [-1, 1] per coordinate of a plan (actions, then observations).

    A coordinate that never varies goes to 0, shifted but not scaled, so it comes back unharmed.

    >>> ruler = Normaliser(low=np.float32([0, -1]), high=np.float32([4, 1]))
    >>> ruler.normalise(np.float32([[4, 0]])).tolist()
    [[1.0, 0.0]]
    >>> ruler.denormalise(np.float32([[1, 0]])).tolist()
    [[4.0, 0.0]]
    """

    low: np.ndarray  # [da + do] float32
    high: np.ndarray  # [da + do] float32

    @classmethod
    def fit(cls, *sets: Trajectories) -> "Normaliser":
        """One normaliser for all the sets given: base and expert must share it."""
        lows = [np.concatenate([s.actions.min(0), s.observations.min(0)]) for s in sets]
        highs = [np.concatenate([s.actions.max(0), s.observations.max(0)]) for s in sets]
        return cls(np.min(lows, axis=0), np.max(highs, axis=0))

    def to_arrays(self) -> dict[str, np.ndarray]:
        """Named arrays, as safetensors keeps them; ``Normaliser(**arrays)`` is the way back."""
        return {"low": self.low, "high": self.high}

    def normalise(self, plans: Plans) -> Plans:
        """Plans [..., da + do] (an array or a tensor) from their own units to [-1, 1]."""
        centre, half = self._centre_and_half(plans)
        return (plans - centre) / half

    def denormalise(self, plans: Plans) -> Plans:
        """Plans [..., da + do] (an array or a tensor) from [-1, 1] to their own units."""
        centre, half = self._centre_and_half(plans)
        return plans * half + centre

    def factor_to(self, other: "Normaliser") -> float:
        """What these numbers are multiplied by to be the other's: `Denoiser(..., scale=)` of it.

        Noise is alike in all numbers of a model, so two models have a common x_t only if their
        numbers differ by one factor.

        Raises:
            InputError: they differ by more.

        >>> base, expert = (Normaliser(np.float32([-a, -1]), np.float32([a, 1])) for a in (4, 4))
        >>> base.factor_to(expert)
        1.0
        """
        mine, other_half = self.high - self.low, other.high - other.low
        if self.low.shape != other.low.shape:
            raise InputError(
                f"normalisers of {len(self.low)} and {len(other.low)} numbers are not allowed: "
                "models of one space are needed."
            )
        with np.errstate(divide="ignore", invalid="ignore"):
            factors = np.where((mine > 0) & (other_half > 0), mine / other_half, np.nan)
        shifts = np.abs((self.high + self.low) - (other.high + other.low)) / 2
        factor = float(np.nanmedian(factors)) if not np.isnan(factors).all() else 1.0
        off = (np.abs(factors / factor - 1) > 1e-4) | (shifts > 1e-4 * np.where(mine > 0, mine, 1))
        off |= (mine > 0) != (other_half > 0)
        if off.any():
            raise InputError(
                f"normalisers that differ at {shown(off.nonzero()[0].tolist())} by more than one "
                "factor are not allowed, since their models have no common x_t: models that were "
                "trained with one normaliser are needed."
            )
        return factor

    @property
    def centre_and_half(self) -> tuple[np.ndarray, np.ndarray]:
        """Middle and half length of each coordinate's range, [da + do]; the length 1 for none."""
        half = (self.high - self.low) / 2
        return (self.high + self.low) / 2, np.where(half > 0, half, np.float32(1))

    def _centre_and_half(self, plans: np.ndarray | torch.Tensor):
        centre, half = self.centre_and_half
        if isinstance(plans, torch.Tensor):
            return torch.from_numpy(centre).to(plans), torch.from_numpy(half).to(plans)
        return centre, half


def standardiser(*sets: Trajectories) -> Normaliser:
    """One normaliser for all the sets: every coordinate gets mean 0 and deviation 1/2.

    Each set counts the same, however long. Where a few extreme values would stretch a min-max range
    (a robot that falls), this keeps the common ones apart; nothing is bounded then.
    """
    rows = [np.concatenate([s.actions, s.observations], 1).astype(float) for s in sets]
    centre = np.mean([r.mean(0) for r in rows], axis=0)
    variance = np.mean([((r - centre) ** 2).mean(0) for r in rows], axis=0)
    low, high = (centre + side * 2 * np.sqrt(variance) for side in (-1, 1))
    return Normaliser(low.astype(np.float32), high.astype(np.float32))
