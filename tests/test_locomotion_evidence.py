"""Choice of a scale and intervals of what it gains, against numbers known beforehand."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose
from scipy import stats

from rrlib import training
from rrlib.errors import InputError
from rrlib.lab import store
from rrlib.lab.locomotion import evidence, intervals, searches
from rrlib.lab.locomotion import presets as locomotion_sizes
from rrlib.lab.locomotion.recipes import LocomotionData, LocomotionDiffuser
from rrlib.lab.locomotion.rewards import LocomotionPool, LocomotionReward
from rrlib.locomotion import world as locomotion
from rrlib.method import comparisons, extraction
from rrlib.plans.conditioning import first_given

CHOSEN = SimpleNamespace(
    episodes=3,
    search=2,
    steps=20,
    executed=2,
    size="small",
    denoising=3,
    version=5,
    workers=1,
    device="cpu",
    rounds=0,
)
FILES = {"base_path": "", "expert_path": ""}
DATA = LocomotionData("hopper", "random", 2_000), LocomotionData("hopper", "expert", 2_000)
SMALL = {"ruler": DATA, "horizon": 8, "hidden": 16, "blocks": 1, "diffusion_steps": 5, "steps": 20}
BASE, EXPERT = (LocomotionDiffuser(data, **SMALL) for data in DATA)


def test_uses_start_elsewhere_and_seeds_of_a_use_differ():
    uses = searches.SELECTION, searches.REPORT, searches.STUDY
    seeds = {searches.rollouts(BASE, CHOSEN, use).seed for use in uses}
    other = LocomotionDiffuser(DATA[0], **SMALL, seed=1)
    seeds |= {searches.rollouts(other, CHOSEN, use).seed for use in uses}
    assert len(seeds) == 6
    one = searches.rollouts(BASE, CHOSEN, searches.REPORT, EXPERT, weight=0.3, until=2)
    assert (one.guide, one.weight, one.until, one.executed, one.denoising) == (EXPERT, 0.3, 2, 2, 3)


def test_a_search_plays_as_many_as_it_is_told_and_a_report_all():
    played = {use: searches.rollouts(BASE, CHOSEN, use).episodes for use in ("report", "selection")}
    assert played == {"report": 3, "selection": 2}
    assert searches.rollouts(BASE, CHOSEN, searches.STUDY, executed=7).executed == 7


def play_by(scores, monkeypatch) -> None:
    """Have rollouts score what a function says of them."""
    scored = lambda study, runs: {name: scores(run) for name, run in runs.items()}  # noqa: E731
    monkeypatch.setattr(searches, "play", scored)


def test_the_best_mean_on_selection_seeds_is_chosen(monkeypatch):
    def scores(played):
        assert played.seed == searches.rollouts(BASE, CHOSEN, searches.SELECTION).seed
        assert (played.base, played.place, played.guide) == (BASE, "x_t", EXPERT)
        apart = np.array(played.weight) - 1.5
        return np.stack([np.zeros(3), -2 * apart**2 - 2 * played.until], 1).ravel()

    play_by(scores, monkeypatch)
    study = SimpleNamespace(chosen=CHOSEN)
    found = searches.choose(study, BASE, EXPERT, (0.25, 1.5, 3.0), (2, 0), place="x_t")
    assert (found.weight, found.until) == (1.5, 0)
    assert len(found.tried) == 6
    assert found.tried[3.0, 2] == -(1.5**2) - 2


def test_a_search_tries_every_method(monkeypatch):
    def scores(played):
        apart = np.array(played.weight) - (1.0 if played.guide == EXPERT else 2.0)
        return np.repeat(-(apart**2), 2)

    play_by(scores, monkeypatch)
    at = {"place": "x_t"}
    chosen = SimpleNamespace(**vars(CHOSEN) | {"weights": (1.0, 2.0), "untils": (3,)})
    methods = {"a": (EXPERT, at), "b": (BASE, at)}
    found = searches.search(SimpleNamespace(chosen=chosen), BASE, methods)
    assert {m: one.guidance for m, one in found.items()} == {
        "a": {"weight": 1.0, "until": 3},
        "b": {"weight": 2.0, "until": 3},
    }
    assert found["a"].tried == {(1.0, 3): 0.0, (2.0, 3): -1.0}


def test_forms_are_those_that_the_sampler_takes():
    reward = LocomotionReward(LocomotionPool(BASE, EXPERT, plans=200), 16, 1)
    found = searches.reward_forms(reward, CHOSEN)
    assert {form: guide.place for form, (guide, _) in found.items()} == {
        "mu_base": "mu_base",
        "x_t": "x_t",
        "authors": "mu_base",
    }
    assert found["authors"][1] == {"place": "x_t", "onto": "x_t"}
    tried = {"one": {(1.0, 0): 3.0, (2.0, 0): 1.0}, "other": {(1.0, 0): 2.0, (2.0, 0): 4.0}}
    choices = {form: searches.Choice(1.0, 0, scores) for form, scores in tried.items()}
    assert searches.best(choices) == "other"


def test_a_reward_is_fitted_again_to_where_the_one_before_led():
    reward = LocomotionReward(LocomotionPool(BASE, EXPERT, plans=200), 16, 1)
    chosen = SimpleNamespace(**vars(CHOSEN) | {"rounds": 2})
    found, how = searches.reward_forms(reward, chosen)["visited"]
    assert how == {"place": "mu_base"}
    first, second = found.pool.visited
    assert first.guide == reward and second.guide.pool.visited == (first,)
    assert (first.weight, first.place, first.base) == (1.0, "mu_base", BASE)
    others = [searches.rollouts(BASE, CHOSEN, use) for use in (searches.SELECTION, searches.REPORT)]
    assert len({run.seed for run in (first, second, *others)}) == 4


def test_a_bootstrapped_mean_has_students_interval():
    rng = np.random.default_rng(0)
    drawn = rng.normal(5, 2, size=400)
    value, low, high = intervals.bootstrap({"a": [drawn]}, lambda m: m["a"])
    wanted = stats.t.interval(0.95, 399, drawn.mean(), stats.sem(drawn))
    assert value == drawn.mean()
    # An interval of 90 or 97 % would be 0.03 or 0.02 away at either end.
    assert_allclose((low, high), wanted, atol=0.012)


def test_an_interval_is_not_made_to_hold_the_value():
    """|mean| of numbers whose mean is 0: nearly every draw lies above it."""
    drawn = np.random.default_rng(0).normal(size=400)
    drawn -= drawn.mean()
    value, low, high = intervals.bootstrap({"a": [drawn]}, lambda m: np.abs(m["a"]))
    one = stats.norm.ppf([0.5125, 0.9875]) * stats.sem(drawn)
    assert value == pytest.approx(0, abs=1e-12)
    assert_allclose((low, high), one, atol=0.005)
    assert low > value


@pytest.mark.parametrize("scores", [[5.0], [5.0, 5.0]])
def test_what_does_not_vary_has_no_interval(scores):
    value, *interval = intervals.bootstrap({"a": [np.array(scores)]}, lambda m: m["a"])
    assert value == 5 and np.isnan(interval).all()


def test_seeds_count_the_same_however_many_episodes_they_have():
    few, many = np.array([0.0, 2.0]), np.full(10, 3.0)
    value, low, high = intervals.bootstrap({"a": [few, many]}, lambda m: m["a"])
    assert value == 2.0
    assert (low, high) == (0.5, 3.0)  # of the first pair twice 1 in 64 draws is 0, 4 in 64 are 0.5
    ratio = intervals.bootstrap({"a": [many], "b": [few + 1]}, lambda m: m["b"] / m["a"])
    assert_allclose(ratio, (2 / 3, 1 / 3, 1.0))


@pytest.mark.lengthy
def test_an_interval_is_over_pairs_and_over_episodes():
    """The mean's variance is that of pairs and that of episodes, each over how many there are."""
    rng = np.random.default_rng(0)
    pairs, n = 40, 25
    scores = rng.normal(0, 2, (pairs, 1)) + rng.normal(0, 5, (pairs, n))
    value, low, high = intervals.bootstrap({"a": list(scores)}, lambda m: m["a"])
    between, within = scores.mean(1).var(), scores.var(1).mean() / n
    wanted = 1.96 * np.sqrt((between + within) / pairs)
    assert_allclose([value - low, high - value], wanted, rtol=0.06)
    assert wanted > 1.2 * 1.96 * np.sqrt(within / pairs)  # what episodes alone would say


