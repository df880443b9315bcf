"""What a chapter's numbers would cost, said before anything is begun.

Estimates, good to a factor of three: they tell a run from one that nobody means.
"""

import math
import os
from dataclasses import dataclass

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
