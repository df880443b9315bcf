"""Every field of a maze recipe reaches what it names: calls are recorded, nothing is trained."""

from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rrlib import training
from rrlib.lab import recipes, store
from rrlib.lab.mazes import choices, planning
from rrlib.lab.mazes import experiments as maze_experiments
from rrlib.lab.mazes import presets as maze_sizes
from rrlib.lab.mazes import recipes as maze_recipes
from rrlib.lab.mazes.recipes import (
    FRESH_SEED,
    ComponentDiffuser,
    MazeData,
    MazeDiffuser,
    MazeFile,
    MazePool,
    MazeRewards,
)
from rrlib.mazes import world as maze
from rrlib.method import comparisons, extraction
from rrlib.method.comparisons import Comparisons
from rrlib.plans import conditioning, trajectories
from rrlib.plans.normalisers import Normaliser
from rrlib.plans.trajectories import Trajectories

RULER, SHOWN = MazeData("umaze", None, 30, 40, 2), MazeData("umaze", (3.0, 1.0), 25, 40, 6)
FIT = {"steps": 17, "batch": 5, "learning_rate": 0.03, "seed": 9}
SHAPE = {"horizon": 8, "channels": (8, 16), "diffusion_steps": 6, "given": 0.3}
BASE = MazeDiffuser(RULER, RULER, **SHAPE, **FIT)
EXPERT = MazeDiffuser(SHOWN, RULER, **SHAPE, **FIT | {"seed": 10})
POOL = MazePool(BASE, EXPERT, plans=12, seed=3)
REWARDS = MazeRewards(
    POOL, window=4, hidden=(8,), steps=21, batch=6, learning_rate=0.02, seeds=(5, 7)
)


def made(seed: int, middle: float, episodes: int = 10, length: int = 12) -> Trajectories:
    """Episodes around `middle`, so that one can tell whose a plan is."""
    rng, n = np.random.default_rng(seed), episodes * length
    ends = np.arange(n) % length == length - 1
    rows = middle + rng.uniform(-0.1, 0.1, (n, 6)).astype("f4")
    still = np.zeros(n, bool)
    return Trajectories(rows[:, 2:], rows[:, :2], np.ones(n, "f4"), still, ends)


@pytest.fixture
def calls(monkeypatch):
    """Stand-ins for what is slow: name -> arguments and keywords of its only call."""
    found = SimpleNamespace(obtained=[])

    def of(recipe: MazeData) -> Trajectories:
        return made(recipe.seed % 97 + recipe.episodes, 1.0 if recipe.goal else -1.0)

    def obtain(recipe, device="cpu"):
        found.obtained.append((recipe, device))
        if isinstance(recipe, MazeData):
            return of(recipe)
        if isinstance(recipe, MazeDiffuser):
            return recipe.blank(device)
        draws = training.stream(0, 0)
        x, base, expert = (torch.randn(7, 8, 6, generator=draws) for _ in range(3))
        return Comparisons(x, torch.arange(7) % 6, base, expert, BASE.blank("cpu"))

    def record(module, name, result=None):
        def stand_in(*args, **kwargs):
            assert not hasattr(found, name)
            setattr(found, name, SimpleNamespace(args=args, **kwargs))
            return result(*args, **kwargs) if result else None

        monkeypatch.setattr(module, name, stand_in)

    monkeypatch.setattr(store, "obtain", obtain)
    monkeypatch.setattr(training, "finish", lambda progress, label: None)
    found.files = []
    for module in (recipes, maze_recipes):
        monkeypatch.setattr(module, "save_file", lambda _, file: found.files.append(file.name))
    record(training, "train", lambda _, loss, **k: loss(training.stream(k["seed"], 1)))
    record(extraction, "fit")
    record(conditioning, "plan_loss")
    record(comparisons, "algorithm1", lambda *a, **k: Comparisons(*[torch.zeros(1)] * 4))
    found.of = of
    return found


