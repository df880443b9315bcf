"""What a run would take, roughly: so that one that no machine would end is refused at once."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rrlib.errors import InputError, shown

LONGEST = 40 * 86_400.0  # seconds of one core or GPU; a run beyond it was not meant
# The paper's GPU of 2016 makes a step of its maze diffuser in 86 ms (24 hours for a million), which
# is 30 times as fast as a core; today's are several times as fast as that one.
GPU = 100.0


@dataclass(frozen=True)
class Cost:
    """What something takes, to within a factor of two or three.

    Attributes:
        size: bytes of memory at the worst moment.
        seconds: of one core, or of one GPU.
    """

    size: float = 0.0
    seconds: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        """One after the other: times add up, of memory the larger part is needed."""
        return Cost(max(self.size, other.size), self.seconds + other.seconds)

    def times(self, n: int) -> "Cost":
        """The same n times, one after the other."""
        return Cost(self.size, self.seconds * counted(n))

    def __str__(self) -> str:
        return f"{_text(self.size, SIZES)} of memory and {_text(self.seconds, TIMES)}"


SIZES = (("EB", 1e18), ("PB", 1e15), ("TB", 1e12), ("GB", 1e9), ("MB", 1e6))
TIMES = (("years", 365.25 * 86_400), ("days", 86_400), ("hours", 3_600), ("minutes", 60))


def counted(n: int) -> float:
    """An integer as a number to reckon with: Python's own have no end, a float's do."""
    return float(min(n, 10**30))


def total(costs: Iterable[Cost]) -> Cost:
    """Of several, one after the other."""
    return sum(costs, Cost())


def check(cost: Cost, **parameters: object) -> None:
    """Raise InputError if a cost is more than this machine's memory, or than 40 days.

    Args:
        cost: what it would take.
        parameters: name -> value of what it follows from; the message names them.
    """
    room = memory()
    if cost.size <= room and cost.seconds <= LONGEST:
        return
    named = ", ".join(f"{name}={shown(value)}" for name, value in parameters.items())
    raise InputError(
        f"{named} would take about {cost} of one core or GPU: allowed is what needs at most "
        f"{_text(room, SIZES)}, the memory of this machine, and {_text(LONGEST, TIMES)}."
    )


def memory() -> float:
    """Bytes of memory that this process may use: the machine's, or what its container allows."""
    found = [float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))]
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            found.append(float(Path(place).read_text(encoding="ascii")))
        except (OSError, ValueError):  # no such file, or "max"
            continue
    return min(found)


def _text(value: float, units: tuple[tuple[str, float], ...]) -> str:
    name, unit = next((pair for pair in units if value >= pair[1]), units[-1])
    number = value / unit
    return f"{number:.3g} {name}" if number < 1e6 else f"over a million {name}"
