"""Planning as inference on a line of four places, by enumeration.

A walk begins at place 0, its reward is minus the distance to `GOAL`. Its actions are -1 or +1 with
equal chances, and slip: with probability `SLIP` the other one happens.
"""

import functools
import itertools

import numpy as np

GOAL, STEPS, SLIP = 3, 5, 0.1
SLIPS = ((1, 1 - SLIP), (-1, SLIP))
MOVES = [(a * s, 0.5 * p) for a in (-1, 1) for s, p in SLIPS]  # and their chances


def step(place: int, move: int) -> int:
    """Where a move ends."""
    return min(max(place + move, 0), GOAL)


@functools.cache
def message(place: int, left: int) -> float:
    """p(all optimality variables to come | place), with `left` steps to go."""
    ends = [(step(place, move), chance) for move, chance in MOVES if left > 0]
    return sum(p * np.exp(end - GOAL) * message(end, left - 1) for end, p in ends) if ends else 1.0


@functools.cache
def best(place: int, left: int) -> float:
    """Largest mean return of any policy from here: it chooses the action, the slip is chance."""
    if not left:
        return 0.0
    ends = [[(step(place, a * s), p) for s, p in SLIPS] for a in (-1, 1)]
    return max(sum(p * (end - GOAL + best(end, left - 1)) for end, p in way) for way in ends)


def walks() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All walks of `STEPS` moves: places visited [N, STEPS], prior and planned probability [N]."""
    found = map(_walk, itertools.product(MOVES, repeat=STEPS))
    places, prior, planned = (np.array(part) for part in zip(*found, strict=True))
    return places, prior, planned


def _walk(moves: tuple[tuple[int, float], ...]) -> tuple[list[int], float, float]:
    places, prior, planned = [0], 1.0, 1.0
    for k, (move, chance) in enumerate(moves):
        places.append(step(places[-1], move))
        ahead, now = message(places[-1], STEPS - k - 1), message(places[-2], STEPS - k)
        prior, planned = prior * chance, planned * chance * np.exp(places[-1] - GOAL) * ahead / now
    return places[1:], prior, planned