def test_ways_of_an_environment_have_the_same_pairs_drawn():
    """Of what two ways share, such as a good pair, their difference knows nothing."""
    luck = 100.0 * np.arange(5)
    scores = {("a", way, k): np.full(3, luck[k] + up) for k in range(5) for way, up in WAYS.items()}
    compared = intervals.Comparison(scores)
    assert_allclose(compared.ahead("a", "expert", "base"), (7, np.nan, np.nan))
    scores |= {("b", *key[1:]): values for key, values in scores.items()}
    both = intervals.Comparison(scores).score
    assert both("a", "base") == both("b", "base")
    _, low, high = intervals.Comparison(scores).number(lambda m: m["base"], "base")
    one = both("a", "base")
    assert high - low < 0.8 * (one.high - one.low)  # environments draw pairs of their own


WAYS = {"base": 1.0, "expert": 8.0}


def test_a_number_is_written_with_its_interval():
    found = intervals.Number(2.04, 1, 3)
    assert f"{found:.1f}" == "2.0 (1.0 to 3.0)"
    assert found.entry == {"value": 2.04, "ci": [1, 3]}


def test_a_mean_of_episodes_has_students_interval():
    drawn = np.random.default_rng(0).normal(5, 2, size=12)
    wanted = stats.t.interval(0.95, 11, drawn.mean(), stats.sem(drawn))
    value, *interval = intervals.mean(drawn)
    assert value == drawn.mean()
    assert_allclose(interval, wanted)
    row = intervals.row(drawn)
    assert row["episodes"] == 12 and row["score"] == value
    assert [row["score_low"], row["score_high"]] == interval


