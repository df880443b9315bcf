"""Every field of a locomotion recipe reaches what it names: calls are recorded, nothing is trained.

Stand-ins take the place of what is slow; what they are given is compared with the recipe.
"""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rrlib import training
from rrlib.estimators import diagnostics as rotation
from rrlib.estimators import discriminator
from rrlib.lab import recipes, store
from rrlib.lab.locomotion import evidence, searches
from rrlib.lab.locomotion import experiments as locomotion_experiments
from rrlib.lab.locomotion import presets as locomotion_sizes
from rrlib.lab.locomotion import recipes as locomotion_recipes
from rrlib.lab.locomotion import rewards as locomotion_rewards
from rrlib.lab.locomotion.recipes import LocomotionData, LocomotionDiffuser, LocomotionFile
from rrlib.lab.locomotion.rewards import (
    LocomotionDiscriminator,
    LocomotionPool,
    LocomotionReward,
    LocomotionRollouts,
)
from rrlib.locomotion import robots, rollouts
from rrlib.locomotion import world as locomotion
from rrlib.method import comparisons, extraction
from rrlib.method import guidance as steering
from rrlib.method.comparisons import Comparisons
from rrlib.method.rewards import RelativeReward
from rrlib.plans import conditioning, normalisers, trajectories
from rrlib.plans.conditioning import held
from rrlib.plans.trajectories import Trajectories

DATA = LocomotionData("hopper", "random", 500, seed=4), LocomotionData("hopper", "expert", 700)
SHAPE = {"ruler": DATA, "horizon": 4, "hidden": 8, "blocks": 1, "diffusion_steps": 6}
FIT = {"steps": 17, "batch": 5, "learning_rate": 0.03, "seed": 9}
BASE, EXPERT = (LocomotionDiffuser(data, **SHAPE, **FIT) for data in DATA)
OTHER = replace(EXPERT, seed=10)  # whose first weights are not the base's
POOL = LocomotionPool(BASE, EXPERT, plans=12, spread=0.0, seed=3)
REWARD = LocomotionReward(POOL, 8, 1, **FIT)
RIVAL = LocomotionDiscriminator(BASE, EXPERT, 8, 1, plans=6, **FIT)
WIDTH, OBSERVATION = 14, 11


def made(seed: int, middle: float, episodes: int = 20, length: int = 8) -> Trajectories:
    """Episodes around `middle`, so that one can tell whose a plan is."""
    rng, n = np.random.default_rng(seed), episodes * length
    ends = np.arange(n) % length == length - 1
    observations = (middle + 0.1 * rng.normal(size=(n, OBSERVATION))).astype("f4")
    actions = (middle + 0.1 * rng.normal(size=(n, 3))).astype("f4")
    return Trajectories(observations, actions, np.ones(n, "f4"), ends, np.zeros(n, bool))


def is_of(plans: torch.Tensor, expert: bool) -> torch.Tensor:
    """Whether each plan is of the expert's data (or the base's); nothing is noised here."""
    side = plans.flatten(1).mean(1) > 0
    return side if expert else ~side


class Calls(list):
    """What was called, and with what."""

    def of(self, name: str) -> SimpleNamespace:
        """The only call of a name."""
        ((args, kwargs),) = [call[1:] for call in self if call[0] == name]
        return SimpleNamespace(args=args, **kwargs)


@pytest.fixture
def calls(monkeypatch):
    found, asked = Calls(), {}
    sets = {DATA[0]: made(0, -1.0), DATA[1]: made(1, 1.0)}

    def obtain(recipe, device="cpu"):
        asked.setdefault(recipe, device)
        if recipe in sets:
            return sets[recipe]
        if isinstance(recipe, LocomotionDiffuser):
            return recipe.blank(device)
        if isinstance(recipe, LocomotionPool):
            draws = training.stream(0, 0)
            x, base, expert = (torch.randn(7, 4, WIDTH, generator=draws) for _ in range(3))
            return Comparisons(x, torch.arange(7) % 6, base, expert, BASE.blank("cpu"))
        return RelativeReward(recipe.blank(), "mean", "mu_base")

    def record(module, name, result=None):
        def stand_in(*args, **kwargs):
            found.append((name, args, kwargs))
            return result(*args, **kwargs) if result else None

        monkeypatch.setattr(module, name, stand_in)

    def first_loss(module, loss, **kwargs):
        return loss(training.stream(kwargs["seed"], 1))

    monkeypatch.setattr(store, "obtain", obtain)
    monkeypatch.setattr(training, "finish", lambda progress, label: None)
    for module in (recipes, locomotion_recipes, locomotion_rewards):
        monkeypatch.setattr(module, "save_file", lambda *_: None)
    record(training, "train", first_loss)
    record(extraction, "fit")
    record(conditioning, "control_loss")
    record(discriminator, "discriminator_loss")
    record(comparisons, "algorithm1", lambda *a, **k: Comparisons(*[torch.zeros(1)] * 4))
    record(rollouts, "play")
    record(rollouts, "planner")
    found.asked, found.sets = asked, sets
    return found


