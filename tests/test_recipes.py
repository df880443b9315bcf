"""Recipes: their keys; what a maze chapter asks for, made small, killed and resumed."""

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from rrlib import training
from rrlib.errors import InputError
from rrlib.estimators import discriminator
from rrlib.lab import recipes, store
from rrlib.lab.mazes import experiments as maze_experiments
from rrlib.lab.mazes import presets as maze_sizes
from rrlib.lab.mazes import recipes as maze_recipes
from rrlib.method import comparisons, extraction
from rrlib.plans import rewards as plan_rewards
from rrlib.plans import trajectories
from rrlib.plans.conditioning import ends_given
from rrlib.plans.normalisers import Normaliser
from rrlib.plans.trajectories import Trajectories
from rrlib.tensor_files import read_tensors
from rrlib.theory import sde

TINY = SimpleNamespace(
    maze=("umaze",),
    n_goals=2,
    goal=None,
    seed=0,
    episodes=20,
    horizon=32,
    size="small",
    diffuser_steps=6,
    dataset_path="",
)


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("RRLIB_STORE", str(tmp_path / "store"))


def two_gaussians() -> tuple[sde.GaussianMixture, sde.GaussianMixture]:
    one, unit = torch.ones(1).double(), torch.eye(3)[None].double()
    return tuple(
        sde.GaussianMixture(one, torch.tensor([[side, 0.0, 0.0]]).double(), 0.5 * unit)
        for side in (-1.0, 1.0)
    )


SMALL = {"diffusion_steps": 10, "samples": 500, "pool": 2000, "hidden": (16,), "batch": 64}


@pytest.mark.lengthy
@pytest.mark.parametrize("method", ["algorithm1", "algorithm2", "discriminator"])
def test_every_method_learns_which_side_is_the_experts(method):
    recipe = recipes.GaussianReward(*two_gaussians(), method=method, steps=150, **SMALL)
    reward = store.obtain(recipe)
    x, t = torch.tensor([[-1.0, 0, 0], [1.0, 0, 0]]), torch.full((2,), 3)
    low, high = reward(x, t).tolist()
    assert high > low + 1
    assert_close(store.obtain(recipe)(x, t), reward(x, t), rtol=0, atol=0)


def test_an_unknown_method_is_refused():
    with pytest.raises(InputError, match=r"^method='guess' is not allowed: 'algorithm1' or"):
        recipes.GaussianReward(*two_gaussians(), method="guess")


