"""Every field of a recipe of steps reaches what it names; nothing is trained."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rrlib import training
from rrlib.estimators import discriminator, levels
from rrlib.estimators import noised as ratios
from rrlib.lab import recipes, store
from rrlib.lab.agents import cloning, evidence, experiments, worths
from rrlib.lab.agents import recipes as step_recipes
from rrlib.lab.agents.cloning import ClonedPolicy
from rrlib.lab.agents.experiments import StepExperiment
from rrlib.lab.agents.recipes import StepDiffuser, StepDiscriminator, StepPool, StepReward
from rrlib.lab.mazes.recipes import MazeData
from rrlib.locomotion import rollouts
from rrlib.method import comparisons, extraction
from rrlib.method.comparisons import Comparisons
from rrlib.method.rewards import RelativeReward
from rrlib.plans import conditioning, normalisers, trajectories
from rrlib.plans.normalisers import Normaliser
from rrlib.plans.trajectories import Trajectories

DATA = MazeData("umaze", None, 30, 40, 2), MazeData("umaze", (3.0, 1.0), 25, 40, 6)
FIT = {"steps": 17, "batch": 5, "learning_rate": 0.03, "seed": 9}
BASE, EXPERT = (
    StepDiffuser(data, DATA, hidden=8, blocks=1, diffusion_steps=6, **FIT) for data in DATA
)
OTHER = replace(EXPERT, seed=10)  # whose first weights are not the base's
REWARD = StepReward(StepPool(BASE, OTHER, plans=12, seed=3), (8,), **FIT)
RIVAL = StepDiscriminator(BASE, OTHER, (8,), plans=6, **FIT)


def made(seed: int, middle: float) -> Trajectories:
    """Episodes around `middle`, so that one can tell whose a step is."""
    rng, n = np.random.default_rng(seed), 20 * 8
    rows = (middle + 0.1 * rng.normal(size=(n, 6))).astype("f4")
    ends, still = np.arange(n) % 8 == 7, np.zeros(n, bool)
    return Trajectories(rows[:, 2:], rows[:, :2], np.ones(n, "f4"), still, ends)


SETS = {DATA[0]: made(0, -1.0), DATA[1]: made(1, 2.0)}


@pytest.fixture
def calls(monkeypatch):
    """Stand-ins for what is slow: name -> arguments and keywords of its only call."""
    found = SimpleNamespace(files=[])

    def obtain(recipe, device="cpu"):
        if recipe in SETS:
            return SETS[recipe]
        if isinstance(recipe, StepDiffuser):
            return recipe.blank(device)
        if isinstance(recipe, StepPool):
            draws = training.stream(0, 0)
            x, base, expert = (torch.randn(7, 1, 6, generator=draws) for _ in range(3))
            return Comparisons(x, torch.arange(7) % 6, base, expert, BASE.blank("cpu"))
        network = step_recipes.blank(BASE, recipe)
        network.maker = recipe
        return RelativeReward(network, "score", "x_t")

    def record(module, name, result=None):
        def stand_in(*args, **kwargs):
            assert not hasattr(found, name)
            setattr(found, name, SimpleNamespace(args=args, **kwargs))
            return result(*args, **kwargs) if result else None

        monkeypatch.setattr(module, name, stand_in)

    monkeypatch.setattr(store, "obtain", obtain)
    monkeypatch.setattr(training, "finish", lambda progress, label: None)
    for module in (recipes, step_recipes, cloning):
        monkeypatch.setattr(module, "save_file", lambda saved, file: found.files.append(saved))
    record(training, "train", lambda _, loss, **k: loss(training.stream(k["seed"], 1)))
    record(extraction, "fit")
    record(conditioning, "plan_loss")
    record(discriminator, "discriminator_loss")
    record(comparisons, "algorithm1", lambda *a, **k: Comparisons(*[torch.zeros(1)] * 4))
    return found


def first(network: torch.nn.Module) -> torch.Tensor:
    """A weight that tells whose a network is."""
    return next(network.parameters())


@pytest.mark.parametrize("half", [BASE, EXPERT], ids=["base", "expert"])
def test_a_diffuser_is_trained_as_the_recipe_says(half, calls, tmp_path):
    half.make(tmp_path, "cpu")
    assert (calls.train.steps, calls.train.learning_rate, calls.train.seed) == (17, 0.03, 9)
    assert calls.train.checkpoint == tmp_path / "checkpoints" / "denoiser.safetensors"
    denoiser, steps, width, _, given = calls.plan_loss.args
    assert calls.train.args[0] is denoiser.network and (width, given) == (4, 0.0)
    assert torch.equal(steps, half.split().draw(5, training.stream(9, 1)))
    train, held_out = trajectories.split(SETS[half.data], 0.1, 9)
    assert held_out.n_episodes == 2
    assert np.array_equal(half.split().train.observations, train.observations)
    assert np.array_equal(half.split().held_out.observations, held_out.observations)
    # In one scale for base and expert alike.
    ruler = normalisers.standardiser(*SETS.values())
    assert np.array_equal(half.normaliser.low, ruler.low) and half.split().horizon == 1
    assert (denoiser.steps, denoiser.scheduler.config.clip_sample) == (6, False)


def test_a_pool_asks_both_models_about_steps_of_both(calls, tmp_path):
    REWARD.pool.load(tmp_path, "cpu")
    *models, of_base, of_expert = calls.algorithm1.args
    asked = calls.algorithm1
    assert (asked.size, asked.seed, asked.condition) == (12, 3, None)
    draws = training.stream(3, "data")
    for model, steps, half in zip(models, (of_base, of_expert), (BASE, OTHER), strict=True):
        assert torch.equal(steps, half.split().draw(12, draws))
        assert torch.equal(first(model.network), first(half.blank("cpu").network))


@pytest.mark.parametrize("target", ["score", "mean"])
@pytest.mark.parametrize("place", ["x_t", "mu_base"])
def test_a_reward_is_fitted_as_the_recipe_says(target, place, calls, tmp_path):
    replace(REWARD, target=target, place=place).make(tmp_path, "cpu")
    fit = calls.fit
    assert (fit.steps, fit.batch, fit.learning_rate, fit.seed) == (17, 5, 0.03, 9)
    assert fit.checkpoint == tmp_path / "checkpoints" / "reward.safetensors"
    network, pool = fit.args
    read = store.obtain(REWARD.pool).pool(target, place)
    assert torch.equal(pool.x, read.x) and torch.equal(pool.target, read.target)
    assert torch.equal(network.unit, extraction.units(BASE.blank("cpu"), "score"))
    assert (network.hidden, network.window) == ((8,), 1)


def test_the_rival_is_shown_the_steps_of_each(calls, tmp_path):
    RIVAL.make(tmp_path, "cpu")
    assert (calls.train.steps, calls.train.learning_rate, calls.train.seed) == (17, 0.03, 9)
    assert calls.train.checkpoint == tmp_path / "checkpoints" / "reward.safetensors"
    network, base, of_base, of_expert, batch, _ = calls.discriminator_loss.args
    assert calls.train.args[0] is network and (batch, base.steps) == (5, 6)
    draws = training.stream(9, "data")
    for steps, half in ((of_base, BASE), (of_expert, OTHER)):
        assert torch.equal(steps, half.split().draw(6, draws))


@pytest.mark.parametrize("recipe", [REWARD, RIVAL], ids=["reward", "rival"])
def test_a_reward_begins_at_its_own_seed(recipe, calls):
    seeds = 0, 0, 1
    weights = [first(step_recipes.blank(BASE, replace(recipe, seed=seed))) for seed in seeds]
    assert torch.equal(*weights[:2]) and not torch.equal(*weights[1:])
    # Whatever the models' seeds.
    other = first(step_recipes.blank(replace(BASE, seed=4), replace(recipe, seed=1)))
    assert torch.equal(other, weights[2])
    planners = [first(replace(BASE, seed=seed).blank("cpu").network) for seed in seeds]
    assert torch.equal(*planners[:2]) and not torch.equal(*planners[1:])


def test_a_clone_learns_what_was_done_where_it_was_done(calls, tmp_path, monkeypatch):
    recipe, data = ClonedPolicy(DATA[1], 8, **FIT), SETS[DATA[1]]
    recipe.make(tmp_path, "cpu")
    assert (calls.train.steps, calls.train.learning_rate, calls.train.seed) == (17, 0.03, 9)
    network, loss = calls.train.args
    rows = torch.randint(160, (5,), generator=training.stream(0, 1))
    x, done = (torch.from_numpy(a)[rows] for a in (data.observations, data.actions))
    ruler = normalisers.standardiser(data)
    seen = (x - torch.from_numpy(ruler.low + ruler.high)[2:] / 2) / torch.from_numpy(
        (ruler.high - ruler.low)[2:] / 2
    )
    wanted = (network(seen) - done).square().mean()
    torch.testing.assert_close(loss(training.stream(0, 1)), wanted)
    # Loaded, it sees observations as it did when it learnt.
    (saved,) = calls.files
    monkeypatch.setattr(cloning, "load_file", lambda file: dict(saved))
    act = recipe.load(tmp_path, "cpu")
    torch.testing.assert_close(torch.from_numpy(act(x.numpy())), network(seen).clamp(-1, 1))
    weights = [first(replace(recipe, seed=seed).blank(2, 4)) for seed in (0, 0, 1)]
    assert torch.equal(*weights[:2]) and not torch.equal(*weights[1:])


def test_an_experiments_pair_is_of_its_world_and_seed():
    e = experiments.experiment("pointmaze", seed=4)
    assert [half.data.goal for half in (e.base, e.expert)] == [None, experiments.GOAL]
    assert {half.data.seed for half in (e.base, e.expert)} == {4}
    assert e.base.ruler == e.expert.ruler == (e.base.data, e.expert.data)
    assert e.base.diffusion_steps == e.expert.diffusion_steps == experiments.NOISE["pointmaze"]
    assert e.base.seed == e.expert.seed == 4
    fit = {"hidden": (128, 128, 128), "steps": 4_000}
    assert e.reward == StepReward(StepPool(e.base, e.expert), **fit)
    rival = StepDiscriminator(e.base, e.expert, **fit)
    assert e.discriminator == rival
    hopper = experiments.experiment("hopper")
    assert [half.data.kind for half in (hopper.base, hopper.expert)] == ["medium-replay", "expert"]


@pytest.mark.parametrize("teacher", experiments.TEACHERS)
def test_a_teacher_pays_by_its_own_value(teacher, calls, monkeypatch):
    """Whose value is asked, with which seed, and whether its level is moved."""
    e, asked, paid = StepExperiment("pointmaze", BASE, OTHER, 8), [], []
    monkeypatch.setattr(worths, "smiling", lambda *a: asked.append(("smiling", *a[2:])))
    monkeypatch.setattr(
        worths, "extracted", lambda reward, ruler: asked.append((reward.network.maker, ruler))
    )
    monkeypatch.setattr(worths, "payment", lambda *a, **k: paid.append((a, k)))
    e.payment(teacher, seed=5)
    if teacher == "true":
        assert not asked and not paid
        return
    ((kind, ruler, *seed),) = asked
    wanted = {"smiling": "smiling", "discriminator": e.discriminator}.get(teacher, e.reward)
    assert kind == wanted and np.array_equal(ruler.low, BASE.normaliser.low)
    assert seed == ([5] if teacher == "smiling" else [])
    ((_, base, expert), how) = paid[0]
    assert base is SETS[DATA[0]] and expert is SETS[DATA[1]]
    assert how == {"moved": teacher != "unmoved"}


def test_smilings_noise_is_of_its_seed_and_of_the_call(monkeypatch):
    seeds = []

    def difference(base, expert, plans, *, seed, **options):
        seeds.append(seed)
        return levels.Estimate(torch.zeros(len(plans)), torch.zeros(len(plans)), 0)

    monkeypatch.setattr(ratios, "elbo_difference", difference)
    ruler = Normaliser(np.full(2, -1, "f4"), np.ones(2, "f4"))
    for seed in (0, 1):
        value = worths.smiling(None, None, ruler, seed)
        for _ in range(3):
            value(np.zeros((4, 2)))
    assert len(set(seeds)) == 6


def test_robots_are_played_as_they_are_asked_to_be(monkeypatch):
    seen = {}

    def play(world, plan, n, seed, **options):
        seen.update(world=world.name, n=n, seed=seed, plan=plan, **options)
        ends = np.array([False, True, True])
        still = np.zeros(3, bool)
        return Trajectories(np.zeros((3, 11)), np.zeros((3, 3)), np.ones(3, "f4"), ends, still)

    monkeypatch.setattr(rollouts, "play", play)
    found = evidence.play_robots("hopper", lambda x: x[:, :3] + 1, 7, seed=8, steps=55)
    assert len(found) == 2 and found[0] > found[1]
    plan = seen.pop("plan")
    assert seen == {"world": "hopper", "n": 7, "seed": 8, "steps": 55}
    assert np.array_equal(plan(np.zeros((2, 11)), np.arange(2)), np.ones((2, 1, 3)))


def test_a_ball_rests_where_it_is_at_the_end_and_reaches_at_any_time():
    goal = evidence.maze.load(evidence.MAZE).to_xy(evidence.GOAL)
    positions = np.full((3, 300, 2), 9.0)
    positions[0, 5], positions[1, -1] = goal, goal
    found = evidence.judged(positions)
    assert found.reached.tolist() == [True, True, False]
    assert found.rests.tolist() == [False, True, False]
