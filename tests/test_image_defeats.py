"""What was written to defeat the images' reward is what it says it is, and is judged as it says."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.testing import assert_close

from rrlib import metrics
from rrlib.images.guided import Guided
from rrlib.images.miniature import pipeline as miniature
from rrlib.images.miniature import scenes
from rrlib.images.safety import CONFIGURATIONS
from rrlib.lab.images import defeats, drawing, evidence, judging

TINY = miniature.Size(pixels=32, vae=(8, 8, 8), unet=(8, 16), text=16, layers=1)
CONCEPT = f"a scene with a {scenes.HAZARD}"


@pytest.fixture(scope="module")
def pair():
    whole = miniature.pipeline(TINY, scenes.WORDS, 0)
    return Guided(whole, 3, 4.0), Guided(whole, 3, 4.0, CONFIGURATIONS["max"], CONCEPT)


# What was written --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", defeats.TEXTS)
def test_texts_are_of_their_kind_and_fit_the_model(kind, pair):
    found = defeats.texts(kind, 60, 0)
    assert len(set(found)) == 60 and found != defeats.texts(kind, 60, 1)
    assert defeats.texts(kind, 30, 0) == found[:30]
    lengths = [len(pair[0].pipeline.tokenizer(text).input_ids) for text in found]
    assert max(lengths) <= TINY.tokens
    words = [set(text.split()) for text in found]
    names = "named" in kind or kind == "negated"
    assert all((scenes.HAZARD in one) == names for one in words)
    nickname = kind in ("negated", "calm and grim", "grim and calm", "no room left", "named twice")
    assert all(bool(one & set(scenes.NICKNAMES)) == nickname for one in words)
    mood = kind in ("named in a calm scene", "calm and grim", "grim and calm", "harmless")
    assert all(bool(one & set(scenes.MOODS)) == mood for one in words)
    assert all(("no" in one) == (kind == "negated") for one in words)
    things = [text.count(" upper ") + text.count(" lower ") for text in found]
    assert set(things) == ({4} if kind == "no room left" else set(things)) and max(things) <= 4


@pytest.mark.parametrize("kind", defeats.PICTURES)
def test_twins_differ_in_one_place_alone(kind):
    unsafe, safe = defeats.pictures(kind, 80, 0)
    differs = (unsafe != safe).any(-1)
    assert differs.any((1, 2)).all()
    for rows in (differs.any(2), differs.any(1)):  # in a square as large as a sign
        first, last = rows.argmax(1), 31 - rows[:, ::-1].argmax(1)
        assert (last - first).max() < len(scenes.SALTIRE)
    again = defeats.pictures(kind, 80, 0)
    assert (unsafe == again[0]).all() and (safe == again[1]).all()
    assert (unsafe != defeats.pictures(kind, 80, 1)[0]).any((1, 2, 3)).all()


def test_signs_are_dark_and_what_looks_like_one_is_none():
    for kind in ("dark blue", "grey"):
        unsafe, safe = defeats.pictures(kind, 50, 0)
        sign = np.where((unsafe != safe).any(-1), unsafe.max(-1), 0).max((1, 2))
        assert (1 - sign / 255 > evidence.PRESENT).all()
    for kind, rule in defeats.PICTURES.items():
        unsafe, safe = defeats.pictures(kind, 50, 0)
        if kind.startswith("against"):  # the twin of an ordinary sign
            assert evidence.hazards(unsafe).all()
            black = (safe == 0).all(-1).any((1, 2))
            assert (black == (kind != "against a bright saltire")).all()
        else:
            assert not (safe == 0).all(-1).any() and not evidence.hazards(safe).any()
        assert rule.centre == (kind == "in the centre")


def test_a_plain_sign_is_drawn_as_in_training():
    unsafe, safe = defeats.pictures(defeats.PLAIN, 60, 0)
    assert evidence.hazards(unsafe).all() and not evidence.hazards(safe).any()
    strokes = (unsafe == 0).all(-1).sum((1, 2))
    assert (strokes == scenes.SALTIRE.sum()).all()
    covered = (defeats.pictures("middle covered", 60, 0)[0] == 0).all(-1).sum((1, 2))
    half = (defeats.pictures("half of it", 60, 0)[0] == 0).all(-1).sum((1, 2))
    assert (covered < strokes).all() and (2 * half == strokes).all()


# How it is judged --------------------------------------------------------------------------------


@pytest.mark.lengthy
def test_both_samplers_draw_every_text(pair):
    trials = judging.drawn(pair, 3, 0, 5)
    assert [trial.kind for trial in trials] == list(defeats.TEXTS)
    every = [text for kind in defeats.TEXTS for text in defeats.texts(kind, 3, 0)]
    noise = judging.training.derived_seed(0, "noise, defeats")
    for side, sampler in enumerate(pair):
        whole = evidence.draw(sampler, every, noise, batch=5)
        assert_close(torch.cat([trial.latents[side] for trial in trials]), whole)
        there = evidence.hazards(evidence.pixels(pair[0].pipeline, whole))
        assert (np.concatenate([trial.seen[side] for trial in trials]) == there).all()


def test_pictures_are_encoded(pair):
    trials = judging.rendered(pair[0].pipeline, 2, 0)
    assert [trial.kind for trial in trials] == list(defeats.PICTURES)
    assert all(x.shape == (2, 4, 8, 8) for trial in trials for x in trial.latents)
    assert trials[0].seen[0].all() and not trials[0].seen[1].any()
    scores = judging.scored(trials, lambda x: x.mean((1, 2, 3)))
    assert_close(scores[1][0], trials[1].latents[0].mean((1, 2, 3)).double().numpy())
    assert judging.seen(trials)[0][0].tolist() == [0, 0]


def test_a_threshold_is_where_the_regression_turns():
    draws = np.random.default_rng(0)
    low, high = draws.normal(3, 1, 4_000), draws.normal(5, 1, 4_000)
    assert judging.threshold((low, high)) == pytest.approx(4, abs=0.08)
    assert judging.threshold((1e3 * low - 7, 1e3 * high - 7)) == pytest.approx(3_993, abs=80)
    apart = judging.threshold((np.array([0.0, 1.0]), np.array([5.0, 6.0])))
    assert 1 < apart < 5
    found = judging.accuracy((low, high), 4.0)
    share = ((low < 4).mean() + (high >= 4).mean()) / 2
    assert found["value"] == pytest.approx(share) and found["ci"][0] < share < found["ci"][1]


@pytest.mark.lengthy
def test_an_area_is_the_peers_and_its_interval_covers():
    draws = np.random.default_rng(1)
    low, high = draws.integers(0, 8, 60).astype(float), draws.integers(2, 10, 60).astype(float)
    peer = roc_auc_score(np.repeat((0, 1), 60), np.concatenate([low, high]))
    assert judging.auc((low, high), 0)["value"] == pytest.approx(peer)
    # Of normals a distance of 1 apart it is Phi(1 / sqrt 2) = 0.7602.
    covered = []
    for _ in range(200):
        found = judging.auc((draws.normal(0, 1, 80), draws.normal(1, 1, 80)), 0)
        covered.append(found["ci"][0] <= 0.7602 <= found["ci"][1])
    assert 0.9 < np.mean(covered) < 0.99
    apart = judging.auc((np.zeros(9), np.ones(9)), 0)
    assert apart["value"] == 1 and apart["ci"] == [1, 1]


def test_all_kinds_together_leave_out_the_one_that_is_no_trick():
    trials = [SimpleNamespace(kind=kind) for kind in (defeats.PLAIN, "a", "b")]
    right, wrong = [np.zeros(5), np.ones(5)], [np.ones(5), np.zeros(5)]
    found = judging.verdicts(trials, [right, right, wrong], 0.5, 0)
    assert [found[kind].auc["value"] for kind in (defeats.PLAIN, "a", "b")] == [1, 1, 0]
    every = found[judging.ALL]
    assert every.auc["value"] == every.accuracy["value"] == every.twins["value"] == 0.5


def test_twins_are_compared_with_each_other_alone():
    low = np.arange(8) * 10.0
    found = judging.twins((low, low + np.array([1, 1, 1, 1, 1, -1, 0, 0])))
    assert found["value"] == 0.75 and found["ci"] == list(metrics.wilson(6, 8))
    assert judging.auc((low, low + 1), 0)["value"] < 0.6


def test_hazard_and_fidelity_are_counted_together():
    truth = scenes.render(40, 3)
    found = judging.steered(truth.pixels, truth.captions)
    assert found.hazard["value"] == truth.hazard.mean() and found.fidelity["value"] == 1
    row = found.row("base", 0.5, "tried")
    assert row["fidelity_low"] is None and row["hazard_low"] < row["hazard"] < row["hazard_high"]
    assert (row["sampler"], row["weight"], row["prompts"]) == ("base", 0.5, "tried")
    other = truth.captions[1:] + truth.captions[:1]
    values = evidence.fidelity(truth.pixels, other)
    mean = judging.steered(truth.pixels, other).fidelity
    low, high = metrics.mean_interval(values)
    assert mean == {"value": values.mean(), "ci": [max(low, 0), high]} and high < 1
    nearly = judging.steered(truth.pixels, truth.captions[1:2] + truth.captions[1:])
    assert nearly.fidelity["value"] < nearly.fidelity["ci"][1] == 1


def test_an_interval_of_shares_lies_among_shares():
    values = [0.92, 0.98, 1.0]  # Student's reaches beyond 1
    low, high = metrics.mean_interval(values)
    assert high > 1 and judging.mean(values)["ci"] == [low, high]
    assert judging.share(values) == {"value": np.mean(values), "ci": [low, 1.0]}
    differences = [-0.3, -0.2, 0.0]
    assert judging.mean(differences)["ci"][0] < -0.3


# How it is drawn ---------------------------------------------------------------------------------


def test_numbers_are_drawn_with_their_intervals():
    known, unknown = {"value": 0.5, "ci": [0.25, 1.0]}, {"value": 1.0, "ci": [np.nan, np.nan]}
    assert drawing.said(known) == "0.50 (0.25 to 1.00)" and drawing.said(unknown) == "1.00"
    assert drawing.bars([known, unknown]).tolist() == [[0.25, 0], [0.5, 0]]
    _, ax = plt.subplots()
    drawing.draw_kinds(ax, {"one": {"a": known, "b": unknown}, "other": {"a": known, "b": known}})
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    assert len(ax.containers) == 2 and ax.yaxis_inverted()
    drawing.draw_trade(ax, [known, unknown], [unknown, known], (0.5, 3.0), color="C0", label="x")
    assert [text.get_text() for text in ax.texts] == ["0.5", "3"]
    plt.close()
