"""Extraction against hand-written loops and two Gaussians, whose relative reward is known."""

import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn
from torch.testing import assert_close

from rrlib.errors import InputError
from rrlib.estimators import discriminator
from rrlib.method import comparisons, extraction
from rrlib.method.comparisons import Comparisons
from rrlib.method.denoisers import Denoiser
from rrlib.method.noise.schedulers import cosine_scheduler
from rrlib.method.pools import Pool
from rrlib.method.rewards import RelativeReward
from rrlib.plans.conditioning import ends_given, first_given
from rrlib.plans.rewards import WindowReward
from rrlib.theory.sde import GaussianMixture, log_ratio
from rrlib.training import stream

STEPS = 20
TARGETS, PLACES = ("score", "mean"), ("x_t", "mu_base")


def gaussian(mean: tuple[float, float], variance: float = 0.5) -> GaussianMixture:
    centre = torch.tensor([mean], dtype=torch.float64)
    covariance = variance * torch.eye(2, dtype=torch.float64)[None]
    return GaussianMixture(torch.ones(1, dtype=torch.float64), centre, covariance)


def pair() -> tuple[Denoiser, Denoiser]:
    """Base around (-1, 0), expert around (1, 0)."""
    scheduler = cosine_scheduler(STEPS, clip=False)
    return gaussian((-1, 0)).denoiser(scheduler), gaussian((1, 0)).denoiser(scheduler)


def plan_pair() -> tuple[Denoiser, Denoiser]:
    """Two smooth networks on plans [B, 6, 2], which any step may tell apart."""
    scheduler = cosine_scheduler(STEPS)
    mix = torch.randn(2, 2, generator=stream(8, 0), dtype=torch.float64)
    base = Denoiser(lambda x, t: (x @ mix).tanh(), scheduler)
    return base, Denoiser(lambda x, t: (x @ mix.T + 0.01 * t[:, None, None]).sin(), scheduler)


def marked_pair() -> tuple[Denoiser, Denoiser]:
    """As `plan_pair`, of networks that are told which steps are given."""
    scheduler = cosine_scheduler(STEPS)
    mix = torch.randn(2, 2, generator=stream(8, 0), dtype=torch.float64)

    def network(function, mix):
        def predict(x, t, marks):
            # Along the plan, so that what is given is felt at all steps.
            return function(x.cumsum(1) @ mix + 0.3 * marks[..., None] + 0.01 * t[:, None, None])

        return predict

    functions = ((torch.tanh, mix), (torch.sin, mix.T))
    base, expert = (Denoiser(network(*pair), scheduler) for pair in functions)
    return base, expert


def ask(base: Denoiser, expert: Denoiser, x, t, target: str, place: str) -> Pool:
    return comparisons.compare_at(base, expert, x, t).pool(target, place)


def plans(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 6, 2, generator=stream(seed, 0), dtype=torch.float64)


def reward(window: int = 1, strided: bool = False) -> WindowReward:
    torch.manual_seed(0)
    unit = torch.linspace(0.5, 2, STEPS)
    return WindowReward(2, window, unit, hidden=(16, 8), strided=strided).double()


def random_pool(n: int = 7) -> Pool:
    t = torch.randint(STEPS, (n,), generator=stream(4, 0))
    return Pool(plans(n, 1), t, plans(n, 2))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("target", TARGETS)
def test_the_target_points_from_base_to_expert(target, place):
    base, expert = pair()
    x = torch.randn(STEPS, 2, generator=stream(0, 0), dtype=torch.float64)
    difference = ask(base, expert, x, torch.arange(STEPS), target, place).target
    assert (difference[:, 0] > 0).all()  # the expert lies at +x of the base
    assert_close(difference[:, 1], torch.zeros(STEPS, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("target", TARGETS)
def test_the_target_of_two_gaussians_is_its_closed_form(target):
    base, expert = pair()
    t = torch.arange(STEPS)
    x = torch.randn(STEPS, 2, generator=stream(0, 0), dtype=torch.float64)
    difference = ask(base, expert, x, t, target, "x_t").target
    abar = base.scheduler.alphas_cumprod.double()
    closed = (
        abar.sqrt() * 2 / (0.5 * abar + 1 - abar)
    )  # score of the expert less the base's, along x
    if target == "mean":
        before = torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])
        closed = closed * (1 - abar / before) / (abar / before).sqrt()
    assert_close(difference[:, 0], closed, rtol=1e-8, atol=1e-10)


def test_swapping_the_models_flips_the_target():
    base, expert = plan_pair()
    x, t = plans(STEPS, 0), torch.arange(STEPS)
    for target in TARGETS:
        there = ask(base, expert, x, t, target, "x_t").target
        back = ask(expert, base, x, t, target, "x_t").target
        assert_close(there, -back)
        assert there.abs().max() > 0.1


def test_the_place_is_x_t_or_the_mean_of_the_base():
    base, expert = plan_pair()
    x, t = plans(STEPS, 0), torch.arange(STEPS)
    for target in TARGETS:
        at, moved = (ask(base, expert, x, t, target, place) for place in PLACES)
        assert torch.equal(at.x, x)
        assert_close(moved.x, base.mean(x, t))
        assert (moved.x - expert.mean(x, t)).abs().max() > 0.1
        assert torch.equal(moved.target, at.target)
        assert torch.equal(moved.t, t) and torch.equal(at.t, t)


def test_targets_are_differences_of_the_models_own_readings():
    base, expert = plan_pair()
    x, t = plans(STEPS, 0), torch.arange(STEPS)
    for target in TARGETS:
        difference = ask(base, expert, x, t, target, "x_t").target
        assert_close(difference, getattr(expert, target)(x, t) - getattr(base, target)(x, t))