@pytest.mark.parametrize("goal", [None, (3.0, 1.0)])
def test_data_are_made_as_the_recipe_says(goal, monkeypatch, tmp_path):
    found, seeds = {}, []
    monkeypatch.setattr(maze, "make_trajectories", lambda *args: found.update(args=args))
    monkeypatch.setattr(trajectories, "write_hdf5", lambda file, data: found.update(file=file))
    for seed in (0, 5):
        MazeData("umaze", goal, 12, 34, seed).make(tmp_path, "cpu")
        world, *asked, own = found["args"]
        assert (world.name, asked) == ("umaze", [12, 34, goal])
        assert own == training.derived_seed(seed, f"umaze {goal}")
        seeds.append(own)
    assert seeds[0] != seeds[1] and found["file"] == tmp_path / "trajectories.hdf5"


def test_data_are_made_with_the_papers_controller_by_default(monkeypatch):
    """Appendix E's data: p 3, d -0.548 (FACTS of the paper's code)."""
    seen = []
    control = maze.control

    def watched(world, states, targets, gains=(None, None)):
        seen.append(gains)
        return control(world, states, targets, gains)

    monkeypatch.setattr(maze, "control", watched)
    maze.make_trajectories(maze.load("open"), 2, 3)
    assert seen == [(3.0, -0.548)] * 3


@pytest.mark.parametrize("half", [BASE, EXPERT], ids=["base", "expert"])
def test_a_diffuser_is_trained_as_the_recipe_says(half, calls, tmp_path):
    half.make(tmp_path, "cpu")
    assert (calls.train.steps, calls.train.learning_rate) == (17, 0.03)
    assert calls.train.seed == half.seed and calls.files == ["denoiser.safetensors"]
    assert calls.train.checkpoint == tmp_path / "checkpoints" / "denoiser.safetensors"
    denoiser, plans, width, _, given, unit = calls.plan_loss.args
    assert calls.train.args[0] is denoiser.network and (width, given, unit) == (4, 0.3, None)
    assert torch.equal(plans, half.split().draw(5, training.stream(half.seed, 1)))
    split = half.split()
    assert np.array_equal(split.train.observations, calls.of(half.data).observations)
    fresh = replace(half.data, episodes=300, seed=half.data.seed + FRESH_SEED)
    assert np.array_equal(split.held_out.observations, calls.of(fresh).observations)
    assert (fresh, "cpu") in calls.obtained
    # In one scale, the ruler's, for base and expert alike.
    assert np.array_equal(split.normaliser.low, Normaliser.fit(calls.of(RULER)).low)
    assert np.array_equal(split.normaliser.high, Normaliser.fit(calls.of(RULER)).high)
    assert split.horizon == 8


def test_a_diffusers_network_is_the_recipes():
    one = BASE.blank("cpu")
    assert (one.steps, one.scheduler.config.clip_sample) == (6, True)
    assert tuple(one.network.unet.config.block_out_channels) == (8, 16)
    assert replace(BASE, patch=2).blank("cpu").network.patch == 2
    weights = [
        next(replace(BASE, seed=seed).blank("cpu").network.parameters()) for seed in (0, 0, 1)
    ]
    assert torch.equal(*weights[:2]) and not torch.equal(*weights[1:])


def test_an_expert_begins_at_its_start(calls, tmp_path):
    replace(EXPERT, start=BASE).make(tmp_path, "cpu")
    ours, base = calls.train.args[0].state_dict(), BASE.blank("cpu").network.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in base.items())


@pytest.mark.parametrize("ends", [False, True])
def test_a_pool_asks_both_models_about_plans_of_both(ends, calls, tmp_path):
    replace(POOL, ends=ends).load(tmp_path, "cpu")
    asked = calls.algorithm1
    *models, of_base, of_expert = asked.args
    assert (asked.size, asked.seed, asked.condition is not None) == (12, 3, ends)
    if ends:
        x_t, (told,) = asked.condition(torch.ones(1, 5, 6), torch.zeros(1, 5, 6), models[0])
        assert not x_t.any() and [(k, one.shape) for k, one in told.known] == [
            (0, (1, 4)),
            (-1, (1, 4)),
        ]
    draws = training.stream(3, "data")
    for model, plans, half in zip(models, (of_base, of_expert), (BASE, EXPERT), strict=True):
        assert torch.equal(plans, half.split().draw(12, draws))
        weights = (next(m.network.parameters()) for m in (model, half.blank("cpu")))
        assert torch.equal(*weights)