def test_an_error_is_added_to_the_experts_score_alone():
    base, expert = two_gaussians()
    matrix = torch.tensor([[0.0, -2, 0], [2, 0, 0], [0, 0, 0]], dtype=torch.float64)
    plain = recipes.GaussianReward(base, expert, **SMALL)
    flawed = recipes.GaussianReward(base, expert, error=matrix, **SMALL)
    assert store.key(plain) != store.key(flawed)
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.arange(10)
    ours, theirs = flawed.pair(), plain.pair()
    assert_close(ours[0].score(x, t), theirs[0].score(x, t))
    abar = ours[0].scheduler.alphas_cumprod.double()[t]
    half = sde.halves(base, expert).score(x, abar)
    added = abar.sqrt()[:, None] * torch.stack([-2 * half[:, 1], 2 * half[:, 0], 0 * half[:, 0]], 1)
    assert_close(ours[1].score(x, t) - theirs[1].score(x, t), added, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("method", ["algorithm1", "algorithm2"])
def test_comparisons_are_of_the_recipes_own_pair(method):
    recipe = recipes.GaussianReward(*two_gaussians(), method=method, target="mean", **SMALL)
    pool = recipe.comparisons(400, seed=5)
    assert len(pool) == 400 and pool.target.dtype == torch.float64
    base, expert = recipe.pair()
    again = comparisons.compare_at(base, expert, pool.x, pool.t).pool("mean", "x_t")
    assert_close(pool.target, again.target)


def with_(**changes):
    return SimpleNamespace(**{**vars(TINY), **changes})


def test_experiments_share_their_base_and_its_ruler():
    one, two = maze_experiments.experiments(TINY)
    assert one.base == two.base and one.expert != two.expert
    assert one.expert.ruler == one.base.data
    assert [e.label for e in (one, two)] == ["umaze (1, 1)", "umaze (1, 2)"]
    assert not store.root().exists(), "describing an experiment must make nothing"


@pytest.mark.parametrize("goal", [(2.0, 1.0), (0.0, 0.0), (9.0, 9.0)])
def test_a_goal_in_a_wall_is_refused_before_anything_is_made(goal):
    with pytest.raises(InputError, match="goal"):
        maze_experiments.experiments(with_(goal=goal))
    assert not store.root().exists()


@pytest.mark.lengthy
def test_plans_are_windows_of_held_apart_trajectories_in_one_scale():
    base, expert = (
        (e.base, e.expert) for e in maze_experiments.experiments(with_(goal=(3.0, 1.0)))
    ).__next__()
    splits = base.split(), expert.split()
    assert_close(splits[0].normaliser.low, splits[1].normaliser.low, rtol=0, atol=0)
    plans, owner = splits[0].held_out_plans(50, seed=1)
    assert plans.shape == (50, 32, 6) and owner.max() < splits[0].held_out.n_episodes
    back = splits[0].normaliser.denormalise(plans.numpy())
    for plan, number in zip(back, owner, strict=True):
        start, stop = splits[0].held_out.bounds[number]
        inside = splits[0].held_out.observations[start:stop]
        at = np.abs(inside[:, None] - plan[0, 2:]).max(-1).min()
        assert at < 1e-5, "a plan's first observation must be one of its own trajectory"
    held = {tuple(row) for row in splits[0].held_out.observations.round(5).tolist()}
    train = {tuple(row) for row in splits[0].train.observations.round(5).tolist()}
    assert not held & train


@pytest.mark.lengthy
def test_an_expert_begins_at_the_base():
    e = maze_experiments.experiments(TINY)[0]
    frozen = replace(e.expert, steps=1, learning_rate=0.0)
    ours, theirs = (store.obtain(d).network.state_dict() for d in (frozen, e.base))
    for name, value in theirs.items():
        assert_close(ours[name], value, rtol=0, atol=0)


@pytest.mark.lengthy
def test_a_diffuser_may_see_patches():
    e = maze_experiments.experiments(TINY)[0]
    recipe = replace(e.base, patch=2, channels=(8, 16))
    network = store.obtain(recipe).network
    assert network.patch == 2
    assert network.unet.config.in_channels == 14 and network.unet.config.out_channels == 12
    assert store.key(recipe) != store.key(replace(recipe, patch=1))
    with pytest.raises(InputError, match=r"^horizon=32 is not allowed: .* multiple of 64 "):
        replace(recipe, patch=32).blank("cpu")


def a_pool(**changes) -> maze_recipes.MazePool:
    e = maze_experiments.experiments(TINY)[1]
    return maze_recipes.MazePool(e.base, e.expert, **{"plans": 64, **changes})


@pytest.mark.lengthy
@pytest.mark.parametrize("ends", [False, True])
def test_a_pool_is_what_both_models_say_of_plans_of_both(ends):
    """The base's words as the base's: the other way round, every target would flip its sign."""
    recipe = a_pool(ends=ends, seed=3)
    found = store.obtain(recipe)
    assert not store.folder(recipe).exists() and store.obtain(recipe) is found  # it is not kept
    draws = training.stream(3, "data")
    data = [half.split().draw(64, draws) for half in (recipe.base, recipe.expert)]
    pair = [store.obtain(half) for half in (recipe.base, recipe.expert)]
    literal = comparisons.algorithm1(
        *pair, *data, size=64, seed=3, condition=ends_given(4) if ends else None
    )
    for name in ("x", "t", "base", "expert"):
        assert torch.equal(getattr(found, name), getattr(literal, name)), name
    if ends:
        told = [[plan[[0, -1], 2:].clamp(-1, 1) for plan in plans] for plans in data]
        for i, answers in enumerate(zip(found.base, found.expert, strict=True)):
            for answer in answers:  # half of the plans are the base's, half the expert's
                assert any(torch.equal(answer[[0, -1], 2:], ends) for ends in told[i // 32])
    else:
        assert torch.equal(found.base, pair[0].x0(found.x, found.t))
        assert torch.equal(found.expert, pair[1].x0(found.x, found.t))
    assert (found.base - found.expert).abs().max() > 1e-3
    assert len(found.t) == 64 and found.x.shape == (64, 32, 6)


@pytest.mark.lengthy
def test_rewards_are_made_and_loaded_with_their_meaning():
    recipe = maze_recipes.MazeRewards(a_pool(), window=8, steps=3, batch=16, seeds=(4, 0))
    found = store.obtain(recipe)
    names = {path.name for path in store.folder(recipe).iterdir()}
    assert names == {"reward-4.safetensors", "reward-0.safetensors", "manifest.json"}
    x, t = torch.randn(5, 16, 6), torch.arange(5)
    values = []
    for seed, reward, again in zip((4, 0), found, store.obtain(recipe), strict=True):
        assert (reward.target, reward.place) == ("mean", "mu_base")
        assert_close(again(x, t), reward(x, t), rtol=0, atol=0)
        weights = load_file(store.folder(recipe) / f"reward-{seed}.safetensors")
        for name, value in reward.network.state_dict().items():
            assert torch.equal(value, weights[name])
        values.append(reward(x, t) / reward.network.unit[t])
    assert (values[0] - values[1]).abs().max() > 1e-3
    # Each from its own seed's start, on 16 windows of its own a step; a file is its own seed's.
    stack = training.Stack([recipe._network(seed) for seed in (4, 0)])
    read = store.obtain(recipe.pool).pool("mean", "mu_base")
    settings = {"steps": 3, "batch": 32, "learning_rate": 1e-3, "seed": 4}
    for _ in extraction.fit(stack, read.cut(8), **settings):
        pass
    for network, reward in zip(stack.members(), found, strict=True):
        for name, value in network.state_dict().items():
            assert torch.equal(reward.network.state_dict()[name], value)


@pytest.mark.lengthy
def test_a_reward_that_sees_averages_is_fitted_to_averages():
    recipe = maze_recipes.MazeRewards(a_pool(), window=8, average=2, steps=20, batch=32, seeds=(3,))
    (reward,) = store.obtain(recipe)
    assert (reward.network.window, reward.network.average) == (8, 2)
    base = store.obtain(recipe.pool.base)
    unit = extraction.displacement_units(base, "mean")
    torch.manual_seed(3)
    network = plan_rewards.WindowReward(6, 4, unit)
    pool = store.obtain(recipe.pool).pool("mean", "mu_base").cut(8).average(2)
    settings = {"steps": 20, "batch": 32, "learning_rate": 1e-3, "seed": 3}
    for _ in extraction.fit(network, pool, **settings):
        pass
    for name, value in network.state_dict().items():
        assert_close(reward.network.state_dict()[name], value, rtol=1e-4, atol=1e-5)


def test_each_seed_begins_with_weights_of_its_own():
    recipe = maze_recipes.MazeRewards(a_pool(), window=8, seeds=(0, 1, 2))
    starts = [recipe._network(seed) for seed in recipe.seeds]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        ours, theirs = (starts[k].g[0].weight for k in (i, j))
        assert (ours - theirs).abs().mean() > 0.01
        assert torch.equal(starts[i].unit, starts[j].unit)
    assert torch.equal(recipe._network(1).g[0].weight, starts[1].g[0].weight)
    # However the base was seeded.
    other = replace(recipe, pool=replace(recipe.pool, base=replace(recipe.pool.base, seed=9)))
    assert torch.equal(other._network(1).g[0].weight, starts[1].g[0].weight)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"strided": True},
        {"activation": "leaky_relu"},
        {"target": "score", "place": "x_t"},
        {"target": "mean", "place": "x_t", "window": 4, "strided": True},
    ],
    ids=str,
)
def test_a_reward_is_fitted_to_its_pool_as_it_was_asked_to_be(options):
    """Against one network built and fitted by hand; the stack of one only adds rounding."""
    options = {"window": 8, "hidden": (8, 4), **options}
    recipe = maze_recipes.MazeRewards(a_pool(), steps=20, batch=32, seeds=(3,), **options)
    (reward,) = store.obtain(recipe)
    target, place = options.get("target", "mean"), options.get("place", "mu_base")
    strided, activation = options.get("strided", False), options.get("activation", "silu")
    assert (reward.target, reward.place) == (target, place)
    assert reward.network.strided == strided
    base = store.obtain(recipe.pool.base)
    unit = extraction.displacement_units(base, target)
    torch.manual_seed(3)
    network = plan_rewards.WindowReward(6, options["window"], unit, (8, 4), strided, activation)
    start = network.g[0].weight.clone()
    windows = store.obtain(recipe.pool).pool(target, place).cut(options["window"], strided)
    settings = {"steps": 20, "batch": 32, "learning_rate": 1e-3, "seed": 3}
    for _ in extraction.fit(network, windows, **settings):
        pass
    for name, value in network.state_dict().items():
        assert_close(reward.network.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    assert (network.g[0].weight - start).abs().max() > 1e-3
    x, t = torch.randn(5, 16, 6), torch.arange(5)
    assert_close(reward(x, t), network(x, t), rtol=1e-3, atol=1e-5)


@pytest.mark.lengthy
def test_a_file_in_place_of_the_base_data_is_trained_on_wherever_it_lies(tmp_path):
    own = maze_experiments.experiments(TINY)[0].base
    keys = []
    for name in ("maze.hdf5", "moved.hdf5"):
        path = tmp_path / name
        trajectories.write_hdf5(path, store.obtain(own.data))
        given = maze_experiments.experiments(with_(dataset_path=str(path)))[0].base
        assert isinstance(given.data, maze_recipes.MazeFile)
        keys.append(store.key(given))
    assert keys[0] == keys[1]
    start = given.blank("cpu").network.parameters()
    moved = [
        (a - b).abs().max()
        for a, b in zip(store.obtain(given).network.parameters(), start, strict=True)
    ]
    assert max(moved) > 1e-4
    ours, theirs = own.split().normaliser, given.split().normaliser
    assert_close(ours.low, theirs.low, rtol=0, atol=0)
    assert_close(ours.high, theirs.high, rtol=0, atol=0)


def test_a_file_of_another_maze_is_refused(tmp_path):
    path = tmp_path / "open.hdf5"
    data = store.obtain(maze_recipes.MazeData("open", episodes=20, length=50))
    trajectories.write_hdf5(path, data)
    with pytest.raises(InputError, match=r"open\.hdf5.*umaze.*walls"):
        maze_experiments.experiments(with_(dataset_path=str(path)))


def test_a_changed_file_is_another_recipe(tmp_path):
    path = tmp_path / "maze.hdf5"
    trajectories.write_hdf5(
        path, store.obtain(maze_recipes.MazeData("umaze", episodes=20, length=50))
    )
    before = store.key(maze_recipes.MazeFile.at("umaze", str(path)))
    with h5py.File(path, "r+") as file:
        file["actions"][0, 0] += 0.5
    assert store.key(maze_recipes.MazeFile.at("umaze", str(path))) != before


def killable() -> maze_recipes.MazeDiffuser:
    """A diffuser small enough to be trained in a second."""
    data = maze_recipes.MazeData("umaze", episodes=20, length=60)
    shape = {"horizon": 16, "channels": (16, 32)}
    return maze_recipes.MazeDiffuser(data, data, steps=60, batch=4, **shape)


KILLED = """
import os, signal
from rrlib import training
from rrlib.lab import store
from test_recipes import killable
training.train.__kwdefaults__["every"] = 20  # steps between two checkpoints
rename = os.replace
def replace(source, target, **more):  # every file gets its name by it, checkpoints, too
    rename(source, target, **more)
    if "checkpoints" in str(target):
        os.kill(os.getpid(), signal.SIGKILL)
os.replace = replace
store.obtain(killable())
"""


@pytest.mark.slow
def test_a_diffuser_killed_by_sigkill_and_started_again_is_the_same(tmp_path, monkeypatch):
    def made(folder):
        monkeypatch.setenv("RRLIB_STORE", str(folder))
        store.obtain(killable())
        return (store.folder(killable()) / "denoiser.safetensors").read_bytes()

    killed = tmp_path / "killed"
    env, here = os.environ | {"RRLIB_STORE": str(killed)}, Path(__file__).parent
    done = subprocess.run([sys.executable, "-c", KILLED], env=env, cwd=here)
    assert done.returncode == -signal.SIGKILL
    (left,) = killed.glob("MazeDiffuser/.*.partial/checkpoints/*.safetensors")
    assert read_tensors(left)[1]["step"] == "20"
    begun, stream = [], training.stream
    monkeypatch.setattr(training, "stream", lambda *a: begun.append(a[1]) or stream(*a))
    assert made(killed) == made(tmp_path / "alone")
    assert begun == [*range(21, 61), *range(1, 61)]  # it went on from the checkpoint


SHARED = """
import sys
from dataclasses import dataclass
from rrlib.lab import store
made = []
@dataclass(frozen=True)
class Slow:
    number: int
    def make(self, folder, device):
        store.write_json(folder / "number.json", self.number)
        made.append(self)
        if len(made) == 1:  # none is done before the other process has begun one, too
            print("begun", flush=True)
            sys.stdin.readline()
    def load(self, folder, device):
        return self.number
assert store.obtain_all(map(Slow, range(4))) == [0, 1, 2, 3]
print(len(made))
"""


@pytest.mark.slow
def test_two_processes_share_a_list_and_make_each_once(tmp_path):
    env = os.environ | {"RRLIB_STORE": str(tmp_path / "shared")}
    options = {"env": env, "stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    pair = [subprocess.Popen([sys.executable, "-c", SHARED], **options) for _ in range(2)]
    assert [process.stdout.readline() for process in pair] == ["begun\n"] * 2
    for process in pair:
        process.stdin.write("go on\n")
        process.stdin.flush()
    counts = [int(process.communicate()[0]) for process in pair]
    assert sum(counts) == 4 and min(counts) >= 1


def test_the_papers_sizes_are_those_of_tables_2_and_3():
    for name in ("open", "umaze", "medium", "large"):
        size = maze_sizes.sizes("paper", name)
        assert (size.window, size.hidden) == ((64, (32,)) if name == "open" else (4, (128, 64, 32)))
        assert (size.diffusion_steps, size.reward_batch, size.reward_rate) == (100, 256, 5e-5)
        assert (size.channels, size.patch, size.from_base) == ((32, 128, 256), 1, False)
    e = maze_experiments.experiments(with_(maze=("open",), horizon=256, size="paper"), n_seeds=2)[0]
    assert e.expert.start is None and e.expert.steps == e.base.steps
    assert (e.rewards.window, e.rewards.seeds) == (64, (0, 1))


@pytest.mark.parametrize(("size", "horizon", "factor"), [("small", 48, 32), ("medium", 192, 128)])
def test_a_horizon_that_windows_do_not_fill_is_refused(size, horizon, factor):
    with pytest.raises(
        InputError, match=rf"^horizon={horizon} is not allowed: a multiple of {factor}"
    ):
        maze_experiments.experiments(with_(size=size, horizon=horizon))


@pytest.mark.lengthy
def test_plans_held_out_are_of_fresh_trajectories_or_of_a_files_tenth(tmp_path):
    own = maze_experiments.experiments(TINY)[0].expert
    split = own.split()
    assert split.train.n_episodes == 20 and split.held_out.n_episodes == maze_recipes.FRESH
    goals = {tuple(goal) for goal in split.held_out.goals.round(3).tolist()}
    assert len(goals) == 1  # the same behaviour
    path = tmp_path / "maze.hdf5"
    trajectories.write_hdf5(path, store.obtain(own.ruler))
    split = maze_experiments.experiments(with_(dataset_path=str(path)))[0].base.split()
    assert (split.train.n_episodes, split.held_out.n_episodes) == (18, 2)


@pytest.mark.lengthy
def test_plans_that_judge_are_of_trajectories_that_nothing_was_trained_on(tmp_path):
    own = maze_experiments.experiments(TINY)[0]
    a, b = (own.sample(own.expert, own.normaliser, 30, 50, seed) for seed in (0, 1))
    assert a.plans.shape == (50, own.expert.horizon, 6) and a.owner.max() < 30
    assert not torch.equal(a.plans, b.plans)
    trained = own.world.to_cells(store.obtain(own.expert.data).observations[:, :2])
    apart = np.linalg.norm(a.cells[:, None, 0] - trained[None], axis=-1).min(1)
    assert (apart > 0).mean() > 0.9  # their places are not among the training set's
    path = tmp_path / "maze.hdf5"
    trajectories.write_hdf5(path, store.obtain(own.base.data))
    other = maze_experiments.experiments(with_(dataset_path=str(path)))[0]
    held_out = other.sample(other.base, other.normaliser, 30, 50, 0)
    assert len(set(held_out.owner)) == 2  # a file's tenth, whatever is asked for


def test_a_manifest_says_how_an_artefact_was_made():
    own = maze_experiments.experiments(TINY)[0].base.data
    store.obtain(own)
    about = store.manifest(own)
    assert about["key"] == store.key(own) and about["recipe"]["fields"]["maze"] == own.maze
    assert about["cpu_seconds"] >= 0 and about["process_peak_mb"] > 0


def counted(lengths: tuple[int, ...]) -> Trajectories:
    """Episodes whose every number is the number of its step, over all of them."""
    ends = np.zeros(sum(lengths), bool)
    ends[np.cumsum(lengths) - 1] = True
    steps = np.arange(len(ends), dtype=np.float32)[:, None]
    return Trajectories(steps, steps, steps[:, 0], ends, np.zeros_like(ends))


@pytest.mark.parametrize("seed", [0, 1])
def test_every_held_out_plan_is_given_to_its_own_trajectory(seed):
    """The first plan of an episode begins where the one before ends."""
    lengths = (5, 4, 3, 9)  # windows of 4 steps: 2, 1, 1 (padded) and 6
    train, held_out = counted((40,)), counted(lengths)
    ruler = Normaliser(np.full(2, -1, np.float32), np.ones(2, np.float32))
    split = recipes.Split(train, held_out, ruler, 4)
    plans, owner = split.held_out_plans(10, seed)  # all of them, each once
    starts = plans[:, 0, 1].long().numpy()
    assert sorted(starts) == [0, 1, 5, 9, *range(12, 18)]
    whose = np.repeat(np.arange(4), lengths)
    assert np.array_equal(owner, whose[starts])
    assert len(set(split.held_out_plans(10, seed + 5)[1])) == 4
    assert not torch.equal(split.held_out_plans(6, seed + 5)[0], split.held_out_plans(6, seed)[0])
    # What is drawn to be learnt is the other part.
    assert split.draw(50, training.stream(seed, 0))[..., 1].max() >= 30


@pytest.mark.parametrize("method", ["algorithm1", "discriminator"])
def test_everything_that_is_drawn_for_a_reward_of_gaussians_is_of_its_seed(
    method, tmp_path, monkeypatch
):
    seen = []
    compare, loss = comparisons.algorithm1, discriminator.discriminator_loss

    def noted(*args, **kwargs):
        seen.append((kwargs["seed"], args[2], args[3]))
        return compare(*args, **kwargs)

    def lost(network, base, *rest):
        seen.append((recipe.seed, *rest[:2]))
        return loss(network, base, *rest)

    monkeypatch.setattr(comparisons, "algorithm1", noted)
    monkeypatch.setattr(discriminator, "discriminator_loss", lost)
    weights = []
    for seed in (2, 3):
        recipe = recipes.GaussianReward(
            *two_gaussians(), method=method, steps=1, seed=seed, **SMALL
        )
        recipe.make(tmp_path, "cpu")
        weights.append(recipe._network().g[0].weight)
        draws = training.stream(seed, "data")
        data = [half.sample(500, draws) for half in (recipe.base, recipe.expert)]
        mine, *asked = seen.pop()
        assert mine == seed
        for ours, wanted in zip(asked, data, strict=True):
            assert_close(ours.double(), wanted, atol=1e-6, rtol=1e-6)
    assert not torch.equal(*weights)
