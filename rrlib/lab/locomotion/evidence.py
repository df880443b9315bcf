"""What steering is worth: scores of rollouts, choice of the scale, share of the gap it closes."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple, get_args

import numpy as np
import torch

from rrlib import comparisons, extraction, metrics, training
from rrlib import diagnostics as rotation
from rrlib.lab import store
from rrlib.lab.locomotion.recipes import LocomotionDiffuser
from rrlib.lab.locomotion.rewards import LocomotionReward, LocomotionRollouts
from rrlib.locomotion import world as locomotion
from rrlib.plans import trajectories
from rrlib.plans.conditioning import first_given, given, held
from rrlib.plans.trajectories import Trajectories
from rrlib.pools import Place, Pool

if TYPE_CHECKING:
    from rrlib.lab.notebook import Study

Guide = LocomotionReward | LocomotionDiffuser | None  # or any other guide of LocomotionRollouts
SELECTION, REPORT, STUDY = "selection", "report", "study"  # uses of rollouts, with seeds of its own
DRAWS = 4_000  # of the bootstrap


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


def scores(played: LocomotionRollouts, device: str = "cpu") -> np.ndarray:
    """Normalised scores of the episodes, [n]; plays them first if they have not been."""
    returns = store.obtain(played, device)["returns"]
    return locomotion.normalised_score(played.base.environment, returns)


def play(study: "Study", runs: Mapping[Hashable, LocomotionRollouts]) -> dict[Hashable, np.ndarray]:
    """`scores` of a chapter's rollouts by name, all of them played first."""
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
    pairs: Sequence[tuple[LocomotionDiffuser, Guide]],
    weights: Sequence[float],
    untils: Sequence[int],
    chosen: SimpleNamespace,
    **guidance,
) -> Choice:
    """The scale and the last steered step with the best score, on seeds that report nothing.

    Args:
        pairs: planner and guide of every seed of one environment; their mean scores are averaged.
        weights, untils: all combinations are tried.
        chosen, guidance: see `rollouts`.
    """
    tried = {}
    for until in untils:
        steered = guidance | {"weight": tuple(weights), "until": until}
        played = [rollouts(base, chosen, SELECTION, g, **steered) for base, g in pairs]
        found = [scores(p, chosen.device).reshape(len(weights), -1).mean(1) for p in played]
        means = np.mean(found, axis=0)
        tried |= {(w, until): float(m) for w, m in zip(weights, means, strict=True)}
    weight, until = max(tried, key=tried.get)
    return Choice(weight, until, tried)


def search(
    pairs: Sequence[tuple[LocomotionDiffuser, Mapping[str, tuple[Guide, dict]]]],
    chosen: SimpleNamespace,
) -> dict[str, Choice]:
    """`choose` for every method of the first pair, over the `weights` and `untils` of a chapter.

    Args:
        pairs: planner, and method -> guide and guidance, of every seed of one environment; a method
            is tried with the seeds that have it.
        chosen: see `rollouts`; `weights` and `untils`.
    """
    found = {}
    for method, (_, how) in pairs[0][1].items():
        guides = [(base, methods[method][0]) for base, methods in pairs if method in methods]
        found[method] = choose(guides, chosen.weights, chosen.untils, chosen, **how)
    return found


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


class Number(NamedTuple):
    """A number and its 95 % interval, which is (NaN, NaN) where nothing varies.

    Formatted, it has both: f"{Number(2, 1, 3):.1f}" is "2.0 (1.0 to 3.0)".
    """

    value: float
    low: float
    high: float

    @property
    def entry(self) -> dict[str, object]:
        """As `results.publish` takes it."""
        return {"value": self.value, "ci": [self.low, self.high]}

    def __format__(self, digits: str) -> str:
        """Value and interval, each in the format given."""
        value, low, high = (format(x, digits) for x in self)
        return f"{value} ({low} to {high})"


def mean(values: np.ndarray) -> Number:
    """A mean of independent values [n], with Student's interval."""
    return Number(float(np.mean(values)), *metrics.mean_interval(values))


def row(values: np.ndarray) -> dict[str, float | int]:
    """What a row of published results says of the scores of n episodes, [n]."""
    score, low, high = mean(values)
    return {"episodes": len(values), "score": score, "score_low": low, "score_high": high}


