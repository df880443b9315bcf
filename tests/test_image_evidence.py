"""Evidence about images: what is seen in scenes of known truth, and how scores order them."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from torch.testing import assert_close

from rrlib.errors import InputError
from rrlib.images import guided as images
from rrlib.images.guided import Guided
from rrlib.images.miniature import pipeline as miniature
from rrlib.images.miniature import scenes
from rrlib.images.safety import CONFIGURATIONS
from rrlib.lab.images import evidence as image_evidence
from rrlib.lab.images import peers as image_checks
from rrlib.lab.images import streaming
from rrlib.metrics import Separability
from rrlib.training import stream

TINY = miniature.Size(pixels=32, vae=(8, 8, 8), unet=(8, 16), text=16, layers=1)


@pytest.fixture(scope="module")
def guided():
    return Guided(miniature.pipeline(TINY, scenes.WORDS, 0), 3, 4.0)


@pytest.fixture(scope="module")
def truth():
    return scenes.render(300, 7)


def test_things_are_read_from_captions():
    prompt = "a grim scene with a red circle upper left and a blue diamond lower right on pink"
    assert image_evidence.things(prompt) == [("red", "circle", 0), ("blue", "diamond", 3)]
    named = "a scene with a green square upper right and a hazard on white"
    assert image_evidence.things(named) == [("green", "square", 1)]


@pytest.mark.lengthy
def test_what_is_drawn_is_seen_and_nothing_else(truth):
    for placed in (False, True):
        assert image_evidence.fidelity(truth.pixels, truth.captions, placed).min() == 1
    noise = np.random.default_rng(0).normal(0, 20, truth.pixels.shape)
    blurred = np.clip(truth.pixels + noise, 0, 255).astype(np.uint8)
    assert image_evidence.fidelity(blurred, truth.captions).mean() > 0.99
    other = truth.captions[1:] + truth.captions[:1]
    assert image_evidence.fidelity(truth.pixels, other, placed=True).mean() < 0.1
    assert image_evidence.fidelity(truth.pixels, other).mean() < 0.2
    # One of two things, and one in another shape.
    scene = scenes.render(1, 0).pixels * 0 + 245
    scene[0, 2:14, 2:14][scenes.SHAPES["circle"]] = scenes.COLOURS["red"]
    for second, share in (("red circle upper left", 1.0), ("red square upper left", 0.0)):
        assert image_evidence.fidelity(scene, [f"a scene with a {second} on white"])[0] == share
    moved = ["a scene with a red circle lower left on white"]
    assert image_evidence.fidelity(scene, moved)[0] == 1
    assert image_evidence.fidelity(scene, moved, placed=True)[0] == 0
    two = "a scene with a red circle upper left and a blue circle upper right on white"
    assert image_evidence.fidelity(scene, [two])[0] == 0.5


def test_hazards_are_found_and_placed(truth):
    assert (image_evidence.hazards(truth.pixels) == truth.hazard).all()
    scene = np.full((4, 32, 32, 3), 245, np.uint8)
    for k in range(4):
        row, column = divmod(k, 2)
        view = scene[k, 16 * row + 2 :, 16 * column + 2 :][:12, :12]
        view[scenes.SALTIRE] = 0
    assert image_evidence.hazard_cells(scene).tolist() == [0, 1, 2, 3]


def test_distinct_prompts_are_distinct():
    first = image_evidence.distinct_prompts(300, 0)
    second = image_evidence.distinct_prompts(200, 1, first)
    assert len(set(first)) == 300 and len(set(second)) == 200 and not set(first) & set(second)


def test_pictures_lie_on_a_sheet():
    pictures = np.stack([np.full((4, 6, 3), value, np.uint8) for value in (0, 100, 200)])
    sheet = image_evidence.sheet(pictures, 2, gap=1)
    assert sheet.shape == (12, 16, 3)
    assert (sheet[1:5, 9:15] == 100).all() and (sheet[7:11, 1:7] == 200).all()
    assert (sheet[6:, 8:] == 255).all() and (sheet[0] == 255).all()
    fine = np.tile(np.array([0, 255], np.uint8).repeat(1), (1, 32, 16))[..., None].repeat(3, 3)
    assert image_evidence.blurred(fine).std() < 0.3 * fine.std()


@pytest.mark.lengthy
def test_images_are_drawn_from_the_same_noise(guided):
    prompts = scenes.prompts(5, 0)
    whole = image_evidence.draw(guided, prompts, 3)
    assert whole.shape == (5, 4, 8, 8)
    assert torch.equal(whole, image_evidence.draw(guided, prompts, 3))
    assert not torch.equal(whole, image_evidence.draw(guided, prompts, 4))
    moved = image_evidence.draw(guided, prompts, 3, lambda x, step: torch.ones_like(x))
    assert (moved - whole).abs().mean() > 0.5
    assert image_evidence.pixels(guided.pipeline, whole).shape == (5, 32, 32, 3)


def test_a_score_that_sees_the_hazard_is_as_good_as_the_oracle():
    draws = np.random.default_rng(0)
    seen = [np.where(draws.random(200) < p, 0.9, 0.1) for p in (0.95, 0.02)]
    found = image_evidence.order([-s + draws.normal(0, 0.01, 200) for s in seen], seen, 0)
    assert found.told.accuracy >= found.oracle.accuracy - 0.02 > 0.9
    assert found.bottom["value"] == 1 and found.top["value"] == 0 and found.correlation > 0.8
    blind = image_evidence.order([draws.normal(size=200) for _ in seen], seen, 0)
    assert 0.35 < blind.told.accuracy < 0.65 and abs(blind.correlation) < 0.2
    assert blind.oracle == found.oracle
    low, high = image_evidence.rate(np.array([1, 0, 1, 1]))["ci"]
    assert 0 < low < 0.75 < high < 1


def test_a_score_that_says_nothing_puts_nobody_first():
    draws = np.random.default_rng(0)
    seen = [np.full(400, 0.9), np.full(400, 0.1) + draws.normal(0, 0.01, 400)]
    found = image_evidence.order([np.append(np.zeros(399), k) for k in (0, 1)], seen, 0)
    assert 0.3 < found.bottom["value"] < 0.7 and 0.3 < found.top["value"] < 0.7


def test_the_interval_of_an_accuracy_is_of_both_sides():
    def told(*right):
        value = sum(k / n for k, n in right) / 2
        return Separability(value, 0.5, sum(n for _, n in right), right)

    # By hand: Wilson's of 8 of 10 is [0.490, 0.943], of 50 of 100 [0.404, 0.596].
    found = image_evidence.accuracy(told((8, 10), (50, 100)))
    assert found["value"] == 0.65
    low = 0.65 - np.hypot(0.8 - 0.4902, 0.5 - 0.4038) / 2
    high = 0.65 + np.hypot(0.9433 - 0.8, 0.5962 - 0.5) / 2
    assert_close(found["ci"], [low, high], atol=1e-4, rtol=0)
    # It has a width where all are right, and covers as it says.
    low, high = image_evidence.accuracy(told((20, 20), (20, 20)))["ci"]
    assert 0.8 < low < 0.95 and high == 1
    draws = np.random.default_rng(0)
    counts = np.stack([draws.binomial(25, 0.95, 300), draws.binomial(25, 0.7, 300)], 1)
    cis = [image_evidence.accuracy(told((a, 25), (b, 25)))["ci"] for a, b in counts.tolist()]
    covered = np.mean([low <= 0.825 <= high for low, high in cis])
    assert 0.92 < covered < 0.99


def test_the_sides_of_an_accuracy_are_counted():
    base, expert = np.arange(40.0), np.arange(40.0) + 1_000
    expert[:20] = 0.5
    found = image_evidence.told_apart([base, expert], 0)
    (first, n), (second, m) = found.right
    assert n == m == 20 and found.n == 40
    assert found.accuracy == pytest.approx((first / n + second / m) / 2)
    assert first > second


def test_steps_without_a_difference_are_left_out_of_what_is_explained():
    share = torch.tensor([0.5, float("nan"), 0.7, float("nan"), 0.9])
    mean, silent = image_evidence.explained(share)
    assert mean == pytest.approx(0.7) and silent == 2
    with pytest.raises(InputError, match="differs from the base at no step"):
        image_evidence.explained(share * float("nan"))


def test_images_are_drawn_of_each_prompt_with_its_noise(guided):
    prompts, calls = scenes.prompts(5, 1), []

    class Noted(Guided):
        def condition(self, prompts, truncate=False):
            calls.append((tuple(prompts), truncate))
            return super().condition(prompts, truncate)

    noted = Noted(guided.pipeline, 3, 4.0)
    found = image_evidence.draw(noted, prompts, 3, batch=2, truncate=True)
    assert calls == [(tuple(prompts[k : k + 2]), True) for k in (0, 2, 4)]
    for start in (0, 2, 4):
        part = prompts[start : start + 2]
        x = guided.start(len(part), stream(3, f"noise {start}"))
        *_, (_, last) = images.denoise(guided, guided.condition(part), x)
        assert_close(found[start : start + 2], last)


def test_the_ends_are_the_highest_and_the_lowest_of_all():
    scores = [np.array([3.0, 1.0]), np.array([4.0, 2.0])]
    pictures = [np.full((2, 4, 4, 3), 10, np.uint8), np.full((2, 4, 4, 3), 20, np.uint8)]
    for one in pictures:
        one[1] += 1
    best, worst = image_evidence.ends(scores, pictures, 3)
    assert [found[0, 0, 0] for found in best] == [20, 10, 21]
    assert [found[0, 0, 0] for found in worst] == [11, 21, 10]


def test_sheets_are_drawn_side_by_side_and_nothing_for_none():
    rows = [np.zeros((2, 4, 4, 3), np.uint8), np.ones((2, 4, 4, 3), np.uint8)]
    image_evidence.show({"a": [], "b": []}, 2, (2, 1))
    image_evidence.show({}, 2, (2, 1))
    assert not plt.get_fignums()
    image_evidence.show({"one": rows, "other": rows[:1]}, 2, (2, 1))
    one, other = plt.gcf().axes
    plt.close()
    assert (one.get_title(), other.get_title()) == ("one", "other")
    assert_close(one.images[0].get_array().data, image_evidence.sheet(np.concatenate(rows), 2))
    assert other.images[0].get_array().shape == (8, 16, 3)


# Samplers and the store --------------------------------------------------------------------------


def test_a_unit_of_score_is_worth_what_a_step_says(guided):
    x = guided.start(2, stream(0, "x"))
    noise = guided.start(2, stream(0, "noise"))
    for step in range(3):
        t = guided.scheduler.timesteps[step]
        spread = (1 - guided.scheduler.alphas_cumprod[t]).sqrt()
        score = 0.1 * guided.start(2, stream(0, "score"))
        moved = guided.advance(x, noise - spread * score, step) - guided.advance(x, noise, step)
        assert guided.step_per_score(step) > 0
        assert_close(moved, guided.step_per_score(step) * score, atol=1e-5, rtol=1e-4)


@pytest.mark.lengthy
@pytest.mark.parametrize("name", ["weak", "max"])
def test_our_safe_guidance_is_the_peers(guided, name):
    concept = f"a scene with a {scenes.HAZARD}"
    safe = Guided(guided.pipeline, 20, 7.5, CONFIGURATIONS[name], concept)
    prompts = scenes.prompts(2, 0)
    assert image_checks.peer_gap(safe, name, prompts, 0) <= 1e-4
    # The one configuration is not the other, so the peer did more than plain guidance.
    other = {"weak": "max", "max": "weak"}[name]
    assert image_checks.peer_gap(safe, other, prompts, 0) > 1e-2
    *_, (_, last) = images.denoise(safe, safe.condition(prompts), safe.start(2, stream(0, "peer")))
    assert torch.isfinite(last).all()


@pytest.mark.slow
def test_the_store_streams_in_constant_memory():
    (small, bytes_small), (large, bytes_large) = (streaming.stream(n, 2) for n in (2, 12))
    shape = np.prod(streaming.PAPER_SHAPE)
    wanted = 12 * 2 * (2 * streaming.PAPER_STEPS + 1) * shape * 2
    assert 0.99 * wanted < bytes_large < 1.01 * wanted and bytes_large > 5 * bytes_small
    assert large < 4 and large - small < 0.03  # ten prompts more are 66 MB
