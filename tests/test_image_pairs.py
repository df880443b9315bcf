"""Algorithm 2 for samplers of images against the literal loop; its store; two pipelines' reward."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from rrlib import extraction, image_extraction, image_pairs, image_rewards, miniature, pipelines
from rrlib.errors import InputError
from rrlib.extraction import Pool
from rrlib.image_pairs import Fit, ImageReward
from rrlib.image_rewards import EncoderReward
from rrlib.images import CONFIGURATIONS, Guided
from rrlib.rewards import RelativeReward
from rrlib.shards import Shards
from rrlib.training import finish, stream

WORDS = ("red", "blue", "circle", "square", "cross")
TINY = miniature.Size(pixels=16, vae=(8, 16), unet=(16, 32), text=16, layers=1, tokens=8)
PROMPTS = [f"{colour} {shape}" for colour in ("red", "blue") for shape in ("circle", "square")]
STEPS = 3


@pytest.fixture(scope="module")
def pair() -> tuple[Guided, Guided]:
    pipeline = miniature.pipeline(TINY, WORDS, 0)
    safe = Guided(pipeline, STEPS, 4.0, CONFIGURATIONS["max"], "cross")
    return Guided(pipeline, STEPS, 4.0), safe


@pytest.fixture(scope="module")
def folder(pair, tmp_path_factory):
    path = tmp_path_factory.mktemp("comparisons")
    finish(image_pairs.compare(*pair, PROMPTS[:3], path, batch=2, seed=1), "")
    return path


def test_the_store_holds_the_literal_algorithm(pair, folder):
    base, expert = pair
    texts = [sampler.condition(PROMPTS[:2]) for sampler in pair]
    found = load_file(folder / "shard-00000.safetensors")
    for m, side in enumerate(("base", "expert")):
        x = torch.randn(2, 4, 8, 8, generator=stream(1, f"{side} 0"))
        momentum = None
        for t in reversed(range(STEPS)):
            step = STEPS - 1 - t
            first = base.advance(x, base.noise(x, step, texts[0])[0], step)
            noise, momentum = expert.noise(x, step, texts[1], momentum)
            second = expert.advance(x, noise, step)
            assert_close(found[f"{side}.latents"][:, t], x.half())
            assert_close(found[f"{side}.differences"][:, t], (second - first).half())
            x = (first, second)[m]
        assert_close(found[f"{side}.final"], x.half())


def test_the_pool_on_disk_is_the_pool_in_memory(folder):
    shards = Shards(folder)
    assert (shards.prompts, shards.steps, shards.sizes) == (3, STEPS, [2, 1])
    disk = shards.pool([0, 2])
    whole = [load_file(path) for path in shards.files]
    parts = {
        name: torch.stack(
            [whole[k][f"{side}.{name}"][row] for k, row in ((0, 0), (1, 0)) for side in SIDES]
        ).float()
        for name in ("latents", "differences")
    }
    t = torch.arange(STEPS).repeat(4)
    memory = Pool(parts["latents"].flatten(0, 1), t, parts["differences"].flatten(0, 1))
    assert disk.of_base.tolist() == [*[True] * 3, *[False] * 3] * 2
    rows = torch.tensor([11, 0, 4, 4])
    assert len(disk) == len(memory) == 12
    assert torch.equal(disk.t, memory.t)
    assert torch.equal(disk.x[rows], memory.x[rows])
    assert torch.equal(disk.target[rows], memory.target[rows])
    assert_close(disk.scale(STEPS), memory.scale(STEPS))
    mean, deviation = shards.moments([0, 2])
    assert_close(mean, parts["latents"].mean(0))
    assert_close(deviation, parts["latents"].std(0, correction=0).clamp(min=1e-4))
    final = torch.cat([part["expert.final"] for part in whole])[[2, 0]].float()
    assert torch.equal(shards.images([2, 0])[1], final)
    # The one fit is as good as the other.
    fit, fitted = Fit(channels=(8, 8), steps=3, batch=4), []
    for pool in (disk, memory):
        network = image_pairs.blank(shards, [0, 2], fit).network
        options = {"steps": 3, "batch": 4, "learning_rate": 1e-3, "seed": 0}
        finish(extraction.fit(network, pool, **options), "")
        fitted.append(network.state_dict())
    for name, value in fitted[0].items():
        assert_close(value, fitted[1][name])


SIDES = ("base", "expert")


def test_a_run_that_was_killed_goes_on(pair, folder, tmp_path):
    run = image_pairs.compare(*pair, PROMPTS[:3], tmp_path, batch=2, seed=1)
    assert next(run).steps == 2
    run.close()
    with pytest.raises(InputError, match="holds shards of 2 prompts: all 3 are needed"):
        Shards(tmp_path)
    first = tmp_path / "shard-00000.safetensors"
    stamp = first.stat().st_mtime_ns
    finish(image_pairs.compare(*pair, PROMPTS[:3], tmp_path, batch=2, seed=1), "")
    assert first.stat().st_mtime_ns == stamp
    assert not list(tmp_path.glob(".*"))
    for path in Shards(tmp_path).files:
        whole, other = load_file(path), load_file(folder / path.name)
        assert whole.keys() == other.keys()
        assert all(torch.equal(value, other[name]) for name, value in whole.items())


def test_shards_of_another_run_are_refused(pair, folder, tmp_path):
    for change in ({"seed": 2}, {"batch": 1}, {"prompts": PROMPTS[1:]}):
        options = {"prompts": PROMPTS[:3], "batch": 2, "seed": 1} | change
        with pytest.raises(InputError, match="holds shards of other prompts or settings"):
            next(image_pairs.compare(*pair, folder=folder, **options))
    with pytest.raises(InputError, match="shards of 0 prompts"):
        Shards(tmp_path)
    (tmp_path / "shard-00000.safetensors").write_text("text")
    with pytest.raises(InputError, match="holds no shards"):
        Shards(tmp_path)


def test_a_pair_of_unlike_samplers_is_refused(pair, tmp_path):
    base, _ = pair
    for other, batch, prompts, message in (
        (Guided(base.pipeline, STEPS + 1), 2, PROMPTS, "steps=4 is not allowed: the base's 3"),
        (base, 0, PROMPTS, "batch=0 with 4 prompts"),
        (base, 2, [], "at least one prompt"),
        (base, 2, ["red " * 9], "of 11 tokens is not allowed"),
    ):
        with pytest.raises(InputError, match=message):
            next(image_pairs.compare(base, other, prompts, tmp_path, batch=batch, seed=0))
    assert not list(tmp_path.iterdir())


def test_out_of_memory_says_what_would_fit(pair, tmp_path, monkeypatch):
    noise, room = Guided.noise, 2

    def greedy(self, x, *rest):
        if len(x) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return noise(self, x, *rest)

    monkeypatch.setattr(Guided, "noise", greedy)
    with pytest.raises(InputError, match=r"batch=4 is not allowed: .* memory, .* batch of 2 fits"):
        next(image_pairs.compare(*pair, PROMPTS, tmp_path, batch=4, seed=0))
    room = 0
    with pytest.raises(InputError, match=r"not even a batch of 1 fits"):
        next(image_pairs.compare(*pair, PROMPTS, tmp_path, batch=4, seed=0))


# Rewards -----------------------------------------------------------------------------------------


def encoder(steps: int = 5) -> EncoderReward:
    torch.manual_seed(0)
    draws = stream(0, "tables")
    mean = torch.randn(steps, 2, 8, 8, generator=draws)
    deviation = 0.5 + torch.rand(steps, 2, 8, 8, generator=draws)
    return EncoderReward(mean, deviation, torch.linspace(1, 2, steps), (8, 16))


def test_the_encoder_is_smooth_and_standardises():
    network = encoder().double()
    t = torch.tensor([1, 4])
    x = torch.randn(2, 2, 8, 8, dtype=torch.float64, generator=stream(1, "x")).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: network(x, t), x, nondet_tol=1e-9)
    gradient = torch.autograd.grad(network(x, t).sum(), x, create_graph=True)[0]
    second = torch.autograd.grad(gradient.square().sum(), x)[0]
    assert torch.isfinite(second).all() and second.abs().max() > 0
    plain = copy.deepcopy(network)
    plain.mean.zero_(), plain.deviation.fill_(1.0)
    standard = (x - network.mean[t]) / network.deviation[t]
    assert_close(network(x, t), plain(standard, t))
    with pytest.raises(InputError, match=r"\(1, 2, 4, 4\) is not allowed"):
        network(torch.zeros(1, 2, 4, 4), t[:1])


def test_the_loss_is_l_rrf_and_the_levels_of_the_bases_own_alone():
    network = encoder().double()
    draws = stream(2, "batch")
    x, target = (torch.randn(6, 2, 8, 8, dtype=torch.float64, generator=draws) for _ in range(2))
    t, scale = torch.tensor([0, 1, 2, 3, 4, 0]), torch.linspace(1, 3, 6, dtype=torch.float64)
    own = torch.tensor([True, False, True, True, False, False])
    errors, levels = [], []
    for k in range(6):
        one = x[k : k + 1].clone().requires_grad_()
        rho = network(one, t[k : k + 1])
        error = torch.autograd.grad(rho.sum(), one)[0] - target[k]
        errors.append((error / scale[k]).square().mean())
        levels.append((rho / network.unit[t[k]]).square())
    wanted = torch.stack(errors).mean()
    found = image_pairs.levelled_loss(network, x, t, target, scale, own, 0.0)
    assert_close(found, wanted)
    mean = (levels[0] + levels[2] + levels[3]).squeeze() / 3
    found = image_pairs.levelled_loss(network, x, t, target, scale, own, 0.5)
    assert_close(found, wanted + 0.5 * mean)
    nobody = torch.zeros(6, dtype=torch.bool)
    assert_close(image_pairs.levelled_loss(network, x, t, target, scale, nobody, 0.5), wanted)


def test_the_encoder_of_table_2_takes_the_papers_latents():
    tables = torch.zeros(2, 4, 64, 64), torch.ones(2, 4, 64, 64), torch.ones(2)
    network = EncoderReward(*tables)
    assert network.channels == (32, 64, 128, 256)
    with torch.no_grad():
        assert network(torch.zeros(1, 4, 64, 64), torch.tensor([1])).shape == (1,)
    for channels in ((), (12,), (8,) * 8):
        with pytest.raises(InputError, match="channels="):
            EncoderReward(*tables, channels)


def test_a_saved_reward_scores_alike(pair, tmp_path):
    base, _ = pair
    torch.manual_seed(1)
    tables = torch.zeros(STEPS, 4, 8, 8), torch.ones(STEPS, 4, 8, 8), torch.ones(STEPS)
    made = ImageReward(RelativeReward(EncoderReward(*tables, (8,)), "mean", "x_t"), {"auc": 0.5})
    made.save(tmp_path / "new" / "reward.safetensors")
    found = image_pairs.load(tmp_path / "new" / "reward.safetensors")
    assert (found.about, found.reward.target, found.reward.place) == ({"auc": 0.5}, "mean", "x_t")
    latents = base.start(3, stream(0, "latents"))
    assert_close(found.score(latents), made.score(latents, batch=2), atol=2e-3, rtol=1e-2)
    pictures = pipelines.decode(base.pipeline, latents)
    with torch.no_grad():
        encoded = pipelines.encode(base.pipeline, pictures)
    assert_close(made.score(pictures, base.pipeline), made.score(encoded))
    with pytest.raises(InputError, match="pipeline=None is not allowed with PIL images"):
        made.score(pictures)
    for name in ("none", "text"):
        (tmp_path / "text.safetensors").write_text("no tensors")
        with pytest.raises(InputError, match=rf"{name}.safetensors' (does not exist|is damaged)"):
            image_rewards.read(tmp_path / f"{name}.safetensors")


class Drift:
    """A sampler whose latents keep to a point of its own: what it prefers is known."""

    steps, shape = 4, (1, 8, 8)

    def __init__(self, place: float):
        self.place = place

    def condition(self, prompts, truncate):
        return torch.zeros(len(prompts))

    def start(self, n, generator):
        return torch.randn(n, *self.shape, generator=generator)

    def noise(self, x, step, texts, state):
        return x - self.place, state

    def advance(self, x, noise, step):
        return x - 0.5 * noise


def test_a_reward_tells_the_sides_of_unseen_prompts(tmp_path):
    prompts = [str(k) for k in range(60)]
    run = image_extraction.generate(tmp_path, Drift(-0.1), Drift(0.1), prompts, batch=20, seed=0)
    finish(run, "")
    fit = Fit(held_out=0.5, channels=(8, 16), steps=150, batch=32, learning_rate=3e-3)
    found = image_pairs.learn(tmp_path, fit)
    assert found.about["accuracy"] > 0.95 and found.about["auc"] > 0.99
    train, test = image_pairs.split(60, 0.5, 0)
    assert found.about["held_out"] == test and sorted(train + test) == list(range(60))
    # The target is 0.1 everywhere: half of the way from one point to the other.
    pool = Shards(tmp_path).pool(test)
    rows = torch.arange(len(pool))
    memory = Pool(pool.x[rows], pool.t, pool.target[rows])
    assert extraction.explained(found.reward.network, memory, Drift.steps).min() > 0.9
    x = memory.x[memory.t == 3]
    assert_close(found.shift(x, 0, 2.0), 2 * found.reward.gradient(x, torch.full((len(x),), 3)))
    with pytest.raises(InputError, match=r"held_out=0.01 of 60 prompts"):
        image_pairs.split(60, 0.01, 0)