def test_a_comparison_asks_each_model_once_and_keeps_no_graph():
    base, expert = plan_pair()
    x, t = plans(STEPS, 0).requires_grad_(), torch.arange(STEPS)
    calls = []

    def counted(model: Denoiser, name: str) -> Denoiser:
        def network(*inputs):
            calls.append(name)
            return model.network(*inputs)

        return Denoiser(network, model.scheduler)

    found = comparisons.compare_at(counted(base, "base"), counted(expert, "expert"), x, t)
    assert sorted(calls) == ["base", "expert"]
    assert torch.equal(found.x, x) and torch.equal(found.t, t)
    assert torch.equal(found.base, base.x0(x, t)) and torch.equal(found.expert, expert.x0(x, t))
    assert not found.base.requires_grad and not found.expert.requires_grad


def test_reading_needs_no_network():
    """Only the schedule of the model counts, so a blank one will do."""
    base, expert = plan_pair()
    found = comparisons.compare_at(base, expert, plans(STEPS, 0), torch.arange(STEPS))

    def network(x, t):
        raise AssertionError("a model was asked again")

    blank = Denoiser(network, base.scheduler)
    for target in TARGETS:
        for place in PLACES:
            ours = replace(found, model=blank).pool(target, place)
            theirs = replace(found, model=expert).pool(target, place)
            assert torch.equal(ours.x, theirs.x) and torch.equal(ours.target, theirs.target)


def test_comparisons_without_a_model_say_so():
    base, expert = plan_pair()
    found = comparisons.compare_at(base, expert, plans(STEPS, 0), torch.arange(STEPS))
    with pytest.raises(InputError, match="pairs: comparisons without their model"):
        replace(found, model=None).pool("score", "x_t")


@pytest.mark.parametrize(
    ("target", "place", "message"),
    [
        ("means", "x_t", "target='means' is not allowed: 'score' or 'mean' is needed."),
        ("mean", "mu", "place='mu' is not allowed: 'x_t' or 'mu_base' is needed."),
    ],
)
def test_another_target_or_place_is_named(target, place, message):
    base, expert = pair()
    found = comparisons.compare_at(base, expert, torch.zeros(1, 2), torch.tensor([0]))
    with pytest.raises(InputError) as caught:
        found.pool(target, place)
    assert str(caught.value) == message


