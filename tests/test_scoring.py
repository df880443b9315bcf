"""Rewards on recorded data: sliding windows against the literal loop, units, order, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from tell_rewards import TOLD
from torch.testing import assert_close

import rrlib
from rrlib.errors import DataWarning, InputError
from rrlib.locomotion import robots
from rrlib.locomotion import world as locomotion
from rrlib.mazes import world as maze
from rrlib.method.networks.sums import Rescaled, WeightedSum
from rrlib.method.rewards import RelativeReward
from rrlib.plans import trajectories as tr
from rrlib.plans.perceptron import PlanPotential
from rrlib.plans.rewards import ConditionalReward, PlanValue, WindowReward
from rrlib.plans.scoring import score, steps_seen
from rrlib.tensor_files import read_tensors

FULL = Path(__file__).resolve().parent.parent / "results" / "full"
UNIT = torch.linspace(0.5, 2, 10)
LOW, HIGH = np.float32([-2, 0, 10]), np.float32([2, 100, 11])
LAYOUT = rrlib.PlanLayout(rrlib.Normaliser(LOW, HIGH), actions=1, observations=2)
LENGTHS = 9, 4, 30


def reward(window=4, **options) -> RelativeReward:
    torch.manual_seed(0)
    return RelativeReward(WindowReward(3, window, UNIT, (16,), **options), "score", "x_t")


def recorded(lengths=LENGTHS, seed=0) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.uniform(LOW, HIGH, (n, 3)).astype("f4") for n in lengths]


def literal(found, parts, span, stride=1):
    """Window by window, in double loops."""
    steps, whole = [], []
    for rows in parts:
        x = 2 * (rows - LOW) / (HIGH - LOW) - 1
        starts = sorted({*range(0, len(x) - span + 1, stride), len(x) - span})
        worth = []
        for k in starts:
            plan = torch.from_numpy(x[k : k + span].astype("f4"))[None]
            with torch.no_grad():
                worth.append(float(found(plan, torch.zeros(1, dtype=torch.long))))
        for i in range(len(x)):
            near = [w for k, w in zip(starts, worth, strict=True) if k <= i < k + span]
            steps.append(np.mean(near))
        whole.append(np.mean(worth))
    return np.array(steps, "f4"), np.array(whole, "f4")


@pytest.mark.parametrize("average", [1, 2])
@pytest.mark.parametrize("stride", [1, 3, 4])
def test_windows_slide_along_trajectories_of_any_length(stride, average):
    found, parts = reward(average=average), recorded()
    scores = score(found, parts, layout=LAYOUT, stride=stride, batch=5)
    steps, whole = literal(found, parts, 4, stride)
    np.testing.assert_allclose(scores.per_step, steps, atol=1e-5)
    np.testing.assert_allclose(scores.per_trajectory, whole, atol=1e-5)
    np.testing.assert_array_equal(np.diff(scores.bounds)[:, 0], LENGTHS)


def test_all_forms_of_the_same_data_score_alike(tmp_path):
    found, plans = reward(), np.stack(recorded((8, 8, 8)))
    expected = score(found, plans, layout=LAYOUT)
    data = tr.Trajectories(
        plans[..., 1:].reshape(-1, 2), plans[..., 0].reshape(-1, 1), None,
        np.zeros(24, bool), np.arange(24) % 8 == 7,
    )  # fmt: skip
    tr.write_hdf5(tmp_path / "a.hdf5", data)
    others = [torch.from_numpy(plans), plans.astype("f8"), list(plans), data]
    with pytest.warns(DataWarning, match="read without rewards"):
        others.append(tr.read(tmp_path / "a.hdf5"))
    for form in others:
        scores = score(found, form, layout=LAYOUT)
        np.testing.assert_allclose(scores.per_step, expected.per_step, rtol=1e-6, atol=1e-6)
    with pytest.warns(DataWarning, match="read without rewards"):
        scores = score(found, str(tmp_path / "a.hdf5"), layout=LAYOUT)
    np.testing.assert_array_equal(scores.per_trajectory, expected.per_trajectory)
    one = score(found, plans[0], layout=LAYOUT)
    np.testing.assert_allclose(one.per_trajectory, expected.per_trajectory[:1], atol=1e-6)


def test_observations_first_and_observations_alone():
    """The same numbers in another order, to a network whose first layer is in that order."""
    found, parts = reward(), recorded()
    expected = score(found, parts, layout=LAYOUT).per_step
    turned = reward()
    with torch.no_grad():
        weight = turned.network.g[0].weight
        cut = weight[:, :12].unflatten(1, (4, 3)).clone()
        weight[:, :12] = cut[..., [1, 2, 0]].flatten(1)
    ruler = rrlib.Normaliser(LOW[[1, 2, 0]], HIGH[[1, 2, 0]])
    layout = rrlib.PlanLayout(ruler, 1, 2, order=("observations", "actions"))
    data = LAYOUT.trajectories(np.concatenate(parts), np.isin(np.arange(43), [8, 12, 42]))
    for form in (data, [rows[:, [1, 2, 0]] for rows in parts]):
        np.testing.assert_allclose(score(turned, form, layout=layout).per_step, expected, atol=1e-5)
    torch.manual_seed(0)
    alone = RelativeReward(WindowReward(2, 4, UNIT, (16,)), "score", "x_t")
    ruler = rrlib.Normaliser(LOW[1:], HIGH[1:])
    layout = rrlib.PlanLayout(ruler, 1, 2, order=("observations",))
    both = [
        score(alone, form, layout=layout).per_step for form in (data, [r[:, 1:] for r in parts])
    ]
    np.testing.assert_allclose(*both, atol=1e-6)


def test_a_short_trajectory_is_continued_at_rest():
    found, (rows,) = reward(), recorded((3,))
    with pytest.warns(
        DataWarning, match=r"1 of 2 are shorter than the 4 steps that the reward sees"
    ):
        scores = score(found, [rows, *recorded((6,))], layout=LAYOUT)
    longer = np.concatenate([rows, [[0, *rows[-1, 1:]]]])
    assert_close(scores.per_trajectory[0], score(found, longer, layout=LAYOUT).per_trajectory[0])
    assert scores.per_step.shape == (9,)


def test_how_many_steps_each_kind_sees():
    window, horizon = WindowReward(3, 4, UNIT), rrlib.PlanLayout(LAYOUT.normaliser, 1, 2, horizon=8)
    kinds = {
        window: 4,
        WindowReward(3, 4, UNIT, strided=True): 8,
        PlanPotential(3, 6, UNIT, 8, 1): 6,
        ConditionalReward(PlanPotential(3, 6, UNIT, 8, 1), 2): 6,
        PlanValue(3, UNIT, (32,)): 8,
        WeightedSum([window, WindowReward(3, 6, UNIT)], [1, 2]): 12,
        Rescaled(window, torch.ones(3)): 4,
        Rescaled(window, torch.ones(8, 3)): 8,
    }
    for network, steps in kinds.items():
        assert steps_seen(network, horizon) == steps
    with pytest.raises(InputError, match="horizon=None is not allowed for a PlanValue"):
        steps_seen(PlanValue(3, UNIT, (32,)), LAYOUT)
    strided = RelativeReward(WindowReward(3, 4, UNIT, (8,), strided=True), "score", "x_t")
    scores = score(strided, recorded((8,)), layout=horizon)
    assert_close(scores.per_trajectory, literal(strided, recorded((8,)), 8)[1], atol=1e-5, rtol=0)


# Units and range


def test_data_of_other_units_or_another_order_are_refused():
    rows = recorded((50,))[0]
    for wrong, name in (
        (rows * 100, "action 0 from"),
        (rows[:, ::-1], "action 0 from 10"),
        (rows / 1e3, "observation 1 from .* there about 10 to 11"),
    ):
        with pytest.raises(InputError, match=rf"^trajectories: {name}.*, are needed\.$"):
            score(reward(), wrong, layout=LAYOUT)
    rows[:10, 1] = 400
    with pytest.warns(DataWarning, match=r"observation 0 from .* to 400 \(there 0 to 100, and 20%"):
        score(reward(), rows, layout=LAYOUT)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no step is not allowed"),
        ([np.zeros((0, 3))], "no step is not allowed"),
        (7, "int is not allowed: Trajectories, a file"),
        ([np.zeros(3)], r"ndarray of shape \(3,\) is not allowed: arrays \[H, 3\]"),
        (np.zeros((5, 4, 2)), r"of shape \(4, 2\) is not allowed: arrays \[H, 3\]"),
        ([["a", "b", "c"]], "list of shape"),
        (np.full((5, 3), np.nan), "that are not finite are not allowed"),
        ("none.hdf5", "is missing"),
    ],
)
def test_what_is_no_data_is_refused_in_a_sentence(data, message):
    with pytest.raises(InputError, match=message) as caught:
        score(reward(), data, layout=LAYOUT)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stride", [0, 5, 1.5, "a"])
def test_a_stride_leaves_no_step_out(stride):
    with pytest.raises(InputError, match=r"stride=.* a whole number from 1 to 4"):
        score(reward(), recorded(), layout=LAYOUT, stride=stride)


# Layouts


def test_a_layout_goes_into_a_file_and_comes_back(tmp_path):
    made = reward()
    made.save(tmp_path / "a.safetensors", LAYOUT.about() | {"models": {"base": "mine"}})
    found = rrlib.load_reward(tmp_path / "a.safetensors")
    assert found.about["models"] == {"base": "mine"}
    scores, expected = found.score(recorded()), score(made, recorded(), layout=LAYOUT)
    np.testing.assert_allclose(scores.per_step, expected.per_step, atol=5e-3)
    found.save(tmp_path / "b.safetensors", {"note": "again"})
    assert rrlib.load_reward(tmp_path / "b.safetensors").about == {**found.about, "note": "again"}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"order": None}, "about: no order is not allowed"),
        ({"low": None, "high": None}, "about: no low, high is not allowed"),
        ({"order": ["actions", "actions"]}, "order="),
        ({"order": "actions"}, "order="),
        ({"widths": {"actions": 2, "observations": 2}}, r"low of shape \(3,\) is not allowed: 4"),
        ({"widths": {"actions": 1.5, "observations": 2}}, "actions=1.5 is not allowed"),
        ({"widths": [1, 2]}, "order, widths, low and high"),
        ({"low": ["a", 1, 2]}, "order, widths, low and high"),
        ({"high": [float("nan")] * 3}, "high of shape"),
        ({"horizon": 0}, "horizon=0 is not allowed"),
    ],
    ids=str,
)
def test_a_layout_that_cannot_be_is_refused(changed, message):
    about = {k: v for k, v in (LAYOUT.about() | changed).items() if v is not None}
    with pytest.raises(InputError, match=message) as caught:
        rrlib.PlanLayout.of(about)
    assert "\n" not in str(caught.value)


# What is shipped


@pytest.mark.parametrize("name", TOLD)
def test_the_texts_of_shipped_files_are_what_the_recipe_makes(name):
    tensors, texts = read_tensors(FULL / f"{name}.safetensors")
    assert TOLD[name](texts, tensors) == texts
    for entry in json.loads(texts["rewards"]).values():
        assert set(entry["about"]["models"]) == {"base", "expert"}


@pytest.mark.lengthy
def test_a_shipped_maze_reward_scores_recorded_balls_of_any_length():
    found = rrlib.load_reward(FULL / "maze2d-rewards.safetensors", name="umaze (1, 1), seed 0")
    world = maze.load("umaze")
    data = [maze.make_trajectories(world, 60, 300, goal, 3) for goal in (None, (1, 1))]
    base, expert = (found.score(one) for one in data)
    truth = np.repeat([0, 1], 60)
    both = np.concatenate([base.per_trajectory, expert.per_trajectory])
    assert roc_auc_score(truth, both) > 0.9  # some of the base's balls are sent there, too
    ball = data[0].observations[:, :2]
    # The nearer by the way of the U the better: its other end is near as the crow flies only.
    way = [(1, 1), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    cells = np.array([way.index(tuple(cell)) for cell in np.rint(world.to_cells(ball)).astype(int)])
    assert spearmanr(cells, base.per_step)[0] < -0.7
    means = [base.per_step[cells == k].mean() for k in range(len(way))]
    assert spearmanr(range(len(way)), means)[0] < -0.9
    # A plan of just the reward's length is worth what the reward says of it.
    plans = tr.cut(data[0], tr.windows(data[0], 128)[:20], 128)
    ruler = rrlib.PlanLayout.of(found.about).normaliser
    x = torch.from_numpy(ruler.normalise(plans))
    expected = found(x, torch.zeros(20, dtype=torch.long)).numpy()
    np.testing.assert_allclose(found.score(plans).per_trajectory, expected, rtol=1e-4)


@pytest.mark.lengthy
def test_the_shipped_robots_reward_scores_recorded_runs():
    found = rrlib.load_reward(FULL / "locomotion-models.safetensors")
    world = robots.load("hopper")
    for kind in ("medium-replay", "expert"):
        data = locomotion.make_trajectories(world, kind, 3_000)
        assert np.isfinite(found.score(data).per_step).all()


def test_a_name_chooses_among_several(tmp_path):
    path = FULL / "maze2d-rewards.safetensors"
    with pytest.raises(InputError, match=r"holds 160 rewards: one is needed, or the name of one"):
        rrlib.load_reward(path)
    with pytest.raises(InputError, match=r"name='none' is not allowed: one of the 160 of"):
        rrlib.load_reward(path, name="none")
