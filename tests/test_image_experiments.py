"""What chapters 13 and 14 make of their parameters; nothing is trained."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rrlib.errors import InputError
from rrlib.images import pipelines
from rrlib.images.miniature import pipeline as miniature
from rrlib.images.miniature import scenes
from rrlib.images.pairs import Fit, ImageReward
from rrlib.images.rewards import EncoderReward
from rrlib.lab import store
from rrlib.lab.images import experiments as image_experiments
from rrlib.lab.images.experiments import World
from rrlib.lab.images.pools import CONCEPT, PoolReward, PoolRival, Shipped
from rrlib.method.rewards import RelativeReward

TINY = miniature.Size(vae=(8, 8, 8), unet=(8, 16), text=16, layers=1)
OWN = World(Shipped(), None, CONCEPT, True, ())
CHOSEN = SimpleNamespace(
    model_id="",
    expert_id="",
    prompts="",
    n_prompts=60,
    style_prompts=30,
    configuration="strong",
    concept="",
    steps=21,
    guidance=4.0,
    batch=50,
    reward_steps=7,
    n_seeds=1,
    level=0.02,
    truncate=True,
    dtype="float32",
    seed=3,
    device="cpu",
)


def but(**change) -> SimpleNamespace:
    return SimpleNamespace(**(vars(CHOSEN) | change))


def reward(**about) -> ImageReward:
    tables = torch.zeros(2, 4, 8, 8), torch.ones(2, 4, 8, 8), torch.ones(2)
    return ImageReward(RelativeReward(EncoderReward(*tables, (8,)), "mean", "x_t"), about)


@pytest.mark.parametrize("kind", ["safe", "unlevelled", "rival", "style"])
def test_a_reward_of_ones_own_is_fitted_as_was_chosen(kind, monkeypatch):
    asked = []

    def obtain(recipe, device):
        asked.append((recipe, device))
        return reward(held_out=[4, 9], accuracy=0.5)

    monkeypatch.setattr(store, "obtain", obtain)
    found = image_experiments.study(OWN, CHOSEN, kind)
    ((recipe, device),) = asked
    assert type(recipe) is (PoolRival if kind == "rival" else PoolReward) and device == "cpu"
    level = 0.02 if kind in ("safe", "style") else 0.0
    assert recipe.fit == Fit(0.15, (24, 48, 80), 7, 64, 1e-3, 3, level)
    pool, count = recipe.pool, 30 if kind == "style" else 60
    assert pool.prompts == OWN.fresh(count, 3, "prompts") and pool.batch == min(50, count)
    assert (pool.base, pool.concept) == (Shipped(), CONCEPT)
    assert pool.expert == (Shipped("hollow") if kind == "style" else None)
    assert pool.safety == (None if kind == "style" else "strong")
    assert (pool.steps, pool.guidance, pool.seed, pool.truncate) == (21, 4.0, 3, True)
    assert (found.pool, found.judged, found.seen) == (pool, [4, 9], pool.prompts)
    assert found.made == (pool, recipe)
    told = {"configuration": "strong", "steps": 21, "guidance": 4.0, "level": level}
    told |= {"prompts": count, "prompts_seed": 3, "held_out": [4, 9], "accuracy": 0.5}
    tuned = "fine-tuned on hollow shapes" if kind == "style" else "safe guidance 'strong'"
    base = "rrlib.images.miniature"
    told |= {"models": {"base": base, "expert": f"{base}, {tuned}"}}
    assert found.reward.about == told


def test_another_fit_is_of_the_same_comparisons(monkeypatch):
    monkeypatch.setattr(store, "obtain", lambda *_: reward(held_out=[4, 9]))
    first, third = (image_experiments.study(OWN, CHOSEN, "safe", k) for k in (0, 2))
    assert first.pool == third.pool and first.made[0] == third.made[0]
    fits = [one.made[1].fit for one in (first, third)]
    assert [fit.seed for fit in fits] == [3, 5]
    assert replace(fits[0], seed=5) == fits[1]


@pytest.mark.parametrize("kind", ["safe", "rival", "style"])
def test_the_books_reward_is_judged_by_prompts_that_it_has_not_seen(kind, monkeypatch):
    about = {"configuration": "max", "steps": 25, "guidance": 5.0, "prompts_seed": 0}
    books = {k: reward(prompts=n, **about) for k, n in (("safe", 90), ("rival", 90), ("style", 40))}
    monkeypatch.setattr(image_experiments, "shipped", books.get)
    chosen = but(reward_steps=0, configuration="max", steps=25, guidance=5.0, seed=0)
    image_experiments.check(OWN, chosen)
    found = image_experiments.study(OWN, chosen, kind)
    count = 30 if kind == "style" else 60
    assert len(found.pool.prompts) == count and found.judged == list(range(count))
    assert not set(found.pool.prompts) & set(found.seen)
    assert found.reward is books[kind] and found.made == (found.pool,)
    assert found.seen == OWN.fresh(found.reward.about["prompts"], 0, "prompts")
    # The rival is judged by the very images of the reward.
    safe = image_experiments.study(OWN, chosen, "safe")
    assert (found.pool == safe.pool) == (kind != "style")
    with pytest.raises(InputError, match="n_seeds=2 is not allowed with reward_steps=0: 1 is need"):
        image_experiments.check(OWN, but(**(vars(chosen) | {"n_seeds": 2})))
    for name, value in (("steps", 24), ("guidance", 4.5), ("configuration", "weak")):
        with pytest.raises(InputError, match=rf"{name}={value!r} is not allowed with reward_steps"):
            image_experiments.check(OWN, but(**(vars(chosen) | {name: value})))


def test_without_the_books_results_one_sentence_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(image_experiments, "SHIPPED", tmp_path)
    for call in (lambda: image_experiments.shipped("safe"), lambda: check(but(reward_steps=0))):
        with pytest.raises(InputError, match=r"images-safe.safetensors' is not there: a checkout"):
            call()
    check(CHOSEN)


def check(chosen: SimpleNamespace) -> None:
    image_experiments.check(OWN, chosen)


def test_prompts_of_each_use_are_others():
    first = OWN.fresh(20, 0, "prompts")
    assert first == OWN.fresh(20, 0, "prompts") and len(set(first)) == 20
    assert first != OWN.fresh(20, 0, "judged") and first != OWN.fresh(20, 1, "prompts")
    assert not set(OWN.fresh(20, 0, "prompts", first)) & set(first)
    other = World(Shipped(), None, "", False, ("a", "b", "c"))
    assert other.fresh(2, 5, "prompts") == ("a", "b")
    with pytest.raises(InputError, match="n_prompts=4 is not allowed: at most the 3"):
        other.fresh(4, 0, "prompts")


@pytest.mark.lengthy
def test_pipelines_of_ones_own_are_loaded_once(monkeypatch, tmp_path):
    for seed in (0, 1):
        made = miniature.pipeline(TINY, scenes.WORDS, seed)
        pipelines.save_pipeline(made, tmp_path / str(seed))
    (tmp_path / "prompts.csv").write_text("prompt\na grim scene\na feral scene\n")
    loads, load = [], pipelines.load_pipeline
    monkeypatch.setattr(pipelines, "load_pipeline", lambda *a: loads.append(a[0]) or load(*a))
    names = [str(tmp_path / str(seed)) for seed in (0, 1)]
    chosen = but(model_id=names[0], expert_id=names[1], prompts=str(tmp_path / "prompts.csv"))
    found = image_experiments.world(chosen)
    assert loads == names and found.base.digest != found.expert.digest
    assert (found.base.model_id, found.expert.model_id) == tuple(names)
    assert found.given == ("a grim scene", "a feral scene") and not found.miniature
    with pytest.raises(InputError, match=r"expert_id=.* is not allowed: a pipeline of other wei"):
        image_experiments.world(but(**(vars(chosen) | {"expert_id": names[0]})))
    assert image_experiments.world(but(**(vars(chosen) | {"expert_id": ""}))).expert is None
    assert Path(names[0]).is_dir()


def test_noise_is_of_its_use_and_of_the_chapters_seed():
    uses = "judged", "steered", "style"
    seeds = [image_experiments.seed(but(seed=seed), use) for seed in (0, 3) for use in uses]
    assert len(set(seeds)) == 6
    assert seeds[0] == image_experiments.seed(but(seed=0), "judged")