@pytest.mark.parametrize("kind", ["random", "medium-replay", "expert"])
def test_data_are_made_as_the_recipe_says(kind, monkeypatch, tmp_path):
    found = {}
    monkeypatch.setattr(locomotion, "make_trajectories", lambda *args: found.update(args=args))
    monkeypatch.setattr(trajectories, "write_hdf5", lambda file, data: found.update(file=file))
    seeds = []
    for seed in (0, 5):
        LocomotionData("walker2d", kind, 321, seed=seed).make(tmp_path, "cpu")
        world, *asked, own = found["args"]
        assert (world.name, asked) == ("walker2d", [kind, 321])
        assert own == training.derived_seed(seed, f"walker2d {kind}")
        seeds.append(own)
    assert seeds[0] != seeds[1] and found["file"] == tmp_path / "trajectories.hdf5"


@pytest.mark.parametrize("half", [BASE, EXPERT], ids=["base", "expert"])
def test_a_diffuser_is_trained_as_the_recipe_says(half, calls, tmp_path):
    half.make(tmp_path, "cpu")
    train, loss = calls.of("train"), calls.of("control_loss")
    assert (train.steps, train.learning_rate, train.seed) == (17, 0.03, 9)
    assert train.checkpoint == tmp_path / "checkpoints" / "denoiser.safetensors"
    denoiser, plans, width, _ = loss.args
    assert train.args[0] is denoiser.network and width == OBSERVATION
    assert plans.shape == (5, 4, WIDTH)
    assert is_of(plans, half is EXPERT).all()
    # Drawn from the episodes that are not held out, by the step's own numbers.
    assert torch.equal(plans, half.split().draw(5, training.stream(9, 1)))
    parts = trajectories.split(calls.sets[half.data], 0.1, 9)
    assert np.array_equal(half.split().train.observations, parts[0].observations)
    assert np.array_equal(half.split().held_out.observations, parts[1].observations)


def test_a_diffusers_network_is_the_recipes(calls):
    one = BASE.blank("cpu")
    assert (one.steps, one.scheduler.config.clip_sample) == (6, False)
    assert one.network.shape == (4, WIDTH) and one.network.diffusion_steps == 6
    wide = replace(BASE, hidden=16, blocks=3).blank("cpu").network
    assert wide.enter.out_features == 16 and len(wide.blocks) == 3
    unet = replace(BASE, channels=(8, 16)).blank("cpu").network.unet
    assert tuple(unet.config.block_out_channels) == (8, 16)
    weights = [replace(BASE, seed=seed).blank("cpu").network.enter.weight for seed in (0, 0, 1)]
    assert torch.equal(*weights[:2]) and not torch.equal(*weights[1:])


def held_by(condition) -> int:
    """How many numbers of a plan, the first step's last ones, a condition puts in place."""
    x_t, _ = condition(torch.ones(1, 3, 14), torch.zeros(1, 3, 14))
    count = int(x_t.sum())
    assert x_t[0, 0, 14 - count :].all()
    return count


def test_a_pool_asks_both_models_about_plans_of_both(calls, tmp_path):
    POOL.load(tmp_path, "cpu")
    asked = calls.of("algorithm1")
    _, _, of_base, of_expert = asked.args
    assert (asked.size, asked.seed, held_by(asked.condition)) == (12, 3, OBSERVATION)
    assert is_of(of_base, expert=False).all() and is_of(of_expert, expert=True).all()
    assert len(of_base) == len(of_expert) == 12
    draws = training.stream(3, "data")
    for found, half in ((of_base, BASE), (of_expert, EXPERT)):
        assert torch.equal(found, half.split().draw(12, draws))


