"""How a cost grows: the exponent of a power law, by least squares of logarithms."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from .timing import seconds


@dataclass(frozen=True)
class Growth:
    """A cost that is measured at several sizes.

    Attributes:
        key: of the results file.
        name: what is done, in words.
        of: what grows, in words.
        sizes: at least three, ascending.
        make: size -> what is timed there.
    """

    key: str
    name: str
    of: str
    sizes: Sequence[int]
    make: Callable[[int], Callable[[], object]]


@dataclass(frozen=True)
class Exponent:
    """Exponent of a power law, and Student's interval of the slope, 95 %."""

    value: float
    low: float
    high: float


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> Exponent:
    """The p of cost = c size^p.

    Args:
        sizes: at least three that differ, positive.
        costs: of each, positive.
    """
    found = stats.linregress(np.log(sizes), np.log(costs))
    half = stats.t.ppf(0.975, len(sizes) - 2) * found.stderr
    return Exponent(float(found.slope), float(found.slope - half), float(found.slope + half))


def measured(growth: Growth, rounds: int) -> tuple[Exponent, list[float]]:
    """The exponent, and the seconds at each size, medians of rounds through all sizes."""
    calls = [growth.make(size) for size in growth.sizes]
    for call in calls:
        call()
    found = np.array([[seconds(call) for call in calls] for _ in range(rounds)])
    costs = np.median(found, axis=0)
    return exponent(growth.sizes, costs), costs.tolist()
