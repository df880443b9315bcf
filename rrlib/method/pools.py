"""What a reward is fitted to: points, steps of noise, and by how much two models differed there."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from rrlib.errors import InputError, check_one_of
from rrlib.method.noise.precision import wide

Target = Literal["score", "mean"]
Place = Literal["x_t", "mu_base"]


def windows(x: Tensor, window: int, strided: bool = False) -> Tensor:
    """Plans [B, H, D] cut into H / h windows of h steps, [B, H / h, h, D].

    Args:
        x: plans.
        window: h.
        strided: window j holds the steps j, j + H / h, ... (the paper's authors' code) instead of
            h contiguous steps (the paper's text).

    Raises:
        InputError: the horizon is no multiple of the window.
    """
    horizon = x.shape[1]
    if window < 1 or horizon % window:
        raise InputError(
            f"window={window} is not allowed: a divisor of the horizon {horizon} is needed."
        )
    if strided:
        return x.unflatten(1, (window, -1)).transpose(1, 2)
    return x.unflatten(1, (-1, window))


def check_kind(target: str, place: str) -> None:
    """Raise InputError for another target or place than there are."""
    check_one_of("target", target, Target)
    check_one_of("place", place, Place)


@dataclass(frozen=True, eq=False)
class Pool:
    """Where base and expert were compared, and by how much they differed.

    Attributes:
        x: points where the reward's gradient is taken, [N, ...].
        t: diffusion steps, [N].
        target: expert minus base, [N, ...].
        kind: what the target is and where x is, as in `RelativeReward`; None if nobody said.
        windows: steps of a window and whether they are strided, of a pool that was cut.
        condition: what both models were told of each point, [N, ...]; None for nothing.
    """

    x: Tensor
    t: Tensor
    target: Tensor
    kind: tuple[Target, Place] | None = None
    windows: tuple[int, bool] | None = None
    condition: Tensor | None = None

    def __len__(self) -> int:
        return len(self.t)

    def to(self, device: str) -> "Pool":
        """The same pool on a device."""
        names = ("x", "t", "target", "condition")
        parts = {name: part for name in names if (part := getattr(self, name)) is not None}
        return replace(self, **{name: part.to(device) for name, part in parts.items()})

    def cut(self, window: int, strided: bool = False) -> "Pool":
        """The pool of windows of `window` steps, [N H / h, h, D], for a windowed reward.

        With rho = mean of g over H / h windows, grad rho on a window is (h / H) grad g there, so
        fitting grad rho to the target is fitting grad g to H / h times the target, each window by
        itself. See `windows`.
        """
        x, target = (windows(part, window, strided) for part in (self.x, self.target))
        count = x.shape[1]
        t, condition = self.t.repeat_interleave(count), self.condition
        if condition is not None:
            condition = condition.repeat_interleave(count, 0)
        target = target.flatten(0, 1) * count
        return Pool(x.flatten(0, 1), t, target, self.kind, (window, strided), condition)

    def average(self, count: int) -> "Pool":
        """The pool [N, h / count, D] of means of `count` steps, of a pool of windows [N, h, D].

        For a reward that sees only such means (`plans.rewards.WindowReward`). Times the root of
        `count` they are a projection, y = A x with orthonormal rows, so |A^T grad_y rho - target|^2
        is |grad_y rho - A target|^2 plus what no such reward can change.
        """
        x, target = (
            part.unflatten(1, (-1, count)).mean(2) * count**0.5 for part in (self.x, self.target)
        )
        cut = self.windows and (self.windows[0] // count, self.windows[1])
        return replace(self, x=x, target=target, windows=cut)

    def scale(self, steps: int) -> Tensor:
        """Root mean square of the target's entries at each t, [T].

        0 where both models agree at all points of a t, and where the pool has no point of it.
        """
        squares = self.target.to(wide(self.target)).flatten(1).square().mean(1)
        total = torch.zeros(steps, dtype=squares.dtype, device=squares.device)
        count = total.index_add(0, self.t, torch.ones_like(squares))
        total = total.index_add(0, self.t, squares)
        return (total / count.clamp(min=1)).sqrt()
