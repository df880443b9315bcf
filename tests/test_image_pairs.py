"""Algorithm 2 for samplers of images against the literal loop; its store; two pipelines' reward."""

import copy
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from safetensors.torch import load_file
from torch.testing import assert_close

from rrlib.errors import InputError
from rrlib.images import comparisons as image_extraction
from rrlib.images import pairs as image_pairs
from rrlib.images import pipelines
from rrlib.images.guided import Guided
from rrlib.images.miniature import pipeline as miniature
from rrlib.images.pairs import Fit, ImageReward
from rrlib.images.rewards import EncoderReward
from rrlib.images.safety import CONFIGURATIONS
from rrlib.images.shards import Shards
from rrlib.method import extraction
from rrlib.method.pools import Pool
from rrlib.method.rewards import RelativeReward
from rrlib.training import Progress, finish, stream

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


@pytest.mark.lengthy
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


@pytest.mark.lengthy
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


@pytest.mark.lengthy
def test_shards_of_another_run_are_refused(pair, folder, tmp_path):
    base, expert = pair
    encoder = copy.deepcopy(base.pipeline)
    with torch.no_grad():
        for value in encoder.text_encoder.parameters():
            value.mul_(3)
    rescheduled = copy.deepcopy(base.pipeline)
    config = dict(base.pipeline.scheduler.config) | {"beta_end": 0.02}
    rescheduled.scheduler = DDIMScheduler.from_config(config)
    others = [(Guided(p, STEPS, 4.0), replace(expert, pipeline=p)) for p in (encoder, rescheduled)]
    others += [
        (base, replace(expert, pipeline=encoder)),
        (base, replace(expert, safety=replace(CONFIGURATIONS["max"], scale=20))),
        (base, replace(expert, concept="circle")),
        (replace(base, scale=5.0), expert),
    ]
    changes = [{"seed": 2}, {"batch": 1}, {"prompts": PROMPTS[1:]}, {"truncate": True}]
    for change in (*changes, *({"base": one, "expert": two} for one, two in others)):
        options = {"base": base, "expert": expert, "prompts": PROMPTS[:3], "batch": 2, "seed": 1}
        with pytest.raises(InputError, match="holds shards of other prompts or settings"):
            next(image_pairs.compare(folder=folder, **(options | change)))
    with pytest.raises(InputError, match="shards of 0 prompts"):
        Shards(tmp_path)
    (tmp_path / "shard-00000.safetensors").write_text("text")
    with pytest.raises(InputError, match="holds no shards"):
        Shards(tmp_path)


def test_a_pair_of_unlike_samplers_is_refused(pair, tmp_path):
    base, expert = pair
    for other, batch, prompts, message in (
        (replace(base, steps=STEPS + 1), 2, PROMPTS, "steps=4 is not allowed: the base's 3"),
        (expert, 0, PROMPTS, "batch=0 with 4 prompts"),
        (expert, 2, [], "at least one prompt"),
        (expert, 2, ["red " * 9], "of 11 tokens is not allowed"),
        (expert, 2, "red circle", "prompts with 'red circle' are not allowed: one list of texts"),
        (expert, 2, [PROMPTS, PROMPTS], "one list of texts, the same for base and expert"),
        (expert, 2, [*PROMPTS, None], "prompts with None are not allowed"),
    ):
        with pytest.raises(InputError, match=message):
            next(image_pairs.compare(base, other, prompts, tmp_path, batch=batch, seed=0))
    with pytest.raises(InputError, match="negative_prompt='cross' is not allowed"):
        next(
            image_pairs.compare(*pair, PROMPTS, tmp_path, batch=2, seed=0, negative_prompt="cross")
        )
    assert not list(tmp_path.iterdir())


