"""The walking robots: what D4RL calls them, what they see and do, and its scale of returns."""

from dataclasses import dataclass

from rrlib.errors import InputError


@dataclass(frozen=True)
class Environment:
    """A walking robot.

    Attributes:
        name: as in D4RL.
        gymnasium: Gymnasium's name without the version.
        observation, action: numbers per step.
        lowest, highest: returns that D4RL scores 0 (random actions) and 100 (an expert).
        height: of the torso when an episode starts, the first number of an observation.
    """

    name: str
    gymnasium: str
    observation: int
    action: int
    lowest: float
    highest: float
    height: float

    @property
    def width(self) -> int:
        """Numbers per step of a plan: action, then observation."""
        return self.action + self.observation


ENVIRONMENTS = {
    "halfcheetah": Environment("halfcheetah", "HalfCheetah", 17, 6, -280.178953, 12135.0, 0.0),
    "hopper": Environment("hopper", "Hopper", 11, 3, -20.272305, 3234.3, 1.25),
    "walker2d": Environment("walker2d", "Walker2d", 17, 6, 1.629008, 4592.3, 1.25),
}


def load(name: str) -> Environment:
    """The environment "halfcheetah", "hopper" or "walker2d"; InputError on any other name."""
    if name not in ENVIRONMENTS:
        known = ", ".join(ENVIRONMENTS)
        raise InputError(f"environment = '{name}' is unknown: allowed are {known}.")
    return ENVIRONMENTS[name]
