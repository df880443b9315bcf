"""Pools: where base and expert were compared, and what a reward is fitted to there.

The target is *expert minus base*, for scores (Eq. 14) and for means alike.
"""

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from rrlib.denoisers import Denoiser
from rrlib.errors import InputError
from rrlib.rewards import Place, Target, windows
from rrlib.schedules import wide


@dataclass(frozen=True, eq=False)
class Pool:
    """Where base and expert were compared, and by how much they differed.

    Attributes:
        x: points where the reward's gradient is taken, [N, ...].
        t: diffusion steps, [N].
        target: expert minus base, [N, ...].
        kind: what the target is and where x is, as in `RelativeReward`; None if nobody said.
        windows: steps of a window and whether they are strided, of a pool that was cut.
    """

    x: Tensor
    t: Tensor
    target: Tensor
    kind: tuple[Target, Place] | None = None
    windows: tuple[int, bool] | None = None

    def __len__(self) -> int:
        return len(self.t)

    def to(self, device: str) -> "Pool":
        """The same pool on a device."""
        parts = (part.to(device) for part in (self.x, self.t, self.target))
        return Pool(*parts, self.kind, self.windows)

    def cut(self, window: int, strided: bool = False) -> "Pool":
        """The pool of windows of `window` steps, [N H / h, h, D], for a windowed reward.

        With rho = mean of g over H / h windows, grad rho on a window is (h / H) grad g there, so
        fitting grad rho to the target is fitting grad g to H / h times the target, each window by
        itself. See `rewards.windows`.
        """
        x, target = (windows(part, window, strided) for part in (self.x, self.target))
        count = x.shape[1]
        t = self.t.repeat_interleave(count)
        target = target.flatten(0, 1) * count
        return Pool(x.flatten(0, 1), t, target, self.kind, (window, strided))

    def average(self, count: int) -> "Pool":
        """The pool [N, h / count, D] of means of `count` steps, of a pool of windows [N, h, D].

        For a reward that sees only such means (`rewards.WindowReward`). Times the root of `count`
        they are a projection, y = A x with orthonormal rows, so |A^T grad_y rho - target|^2 is
        |grad_y rho - A target|^2 plus what no such reward can change.
        """
        x, target = (
            part.unflatten(1, (-1, count)).mean(2) * count**0.5 for part in (self.x, self.target)
        )
        cut = self.windows and (self.windows[0] // count, self.windows[1])
        return Pool(x, self.t, target, self.kind, cut)

    def scale(self, steps: int) -> Tensor:
        """Root mean square of the target's entries at each t, [T].

        0 where both models agree at all points of a t, and where the pool has no point of it.
        """
        squares = self.target.flatten(1).square().mean(1)
        total = torch.zeros(steps, dtype=squares.dtype, device=squares.device)
        count = total.index_add(0, self.t, torch.ones_like(squares))
        total = total.index_add(0, self.t, squares)
        return (total / count.clamp(min=1)).sqrt()


@dataclass(frozen=True, eq=False)
class Comparisons:
    """Both models' x0 at the same points, from which either target is read, at either place.

    Attributes:
        x: noised samples x_t, [N, ...].
        t: diffusion steps, [N].
        base, expert: E[x_0 | x_t] by each model, [N, ...].
    """

    x: Tensor
    t: Tensor
    base: Tensor
    expert: Tensor

    def read(self, model: Denoiser, target: Target, place: Place) -> Pool:
        """The pool that a reward is fitted to.

        Args:
            model: either model; only its schedule counts.
            target: "score" (Eq. 14) or "mean" (Eq. 45 with its sign turned).
            place: "x_t" (Eq. 14) or "mu_base", where ancestral sampling applies the gradient.

        Raises:
            InputError: another target or place.
        """
        for name, value, kind in (("target", target, Target), ("place", place, Place)):
            if value not in get_args(kind):
                allowed = " or ".join(map(repr, get_args(kind)))
                raise InputError(f"{name}={value!r} is not allowed: {allowed} is needed.")
        convert = model.score_from_x0 if target == "score" else model.mean_from_x0
        mean = model.mean_from_x0(self.base, self.x, self.t) if place == "mu_base" else self.x
        mine, other = (convert(x0, self.x, self.t) for x0 in (self.base, self.expert))
        return Pool(mean.to(wide(mean)), self.t, other - mine, (target, place))
