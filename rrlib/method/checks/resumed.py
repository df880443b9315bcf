"""What a checkpoint remembers of what its run was fitted to: no other fit goes on from it."""

from typing import Any

import torch
from torch import Tensor

ROWS = 1024  # at most, of a pool, that are looked at
NUMBERS = 2**20  # at most, of one of its parts
DIRECTIONS = 4


def numbers_of(pool: Any, unit: Tensor | None = None) -> list[float]:
    """A few numbers that tell pools apart, [1 + 6 for each part]; looked at once, before any step.

    Of each part the numbers of a row, the logarithm of the root mean square, and projections on
    random directions, about standard normal. A run that goes on may be on another machine, where
    what its models say differs by rounding: the numbers then do so, too, and by no more.

    Args:
        pool: of x, t and target (and a condition), see `pools.Pool`; its rows may lie on disk.
        unit: of the network's output at each t, [T], if it has one.
    """
    found = [float(len(pool))]
    for name in ("x", "t", "target", "condition"):
        part = getattr(pool, name, None)
        if part is not None:
            width = part[torch.zeros(1, dtype=torch.long, device=pool.t.device)].numel()
            count = min(len(pool), ROWS, max(1, NUMBERS // width))
            rows = torch.linspace(0, len(pool) - 1, count, dtype=torch.float64).long()
            found += [float(width), *_projections(part[rows.to(pool.t.device)])]
    return found if unit is None else [*found, float(len(unit)), *_projections(unit)]


def _projections(values: Tensor) -> list[float]:
    """The logarithm of the root mean square, and that many projections, of numbers."""
    flat = values.detach().cpu().double().flatten()
    size = float(flat.square().mean().sqrt().clamp(min=1e-30))
    draws = torch.Generator().manual_seed(0)
    told = [float(torch.tensor(size).log())]
    for _ in range(DIRECTIONS):
        direction = torch.randn(len(flat), generator=draws).double()
        told.append(float(direction @ flat) / (size * len(flat) ** 0.5))
    return [round(value, 4) for value in told]
