"""What a chapter's numbers, or a recipe's, would cost, said before anything is begun.

Estimates, good to a factor of three: they tell a run from one that nobody means. By rates of one
core: MuJoCo with the controller of a maze makes 150 000 steps a second; a training step of a U-Net
is 100 x batch x steps x (widest channels)^2 operations, 60e9 a second, and 17 ms of its own; one of
the perceptrons 30e9 a second, and 5 ms.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from rrlib.errors import InputError, shown

CUDA = 20  # a GPU over one core here: the paper's P40 takes 86 ms where a core takes 1.7 s
# The paper's own mazes are 18 days of diffusers and 13 of rewards on a GPU, by its own rates.
MOST_DAYS = 31


@dataclass(frozen=True)
class Cost:
    """Memory of one process, and hours of one core, or of the GPU where there is one."""

    gigabytes: float = 0.0
    hours: float = 0.0

    def __str__(self) -> str:
        parts = []
        if self.gigabytes >= 1:
            parts.append(f"{_rounded(self.gigabytes)} GB of memory")
        if self.hours >= 24:
            parts.append(f"{_rounded(self.hours / 24)} days")
        elif self.hours >= 1 or not parts:
            parts.append(f"{_rounded(max(self.hours, 0.1))} hours")
        return f"about {' and '.join(parts)}"

    def excess(self) -> str:
        """What this machine does not have of it, or an empty string."""
        if self.gigabytes > memory():
            return f"this machine has {_rounded(memory())} GB of memory"
        return f"{MOST_DAYS} days are the most" if self.hours > 24 * MOST_DAYS else ""


def memory() -> float:
    """Memory of this machine, GB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9


def _rounded(number: float) -> str:
    """Two digits of it, the rest zeros: "1,300"; a power of ten where even that is long."""
    digits = math.floor(math.log10(number))
    if digits > 8:
        return f"10^{digits}"
    rounded = round(number, 1 - digits)
    return f"{rounded:,.0f}" if digits > 0 else f"{rounded:,.1f}"


def check(gigabytes: float, hours: float, **fields: object) -> None:
    """Raise InputError if a recipe would take more memory or days than there are.

    Args:
        gigabytes, hours: what it would take.
        fields: name -> value of what that follows from; the message names them.
    """
    cost = Cost(gigabytes, hours)
    if excess := cost.excess():
        named = ", ".join(f"{name}={shown(value)}" for name, value in fields.items())
        raise InputError(f"{named} would take {cost}: smaller numbers are needed ({excess}).")


def number(n: int) -> float:
    """An integer to reckon with: Python's own have no end, a float's do."""
    return float(min(n, 10**30))


def u_net_step(batch: int, horizon: int, channels: Sequence[int], patch: int = 1) -> Cost:
    """One optimisation step of a diffuser of plans; a call of it takes a third."""
    rows, wide = number(batch) * number(horizon) / max(patch, 1), number(max(channels))
    return Cost(rows * wide * 240 / 1e9, (0.017 + 100 * rows * wide**2 / 60e9) / 3600)


def perceptron_step(batch: int, horizon: int, width: int, hidden: int, blocks: int) -> Cost:
    """One optimisation step of a perceptron that sees a whole plan."""
    row, hidden = number(horizon) * width, number(hidden)
    weights = 2 * row * hidden + 4 * number(blocks) * hidden**2
    seconds = 0.005 + 6 * number(batch) * weights / 30e9
    return Cost((16 * weights + 24 * number(batch) * row) / 1e9, seconds / 3600)


def check_training(each: Cost, steps: int, **shape: object) -> None:
    """InputError for too many steps of training, or too large ones."""
    check(each.gigabytes, number(steps) * each.hours, **shape, steps=steps)


def check_pool(plans: int, horizon: int, width: int) -> None:
    """InputError for too many comparisons of plans [H, D]: nine plans of each are held at once."""
    size = 9 * 4 * number(plans) * number(horizon) * width / 1e9
    check(size, 0.0, plans=plans, horizon=horizon)
