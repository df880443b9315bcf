"""The digits of scikit-learn: their split, their recipes, how a score of them is judged."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from rrlib.lab import store
from rrlib.lab.images import digits
from rrlib.method import comparisons, extraction
from rrlib.training import stream

SMALL = {"steps": 3, "channels": (8, 8), "batch": 4}


def test_the_split_is_whole_and_fixed():
    sides = [digits.pictures(held_out) for held_out in (False, True)]
    assert [len(pixels) for pixels, _ in sides] == [1400, 397]
    both = torch.cat([pixels for pixels, _ in sides])
    theirs = torch.from_numpy(load_digits().images).float()
    counted = [np.unique(x.flatten(1).numpy(), axis=0, return_counts=True) for x in (both, theirs)]
    assert np.array_equal((counted[0][0] + 1) * 8, counted[1][0])
    assert np.array_equal(counted[0][1], counted[1][1])
    assert both.min() == -1 and both.max() == 1


def test_the_fine_tune_sees_even_digits_alone():
    expert = digits.reward().expert
    for held_out in (False, True):
        pixels, numbers = digits.pictures(held_out)
        assert torch.equal(expert.data(held_out), pixels[numbers % 2 == 0])
    assert digits.reward().base.data().shape == (1400, 1, 8, 8)


def test_a_score_is_judged_by_how_often_the_expert_side_is_higher():
    numbers = torch.arange(10).repeat(3)
    scores = torch.randn(30, generator=stream(0, 0))
    even = numbers % 2 == 0

    def literal(mine, other):
        above = (mine[:, None] > other).double() + 0.5 * (mine[:, None] == other).double()
        return float(above.mean())

    found = digits.told(scores, numbers)
    assert found.even == pytest.approx(literal(scores[even], scores[~even]))
    assert found.sides == pytest.approx(literal(scores[even], scores))
    assert found.oracle == pytest.approx(0.75)


@pytest.mark.lengthy
def test_base_fine_tune_and_reward_are_made_and_come_back(tmp_path, monkeypatch):
    monkeypatch.setenv("RRLIB_STORE", str(tmp_path))
    base = digits.DigitsDiffuser(**SMALL)
    expert = replace(base, even=True, start=base)
    recipe = digits.DigitsReward(base, expert, pool=40, steps=3, batch=8)
    reward = store.obtain(recipe)
    x, t = torch.randn(5, 1, 8, 8, generator=stream(0, 1)), torch.zeros(5, dtype=torch.long)
    again = store.obtain(recipe)
    assert torch.equal(reward(x, t), again(x, t)) and reward.steps == 1000
    means = store.obtain(replace(recipe, target="mean", place="mu_base"))
    assert (means.target, means.place) == ("mean", "mu_base")
    held_out = recipe.compared(20, 1, held_out=True)
    assert held_out.x.shape == (20, 1, 8, 8)
    mine, other = (store.obtain(half).network.state_dict() for half in (base, expert))
    moved = [float((mine[name] - other[name]).abs().max()) for name in mine]
    assert 0 < max(moved) < 0.1  # a fine-tune begins where the base ended


@pytest.mark.parametrize("held_out", [False, True])
def test_a_reward_is_fitted_to_what_was_trained_on_and_judged_by_the_rest(
    held_out, tmp_path, monkeypatch
):
    """The pictures that Algorithm 1 is given, and the numbers that it and the fit are told."""
    asked, fitted = [], []
    base = digits.DigitsDiffuser(channels=(8, 8))
    expert = replace(base, even=True, start=base, seed=4)
    recipe = digits.DigitsReward(base, expert, pool=40, steps=7, batch=8, seed=6)

    def compare(*args, **kwargs):
        asked.append((args, kwargs))
        x = torch.zeros(2, 1, 8, 8)
        return comparisons.Comparisons(x, torch.arange(2), x, x + 1, base.blank("cpu"))

    monkeypatch.setattr(store, "obtain", lambda recipe, device="cpu": recipe.blank(device))
    monkeypatch.setattr(comparisons, "algorithm1", compare)
    monkeypatch.setattr(extraction, "fit", lambda *a, **k: fitted.append(k) or ())
    if held_out:
        recipe.compared(30, 9, held_out=True)
    else:
        recipe.make(tmp_path, "cpu")
    ((*models, of_base, of_expert), told) = asked[0]
    pixels, numbers = digits.pictures(held_out)
    assert torch.equal(of_base, pixels) and torch.equal(of_expert, pixels[numbers % 2 == 0])
    assert (told["size"], told["seed"]) == ((30, 9) if held_out else (40, 6))
    for model, half in zip(models, (base, expert), strict=True):
        weights = (next(m.network.parameters()) for m in (model, half.blank("cpu")))
        assert torch.equal(*weights)
    if not held_out:
        how = {"steps": 7, "batch": 8, "learning_rate": 1e-3, "seed": 6}
        assert {name: fitted[0][name] for name in how} == how


def test_first_weights_are_of_the_recipes_own_seed():
    """Whatever the seed of the models that a reward is of."""
    for seed in (0, 4):
        base = digits.DigitsDiffuser(channels=(8, 8), seed=seed)
        rewards = [digits.DigitsReward(base, base, seed=own)._network() for own in (0, 0, 1)]
        weights = [next(network.parameters()) for network in rewards]
        assert torch.equal(*weights[:2]) and not torch.equal(*weights[1:])
        torch.manual_seed(1)
        fresh = digits.PixelReward(digits.PIXELS, rewards[0].points.unit)
        assert torch.equal(next(fresh.parameters()), weights[2])
    models = [digits.DigitsDiffuser(channels=(8, 8), seed=seed).blank("cpu") for seed in (0, 0, 1)]
    weights = [next(model.network.parameters()) for model in models]
    assert torch.equal(*weights[:2]) and not torch.equal(*weights[1:])