@pytest.mark.lengthy
def test_a_pair_without_any_difference_is_refused(pair, tmp_path, monkeypatch):
    base, _ = pair
    shared = StableDiffusionPipeline(**base.pipeline.components, requires_safety_checker=False)
    alike = copy.deepcopy(base.pipeline)
    for other in (base, replace(base, pipeline=shared), replace(base, pipeline=alike)):
        with pytest.raises(InputError, match="the base's own weights and settings are not allowed"):
            next(image_pairs.compare(base, other, PROMPTS, tmp_path, batch=2, seed=0))
    # Other settings that come to the same: the first shard shows it.
    with pytest.warns(UserWarning, match="safe guidance does nothing"):
        late = Guided(base.pipeline, STEPS, 4.0, CONFIGURATIONS["weak"], "cross")
    with pytest.raises(InputError, match="no difference from the base in 2 prompts"):
        next(image_pairs.compare(base, late, PROMPTS, tmp_path, batch=2, seed=0))
    assert not list(tmp_path.iterdir())
    drifted(tmp_path)
    read = Shards.read
    monkeypatch.setattr(
        Shards, "read", lambda self, k, name, i: read(self, k, name, i) * ("differ" not in name)
    )
    with pytest.raises(InputError, match="holds comparisons without any difference"):
        image_pairs.learn(tmp_path, Fit(0.5, (8,), 1))


@pytest.mark.lengthy
def test_what_is_not_finite_is_refused_at_the_first_step(pair, tmp_path, monkeypatch):
    base, expert = pair
    broken = copy.deepcopy(base.pipeline)
    with torch.no_grad():
        broken.unet.conv_out.bias[1] = float("nan")
    calls, real = [], Guided.noise
    monkeypatch.setattr(Guided, "noise", lambda self, *a: calls.append(a) or real(self, *a))
    for name, two in (
        ("base", (replace(base, pipeline=broken), expert)),
        ("expert", (base, replace(expert, pipeline=broken))),
    ):
        del calls[:]
        with pytest.raises(
            InputError, match=rf"{name}: its latents after step 0 of 3 are not fini"
        ):
            next(image_pairs.compare(*two, PROMPTS, tmp_path, batch=4, seed=0))
        assert len(calls) <= 2
    blank = copy.deepcopy(base.pipeline)
    config = {k: v for k, v in blank.scheduler.config.items() if k[0] != "_"}
    blank.scheduler = DDIMScheduler(**config | {"rescale_betas_zero_snr": True})
    with pytest.raises(InputError, match="rescale_betas_zero_snr"):
        replace(base, pipeline=blank)
    assert not list(tmp_path.iterdir())


def test_a_difference_of_rounding_is_none():
    class Jitter(Drift):
        def noise(self, x, step, texts, state):
            return x - self.place + (1e-7 * x if step < 2 else 0.0), state

    x = Drift(0.0).start(3, stream(0, "x"))
    texts = [torch.zeros(3)] * 2
    found = image_extraction.run((Drift(0.0), Jitter(0.0)), texts, x, 0)["differences"]
    assert not found.any()
    parts = {"Jitter": 0.0, "apart": 1e-4}
    found = image_extraction.run((Drift(0.0), Jitter(parts["apart"])), texts, x, 0)["differences"]
    assert_close(found.float(), torch.full_like(found.float(), 0.5e-4), atol=2e-7, rtol=0)


@pytest.mark.lengthy
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


@pytest.mark.lengthy
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
    t, weight = torch.tensor([0, 1, 2, 3, 4, 0]), torch.linspace(0, 3, 6, dtype=torch.float64)
    own = torch.tensor([True, False, True, True, False, False])
    errors, levels = [], []
    for k in range(6):
        one = x[k : k + 1].clone().requires_grad_()
        rho = network(one, t[k : k + 1])
        error = torch.autograd.grad(rho.sum(), one)[0] - target[k]
        errors.append((error * weight[k]).square().mean())
        levels.append((rho / network.unit[t[k]]).square())
    wanted = torch.stack(errors).mean()
    found = image_pairs.levelled_loss(network, x, t, target, weight, own, 0.0)
    assert_close(found, wanted)
    mean = (levels[0] + levels[2] + levels[3]).squeeze() / 3
    found = image_pairs.levelled_loss(network, x, t, target, weight, own, 0.5)
    assert_close(found, wanted + 0.5 * mean)
    nobody = torch.zeros(6, dtype=torch.bool)
    assert_close(image_pairs.levelled_loss(network, x, t, target, weight, nobody, 0.5), wanted)


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
            image_pairs.load(tmp_path / f"{name}.safetensors")


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


