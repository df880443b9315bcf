"""Rollouts: a planner drives many robots at once, their physics in worker processes.

All episodes go in lock-step, so that one call of the planner serves them all; an episode that has
ended is asked no more, and the batch shrinks.
"""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import torch

from rrlib.errors import InputError
from rrlib.locomotion import world as locomotion
from rrlib.locomotion.robots import Environment
from rrlib.locomotion.world import HORIZON
from rrlib.method import guidance as steering
from rrlib.method.denoisers import Denoiser
from rrlib.plans.conditioning import given, hold
from rrlib.plans.normalisers import Normaliser
from rrlib.plans.trajectories import Trajectories
from rrlib.training import derived_seed

# Observations [n, do] and whose they are [n] (numbers of episodes) -> actions [n, k, da].
Planner = Callable[[np.ndarray, np.ndarray], np.ndarray]


def planner(
    base: Denoiser,
    normaliser: Normaliser,
    environment: Environment,
    horizon: int,
    generator: torch.Generator,
    expert: Denoiser | None = None,
    **guidance,
) -> Planner:
    """Plans of a diffusion model, steered or not, from the observations at hand.

    Args:
        base: of a network of plans that was trained with `conditioning.control_loss`.
        normaliser: of its plans.
        environment: whose observations and actions they are.
        horizon: H, steps of a plan.
        generator: of all noise.
        expert: steers by the exact difference of its means from the base's; None does not.
        guidance: of `guidance.denoise`: reward, guidance_scale, stop_step and so on. A tensor of
            scales has one for each episode.

    Returns:
        observations [n, do], episodes [n] -> the actions of one plan each, [n, H, da], in their
        own units.

    Raises:
        InputError: `guidance.denoise` would refuse the guidance.
    """
    difference = {"reward": steering.ExactDifference(base, expert)} if expert else {}
    width = environment.width
    # Sampled lazily: this refuses at once what the first plan would be refused for.
    steering.denoise(base, torch.empty(0, horizon, width), generator, **guidance | difference)
    scale = guidance.get("guidance_scale")

    def plan(observations: np.ndarray, episodes: np.ndarray) -> np.ndarray:
        rows = np.zeros((len(observations), width), np.float32)
        rows[:, environment.action :] = observations
        first = torch.from_numpy(normaliser.normalise(rows)[:, environment.action :])
        first = first.to(generator.device)
        model, options = given(base, first), guidance
        if expert:
            options = {**guidance, "reward": steering.ExactDifference(model, given(expert, first))}
        if isinstance(scale, torch.Tensor):
            options = {**options, "guidance_scale": scale[episodes]}  # the sampler moves it
        shape = len(first), horizon, width
        plans = steering.sample(model, shape, generator, keep=hold(first), **options)
        return normaliser.denormalise(plans.cpu().numpy())[..., : environment.action]

    return plan


def check(episodes: int, steps: int, executed: int, workers: int) -> None:
    """Raise InputError unless rollouts of these numbers can be asked for."""
    for name, value, most in (
        ("episodes", episodes, None),
        ("steps", steps, HORIZON),
        ("executed", executed, None),
        ("workers", workers, os.cpu_count()),
    ):
        if value < 1 or (most and value > most):
            allowed = f"1 to {most}" if most else "1 or more"
            raise InputError(f"{name} = {value} is out of range: allowed is {allowed}.")


