"""Models that are told a condition: pools keep it, the reward sees it, sampling passes it on."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import rrlib
from rrlib.errors import InputError
from rrlib.method import comparisons
from rrlib.method.networks.calls import same_device
from rrlib.method.pools import Pool
from rrlib.training import stream

SCHEDULER = rrlib.cosine_scheduler(30, clip=False)
SPREAD = 0.3


def told(side: float) -> rrlib.Denoiser:
    """x_0 ~ N(side c, SPREAD) under the condition c, in closed form."""
    abar = SCHEDULER.alphas_cumprod

    def network(x, t, condition):
        a = abar.to(x)[t].reshape(-1, *[1] * (x.ndim - 1))
        mean = side * condition.reshape(len(x), *[1] * (x.ndim - 2), -1)
        return mean + a.sqrt() * SPREAD * (x - a.sqrt() * mean) / (a * SPREAD + 1 - a)

    return rrlib.Denoiser(network, SCHEDULER)


BASE, EXPERT = told(-1.0), told(1.0)


def drawn(n: int, seed: int) -> tuple[tuple, tuple]:
    """Samples of base and expert, [n, 2] each, and their conditions."""
    conditions = tuple(torch.rand(n, 2, generator=stream(seed, k)) * 2 - 1 for k in range(2))
    noise = (SPREAD**0.5 * torch.randn(n, 2, generator=stream(seed, 2 + k)) for k in range(2))
    return tuple(s * c + e for s, c, e in zip((-1, 1), conditions, noise, strict=True)), conditions


def exact(found) -> torch.Tensor:
    """The score difference that belongs to each condition."""
    a = SCHEDULER.alphas_cumprod[found.t][:, None]
    return 2 * a.sqrt() * found.condition / (a * SPREAD + 1 - a)


@pytest.mark.parametrize("data", [True, False])
def test_each_comparison_keeps_what_both_models_were_told(data):
    samples, conditions = drawn(400, 0)
    source = {"data": samples} if data else {"shape": (2,)}
    found = rrlib.compare(BASE, EXPERT, **source, n=600, conditions=conditions)
    assert found.condition.shape == found.x.shape
    pool = found.pool("score", "x_t")
    assert_close(pool.target, exact(found), rtol=1e-3, atol=1e-4)
    rows = {tuple(row.tolist()) for part in conditions for row in part}
    assert {tuple(row.tolist()) for row in found.condition} <= rows
    if data:  # each sample has the condition of its own row
        mine = found.t < 3
        sides = (found.x / found.condition)[mine].median()
        assert mine.sum() > 20 and sides.abs() < 1.5


def coded(n: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers that say which row and side they are of: the base's from 0, the expert's from 200."""
    rows = torch.arange(n, dtype=torch.float32)[:, None]
    return rows, 200 + rows


def test_a_sample_of_data_goes_with_its_own_rows_condition():
    base, expert = (
        rrlib.Denoiser(lambda x, t, c, s=s: s * x + 0 * c, SCHEDULER) for s in (0.5, 0.4)
    )
    found = rrlib.compare(base, expert, coded(), n=3000, conditions=coded())
    early = found.t == 0
    said = (found.x[early] / SCHEDULER.alphas_cumprod[0] ** 0.5).round()
    assert early.sum() > 50 and torch.equal(said, found.condition[early])
    assert (said < 100).any() and (said >= 200).any()


def test_a_run_of_a_model_is_under_conditions_of_its_own_side():
    base, expert = (rrlib.Denoiser(lambda x, t, c, s=s: c + s, SCHEDULER) for s in (0.0, 0.4))
    found = rrlib.compare(base, expert, shape=(1,), n=6000, conditions=coded())
    early = found.t == 0
    moved = found.x[early] / SCHEDULER.alphas_cumprod[0] ** 0.5 - found.condition[early]
    of_expert = moved > 0.2  # where each model's own runs end
    assert moved[of_expert].mean() == pytest.approx(0.4, abs=0.05)
    assert moved[~of_expert].mean() == pytest.approx(0.0, abs=0.05)
    assert (found.condition[early][of_expert] >= 200).all()
    assert (found.condition[early][~of_expert] < 100).all()
    for side in (of_expert, ~of_expert):  # from all over the rows
        assert len(found.condition[early][side].unique()) > 10


def test_a_pool_of_windows_repeats_the_condition():
    x, condition = torch.arange(24.0).reshape(2, 4, 3), torch.tensor([[1.0], [2.0]])
    pool = Pool(x, torch.tensor([0, 5]), x, condition=condition)
    assert pool.cut(2).condition.flatten().tolist() == [1, 1, 2, 2]
    assert torch.equal(pool.to("cpu").condition, condition)