def drifted(folder, prompts: int = 60) -> None:
    """Comparisons of two that drift to points 0.2 apart."""
    texts = [str(k) for k in range(prompts)]
    run = image_extraction.generate(folder, Drift(-0.1), Drift(0.1), texts, batch=20, seed=0)
    finish(run, "")


@pytest.mark.slow
def test_a_reward_tells_the_sides_of_unseen_prompts(tmp_path):
    drifted(tmp_path)
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
    for step in (-1, 4, 9):
        with pytest.raises(InputError, match=rf"step={step} is not allowed: one from 0 to 3"):
            found.shift(x, step)


def test_the_split_is_by_its_seed():
    assert image_pairs.split(60, 0.5, 0) == image_pairs.split(60, 0.5, 0)
    assert image_pairs.split(60, 0.5, 0) != image_pairs.split(60, 0.5, 1)


def test_a_fit_sees_its_own_prompts_and_is_judged_by_the_others(tmp_path, monkeypatch):
    drifted(tmp_path)
    trained, losses, judged = [], [], []

    def train(module, loss, **options):
        trained.append(options)
        loss(stream(0, "batch"))
        yield Progress(1, 1, torch.zeros(()))

    real, judge = image_pairs.levelled_loss, image_pairs.judge
    monkeypatch.setattr(image_pairs.training, "train", train)
    monkeypatch.setattr(
        image_pairs, "levelled_loss", lambda *parts: losses.append(parts) or real(*parts)
    )
    monkeypatch.setattr(image_pairs, "judge", lambda *parts: judged.append(parts) or judge(*parts))
    fit = Fit(0.4, (16, 8), 7, 64, 0.02, 3, 0.25)
    found = image_pairs.learn(tmp_path, fit, "cpu", tmp_path / "checkpoint")
    options = {"steps": 7, "learning_rate": 0.02, "seed": 3}
    about = trained[0].pop("about")
    assert trained == [options | {"checkpoint": tmp_path / "checkpoint"}]
    assert (about["batch"], about["level"]) == (64, 0.25) and about["comparisons"]
    mine, rest = image_pairs.split(60, 0.4, 3)
    shards = Shards(tmp_path)
    whole = {k: torch.cat([load_file(path)[k] for path in shards.files]).float() for k in KEYS}
    network, x, t, target, weight, of_base, level = losses[0]
    assert level == 0.25 and network.channels == (16, 8) and len(x) == 64
    scale = shards.pool(mine).scale(4)
    assert_close(weight, extraction.step_weights(scale, network.unit)[t])
    for row in range(len(x)):  # each is of the side that it is said to be of, at its t
        side = "base" if of_base[row] else "expert"
        at = [(whole[f"{side}.latents"][k, t[row]] == x[row]).all() for k in mine]
        assert sum(at) == 1
        assert (whole[f"{side}.differences"][mine[at.index(True)], t[row]] == target[row]).all()
    assert of_base.any() and not of_base.all()
    both = torch.cat([whole[f"{side}.latents"][mine] for side in SIDES])
    assert_close(network.mean, both.mean(0))
    assert_close(network.deviation, both.std(0, correction=0))
    assert [part[2:] for part in judged] == [(rest, 3)] and found.about["held_out"] == rest
    assert found.about["level"] == 0.25
    torch.manual_seed(3)
    tables = (network.mean, network.deviation, network.unit)
    assert torch.equal(network.head[0].weight, EncoderReward(*tables, (16, 8)).head[0].weight)


KEYS = [f"{side}.{name}" for side in ("base", "expert") for name in ("latents", "differences")]


@pytest.mark.slow
def test_a_step_without_signal_neither_weighs_nor_spoils_the_fit(tmp_path, monkeypatch):
    class Late(Drift):
        def noise(self, x, step, texts, state):
            return x - self.place * (step > 1), state

    texts = [str(k) for k in range(60)]
    finish(image_extraction.generate(tmp_path, Late(0.0), Late(0.2), texts, batch=20, seed=0), "")
    shards = Shards(tmp_path)
    scale = shards.pool(range(60)).scale(4)
    assert (scale > 0).tolist() == [True, True, False, False]
    found = image_pairs.learn(tmp_path, Fit(0.5, (8, 16), 150, 32, 3e-3))
    assert found.about["auc"] > 0.99
    pool = shards.pool(found.about["held_out"])
    rows = torch.arange(len(pool))
    memory = Pool(pool.x[rows], pool.t, pool.target[rows])
    share = extraction.explained(found.reward.network, memory, 4)
    losses, real = [], image_pairs.levelled_loss
    monkeypatch.setattr(
        image_pairs, "levelled_loss", lambda *parts: losses.append(parts) or real(*parts)
    )
    image_pairs.learn(tmp_path, Fit(0.5, (8,), 1, 64))
    assert set(losses[0][2].tolist()) == {0, 1}  # nothing is drawn where nothing is told
    assert share[:2].min() > 0.9 and share[2:].isnan().all()


