"""Plans carried out, against trajectories that were recorded."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerator import OnAccelerator
from torch.testing import assert_close

from rrlib.errors import InputError
from rrlib.mazes import driving as planning
from rrlib.mazes import world as maze
from rrlib.method.denoisers import Denoiser
from rrlib.method.noise.schedulers import cosine_scheduler
from rrlib.method.rewards import RelativeReward, compose
from rrlib.plans.networks import PlanNetwork
from rrlib.plans.normalisers import Normaliser
from rrlib.plans.rewards import WindowReward
from rrlib.training import stream

EPISODES, LENGTH = 5, 49


@pytest.fixture(scope="module")
def recorded():
    """A maze, its normaliser, and plans [5, 49, 6] that the way-point controller drove."""
    world = maze.load("open")
    made = maze.make_trajectories(world, EPISODES, LENGTH, goal=(3.0, 5.0), seed=1)
    plans = np.concatenate([made.actions, made.observations], 1).reshape(EPISODES, LENGTH, 6)
    return world, Normaliser.fit(made), plans


@pytest.mark.parametrize("every", [1, 16, 48])
def test_a_ball_follows_a_plan_that_physics_allows(recorded, every):
    world, normaliser, plans = recorded
    asked = []

    def planner(first):
        start = len(asked) * every
        asked.append(first)
        rest = np.concatenate([plans[:, start:], plans[:, -1:].repeat(start, 1)], 1)
        return torch.from_numpy(normaliser.normalise(rest))

    starts = world.to_cells(plans[:, 0, 2:4])
    positions = planning.drive(world, planner, normaliser, starts, LENGTH - 1, every)
    assert len(asked) == -(-(LENGTH - 1) // every)
    assert np.abs(positions - plans[:, 1:, 2:4]).max() < 2e-3


def test_the_planner_is_told_where_the_ball_is(recorded):
    world, normaliser, plans = recorded
    told = []

    def planner(first):
        told.append(first)
        return torch.from_numpy(normaliser.normalise(plans))

    starts = world.to_cells(plans[:, 0, 2:4])
    positions = planning.drive(world, planner, normaliser, starts, 20, 10)
    rows = np.concatenate([np.zeros((EPISODES, 2)), plans[:, 0, 2:4], np.zeros((EPISODES, 2))], 1)
    assert_close(told[0], torch.from_numpy(normaliser.normalise(rows.astype(np.float32))[:, 2:]))
    where = np.concatenate([np.zeros((EPISODES, 2)), positions[:, 9], np.zeros((EPISODES, 2))], 1)
    expected = normaliser.normalise(where.astype(np.float32))[:, 2:4]
    assert_close(told[1][:, :2], torch.from_numpy(expected))


def test_a_ball_off_its_plan_is_pulled_back(recorded):
    world, normaliser, plans = recorded
    rest = np.zeros((EPISODES, 60, 6), np.float32)
    rest[..., 2:4] = plans[:, :1, 2:4] + 0.3
    starts = world.to_cells(plans[:, 0, 2:4])
    positions = planning.drive(
        world,
        lambda first: torch.from_numpy(normaliser.normalise(rest)),
        normaliser,
        starts,
        59,
        59,
    )
    free = world.is_free(world.to_cells(rest[:, 0, 2:4]))
    assert free.any()
    gap = np.linalg.norm(positions[:, -1] - rest[:, 0, 2:4], axis=1)
    assert (gap[free] < 0.1).all()


def test_plans_begin_where_they_are_told_and_a_reward_changes_the_rest():
    torch.manual_seed(0)
    model = Denoiser(PlanNetwork(6, (8, 16)), cosine_scheduler(6))
    model.network.requires_grad_(False)
    first = torch.rand(3, 4, generator=stream(0, 0)) - 0.5
    plain = planning.plans_from(model, first, 16, stream(1, 0))
    assert plain.shape == (3, 16, 6)
    assert_close(plain[:, 0, 2:], first)
    reward = RelativeReward(WindowReward(6, 4, torch.ones(6), (8,)), "mean", "mu_base")
    steered = planning.plans_from(model, first, 16, stream(1, 0), reward, 2.0)
    assert (steered - plain)[:, 1:].abs().max() > 1e-4
    weightless = planning.plans_from(model, first, 16, stream(1, 0), reward, 0.0)
    assert_close(weightless, plain)


def test_a_reward_sees_at_every_step_where_the_plan_begins():
    model = Denoiser(PlanNetwork(6, (8, 16)), cosine_scheduler(6))
    first, seen = torch.rand(3, 4, generator=stream(0, 0)) - 0.5, []

    class Seeing(WindowReward):
        def forward(self, x_t, t):
            seen.append(x_t[:, 0, 2:].detach().clone())
            return super().forward(x_t, t)

    for place in ("x_t", "mu_base"):
        reward = RelativeReward(Seeing(6, 4, torch.ones(6), (8,)), "mean", place)
        planning.plans_from(model, first, 16, stream(1, 0), reward)
    assert len(seen) >= 12
    at_x_t, at_mean = seen[:6], seen[6:12]
    assert all(torch.equal(one, first) for one in at_x_t)
    # The mean of what is clean at t and before: between x_0 and x_t, which are one.
    scale = [one.norm() / first.norm() for one in at_mean]
    for one, k in zip(at_mean, scale, strict=True):
        assert_close(one / k, first, atol=1e-5, rtol=1e-5)


def test_reached_is_the_first_step_within_reach():
    world = maze.load("open")
    goal = (1.0, 1.0)
    positions = np.tile(world.to_xy((3.0, 5.0)), (3, 10, 1))
    positions[1, 4:] = world.to_xy((1.0, 1.4))
    positions[2, 7] = world.to_xy((1.0, 1.44))
    positions[2, 3] = world.to_xy((1.0, 1.46))  # PointMaze's reach is 0.45
    assert planning.reached(world, positions, goal).tolist() == [10, 4, 7]


def test_plans_may_come_from_another_device(recorded):
    world, normaliser, plans = recorded
    made = torch.from_numpy(normaliser.normalise(plans)).as_subclass(OnAccelerator)
    starts = world.to_cells(plans[:, 0, 2:4])
    planning.drive(world, lambda first: made, normaliser, starts, 3, 3)


def test_plans_are_made_where_the_noise_is(monkeypatch):
    seen = {}

    def given(model, first):
        seen["first"] = first.device.type
        return model

    def sample(model, shape, generator, **guidance):
        seen.update(shape=shape, **guidance)

    monkeypatch.setattr(planning, "given", given)
    monkeypatch.setattr(planning.steering, "sample", sample)
    noise = SimpleNamespace(device=torch.device("meta"))
    planning.plans_from("model", torch.zeros(3, 4), 16, noise, "reward", 2.0, 7, 3)
    keep = seen.pop("keep")
    assert keep(torch.ones(3, 16, 6, device="meta")).device.type == "meta"
    asked = {"reward": "reward", "guidance_scale": 2.0, "num_inference_steps": 7}
    asked |= {"resamplings": 3}
    assert seen == {"first": "meta", "shape": (3, 16, 6), **asked}
    planning.plans_from("model", torch.zeros(3, 4), 16, noise, None, 2.0)
    assert seen["guidance_scale"] == 0.0


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_plans_that_are_not_finite_are_refused(recorded, value):
    world, normaliser, plans = recorded
    starts = world.to_cells(plans[:, 0, 2:4])
    made = torch.from_numpy(normaliser.normalise(plans))
    made[1, 2, 0] = value
    with pytest.raises(InputError, match=r"^planner: its plans are not finite"):
        planning.drive(world, lambda first: made, normaliser, starts, 10, 10)


def test_the_controller_is_the_one_that_is_documented(recorded, monkeypatch):
    """action = the plan's + 10 (position wanted - position) + 1 (velocity wanted - velocity)."""
    world, normaliser, plans = recorded
    pushes = []

    def step(world, states, push, accelerations):
        pushes.append((states.copy(), push))
        return states + 0.01, accelerations

    monkeypatch.setattr(maze, "step", step)
    starts = world.to_cells(plans[:, 0, 2:4])
    made = torch.from_numpy(normaliser.normalise(plans))
    planning.drive(world, lambda first: made, normaliser, starts, 4, 2)
    for (states, push), k in zip(pushes, (0, 1, 0, 1), strict=True):
        row = plans[:, k].astype(float)
        wanted = row[:, :2] + 10 * (row[:, 2:4] - states[:, :2]) + (row[:, 4:] - states[:, 2:])
        np.testing.assert_allclose(push, wanted, atol=1e-4)


