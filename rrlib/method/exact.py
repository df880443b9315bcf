"""The difference that a reward is fitted to, in a reward's place."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rrlib.method.comparisons import aligned
from rrlib.method.denoisers import Denoiser
from rrlib.method.pools import Place, Target


@dataclass(frozen=True)
class ExactDifference:
    """The difference of two models' means itself, in a reward's place: no potential is fitted.

    Added to the base's mean with scale 1 it makes the expert's step; no reward can follow the
    difference more closely, so it is the ceiling of all of them.

    Attributes:
        base, expert: diffusion models of one space; the expert is read at the base's levels.
    """

    base: Denoiser
    expert: Denoiser
    target: ClassVar[Target] = "mean"
    place: ClassVar[Place] = "x_t"

    def __post_init__(self):
        object.__setattr__(self, "expert", aligned(self.base, self.expert))

    @property
    def steps(self) -> int:
        """T of their schedule."""
        return self.base.steps

    def gradient(
        self,
        x: Tensor,
        t: Tensor,
        condition: Tensor | None = None,
        base_mean: Tensor | None = None,
    ) -> Tensor:
        """Expert's mean minus base's at (x, t), [B, ...], under a condition if there is one.

        base_mean: the base's, where it is known already; None asks the base.
        """
        with torch.no_grad():
            if base_mean is None:
                base_mean = self.base.told(condition).mean(x, t)
            return self.expert.told(condition).mean(x, t) - base_mean
