"""Ways without training, asked about plans whose first observation is given."""

from functools import partial

import numpy as np
import torch

import rrlib
from rrlib.lab.locomotion.rivals import Episodes, numbers
from rrlib.plans.conditioning import given
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
