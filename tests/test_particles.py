"""Weighted guidance against products of Gaussians, which are Gaussians."""

import math

import pytest
import torch
from torch import nn

import rrlib
from rrlib.errors import InputError
from rrlib.estimators import particles
from rrlib.plans.conditioning import given, hold
from rrlib.plans.rewards import ConditionalReward
from rrlib.training import stream

STEPS = 200
SCHEDULER = rrlib.cosine_scheduler(STEPS, clip=False)
BASE, FIRST, SECOND = (0.0, 1.0), (1.0, 0.25), (-0.5, 0.3)  # mean and variance of each number


def gaussian(law: tuple[float, float]) -> rrlib.Denoiser:
    """The exact model of independent numbers of one Gaussian law."""
    mean, variance = law
    table = SCHEDULER.alphas_cumprod

    def posterior_mean(x, t):
        abar = table.to(x)[t].reshape(-1, *[1] * (x.ndim - 1))
        gain = abar.sqrt() * variance / (abar * variance + 1 - abar)
        return mean + gain * (x - abar.sqrt() * mean)

    return rrlib.Denoiser(posterior_mean, SCHEDULER)


class LogRatio(nn.Module):
    """log p_t - log p1_t of such models, up to a constant."""

    def __init__(self, law: tuple[float, float], target: str = "score"):
        super().__init__()
        self.laws, self.target = (BASE, law), target

    def forward(self, x, t):
        abar = SCHEDULER.alphas_cumprod.to(x)
        at = abar[t].reshape(-1, *[1] * (x.ndim - 1))
        base, expert = (
            -0.5 * ((x - at.sqrt() * mean) ** 2 / (at * variance + 1 - at)).flatten(1).sum(1)
            for mean, variance in self.laws
        )
        if self.target == "score":
            return expert - base
        alpha = abar / torch.cat([abar.new_ones(1), abar[:-1]])
        return (expert - base) * ((1 - alpha) / alpha.sqrt())[t]


def exact(law, target="score") -> rrlib.RelativeReward:
    return rrlib.RelativeReward(LogRatio(law, target), target, "x_t")


def product(powers: dict[tuple[float, float], float]) -> tuple[float, float]:
    """Mean and variance of p1 prod_k (p_k / p1)^w_k."""
    laws = {BASE: 1 - sum(powers.values())} | powers
    precision = sum(w / variance for (_, variance), w in laws.items())
    return sum(
        w * mean / variance for (mean, variance), w in laws.items()
    ) / precision, 1 / precision


def moments(found: particles.Particles) -> tuple[float, float]:
    x, weights = found.samples[0, :, 0].double(), found.weights[0]
    mean = float(weights @ x)
    return mean, float(weights @ (x - mean) ** 2)


CASES = {
    "0.5": (exact(FIRST), 0.5, {FIRST: 0.5}),
    "2": (exact(FIRST), 2.0, {FIRST: 2.0}),
    "3": (exact(FIRST, "mean"), 3.0, {FIRST: 3.0}),
    "product": (rrlib.compose([exact(FIRST), exact(SECOND)], [1, 1]), 1.0, {FIRST: 1, SECOND: 1}),
    "weighted": (
        rrlib.compose([exact(FIRST), exact(SECOND)], [1, -0.5]),
        0.5,
        {FIRST: 0.5, SECOND: -0.25},
    ),
}


@pytest.mark.lengthy
@pytest.mark.parametrize("name", CASES)
def test_weights_make_every_scale_and_every_sum_exact(name):
    """Mean and variance within 2 %, where plain steering misses one of them by 10 % and more."""
    reward, scale, powers = CASES[name]
    wanted, count = product(powers), 100_000 if name in ("2", "3") else 50_000
    found = rrlib.sample_weighted(
        gaussian(BASE), (1, 1), reward, particles=count, guidance_scale=scale, seed=0
    )
    mean, variance = moments(found)
    assert abs(mean / wanted[0] - 1) < 0.02
    assert abs(variance / wanted[1] - 1) < 0.02
    assert found.effective.shape == (STEPS, 1)
    assert (found.effective > count / 2).all() and (found.effective < count * (1 + 1e-9)).all()
    plain = rrlib.sample(gaussian(BASE), (20_000, 1), reward=reward, guidance_scale=scale, seed=1)
    away = abs(float(plain.mean()) / wanted[0] - 1), abs(float(plain.var()) / wanted[1] - 1)
    assert max(away) > 0.1


@pytest.mark.lengthy
@pytest.mark.parametrize("target", ["score", "mean"])
def test_with_the_theorys_scale_all_weigh_the_same(target):
    base, reward = gaussian(BASE), exact(FIRST, target)
    found = rrlib.sample_weighted(base, (2, 3), reward, particles=5)
    torch.testing.assert_close(found.weights, torch.full((2, 5), 0.2).double())
    assert torch.allclose(found.effective, torch.tensor(5.0).double())
    assert found.samples.shape == (2, 5, 3) and found.samples.dtype == torch.float32


