"""Locomotion: HalfCheetah, Hopper and Walker2d, data in D4RL's layout, scores.

There is no physics here: Gymnasium steps MuJoCo's models. An action is in [-1, 1].
"""

import contextlib
import warnings
from collections.abc import Iterator
from functools import partial

import gymnasium as gym
import mujoco
import numpy as np

from rrlib.errors import InputError, shown, warn
from rrlib.locomotion import actors
from rrlib.locomotion.actors import Actor
from rrlib.locomotion.robots import ENVIRONMENTS, Environment
from rrlib.plans import trajectories
from rrlib.plans.trajectories import Trajectories

HORIZON = 1_000  # steps after which an episode ends by timeout
SIMULATORS = 32  # environments in lock-step, fewer for small sets
KINDS = ("random", "medium", "medium-replay", "expert")  # of data, as D4RL names them


def simulators(environment: Environment, n: int, version: int = 5) -> gym.vector.VectorEnv:
    """n environments in lock-step; one that ends an episode begins the next in the same step.

    Version 5 is Gymnasium's present one, which the policies were trained in and Minari's own sets
    were made in. Version 4 behaves like the environments of D4RL's files and of the paper;
    Gymnasium 1.4 still has it for all three, and calls it out of date. In version 4 the step that
    falls is still given the reward 1 for being healthy (Hopper and Walker2d), and Walker2d's right
    foot has friction 0.9 instead of 1.9; HalfCheetah is the same in both.

    Raises InputError on a version other than these two.
    """
    if version not in (4, 5):
        raise InputError(f"version = {version} is out of range: allowed is 4 or 5.")
    with _known_warnings_ignored():
        return gym.make_vec(
            f"{environment.gymnasium}-v{version}",
            num_envs=n,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": gym.vector.AutoresetMode.SAME_STEP},
        )


@contextlib.contextmanager
def _known_warnings_ignored() -> Iterator[None]:
    """Version 4 is out of date, we know, and HalfCheetah's model has an attribute that is.

    MuJoCo would write the latter into a file in the current folder.
    """
    before = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)
    try:
        with warnings.catch_warnings(category=DeprecationWarning, action="ignore"):
            yield
    finally:
        mujoco.set_mju_user_warning(before)


# Scores


def normalised_score(environment: Environment, returns: np.ndarray) -> np.ndarray:
    """D4RL's score of returns (sums of an episode's rewards): 0 is random, 100 an expert."""
    span = environment.highest - environment.lowest
    return 100 * (np.asarray(returns, dtype=float) - environment.lowest) / span


def scores(environment: Environment, data: Trajectories) -> np.ndarray:
    """The normalised score of each episode, float [N]; their mean is the score of the set."""
    if data.rewards is None:
        raise InputError("data without rewards have no scores: a set with its rewards is needed.")
    returns = np.add.reduceat(data.rewards, data.bounds[:, 0], dtype=float)
    return normalised_score(environment, returns)


# Data


def read(environment: Environment, path: str) -> Trajectories:
    """Trajectories of this environment from a data file, see `trajectories.read`.

    D4RL's files come from what is now version 4 of the environments (see `simulators`). Where a
    file does not mark the ends of its episodes, they are cut as the environment does it (see
    `_cut`), and a DataWarning says so.

    Raises InputError if it cannot be read, has other widths or lacks rewards (its score is their
    sum), if its actions are far outside of [-1, 1], or if its episodes start at another robot's
    height (HalfCheetah and Walker2d are equally wide).
    """
    widths = environment.observation, environment.action
    found = trajectories.read(path, *widths, needs=("rewards",))
    marked = found.n_episodes
    found = _cut(environment, found)
    said = f"Dataset {shown(str(path), 200)}"
    height = np.median(found.observations[found.bounds[:, 0], 0])
    off = abs(height - environment.height)
    if any(abs(height - other.height) < off for other in ENVIRONMENTS.values()):
        raise InputError(
            f"{said} does not fit environment = '{environment.name}': its episodes start "
            f"at height {height:.2f}; they must start near {environment.height:.2f}."
        )
    if off > 0.3:
        warn(
            f"{said} is odd for environment = '{environment.name}': its episodes start at height "
            f"{height:.2f}, the simulator's near {environment.height:.2f}."
        )
    trajectories.check_actions(found, path)
    if found.n_episodes > marked:
        warn(
            f"{said} holds more episodes than the {marked} that it marks: it is cut into "
            f"{found.n_episodes}, where the robot is set up anew and after {HORIZON} steps at most."
        )
    return found


