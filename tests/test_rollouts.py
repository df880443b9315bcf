"""Rollouts against a plain loop over Gymnasium's environments; planners against the sampler."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import gymnasium as gym
import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torch.testing import assert_close

from rrlib.errors import InputError
from rrlib.locomotion import lockstep, robots, rollouts
from rrlib.locomotion import world as locomotion
from rrlib.method import guidance as steering
from rrlib.method.denoisers import Denoiser
from rrlib.method.exact import ExactDifference
from rrlib.method.noise.schedulers import cosine_scheduler
from rrlib.plans.conditioning import given, hold
from rrlib.plans.networks import PlanNetwork
from rrlib.plans.normalisers import Normaliser
from rrlib.training import derived_seed, stream

HOPPER = robots.load("hopper")
GAINS = np.random.default_rng(0).normal(size=(11, 3)).astype(np.float32)


def closed_form(observations: np.ndarray, episodes: np.ndarray | None = None) -> np.ndarray:
    """Plans of three actions, some of them out of range, from the observation alone."""
    # No matrix product: how BLAS rounds depends on the number of rows.
    actions = np.sin((observations[:, :, None] * GAINS).sum(1))
    return np.stack([actions, 1.5 * actions, -actions], axis=1)


def literal(seed: int, episode: int, steps: int, executed: int) -> list[tuple]:
    world = gym.make("Hopper-v5")
    observation, _ = world.reset(seed=derived_seed(seed, episode) % 2**31)
    found, queue = [], []
    while len(found) < steps:
        queue = queue or list(closed_form(observation.astype(np.float32)[None])[0, :executed])
        action = np.clip(queue.pop(0), -1, 1)
        following, reward, fallen, _, _ = world.step(action)
        found.append((observation, action, reward, fallen))
        observation = following
        if fallen:
            break
    world.close()
    return found


@pytest.mark.slow
@pytest.mark.parametrize(("executed", "workers"), [(1, 1), (3, 1), (2, 2)])
def test_episodes_are_those_of_a_plain_loop(executed, workers, monkeypatch):
    monkeypatch.setattr(rollouts.os, "cpu_count", lambda: 2)
    options = {"steps": 40, "executed": executed, "workers": workers}
    made = rollouts.play(HOPPER, closed_form, 5, 7, **options)
    wanted = [literal(7, episode, 40, executed) for episode in range(5)]
    assert made.n_episodes == 5
    assert len({len(episode) for episode in wanted}) > 1, "all episodes equally long"
    flat = [step for episode in wanted for step in episode]
    names = ("observations", "actions", "rewards", "terminals")
    for name, column in zip(names, zip(*flat, strict=True), strict=True):
        assert_array_equal(getattr(made, name), np.asarray(column, getattr(made, name).dtype))
    lasts = made.bounds[:, 1] - 1
    assert_array_equal(made.timeouts[lasts], ~made.terminals[lasts])
    assert made.timeouts.sum() + made.terminals.sum() == 5


def test_only_who_goes_on_is_asked():
    asked = []

    def plan(observations, episodes):
        asked.append(list(episodes))
        assert len(observations) == len(episodes)
        return closed_form(observations)

    made = rollouts.play(HOPPER, plan, 6, 1, steps=60)
    lengths = made.bounds[:, 1] - made.bounds[:, 0]
    assert asked == [list(np.flatnonzero(lengths > step)) for step in range(lengths.max())]


def test_other_seeds_start_elsewhere():
    one, same, other = (rollouts.play(HOPPER, closed_form, 2, seed, steps=3) for seed in (0, 0, 1))
    assert_array_equal(one.observations, same.observations)
    assert not np.array_equal(one.observations[0], other.observations[0])
    assert not np.array_equal(one.observations[0], one.observations[3])


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_starts_come_round_again(workers, monkeypatch):
    monkeypatch.setattr(rollouts.os, "cpu_count", lambda: 2)
    made = rollouts.play(HOPPER, closed_form, 5, 7, steps=20, starts=2, workers=workers)
    begins, ends = made.bounds.T
    for k in range(2, 5):
        again, before = slice(begins[k], ends[k]), slice(begins[k - 2], ends[k - 2])
        assert_array_equal(made.observations[again], made.observations[before])
    assert not np.array_equal(made.observations[begins[0]], made.observations[begins[1]])


@pytest.mark.parametrize(
    ("numbers", "named"),
    [
        ({"episodes": 0}, "episodes = 0"),
        ({"steps": 1001}, "steps = 1001"),
        ({"executed": 0}, "executed = 0"),
        ({"executed": 4}, "executed = 4"),
        ({"workers": 10**6}, "workers = 1000000"),
    ],
)
def test_what_cannot_be_played_is_named(numbers, named):
    options = {"episodes": 1, "steps": 10, "executed": 1, "workers": 1} | numbers
    with pytest.raises(InputError, match=named):
        rollouts.play(HOPPER, closed_form, options.pop("episodes"), 0, **options)


class Wrong(Exception):
    """No user's fault."""


