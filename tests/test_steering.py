"""Guided sampling against diffusers' sampler and against experts known in closed form."""

from itertools import pairwise

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn
from torch.testing import assert_close

from rrlib.errors import InputError
from rrlib.method.denoisers import Denoiser, between
from rrlib.method.exact import ExactDifference
from rrlib.method.guidance import denoise, noised_on, sample
from rrlib.method.noise.schedulers import cosine_scheduler
from rrlib.method.noise.schedules import kept_steps
from rrlib.method.rewards import RelativeReward
from rrlib.plans.conditioning import hold
from rrlib.plans.rewards import WindowReward
from rrlib.theory.sde import GaussianMixture, log_ratio
from rrlib.training import stream

STEPS = 20


def mixture(seed: int) -> GaussianMixture:
    generator = stream(seed, 0)
    means = torch.randn(2, 2, generator=generator, dtype=torch.float64)
    roots = torch.randn(2, 2, 2, generator=generator, dtype=torch.float64)
    covariances = 0.2 * roots @ roots.mT + 0.1 * torch.eye(2, dtype=torch.float64)
    return GaussianMixture(torch.tensor([0.3, 0.7], dtype=torch.float64), means, covariances)


BASE, EXPERT = mixture(0), mixture(1)
SCHEDULER = cosine_scheduler(STEPS, clip=False)
START = torch.randn(16, 2, generator=stream(2, 0), dtype=torch.float64)


class Exact(nn.Module):
    """The true relative reward; for means, times the factor that makes scores means."""

    def __init__(self, target: str):
        super().__init__()
        self.target = target

    def forward(self, x, t):
        abar = SCHEDULER.alphas_cumprod.to(x)
        ratio = log_ratio(BASE, EXPERT, x, abar[t])
        if self.target == "score":
            return ratio
        alpha = abar / torch.cat([abar.new_ones(1), abar[:-1]])
        return ratio * ((1 - alpha) / alpha.sqrt())[t]


def path(denoiser: Denoiser, seed: int = 5, **guidance) -> list[torch.Tensor]:
    return [x for _, x in denoise(denoiser, START, stream(seed, 0), **guidance)]


