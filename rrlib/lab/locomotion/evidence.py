"""Planners and rewards judged on plans that trained neither: errors, shares, rotation."""

from collections.abc import Sequence
from dataclasses import replace
from typing import get_args

import numpy as np
import torch

from rrlib import training
from rrlib.estimators import diagnostics as rotation
from rrlib.lab import store
from rrlib.lab.locomotion.recipes import LocomotionDiffuser
from rrlib.lab.locomotion.rewards import LocomotionReward, LocomotionRollouts
from rrlib.method import comparisons, extraction
from rrlib.method.pools import Place, Pool
from rrlib.plans import trajectories
from rrlib.plans.conditioning import first_given, given, held
from rrlib.plans.trajectories import Trajectories


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