@pytest.fixture
def closings(monkeypatch):
    """How often simulators were made and closed."""
    counts = {"made": 0, "closed": 0}
    make = locomotion.simulators

    def simulators(*arguments):
        made = make(*arguments)
        counts["made"] += 1
        close = made.close

        def counted():
            counts["closed"] += not made.closed
            close()

        made.close = counted
        return made

    monkeypatch.setattr(locomotion, "simulators", simulators)
    return counts


def failing(observations: np.ndarray, episodes: np.ndarray) -> np.ndarray:
    raise Wrong


def test_simulators_are_closed_whatever_happens(closings):
    rollouts.play(HOPPER, closed_form, 2, 0, steps=3)
    assert closings == {"made": 1, "closed": 1}
    with pytest.raises(Wrong):
        rollouts.play(HOPPER, failing, 2, 0, steps=3)
    assert closings == {"made": 2, "closed": 2}
    locomotion.collect(HOPPER, lambda x: np.zeros((len(x), 3)), 5, np.random.default_rng(0))
    assert closings == {"made": 3, "closed": 3}
    with pytest.raises(Wrong):
        locomotion.collect(HOPPER, lambda x: failing(x, x), 5, np.random.default_rng(0))
    assert closings == {"made": 4, "closed": 4}


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_plans_that_are_not_finite_are_refused(value):
    with pytest.raises(InputError, match=r"^plan: its actions are not finite"):
        rollouts.play(HOPPER, lambda o, e: closed_form(o) * value, 2, 0, steps=3)


class Threads(ThreadPoolExecutor):
    """In the place of processes, which take seconds to start."""

    def __init__(self, n, context, initializer):
        super().__init__(n)


