"""What a call is given reaches what it is for: options, conditions and chunks that nothing else
tells from their defaults."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

import rrlib
from rrlib.errors import InputError
from rrlib.estimators import noised
from rrlib.lab.agents import worths
from rrlib.mazes import driving
from rrlib.mazes import world as mazes
from rrlib.method import extraction
from rrlib.method.pools import Pool

SCHEDULER = rrlib.cosine_scheduler(10, clip=False)
BASE, EXPERT = (rrlib.Denoiser(lambda x, t, s=s: s * x, SCHEDULER) for s in (0.5, 0.4))


def test_a_level_asks_as_many_probes_and_a_batch_at_a_time_as_it_is_told(monkeypatch):
    seen, asked = {}, noised.elbo_difference

    def bounds(*models, **options):
        seen.update(options)
        return asked(*models, **options)

    monkeypatch.setattr(noised, "elbo_difference", bounds)
    network = rrlib.WindowReward(3, 1, torch.ones(10), hidden=(4,))
    reward = rrlib.RelativeReward(network, "score", "x_t")
    anchors = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    rrlib.level(reward, BASE, EXPERT, anchors, steps=4, probes=3, seed=5, batch=2)
    assert seen == {"steps": 4, "probes": 3, "seed": 5, "batch": 2}


def test_the_best_of_several_is_in_the_precision_that_is_asked_for():
    found = rrlib.best_of(BASE, (2, 3), lambda x, t: x.sum(1), 2, dtype=torch.float64)
    assert found.dtype == torch.float64


def test_a_chunk_of_forces_is_carried_out_in_its_order():
    world, calls = mazes.load("open"), []

    def policy(observations):
        calls.append(observations.clone())
        turn = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
        return turn.expand(len(observations), -1, -1)

    starts = np.array([[2.0, 3.0]])
    found = driving.push(world, policy, starts, 20, every=4)
    first = driving.push(world, policy, starts, 20, every=1)
    assert len(calls) == 5 + 20
    along, across = (np.abs(path[0, -1] - path[0, 0]) for path in (found, first))
    assert along[1] > 2 * along[0] and across[0] > 10 * across[1]


def test_what_a_gradient_explains_under_conditions_is_the_same_in_any_batches():
    class Told(torch.nn.Module):
        def forward(self, x, t, condition):
            return (x * condition).sum(1)

    draws = torch.Generator().manual_seed(0)
    x, condition = torch.randn(90, 2, generator=draws), torch.randn(90, 2, generator=draws)
    pool = Pool(x, torch.arange(90) % 3, condition.clone(), condition=condition)
    for batch in (90, 32):
        assert torch.equal(extraction.explained(Told(), pool, 3, batch), torch.ones(3))


def test_a_number_that_one_model_has_constant_is_no_common_factor():
    low, high = np.float32([-1, 0, -1]), np.float32([1, 0, 1])
    still = rrlib.Normaliser(low, high)
    assert still.factor_to(rrlib.Normaliser(2 * low, 2 * high)) == 0.5
    other = rrlib.Normaliser(np.float32([-1, -1, -1]), np.float32([1, 1, 1]))
    for one, two in ((still, other), (other, still)):
        with pytest.raises(InputError, match=r"^normalisers that differ at \[1\]"):
            one.factor_to(two)


@pytest.mark.parametrize(("far", "told"), [(1.4, False), (1.6, True)])
def test_numbers_beyond_one_and_a_half_halves_of_a_range_are_told_of(far, told):
    ruler = rrlib.Normaliser(np.float32([-2, -2]), np.float32([2, 2]))
    layout = rrlib.PlanLayout(ruler, actions=1, observations=1)
    values = np.zeros((40, 2), np.float32)
    values[:8, 0] = 2 * far  # a fifth of them
    data = layout.trajectories(values, np.arange(40) == 39)
    if told:
        with pytest.warns(UserWarning, match=r"action 0 .* 20% are far outside"):
            layout.check(data)
    else:
        layout.check(data)


def test_a_copy_earns_the_mean_of_what_its_steps_earn():
    rows = np.arange(12.0).reshape(2, 3, 2)
    moved = SimpleNamespace(rows=rows, own=np.array([3.0, 6.0]))
    assert worths.wages(moved, None).tolist() == [1.0, 2.0]
    assert worths.wages(moved, lambda x: x[:, 0]).tolist() == [2.0, 8.0]