@pytest.mark.lengthy
@pytest.mark.parametrize("target", ["score", "mean"])
@pytest.mark.parametrize("place", ["x_t", "mu_base"])
@pytest.mark.parametrize("cut", [{}, {"strided": True}, {"average": 2}], ids=str)
def test_rewards_are_fitted_as_the_recipe_says(target, place, cut, calls, tmp_path):
    recipe = replace(REWARDS, target=target, place=place, **cut)
    recipe.make(tmp_path, "cpu")
    fit = calls.fit
    assert (fit.steps, fit.batch, fit.learning_rate, fit.seed) == (21, 2 * 6, 0.02, 5)
    assert fit.checkpoint == tmp_path / "checkpoints" / "rewards.safetensors"
    assert calls.files == ["reward-5.safetensors", "reward-7.safetensors"]
    stack, pool = fit.args
    read = store.obtain(POOL).pool(target, place)
    wanted = read.cut(4, recipe.strided).average(recipe.average)
    assert torch.equal(pool.x, wanted.x) and torch.equal(pool.target, wanted.target)
    unit = extraction.displacement_units(BASE.blank("cpu"), target)
    for seed, network in zip((5, 7), stack.members(), strict=True):
        assert torch.equal(network.unit, unit)
        own = replace(recipe, window=4 // recipe.average, average=1)._network(seed)
        assert torch.equal(network.g[0].weight, own.g[0].weight)
        assert network.hidden == (8,) and network.window == 4 // recipe.average
    assert recipe._network(5).activation == "silu"
    assert replace(recipe, activation="leaky_relu")._network(5).activation == "leaky_relu"


def test_a_planning_pool_is_of_plans_that_begin_where_they_are_told(calls, monkeypatch, tmp_path):
    asked = []

    def drawn(model, first, horizon, generator):
        asked.append((first, generator.initial_seed()))
        plans = torch.full((len(first), horizon, 6), 7.0)
        plans[:, 0, 2:] = first
        return plans

    monkeypatch.setattr(planning.driving, "plans_from", drawn)
    monkeypatch.setattr(planning, "AT_ONCE", 4)
    pool = planning.MazePlanningPool(BASE, EXPERT, plans=12, drawn=6, seed=3)
    pool.load(tmp_path, "cpu")
    (_, _, *data), options = calls.algorithm1.args, vars(calls.algorithm1)
    assert [len(part) for part in data] == [18, 18]
    assert all((part[12:, 1:] == 7).all() and (part[:12] != 7).all() for part in data)
    assert (options["size"], options["seed"]) == (36, 3)
    held, models = options["condition"](data[0], torch.zeros(18, 8, 6), *calls.algorithm1.args[:2])
    assert torch.equal(held[:, 0, 2:], data[0][:, 0, 2:]) and not held[:, 1:].any()
    assert all(model.known for model in models)
    seen = BASE.split().train
    begun = torch.from_numpy(BASE.split().normaliser.normalise(rows_of(seen)))[:, 0, 2:]
    assert [len(first) for first, _ in asked] == [4, 2, 4, 2]
    for first, _ in asked:
        assert (torch.cdist(first, begun).min(1).values < 1e-5).all()
    assert asked[0][1] == asked[1][1] != asked[2][1]  # another stream for the other model


def rows_of(seen: Trajectories) -> np.ndarray:
    """First steps of episodes as plans of one step, [n, 1, 6]."""
    starts = seen.bounds[:, 0]
    return np.concatenate([seen.actions[starts], seen.observations[starts]], 1)[:, None]


def test_a_planning_reward_is_fitted_to_its_pool(calls, monkeypatch, tmp_path):
    monkeypatch.setattr(planning, "save_file", lambda _, file: calls.files.append(file.name))
    pool = planning.MazePlanningPool(BASE, EXPERT, plans=12, drawn=6, seed=3)
    fit = {"steps": 21, "batch": 6, "learning_rate": 0.02, "seed": 5}
    recipe = planning.MazePlanningReward(pool, (8, 4), average=2, **fit)
    recipe.make(tmp_path, "cpu")
    network, told = calls.fit.args
    assert calls.obtained[-1] == (pool, "cpu") and told.kind == ("mean", "mu_base")
    assert {name: getattr(calls.fit, name) for name in fit} == fit
    assert (network.observation, network.hidden, network.average) == (4, (8, 4), 2)
    assert network.positions == (2, 3)
    unit = extraction.displacement_units(BASE.blank("cpu"), "mean")
    assert torch.equal(network.unit, unit)
    again, other = recipe.blank(), replace(recipe, seed=6).blank()
    first = [n.g[0].weight for n in (recipe.blank(), again, other)]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])