def test_weighted_plans_begin_where_the_ball_is_and_follow_the_sum():
    """Of linear models: the samples are those of `sample_weighted`, told the first observation."""
    model = Denoiser(lambda x, t: 0.5 * x, cosine_scheduler(6, clip=False))
    parts = [
        RelativeReward(WindowReward(6, 4, torch.ones(6), hidden=(8,)), "score", "x_t")
        for _ in range(2)
    ]
    reward, first = compose(parts, (1.0, 1.0)), torch.tensor([[1.0, 2, 3, 4], [-1.0, 0, 1, 0]])
    found = planning.weighted_plans(model, first, 8, reward, particles=5, seed=3)
    assert found.samples.shape == (2, 5, 8, 6) and found.effective.shape == (6, 2)
    assert torch.equal(found.samples[:, :, 0, 2:], first[:, None].expand(2, 5, 4))
    assert_close(found.weights.sum(1), torch.ones(2).double())
    again = planning.weighted_plans(model, first, 8, reward, particles=5, seed=3)
    assert torch.equal(found.samples, again.samples)


def test_a_selected_plan_is_the_best_of_the_models_own():
    model = Denoiser(lambda x, t: 0.5 * x, cosine_scheduler(6, clip=False))
    first, noise = torch.tensor([[1.0, 2, 3, 4], [-1.0, 0, 1, 0]]), (4, 0)
    drawn = stream(*noise)
    made = torch.stack([planning.plans_from(model, first, 8, drawn) for _ in range(7)])
    worth = made.flatten(2).sum(2)
    found = planning.selected_plans(
        model, first, 8, stream(*noise), lambda x, t: x.flatten(1).sum(1), 7
    )
    assert torch.equal(found, made[worth.argmax(0), torch.arange(2)])
    assert torch.equal(found[:, 0, 2:], first)


