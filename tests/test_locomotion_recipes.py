"""Recipes of locomotion, made small: their parts against what they are made of."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from torch.testing import assert_close

from rrlib import training
from rrlib.errors import InputError
from rrlib.lab import store
from rrlib.lab.locomotion import experiments as locomotion_experiments
from rrlib.lab.locomotion import presets as locomotion_sizes
from rrlib.lab.locomotion.recipes import LocomotionData, LocomotionDiffuser, LocomotionFile
from rrlib.lab.locomotion.rewards import (
    LocomotionDiscriminator,
    LocomotionPool,
    LocomotionReward,
    LocomotionRollouts,
)
from rrlib.locomotion import robots
from rrlib.locomotion import world as locomotion
from rrlib.method import comparisons, extraction
from rrlib.plans import trajectories
from rrlib.plans.conditioning import first_given, given, held

HOPPER = robots.load("hopper")
DATA = LocomotionData("hopper", "random", 2_000), LocomotionData("hopper", "expert", 2_000)
SMALL = {"ruler": DATA, "horizon": 8, "hidden": 32, "blocks": 1, "diffusion_steps": 5}
BASE = LocomotionDiffuser(DATA[0], **SMALL, steps=200)
EXPERT = LocomotionDiffuser(DATA[1], **SMALL, steps=200)
POOL = LocomotionPool(BASE, EXPERT, plans=600)
REWARD = LocomotionReward(POOL, 64, 1, steps=100, batch=64)
DISCRIMINATOR = LocomotionDiscriminator(BASE, EXPERT, 64, 1, plans=600, steps=100, batch=64)


@pytest.fixture(scope="module", autouse=True)
def own_store(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RRLIB_STORE", str(tmp_path_factory.mktemp("store")))
        yield


def held_out(n: int) -> list[torch.Tensor]:
    return [half.split().held_out_plans(n, 3)[0] for half in (BASE, EXPERT)]


def test_base_and_expert_share_a_ruler_in_which_each_counts_the_same():
    ranges = [half.split().normaliser for half in (BASE, EXPERT)]
    assert_allclose(ranges[0].low, ranges[1].low)
    rows = []
    for data in DATA:
        found = store.obtain(data)
        rows.append(ranges[0].normalise(np.concatenate([found.actions, found.observations], 1)))
    assert_allclose(np.mean([r.mean(0) for r in rows], axis=0), 0, atol=1e-4)
    assert_allclose(np.mean([np.square(r).mean(0) for r in rows], axis=0), 0.25, atol=1e-3)


@pytest.mark.lengthy
def test_a_diffuser_has_learnt_its_own_behaviour():
    t = torch.full((200,), 2)
    for mine, plans in enumerate(held_out(200)):
        first = plans[:, 0, 3:]
        x_t = held(store.obtain(BASE).noise(plans, t, training.stream(0, 0)), first)
        base, expert = (given(store.obtain(half), first).x0(x_t, t) for half in (BASE, EXPERT))
        errors = [(x0 - plans).square().mean() for x0 in (base, expert)]
        assert errors[mine] < errors[1 - mine]


def test_a_pool_compares_models_that_are_given_the_first_observation():
    found = store.obtain(POOL)
    first = found.x[:, 0, 3:]
    for half, x0 in ((BASE, found.base), (EXPERT, found.expert)):
        assert torch.equal(x0[:, 0, 3:], first)
        asked = given(store.obtain(half), first[:50]).x0(found.x[:50], found.t[:50])
        assert_close(x0[:50], asked, atol=1e-5, rtol=1e-5)
    assert set(found.t.tolist()) == set(range(5))


def test_what_is_given_is_spread_beyond_the_data_and_nothing_else_is():
    """By noise of a deviation that is uniform up to `spread`: variance spread^2 / 3."""
    wide, exact = (store.obtain(replace(POOL, spread=spread)) for spread in (0.6, 0.0))
    # Both draw the same plans and the same noise of diffusion.
    change = wide.x - exact.x
    assert (change[:, 1:] == 0).all() and (change[:, 0, :3] == 0).all()
    assert_allclose(change[:, 0, 3:].square().mean(), 0.6**2 / 3, rtol=0.1)
    first = exact.x[:, 0, 3:]
    given_then = torch.cat(
        [half.split().draw(600, training.stream(0, "data"))[:, 0, 3:] for half in (BASE, EXPERT)]
    )
    assert (first[:, None] == given_then).all(-1).any(1).float().mean() > 0.4


@pytest.mark.lengthy
def test_a_third_of_the_plans_are_what_rollouts_did():
    run = LocomotionRollouts(BASE, episodes=2, steps=40, denoising=3, seed=5)
    done = run.play().observations
    normaliser = BASE.split().normaliser
    shares = []
    for visited in ((), (run,), (run, replace(run, seed=6))):
        found = store.obtain(replace(POOL, spread=0.0, visited=visited))
        assert len(found.x) == POOL.plans
        first = normaliser.denormalise(found.x[:, 0].numpy())[:, 3:]
        shares.append((np.abs(first[:, None] - done).max(-1).min(1) < 1e-4).mean())
    # Four standard errors of a share of 600 are less than 0.08.
    assert_allclose(shares, (0, 1 / 3, 1 / 6), atol=0.08)


@pytest.mark.lengthy
def test_a_reward_follows_first_actions_more_closely_the_more_they_weigh():
    pair = [store.obtain(half) for half in (BASE, EXPERT)]
    asked = comparisons.algorithm1(
        *pair, *held_out(300), size=600, seed=8, condition=first_given(11)
    )
    pool = asked.pool("mean", "mu_base")
    errors = []
    for weight in (1e-4, 1e4):
        network = store.obtain(replace(REWARD, first_action=weight)).network
        x = pool.x.clone().requires_grad_()
        gradient = torch.autograd.grad(network(x, pool.t).sum(), x)[0]
        errors.append((gradient - pool.target)[:, 0, :3].square().mean())
    assert errors[1] < 0.8 * errors[0]


@pytest.mark.lengthy
def test_a_reward_follows_the_difference_where_it_was_not_fitted():
    pair = [store.obtain(half) for half in (BASE, EXPERT)]
    asked = comparisons.algorithm1(
        *pair, *held_out(300), size=600, seed=8, condition=first_given(11)
    )
    pool = asked.pool("mean", "mu_base")
    found = extraction.explained(store.obtain(REWARD).network, pool, 5)
    turned = extraction.explained(
        store.obtain(REWARD).network, replace(pool, target=-pool.target), 5
    )
    assert found.mean() > 0.1
    assert turned.mean() < -0.1


@pytest.mark.lengthy
def test_the_discriminator_knows_the_expert():
    logit = store.obtain(DISCRIMINATOR)
    assert (logit.target, logit.place) == ("score", "x_t")
    zero = torch.zeros(200, dtype=torch.long)
    base, expert = (logit(plans, zero) for plans in held_out(200))
    assert (expert[:, None] > base).double().mean() > 0.9


@pytest.mark.lengthy
@pytest.mark.parametrize("guide", [None, REWARD, DISCRIMINATOR, EXPERT])
def test_rollouts_keep_the_returns_of_what_they_play(guide):
    recipe = LocomotionRollouts(BASE, guide, weight=0.5, executed=4, episodes=3, steps=20, until=1)
    found, played = store.obtain(recipe), recipe.play()
    for k, (start, stop) in enumerate(played.bounds):
        assert found["lengths"][k] == stop - start
        assert_allclose(found["returns"][k], played.rewards[start:stop].sum(dtype=float))


@pytest.mark.lengthy
def test_several_weights_are_played_side_by_side_from_the_same_starts():
    recipe = LocomotionRollouts(BASE, EXPERT, weight=(0.0, 1.0), episodes=2, steps=20, seed=3)
    found, played = store.obtain(recipe), recipe.play()
    assert found["returns"].shape == (4,)
    starts = played.observations[played.bounds[:, 0]]
    assert np.array_equal(starts[:2], starts[2:]) and not np.array_equal(starts[0], starts[1])
    # The noise of a batch is its own, so an episode alone is compared by the weight it obeys.
    batch, plan = starts[[0, 0]], recipe.planner()
    low, high = plan(batch, np.array([1, 2]))  # the last of the first weight, the first of the next
    same = [replace(recipe, weight=w).planner()(batch, np.arange(2)) for w in recipe.weight]
    assert_allclose(low, same[0][0], atol=1e-5)
    assert_allclose(high, same[1][1], atol=1e-5)
    assert np.abs(low - same[1][0]).max() > 1e-3


def test_how_many_workers_play_changes_no_key_and_a_weight_does():
    recipe = LocomotionRollouts(BASE, REWARD)
    assert store.key(replace(recipe, workers=2)) == store.key(recipe)
    assert store.key(replace(recipe, weight=2.0)) != store.key(recipe)


def test_a_file_of_ones_own_is_data_like_any(tmp_path):
    path = tmp_path / "mine.hdf5"
    made = store.obtain(DATA[1])
    trajectories.write_hdf5(path, made)
    mine = LocomotionFile.at("hopper", str(path))
    assert np.array_equal(store.obtain(mine).actions, made.actions)
    path.rename(tmp_path / "moved.hdf5")
    moved = LocomotionFile.at("hopper", str(tmp_path / "moved.hdf5"))
    assert store.key(moved) == store.key(mine)
    trajectories.write_hdf5(path, store.obtain(DATA[0]))
    with pytest.raises(InputError, match="has changed since this run began"):
        LocomotionFile("hopper", mine.sha256[::-1], str(path)).make(tmp_path, "cpu")
    with pytest.raises(InputError, match="allowed is M x 17"):
        LocomotionFile.at("walker2d", str(path))


CHOSEN = SimpleNamespace(
    environment=("hopper", "walker2d"),
    base_kind="medium-replay",
    transitions=2_000,
    size="small",
    diffuser_steps=10,
    seed=3,
    n_seeds=2,
    base_path="",
    expert_path="",
)


@pytest.mark.parametrize("size", ["small", "medium", "paper"])
@pytest.mark.parametrize("name", ["halfcheetah", "hopper"])
def test_networks_of_every_size_take_plans_of_their_horizon(name, size):
    chosen = SimpleNamespace(**vars(CHOSEN) | {"environment": (name,), "size": size})
    if name == "halfcheetah":
        chosen.base_kind = "random"
    one = locomotion_experiments.experiments(chosen, 7)[0]
    width = one.world.action + one.world.observation
    plans, t = torch.randn(2, one.base.horizon, width), torch.tensor([0, 1])
    assert one.base.blank("cpu").network(plans, t).shape == plans.shape
    for value in (one.reward, one.discriminator):
        assert value.blank()(plans, t).shape == (2,)


@pytest.mark.parametrize("form", [{}, {"scalar": True}, {"channels": (32, 32)}])
def test_the_gradient_leaves_the_given_observation_alone(form):
    rho = replace(REWARD, **form).blank()
    x = torch.randn(5, 8, 14, generator=training.stream(1, 0), requires_grad=True)
    (gradient,) = torch.autograd.grad(rho(x, torch.arange(5)).sum(), x)
    assert (gradient[:, 0, 3:] == 0).all()
    assert (gradient[:, 0, :3] != 0).all() and (gradient[:, 1:] != 0).all()
    assert not torch.equal(rho(x, torch.arange(5)), rho(x.roll(1, 0), torch.arange(5)))


def test_papers_networks_are_those_of_tables_2_and_3():
    for name, horizon in (("halfcheetah", 4), ("hopper", 32), ("walker2d", 32)):
        found = locomotion_sizes.sizes("paper", name)
        assert found.horizon == horizon
        assert found.value == {"channels": (64, 64, 128, 128), "batch": 128, "learning_rate": 2e-4}
        assert (found.diffuser["batch"], found.diffuser["learning_rate"]) == (32, 2e-4)


def test_a_chapter_asks_for_a_pair_per_environment_and_seed():
    found = locomotion_experiments.experiments(CHOSEN, 7)
    assert [(e.world.name, e.base.seed) for e in found] == [
        (name, seed) for name in CHOSEN.environment for seed in (3, 4)
    ]
    for e in found:
        assert e.base.ruler == e.expert.ruler == (e.base.data, e.expert.data)
        assert (e.base.data.kind, e.expert.data.kind) == ("medium-replay", "expert")
        size = locomotion_sizes.sizes(CHOSEN.size, e.world.name)
        plans = 7 * size.value["batch"]  # a fit of seven steps draws no more
        assert plans < size.comparisons
        assert e.reward.pool == LocomotionPool(e.base, e.expert, plans, seed=e.base.seed)
        assert (e.reward.steps, e.discriminator.steps) == (7, 7)


def test_a_file_for_several_environments_is_refused(tmp_path):
    chosen = SimpleNamespace(**vars(CHOSEN) | {"base_path": str(tmp_path / "mine.hdf5")})
    with pytest.raises(InputError, match="environment = hopper,walker2d is not allowed"):
        locomotion_sizes.check_data(chosen)


def test_policies_of_another_mujoco_are_refused_before_anything_is_made(monkeypatch):
    locomotion_sizes.check_data(CHOSEN)
    monkeypatch.setattr(locomotion.mujoco, "__version__", "3.9.1")
    with pytest.raises(InputError, match=r"mujoco = 3\.9\.1 differs from"):
        locomotion_sizes.check_data(CHOSEN)