def test_the_pair_is_asked_in_its_order(calls, tmp_path):
    replace(POOL, expert=OTHER).load(tmp_path, "cpu")
    base, expert, *_ = calls.of("algorithm1").args
    assert torch.equal(base.network.enter.weight, BASE.blank("cpu").network.enter.weight)
    assert torch.equal(expert.network.enter.weight, OTHER.blank("cpu").network.enter.weight)


@pytest.mark.parametrize("target", ["score", "mean"])
@pytest.mark.parametrize("place", ["x_t", "mu_base"])
def test_a_reward_is_fitted_as_the_recipe_says(target, place, calls, tmp_path):
    recipe = replace(REWARD, target=target, place=place, first_action=4.0)
    recipe.make(tmp_path, "cpu")
    fit = calls.of("fit")
    assert (fit.steps, fit.batch, fit.learning_rate, fit.seed) == (17, 5, 0.03, 9)
    assert fit.checkpoint == tmp_path / "checkpoints" / "reward.safetensors"
    network, pool = fit.args
    read = store.obtain(POOL).pool(target, place)
    scale = torch.ones(4, WIDTH)
    scale[0, :3] = 2.0  # the root of the first action's weight
    assert torch.equal(network.scale, scale) and torch.equal(pool.t, read.t)
    torch.testing.assert_close(pool.x * scale, read.x)
    torch.testing.assert_close(pool.target / scale, read.target)
    unit = extraction.displacement_units(BASE.blank("cpu"), target)
    assert torch.equal(network.network.network.unit, unit)


def test_the_rival_is_shown_the_plans_of_each_and_told_what_is_given(calls, tmp_path):
    RIVAL.make(tmp_path, "cpu")
    train, loss = calls.of("train"), calls.of("discriminator_loss")
    assert (train.steps, train.learning_rate, train.seed) == (17, 0.03, 9)
    assert train.checkpoint == tmp_path / "checkpoints" / "reward.safetensors"
    network, base, of_base, of_expert, batch, _, condition = loss.args
    assert base.steps == 6
    assert train.args[0] is network and (batch, held_by(condition)) == (5, OBSERVATION)
    assert is_of(of_base, expert=False).all() and is_of(of_expert, expert=True).all()
    assert len(of_base) == len(of_expert) == 6
    draws = training.stream(9, "data")
    for found, half in ((of_base, BASE), (of_expert, EXPERT)):
        assert torch.equal(found, half.split().draw(6, draws))
    unit = extraction.units(BASE.blank("cpu"), "score")
    assert torch.equal(network.network.unit, unit)


@pytest.mark.parametrize("recipe", [REWARD, RIVAL], ids=["reward", "rival"])
def test_seeds_and_shapes_of_a_reward_and_its_rival(recipe):
    blanks = [replace(recipe, seed=seed).blank().network for seed in (0, 0, 1)]
    weights = [next(network.parameters()) for network in blanks]
    assert torch.equal(*weights[:2]) and not torch.equal(*weights[1:])
    count = [
        sum(p.numel() for p in r.blank().network.parameters())
        for r in (recipe, replace(recipe, hidden=16), replace(recipe, blocks=2))
    ]
    assert count[0] < count[1] and count[0] < count[2]
    scalar = replace(recipe, scalar=True, hidden=16, blocks=2).blank().network
    assert scalar.hidden == (16, 16, 16, 16)
    assert recipe.blank().observation == OBSERVATION


PLAYED = LocomotionRollouts(
    BASE,
    EXPERT,
    weight=0.7,
    place="x_t",
    onto="x_t",
    until=2,
    denoising=3,
    executed=2,
    episodes=6,
    steps=30,
    version=4,
    seed=8,
    workers=2,
)