@pytest.fixture(scope="module")
def reward():
    samples, conditions = drawn(4_000, 1)
    found = rrlib.compare(BASE, EXPERT, samples, n=8_000, conditions=conditions)
    return rrlib.RelativeReward.fit(found, steps=600, learning_rate=5e-3)


@pytest.mark.slow
def test_the_reward_of_a_conditional_pair_is_the_log_ratio_under_each_condition(reward):
    held_out, told_held = drawn(1_000, 2)
    again = rrlib.compare(BASE, EXPERT, held_out, n=2_000, seed=1, conditions=told_held)
    assert reward.explained_variance(again).nanmean() > 0.98
    x, t = torch.zeros(2, 2), torch.zeros(2, dtype=torch.long)
    c = torch.tensor([[0.8, 0.0], [-0.8, 0.0]])
    slope = reward.gradient(x, t, c)[:, 0]
    assert slope[0] > 0 > slope[1]  # a reward that does not see c could not


@pytest.mark.slow
def test_steering_under_a_condition_reaches_the_experts_mean(reward):
    c = torch.tensor([[0.6, -0.4]]).expand(2_000, 2)
    for guide in (reward, rrlib.ExactDifference(BASE, EXPERT)):
        steered = rrlib.sample(BASE.told(c), (2_000, 2), seed=1, reward=guide)
        assert_close(steered.mean(0), c[0], rtol=0, atol=0.08)
    plain = rrlib.sample(BASE.told(c), (2_000, 2), seed=1)
    assert_close(plain.mean(0), -c[0], rtol=0, atol=0.05)


def test_plans_under_a_condition_are_fitted_in_windows():
    c = torch.rand(60, 3, generator=stream(3, 0))
    plans = c[:, None] + 0.1 * torch.randn(60, 8, 3, generator=stream(3, 1))
    found = rrlib.compare(BASE, EXPERT, (-plans, plans), n=300, conditions=(c, c))
    short = partial(rrlib.WindowReward, window=2, hidden=(16,))
    reward = rrlib.RelativeReward.fit(found, short, steps=5)
    assert (reward.network.windows, reward.network.context) == ((2, False), 3)
    values = reward(plans, torch.zeros(60, dtype=torch.long), c)
    assert values.shape == (60,) and values.isfinite().all()


class Blind(nn.Module):
    def forward(self, x, t):
        return x.sum(1)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "^condition: none is not allowed: the network's third argument, 'condition'"),
        ({"conditions": torch.zeros(5, 2)}, "^conditions of Tensor is not allowed: two tensors"),
        ({"conditions": (torch.zeros(5, 2), torch.zeros(4, 2))}, "^conditions: 4 rows are not all"),
        ({"conditions": (torch.zeros(5, 2), torch.zeros(5, 3))}, "^conditions of shapes "),
        ({"conditions": (torch.zeros(5, 2), [0] * 5)}, "^conditions: list is not allowed"),
        ({"conditions": (torch.zeros(5, 2), torch.full((5, 2), torch.nan))}, "numbers that"),
    ],
)  # fmt: skip
def test_conditions_that_cannot_be_right_are_refused(asked, message):
    with pytest.raises(InputError, match=message):
        rrlib.compare(BASE, EXPERT, (torch.zeros(5, 2), torch.ones(5, 2)), n=10, **asked)


def test_a_condition_of_another_width_names_the_condition():
    layer = nn.Linear(5, 2)
    model = rrlib.Denoiser(lambda x, t, c: layer(torch.cat([x, c], 1)), SCHEDULER)
    told = (torch.zeros(5, 4), torch.zeros(5, 4))
    with pytest.raises(InputError, match=r"^base: samples of shape \(2,\) under conditions of \(4"):
        rrlib.compare(model, EXPERT, (torch.zeros(5, 2), torch.ones(5, 2)), n=10, conditions=told)


def test_a_third_argument_that_may_be_none_takes_a_condition():
    x, t, c = torch.rand(3, 2), torch.zeros(3, dtype=torch.long), torch.rand(3, 2)

    def network(x, t, class_labels=None, return_dict=True):
        return x if class_labels is None else x + class_labels

    model = rrlib.Denoiser(network, SCHEDULER)
    assert torch.equal(model.predict(x, t), x)
    assert torch.equal(model.told(c).predict(x, t), x + c)
    options = rrlib.Denoiser(lambda x, t, **more: 0.5 * x, SCHEDULER)
    assert torch.equal(options.predict(x, t), 0.5 * x)
    named = rrlib.Denoiser(lambda x, t, *, y: x + y, SCHEDULER)
    with pytest.raises(InputError, match=r"^network: its argument 'y', which must be named"):
        named.told(c).predict(x, t)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("cuda", "cuda:0", True),
        ("cuda:1", "cuda", True),
        ("cuda:0", "cuda:1", False),
        ("cpu", "cuda", False),
        ("cpu", "cpu", True),
    ],
)
def test_a_device_without_its_number_is_whichever_of_its_kind(one, other, same):
    assert same_device(one, torch.device(other)) is same


