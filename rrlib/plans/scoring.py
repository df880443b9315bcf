"""A reward of plans at work on recorded trajectories of any length, in their own units."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from rrlib.errors import InputError, shown, warn
from rrlib.method.checks.levels import check_start
from rrlib.method.networks.sums import Rescaled, WeightedSum
from rrlib.method.rewards import RelativeReward
from rrlib.plans import trajectories
from rrlib.plans.layouts import PlanLayout
from rrlib.plans.perceptron import PlanPotential
from rrlib.plans.rewards import ConditionalReward, StartReward, WindowReward
from rrlib.plans.trajectories import Trajectories

Steps: TypeAlias = np.ndarray | Tensor
Recorded: TypeAlias = Trajectories | Steps | Sequence[Steps] | str | Path


@dataclass(frozen=True, eq=False)
class TrajectoryScores:
    """What a reward says of N trajectories of M steps in all, laid end to end.

    Attributes:
        per_step: of each step, the mean over the windows that it lies in, float32 [M].
        per_trajectory: of each trajectory, the mean over its windows, float32 [N].
        bounds: start and stop of each trajectory, int [N, 2].
    """

    per_step: np.ndarray
    per_trajectory: np.ndarray
    bounds: np.ndarray


def score(
    reward: RelativeReward,
    data: Recorded,
    *,
    layout: PlanLayout | None = None,
    stride: int = 1,
    batch: int = 8192,
    progress: bool = False,
) -> TrajectoryScores:
    """rho at t = 0 of every window of recorded trajectories of any length.

    A window is what the reward's network sees at once: h steps of a `WindowReward`, or a whole plan
    of its horizon. So a trajectory of just that length is worth rho(plan, 0), and a longer one the
    mean over the windows that slide along it (section 4.3 has windows side by side).
    A shorter one is continued by its last observation and action 0, with a DataWarning.

    Args:
        reward: of plans; of target "score" its numbers are nats.
        data: `Trajectories`; a file (see `trajectories.read`); or steps in the layout's order and
            in their own units, an array [N, H, D], or a sequence of arrays [H_i, D].
        layout: what a step is made of; None takes what the reward's file says.
        stride: from one window to the next; 1 takes all, more is faster.
        batch: windows at a time.
        progress: show a bar on stderr.

    Raises:
        InputError: data of another width, not finite, or far outside of the reward's own; a reward
            that was not fitted at t = 0, or does not say what a step is made of, or how many it
            sees.

    >>> import numpy as np, rrlib, torch
    >>> reward = rrlib.RelativeReward(rrlib.WindowReward(3, 4, torch.ones(10)), "score", "x_t")
    >>> ruler = rrlib.Normaliser(np.zeros(3, "f4"), np.full(3, 8, "f4"))
    >>> layout = rrlib.PlanLayout(ruler, actions=1, observations=2)
    >>> plans = np.random.default_rng(0).uniform(0, 8, (5, 4, 3)).astype("f4")
    >>> found = score(reward, plans, layout=layout).per_trajectory
    >>> x = torch.from_numpy(ruler.normalise(plans))
    >>> bool(np.allclose(found, reward(x, torch.zeros(5, dtype=torch.long)).detach(), atol=1e-6))
    True
    """
    check_start(reward)
    layout = layout or PlanLayout.of(reward.about)
    found = recorded(data, layout)
    layout.check(found)
    span = steps_seen(reward.network, layout)
    if not isinstance(stride, int) or not 1 <= stride <= span:
        raise InputError(
            f"stride={shown(stride)} is not allowed: a whole number from 1 to {span}, the steps "
            "that the reward sees at once, is needed."
        )
    rows, firsts = _normalised(found, layout, span)
    starts, owner = _windows(found, span, stride)
    places = firsts[owner] + starts - found.bounds[owner, 0]
    worth = np.empty(len(starts))
    # Each window is a piece of memory: steps lie end to end.
    sides, strides = (len(rows) - span + 1, span, layout.width), (layout.width, layout.width, 1)
    cut = torch.as_strided(rows, sides, strides)
    bar = tqdm(total=len(starts), disable=not progress, desc="windows", unit_scale=True)
    with bar:
        for at in range(0, len(starts), batch):
            chosen = torch.from_numpy(places[at : at + batch])
            worth[at : at + batch] = _rho(reward, cut[chosen])
            bar.update(len(chosen))
    return _spread(found.bounds, starts, owner, worth, span)


def recorded(data: Recorded, layout: PlanLayout) -> Trajectories:
    """Recorded data of any form as trajectories; see `score`.

    Raises:
        InputError: none, of another width, or not finite.
    """
    if isinstance(data, str | Path):
        return trajectories.read(data, layout.observations, layout.actions)
    if isinstance(data, Trajectories):
        found = data
    else:
        if isinstance(data, np.ndarray | Tensor) and data.ndim == 2:
            data = [data]
        if not isinstance(data, np.ndarray | Tensor | Sequence):
            raise InputError(
                f"data: {type(data).__name__} is not allowed: Trajectories, a file, an array "
                f"[N, H, {layout.width}] or arrays [H, {layout.width}] are needed."
            )
        parts = [_steps(one, layout.width) for one in data]
        if not sum(map(len, parts)):
            raise InputError("data: no step is not allowed: one trajectory or more is needed.")
        ends = np.zeros(sum(map(len, parts)), dtype=bool)
        ends[np.cumsum([len(one) for one in parts if len(one)]) - 1] = True
        found = layout.trajectories(np.concatenate(parts), ends)
    if not len(found.actions):
        raise InputError("data: no step is not allowed: one trajectory or more is needed.")
    for part in layout.order:
        if not np.isfinite(getattr(found, part)).all():
            raise InputError(
                f"data: {part} that are not finite are not allowed: numbers are needed."
            )
    return found


def steps_seen(network: nn.Module, layout: PlanLayout) -> int:
    """How many steps of a plan a reward network values at once.

    Raises:
        InputError: neither it nor the layout says so.
    """
    if isinstance(network, WindowReward) and not network.strided:
        return network.window
    if isinstance(network, PlanPotential | StartReward):
        return network.horizon
    if isinstance(network, ConditionalReward):
        return steps_seen(network.network, layout)
    if isinstance(network, WeightedSum):
        return math.lcm(*(steps_seen(part, layout) for part in network.networks))
    if isinstance(network, Rescaled) and network.scale.ndim < 2:
        return steps_seen(network.network, layout)
    if layout.horizon is None:
        raise InputError(
            f"layout: horizon=None is not allowed for a {type(network).__name__}: the steps of a "
            "plan that it was fitted to are needed."
        )
    return layout.horizon


@torch.no_grad()
def _rho(reward: RelativeReward, x: Tensor) -> np.ndarray:
    """rho(x, 0) of normalised plans [n, h, D], [n]."""
    weight = next(reward.network.parameters(), x)
    t = torch.zeros(len(x), dtype=torch.long, device=weight.device)
    return reward(x.to(weight.device), t).cpu().numpy()


def _normalised(data: Trajectories, layout: PlanLayout, span: int) -> tuple[Tensor, np.ndarray]:
    """Normalised steps [M', D] end to end, and where each trajectory begins, int [N].

    A trajectory of fewer than `span` steps is continued as `trajectories.cut` does.
    """
    begin, stop = data.bounds.T
    lengths = np.maximum(stop - begin, span)
    firsts = np.cumsum(lengths) - lengths
    within = np.arange(lengths.sum()) - np.repeat(firsts, lengths)
    steps = np.repeat(begin, lengths) + within
    rows = np.minimum(steps, np.repeat(stop, lengths) - 1)
    actions = np.where((steps > rows)[:, None], np.float32(0), data.actions[rows])
    both = np.concatenate([actions, data.observations[rows]], axis=1)
    made = layout.normaliser.normalise(both[:, layout.columns()])
    return torch.from_numpy(np.ascontiguousarray(made, dtype=np.float32)), firsts


def _steps(one: object, width: int) -> np.ndarray:
    """Steps [H, D] of a trajectory."""
    found = np.zeros(0, np.float32)
    with suppress(TypeError, ValueError):
        found = np.asarray(one.detach().cpu() if isinstance(one, Tensor) else one, np.float32)
    if found.ndim != 2 or found.shape[-1] != width:
        raise InputError(
            f"data: {type(one).__name__} of shape {np.shape(found)} is not allowed: arrays "
            f"[H, {width}] of numbers are needed."
        )
    return found


def _windows(data: Trajectories, span: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """Where windows start, int [n], and in which trajectory, int [n]; the last is always one."""
    starts = trajectories.windows(data, span)
    begin, stop = data.bounds.T
    short = stop - begin < span
    if short.any():
        warn(
            f"trajectories: {short.sum()} of {len(short)} are shorter than the {span} steps that "
            "the reward sees at once: each is continued by its last observation and action 0."
        )
    owner = np.searchsorted(stop, starts, side="right")
    is_last = np.append(owner[1:] != owner[:-1], True)
    keep = ((starts - begin[owner]) % stride == 0) | is_last
    return starts[keep], owner[keep]


def _spread(
    bounds: np.ndarray, starts: np.ndarray, owner: np.ndarray, worth: np.ndarray, span: int
) -> TrajectoryScores:
    """Means over the windows that a step lies in, and over those of a trajectory."""
    stops = np.minimum(starts + span, bounds[owner, 1])
    total, count = np.zeros(bounds[-1, 1] + 1), np.zeros(bounds[-1, 1] + 1)
    for at, sign in ((starts, 1), (stops, -1)):
        np.add.at(total, at, sign * worth)
        np.add.at(count, at, sign)
    per_step = total.cumsum()[:-1] / count.cumsum()[:-1]
    per_trajectory = np.bincount(owner, worth) / np.bincount(owner)
    return TrajectoryScores(per_step.astype(np.float32), per_trajectory.astype(np.float32), bounds)