@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
@pytest.mark.parametrize("clip", [False, True])
def test_without_a_reward_each_step_is_that_of_diffusers(prediction, clip):
    scheduler = cosine_scheduler(STEPS, clip)
    scheduler.register_to_config(prediction_type=prediction)
    base = Denoiser(lambda x, t: 1.2 * torch.sin(2 * x + 0.1 * t[:, None]), scheduler)
    x = START.float()
    ours = list(denoise(base, x, torch.Generator().manual_seed(3)))
    assert [t for t, _ in ours] == list(reversed(range(-1, STEPS)))
    generator = torch.Generator().manual_seed(3)
    for step, (_, before), (_, after) in zip(
        reversed(range(STEPS)), ours[:-1], ours[1:], strict=True
    ):
        t = torch.full((len(before),), step)
        theirs = scheduler.step(base.network(before, t), step, before, generator=generator)
        assert_close(after, theirs.prev_sample, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("target", ["score", "mean"])
def test_an_exact_reward_of_weight_one_turns_the_base_into_the_expert(target):
    """The deviation is common to both, so the same random numbers give the same samples."""
    base, expert = BASE.denoiser(SCHEDULER), EXPERT.denoiser(SCHEDULER)
    reward = RelativeReward(Exact(target), target, "x_t")
    guided, theirs, unguided = path(base, reward=reward), path(expert), path(base)
    assert (unguided[-1] - theirs[-1]).abs().max() > 0.5
    for ours, wanted in zip(guided, theirs, strict=True):
        assert_close(ours, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_the_weight_scales_the_step(weight):
    base, reward = BASE.denoiser(SCHEDULER), RelativeReward(Exact("mean"), "mean", "x_t")
    at = path(base)
    guided = path(base, reward=reward, guidance_scale=weight)
    t = torch.full((len(START),), STEPS - 1)
    assert_close(guided[1] - at[1], weight * reward.gradient(START, t), rtol=1e-9, atol=1e-12)
    if weight == 0:
        assert all(torch.equal(a, b) for a, b in zip(at, guided, strict=True))


class ExactAtMean(nn.Module):
    """Two isotropic Gaussians, so that the expert's mean is affine in the base's: its potential.

    The coefficients come from the models themselves, read at two points.
    """

    def __init__(self, base: Denoiser, expert: Denoiser):
        super().__init__()
        t = torch.arange(STEPS)
        zero = torch.zeros(STEPS, 2, dtype=torch.float64)
        mine, other = ([m.mean(zero + at, t) for at in (0, 1)] for m in (base, expert))
        slope = (other[1] - other[0]) / (mine[1] - mine[0])  # d expert's mean / d base's mean
        self.slope, self.offset = slope - 1, other[0] - slope * mine[0]

    def forward(self, x, t):
        return (0.5 * self.slope[t] * x.square() + self.offset[t] * x).sum(1)


def isotropic(mean: float, variance: float) -> Denoiser:
    one = torch.ones(1, dtype=torch.float64)
    unit = torch.eye(2, dtype=torch.float64)[None]
    return GaussianMixture(one, mean * torch.ones_like(unit[0, :1]), variance * unit).denoiser(
        SCHEDULER
    )


def test_a_reward_fitted_at_the_bases_mean_is_applied_there():
    base, expert = isotropic(-0.5, 1.5), isotropic(0.7, 0.2)
    reward = RelativeReward(ExactAtMean(base, expert), "mean", "mu_base")
    wanted = path(expert)
    for place in (None, "mu_base"):
        guided = path(base, reward=reward, place=place)
        for ours, theirs in zip(guided, wanted, strict=True):
            assert_close(ours, theirs, rtol=0, atol=1e-8)
    elsewhere = path(base, reward=reward, place="x_t", force=True)
    assert (elsewhere[-1] - wanted[-1]).abs().max() > 0.01


@pytest.mark.parametrize(("fitted", "asked"), [("x_t", "mu_base"), ("mu_base", "x_t")])
def test_a_reward_fitted_elsewhere_is_refused_unless_told(fitted, asked):
    base, reward = BASE.denoiser(SCHEDULER), RelativeReward(Exact("mean"), "mean", fitted)
    with pytest.raises(InputError, match=rf"^place='{asked}' is not allowed: .* '{fitted}'"):
        denoise(base, START, stream(0, 0), reward=reward, place=asked)
    t = torch.full((len(START),), STEPS - 1)
    point = START if asked == "x_t" else base.mean(START, t)
    moved = path(base, reward=reward, place=asked, force=True)[1] - path(base)[1]
    assert_close(moved, reward.gradient(point, t), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weight", [-0.1, float("nan"), float("inf"), float("-inf")])
def test_a_weight_out_of_range_is_refused_at_the_call(weight):
    base, reward = BASE.denoiser(SCHEDULER), RelativeReward(Exact("mean"), "mean", "x_t")
    with pytest.raises(
        InputError, match=rf"^guidance_scale={weight} is not allowed: a finite number"
    ):
        denoise(base, START, stream(0, 0), reward=reward, guidance_scale=weight)


@pytest.mark.parametrize("weight", [[1.0, 2.0], "1", None, torch.tensor(1.0)], ids=str)
def test_a_weight_that_is_no_number_is_refused_at_the_call(weight):
    base, reward = BASE.denoiser(SCHEDULER), RelativeReward(Exact("mean"), "mean", "x_t")
    with pytest.raises(InputError, match=r"^guidance_scale=.* is not allowed: a finite number"):
        denoise(base, START, stream(0, 0), reward=reward, guidance_scale=weight)


def test_sample_is_the_end_of_denoise_from_fresh_noise():
    base, reward = BASE.denoiser(SCHEDULER), RelativeReward(Exact("score"), "score", "x_t")
    ours = sample(
        base, (7, 2), stream(1, 1), reward=reward, guidance_scale=0.5, dtype=torch.float64
    )
    generator = stream(1, 1)
    start = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    *_, (t, last) = denoise(base, start, generator, reward=reward, guidance_scale=0.5)
    assert t == -1
    assert torch.equal(ours, last)
    single = Denoiser(lambda x, t: x.tanh(), SCHEDULER)
    assert sample(single, (2, 2), stream(1, 1)).dtype == torch.float32


def test_steering_leaves_gradients_as_it_found_them():
    """A generator under no_grad must not switch gradients off for its caller between two steps."""
    reward = RelativeReward(Exact("score"), "score", "x_t")
    for _, x in denoise(BASE.denoiser(SCHEDULER), START, stream(0, 0), reward=reward):
        assert torch.is_grad_enabled()
        assert not x.requires_grad


def test_samples_of_the_base_have_its_moments():
    """The end of the chain, and the start's scale, against the mixture itself."""
    base = isotropic(0.5, 0.3)
    x = sample(base, (20_000, 2), stream(3, 0), dtype=torch.float64)
    # Ancestral sampling in 20 steps is not exact: a coarse bar, far below the standard normal's.
    assert_close(x.mean(0), torch.full((2,), 0.5, dtype=torch.float64), rtol=0, atol=0.03)
    assert_close(x.var(0), torch.full((2,), 0.3, dtype=torch.float64), rtol=0, atol=0.1)


@pytest.mark.lengthy
@pytest.mark.parametrize("again", [0, 2])
def test_steps_that_are_taken_again_have_the_variance_of_the_chain(again):
    """RePaint's resampling against the recursion of a chain whose steps are all linear."""
    model, asked = isotropic(0.0, 0.3), []
    base = Denoiser(lambda x, t: asked.append(t) or model.x0(x, t), SCHEDULER)
    drawn = sample(base, (100_000, 2), stream(3, 0), dtype=torch.float64, resamplings=again)
    assert len(asked) == STEPS + again * (STEPS - 1)  # the last step is taken once
    variance, one, abar = 1.0, torch.ones(1, 2, dtype=torch.float64), SCHEDULER.alphas_cumprod
    for t in reversed(range(STEPS)):
        at = torch.tensor([t])
        slope = float(model.mean(one, at).mean())
        spread = float(model.deviation(at, one).mean())
        kept = float(abar[t] / abar[t - 1]) if t else 1.0
        for _ in range(again if t else 0):
            variance = kept * (slope**2 * variance + spread**2) + 1 - kept
        variance = slope**2 * variance + spread**2
    assert_close(drawn.var(), torch.tensor(variance, dtype=torch.float64), rtol=0.02, atol=0)
    steer = {"reward": ExactDifference(BASE.denoiser(SCHEDULER), EXPERT.denoiser(SCHEDULER))}
    steered = path(BASE.denoiser(SCHEDULER), resamplings=again, **steer)
    assert_close(steered, path(EXPERT.denoiser(SCHEDULER), resamplings=again))


def test_noise_that_takes_a_step_back_is_that_of_the_forward_process():
    model, wide = BASE.denoiser(SCHEDULER), torch.full((200_000, 1), 2.0, dtype=torch.float64)
    abar = SCHEDULER.alphas_cumprod.double()
    for step, before in ((1, 0), (12, 9)):
        kept = abar[step] / abar[before]
        x = noised_on(model, wide, step, before, stream(6, step))
        assert_close(x.mean(), 2 * kept.sqrt(), rtol=0, atol=0.01)
        assert_close(x.var(), 1 - kept, rtol=0.02, atol=0)


def test_steering_until_a_step_leaves_the_last_steps_alone():
    reward = RelativeReward(Exact("mean"), "mean", "x_t")
    base, full, early = (
        path(BASE.denoiser(SCHEDULER), **guidance)
        for guidance in ({}, {"reward": reward}, {"reward": reward, "stop_step": 6})
    )
    steered = STEPS - 6  # t = 19 ... 6
    for k in range(steered + 1):
        assert torch.equal(early[k], full[k])
    assert not torch.allclose(early[steered + 1], full[steered + 1])
    plain = denoise(
        BASE.denoiser(SCHEDULER), START, stream(5, 0), reward=reward, stop_step=STEPS - 1
    )
    assert not torch.allclose([x for _, x in plain][1], base[1])


def test_the_authors_form_moves_x_before_the_mean_is_taken():
    reward = RelativeReward(Exact("mean"), "mean", "x_t")
    model = BASE.denoiser(SCHEDULER)
    found = path(model, reward=reward, apply_to="x_t", guidance_scale=0.7)
    generator = stream(5, 0)
    x = START
    for step in reversed(range(STEPS)):
        t = torch.full((len(x),), step)
        moved = x + 0.7 * reward.gradient(x, t)
        draw = torch.randn(x.shape, generator=generator, dtype=x.dtype)
        x = model.mean(moved, t) + model.deviation(t, x) * draw
        assert_close(found[STEPS - step], x)


def test_the_exact_difference_makes_the_base_the_expert():
    base, expert = (mixture.denoiser(SCHEDULER) for mixture in (BASE, EXPERT))
    steered = path(base, reward=ExactDifference(base, expert))
    assert_close(steered[-1], path(expert)[-1])


def test_what_is_held_is_in_its_place_at_every_step():
    network = nn.Identity()
    model = Denoiser(lambda x, t: 0.5 * network(x), SCHEDULER)
    first = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)
    start = torch.randn(3, 4, 5, generator=stream(0, 0), dtype=torch.float64)
    steps = list(denoise(model, start, stream(1, 0), keep=hold(first)))
    assert torch.equal(steps[0][1], start)
    for _, x in steps[1:]:
        assert torch.equal(x[:, 0, 3:], first)
        assert not (x[:, 1:, 3:] == first[:, None]).any()


@pytest.mark.parametrize(
    ("guidance", "named"),
    [
        ({"stop_step": STEPS}, f"stop_step={STEPS}"),
        ({"stop_step": -1}, "stop_step=-1"),
        ({"resamplings": -1}, "resamplings=-1 is not allowed: at least 0"),
        ({"resamplings": 0.5}, "resamplings=0.5"),
        ({"apply_to": "noise"}, "apply_to='noise'"),
        ({"apply_to": "x_t", "place": "mu_base", "force": True}, "apply_to='x_t'"),
    ],
)
def test_guidance_that_does_not_exist_is_named(guidance, named):
    reward = RelativeReward(Exact("mean"), "mean", "x_t")
    with pytest.raises(InputError, match=named):
        path(BASE.denoiser(SCHEDULER), reward=reward, **guidance)


@pytest.mark.parametrize("clip", [False, True])
def test_fewer_steps_are_those_of_diffusers(clip):
    scheduler = cosine_scheduler(20, clip)
    base = Denoiser(lambda x, t: 1.2 * torch.sin(2 * x + 0.1 * t[:, None]), scheduler)
    kept = kept_steps(20, 5)
    assert kept == [19, 14, 10, 5, 0]
    ours = list(
        denoise(base, START.float(), torch.Generator().manual_seed(3), num_inference_steps=5)
    )
    assert [t for t, _ in ours] == [*kept, -1]
    scheduler.set_timesteps(timesteps=kept)
    generator = torch.Generator().manual_seed(3)
    for (step, x), (_, after) in pairwise(ours):
        t = torch.full((len(x),), step)
        theirs = scheduler.step(base.network(x, t), step, x, generator=generator)
        assert_close(after, theirs.prev_sample, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("target", ["score", "mean"])
def test_an_exact_reward_turns_the_base_into_the_expert_in_fewer_steps_too(target):
    base, expert = BASE.denoiser(SCHEDULER), EXPERT.denoiser(SCHEDULER)
    reward = RelativeReward(Exact(target), target, "x_t")
    guided, theirs = (
        path(base, reward=reward, num_inference_steps=7),
        path(expert, num_inference_steps=7),
    )
    assert len(guided) == 8
    for ours, wanted in zip(guided, theirs, strict=True):
        assert_close(ours, wanted, rtol=0, atol=1e-8)


@pytest.mark.parametrize("denoising", [0, 1, STEPS + 1, -3])
def test_too_few_or_too_many_steps_are_refused(denoising):
    with pytest.raises(
        InputError, match=f"num_inference_steps={denoising} is not allowed: .* 2 to {STEPS}"
    ):
        denoise(BASE.denoiser(SCHEDULER), START, stream(0, 0), num_inference_steps=denoising)


def test_a_schedule_of_one_step_is_visited_whole():
    assert kept_steps(1, 1) == [0]
    with pytest.raises(InputError, match="num_inference_steps=0 is not allowed"):
        kept_steps(1, 0)


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
def test_longer_steps_have_the_deviation_that_the_scheduler_asks_for(variance):
    scheduler = DDPMScheduler(
        num_train_timesteps=20, prediction_type="sample", clip_sample=False, variance_type=variance
    )
    base, kept = Denoiser(lambda x, t: x.sin(), scheduler), kept_steps(20, 5)
    ours = list(
        denoise(base, START.float(), torch.Generator().manual_seed(3), num_inference_steps=5)
    )
    scheduler.set_timesteps(timesteps=kept)
    generator = torch.Generator().manual_seed(3)
    for (step, x), (_, after) in pairwise(ours):
        theirs = scheduler.step(x.sin(), step, x, generator=generator)
        assert_close(after, theirs.prev_sample, rtol=1e-5, atol=2e-5)


def test_a_reward_of_another_schedule_is_refused():
    network = WindowReward(2, 1, torch.ones(STEPS + 5), hidden=(4,))
    reward = RelativeReward(network, "mean", "x_t")
    message = rf"^reward: {STEPS + 5} diffusion steps are not allowed: .* {STEPS}, "
    with pytest.raises(InputError, match=message):
        denoise(BASE.denoiser(SCHEDULER), START, stream(0, 0), reward=reward)


def test_the_exact_difference_reads_the_expert_at_the_bases_levels():
    rows = torch.arange(STEPS).double()

    def continuous(x, t):  # the network of one schedule, asked at the steps of another
        return 0.5 * x + 0.01 * t.to(x)[:, None]

    base = Denoiser(lambda x, t: 0.5 * x, SCHEDULER)
    expert = Denoiser(continuous, cosine_scheduler(2 * STEPS, clip=False))
    found = ExactDifference(base, expert)
    assert found.steps == STEPS and found.expert.schedule.abar == base.schedule.abar
    x, t = torch.zeros(STEPS, 2, dtype=torch.float64), torch.arange(STEPS)
    difference = found.expert.x0(x, t) - base.x0(x, t)
    assert_close(difference[:-1, 0], (0.02 * rows + 0.01)[:-1], rtol=0.05, atol=0.005)
    assert_close(found.gradient(x, t), found.expert.mean(x, t) - base.mean(x, t))


def test_scores_cannot_steer_where_a_step_is_noise_alone():
    table = DDPMScheduler(
        num_train_timesteps=STEPS, rescale_betas_zero_snr=True, prediction_type="sample"
    )
    base = Denoiser(lambda x, t: x.tanh(), table)
    with pytest.raises(InputError, match=r"^scheduler: a last step of noise alone"):
        denoise(base, START, stream(0, 0), reward=RelativeReward(Exact("score"), "score", "x_t"))
    means = RelativeReward(Exact("mean"), "mean", "x_t")
    assert next(denoise(base, START, stream(0, 0), reward=means))[0] == STEPS - 1


def test_what_is_held_is_in_its_place_when_the_authors_form_asks_the_model():
    """The gradient is added to x_t before the mean is computed: what is given must not move."""
    seen = []

    def network(x, t):
        seen.append(x)
        return 0.5 * x

    model = Denoiser(network, SCHEDULER)
    reward = RelativeReward(WindowReward(5, 4, torch.ones(STEPS)).double(), "mean", "x_t")
    first = torch.arange(6.0, dtype=torch.float64).reshape(3, 2)
    start = torch.randn(3, 4, 5, generator=stream(0, 0), dtype=torch.float64)
    options = {"reward": reward, "guidance_scale": 50.0, "apply_to": "x_t"}
    free, kept = (
        list(denoise(model, start, stream(1, 0), keep=keep, **options))[-1][1]
        for keep in (None, hold(first))
    )
    assert len(seen) == 2 * STEPS and not torch.equal(free, kept)
    for x in seen[STEPS:]:
        assert torch.equal(x[:, 0, 3:], first)
    assert not torch.equal(seen[0][:, 0, 3:], start[:, 0, 3:])  # without, it is moved


@pytest.mark.parametrize("stop", [1, 7, STEPS - 1])
def test_the_last_steered_step_is_steered(stop):
    reward = RelativeReward(Exact("mean"), "mean", "x_t")
    model = BASE.denoiser(SCHEDULER)
    steered, plain = path(model, reward=reward, stop_step=stop), path(model, reward=reward)
    alike = [torch.equal(a, b) for a, b in zip(steered, plain, strict=True)]
    assert alike == [True] * (STEPS - stop + 1) + [False] * stop  # the state after step `stop`, too


def test_what_x0_weighs_in_a_step_of_any_length_is_what_its_mean_has_of_it():
    base = Denoiser(lambda x, t: x, cosine_scheduler(STEPS, clip=False))
    zero = torch.zeros((), dtype=torch.float64)
    for t in range(STEPS):
        for before in range(-1, t):
            mean, _ = between(base, zero + 1, zero, t, before)
            weight = base.schedule.weight_of_x0(t, before)
            assert weight == pytest.approx(float(mean), rel=1e-12)
            if before == t - 1:
                assert base.schedule.lengthened(t, before) == 1


def test_in_the_authors_form_a_longer_step_moves_x_t_as_far_as_a_short_one():
    base, expert = BASE.denoiser(SCHEDULER), EXPERT.denoiser(SCHEDULER)
    difference = ExactDifference(base, expert)
    options = {"apply_to": "x_t", "guidance_scale": 0.7, "num_inference_steps": 4}
    steps = list(denoise(base, START, stream(0, 0), reward=difference, **options))
    t, before, draws = STEPS - 1, steps[1][0], stream(0, 0)
    assert before < t - 1
    x = START + 0.7 * difference.gradient(START, torch.full((len(START),), t))
    mean, deviation = between(base, base.x0(x, torch.full((len(x),), t)), x, t, before)
    noise = torch.randn(x.shape, generator=draws, dtype=x.dtype)
    assert_close(steps[1][1], mean + deviation * noise)


def test_a_told_model_keeps_its_tables():
    base = BASE.denoiser(SCHEDULER)
    tables = base.schedule.tables(START)
    for told in (base.told(START), base.told(START).told(2 * START)):
        assert told.schedule.tables(START) is tables
    assert base.condition is None and torch.equal(told.condition, 2 * START)


@pytest.mark.parametrize("apply_to", ["mean", "x_t"])
def test_the_exact_difference_asks_its_base_once_a_step_and_says_the_same(apply_to):
    asked = []

    def model(slope: float) -> Denoiser:
        return Denoiser(lambda x, t: asked.append(slope) or slope * x, SCHEDULER)

    def steered(base: Denoiser, from_base: Denoiser) -> torch.Tensor:
        difference = ExactDifference(from_base, expert)
        return path(base, reward=difference, apply_to=apply_to)[-1]

    base, alike, expert = model(0.5), model(0.5), model(0.4)
    found = steered(base, base)
    counts = asked.count(0.5), asked.count(0.4)
    assert counts == (STEPS if apply_to == "mean" else 2 * STEPS, STEPS)
    assert torch.equal(found, steered(base, alike))
