"""Agents that learn from a reward: what they are paid, the worlds they are in, those shipped."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rrlib import disk
from rrlib.errors import InputError
from rrlib.lab.agents import evidence, experiments, worths
from rrlib.lab.agents.worlds import REPEAT, Balls, Robots
from rrlib.locomotion import robots
from rrlib.mazes import world as maze
from rrlib.method.denoisers import Denoiser
from rrlib.method.noise.schedulers import cosine_scheduler
from rrlib.method.rewards import RelativeReward
from rrlib.plans.normalisers import Normaliser
from rrlib.plans.rewards import WindowReward
from rrlib.plans.trajectories import Trajectories
from rrlib.theory import examples

RULER = Normaliser(np.array([-2, 0, 1], "f4"), np.array([2, 4, 3], "f4"))


def trajectories(rows: np.ndarray) -> Trajectories:
    """One episode of steps [n, 3]: an action and two observations."""
    ends = np.arange(len(rows)) == len(rows) - 1
    rows = rows.astype(np.float32)
    return Trajectories(rows[:, 1:], rows[:, :1], np.zeros(len(rows), "f4"), ~ends & False, ends)


def test_the_extracted_value_is_the_networks_at_t_0():
    torch.manual_seed(0)
    reward = RelativeReward(WindowReward(3, 1, torch.linspace(1, 2, 10)), "score", "x_t")
    rows = np.random.default_rng(0).normal(size=(7, 3))
    found = worths.extracted(reward, RULER)(rows)
    for row, value in zip(rows, found, strict=True):
        x = torch.tensor([[(row[0] - 0) / 2, (row[1] - 2) / 2, (row[2] - 2) / 1]]).float()
        assert reward(x, torch.zeros(1, dtype=torch.long)).item() == pytest.approx(value, rel=1e-4)


def test_smilings_value_is_the_difference_of_squared_noise_errors():
    """By its formula at the levels that it asks, with so many draws that their mean has settled."""
    base, expert = (
        mixture.denoiser(cosine_scheduler(10, clip=False))
        for mixture in (examples.base(), examples.expert())
    )
    ruler = Normaliser(np.full(2, -1, "f4"), np.ones(2, "f4"))
    point = np.array([[0.4, -0.3]])
    x = torch.tensor(point)
    draws, terms = torch.Generator().manual_seed(1), []
    for t in range(10):
        noise = torch.randn(4_000, 2, generator=draws, dtype=torch.float64)
        abar, step = base.abar(torch.tensor([t]), x), torch.full((4_000,), t)
        x_t = abar.sqrt() * x + (1 - abar).sqrt() * noise
        errors = [(m.epsilon(x_t, step) - noise).square().sum(1) for m in (base, expert)]
        terms.append((errors[0] - errors[1]).mean())

    def flat(mixture: Denoiser) -> Denoiser:
        network = mixture.network
        return replace(mixture, network=lambda x, t: network(x[:, 0].double(), t)[:, None].float())

    pair = flat(base), flat(expert)
    value = worths.smiling(*pair, ruler, seed=0)
    found = np.mean([value(np.repeat(point, 500, 0)).mean() for _ in range(4)])
    assert found == pytest.approx(float(torch.stack(terms).mean()), rel=0.05)


def test_wages_are_cut_moved_and_scaled():
    base = trajectories(np.tile(np.arange(101.0)[:, None], 3))
    expert = trajectories(np.tile(np.arange(100.0, 201)[:, None], 3))
    pay = worths.payment(lambda rows: rows[:, 0] - 1000, base, expert)
    assert (pay.low, pay.high) == (50 - 1000, 190 - 1000)
    mean = np.minimum(np.arange(100, 201), 190).mean() - 50
    rows = np.tile(np.array([0.0, 50, 120, 500])[:, None], 3)
    assert pay(rows) == pytest.approx(np.array([0, 0, 70, 140]) / mean)
    still = worths.payment(lambda rows: rows[:, 0] - 1000, base, expert, moved=False)
    assert still(rows) == pytest.approx(np.array([-950, -950, -880, -810]) / mean)
    with pytest.raises(InputError, match="ranks the base's steps above the expert's"):
        worths.payment(lambda rows: -rows[:, 0], base, expert)


def test_a_balls_step_is_ten_of_the_mazes_and_ends_in_a_fresh_start():
    balls = Balls("umaze", (3.0, 1.0), 4, 2 * REPEAT)
    first = balls.reset(3).astype(float)
    force = np.array([[1.0, 0], [0, 1], [-1, 0], [0.3, -0.7]], "f4")
    moved = balls.step(force)
    states, accelerations = first, np.zeros((4, 2))
    for k in range(REPEAT):
        assert np.allclose(moved.rows[:, k, 2:], states, atol=1e-6)
        states, accelerations = maze.step(balls.world, states, force, accelerations)
    assert np.allclose(moved.last, states, atol=1e-6) and not moved.late.any()
    ended = balls.step(force)
    assert ended.late.all() and not ended.fallen.any()
    assert (ended.now[:, 2:] == 0).all() and not np.allclose(ended.now, ended.last)


def test_the_mazes_own_reward_counts_steps_near_the_goal():
    balls = Balls("umaze", (3.0, 1.0), 3, 300)
    balls.reset(0)
    balls.states[0, :2] = balls.goal
    moved = balls.step(np.zeros((3, 2), "f4"))
    assert moved.own[0] == REPEAT and worths.wages(moved, None)[0] == 1


def test_a_robots_fall_is_told_from_its_time():
    robots = Robots("hopper", 2)
    seen, fallen = robots.reset(0), np.zeros(2, bool)
    for _ in range(200):
        moved = robots.step(np.ones((2, 3), "f4"))
        assert (moved.rows[:, 0, 3:] == seen).all()
        seen, fallen = moved.now, fallen | moved.fallen
        if moved.fallen.any():
            k = int(np.flatnonzero(moved.fallen)[0])
            assert moved.last[k, 0] != moved.now[k, 0] and abs(moved.now[k, 0] - 1.25) < 0.01
        assert not moved.late.any()
    robots.close()
    assert fallen.all()


@pytest.mark.parametrize("name", [f"{w}-{t}" for w, ts in evidence.shipped().items() for t in ts])
def test_a_shipped_agent_is_whole_and_says_who_paid_it(name):
    world, teacher = name.split("-")
    policy, card = evidence.load_agent(world, teacher)
    assert (card["world"], card["teacher"]) == (world, teacher)
    assert teacher in experiments.TEACHERS and card["shipped"] <= card["steps"]
    assert ("wages" in card) == (teacher != "true")
    width = 2 if world == "pointmaze" else robots.load(world).action
    seen = 4 if world == "pointmaze" else robots.load(world).observation
    actions = policy.act(np.zeros((3, seen), "f4"))
    assert actions.shape == (3, width) and (np.abs(actions) <= 1).all()


def test_the_agents_of_a_world_had_the_same_budget():
    for world, teachers in evidence.shipped().items():
        cards = [evidence.load_agent(world, t)[1] for t in teachers if t != "unmoved"]
        assert len({card["steps"] for card in cards}) == 1, world
        assert len({str(card["settings"]) for card in cards}) == 1, world


def test_a_damaged_agent_and_a_missing_one_are_refused(tmp_path):
    with pytest.raises(InputError, match="No agent 'pointmaze-nobody' is shipped"):
        evidence.load_agent("pointmaze", "nobody", tmp_path)
    (tmp_path / "pointmaze-true.safetensors").write_bytes(b"0")
    card = tmp_path / "pointmaze-true.json"
    for content in ({"sha256": "1"}, [], 5):  # no object, or one without a checksum
        disk.write_json(card, content)
        with pytest.raises(InputError, match=r"pointmaze-true\.json' is damaged"):
            evidence.load_agent("pointmaze", "true", tmp_path)
    disk.write_sealed(card, {"sha256": "1"})
    with pytest.raises(InputError, match="is damaged: one with its card's sha256"):
        evidence.load_agent("pointmaze", "true", tmp_path)


def test_the_agent_of_the_extracted_reward_reaches_the_goal_and_chance_does_not():
    agent, _ = evidence.load_agent("pointmaze", "extracted")
    found = evidence.push_balls(agent.act, 60, seed=99)
    assert found.reached.mean() >= 0.9
    random = evidence.push_balls(evidence.at_random(2, 0), 60, seed=99)
    assert random.reached.mean() <= 0.5


def test_the_fit_is_as_long_as_is_asked_for():
    for world, share in (("pointmaze", 1.0), ("hopper", 0.75)):
        for asked, steps in ((4_000, 4_000 * share), (1, 1)):
            e = experiments.experiment(world, steps=asked)
            assert e.reward.steps == e.discriminator.steps == steps
            assert e.reward.hidden == e.discriminator.hidden == experiments.HIDDEN[world]