@pytest.mark.parametrize(
    "guide",
    [None, EXPERT, (OTHER, EXPERT), REWARD, RIVAL],
    ids=["none", "expert", "two planners", "reward", "rival"],
)
def test_rollouts_pass_on_all_that_steers(guide, calls):
    replace(PLAYED, guide=guide).planner()
    asked = calls.of("planner")
    base, normaliser, world, horizon, draws = asked.args
    assert torch.equal(base.network.enter.weight, BASE.blank("cpu").network.enter.weight)
    assert np.array_equal(normaliser.low, BASE.split().normaliser.low)
    assert (world.name, horizon) == ("hopper", 4)
    assert torch.equal(draws.get_state(), training.stream(8, "plans").get_state())
    names = "guidance_scale", "place", "apply_to", "stop_step", "num_inference_steps"
    assert [getattr(asked, name) for name in names] == [0.7, "x_t", "x_t", 2, 3]
    assert asked.force
    if isinstance(guide, tuple):
        for made, planner in ((asked.against, OTHER), (asked.expert, EXPERT)):
            weight = planner.blank("cpu").network.enter.weight
            assert torch.equal(made.network.enter.weight, weight)
    elif guide is EXPERT:
        weight = EXPERT.blank("cpu").network.enter.weight
        assert torch.equal(asked.expert.network.enter.weight, weight)
        assert not hasattr(asked, "reward") and not hasattr(asked, "against")
    else:
        assert isinstance(asked.reward, RelativeReward) if guide else asked.reward is None
        assert not hasattr(asked, "expert")


def test_each_of_several_weights_has_all_episodes(calls):
    replace(PLAYED, weight=(0.5, 2.0)).planner()
    assert calls.of("planner").guidance_scale.tolist() == [0.5] * 6 + [2.0] * 6


@pytest.mark.parametrize(("weight", "n"), [(0.7, 6), ((0.5, 2.0), 12)])
def test_rollouts_are_played_as_the_recipe_says(weight, n, calls, monkeypatch):
    monkeypatch.setattr(rollouts.os, "cpu_count", lambda: 2)
    replace(PLAYED, weight=weight).play()
    play = calls.of("play")
    world, _, episodes, seed = play.args
    assert (world.name, episodes, seed) == ("hopper", n, 8)
    assert (play.steps, play.executed, play.workers, play.version) == (30, 2, 2, 4)
    assert play.starts == 6


def test_a_planner_holds_the_observation_and_passes_guidance_on(monkeypatch):
    """The sampler is told what is given: a learned reward sees it without noise."""
    seen = []

    def sample(model, shape, generator, **options):
        seen.append((model, shape, generator, options))
        return torch.zeros(shape)

    monkeypatch.setattr(steering, "sample", sample)
    monkeypatch.setattr(rollouts, "given", lambda model, first: (model, first))
    normaliser = normalisers.Normaliser(np.full(14, -2, "f4"), np.full(14, 4, "f4"))
    draws, base = training.stream(0, 0), BASE.blank("cpu")
    reward = RelativeReward(REWARD.blank(), "mean", "mu_base")
    options = {
        "reward": reward,
        "guidance_scale": 0.7,
        "place": "x_t",
        "force": True,
        "apply_to": "x_t",
    }
    options |= {"stop_step": 2, "num_inference_steps": 3}
    plan = rollouts.planner(base, normaliser, robots.load("hopper"), 4, draws, **options)
    observations = np.random.default_rng(1).normal(size=(3, 11)).astype("f4")
    plan(observations, np.arange(3))
    ((model, shape, generator, got),) = seen
    first = torch.from_numpy((observations - 1) / 3)
    torch.testing.assert_close(got.pop("keep")(torch.zeros(shape))[:, 0, 3:], first)
    assert model[0] is base and torch.equal(model[1], first)
    assert got == options and shape == (3, 4, 14) and generator is draws


CHOSEN = SimpleNamespace(
    environment=("hopper", "halfcheetah"),
    base_kind="random",
    transitions=2_345,
    size="medium",
    diffuser_steps=11,
    seed=3,
    n_seeds=2,
    base_path="",
    expert_path="",
)


