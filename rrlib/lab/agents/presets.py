"""What the chapter on agents may be asked for; it imports nothing that is slow."""

from types import SimpleNamespace

from rrlib.lab import parameters as rules
from rrlib.lab.costs import Cost

PARAMETERS = {
    "worlds": rules.several_of("pointmaze", "hopper"),
    "balls": rules.integer(10, 10_000),
    "robots": rules.integer(2, 10_000),
    "environment": rules.several_of("halfcheetah", "hopper", "walker2d"),
    "transitions": rules.integer(5_000, 20_000_000),
    "cloning_steps": rules.integer(1, 1_000_000),
    "fit_steps": rules.integer(1, 1_000_000),
}


def cost(asked: SimpleNamespace) -> Cost:
    """What the chapter costs: models of steps, rewards, clones, data, and what agents play."""
    seconds = 0.03 * asked.fit_steps * len(asked.worlds)
    seconds += 0.003 * asked.cloning_steps * len(asked.environment)
    seconds += 2 * asked.transitions * len(asked.environment) / 5e3
    seconds += asked.balls * 300 * 6 / 1e5 + asked.robots * 1000 * 8 / 5e3
    numbers = 24 * 4 * asked.transitions + asked.balls * 300 * 8 + asked.robots * 1000 * 24
    return Cost(8 * numbers / 1e9, seconds / 3600)
