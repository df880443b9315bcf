"""Evidence of a reward that is known: high at the goal, low elsewhere."""

import numpy as np
import pytest
import torch
from accelerator import OnAccelerator
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from rrlib import metrics
from rrlib.lab.mazes import evidence as maze_evidence
from rrlib.mazes import world as maze
from rrlib.method.rewards import RelativeReward
from rrlib.plans.normalisers import Normaliser
from rrlib.plans.rewards import WindowReward

GOAL, HORIZON = (1.0, 4.0), 8


class Near(WindowReward):
    """g of a window of one step: minus the distance to the goal, times a sign."""

    def __init__(self, sign: float, goal: np.ndarray):
        super().__init__(6, 1, torch.ones(5), (1,))
        self.sign, self.goal = sign, torch.from_numpy(goal).float()

    def per_window(self, x, t):
        return -self.sign * (x[..., 2:4] - self.goal).norm(dim=-1)


@pytest.fixture(scope="module")
def world():
    return maze.load("open")


def sample(world, goal, n=600):
    """Plans at rest: the base's anywhere, the expert's around the goal; one trajectory each."""
    rng = np.random.default_rng(0)
    cells = world.sample(n, rng)
    if goal:
        cells = np.array(goal) + 0.15 * rng.standard_normal((n, 2))
    plans = np.zeros((n, HORIZON, 6), np.float32)
    plans[..., 2:4] = world.to_xy(cells)[:, None]
    one = Normaliser(-np.ones(6, np.float32), np.ones(6, np.float32))
    return maze_evidence.Sample.of(world, one, (torch.from_numpy(plans), np.arange(n)))


def judged(world, sign):
    reward = RelativeReward(Near(sign, world.to_xy(GOAL)), "mean", "mu_base")
    base, expert = sample(world, None), sample(world, GOAL)
    return maze_evidence.judge(world, GOAL, reward, base, expert, seed=0), reward, base, expert


def test_a_reward_of_the_goal_is_found_there_and_tells_the_expert(world):
    evidence, reward, base, expert = judged(world, 1.0)
    assert evidence.distance < 0.35
    assert evidence.distance == pytest.approx(np.hypot(*np.subtract(evidence.peak, GOAL)))
    assert evidence.accuracy > 0.9
    rho = [maze_evidence.plan_rewards(reward, s.plans) for s in (base, expert)]
    truth = np.repeat([0, 1], [len(part) for part in rho])
    assert evidence.auc == pytest.approx(roc_auc_score(truth, np.concatenate(rho)), abs=0.03)
    visits = metrics.log_visit_ratio(
        base.cells.reshape(-1, 2), expert.cells.reshape(-1, 2), world.walls.shape
    )
    both = np.isfinite(visits) & np.isfinite(evidence.heat)
    literal = spearmanr(evidence.heat[both], visits[both]).statistic
    assert evidence.correlation == pytest.approx(literal) and literal > 0.5


def test_the_same_reward_turned_round_fails_in_every_number(world):
    evidence, *_ = judged(world, -1.0)
    assert evidence.distance > 1.5 and evidence.auc < 0.1 and evidence.correlation < -0.5


def test_cells_are_those_of_the_plans(world):
    expert = sample(world, GOAL, 5)
    assert expert.cells.shape == (5, HORIZON, 2)
    assert np.allclose(world.to_xy(expert.cells), expert.plans[..., 2:4].numpy(), atol=1e-5)


class Elsewhere(WindowReward):
    """A network on another device; torch's own "meta" is one that every machine has."""

    def __init__(self):
        super().__init__(6, 1, torch.ones(5), (1,))
        self.to("meta")

    def per_window(self, x, t):
        assert x.device.type == t.device.type == "meta"
        return torch.rand(x.shape[:2]).as_subclass(OnAccelerator)


def test_a_reward_is_judged_on_its_own_device(world):
    reward = RelativeReward(Elsewhere(), "mean", "mu_base")
    base, expert = sample(world, None), sample(world, GOAL)
    assert type(maze_evidence.plan_rewards(reward, base.plans)) is np.ndarray
    evidence = maze_evidence.judge(world, GOAL, reward, base, expert, seed=0)
    assert 0.3 < evidence.auc < 0.7


def test_plans_are_scored_at_t_0_and_seeds_split_trajectories(world, monkeypatch):
    """Scored without noise; the seed is that of the split, trajectories are the plans' own."""
    seen, split = [], {}

    class Asked(Near):
        def per_window(self, x, t):
            seen.append(t)
            return super().per_window(x, t)

    def separability(*arguments):
        split["arguments"] = arguments
        return metrics.Separability(0.5, 0.5, 1)

    monkeypatch.setattr(metrics, "separability", separability)
    reward = RelativeReward(Asked(1.0, world.to_xy(GOAL)), "mean", "mu_base")
    base, expert = sample(world, None, 50), sample(world, GOAL, 40)
    maze_evidence.judge(world, GOAL, reward, base, expert, seed=7)
    assert sorted(len(t) for t in seen) == [40, 50, 50] and not torch.cat(seen).any()
    rho_base, rho_expert, of_base, of_expert, seed = split["arguments"]
    assert (len(rho_base), len(rho_expert), seed) == (50, 40, 7)
    assert of_base is base.owner and of_expert is expert.owner
