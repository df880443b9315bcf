"""Recipes of comparisons, rewards and rivals of two image samplers, trained for moments."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from rrlib.errors import InputError
from rrlib.images import pairs as image_pairs
from rrlib.images import pipelines
from rrlib.images.miniature import pipeline as miniature
from rrlib.images.miniature import scenes
from rrlib.images.miniature import weights as image_weights
from rrlib.images.miniature.pipeline import Size
from rrlib.images.pairs import Fit
from rrlib.images.safety import CONFIGURATIONS
from rrlib.lab import store
from rrlib.lab.images import pools as image_pools
from rrlib.lab.images.pools import Elsewhere, ImagePool, PoolReward, PoolRival, Shipped
from rrlib.method import extraction
from rrlib.training import Progress, stream

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


@pytest.mark.slow
def test_a_reward_and_its_rival_are_made_from_two_samplers(pool):
    shards = store.obtain(pool)
    assert shards.prompts == 12 and shards.sizes == [5, 5, 2]
    base, expert = pool.pair()
    assert (expert.safety is None) == (pool.safety is None)
    assert (base.pipeline is expert.pipeline) == (pool.expert is None)
    reward, rival = (store.obtain(recipe(pool, FIT)) for recipe in (PoolReward, PoolRival))
    assert set(reward.about) == {"accuracy", "auc", "held_out", "comparisons", "level"}
    assert reward.about["comparisons"] == {k: v for k, v in shards.record.items() if k != "unit"}
    # The file keeps what was measured to the last digit.
    train = image_pairs.split(12, 0.5, 0)[0]
    tables = image_pairs.blank(shards, train, FIT).network
    for name in ("mean", "deviation", "unit"):
        assert torch.equal(getattr(reward.reward.network, name), getattr(tables, name))
    assert rival.reward.network.unit.tolist() == [1.0] * 3
    latents = shards.images([3, 11])[1]
    pictures = pipelines.decode(base.pipeline, latents)
    scores = reward.score(latents)
    assert scores.shape == reward.score(pictures, base.pipeline).shape == (2,)
    assert not torch.equal(scores, rival.score(latents))
    train, test = image_pairs.split(12, 0.5, 0)
    assert reward.about["held_out"] == rival.about["held_out"] == test
    assert not set(train) & set(test)


@pytest.mark.lengthy
def test_a_rival_learns_which_side_is_which(models, monkeypatch):
    prompts = tuple(scenes.prompts(40, 3))
    pool = ImagePool(models[0], prompts, models[1], steps=3, safety=None, batch=20)
    shards = store.obtain(pool)
    # Images of two that have learnt nothing, the expert's moved: easy to tell.
    kept = type(shards).kept

    def moved(self, shard, name, index):
        return kept(self, shard, name, index) + 3.0 * name.startswith("expert")

    monkeypatch.setattr(type(shards), "kept", moved)
    rival = store.obtain(PoolRival(pool, Fit(0.5, (8, 8), 60, 16, 5e-3)))
    sides = [rival.score(x) for x in store.obtain(pool).images(rival.about["held_out"])]
    assert (sides[1] > sides[0].max()).float().mean() > 0.9
    assert rival.reward.target == "score"


def test_a_pool_held_in_memory_is_the_pool_on_disk(pool, monkeypatch):
    disk = store.obtain(pool).pool([1, 4, 11])
    memory = image_pairs.held(disk)
    rows = torch.tensor([17, 0, 5])
    assert memory is not disk and len(memory) == len(disk) == 3 * 2 * 3
    assert disk.bytes == memory.x.nbytes + memory.target.nbytes and memory.x.dtype == torch.half
    for name in ("x", "target"):
        assert torch.equal(getattr(memory, name)[rows].float(), getattr(disk, name)[rows])
    network = image_pairs.blank(disk.shards, [1, 4, 11], Fit(0.5, (8, 8), 1, 16, 1e-3)).network
    shares = (extraction.explained(network, one, disk.shards.steps) for one in (memory, disk))
    assert_close(*shares)
    assert_close(memory.scale(disk.shards.steps), disk.scale(disk.shards.steps).float())
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


@pytest.mark.lengthy
def test_the_shipped_pipeline_is_a_recipe():
    whole = store.obtain(Shipped())
    assert image_pools.Shipped("hollow").digest != Shipped().digest == image_weights.digest("base")
    tuned = store.obtain(Shipped("hollow"))
    pipelines.check_pair(whole, tuned)
    assert image_pairs.digest(whole) != image_pairs.digest(tuned)


@pytest.mark.lengthy
def test_other_parts_of_a_pipeline_are_another_recipe(models, tmp_path):
    whole = models[0].load(tmp_path, "cpu")
    with torch.no_grad():
        for value in whole.text_encoder.parameters():
            value.mul_(3)
    pipelines.save_pipeline(whole, tmp_path)
    other = Elsewhere.at(str(tmp_path), "cpu", "float32")
    assert store.key(other) != store.key(models[0])
    assert store.key(ImagePool(other, PROMPTS)) != store.key(ImagePool(models[0], PROMPTS))
    with pytest.raises(InputError, match="has changed since this run began"):
        replace(models[0], model_id=str(tmp_path)).load(tmp_path, "cpu")
    assert replace(models[0], model_id=other.model_id, digest=other.digest).load(tmp_path, "cpu")
    same = Elsewhere.at(models[0].model_id, "cpu", "float32")
    assert store.key(ImagePool(same, PROMPTS)) == store.key(ImagePool(models[0], PROMPTS))


# What is passed on ---------------------------------------------------------------------------


@pytest.mark.lengthy
def test_a_pool_compares_what_it_says(models, tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(
        image_pairs, "compare", lambda *given, **named: calls.append((given, named)) or iter(())
    )
    options = {"concept": "a scene", "steps": 12, "guidance": 3.5}
    pool = ImagePool(models[0], PROMPTS, models[1], "medium", **options, batch=7, seed=9)
    base, expert = pool.pair()
    whole = [image_pairs.digest(sampler.pipeline) for sampler in (base, expert)]
    assert whole == [model.digest for model in models]
    assert [(s.steps, s.scale) for s in (base, expert)] == [(12, 3.5)] * 2
    assert base.safety is None and expert.safety == CONFIGURATIONS["medium"]
    assert expert.concept == "a scene"
    replace(pool, truncate=True).make(tmp_path, "cpu")
    ((mine, other, prompts, folder), named) = calls[0]
    assert (prompts, folder) == (PROMPTS, tmp_path) and (mine.safety, other.safety) == (
        None,
        CONFIGURATIONS["medium"],
    )
    assert named == {"batch": 7, "seed": 9, "truncate": True}
    own = replace(pool, expert=None, safety=None).pair()[1]
    assert own.safety is None and image_pairs.digest(own.pipeline) == models[0].digest


def test_a_reward_is_fitted_as_it_says_to_its_own_pool(pool, tmp_path, monkeypatch):
    calls = []

    class Made:
        def save(self, path):
            calls.append(path)

    monkeypatch.setattr(image_pairs, "learn", lambda *given: calls.append(given) or Made())
    PoolReward(pool, FIT).make(tmp_path, "cpu")
    (place, fit, device, checkpoint), path = calls
    assert image_pairs.Shards(place).prompts == len(pool.prompts)
    assert place == store.folder(pool) and (fit, device) == (FIT, "cpu")
    assert checkpoint.is_relative_to(tmp_path) and path == tmp_path / "reward.safetensors"


def test_a_rival_sees_the_same_prompts_and_its_own_settings(pool, tmp_path, monkeypatch):
    trained, pools = [], []

    def train(module, loss, **options):
        trained.append((module, options))
        yield Progress(1, 1, loss(stream(0, 0)))

    held = image_pairs.held
    monkeypatch.setattr(image_pairs, "held", lambda found: pools.append(found) or held(found))
    monkeypatch.setattr(image_pools.training, "train", train)
    fit = Fit(0.5, (8, 16), 9, 4, 0.03, 5)
    PoolRival(pool, fit).make(tmp_path, "cpu")
    ((network, options),) = trained
    assert options.pop("checkpoint").is_relative_to(tmp_path)
    assert options == {"steps": 9, "learning_rate": 0.03, "seed": 5}
    assert network.channels == (8, 16)
    assert list(pools[0].prompts) == image_pairs.split(12, 0.5, 5)[0]
    found = image_pairs.load(tmp_path / "reward.safetensors")
    assert found.about == {"held_out": image_pairs.split(12, 0.5, 5)[1]}
    assert (found.reward.target, found.reward.place) == ("score", "x_t")