# Units -------------------------------------------------------------------------------------------


class Two:
    """DDIM's exact sampler of two kinds of pictures, each plus noise of deviation 0.2.

    It says nothing of its units. The second kind is drawn with a chance of `share`.
    """

    shape = (1, 8, 8)
    tables = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))

    def __init__(self, share: float, steps: int = 20, **options):
        self.share, self.steps = share, steps
        self.scheduler = DDIMScheduler(1000, clip_sample=False, **options)
        self.scheduler.set_timesteps(steps)

    def condition(self, prompts, truncate):
        return torch.zeros(len(prompts))

    def start(self, n, generator):
        return torch.randn(n, *self.shape, generator=generator)

    def noise(self, x, step, texts, state):
        abar = self.scheduler.alphas_cumprod[self.scheduler.timesteps[step]]
        spread = 0.04 * abar + 1 - abar
        apart = x[:, None] - abar.sqrt() * self.tables
        chances = torch.tensor([1 - self.share, self.share]).log()
        odds = (chances - apart.square().flatten(2).sum(2) / (2 * spread)).softmax(1)
        score = -(odds[..., None, None, None] * apart).sum(1) / spread
        return -(1 - abar).sqrt() * score, state

    def advance(self, x, noise, step):
        return self.scheduler.step(noise, self.scheduler.timesteps[step], x).prev_sample


def worth(sampler: Two, guided: bool = False) -> torch.Tensor:
    """What a unit of score adds to each of DDIM's steps, by its formula (Eq. 12 there), [T]."""
    scheduler = sampler.scheduler
    abar = scheduler.alphas_cumprod[scheduler.timesteps].double()
    last = torch.ones(1) if scheduler.config.set_alpha_to_one else scheduler.alphas_cumprod[:1]
    after = torch.cat([abar[1:], last.double()])
    of_noise = (1 - after).sqrt() - (after / abar * (1 - abar)).sqrt()
    return (-of_noise * (1 - abar).sqrt()).flip(0)


def test_units_are_read_off_any_samplers_steps(pair):
    assert_close(image_extraction.units(Two(0.5)).double(), worth(Two(0.5)), rtol=1e-3, atol=1e-5)
    base, _ = pair
    found = image_extraction.units(base)
    assert_close(found.double(), worth(base), rtol=1e-4, atol=1e-6)
    assert (found.diff() > 0).all() and len(found) == STEPS  # the last step is the smallest
    # Steps to a point of its own: no linear ones, no units.
    odd = Drift(0.0)
    odd.advance = lambda x, noise, step: x + noise
    assert image_extraction.units(odd) is None


@pytest.mark.slow
def test_the_documented_call_tells_the_sides_apart(tmp_path):
    texts = [str(k) for k in range(80)]
    run = image_extraction.generate(tmp_path, Two(0.5), Two(0.98), texts, batch=40, seed=0)
    finish(run, "")
    fit = Fit(0.5, (8, 16), 200, 32, 2e-3)
    found = image_pairs.learn(tmp_path, fit)
    kinds = [f"{side}.final" for side in SIDES]
    shards = Shards(tmp_path)
    finals = torch.cat([load_file(path)[k] for k in kinds for path in shards.files]).float()
    second = (finals[:, None] - Two.tables).flatten(2).norm(dim=2).argmin(1) == 1
    scores = found.score(finals)
    auc = (scores[second][:, None] > scores[~second]).float().mean()
    assert auc > 0.98
    unit = worth(Two(0.5)).float()
    network = found.reward.network
    near = {"rtol": 1e-2, "atol": 1e-5}
    assert_close(network.unit, unit * (network.unit[5] / unit[5]), **near)
    given = image_pairs.blank(shards, range(40), fit, unit.double()).network.unit
    assert_close(given, image_pairs.blank(shards, range(40), fit).network.unit, **near)
    for wrong in (unit[:3], -unit, unit * float("nan")):
        with pytest.raises(InputError, match="unit of shape"):
            image_pairs.learn(tmp_path, fit, unit=wrong)