def _cut(environment: Environment, data: Trajectories) -> Trajectories:
    """The data with no episode that the environment would have ended before.

    Hopper and Walker2d start within 0.005 of standing still upright and are never so still again.
    HalfCheetah's start is not so sharp, but nothing ends its episodes early. All end by timeout
    after `HORIZON` steps.
    """
    if environment.height:
        still = np.zeros(environment.observation)
        still[0] = environment.height
        starts = np.abs(data.observations - still).max(axis=1) < 0.01
        data = data.cut_before(starts & ~np.append(False, starts[:-1]))
    first, stops = data.bounds.T
    within = np.arange(len(data.actions)) - np.repeat(first, stops - first)
    return data.cut_before(within % HORIZON == 0)


def collect(
    environment: Environment,
    actor: Actor,
    transitions: int,
    rng: np.random.Generator,
    version: int = 5,
) -> Trajectories:
    """Whole episodes of an actor, in all `transitions` of them or up to one episode more.

    Each of several simulators plays episode after episode until its share is full, and ends the
    one it is at. Where to stop never depends on how an episode will go on, so that long and short
    ones appear as often as they happen and the mean score of the set is unbiased.
    """
    n = min(max(transitions // (4 * HORIZON), 1), SIMULATORS)
    with contextlib.closing(simulators(environment, n, version)) as worlds:
        columns = _played(worlds, actor, -(-transitions // n), rng)
    made = Trajectories(*columns)
    n_episodes = 1 + np.searchsorted(made.bounds[:, 1], transitions)
    return made.take(np.arange(n_episodes))


def _played(
    worlds: gym.vector.VectorEnv, actor: Actor, share: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """The columns of `Trajectories`: each simulator's episodes up to the one that fills `share`."""
    n = worlds.num_envs
    observations, _ = worlds.reset(seed=rng.integers(2**31, size=n).tolist())
    steps, lengths = [], np.zeros(n, dtype=int)  # lengths: where a full share ends, 0 until then
    while not lengths.all():
        observations = observations.astype(np.float32)
        actions = actor(observations).astype(np.float32)
        following, rewards, terminals, truncated, _ = worlds.step(actions)
        timeouts = truncated & ~terminals
        steps.append((observations, actions, rewards.astype(np.float32), terminals, timeouts))
        ends = (terminals | timeouts) & (len(steps) >= share) & (lengths == 0)
        lengths[ends] = len(steps)
        observations = following
    columns = [np.stack(column, axis=1) for column in zip(*steps, strict=True)]  # [n, steps, ...]
    kept = np.arange(len(steps)) < lengths[:, None]
    return [column[kept] for column in columns]


def check_set(kind: str, transitions: int) -> None:
    """Raise InputError unless data of this kind and size can be asked for."""
    if kind not in KINDS:
        raise InputError(f"kind = '{kind}' is unknown: allowed are {', '.join(KINDS)}.")
    if transitions < 1:
        raise InputError(f"transitions = {transitions} is out of range: allowed is 1 or more.")


def make_trajectories(
    environment: Environment, kind: str, transitions: int, seed: int = 0
) -> Trajectories:
    """Data of one of D4RL's kinds, at least `transitions` of them, in whole episodes.

    `random` draws actions uniformly. `medium-replay` shares the transitions among the snapshots up
    to the medium level, equally spaced in training, and draws their actions as the agent did when
    it learnt: so it resembles the agent's replay buffer at that level. `medium` is the last of
    these alone. `expert` is the final policy without noise.

    Raises InputError on an unknown kind, fewer than one transition, or no policies.
    """
    check_set(kind, transitions)
    rng = np.random.default_rng(seed)
    actors = _actors(environment, kind, rng)
    share = -(-transitions // len(actors))
    parts = [collect(environment, actor, share, rng).arrays() for actor in actors]
    return Trajectories(**{name: np.concatenate([p[name] for p in parts]) for name in parts[0]})


def _actors(environment: Environment, kind: str, rng: np.random.Generator) -> list[Actor]:
    if kind == "random":
        return [lambda x: rng.uniform(-1, 1, size=(len(x), environment.action))]
    *snapshots, expert = actors.load_policies(environment)
    if kind == "expert":
        return [expert.act]
    if kind == "medium":
        snapshots = snapshots[-1:]
    return [partial(snapshot.act, rng=rng) for snapshot in snapshots]