def test_conditions_elsewhere_are_refused():
    conditions = tuple(torch.zeros(5, 2, device="meta") for _ in range(2))
    with pytest.raises(InputError, match=r"^conditions on meta are not allowed: cpu is needed"):
        rrlib.compare(BASE, EXPERT, shape=(2,), n=10, conditions=conditions)


@pytest.mark.lengthy
def test_labels_are_seen_as_numbers():
    samples, _ = drawn(300, 0)
    labels = tuple(torch.arange(300) % 2 for _ in range(2))
    models = [
        rrlib.Denoiser(lambda x, t, y, s=s: 0.5 * x + s * y[:, None], SCHEDULER) for s in (0, 0.3)
    ]
    found = rrlib.compare(*models, samples, n=1000, conditions=labels)
    assert found.condition.shape == (1000,) and found.condition.dtype == torch.long
    reward = rrlib.RelativeReward.fit(found, steps=200)
    x, t = torch.rand(40, 2), torch.full((40,), 20)
    none, some = (reward.gradient(x, t, torch.full((40,), y)).norm(dim=1).mean() for y in (0, 1))
    assert some > 5 * none  # they differ under the second label alone


def test_networks_without_a_place_for_it_are_refused():
    x, t, c = torch.zeros(3, 2), torch.zeros(3, dtype=torch.long), torch.zeros(3, 2)
    plain = rrlib.Denoiser(lambda x, t: x, SCHEDULER)
    with pytest.raises(InputError, match=r"^condition: a network of two arguments"):
        plain.told(c).x0(x, t)
    with pytest.raises(InputError, match=r"^condition of 2 rows is not allowed for 3 samples"):
        BASE.told(c[:2]).x0(x, t)
    samples, conditions = drawn(50, 0)
    found = rrlib.compare(BASE, EXPERT, samples, n=60, conditions=conditions)
    with pytest.raises(InputError, match=r"^network: one of two arguments is not allowed"):
        rrlib.RelativeReward.fit(found, Blind(), steps=1)
    reward = rrlib.RelativeReward.fit(found, steps=1)
    for wrong in (None, torch.zeros(3, 1)):
        with pytest.raises(InputError, match=r"^condition: .* is not allowed: \[3, 2\] is needed"):
            reward(x, t, wrong)


def test_what_is_given_of_a_plan_is_a_condition_that_stands_in_x():
    """First observations: the same comparisons as models that hold them, row by row."""
    data = (
        torch.rand(40, 4, 3, generator=stream(5, 0)),
        torch.rand(40, 4, 3, generator=stream(5, 1)),
    )
    models = [rrlib.Denoiser(lambda x, t, a=a: a * x.cumsum(1), SCHEDULER) for a in (0.3, 0.4)]
    found = comparisons.algorithm1(*models, *data, size=30, seed=0, condition=rrlib.first_given(2))
    first = found.x[:, 0, 1:]
    for name, model in zip(("base", "expert"), models, strict=True):
        asked = rrlib.given(model, first).x0(found.x, found.t)
        assert torch.equal(getattr(found, name), asked)


# Estimates: the log ratio of N(c, S) and N(-c, S) is 2 c x / S, of each sample under its own c.

WAYS = {  # and how far 30 steps are from the whole
    "elbo": (partial(rrlib.elbo_difference, probes=64), 0.02),
    "path": (partial(rrlib.path_difference, probes=64), 0.15),
    "ode": (rrlib.ode_difference, 0.03),
    "line": (partial(rrlib.line_integral, reference=torch.zeros(2)), 0.02),
}


@pytest.mark.lengthy
@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("batch", [256, 12])
def test_estimates_are_of_each_sample_under_its_own_condition(name, batch):
    (x, _), (c, _) = drawn(7, 5)
    whole = 2 * (c * x).sum(1) / SPREAD
    way, share = WAYS[name]
    found = way(BASE.told(c), EXPERT.told(c), x, batch=batch).value
    assert_close(found, whole, atol=0.08, rtol=share)
    (one,) = way(BASE.told(c[3:4]), EXPERT.told(c[3:4]), x[3:4]).value
    assert_close(found[3], one, atol=0.08, rtol=0.05)
    with pytest.raises(InputError, match="base: a condition of 3 rows is not allowed for 7 sam"):
        way(BASE.told(c[:3]), EXPERT.told(c[:3]), x)


