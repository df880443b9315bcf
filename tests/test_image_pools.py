"""Recipes of comparisons, rewards and rivals of two image samplers, trained for moments."""

from dataclasses import replace

import pytest
import torch

from rrlib import image_pairs, image_pools, image_weights, miniature, pipelines, scenes, store
from rrlib.errors import InputError
from rrlib.image_pairs import Fit
from rrlib.image_pools import Elsewhere, ImagePool, PoolReward, PoolRival, Shipped
from rrlib.miniature import Size

TINY = Size(vae=(8, 8, 8), unet=(8, 16), text=16, layers=1)
PROMPTS = tuple(scenes.prompts(12, 0))
FIT = Fit(0.5, (8, 8), 2, 4)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    found = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp(f"pipeline{seed}")
        pipelines.save_pipeline(miniature.pipeline(TINY, scenes.WORDS, seed), folder)
        found.append(Elsewhere.at(str(folder), "cpu", "float32"))
    return found


@pytest.fixture(params=["safe", "two"])
def pool(models, request):
    other = {"expert": models[1], "safety": None} if request.param == "two" else {}
    return ImagePool(models[0], PROMPTS, steps=3, batch=5, **other)


def test_a_reward_and_its_rival_are_made_from_two_samplers(pool):
    shards = store.obtain(pool)
    assert shards.prompts == 12 and shards.sizes == [5, 5, 2]
    base, expert = pool.pair()
    assert (expert.safety is None) == (pool.safety is None)
    assert (base.pipeline is expert.pipeline) == (pool.expert is None)
    reward, rival = (store.obtain(recipe(pool, FIT)) for recipe in (PoolReward, PoolRival))
    assert set(reward.about) == {"accuracy", "auc", "held_out"}
    latents = shards.images([3, 11])[1]
    pictures = pipelines.decode(base.pipeline, latents)
    scores = reward.score(latents)
    assert scores.shape == reward.score(pictures, base.pipeline).shape == (2,)
    assert not torch.equal(scores, rival.score(latents))
    train, test = image_pairs.split(12, 0.5, 0)
    assert reward.about["held_out"] == rival.about["held_out"] == test
    assert not set(train) & set(test)


def test_a_rival_learns_which_side_is_which(models, monkeypatch):
    pool = ImagePool(models[0], tuple(scenes.prompts(40, 3)), steps=3, safety=None, batch=20)
    shards = store.obtain(pool)
    # The base's own images against themselves, moved: easy to tell.
    read = type(shards).read

    def moved(self, shard, name, index):
        return read(self, shard, name, index) + 3.0 * name.startswith("expert")

    monkeypatch.setattr(type(shards), "read", moved)
    rival = store.obtain(PoolRival(pool, Fit(0.5, (8, 8), 60, 16, 5e-3)))
    sides = [rival.score(x) for x in store.obtain(pool).images(rival.about["held_out"])]
    assert (sides[1] > sides[0].max()).float().mean() > 0.9
    assert rival.reward.target == "score"


def test_a_pool_held_in_memory_is_the_pool_on_disk(pool, monkeypatch):
    disk = store.obtain(pool).pool([1, 4, 11])
    memory = image_pairs.held(disk)
    rows = torch.tensor([17, 0, 5])
    assert memory is not disk and len(memory) == len(disk) == 3 * 2 * 3
    assert disk.bytes == memory.x.nbytes + memory.target.nbytes
    for name in ("x", "target"):
        assert torch.equal(getattr(memory, name)[rows], getattr(disk, name)[rows])
    monkeypatch.setattr(image_pairs, "IN_MEMORY", 10)
    assert image_pairs.held(disk) is disk


def test_another_pipeline_is_another_recipe(models, tmp_path):
    first, second = models
    assert store.key(first) != store.key(second)
    assert store.key(first) == store.key(replace(first, model_id="moved"))
    with pytest.raises(InputError, match=r"dtype=torch.float16 is not allowed"):
        Elsewhere.at(first.model_id, "cpu", "float16")
    with pytest.raises(InputError, match="is not allowed"):
        Elsewhere.at(str(tmp_path), "cpu", "float32")


def test_the_shipped_pipeline_is_a_recipe():
    whole = store.obtain(Shipped())
    assert image_pools.Shipped("hollow").digest != Shipped().digest == image_weights.digest("base")
    tuned = store.obtain(Shipped("hollow"))
    pipelines.check_pair(whole, tuned)
    assert image_pairs.digest(whole) != image_pairs.digest(tuned)