def bootstrap(
    samples: Mapping[Hashable, Sequence[np.ndarray]],
    read: Callable[[dict[Hashable, np.ndarray]], np.ndarray],
    seed: int = 0,
) -> Number:
    """A number read off mean scores, and its 95 % interval (percentile bootstrap over episodes).

    The interval is that of the draws, as they are: where the number is a skewed one, such as a
    ratio, it may leave the value itself out.

    Args:
        samples: per name the scores of each seed's episodes; a mean is over seeds of their means.
            Episodes are drawn again within a seed, so the interval is that of these models.
        read: means [...] by name -> the number [...].
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)

    def means(array: np.ndarray) -> np.ndarray:
        rows = rng.integers(len(array), size=(DRAWS, len(array)))
        return array[rows].mean(1)

    value = read({k: np.mean([a.mean() for a in v]) for k, v in samples.items()})
    drawn = read({k: np.mean([means(a) for a in v], axis=0) for k, v in samples.items()})
    low, high = np.percentile(drawn, [2.5, 97.5]) if np.ptp(drawn) else (np.nan, np.nan)
    return Number(float(value), float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """Scores of several ways to plan, in one or more environments, and what is read off them.

    Numbers are `bootstrap`s; where not all seeds have all ways that a number is about, it is of
    those that do.

    Attributes:
        scores: (environment, way, seed) -> scores of its episodes, [n].
        seed: of the draws of the bootstrap.
    """

    scores: Mapping[tuple[str, Hashable, int], np.ndarray]
    seed: int = 0

    def number(
        self,
        read: Callable[[dict[Hashable, np.ndarray]], np.ndarray],
        *ways: Hashable,
        of: Sequence[str] = (),
    ) -> Number:
        """Mean over environments of what is read off mean scores.

        Args:
            read: means [...] by way -> the number [...].
            ways: that it reads.
            of: environments; none, all.
        """
        of = of or list(dict.fromkeys(name for name, _, _ in self.scores))
        samples = {(name, way): self._samples(name, way, ways) for name in of for way in ways}

        def over_environments(means: dict[Hashable, np.ndarray]) -> np.ndarray:
            return np.mean([read({w: means[name, w] for w in ways}) for name in of], axis=0)

        return bootstrap(samples, over_environments, self.seed)

    def _samples(self, name: str, way: Hashable, ways: Sequence[Hashable]) -> list[np.ndarray]:
        return [
            values
            for (n, w, seed), values in self.scores.items()
            if (n, w) == (name, way) and all((name, other, seed) in self.scores for other in ways)
        ]

    def score(self, name: str, way: Hashable) -> Number:
        """Mean score of a way in one environment."""
        return self.number(lambda m: m[way], way, of=[name])

    def gain(self, name: str, way: Hashable, over: Hashable = "base") -> Number:
        """Relative gain over another way, per cent."""
        return self.number(lambda m: 100 * (m[way] / m[over] - 1), over, way, of=[name])

    def ahead(self, name: str, way: Hashable, rival: Hashable) -> Number:
        """Score, less a rival's."""
        return self.number(lambda m: m[way] - m[rival], way, rival, of=[name])

    def gap_closed(self, way: Hashable, *of: str) -> Number:
        """Share of the gap that is closed, (way - base) / (expert - base), mean of environments."""
        three = "base", "expert", way
        return self.number(
            lambda m: (m[way] - m["base"]) / (m["expert"] - m["base"]), *three, of=of
        )


def first_action_error(
    diffuser: LocomotionDiffuser, plans: int, seed: int, device: str = "cpu"
) -> np.ndarray:
    """Squared error of the first action at each t, over its variance, on held-out plans, [T].

    Args:
        diffuser: whose, on its own data; the first observation is given.
        plans: how many.
        seed: of plans and noise.
        device: where.
    """
    model = store.obtain(diffuser, device)
    x0 = diffuser.split().held_out_plans(plans, seed)[0].to(device)
    width = diffuser.environment.observation
    first, draws, found = x0[:, 0, -width:], training.stream(seed, "noise", device), []
    for step in range(model.steps):
        t = torch.full((plans,), step, device=device)
        x_t = held(model.noise(x0, t, draws), first)
        with torch.no_grad():
            error = given(model, first).x0(x_t, t) - x0
        found.append(error[:, 0, :-width].square().mean() / x0[:, 0, :-width].var(0).mean())
    return torch.stack(found).cpu().numpy()


def held_out(
    rewards: Sequence[LocomotionReward], plans: int, seed: int, device: str = "cpu"
) -> list[tuple[Pool, np.ndarray]]:
    """Comparisons on held-out plans as each reward reads them, and its share explained per t, [T].

    Args:
        rewards: recipes, of one pair; the pair is asked once for all of them.
        plans: of base and expert each, from episodes that trained neither diffuser nor reward.
        seed: of the draws.
        device: where.
    """
    pair = rewards[0].pool.base, rewards[0].pool.expert
    data = [half.split().held_out_plans(plans, seed)[0].to(device) for half in pair]
    return _explained(rewards, data, seed, device)