def test_a_folder_says_what_was_compared(pair, folder):
    record = Shards(folder).record
    base, expert = pair
    assert (record["steps"], record["prompts"], record["batch"], record["seed"]) == (STEPS, 3, 2, 1)
    assert_close(torch.tensor(record["unit"]), image_extraction.units(base))
    about = record["about"]
    assert about["timesteps"] == base.scheduler.timesteps.tolist()
    assert_close(torch.tensor(about["levels"]), base.scheduler.alphas_cumprod[about["timesteps"]])
    assert about["base"]["model"] == about["expert"]["model"] == image_pairs.digest(base.pipeline)
    assert about["expert"]["safety"]["scale"] == expert.safety.scale
    assert (about["base"]["scale"], about["base"]["safety"]) == (4.0, None)
    path = folder / "comparisons.json"
    for damaged in ("{", path.read_text().replace('"seed": 1', '"seed": 3')):
        path.write_text(damaged)
        with pytest.raises(InputError, match=r"comparisons.json' is damaged"):
            assert Shards(folder).record
    finish(image_pairs.compare(*pair, PROMPTS[:3], folder, batch=2, seed=1), "")
    assert Shards(folder).record == record


def test_every_image_begins_from_noise_of_its_own(tmp_path):
    """Of all prompts, whatever shard they are in, and of both sides."""
    drifted(tmp_path)
    shards = Shards(tmp_path)
    assert shards.sizes == [20, 20, 20]
    starts = torch.stack([x[-1] for x in shards.runs(range(60), "latents")])
    assert len(starts) == len(starts.flatten(1).unique(dim=0)) == 120


@pytest.mark.parametrize("given", [False, True])
def test_a_unit_of_the_output_is_worth_the_size_of_the_differences(given, tmp_path):
    """Its course over t is the pair's or the caller's, its size that of a fitted gradient."""
    drifted(tmp_path)
    shards, fit = Shards(tmp_path), Fit(0.5, (8,), 1)
    prompts = range(0, 60, 2)
    runs = [torch.stack(list(shards.runs(prompts, name))) for name in ("latents", "differences")]
    deviation = runs[0].std(0, correction=0).flatten(1).mean(1)
    scale = runs[1].square().flatten(2).mean((0, 2)).sqrt()
    size = scale * deviation * 8  # the root of an image's 64 numbers
    course = torch.tensor([0.1, 2.0, 0.5, 7.0]) if given else torch.tensor(shards.record["unit"])
    unit = image_pairs.blank(shards, prompts, fit, course if given else None).network.unit
    assert_close(unit / unit[0], course / course[0])
    assert_close(unit.log().mean(), size.log().mean(), rtol=1e-3, atol=1e-3)


def test_a_step_that_says_little_in_its_unit_weighs_little(tmp_path, monkeypatch):
    """Differences of one size; of the last step's unit they are a hundred-thousandth."""
    drifted(tmp_path)
    losses, real = [], image_pairs.levelled_loss
    monkeypatch.setattr(
        image_pairs, "levelled_loss", lambda *parts: losses.append(parts) or real(*parts)
    )
    unit = torch.tensor([1.0, 1.0, 1.0, 1e5])
    image_pairs.learn(tmp_path, Fit(0.5, (8,), 1, 64), unit=unit)
    _, _, t, _, weight, *_ = losses[0]
    scale = Shards(tmp_path).pool(image_pairs.split(60, 0.5, 0)[0]).scale(4)
    told = scale / unit
    usual = told[:3].min()  # the middle of the four, the lower one of two
    assert_close(
        weight, ((told / (1e-3 * usual)).clamp(max=1).square() / scale)[t], rtol=1e-3, atol=0
    )
    assert weight[t == 3].max() < 1e-3 * weight[t == 0].min()
