"""What the worlds' recipes would cost: one that no machine would end is refused when it is made.

By rates of one core, good to a factor of three: MuJoCo with the controller of a maze makes 150 000
steps a second; a training step of a U-Net is 100 x batch x steps x (widest channels)^2 operations,
60e9 a second, and 17 ms of its own; one of the perceptrons 30e9 a second, and 5 ms.
"""

from collections.abc import Sequence

from rrlib.errors import InputError, shown
from rrlib.lab.costs import Cost


def check(gigabytes: float = 0.0, seconds: float = 0.0, **fields: object) -> None:
    """Raise InputError if a recipe would take more memory or days than there are.

    Args:
        gigabytes, seconds: what it would take.
        fields: name -> value of what that follows from; the message names them.
    """
    cost = Cost(gigabytes, seconds / 3600)
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
    seconds = number(steps) * each.hours * 3600
    check(each.gigabytes, seconds, **shape, steps=steps)


def check_pool(plans: int, horizon: int, width: int) -> None:
    """InputError for too many comparisons of plans [H, D]: nine plans of each are held at once."""
    size = 9 * 4 * number(plans) * number(horizon) * width / 1e9
    check(size, plans=plans, horizon=horizon)
