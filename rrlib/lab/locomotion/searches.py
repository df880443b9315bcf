"""Rollouts of a chapter, and the search for the guidance scale and the last steered step."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from rrlib import training
from rrlib.lab.locomotion.recipes import LocomotionDiffuser
from rrlib.lab.locomotion.rewards import LocomotionReward, LocomotionRollouts
from rrlib.locomotion import world as locomotion

if TYPE_CHECKING:
    from rrlib.lab.notebook import Study

Pair = tuple[LocomotionDiffuser, LocomotionDiffuser]
Guide = LocomotionReward | LocomotionDiffuser | Pair | None  # or another of LocomotionRollouts'

SELECTION, REPORT, STUDY = "selection", "report", "study"  # uses of rollouts, with seeds of its own


def rollouts(
    base: LocomotionDiffuser, chosen: SimpleNamespace, use: str, guide: Guide = None, **guidance
) -> LocomotionRollouts:
    """Rollouts as a chapter's parameters have them.

    Args:
        base: the planner.
        chosen: checked `episodes` (for SELECTION `search`, so many per candidate), `steps`,
            `executed`, `denoising`, `version` and `workers`.
        use: SELECTION, REPORT or STUDY; other uses start elsewhere.
        guide: what steers, see `LocomotionRollouts`.
        guidance: weight, place, onto, until.
    """
    names = "episodes", "steps", "executed", "denoising", "version", "workers"
    options = {name: getattr(chosen, name) for name in names}
    if use == SELECTION:
        options["episodes"] = chosen.search
    seed = training.derived_seed(base.seed, use) % 2**31
    return LocomotionRollouts(base, guide, seed=seed, **options | guidance)


def play(study: "Study", runs: Mapping[Hashable, LocomotionRollouts]) -> dict[Hashable, np.ndarray]:
    """Normalised scores [n] of a chapter's rollouts by name, all of them played first."""
    found = study.obtain_all(runs.values())
    return {
        name: locomotion.normalised_score(run.base.environment, one["returns"])
        for (name, run), one in zip(runs.items(), found, strict=True)
    }


@dataclass(frozen=True)
class Choice:
    """What a search over guidance scales and late stops found.

    Attributes:
        weight, until: the best by mean score.
        tried: (weight, until) -> mean score of every candidate.
    """

    weight: float
    until: int
    tried: dict[tuple[float, int], float]

    @property
    def guidance(self) -> dict[str, float | int]:
        """The best, as `rollouts` takes it."""
        return {"weight": self.weight, "until": self.until}


def choose(
    study: "Study",
    base: LocomotionDiffuser,
    guide: Guide,
    weights: Sequence[float],
    untils: Sequence[int],
    **guidance,
) -> Choice:
    """The scale and the last steered step with the best score, on seeds that report nothing.

    Args:
        study: of a chapter; what it has `chosen`, see `rollouts`.
        base: the planner that is steered.
        guide: what steers it.
        weights, untils: all combinations are tried.
        guidance: see `rollouts`.
    """
    tried = {}
    for until in untils:
        steered = guidance | {"weight": tuple(weights), "until": until}
        run = rollouts(base, study.chosen, SELECTION, guide, **steered)
        means = play(study, {until: run})[until].reshape(len(weights), -1).mean(1)
        tried |= {(w, until): float(m) for w, m in zip(weights, means, strict=True)}
    weight, until = max(tried, key=tried.get)
    return Choice(weight, until, tried)


def search(
    study: "Study", base: LocomotionDiffuser, methods: Mapping[str, tuple[Guide, dict]]
) -> dict[str, Choice]:
    """`choose` for every method, over the `weights` and `untils` of a chapter.

    Args:
        study: of the chapter.
        base: the planner that is steered.
        methods: method -> guide and guidance.
    """
    tried = study.chosen.weights, study.chosen.untils
    return {
        method: choose(study, base, guide, *tried, **how)
        for method, (guide, how) in methods.items()
    }


def forms(reward: Guide, at_x_t: Guide) -> dict[str, tuple[Guide, dict[str, str]]]:
    """The ways in which a gradient may steer: "mu_base", "x_t" and "authors".

    Args:
        reward: taken at the base's mean and added to it; or, as in the authors' code, taken at x_t
            and added to x_t before the mean is computed.
        at_x_t: taken at x_t and added to the mean (Eq. 5).

    Returns:
        form -> guide, and the guidance that `rollouts` takes.
    """
    return {
        "mu_base": (reward, {"place": "mu_base"}),
        "x_t": (at_x_t, {"place": "x_t"}),
        "authors": (reward, {"place": "x_t", "onto": "x_t"}),
    }


def reward_forms(
    reward: LocomotionReward, chosen: SimpleNamespace
) -> dict[str, tuple[Guide, dict[str, str]]]:
    """`forms` of an extracted reward; "x_t" has one that was fitted there.

    With `rounds` there is one more, "visited": as "mu_base", but fitted to what it led to as well.
    """
    found = forms(reward, replace(reward, place="x_t"))
    if chosen.rounds:
        found["visited"] = visited(reward, chosen), {"place": "mu_base"}
    return found


def visited(reward: LocomotionReward, chosen: SimpleNamespace) -> LocomotionReward:
    """The reward fitted anew, in `rounds`, to a pool that has been where it leads.

    In each round the base is steered by the reward of the round before, with w = 1, and what the
    robots did is added to the plans on which the two planners are compared (as in DAgger, Ross et
    al. 2011, with the planners in the place of its expert). No score or return is looked at.

    Args:
        reward: of the plans of both data sets alone.
        chosen: see `rollouts`; `rounds`, how many.
    """
    found, runs = reward, ()
    for k in range(chosen.rounds):
        steered = {"weight": 1.0, "place": "mu_base"}
        runs += (rollouts(reward.pool.base, chosen, f"visited {k}", found, **steered),)
        found = replace(reward, pool=replace(reward.pool, visited=runs))
    return found


def best(choices: Mapping[str, Choice]) -> str:
    """The form whose choice scored best on the selection seeds."""
    return max(choices, key=lambda form: max(choices[form].tried.values()))