def explained_along(
    rewards: Sequence[LocomotionReward],
    run: LocomotionRollouts,
    plans: int,
    seed: int,
    device: str = "cpu",
) -> list[np.ndarray]:
    """The share that each reward of a pair explains per t, [T], on 2 `plans` of what a run did."""
    draws = training.stream(seed, "along", device)
    done = run.split(device)
    data = [done.draw(plans, draws) for _ in range(2)]
    return [share for _, share in _explained(rewards, data, seed, device)]


def _explained(rewards, data, seed, device):
    """Comparisons as each reward of one pair reads them, and the share that it explains."""
    pool = rewards[0].pool
    models = [store.obtain(half, device) for half in (pool.base, pool.expert)]
    condition = first_given(pool.base.environment.observation)
    size = sum(map(len, data))
    asked = comparisons.algorithm1(*models, *data, size=size, seed=seed, condition=condition)
    found = []
    for reward in rewards:
        read = asked.pool(reward.target, reward.place)
        network = store.obtain(reward, device).network
        found.append((read, extraction.explained(network, read, models[0].steps).cpu().numpy()))
    return found


def apart(
    pair: tuple[LocomotionDiffuser, LocomotionDiffuser],
    other: LocomotionDiffuser,
    plans: int,
    seed: int,
    device: str = "cpu",
) -> float:
    """How far a planner is from the first of a pair: mean square of the first actions' difference.

    Both are asked about the same noised plans of the pair's held-out data, at all t alike, in the
    normaliser's units, in which data have a variance of 1/4.

    Args:
        pair: whose data.
        other: compared with the first of them.
        plans: of either half's data.
        seed: of the draws.
        device: where.
    """
    if other == pair[0]:
        return 0.0
    models = [store.obtain(half, device) for half in (pair[0], other)]
    data = [half.split().held_out_plans(plans, seed)[0].to(device) for half in pair]
    width = pair[0].environment.observation
    options = {"size": 2 * plans, "seed": seed, "condition": first_given(width)}
    asked = comparisons.algorithm1(*models, *data, **options)
    return float((asked.expert - asked.base)[:, 0, :-width].square().mean())


def on_other_data(base: LocomotionDiffuser, kind: str) -> LocomotionDiffuser:
    """The same diffuser trained on another kind of data, in the same coordinates.

    Raises:
        InputError: the kind is unknown, or the base's data is a file.
    """
    return replace(base, data=replace(base.data, kind=kind))


def along(reward: LocomotionReward, episode: Trajectories, device: str = "cpu") -> np.ndarray:
    """rho at t = 0 of the H steps that begin at each step of an episode, [n]; the end is padded."""
    base = reward.pool.base
    cut = trajectories.cut(episode, np.arange(len(episode.rewards)), base.horizon)
    plans = torch.from_numpy(base.normaliser.normalise(cut)).to(device)
    rho, t = store.obtain(reward, device), torch.zeros(len(plans), dtype=torch.long, device=device)
    with torch.no_grad():
        return rho(plans, t).cpu().numpy()


def turning(
    reward: LocomotionReward, steps: Sequence[int], plans: int, seed: int, device: str = "cpu"
) -> dict[str, list[float]]:
    """The rotational share of the pair's difference at some t, on held-out plans of both halves.

    Args:
        reward: whose pair it is.
        steps: t.
        plans: of base and expert each.
        seed: of the draws.
        device: where.

    Returns:
        "x_t" and "mu_base" -> a share for each t.
    """
    pair = reward.pool.base, reward.pool.expert
    base, expert = (store.obtain(half, device) for half in pair)
    x0 = torch.cat([half.split().held_out_plans(plans, seed)[0] for half in pair]).to(device)
    width = pair[0].environment.observation
    free = torch.ones(x0.shape[1:], dtype=torch.bool)
    free[0, -width:] = False
    options = {"condition": first_given(width), "free": free}
    draws = training.stream(seed, "rotation", device)
    found = {place: [] for place in get_args(Place)}
    for step in steps:
        t = torch.full((len(x0),), step, device=device)
        x_t = held(base.noise(x0, t, draws), x0[:, 0, -width:])
        for place, shares in found.items():
            jacobians = rotation.difference_jacobians(base, expert, x_t, step, place, **options)
            shares.append(float(rotation.rotational_share(jacobians)))
    return found