@pytest.mark.parametrize("steps", [7, 4_000])
@pytest.mark.parametrize("size", ["small", "medium", "paper"])
def test_an_experiment_is_what_its_parameters_and_its_size_say(size, steps):
    chosen = SimpleNamespace(**vars(CHOSEN) | {"size": size})
    found = locomotion_experiments.experiments(chosen, steps)
    assert [e.base.seed for e in found] == [3, 4, 3, 4]
    for e in found:
        own, seed = locomotion_sizes.sizes(size, e.world.name), e.base.seed
        name = e.world.name
        for half, kind in ((e.base, "random"), (e.expert, "expert")):
            assert half.data == LocomotionData(name, kind, 2_345)
            assert half.ruler == (e.base.data, e.expert.data)
            wanted = {"horizon": own.horizon, "diffusion_steps": own.diffusion_steps}
            wanted |= {"steps": 11, "seed": seed} | own.diffuser
            assert {k: getattr(half, k) for k in wanted} == wanted
        for fitted in (e.reward, e.discriminator):
            wanted = {"steps": steps, "seed": seed} | own.value
            assert {k: getattr(fitted, k) for k in wanted} == wanted
        read = 7 * own.value["batch"]  # a fit is given no more than it draws
        plans, shown = (own.comparisons, own.plans) if steps == 4_000 else (read, read)
        assert e.reward.pool == LocomotionPool(e.base, e.expert, plans, seed=seed)
        assert (e.discriminator.base, e.discriminator.expert) == (e.base, e.expert)
        assert e.discriminator.plans == shown
        assert (e.reward.target, e.reward.place) == ("mean", "mu_base")


@pytest.mark.parametrize("given", [("b", ""), ("", "e"), ("b", "e")], ids=str)
def test_a_file_takes_the_place_of_its_own_half(given, monkeypatch):
    monkeypatch.setattr(
        LocomotionFile, "at", lambda name, path, *_, **__: LocomotionFile(name, path, path)
    )
    paths = {"environment": ("hopper",), "base_path": given[0], "expert_path": given[1]}
    chosen = SimpleNamespace(**vars(CHOSEN) | paths | {"n_seeds": 1})
    (e,) = locomotion_experiments.experiments(chosen, 7)
    own = (LocomotionData("hopper", kind, 2_345) for kind in ("random", "expert"))
    wanted = tuple(
        LocomotionFile("hopper", path, path) if path else data
        for path, data in zip(given, own, strict=True)
    )
    assert (e.base.data, e.expert.data) == e.base.ruler == e.expert.ruler == wanted


def test_the_defaults_that_results_rest_on():
    """A changed default is another experiment: the ledger and the pages name these."""
    assert (LocomotionPool(BASE, EXPERT).spread, LocomotionReward(POOL).first_action) == (0.5, 10.0)
    assert LocomotionRollouts(BASE).steps == 1_000 and LocomotionRollouts(BASE).version == 5
    sizes = locomotion_sizes.sizes
    assert [sizes("paper", n).horizon for n in robots.ENVIRONMENTS] == [4, 32, 32]
    assert [sizes("paper", n).diffusion_steps for n in robots.ENVIRONMENTS] == [20] * 3
    assert sizes("paper", "halfcheetah").diffuser["channels"] == (32, 128, 256)
    assert sizes("paper", "hopper").diffuser["channels"] == (32, 64, 128, 256)
    wide = {"hidden": 256, "blocks": 2, "batch": 256}
    narrow = {"hidden": 128, "blocks": 2, "batch": 128, "learning_rate": 2e-3}
    for name, horizon, plans in (("hopper", 32, 300_000), ("halfcheetah", 4, 800_000)):
        full = locomotion_sizes.Sizes(
            horizon, 20, wide, 100_000, plans, wide | {"learning_rate": 2e-3}
        )
        assert sizes("medium", name) == full
        quick = locomotion_sizes.Sizes(horizon, 10, narrow, 60_000, 60_000, narrow)
        assert sizes("small", name) == quick


def test_rollouts_of_a_use_are_as_the_parameters_say():
    chosen = SimpleNamespace(
        episodes=30, search=5, steps=77, executed=2, denoising=3, version=4, workers=1
    )
    found = searches.rollouts(
        BASE, chosen, searches.REPORT, REWARD, weight=0.3, until=2, onto="x_t"
    )
    wanted = {"episodes": 30, "steps": 77, "executed": 2, "denoising": 3, "version": 4}
    wanted |= {
        "workers": 1,
        "guide": REWARD,
        "weight": 0.3,
        "until": 2,
        "onto": "x_t",
        "base": BASE,
    }
    assert {k: getattr(found, k) for k in wanted} == wanted
    assert found.seed == training.derived_seed(9, "report") % 2**31
    assert searches.rollouts(BASE, chosen, searches.SELECTION).episodes == 5