@pytest.fixture
def two_workers(monkeypatch):
    monkeypatch.setattr(rollouts.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(lockstep, "ProcessPoolExecutor", Threads)
    monkeypatch.setattr(lockstep, "_BLOCK", [])
    return monkeypatch


def test_what_goes_wrong_in_a_worker_is_said_here(two_workers):
    with pytest.raises(InputError, match=r"^version = 3 is out of range: allowed is 4 or 5\.$"):
        rollouts.play(HOPPER, closed_form, 2, 0, steps=3, workers=2, version=3)


@pytest.mark.parametrize("when", ["asked", "answered"])
def test_a_worker_that_is_gone_is_named_whenever_it_is_noticed(when, two_workers):
    def gone(*_):
        raise BrokenProcessPool

    class Gone(Threads):
        def submit(self, function, name, *arguments):
            if name != "start":
                return super().submit(function, name, *arguments)
            return super().submit(gone) if when == "answered" else gone()

    two_workers.setattr(lockstep, "ProcessPoolExecutor", Gone)
    with pytest.raises(InputError, match=r"^workers = 2: one of these processes was ended"):
        rollouts.play(HOPPER, closed_form, 2, 0, steps=3, workers=2)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_named_and_no_process_is_left(monkeypatch):
    monkeypatch.setattr(rollouts.os, "cpu_count", lambda: 2)

    def plan(observations, episodes):
        one = multiprocessing.active_children()[0]
        one.kill()
        one.join()
        return closed_form(observations)

    with pytest.raises(InputError, match=r"^workers = 2: one of these processes was ended"):
        rollouts.play(HOPPER, plan, 2, 0, steps=3, workers=2)
    assert not multiprocessing.active_children()


KILLED = """
import os, signal
from rrlib.locomotion import robots, rollouts
def plan(observations, episodes):
    os.kill(os.getpid(), signal.SIGKILL)
if __name__ == "__main__":
    os.cpu_count = lambda: 2
    rollouts.play(robots.load("hopper"), plan, 2, 0, workers=2)
"""


@pytest.mark.slow
def test_workers_end_with_the_process_that_started_them(tmp_path):
    """They hold its standard output, which ends when the last of them does."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script)]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, start_new_session=True, **options) as process:
        try:
            process.communicate(timeout=300)
        finally:  # if it fails, they must not stay
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.lengthy
def test_a_worker_imports_neither_torch_nor_what_needs_it():
    slow = "torch", "diffusers", "transformers", "scipy", "sklearn", "matplotlib"
    code = f"import sys; import {lockstep.__name__}; print([m for m in {slow} if m in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def denoiser(seed: int) -> Denoiser:
    torch.manual_seed(seed)
    network = PlanNetwork(14, (8, 16), 2).eval().requires_grad_(False)
    return Denoiser(network, cosine_scheduler(5))


NORMALISER = Normaliser(np.full(14, -2, np.float32), np.full(14, 4, np.float32))
ALL = np.arange(3)
OBSERVATIONS = np.random.default_rng(1).normal(size=(3, 11)).astype(np.float32)


def plans(model: Denoiser, first: torch.Tensor, **guidance) -> np.ndarray:
    made = steering.sample(
        given(model, first), (3, 8, 14), stream(4, 0), keep=hold(first), **guidance
    )
    return NORMALISER.denormalise(made.numpy())[..., :3]


def test_a_planner_samples_plans_from_the_observation():
    planner = rollouts.planner(denoiser(0), NORMALISER, HOPPER, 8, stream(4, 0))
    first = torch.from_numpy((OBSERVATIONS - 1) / 3)  # of a range from -2 to 4
    assert_close(planner(OBSERVATIONS, ALL), plans(denoiser(0), first))


def test_a_planner_steered_all_the_way_by_the_exact_difference_is_the_expert():
    base, expert = denoiser(0), denoiser(1)
    steered, own, half = (
        rollouts.planner(base, NORMALISER, HOPPER, 8, stream(4, 0), expert=expert),
        rollouts.planner(expert, NORMALISER, HOPPER, 8, stream(4, 0)),
        rollouts.planner(
            base, NORMALISER, HOPPER, 8, stream(4, 0), expert=expert, guidance_scale=0.5
        ),
    )
    assert_close(steered(OBSERVATIONS, ALL), own(OBSERVATIONS, ALL), atol=1e-4, rtol=1e-4)
    assert np.abs(half(OBSERVATIONS, ALL) - own(OBSERVATIONS, ALL)).max() > 0.01


@pytest.mark.lengthy
def test_the_exact_difference_may_be_that_of_another_pair():
    base, expert, other = (denoiser(seed) for seed in range(3))

    def planned(**pair):
        planner = rollouts.planner(base, NORMALISER, HOPPER, 8, stream(4, 0), **pair)
        return planner(OBSERVATIONS, ALL)

    plain, own = planned(), planned(expert=expert)
    assert_close(planned(expert=expert, against=base), own)
    assert_close(planned(expert=other, against=other), plain, atol=1e-4, rtol=1e-4)
    first = torch.from_numpy((OBSERVATIONS - 1) / 3)
    moved = planned(expert=expert, against=other, num_inference_steps=2)
    pair = ExactDifference(given(other, first), given(expert, first))
    assert_close(moved, plans(base, first, reward=pair, num_inference_steps=2))
    assert np.abs(moved - own).max() > 0.01 and np.abs(moved - plain).max() > 0.01


@pytest.mark.lengthy
def test_every_episode_may_have_a_weight_of_its_own():
    base, expert = denoiser(0), denoiser(1)

    def planned(weight, episodes):
        options = {"expert": expert, "guidance_scale": weight, "stop_step": 2}
        planner = rollouts.planner(base, NORMALISER, HOPPER, 8, stream(4, 0), **options)
        return planner(OBSERVATIONS, episodes)

    own = planned(torch.tensor([9.0, 0.0, 0.5, 9.0, 1.0]), np.array([1, 2, 4]))
    for k, weight in enumerate((0.0, 0.5, 1.0)):
        assert_close(own[k], planned(weight, ALL)[k])
    assert np.abs(planned(0.0, ALL) - planned(1.0, ALL)).max(axis=(1, 2)).min() > 0.01


@pytest.mark.parametrize(
    ("guidance", "named"),
    [
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0"),
        ({"guidance_scale": torch.tensor([1.0, float("nan")])}, "guidance_scale=nan"),
        ({"stop_step": 5}, "stop_step=5"),
        ({"num_inference_steps": 6}, "num_inference_steps=6"),
        ({"num_inference_steps": 1}, "num_inference_steps=1"),
    ],
)
def test_guidance_is_refused_before_anything_is_played(guidance, named):
    with pytest.raises(InputError, match=named):
        rollouts.planner(denoiser(0), NORMALISER, HOPPER, 8, stream(4, 0), **guidance)


def test_a_plan_in_fewer_steps_is_the_samplers():
    short = rollouts.planner(
        denoiser(0), NORMALISER, HOPPER, 8, stream(4, 0), num_inference_steps=3
    )
    first = torch.from_numpy((OBSERVATIONS - 1) / 3)
    assert_close(short(OBSERVATIONS, ALL), plans(denoiser(0), first, num_inference_steps=3))
    assert np.abs(short(OBSERVATIONS, ALL) - plans(denoiser(0), first)).max() > 0.01


@pytest.mark.parametrize("executed", [1, 2])
def test_what_is_recorded_is_what_was_seen_and_asked_for(executed):
    """Every observation before its action, its number as it was then."""
    seen = {k: [] for k in range(3)}

    def plan(observations, episodes):
        for k, row in zip(episodes, observations.copy(), strict=True):
            seen[int(k)].append(row)
        return closed_form(observations)

    made = rollouts.play(HOPPER, plan, 3, 7, steps=7, executed=executed)
    for k, (start, stop) in enumerate(made.bounds):
        own = made.observations[start:stop]
        assert_array_equal(own[::executed], np.stack(seen[k]))
        assert (np.abs(np.diff(own, axis=0)).max(1) > 0).all()
        actions = np.clip(closed_form(own[::executed])[:, :executed], -1, 1)
        assert_array_equal(made.actions[start:stop], actions.reshape(-1, 3)[: stop - start])


def test_starts_come_round_again_after_as_many_as_are_asked_for():
    made = rollouts.play(HOPPER, closed_form, 5, 7, steps=1, starts=2)
    first = made.observations
    assert_array_equal(first[:2], first[2:4])
    assert_array_equal(first[0], first[4])
    assert not np.array_equal(first[0], first[1])