CHOSEN = SimpleNamespace(
    maze=("umaze", "large"),
    n_goals=2,
    goal=None,
    seed=4,
    episodes=123,
    horizon=256,
    size="medium",
    diffuser_steps=40,
    dataset_path="",
)


@pytest.mark.parametrize("steps", [7, 500])
@pytest.mark.parametrize("size", ["small", "medium", "paper"])
def test_an_experiment_is_what_its_parameters_and_its_size_say(size, steps):
    chosen = SimpleNamespace(**vars(CHOSEN) | {"size": size})
    found = maze_experiments.experiments(chosen, n_seeds=3, reward_steps=steps)
    names = [(e.world.name, e.goal) for e in found]
    assert names == [(name, goal) for name in CHOSEN.maze for goal in maze.GOALS[name][:2]]
    lengths = {"umaze": 300, "large": 600}
    for e in found:
        own, name = maze_sizes.sizes(size, e.world.name), e.world.name
        assert e.base.data == e.base.ruler == MazeData(name, None, 123, lengths[name], 4)
        assert e.expert.data == MazeData(name, e.goal, 123, lengths[name], 4)
        assert e.expert.ruler == e.base.data
        for half in (e.base, e.expert):
            wanted = {f: getattr(own, f) for f in maze_experiments.SHAPE}
            assert {f: getattr(half, f) for f in wanted} == wanted
            assert type(half) is (ComponentDiffuser if size == "medium" else MazeDiffuser)
            assert (half.horizon, half.seed) == (256, 4)
        share = {"small": 30, "medium": 10, "paper": 40}[size]  # of the base's 40 steps
        assert (e.base.steps, e.expert.steps, e.base.start) == (40, share, None)
        assert e.expert.start == (e.base if size == "small" else None)
        plans = own.plans if steps == 500 else 7 * own.reward_batch  # no more than a fit draws
        assert e.rewards.pool == MazePool(e.base, e.expert, plans, seed=4)
        wanted = {"window": own.window, "hidden": own.hidden, "average": own.average}
        wanted |= {"steps": steps}
        wanted |= {"batch": own.reward_batch, "learning_rate": own.reward_rate}
        wanted |= {"seeds": (4, 5, 6), "target": "mean", "place": "mu_base", "strided": False}
        assert {f: getattr(e.rewards, f) for f in wanted} == wanted
        told = planning.reward_for(e, own)
        drawn = min(own.drawn, steps * own.reward_batch // 150)
        assert told.pool == planning.MazePlanningPool(e.base, e.expert, plans, drawn, seed=4)
        wanted = {"hidden": own.planning, "average": own.average, "steps": steps, "seed": 4}
        wanted |= {"batch": own.reward_batch, "learning_rate": own.reward_rate}
        assert {f: getattr(told, f) for f in wanted} == wanted
    assert set(maze_experiments.SHAPE) == {f.name for f in fields(MazeDiffuser)} - {
        *("data", "ruler", "horizon", "steps", "start", "seed")
    }


def test_a_file_takes_the_place_of_the_bases_data_and_is_the_ruler(monkeypatch):
    monkeypatch.setattr(MazeFile, "at", lambda name, path, *_, **__: MazeFile(name, path, path))
    chosen = SimpleNamespace(**vars(CHOSEN) | {"maze": ("umaze",), "dataset_path": "mine"})
    for e in maze_experiments.experiments(chosen):
        file = MazeFile("umaze", "mine", "mine")
        assert e.base.data == e.base.ruler == e.expert.ruler == file
        assert e.expert.data == MazeData("umaze", e.goal, 123, 300, 4)


def test_a_tenth_of_a_files_episodes_is_held_out_by_the_diffusers_seed(calls, monkeypatch):
    data, file = made(0, 1.0, episodes=20), MazeFile("umaze", "mine", "mine")
    monkeypatch.setattr(store, "obtain", lambda recipe, device="cpu": data)
    for seed in (0, 1):
        split = replace(BASE, data=file, ruler=file, seed=seed).split()
        train, held_out = trajectories.split(data, 0.1, seed)
        assert held_out.n_episodes == 2
        assert np.array_equal(split.train.observations, train.observations)
        assert np.array_equal(split.held_out.observations, held_out.observations)


def test_plans_that_judge_come_from_seeds_of_their_own(calls):
    e = maze_experiments.MazeExperiment((3.0, 1.0), BASE, EXPERT, REWARDS)
    normaliser = e.normaliser
    assert np.array_equal(normaliser.low, Normaliser.fit(calls.of(RULER)).low)
    for half in (BASE, EXPERT):
        for seed in (0, 8):
            found = e.sample(half, normaliser, 77, 6, seed)
            fresh = replace(half.data, episodes=77, seed=FRESH_SEED + seed)
            assert fresh.seed not in (RULER.seed, SHOWN.seed)
            split = maze_experiments.Split(calls.of(fresh), calls.of(fresh), normaliser, 8)
            assert torch.equal(found.plans, split.held_out_plans(6, seed)[0])


def test_what_the_paper_and_its_code_fix():
    """Table 2 and 3, and the authors' code: see the ledger."""
    for name in maze.LAYOUTS:
        found = maze_sizes.sizes("paper", name)
        assert (found.batch, found.learning_rate, found.expert_share) == (128, 2e-4, 1.0)
        assert (found.plans, found.average, found.given) == (100_000, 1, 0.25)
    assert maze.PAPER_GAINS == (3.0, -0.548) and maze.D4RL_GAINS == (10.0, -1.0)
    assert (maze.MAX_SPEED, maze.RADIUS, maze.NEAR) == (5.0, 0.1, 0.45)


@pytest.mark.parametrize("name", list(maze.LAYOUTS))
def test_the_balls_physics_are_point_mazes(name):
    """Time step, mass, damping, gear and radius as D4RL and gymnasium-robotics have them."""
    model = maze.load(name).model
    assert model.opt.timestep == pytest.approx(0.01)
    assert model.body("particle").mass[0] == pytest.approx(4.19, abs=0.01)
    assert model.dof_damping[:2].tolist() == [1, 1]
    assert model.actuator_gear[:, 0].tolist() == [100, 100]
    assert model.geom("particle_geom").size[0] == pytest.approx(0.1)


GOALS = {
    "open": "(1,1) (1,5) (1.3,1.7) (2,3) (2.3,4.3) (2.7,3.1) (3,1) (3,5)",
    "umaze": "(1,1) (1,2) (1,3) (1.3,2.7) (2,3) (3,1) (3,2) (3,3)",
    "medium": "(1,1) (1,6) (2,2) (4,4) (4,6) (5,3) (6,1) (6,6)",
    "large": "(1,1) (1,10) (3,6) (3,8) (5,2) (5,4) (7,1) (7,10)",
}


@pytest.mark.parametrize("name", list(maze.LAYOUTS))
def test_the_goals_are_the_papers(name):
    written = [f"({row:g},{column:g})" for row, column in maze.GOALS[name]]
    assert " ".join(written) == GOALS[name]
    assert maze.goals(maze.load(name), 3) == maze.GOALS[name][:3]
    assert maze.goals(maze.load(name), 3, (1.0, 1.0)) == ((1.0, 1.0),)


def test_the_sizes_that_published_results_were_made_with():
    """`results/full` and `results/quick` rest on these; the shipped rewards have their shapes."""
    quick, full = (maze_sizes.sizes(size, "large") for size in ("small", "medium"))
    assert quick == maze_sizes.Sizes(
        *("u_net", (16, 32, 64), 1, 50, 32, 2e-3, 0.5, 0.75, True),
        *(10_000, 32, (128, 64, 32), 1, 128, 4e-3, (128, 64, 32), 250),
    )
    assert full == maze_sizes.Sizes(
        *("components", (), 1, 50, 512, 2e-3, 0.5, 0.25, False),
        *(8_000, 128, (96, 64, 32), 4, 256, 2e-3, (512, 256, 128), 4_000),
    )
    assert maze_recipes.LENGTHS == {"open": 300, "umaze": 300, "medium": 500, "large": 600}


def test_a_choice_is_one_change_and_comes_with_what_it_is_held_against():
    e = maze_experiments.MazeExperiment((3.0, 1.0), BASE, EXPERT, replace(REWARDS, window=8))
    found = choices.variants(e)
    assert next(iter(found)) == "reference" and set(found) <= set(choices.WORDS)
    assert not {"window_16", "window_64", "strided"} & set(found)  # longer than the plans
    for name, reward in found.items():
        assert (reward == e.rewards) == (
            name in ("reference", "window_all", "every_step", "scratch")
        )
    longer = {name: replace(REWARDS, window=k) for k, name in enumerate(choices.WORDS)}
    assert choices.wanted({"x": longer}, ("strided",)) == (
        ["reference", "window_16", "strided"],
        [],
    )
    names, in_vain = choices.wanted({"x": found}, ("x_t", "window_all", "strided"))
    assert names == ["reference", "x_t"] and in_vain == ["window_all", "strided"]
    assert maze_experiments.recipes_of([e, e]) == [BASE, EXPERT, e.rewards, EXPERT, e.rewards]
    assert e.case(4) == {"maze": "umaze", "goal": "(3, 1)", "seed": 4}


def test_plans_that_judge_are_of_a_files_held_out_tenth(monkeypatch):
    """A file has no fresh trajectories: what its diffuser has not learnt takes their place."""
    data, file = made(0, 1.0, episodes=40), MazeFile("umaze", "mine", "mine")
    monkeypatch.setattr(store, "obtain", lambda recipe, device="cpu": data)
    base = replace(BASE, data=file, ruler=file)
    e = maze_experiments.MazeExperiment((3.0, 1.0), base, EXPERT, REWARDS)
    found = e.sample(base, e.normaliser, 77, 30, 8)
    train, held_out = trajectories.split(data, 0.1, base.seed)
    seen, unseen = (
        {tuple(row) for row in e.normaliser.normalise(rows).round(4).tolist()}
        for rows in (
            np.concatenate([part.actions, part.observations], 1) for part in (train, held_out)
        )
    )
    rows = {tuple(row) for row in found.plans.flatten(0, 1).numpy().round(4).tolist()}
    assert rows <= unseen and not rows & seen
    assert found.owner.max() < held_out.n_episodes == 4


@pytest.mark.parametrize("goal", [None, (3.0, 1.0)])
def test_the_controllers_fresh_trajectories_are_of_seeds_that_train_nothing(goal, monkeypatch):
    seen = []
    monkeypatch.setattr(maze, "make_trajectories", lambda *args: seen.append(args))
    for seed in (0, 3):
        maze_experiments.fresh(maze.load("large"), goal, 12, seed)
    assert [args[1:4] for args in seen] == [(12, 600, goal)] * 2
    assert [args[4] for args in seen] == [FRESH_SEED, FRESH_SEED + 3]


def test_each_choice_changes_what_it_is_called_by_and_nothing_else():
    """Of an expert that is fine-tuned for fewer steps than its base is trained."""
    expert = replace(EXPERT, start=BASE, steps=7)
    r = replace(REWARDS, window=8, average=2, pool=replace(POOL, expert=expert))
    base = replace(BASE, horizon=64)
    found = choices.variants(maze_experiments.MazeExperiment((3.0, 1.0), base, expert, r))
    assert set(found) == set(choices.WORDS)
    scratch = found["scratch"].pool.expert
    assert (scratch.start, scratch.steps) == (None, BASE.steps)
    assert scratch == replace(expert, start=None, steps=BASE.steps)
    assert found["from_base"].pool.expert == replace(expert, start=base)
    wanted = {
        "score": {"target": "score"},
        "x_t": {"place": "x_t"},
        "literal": {"target": "score", "place": "x_t"},
        "window_1": {"window": 1, "average": 1},
        "window_4": {"window": 4, "average": 1},
        "window_16": {"window": 16, "average": 1},
        "window_64": {"window": 64},
        "window_all": {"window": 64},
        "strided": {"window": 16, "average": 1, "strided": True},
        "every_step": {"average": 1},
        "leaky_relu": {"activation": "leaky_relu"},
        "ends": {"pool": replace(r.pool, ends=True)},
    }
    for name, change in wanted.items():
        assert found[name] == replace(r, **change), name