def compared(**scores) -> intervals.Comparison:
    """Constant scores of two seeds by way, an environment "a" and another with twice of them."""
    return intervals.Comparison(
        {
            (name, way, seed): np.full(4, factor * (value + seed))
            for name, factor in (("a", 1.0), ("b", 2.0))
            for way, value in scores.items()
            for seed in (0, 1)
        }
    )


def test_a_comparison_reads_numbers_off_mean_scores():
    found = compared(base=1.5, expert=9.5, reward=5.5, rival=2.5)  # means 2, 10, 6, 3 and twice
    assert found.score("a", "reward")[0] == 6 and found.score("b", "reward")[0] == 12
    assert found.gain("a", "reward")[0] == found.gain("b", "reward")[0] == 200
    assert found.gain("a", "reward", over="rival")[0] == 100
    assert found.gains("a", "reward") == pytest.approx({0: 800 / 3, 1: 160.0})  # 5.5/1.5, 6.5/2.5
    assert found.ahead("a", "reward", "rival")[0] == 3
    assert found.ahead("b", "reward", "rival")[0] == 6
    assert found.gap_closed("reward")[0] == found.gap_closed("reward", "b")[0] == 0.5
    assert found.number(lambda m: m["reward"], "reward")[0] == 9  # of both environments
    assert found.number(lambda m: m["reward"], "reward", of=["b"])[0] == 12


def test_a_comparison_is_of_the_seeds_that_have_all_ways():
    found = compared(base=1.5, expert=9.5, reward=5.5)
    del found.scores["a", "reward", 0]
    assert found.score("a", "base")[0] == 2 and found.score("a", "reward")[0] == 6.5
    assert found.gain("a", "reward")[0] == pytest.approx(100 * (6.5 / 2.5 - 1))


def test_a_comparison_has_the_interval_of_its_bootstrap():
    rng = np.random.default_rng(0)
    base, expert = rng.normal(2, 1, 20), rng.normal(5, 1, 20)
    scores = {("a", "base", 0): base, ("a", "expert", 0): expert}
    found = intervals.Comparison(scores, seed=3).gain("a", "expert")
    drawn = {"base": [base], "expert": [expert]}
    assert found == intervals.bootstrap(drawn, lambda m: 100 * (m["expert"] / m["base"] - 1), 3)


@pytest.fixture
def own_store(tmp_path, monkeypatch):
    monkeypatch.setenv("RRLIB_STORE", str(tmp_path))


@pytest.mark.lengthy
def test_held_out_comparisons_come_from_episodes_not_trained_on(own_store):
    small = {"place": "x_t", "steps": 20, "batch": 32}
    reward = LocomotionReward(LocomotionPool(BASE, EXPERT, plans=200), 16, 1, **small)
    ((pool, explained),) = evidence.held_out([reward], 40, seed=3)
    assert len(pool) == 80 and explained.shape == (5,)
    normaliser = BASE.split().normaliser
    firsts = normaliser.denormalise(pool.x[:, 0].numpy())[:, 3:]
    held, trained = (
        np.concatenate([getattr(d.split(), part).observations for d in (BASE, EXPERT)])
        for part in ("held_out", "train")
    )
    for first in firsts:
        assert np.abs(held - first).max(1).min() < 1e-4 < np.abs(trained - first).max(1).min()


@pytest.mark.lengthy
def test_what_is_explained_along_rollouts_is_asked_of_their_own_plans(own_store):
    reward = LocomotionReward(LocomotionPool(BASE, EXPERT, plans=200), 16, 1, steps=20, batch=32)
    other = replace(reward, place="x_t")
    run = searches.rollouts(BASE, CHOSEN, searches.REPORT)
    found = evidence.explained_along([reward, other], run, 30, seed=4)
    plans = run.split().draw(60, training.stream(4, "along"))
    pair = [store.obtain(half) for half in (BASE, EXPERT)]
    asked = comparisons.algorithm1(
        *pair, plans[:30], plans[30:], size=60, seed=4, condition=first_given(11)
    )
    for share, fitted in zip(found, (reward, other), strict=True):
        pool = asked.pool("mean", fitted.place)
        wanted = extraction.explained(store.obtain(fitted).network, pool, 5)
        assert_allclose(share, wanted, rtol=1e-4)