@pytest.mark.parametrize("taken", [None, 2, 5])
def test_every_way_to_plan_takes_as_many_steps_as_it_is_told(taken):
    """Calls of the model: by steering, by weights, and by selection among three."""
    calls = []

    def network(x, t):
        calls.append(int(t[0]))
        return 0.5 * x

    model = Denoiser(network, cosine_scheduler(6, clip=False))
    reward = RelativeReward(WindowReward(6, 4, torch.ones(6), hidden=(5,)), "mean", "mu_base")
    first, how = torch.zeros(2, 4), {"num_inference_steps": taken}
    steps = taken or 6
    planning.plans_from(model, first, 8, stream(0, 0), reward, **how)
    assert len(calls) == steps and calls[0] == 5
    planning.weighted_plans(model, first, 8, reward, particles=3, **how)
    assert len(calls) == 2 * steps
    planning.selected_plans(model, first, 8, stream(0, 0), reward, 3, **how)
    assert len(calls) == 5 * steps


def test_weighted_plans_are_drawn_by_their_seed():
    model = Denoiser(lambda x, t: 0.5 * x, cosine_scheduler(6, clip=False))
    reward = RelativeReward(WindowReward(6, 4, torch.ones(6), hidden=(5,)), "mean", "mu_base")
    found = [
        planning.weighted_plans(model, torch.zeros(2, 4), 8, reward, particles=3, seed=seed)
        for seed in (1, 1, 2)
    ]
    assert torch.equal(found[0].samples, found[1].samples)
    assert not torch.equal(found[0].samples[:, :, 1:], found[2].samples[:, :, 1:])
