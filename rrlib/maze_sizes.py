"""Sizes of networks and budgets for mazes, and the horizons that fit them.

It imports nothing that is slow, so that a chapter can refuse a horizon at once.
"""

import math
from dataclasses import dataclass

from rrlib.errors import InputError


@dataclass(frozen=True)
class Sizes:
    """Networks and budgets; the fields of `MazeDiffuser`, `MazePool` and `MazeRewards`.

    Attributes:
        expert_share: optimisation steps of an expert over those of its base.
        from_base: whether an expert begins at the base's weights.
    """

    channels: tuple[int, ...] = (16, 32, 64)
    patch: int = 1
    diffusion_steps: int = 50
    batch: int = 32
    learning_rate: float = 2e-3
    given: float = 0.5
    expert_share: float = 0.75
    from_base: bool = True
    plans: int = 20_000
    window: int = 32
    hidden: tuple[int, ...] = (128, 64, 32)
    average: int = 1
    reward_batch: int = 256
    reward_rate: float = 2e-3


def sizes(size: str, name: str) -> Sizes:
    """Sizes for a maze: "small" (quick), "medium" (full) or "paper" (Tables 2 and 3).

    Tables 2 and 3 are about rewards; the paper's diffusers are its authors' (three resolutions,
    100 steps of noise, batches of 128, a rate of 2e-4, experts from scratch).
    """
    if size == "small":
        return Sizes()
    if size == "medium":
        return Sizes((32, 64, 128), 4, 50, 32, 2e-3, 0.25, 0.5, True, 8_000, 128, (96, 64, 32), 4)
    own = (64, (32,)) if name == "open" else (4, (128, 64, 32))
    diffuser = ((32, 128, 256), 1, 100, 128, 2e-4, 0.25, 1.0, False)
    return Sizes(*diffuser, 100_000, *own, reward_batch=256, reward_rate=5e-5)


def check_horizon(horizon: int, size: str, *names: str) -> None:
    """Raise InputError unless plans of `horizon` steps fit diffusers and rewards of these mazes."""
    for name in names:
        found = sizes(size, name)
        factor = math.lcm(found.window, found.patch * 2 ** (len(found.channels) - 1))
        if horizon < factor or horizon % factor:
            raise InputError(
                f"horizon={horizon} is not allowed: a multiple of {factor}, which the networks "
                f"of size='{size}' work on, is needed."
            )