def test_half_of_the_points_are_of_each_data_set_and_t_is_uniform():
    base, _ = pair()
    n = 8001
    generator = stream(0, 0)
    x0 = comparisons.drawn(torch.full((10, 2), -50.0), torch.full((3, 2), 50.0), n, generator)
    assert x0.shape == (n, 2)
    assert (x0[:4001] == -50).all() and (x0[4001:] == 50).all()
    x_t, t = comparisons.noised(base, x0, generator)
    shares = torch.bincount(t, minlength=STEPS) / n
    assert len(shares) == STEPS
    assert (shares - 1 / STEPS).abs().max() < 6 * math.sqrt(1 / STEPS / n)
    # Both sources see all t: otherwise a t would know base or expert alone.
    for side in (t[:4001], t[4001:]):
        assert torch.bincount(side, minlength=STEPS).min() > 0.3 * n / STEPS
    assert torch.equal((x_t > 0)[t < STEPS // 2], (x0 > 0)[t < STEPS // 2])


def test_every_sample_is_drawn():
    data = torch.arange(5.0)[:, None].expand(-1, 2)
    x0 = comparisons.drawn(data, -data - 1, 2000, stream(0, 1))
    counts = torch.bincount(x0[:, 0].long() + 5)
    assert counts.shape == (10,) and counts.min() > 120  # 200 expected, six deviations less


def test_noised_is_the_forward_process_at_each_samples_own_t():
    base, _ = pair()
    x0 = plans(50, 1)
    x_t, t = comparisons.noised(base, x0, stream(3, 0))
    generator = stream(3, 0)
    assert torch.equal(t, torch.randint(STEPS, (50,), generator=generator))
    draw = torch.randn(x0.shape, generator=generator, dtype=torch.float64)
    for i in range(50):
        abar = base.scheduler.alphas_cumprod[t[i]].double()
        literal = abar.sqrt() * x0[i] + (1 - abar).sqrt() * draw[i]
        assert_close(x_t[i], literal, rtol=1e-6, atol=1e-6)  # diffusers' tables are float32


def literal_draws(base: Denoiser, data, size: int, seed: int, batch: int):
    """x_0, x_t and t, one after another, as Algorithm 1's pool draws them batch by batch."""
    for start in range(0, size, batch):
        n = min(batch, size - start)
        generator = stream(seed, f"pool {start}")
        chosen = torch.randint(len(data[0]), (n - n // 2,), generator=generator)
        others = torch.randint(len(data[1]), (n // 2,), generator=generator)
        t = torch.randint(STEPS, (n,), generator=generator)
        draw = torch.randn(n, 6, 2, generator=generator, dtype=torch.float64)
        x0 = torch.cat([data[0][chosen], data[1][others]])
        for i in range(n):
            abar = base.scheduler.alphas_cumprod[t[i]].double()
            yield x0[i], (abar.sqrt() * x0[i] + (1 - abar).sqrt() * draw[i])[None], t[i : i + 1]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("target", TARGETS)
def test_algorithm1_is_the_literal_comparison_batch_by_batch(target, place):
    base, expert = plan_pair()
    data = plans(9, 3).tanh(), plans(5, 4).tanh()
    found = comparisons.algorithm1(base, expert, *data, size=23, seed=6, batch=8)
    pool = found.pool(target, place)
    rows = []
    for _, x_t, t in literal_draws(base, data, 23, 6, 8):
        at = x_t if place == "x_t" else base.mean(x_t, t)
        mine, other = (getattr(model, target)(x_t, t) for model in (base, expert))
        rows.append((x_t, t, base.x0(x_t, t), expert.x0(x_t, t), at, other - mine))
    x_t, t, mine, other, at, difference = (torch.cat(c) for c in zip(*rows, strict=True))
    assert len(pool) == 23
    assert torch.equal(pool.t, t) and torch.equal(found.t, t)
    loose = {"rtol": 1e-6, "atol": 1e-6}  # diffusers noises with float32 tables
    assert_close(found.x, x_t, **loose)
    assert_close(found.base, mine, **loose)
    assert_close(found.expert, other, **loose)
    assert_close(pool.x, at, **loose)
    assert_close(pool.target, difference, rtol=1e-5, atol=1e-5)
    assert not pool.target.requires_grad


def test_algorithm1_gives_both_models_the_ends_of_each_plan():
    """Both are asked about x_t with x_0's own last number at both ends, which are marked."""
    base, expert = marked_pair()
    data = plans(9, 3).tanh(), plans(5, 4).tanh()  # as normalised plans, within [-1, 1]
    found = comparisons.algorithm1(
        base, expert, *data, size=23, seed=6, batch=8, condition=ends_given(1)
    )
    rows = []
    for x0, x_t, t in literal_draws(base, data, 23, 6, 8):
        seen, marks = x_t.clone(), torch.zeros(1, 6, dtype=torch.bool)
        answers = []
        for step in (0, 5):
            seen[0, step, 1], marks[0, step] = x0[step, 1], True
        for model in (base, expert):
            answer = model.network(seen, t, marks).clamp(-1, 1)
            answer[0, 0, 1], answer[0, 5, 1] = x0[0, 1], x0[5, 1]
            answers.append(answer)
        rows.append((x_t, t, *answers))
    x_t, t, mine, other = (torch.cat(column) for column in zip(*rows, strict=True))
    assert torch.equal(found.t, t)
    for ours, literal in ((found.x, x_t), (found.base, mine), (found.expert, other)):
        assert_close(ours, literal, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.base[:, [0, 5], 1], found.expert[:, [0, 5], 1])
    assert (found.base - found.expert).abs()[:, [0, 5], 0].max() > 0.1  # actions are not given


def test_algorithm1_of_planners_holds_the_first_observation_and_gives_it_to_both():
    base, expert = marked_pair()
    data = plans(9, 3).tanh(), plans(5, 4).tanh()
    found = comparisons.algorithm1(
        base, expert, *data, size=23, seed=6, batch=8, condition=first_given(1)
    )
    for i, (x0, x_t, t) in enumerate(literal_draws(base, data, 23, 6, 8)):
        marks = torch.zeros(1, 6, dtype=torch.bool)
        x_t[0, 0, 1], marks[0, 0] = x0[0, 1], True  # the observation, not the action
        assert_close(found.x[i : i + 1], x_t, rtol=1e-6, atol=1e-6)
        for model, ours in ((base, found.base), (expert, found.expert)):
            answer = model.network(x_t, t, marks).clamp(-1, 1)
            answer[0, 0, 1] = x0[0, 1]
            assert_close(ours[i : i + 1], answer, rtol=1e-5, atol=1e-6)


def test_algorithm1_depends_on_the_seed_alone():
    base, expert = plan_pair()

    def found(seed):
        data = plans(9, 3).tanh(), plans(5, 4).tanh()
        return comparisons.algorithm1(base, expert, *data, size=10, seed=seed)

    assert torch.equal(found(1).x, found(1).x)
    assert not torch.equal(found(1).x, found(2).x)


@pytest.mark.parametrize("window", [1, 3])
def test_loss_is_the_double_loop_over_samples_and_coordinates(window):
    network, pool = reward(window), random_pool()
    total, step = 0.0, 1e-6
    for i in range(len(pool)):
        for j in range(6):
            for k in range(2):
                shift = torch.zeros_like(pool.x[i : i + 1])
                shift[0, j, k] = step
                t = pool.t[i : i + 1]
                ends = [network(pool.x[i : i + 1] + s * shift, t).detach() for s in (1, -1)]
                total += ((ends[0] - ends[1]) / 2 / step - pool.target[i, j, k]).square()
    ours = extraction.loss(network, pool.x, pool.t, pool.target)
    assert_close(ours, total[0] / len(pool), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("target", TARGETS)
def test_literal_loss_is_the_loss_of_the_pool_of_the_same_draws(target, place):
    base, expert = plan_pair()
    network, data = reward(3), (plans(9, 3).tanh(), plans(5, 4).tanh())
    found = comparisons.algorithm1(base, expert, *data, size=8, seed=6, batch=8)
    pool = found.pool(target, place)
    literal = extraction.literal_loss(
        network, base, expert, *data, 8, stream(6, "pool 0"), target, place
    )
    assert_close(literal, extraction.loss(network, pool.x, pool.t, pool.target))
    gradients = torch.autograd.grad(literal, list(network.g.parameters())[:-1])
    assert all(g.abs().sum() > 0 for g in gradients)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("window", [1, 2, 3, 6])
def test_cutting_multiplies_the_loss_by_the_number_of_windows(window, strided):
    """Whole plan: mean over N of sum over m windows of |g'/m - target|^2.

    Cut: mean over N m of |g' - m target|^2, which is m^2 / m = m times as much.
    """
    network, pool, count = reward(window, strided), random_pool(), 6 // window
    cut = pool.cut(window, strided)
    assert len(cut) == 7 * count and cut.x.shape[1:] == (window, 2)
    whole = extraction.loss(network, pool.x, pool.t, pool.target)
    windows = extraction.loss(network, cut.x, cut.t, cut.target)
    assert_close(windows, count * whole)
    parameters = list(network.g.parameters())[:-1]  # the last bias has no say in a gradient
    theirs, ours = (torch.autograd.grad(value, parameters) for value in (whole, windows))
    for a, b in zip(theirs, ours, strict=True):
        assert_close(b, count * a)
        assert a.abs().max() > 1e-6


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(("window", "average"), [(6, 2), (6, 3), (6, 6), (3, 3), (2, 1)])
def test_averaging_a_pool_changes_the_loss_by_a_constant(window, average, strided):
    """Against the reward that averages for itself, on whole windows, at two sets of weights."""
    pool, differences = random_pool().cut(window, strided), []
    averaged = pool.average(average)
    assert averaged.x.shape == (len(pool), window // average, 2)
    assert torch.equal(averaged.t, pool.t)
    for seed in (0, 1):
        torch.manual_seed(seed)
        shape = (2, window, torch.linspace(0.5, 2, STEPS), (16, 8), strided)
        whole = WindowReward(*shape, average=average).double()
        part = WindowReward(2, window // average, *shape[2:]).double()
        part.load_state_dict(whole.state_dict())
        values = [
            extraction.loss(network, p.x, p.t, p.target)
            for network, p in ((whole, pool), (part, averaged))
        ]
        differences.append(values[0] - values[1])
        gradients = [
            torch.autograd.grad(value, list(network.g.parameters())[:-1])
            for value, network in zip(values, (whole, part), strict=True)
        ]
        for ours, theirs in zip(*gradients, strict=True):
            assert_close(ours, theirs)
    assert_close(*differences)
    assert (differences[0] > 0.1) == (average > 1)


def test_cut_windows_are_contiguous_and_keep_their_t():
    pool = random_pool(2)
    cut = pool.cut(3)
    assert_close(cut.x, torch.stack([pool.x[i, s : s + 3] for i in (0, 1) for s in (0, 3)]))
    targets = torch.stack([pool.target[i, s : s + 3] for i in (0, 1) for s in (0, 3)])
    assert_close(cut.target, 2 * targets)
    assert cut.t.tolist() == [int(pool.t[0])] * 2 + [int(pool.t[1])] * 2


def test_cut_strided_windows_take_every_second_or_third_step():
    pool = random_pool(2)
    for window, every in ((3, 2), (2, 3)):
        cut = pool.cut(window, strided=True)
        literal = [[part[i, s::every] for i in (0, 1) for s in range(every)]
                   for part in (pool.x, pool.target)]  # fmt: skip
        assert_close(cut.x, torch.stack(literal[0]))
        assert_close(cut.target, every * torch.stack(literal[1]))
        assert cut.t.tolist() == [int(pool.t[0])] * every + [int(pool.t[1])] * every


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("window", [0, 4, 5, 7])
def test_cut_refuses_a_window_that_does_not_divide_the_horizon(window, strided):
    with pytest.raises(InputError, match=rf"^window={window} is not allowed: a divisor .* 6 "):
        random_pool().cut(window, strided)


def test_scale_is_the_root_mean_square_at_each_t():
    pool = random_pool(40)
    pool = Pool(pool.x, pool.t.clamp(max=STEPS - 3), pool.target * (1 + pool.t[:, None, None]))
    scale = pool.scale(STEPS)
    for t in range(STEPS):
        entries = pool.target[pool.t == t]
        literal = entries.square().mean().sqrt() if len(entries) else torch.tensor(0.0)
        assert_close(scale[t], literal.double())
    assert (scale[-2:] == 0).all()


def test_scale_is_nothing_where_the_models_agree():
    pool = random_pool(40)
    agree = pool.t < STEPS // 2
    target = torch.where(agree[:, None, None], 0.0, pool.target)
    scale = Pool(pool.x, pool.t, target).scale(STEPS)
    assert (scale[: STEPS // 2] == 0).all()
    assert (scale[pool.t[~agree]] > 0.1).all()


def test_steps_weigh_the_inverse_of_their_scale_and_nothing_where_they_say_nothing():
    scale = torch.tensor([0.0, 2.0, 0.5, 1e-7, 1.0, 0.0, 0.25])
    weights = extraction.step_weights(scale)
    assert torch.equal(weights[[1, 2, 4, 6]], torch.tensor([0.5, 2.0, 1.0, 4.0]))
    assert weights[0] == weights[5] == 0
    assert 0 < weights[3] < 1  # agreement but for rounding: the inverse would be ten million


@pytest.mark.parametrize("few", [1, 15])
def test_agreement_but_for_rounding_does_not_become_what_is_usual(few):
    """Were it in the median, most steps of a long warm-up would set the measure."""
    scale = torch.ones(STEPS)
    scale[:few] = 1e-8
    weights = extraction.step_weights(scale)
    assert (weights[:few] < 0.1).all() and (weights[few:] == 1).all()


def test_scales_are_compared_in_the_networks_units():
    """A target that fades as its unit does is all there."""
    unit = torch.logspace(0, -8, STEPS)
    inverse = (3 * unit).reciprocal()
    assert torch.equal(extraction.step_weights(3 * unit, unit), inverse)
    assert extraction.step_weights(3 * unit)[-1] < 0.1 * inverse[-1]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_targets_that_are_not_finite_are_named(bad):
    scale = torch.ones(STEPS)
    scale[4] = bad
    with pytest.raises(InputError, match=rf"^pool: a target of {bad} at t = 4 is not allowed: "):
        extraction.step_weights(scale)


def agreeing(steps: int, size: float, seed: int) -> Pool:
    """Target 1 along both axes, but `size` at the first `steps` steps."""
    generator = stream(seed, "agreeing")
    x = torch.randn(4000, 2, generator=generator)
    t = torch.randint(STEPS, (4000,), generator=generator)
    return Pool(x, t, torch.where(t < steps, size, 1.0)[:, None].expand(-1, 2).contiguous())


def explained_at_the_others(pool: Pool, fresh: Pool) -> torch.Tensor:
    torch.manual_seed(0)
    network = WindowReward(2, 1, torch.ones(STEPS), hidden=(32, 16))
    options = {"steps": 300, "batch": 128, "learning_rate": 3e-3, "seed": 0}
    for _ in extraction.fit(network, pool, **options):
        pass
    return extraction.explained(network, fresh, STEPS)


@pytest.mark.lengthy
@pytest.mark.parametrize(("steps", "size"), [(5, 0.0), (12, 1e-8)])
def test_steps_at_which_the_models_agree_spoil_no_fit(steps, size):
    whole = agreeing(steps, size, 0)
    differ = whole.t >= steps
    without = Pool(whole.x[differ], whole.t[differ], whole.target[differ])
    fresh = agreeing(steps, size, 1)
    found, wanted = (explained_at_the_others(pool, fresh) for pool in (whole, without))
    assert wanted[steps:].min() > 0.99
    assert_close(found[steps:], wanted[steps:], rtol=0, atol=0.005)
    assert found[:steps].isnan().all() == (size == 0)


def test_a_pair_without_any_difference_is_refused_before_the_fit():
    pool = random_pool()
    nothing = Pool(pool.x, pool.t, torch.zeros_like(pool.target))
    with pytest.raises(InputError, match=r"^pool: targets that are all 0 are not allowed: two mod"):
        extraction.fit(reward(), nothing, steps=5, batch=4, learning_rate=1e-3, seed=0)


def test_explained_says_nothing_where_there_is_nothing_to_explain():
    pool = random_pool(40)
    target = torch.where(pool.t[:, None, None] < 8, 0.0, pool.x)
    found = extraction.explained(
        lambda x, t: x.square().sum((1, 2)) / 2, Pool(pool.x, pool.t, target), STEPS
    )
    seen = torch.bincount(pool.t, minlength=STEPS) > 0
    assert found[:8].isnan().all() and seen[:8].any()
    assert_close(found[8:][seen[8:]], torch.ones_like(found[8:][seen[8:]]))


@pytest.mark.parametrize("batch", [3, 4096])
def test_explained_is_one_for_the_exact_gradient_and_zero_for_none(batch):
    pool = random_pool(40)
    t = pool.t.clamp(max=STEPS - 2)
    pool = Pool(pool.x, t, (1.0 + t[:, None, None]) * pool.x)
    seen = torch.bincount(pool.t, minlength=STEPS) > 0
    for function, share in (
        (lambda x, t: 0.5 * (1.0 + t) * x.square().sum((1, 2)), 1.0),
        (lambda x, t: 0 * x.sum((1, 2)), 0.0),
        (lambda x, t: 0.25 * (1.0 + t) * x.square().sum((1, 2)), 0.75),  # 1 - (1 - 1/2)^2
        (lambda x, t: -0.5 * (1.0 + t) * x.square().sum((1, 2)), -3.0),  # a flipped sign
    ):
        result = extraction.explained(function, pool, STEPS, batch)
        assert_close(result[seen], torch.full_like(result[seen], share))
        assert result[~seen].isnan().all() and not seen.all()


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_fit_recovers_the_log_ratio_of_two_gaussians(target):
    """Equal covariances: the log ratio is linear, and grows towards the expert."""
    base, expert = pair()
    data = [gaussian((side, 0)).sample(2000, stream(1, 0)) for side in (-1.0, 1.0)]
    pools = [
        comparisons.algorithm1(base, expert, *data, size=4000, seed=seed).pool(target, "x_t")
        for seed in (0, 1)
    ]
    torch.manual_seed(0)
    network = WindowReward(2, 1, extraction.units(base, target), hidden=(32, 16)).double()
    for _ in extraction.fit(network, pools[0], steps=1500, batch=128, learning_rate=5e-3, seed=0):
        pass
    assert extraction.explained(network, pools[1], STEPS).min() > 0.98
    x, t = torch.zeros(STEPS, 2, dtype=torch.float64), torch.arange(STEPS)
    gradient = RelativeReward(network, target, "x_t").gradient(x, t)
    closed = ask(base, expert, x, t, target, "x_t").target
    assert_close(gradient / closed[:, :1], torch.tensor([[1.0, 0.0]]).expand(STEPS, 2).double(),
                 rtol=0, atol=0.15)  # fmt: skip


def test_the_loss_of_a_fit_weighs_each_t_by_its_targets_scale():
    """With g = 0 the weighed loss is the mean of |target / scale|^2: one for each entry."""
    pool, network = random_pool(40), reward(6)
    pool = Pool(pool.x, pool.t, pool.target * (2.0 + pool.t[:, None, None]))
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    progress = extraction.fit(network, pool, steps=1, batch=20_000, learning_rate=1e-3, seed=0)
    assert float(next(progress).loss) / pool.target[0].numel() == pytest.approx(1, abs=0.05)


def test_a_fit_compares_scales_in_its_networks_units():
    """Targets that fade with the unit over eight decades count alike at every t."""
    network, pool = reward(6), random_pool(400)
    network.unit.copy_(torch.logspace(0, -8, STEPS))
    faded = pool.target.sign() * network.unit[pool.t][:, None, None]
    for parameter in network.parameters():
        nn.init.zeros_(parameter)
    pool = Pool(pool.x, pool.t, faded)
    progress = extraction.fit(network, pool, steps=1, batch=2000, learning_rate=1e-3, seed=0)
    assert float(next(progress).loss) / pool.target[0].numel() == pytest.approx(1, abs=1e-6)


def test_a_fit_passes_on_what_it_is_told(monkeypatch, tmp_path):
    passed = {}
    monkeypatch.setattr(extraction, "train", lambda network, loss, **rest: passed.update(rest))
    told = {"steps": 7, "learning_rate": 0.3, "seed": 5, "checkpoint": tmp_path / "a.safetensors"}
    extraction.fit(reward(6), random_pool(), batch=4, **told)
    about = passed.pop("about")
    assert passed == told and about["batch"] == 4 and about["comparisons"]


@pytest.mark.parametrize("target", TARGETS)
def test_in_units_the_difference_of_unit_gaussians_is_the_same_at_every_t(target):
    """Their score difference is sqrt(abar_t) times that of the means, here 2."""
    scheduler = cosine_scheduler(STEPS, clip=False)
    base, expert = (gaussian((side, 0), 1.0).denoiser(scheduler) for side in (-1, 1))
    x, t = torch.ones(STEPS, 2, dtype=torch.float64), torch.arange(STEPS)
    difference = ask(base, expert, x, t, target, "x_t").target[:, 0]
    units = extraction.units(base, target)
    assert_close(difference / units, torch.full_like(difference, 2), rtol=1e-4, atol=0)


@pytest.mark.parametrize("target", TARGETS)
def test_in_displacement_units_a_difference_of_x0_is_the_same_at_every_t(target):
    base, expert = plan_pair()
    found = comparisons.compare_at(base, expert, plans(STEPS, 0), torch.arange(STEPS))
    pool = found.pool(target, "x_t")
    unit = extraction.displacement_units(base, target).double()
    expected = (found.expert - found.base) * unit[:, None, None]
    assert_close(pool.target, expected, rtol=1e-4, atol=1e-6)
    assert (unit > 0).all()


def other_length() -> DDPMScheduler:
    return cosine_scheduler(STEPS + 1, clip=False)


def other_values() -> DDPMScheduler:
    return DDPMScheduler(STEPS, prediction_type="sample", clip_sample=False)


@pytest.mark.parametrize("other", [other_length, other_values])
def test_a_network_of_whole_steps_is_refused_at_the_levels_of_another_schedule(other):
    base, expert = pair()
    expert = gaussian((1, 0)).denoiser(other())
    data = torch.zeros(4, 2, dtype=torch.float64)
    with pytest.raises(InputError, match=r"^network: whole steps only are not allowed"):
        comparisons.algorithm1(base, expert, data, data, size=4, seed=0)
    same = pair()[1]  # an equal schedule, though not the same object
    assert comparisons.aligned(base, same) is same


@pytest.mark.parametrize("clipped", ["base", "expert"])
def test_one_clip_and_no_other_is_refused(clipped):
    models = {
        name: Denoiser(lambda x, t: x.tanh(), cosine_scheduler(STEPS, clip=name == clipped))
        for name in ("base", "expert")
    }
    with pytest.raises(InputError, match=r"^expert: (no clip|a clip at 1) of its x0 is not "):
        comparisons.aligned(*models.values())


def clipping_pair() -> tuple[Denoiser, Denoiser]:
    scheduler = cosine_scheduler(STEPS)
    return (Denoiser(lambda x, t: x.tanh(), scheduler), Denoiser(lambda x, t: x.sin(), scheduler))


GOOD = torch.rand(10, 6, 2, generator=stream(0, "good"))


def spoilt(value: float) -> torch.Tensor:
    data = GOOD.clone()
    data[3, 2, 1] = value
    return data


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"size": 0}, r"size=0 is not allowed: at least 1"),
        ({"size": 2.5}, r"size=2.5 is not allowed: at least 1 is needed, a whole number"),
        ({"batch": 0}, r"batch=0 is not allowed: at least 1"),
        ({"base_data": GOOD[:0]}, r"base_data of shape \(0, 6, 2\) is not allowed"),
        ({"expert_data": GOOD.numpy()}, r"expert_data of ndarray is not allowed"),
        ({"base_data": GOOD.long()}, r"base_data of torch.int64 is not allowed"),
        ({"expert_data": GOOD.double()}, r"expert_data of torch.float64 is not .* base's torch"),
        ({"expert_data": GOOD[:, :4]}, r"expert_data: samples of shape \(4, 2\) .* \(6, 2\) is n"),
        ({"base_data": spoilt(float("nan"))}, r"base_data: numbers that are not finite are not"),
        ({"expert_data": spoilt(float("inf"))}, r"expert_data: numbers that are not finite are"),
        ({"base_data": 3 * GOOD}, r"base_data: \d\d% of its numbers beyond 1, where the mod"),
        ({"condition": ends_given(3)}, r"observation=3 is not allowed for data of shape \(\d, 6"),
    ],
)  # fmt: skip
def test_what_algorithm1_cannot_use_is_named(call, message):
    call = {"base_data": GOOD, "expert_data": GOOD, "size": 4, "seed": 0, **call}
    with pytest.raises(InputError, match="^" + message):
        comparisons.algorithm1(*clipping_pair(), **call)


def test_a_few_numbers_beyond_the_clip_are_allowed():
    """New data in the range of old: 1 of 120 here."""
    pair = clipping_pair()
    comparisons.algorithm1(*pair, spoilt(1.1), GOOD, size=4, seed=0)


@pytest.mark.parametrize("observation", [0, 3, -1])
def test_planners_are_given_an_observation_that_there_is(observation):
    with pytest.raises(InputError, match=rf"^observation={observation} is not allowed for data"):
        comparisons.algorithm1(
            *marked_pair(), GOOD, GOOD, size=4, seed=0, condition=first_given(observation)
        )


@pytest.mark.parametrize("side", ["base", "expert"])
def test_a_model_that_answers_nan_is_stopped_at_once_and_named(side):
    asked = []

    def broken(x, t):
        asked.append(len(x))
        return torch.where((t < 9)[:, None, None], x, torch.nan)

    scheduler = cosine_scheduler(STEPS)
    models = {"base": lambda x, t: x.tanh(), "expert": lambda x, t: x.sin(), side: broken}
    pair = [Denoiser(models[name], scheduler) for name in ("base", "expert")]
    message = rf"^{side}: numbers that are not finite at t=(9|1\d) are not allowed"
    with pytest.raises(InputError, match=message):
        comparisons.algorithm1(*pair, GOOD, GOOD, size=1000, seed=0, batch=50)
    assert asked == [50]


def test_a_pair_without_any_difference_is_refused_by_both_algorithms():
    base = clipping_pair()[0]
    for run in (
        lambda: comparisons.algorithm1(base, base, GOOD, GOOD, size=4, seed=0),
        lambda: comparisons.algorithm2(base, base, (6, 2), runs=2, seed=0),
    ):
        with pytest.raises(InputError, match=r"^expert: no difference from the base at any of "):
            run()


@pytest.mark.parametrize("shape", [(), 6, (6, 0), (6, -2), (6.0, 2), "six"])
def test_algorithm2_names_a_shape_that_is_none(shape):
    with pytest.raises(InputError, match=r"^shape=.* is not allowed: the sides of one sample"):
        comparisons.algorithm2(*clipping_pair(), shape, runs=2, seed=0)


# What suits what


def test_a_pool_knows_what_it_holds():
    base, expert = clipping_pair()
    pool = comparisons.algorithm1(base, expert, GOOD, GOOD, size=4, seed=0).pool(*KIND)
    assert pool.kind == KIND and pool.windows is None
    assert pool.cut(3, True).kind == KIND and pool.cut(3, True).windows == (3, True)
    assert pool.cut(6).average(2).windows == (3, False)
    assert pool.cut(6).to("cpu").windows == (6, False)


KIND = ("mean", "mu_base")


def test_tensors_in_a_pool_do_not_stop_a_comparison_of_pools():
    pool = random_pool()
    assert pool == pool and pool != random_pool()


def fitted(network: WindowReward, pool: Pool, **options) -> None:
    options = {"steps": 1, "batch": 4, "learning_rate": 1e-3, "seed": 0, **options}
    for _ in extraction.fit(network, pool, **options):
        pass


def test_a_pool_of_other_windows_than_the_networks_is_refused():
    with pytest.raises(InputError, match=r"^pool: windows of 6 contiguous steps .* of 3 contig"):
        fitted(reward(3), random_pool().cut(6))
    with pytest.raises(InputError, match=r"^pool: windows of 3 strided steps .* of 3 contiguous"):
        fitted(reward(3), random_pool().cut(3, strided=True))
    fitted(reward(3), random_pool().cut(3))
    fitted(reward(3), random_pool())  # whole plans: the same fit, at a higher price


def test_a_pool_that_does_not_suit_the_network_is_refused_before_the_first_step():
    pool = random_pool()
    late = Pool(pool.x, pool.t + STEPS, pool.target)
    for bad, message in (
        (Pool(pool.x.float(), pool.t, pool.target.float()), "pool of torch.float32 is not allowed"),
        (late, r"pool: t=\d\d is not allowed: the network has units for 20 steps"),
        (Pool(pool.x * torch.nan, pool.t, pool.target), "pool: points that are not finite"),
    ):
        with pytest.raises(InputError, match="^" + message):
            extraction.fit(reward(), bad, steps=5, batch=4, learning_rate=1e-3, seed=0)
    with pytest.raises(InputError, match=r"^batch=0 is not allowed"):
        fitted(reward(), pool, batch=0)


def test_a_reward_is_held_to_what_its_network_was_fitted_to():
    network, pool = reward(), random_pool()
    fitted(network, Pool(pool.x, pool.t, pool.target, KIND))
    RelativeReward(network, *KIND)
    with pytest.raises(InputError, match=r"^target='score' is not allowed: .* target='mean'"):
        RelativeReward(network, "score", "mu_base")
    with pytest.raises(InputError, match=r"^place='x_t' is not allowed: .* place='mu_base'"):
        RelativeReward(network, "mean", "x_t")


# Algorithm 2


def test_algorithm2_compares_on_the_models_own_samples():
    base, expert = pair()
    found = comparisons.algorithm2(base, expert, (2,), runs=4000, seed=3, dtype=torch.float64)
    assert len(found.t) == 4000 * STEPS
    assert found.t.bincount().tolist() == [4000] * STEPS
    # The models are compared on the same points, whichever went there.
    again = comparisons.compare_at(base, expert, found.x, found.t)
    assert_close(found.base, again.base)
    assert_close(found.expert, again.expert)
    # Near the data, half of the points are the base's and half the expert's.
    first = found.x[found.t == 0][:, 0]
    assert_close(first[:2000].mean(), torch.tensor(-1.0).double(), rtol=0, atol=0.1)
    assert_close(first[2000:].mean(), torch.tensor(1.0).double(), rtol=0, atol=0.1)


def test_algorithm2_is_the_literal_sampling_and_asks_each_model_once_a_step():
    asked = {"base": 0, "expert": 0}

    def counted(model: Denoiser, name: str) -> Denoiser:
        def network(x, t):
            asked[name] += 1
            return model.network(x, t)

        return Denoiser(network, model.scheduler)

    base, expert = plan_pair()
    pair = counted(base, "base"), counted(expert, "expert")
    found = comparisons.algorithm2(*pair, (6, 2), runs=6, seed=3, dtype=torch.float64)
    assert asked == {"base": 2 * STEPS, "expert": 2 * STEPS}
    points: list[Comparisons] = []
    for name, model in (("base", base), ("expert", expert)):
        generator = stream(3, f"runs of the {name}")
        x = torch.randn(3, 6, 2, generator=generator, dtype=torch.float64)
        for step in range(STEPS - 1, -1, -1):
            t = torch.full((3,), step)
            points.append(Comparisons(x, t, base.x0(x, t), expert.x0(x, t), base))
            draw = torch.randn(3, 6, 2, generator=generator, dtype=torch.float64)
            x = model.mean(x, t) + model.deviation(t, x) * draw
    for name in ("x", "t", "base", "expert"):
        assert_close(getattr(found, name), torch.cat([getattr(point, name) for point in points]))


@pytest.mark.parametrize(
    "variances", [("fixed_small", "fixed_large"), ("fixed_large", "fixed_small")]
)
def test_each_sides_runs_are_sampled_with_its_own_deviation(variances):
    """One of the two asks for the larger of DDPM's deviations: its own runs spread further."""
    schedulers = [
        DDPMScheduler.from_config(cosine_scheduler(STEPS, False).config, variance_type=kind)
        for kind in variances
    ]
    base, expert = (Denoiser(m.network, s) for m, s in zip(plan_pair(), schedulers, strict=True))
    found = comparisons.algorithm2(base, expert, (6, 2), runs=2, seed=3, dtype=torch.float64)
    for place, (name, model) in enumerate((("base", base), ("expert", expert))):
        generator = stream(3, f"runs of the {name}")
        x = torch.randn(1, 6, 2, generator=generator, dtype=torch.float64)
        for row, step in enumerate(range(STEPS - 1, -1, -1)):
            assert_close(found.x[place * STEPS + row], x[0])
            t = torch.full((1,), step)
            draw = torch.randn(1, 6, 2, generator=generator, dtype=torch.float64)
            x = model.mean(x, t) + model.deviation(t, x) * draw


@pytest.mark.parametrize("seed", [0, 5])
def test_no_two_draws_of_the_algorithms_are_one(seed):
    """Batches of Algorithm 1, and the two sides of Algorithm 2, begin from noise of their own."""
    base, expert = plan_pair()
    one = torch.zeros(1, 6, 2, dtype=torch.float64)  # the only sample: what differs is drawn
    found = comparisons.algorithm1(base, expert, one, one, size=24, seed=seed, batch=4)
    noise = found.x / base.rest(found.t, found.x).sqrt()
    assert len(noise.flatten(1).unique(dim=0)) == 24
    runs = comparisons.algorithm2(base, expert, (6, 2), runs=8, seed=seed, dtype=torch.float64)
    starts = runs.x[runs.t == STEPS - 1]
    assert len(starts) == len(starts.flatten(1).unique(dim=0)) == 8


@pytest.mark.parametrize("runs", [0, 1, 3, -2])
def test_algorithm2_names_a_number_of_runs_that_cannot_be_halved(runs):
    base = gaussian((0, 0)).denoiser(cosine_scheduler(STEPS, False))
    with pytest.raises(InputError, match=f"runs={runs} is not allowed: an even number"):
        comparisons.algorithm2(base, base, (2,), runs=runs, seed=0)


# The rival


def test_the_discriminators_loss_is_the_mean_cross_entropy():
    base, _ = plan_pair()
    network, data = reward(3), (plans(9, 3), plans(5, 4))
    ours = discriminator.discriminator_loss(network, base, *data, 7, stream(6, 0))
    generator = stream(6, 0)
    x_t, t = comparisons.noised(base, comparisons.drawn(*data, 7, generator), generator)
    share = network(x_t, t).sigmoid()  # of "expert"; the last 3 of 7 are the expert's
    literal = -torch.cat([(1 - share[:4]).log(), share[4:].log()]).mean()
    assert_close(ours, literal, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("width", [1, 2])
def test_the_discriminator_sees_the_first_observation_as_it_is(width):
    """Held as the planner holds it, and nothing else is: not noised, not the action."""
    base, _ = plan_pair()
    data, seen = (plans(9, 3), plans(5, 4)), []

    def network(x, t):
        seen.append(x)
        return x.sum((1, 2))

    discriminator.discriminator_loss(
        network, base, *data, 7, stream(6, 0), condition=first_given(width)
    )
    generator = stream(6, 0)
    x0 = comparisons.drawn(*data, 7, generator)
    x_t, _ = comparisons.noised(base, x0, generator)
    assert torch.equal(seen[0][:, 0, -width:], x0[:, 0, -width:])
    assert torch.equal(seen[0][:, 1:], x_t[:, 1:])
    assert torch.equal(seen[0][:, 0, :-width], x_t[:, 0, :-width])


def test_the_log_ratio_has_the_least_cross_entropy():
    base, _ = pair()
    data = (
        gaussian((-1, 0)).sample(50_000, stream(0, 0)),
        gaussian((1, 0)).sample(50_000, stream(0, 1)),
    )
    abar = base.scheduler.alphas_cumprod.double()

    def truth(x, t):
        return log_ratio(gaussian((-1, 0)), gaussian((1, 0)), x, abar[t])

    def entropy(logit):
        return float(discriminator.discriminator_loss(logit, base, *data, 100_000, stream(1, 0)))

    best = entropy(truth)
    for worse in (lambda x, t: 1.2 * truth(x, t), lambda x, t: 0.8 * truth(x, t),
                  lambda x, t: truth(x, t) + 0.3, lambda x, t: -truth(x, t)):  # fmt: skip
        assert entropy(worse) > best