@pytest.mark.lengthy
def test_fewer_steps_and_several_numbers():
    """Each of a few samples has particles of its own; the last step counts, too."""
    found = rrlib.sample_weighted(
        gaussian(BASE),
        (4, 2),
        exact(FIRST),
        particles=10_000,
        guidance_scale=2.0,
        num_inference_steps=100,
        dtype=torch.float64,
    )
    mean, variance = product({FIRST: 2.0})
    first = (found.weights[..., None] * found.samples).sum(1)
    second = (found.weights[..., None] * (found.samples - first[:, None]) ** 2).sum(1)
    assert torch.allclose(first.mean(), torch.tensor(mean).double(), rtol=0.02)
    assert torch.allclose(second.mean(), torch.tensor(variance).double(), rtol=0.05)
    assert found.effective.shape == (100, 4)
    assert not torch.allclose(found.samples[0], found.samples[1])


def test_weights_are_the_product_of_the_steps_own():
    """By the densities of each step, the product of both models' own to their powers."""
    base, expert = gaussian(BASE), gaussian(FIRST)
    power, count = 1.7, 6
    seen = []

    def keep(x):
        seen.append(x.clone())
        return x

    found = rrlib.sample_weighted(
        base,
        (1, 2),
        rrlib.ExactDifference(base, expert),
        particles=count,
        guidance_scale=power,
        num_inference_steps=4,
        resample_below=0.0,
        dtype=torch.float64,
        keep=keep,
    )
    path, total = seen[2:], torch.zeros(count, dtype=torch.float64)
    abar = torch.cat([torch.ones(1), SCHEDULER.alphas_cumprod]).double()
    kept = [round(k * 199 / 3) for k in (3, 2, 1, 0)]
    for x, step, before in zip(path, kept, [*kept[1:], -1], strict=False):
        a, b = abar[step + 1], abar[before + 1]
        t = torch.full((count,), step)
        beta = 1 - a / b
        means = [
            (b.sqrt() * beta * m.x0(x, t) + (a / b).sqrt() * (1 - b) * x) / (1 - a)
            for m in (base, expert)
        ]
        # log of N(y; m1)^(1 - w) N(y; m2)^w / N(y; m1 + w (m2 - m1)) does not depend on y.
        y = torch.randn(count, 2, dtype=torch.float64)
        steered = means[0] + power * (means[1] - means[0])
        log = [-((y - mean) ** 2).sum(1) / (2 * beta) for mean in (*means, steered)]
        total += (1 - power) * log[0] + power * log[1] - log[2]
    torch.testing.assert_close(found.weights[0], total.softmax(0), rtol=1e-5, atol=1e-8)


def test_systematic_resampling_is_fair_and_stays_within_a_sample():
    weights = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.7, 0.1, 0.1, 0.1]]).double()
    counts = torch.zeros(2, 4)
    for seed in range(400):
        rows = particles._resampled(weights, torch.tensor([True, True]), stream(seed, 0))
        picks = rows.reshape(2, 4)
        assert (picks[0] < 4).all() and (picks[1] >= 4).all()
        found = torch.stack([torch.bincount(p, minlength=4) for p in (picks[0], picks[1] - 4)])
        assert ((found - 4 * weights).abs() < 1).all()
        counts += found
    torch.testing.assert_close(counts / 1600, weights.float(), atol=0.02, rtol=0)
    rows = particles._resampled(weights, torch.tensor([False, True]), stream(0, 0))
    assert rows[:4].tolist() == [0, 1, 2, 3]


def test_what_is_given_is_in_its_place_and_does_not_weigh():
    first = torch.tensor([[3.0], [-3.0]])
    model = given(gaussian(BASE), first.repeat_interleave(8, 0))
    found = rrlib.sample_weighted(
        model,
        (2, 4, 2),
        exact(FIRST),
        particles=8,
        guidance_scale=2.0,
        keep=hold(first.repeat_interleave(8, 0)),
        num_inference_steps=10,
    )
    assert torch.equal(found.samples[:, :, 0, 1], first.expand(2, 8))
    # A first observation far from all data would otherwise be most of the weight.
    other = rrlib.sample_weighted(
        given(gaussian(BASE), 0 * first.repeat_interleave(8, 0)),
        (2, 4, 2),
        exact(FIRST),
        particles=8,
        guidance_scale=2.0,
        keep=hold(0 * first.repeat_interleave(8, 0)),
        num_inference_steps=10,
    )
    torch.testing.assert_close(found.effective, other.effective)