def play(
    environment: Environment,
    plan: Planner,
    episodes: int,
    seed: int,
    *,
    steps: int = HORIZON,
    executed: int = 1,
    workers: int = 1,
    version: int = 5,
    starts: int | None = None,
) -> Trajectories:
    """Whole episodes of a planner, from starts that depend on the seed alone.

    Args:
        environment: the robot.
        plan: called with the observations of all episodes that go on, float32, and their numbers.
        episodes: how many.
        seed: of the starts; the planner's noise is its own.
        steps: after which an episode ends by timeout.
        executed: actions carried out of each plan before the next is made.
        workers: processes that share the physics; the result does not depend on it.
        version: see `locomotion.simulators`.
        starts: different ones; episode k begins like episode k - starts. None: all differ.

    Raises:
        InputError: a number is out of range, more workers than cores, plans are too short or not
            finite, or a worker process was killed.
    """
    check(episodes, steps, executed, workers)
    distinct = starts or episodes
    owners = np.array_split(np.arange(episodes), min(workers, episodes))
    blocks = [
        (environment, [derived_seed(seed, int(k)) % 2**31 for k in rows % distinct], steps, version)
        for rows in owners
    ]
    with _served(blocks) as everywhere:
        observations = np.concatenate(everywhere("start"))
        going = np.ones(episodes, dtype=bool)
        while going.any():
            actions = np.zeros((episodes, executed, environment.action), np.float32)
            made = plan(observations[going], np.flatnonzero(going))
            if made.shape[1] < executed:
                raise InputError(
                    f"executed = {executed} is out of range: plans have {made.shape[1]} actions."
                )
            if not np.isfinite(made).all():  # MuJoCo would take no action at all
                raise InputError(
                    "plan: its actions are not finite; a planner of finite plans is needed (a "
                    "smaller weight, if it is steered)."
                )
            actions[going] = np.clip(made[:, :executed], -1, 1)
            mine = ([part[rows] for rows in owners] for part in (going, actions))
            found = zip(*everywhere("step", *mine), strict=True)
            observations, going = (np.concatenate(part) for part in found)
        kept = everywhere("kept")
    columns = zip(*(s for block in kept for episode in block for s in episode), strict=True)
    floats = np.float32, np.float32, np.float32, bool, bool
    return Trajectories(*(np.asarray(c, d) for c, d in zip(columns, floats, strict=True)))


class _Block:
    """Some of the episodes, each in an environment of its own; it keeps what happens."""

    def __init__(self, environment: Environment, seeds: list[int], steps: int, version: int):
        self.simulators = locomotion.simulators(environment, len(seeds), version)
        self.worlds = self.simulators.envs
        self.seeds, self.steps = seeds, steps
        self.episodes: list[list[tuple]] = [[] for _ in seeds]

    def start(self) -> np.ndarray:
        """The first observations, [n, do]."""
        pairs = zip(self.worlds, self.seeds, strict=True)
        self.now = np.stack([w.reset(seed=s)[0] for w, s in pairs]).astype(np.float32)
        return self.now

    def step(self, going: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Carry out [n, k, da] where [n] is true; the observations, and who still goes on."""
        still = going.copy()
        for row in np.flatnonzero(going):
            for action in actions[row]:
                if still[row]:
                    still[row] = self._one(int(row), action)
        return self.now, still

    def _one(self, row: int, action: np.ndarray) -> bool:
        following, reward, fallen, _, _ = self.worlds[row].step(action)
        late = not fallen and len(self.episodes[row]) + 1 >= self.steps
        self.episodes[row].append((self.now[row].copy(), action, reward, fallen, late))
        self.now[row] = following
        return not (fallen or late)

    def kept(self) -> list[list[tuple]]:
        """Per episode: observation, action, reward, whether it fell, whether it was the last."""
        return self.episodes

    def close(self) -> None:
        """Give the simulators back."""
        self.simulators.close()


@contextlib.contextmanager
def _served(blocks: list[tuple]) -> Iterator[Callable[..., list]]:
    """Calls a method of every block, each with its own arguments: `everywhere(name, *columns)`.

    A single block lives here, several live in a process each and work at once. Whatever happens,
    simulators are closed and processes ended; what a block raises is raised here.
    """
    if len(blocks) == 1:
        with contextlib.closing(_Block(*blocks[0])) as block:
            yield lambda name, *columns: [getattr(block, name)(*(c[0] for c in columns))]
        return
    with contextlib.ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        pools = [
            stack.enter_context(ProcessPoolExecutor(1, context, _end_with_parent)) for _ in blocks
        ]

        def everywhere(name: str, *columns: Sequence) -> list:
            rows = zip(*columns, strict=True) if columns else [()] * len(pools)
            pairs = zip(pools, rows, strict=True)
            try:  # a pool whose process is gone says so when asked, or when its answer is due
                asked = [pool.submit(_ask, name, *row) for pool, row in pairs]
                return [future.result() for future in asked]
            except BrokenProcessPool:
                raise InputError(
                    f"workers = {len(pools)}: one of these processes was ended from outside, as "
                    "happens when memory is short; fewer workers or episodes are needed."
                ) from None

        everywhere("open", *zip(*blocks, strict=True))
        yield everywhere
        everywhere("close")


_BLOCK: list[_Block] = []  # of a worker process


def _ask(name: str, *arguments):
    if name == "open":
        _BLOCK.append(_Block(*arguments))
        return None
    return getattr(_BLOCK[0], name)(*arguments)


def _end_with_parent() -> None:
    """Let this process end when the one that started it does, even by SIGKILL."""

    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in a child

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