@pytest.mark.lengthy
@pytest.mark.parametrize("name", WAYS)
def test_estimates_of_plans_whose_start_is_given_are_those_of_single_ones(name):
    """Each plan has another first observation; it was told one at a time before."""

    def planner(side: float) -> rrlib.Denoiser:
        def network(x, t, given):
            return 0.5 * x + side * x[:, :1].tanh()

        return rrlib.Denoiser(network, SCHEDULER)

    plans, pair = torch.randn(5, 4, 3, generator=stream(0, "plans")), (planner(0.1), planner(0.3))
    way = WAYS[name][0]
    asked = {"reference": torch.zeros(4, 3)} if name == "line" else {}

    def found(x, batch=256):
        return way(*(rrlib.given(model, x[:, 0, 1:]) for model in pair), x, batch=batch, **asked)

    together, parts = found(plans), found(plans, batch=70)
    alone = torch.cat([found(x).value for x in plans.split(1)])
    for value in (together.value, parts.value):
        assert_close(value, alone, atol=0.5, rtol=0.1)
    assert (alone[:, None] - alone).abs().max() > 2


class Exact(nn.Module):
    """The log ratio under a condition, 7 too low."""

    def forward(self, x, t, condition):
        a = SCHEDULER.alphas_cumprod.to(x)[t]
        return 2 * a.sqrt() * (condition * x).sum(1) / (a * SPREAD + 1 - a) - 7


@pytest.mark.lengthy
def test_a_reward_of_a_condition_has_its_level():
    (x, _), (c, _) = drawn(60, 6)
    reward = rrlib.RelativeReward(Exact(), "score", "x_t")
    for batch in (256, 25):
        found = rrlib.level(reward, BASE.told(c), EXPERT.told(c), x, probes=8, batch=batch)
        assert_close(found.value, torch.tensor(7.0), atol=0.1, rtol=0)


def test_jacobians_are_those_under_each_ones_condition():
    def model(side: float) -> rrlib.Denoiser:
        return rrlib.Denoiser(lambda x, t, c: (side * c * x).sin(), SCHEDULER)

    (x, _), (c, _) = drawn(4, 7)
    base, expert = model(1.0), model(3.0)
    for place in ("x_t", "mu_base"):
        found = rrlib.difference_jacobians(base.told(c), expert.told(c), x, 9, place)
        for k in range(4):
            pair = (m.told(c[k : k + 1]) for m in (base, expert))
            alone = rrlib.difference_jacobians(*pair, x[k : k + 1], 9, place)
            assert_close(found[k], alone[0])
    with pytest.raises(InputError, match="base: a condition of 4 rows is not allowed for 2 sam"):
        rrlib.difference_jacobians(base.told(c), expert.told(c), x[:2], 9, "x_t")


def test_each_sample_has_particles_under_its_own_condition():
    """The product p1^(1 - w) p2^w at w = 2 is N(3 c, S)."""
    c = torch.tensor([[0.5, -0.2], [-0.4, 0.3], [0.1, 0.6]])
    rewards = rrlib.RelativeReward(Exact(), "score", "x_t"), rrlib.ExactDifference(BASE, EXPERT)
    for reward in rewards:
        options = {"particles": 2_000, "guidance_scale": 2.0}
        found = rrlib.sample_weighted(BASE.told(c), (3, 2), reward, **options)
        means = (found.weights[..., None] * found.samples).sum(1)
        assert_close(means.float(), 3 * c, atol=0.12, rtol=0.05)
        again = BASE.told(c.repeat_interleave(2_000, 0))  # one row for each particle
        assert torch.equal(
            rrlib.sample_weighted(again, (3, 2), reward, **options).samples, found.samples
        )


def test_the_best_of_several_is_chosen_under_its_condition():
    c = torch.tensor([[0.5, -0.2], [-0.4, 0.3]])
    reward = rrlib.RelativeReward(Exact(), "score", "x_t")
    generator = stream(0, "candidates")
    candidates = torch.stack([rrlib.sample(BASE.told(c), (2, 2), generator) for _ in range(5)])
    best = (candidates * c).sum(-1).argmax(0)
    wanted = candidates[best, torch.arange(2)]
    for way in (reward, lambda x, t, told: (x * told).sum(1), lambda x, t: (x * c).sum(1)):
        found = rrlib.best_of(BASE.told(c), (2, 2), way, 5, stream(0, "candidates"))
        assert torch.equal(found, wanted)