def test_the_draw_goes_by_the_weights_and_the_seed():
    samples = torch.arange(4.0).reshape(1, 4, 1).expand(2000, 4, 1)
    weights = torch.tensor([0.1, 0.2, 0.3, 0.4]).double().expand(2000, 4)
    found = particles.Particles(samples, weights, torch.ones(1, 2000))
    shares = torch.bincount(found.draw().flatten().long(), minlength=4) / 2000
    torch.testing.assert_close(shares, weights[0].float(), atol=0.04, rtol=0)
    assert torch.equal(found.draw(), found.draw(0)) and not torch.equal(found.draw(), found.draw(1))


@pytest.mark.lengthy
def test_the_seed_decides():
    def run(seed):
        return rrlib.sample_weighted(
            gaussian(BASE), (1, 2), exact(FIRST), particles=9, guidance_scale=2.0, seed=seed
        )

    state = torch.random.get_rng_state()
    assert torch.equal(run(0).samples, run(0).samples)
    assert not torch.equal(run(0).samples, run(1).samples)
    assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"particles": 1}, "particles=1 is not allowed: at least 2 are needed"),
        ({"particles": 2.5}, "particles=2.5 is not allowed"),
        ({"guidance_scale": -1.0}, "guidance_scale=-1.0 is not allowed"),
        ({"guidance_scale": math.nan}, "guidance_scale=nan is not allowed"),
        ({"resample_below": 1.5}, "resample_below=1.5 is not allowed: a share"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 is not allowed"),
        (
            {"particles": 10**12},
            r"particles=1000000000000 is not allowed: for 3 samples of shape \(2,\) they take "
            r"[\d,]+ GB, and cpu has [\d,]+ GB; \d+ at most",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_sentence(asked, message):
    asked = {"particles": 4} | asked
    with pytest.raises(InputError, match=message) as caught:
        rrlib.sample_weighted(gaussian(BASE), (3, 2), exact(FIRST), **asked)
    assert "\n" not in str(caught.value)


def test_the_best_of_several_is_the_one_of_most_reward():
    base, reward = gaussian(BASE), exact(FIRST)
    generator = stream(3, "candidates")
    candidates = torch.stack(
        [rrlib.sample(base, (6, 2), generator, num_inference_steps=20) for _ in range(5)]
    )
    t = torch.zeros(6, dtype=torch.long)
    values = torch.stack([reward(x, t) for x in candidates])
    wanted = candidates[values.argmax(0), torch.arange(6)]
    found = rrlib.best_of(base, (6, 2), reward, 5, stream(3, "candidates"), num_inference_steps=20)
    assert torch.equal(found, wanted)
    one = rrlib.best_of(base, (6, 2), reward, 1, seed=4, num_inference_steps=20)
    assert torch.equal(one, rrlib.sample(base, (6, 2), seed=4, num_inference_steps=20))


def test_the_best_of_eight_is_distributed_as_a_maximum():
    base = gaussian(BASE)
    drawn = rrlib.sample(base, (8000, 1), seed=1, num_inference_steps=60)
    found = rrlib.best_of(base, (4000, 1), lambda x, t: x[:, 0], 8, num_inference_steps=60)
    # The mean of the maximum of eight standard normal numbers (tables: 1.4236).
    assert abs(float(found.mean()) - 1.4236 * float(drawn.std())) < 0.04


@pytest.mark.parametrize(
    ("reward", "n", "message"),
    [
        (exact(FIRST), 0, "n=0 is not allowed: at least 1"),
        (exact(FIRST), 2.0, "n=2.0 is not allowed"),
        (lambda x, t: x, 2, r"reward: values of shape \(3, 2\) are not allowed: one for each of 3"),
        (
            rrlib.RelativeReward(rrlib.WindowReward(2, 1, torch.ones(7)), "score", "x_t"),
            2,
            "reward: 7 diffusion steps are not allowed",
        ),
    ],
)
def test_a_selection_that_cannot_be_is_refused(reward, n, message):
    with pytest.raises(InputError, match=message):
        rrlib.best_of(gaussian(BASE), (3, 2), reward, n, num_inference_steps=5)


class Coupled(nn.Module):
    """A potential in which what is given multiplies what is not: its gradient there varies."""

    def forward(self, x, t):
        return x[:, 0, -1] * x[:, 1:, 0].tanh().sum(1)


def test_what_is_given_does_not_weigh_though_its_gradient_varies():
    """As if the reward had no gradient there at all."""
    first = torch.tensor([[3.0], [-2.0]])
    held = first.repeat_interleave(16, 0)
    plain, told = (
        rrlib.sample_weighted(
            given(gaussian(BASE), held),
            (2, 4, 2),
            rrlib.RelativeReward(network, "score", "x_t"),
            particles=16,
            guidance_scale=2.0,
            keep=hold(held),
            num_inference_steps=10,
            resample_below=0.5,
        )
        for network in (Coupled(), ConditionalReward(Coupled(), 1))
    )
    assert plain.effective.min() < 15  # they do weigh
    for name in ("samples", "weights", "effective"):
        torch.testing.assert_close(getattr(plain, name), getattr(told, name))