def test_what_is_asked_of_held_out_plans(calls, monkeypatch):
    """Plans of each half's held-out episodes, by the seed; each reward's own reading."""
    calls.clear()
    asked = store.obtain(POOL)

    def compare(*args, **kwargs):
        calls.append(("compare", args, kwargs))
        return asked

    shares = []

    def explained(network, pool, steps):
        shares.append((network, pool, steps))
        return torch.full((steps,), 0.5)

    monkeypatch.setattr(comparisons, "algorithm1", compare)
    monkeypatch.setattr(extraction, "explained", explained)
    pool = replace(POOL, expert=OTHER)
    rewards = [replace(REWARD, pool=pool), replace(REWARD, pool=pool, place="x_t", target="score")]
    found = evidence.held_out(rewards, 15, seed=6)
    call = calls.of("compare")
    *models, of_base, of_expert = call.args
    assert (held_by(call.condition), call.size, call.seed) == (OBSERVATION, 30, 6)
    for model, plans, half in zip(models, (of_base, of_expert), (BASE, OTHER), strict=True):
        assert torch.equal(plans, half.split().held_out_plans(15, 6)[0])
        assert torch.equal(model.network.enter.weight, half.blank("cpu").network.enter.weight)
    for reward, (_, pool, steps), (read, share) in zip(rewards, shares, found, strict=True):
        wanted = asked.pool(reward.target, reward.place)
        assert torch.equal(pool.target, wanted.target) and torch.equal(pool.x, wanted.x)
        assert steps == 6 and read is pool and share.tolist() == [0.5] * 6


def test_rotation_is_measured_at_the_noised_plans_of_both_halves(calls, monkeypatch):
    """Jacobians of known shares: k times a rotation beside a symmetric one is k^2 / (1 + k^2)."""
    symmetric, turning = torch.eye(2), torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    size, seen = {(1, "x_t"): 1.0, (1, "mu_base"): 2.0, (3, "x_t"): 3.0, (3, "mu_base"): 0.0}, []

    def jacobians(base, expert, x_t, step, place, *, condition, free):
        assert held_by(condition) == int((~free).sum()) == OBSERVATION
        assert free[1:].all() and not free[0, -OBSERVATION:].any()
        seen.append((base, expert, x_t, step))
        return (symmetric + size[step, place] * turning)[None]

    monkeypatch.setattr(rotation, "difference_jacobians", jacobians)
    reward = replace(REWARD, pool=replace(POOL, expert=OTHER))
    found = evidence.turning(reward, (1, 3), plans=5, seed=6)
    assert found == {"x_t": pytest.approx([0.5, 0.9]), "mu_base": pytest.approx([0.8, 0.0])}
    pair = BASE, OTHER
    x0 = torch.cat([half.split().held_out_plans(5, 6)[0] for half in pair])
    draws, model = training.stream(6, "rotation"), BASE.blank("cpu")
    noised = {t: model.noise(x0, torch.full((10,), t), draws) for t in (1, 3)}
    for *models, x_t, step in seen:
        assert torch.equal(x_t, held(noised[step], x0[:, 0, 3:]))
        for asked, half in zip(models, pair, strict=True):
            weights = (m.network.enter.weight for m in (asked, half.blank("cpu")))
            assert torch.equal(*weights)


def test_scores_are_asked_of_the_study_and_environment():
    played = {"one": PLAYED}

    def obtain_all(recipes):
        assert list(recipes) == [PLAYED]
        return [{"returns": np.array([-20.272305, 3234.3])}]

    found = searches.play(SimpleNamespace(obtain_all=obtain_all), played)
    np.testing.assert_allclose(found["one"], [0, 100], atol=1e-9)


@pytest.mark.parametrize("kind", ["medium", "medium-replay", "expert"])
def test_data_of_other_policies_are_other_data(kind, monkeypatch):
    """What the policies' file holds is a part of the recipe; random data need none."""
    before = {k: LocomotionData("hopper", k, 700) for k in (kind, "random")}
    assert before[kind].policies == locomotion_recipes.actors.digest(robots.load("hopper"))
    monkeypatch.setattr(locomotion_recipes.actors, "digest", lambda world: f"new {world.name}")
    after = {k: LocomotionData("hopper", k, 700) for k in (kind, "random")}
    assert after[kind].policies == "new hopper"
    assert store.key(after[kind]) != store.key(before[kind])
    assert store.key(after["random"]) == store.key(before["random"])