@pytest.mark.lengthy
def test_rewards_along_an_episode_are_those_of_its_windows(own_store):
    reward = LocomotionReward(LocomotionPool(BASE, EXPERT, plans=200), 16, 1, steps=20, batch=32)
    episode = store.obtain(DATA[1]).take(np.array([1]))
    found = evidence.along(reward, episode)
    assert found.shape == episode.rewards.shape
    one = np.concatenate([episode.actions[5:13], episode.observations[5:13]], 1)
    plan = torch.from_numpy(BASE.split().normaliser.normalise(one))[None]
    wanted = store.obtain(reward)(plan, torch.tensor([0]))
    assert_allclose(found[5], wanted.item(), rtol=1e-4, atol=1e-6)


@pytest.mark.lengthy
def test_how_far_planners_are_apart_is_asked_of_first_actions(own_store):
    pair = BASE, EXPERT
    assert evidence.apart(pair, BASE, 30, seed=2) == 0
    data = [half.split().held_out_plans(30, 2)[0] for half in pair]
    models = [store.obtain(half) for half in pair]
    asked = comparisons.algorithm1(*models, *data, size=60, seed=2, condition=first_given(11))
    wanted = np.square(asked.expert.numpy()[:, 0, :3] - asked.base.numpy()[:, 0, :3]).mean()
    assert_allclose(evidence.apart(pair, EXPERT, 30, seed=2), wanted, rtol=1e-5)


@pytest.mark.lengthy
def test_the_first_action_s_error_is_asked_of_held_out_plans(own_store):
    found = evidence.first_action_error(BASE, 30, seed=2)
    model, x0 = store.obtain(BASE), BASE.split().held_out_plans(30, 2)[0]
    draws, marks = training.stream(2, "noise"), torch.zeros(30, 8, dtype=torch.bool)
    marks[:, 0] = True
    for t in range(2):
        x_t = model.noise(x0, torch.full((30,), t), draws)
        x_t[:, 0, 3:] = x0[:, 0, 3:]
        with torch.no_grad():
            told = model.predict(x_t, torch.full((30,), t), marks)
        error = told[:, 0, :3] - x0[:, 0, :3]
        wanted = error.square().mean() / x0[:, 0, :3].var(0).mean()
        assert found[t] == pytest.approx(wanted.item(), rel=1e-5)
    assert found.shape == (5,)


@pytest.mark.lengthy
def test_several_rollouts_are_played_and_scored(own_store):
    runs = {use: searches.rollouts(BASE, CHOSEN, use) for use in ("report", "study")}
    found = searches.play(SimpleNamespace(obtain_all=store.obtain_all), runs)
    assert {use: values.shape for use, values in found.items()} == {"report": (3,), "study": (3,)}
    returns = store.obtain(runs["study"])["returns"]
    assert_allclose(found["study"], locomotion.normalised_score(BASE.environment, returns))


def test_other_data_keeps_the_coordinates(own_store):
    other = evidence.on_other_data(BASE, "medium")
    assert other.data.kind == "medium" and other.ruler == BASE.ruler
    assert store.key(other) != store.key(BASE)
    with pytest.raises(InputError, match="kind = 'wild'"):
        evidence.on_other_data(BASE, "wild")


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"executed": 5}, "executed=5 is not allowed: .* 'halfcheetah' has 4 actions"),
        ({"denoising": 11}, "denoising=11 is not allowed: a number from 2 to 10"),
        ({"denoising": 1}, "denoising=1 is not allowed"),
        ({"untils": (0, 10)}, "untils=10 is not allowed: steps from 0 to 9"),
    ],
)
def test_what_a_size_does_not_allow_is_named(asked, words):
    fits = {"executed": 4, "denoising": 10, "untils": (9,)}
    chosen = {"size": "small", "environment": ("hopper", "halfcheetah"), **FILES} | fits
    locomotion_sizes.check(SimpleNamespace(**chosen))
    with pytest.raises(InputError, match=words):
        locomotion_sizes.check(SimpleNamespace(**chosen | asked))


def test_a_chapter_without_last_steps_is_asked_for_none():
    chosen = {"size": "small", "environment": ("hopper",), "executed": 32, "denoising": 2, **FILES}
    assert locomotion_sizes.check(SimpleNamespace(**chosen)) is None
    assert set(locomotion_sizes.STEERING) - set(locomotion_sizes.PLANNERS) == {
        "search",
        "reward_steps",
        "rounds",
        "weights",
        "untils",
    }
