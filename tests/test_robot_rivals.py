"""Ways without training, asked about plans whose first observation is given."""

from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch

import rrlib
from rrlib.lab.locomotion import rivals
from rrlib.lab.locomotion.rivals import Episodes, numbers
from rrlib.plans.conditioning import given
from rrlib.plans.normalisers import Normaliser
from rrlib.plans.trajectories import Trajectories
from rrlib.training import stream

WIDTH = 2
SCHEDULER = rrlib.cosine_scheduler(10, clip=False)


def planner(gain: float) -> rrlib.Denoiser:
    """A planner whose answer depends on what it is given."""

    def network(x, t, given):
        return gain * x + 0.1 * x[:, :1].sum(-1, keepdim=True)

    return rrlib.Denoiser(network, SCHEDULER)


def test_each_plan_has_its_own_first_observation():
    base, expert = planner(0.5), planner(0.6)
    plans = torch.randn(3, 4, 3, generator=stream(0, "plans"))
    way = partial(rrlib.elbo_difference, probes=1, steps=6)
    found = numbers(way, base, expert, plans, WIDTH)
    assert found.shape == (3,)
    # Plans of one first observation need not be told apart: the models are told it once.
    plans[:, 0, -WIDTH:] = plans[0, 0, -WIDTH:]
    told = [given(model, plans[:1, 0, -WIDTH:]) for model in (base, expert)]
    alone = np.concatenate([way(*told, x).value.numpy() for x in plans.split(1)])
    np.testing.assert_allclose(numbers(way, base, expert, plans, WIDTH), alone)
    other = plans.clone()
    other[:, 0, -WIDTH:] += 1
    assert (numbers(way, base, expert, other, WIDTH) != alone).all()


def test_an_episodes_value_is_the_mean_of_its_plans():
    episodes = Episodes(torch.zeros(5, 4, 3), np.array([0, 0, 1, 1, 1]), np.array([3.0, 4.0]))
    values = np.array([1.0, 3.0, 1.0, 2.0, 6.0])
    np.testing.assert_allclose(episodes.means(values), [2.0, 3.0])


@dataclass(frozen=True)
class Data:
    """A data recipe's two numbers."""

    transitions: int
    seed: int


def test_fresh_plans_are_of_another_seed_and_of_episodes_long_enough(monkeypatch):
    lengths = (9, 30, 20)
    ends = np.zeros(sum(lengths), bool)
    ends[np.cumsum(lengths) - 1] = True
    count = np.arange(len(ends), dtype=np.float32)[:, None]
    made = Trajectories(count, -count, np.ones(len(ends), np.float32), ends, np.zeros_like(ends))
    seen = []
    monkeypatch.setattr(rivals.store, "obtain", lambda recipe: seen.append(recipe) or made)
    ruler = Normaliser(np.full(2, -1, np.float32), np.full(2, 1, np.float32))
    diffuser = SimpleNamespace(data=Data(40, 7), horizon=8, normaliser=ruler)
    found = rivals.fresh(diffuser, transitions=59, each=3)
    (asked,) = seen
    assert asked.transitions == 59 and asked.seed != 7
    assert found.returns.tolist() == [30.0, 20.0]  # the first is too short for three plans
    assert found.owner.tolist() == [0, 0, 0, 1, 1, 1]
    steps = ruler.denormalise(found.plans.numpy())[..., 1]
    assert steps[0, 0] == 9 and steps[2, -1] == 38 and steps[5, -1] == 58


def test_fresh_episodes_are_of_seeds_of_their_own(monkeypatch):
    """Other seeds of the data have other fresh episodes, and none are what was learnt from."""
    ends = np.arange(60) % 20 == 19
    count = np.arange(60, dtype=np.float32)[:, None]
    made = Trajectories(count, -count, np.ones(60, np.float32), ends, np.zeros_like(ends))
    seen = []
    monkeypatch.setattr(rivals.store, "obtain", lambda recipe: seen.append(recipe.seed) or made)
    ruler = Normaliser(np.full(2, -1, np.float32), np.full(2, 1, np.float32))
    for seed in range(4):
        diffuser = SimpleNamespace(data=Data(40, seed), horizon=8, normaliser=ruler)
        rivals.fresh(diffuser, transitions=59, each=3)
    assert len(set(seen)) == 4 and not set(seen) & set(range(4))
