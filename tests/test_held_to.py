"""What a fit and its reward are held to: their comparisons, their schedule, the steps they saw."""

from functools import partial
from itertools import islice

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch import nn
from torch.testing import assert_close

import rrlib
from rrlib.errors import InputError
from rrlib.estimators import discriminator
from rrlib.method import extraction
from rrlib.method.checks.resumed import numbers_of
from rrlib.method.comparisons import Comparisons
from rrlib.plans import scoring
from rrlib.plans.rewards import ConditionalReward, ContextReward, WindowReward
from rrlib.training import ROUNDING, stream, train

SCHEDULER = rrlib.cosine_scheduler(30, clip=False)
SMALL = partial(WindowReward, window=1, hidden=(4,))


def linear(shift: float) -> rrlib.Denoiser:
    """A model whose x0 is half of x_t, and a shift."""
    return rrlib.Denoiser(lambda x, t: 0.5 * x + shift, SCHEDULER)


BASE, EXPERT = linear(0.0), linear(0.2)


def pairs(base=BASE, expert=EXPERT, seed: int = 0, n: int = 200) -> rrlib.Comparisons:
    data = (torch.randn(50, 2, generator=stream(side, "data")) for side in (0, 1))
    return rrlib.compare(base, expert, tuple(data), n=n, seed=seed)


PAIRS = pairs()

# Checkpoints


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> str:
    """What a finished fit leaves behind: its checkpoint of step 500, by a path that is a text."""
    path = str(tmp_path_factory.mktemp("fit") / "checkpoint.safetensors")
    rrlib.RelativeReward.fit(PAIRS, SMALL, steps=501, batch=4, checkpoint=path)
    return path


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("other", "options", "message"),
    [
        (pairs(EXPERT, BASE), {}, "other comparisons;"),
        (pairs(seed=1), {}, "other comparisons;"),
        (pairs(n=100), {}, "other comparisons;"),
        (PAIRS, {"target": "mean"}, "target='score', other comparisons;"),
        (PAIRS, {"place": "mu_base"}, "place='x_t', other comparisons;"),
        (PAIRS, {"batch": 5}, "batch=4;"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused(finished, other, options, message):
    with pytest.raises(InputError, match=f"it is of a run with {message} another name"):
        options = {"steps": 501, "batch": 4, "checkpoint": finished} | options
        rrlib.RelativeReward.fit(other, SMALL, **options)


@pytest.mark.lengthy
def test_the_same_fit_goes_on_from_its_checkpoint(finished):
    alone = rrlib.RelativeReward.fit(PAIRS, SMALL, steps=501, batch=4)
    again = rrlib.RelativeReward.fit(PAIRS, SMALL, steps=501, batch=4, checkpoint=finished)
    for name, value in alone.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value)
    pool = PAIRS.pool("score", "x_t")
    network, options = SMALL(width=2, unit=alone.network.unit), {"batch": 4, "seed": 0}
    run = extraction.fit(
        network, pool, steps=501, learning_rate=1e-3, checkpoint=finished, **options
    )
    assert next(run).step == 501


def test_numbers_that_tell_pools_apart_leave_room_for_rounding():
    pool = PAIRS.pool("score", "x_t")
    unit = extraction.units(BASE, "score")
    mine = numbers_of(pool, unit)

    def apart(other: list[float]) -> bool:
        return any(abs(a - b) > ROUNDING for a, b in zip(mine, other, strict=True))

    noise = 1 + 1e-4 * torch.randn(pool.target.shape, generator=stream(0, "noise"))
    rounded = extraction.Pool(pool.x * noise, pool.t, pool.target * noise)
    assert not apart(numbers_of(rounded, unit))
    assert apart(numbers_of(extraction.Pool(pool.x, pool.t, -pool.target), unit))
    assert apart(numbers_of(extraction.Pool(pool.x, pool.t, 1.1 * pool.target), unit))
    assert apart(numbers_of(extraction.Pool(pool.x, pool.t.flip(0), pool.target), unit))
    assert apart(numbers_of(pool, extraction.displacement_units(BASE, "score")))


# Networks


class Column(nn.Module):
    """A reward network that answers [B, 1], or [B]."""

    def __init__(self, squeezed: bool):
        super().__init__()
        self.squeezed, self.layer = squeezed, nn.Linear(2, 1)

    def forward(self, x, t):
        out = self.layer(x).tanh()
        return out[:, 0] if self.squeezed else out


def test_a_network_that_answers_a_column_is_refused():
    x, t = torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)
    shape = r"^network: an answer of shape \({0}, 1\) to {0} points is not allowed"
    with pytest.raises(InputError, match=shape.format(16)):
        rrlib.RelativeReward.fit(PAIRS, Column(False), steps=2, batch=16)
    wrong, right = (rrlib.RelativeReward(Column(k), "score", "x_t") for k in (False, True))
    with pytest.raises(InputError, match=shape.format(3)):
        wrong(x, t)
    with pytest.raises(InputError, match=shape.format(3)):
        rrlib.compose([right, wrong], [1, 1])(x, t)
    with pytest.raises(InputError, match=shape.format(200)):
        wrong.explained_variance(PAIRS)
    data = torch.randn(9, 2), torch.randn(9, 2)
    with pytest.raises(InputError, match=shape.format(6)):
        discriminator.discriminator_loss(Column(False), BASE, *data, 6, stream(0, "draws"))
    assert right(x, t).shape == (3,)
    assert rrlib.RelativeReward.fit(PAIRS, Column(True), steps=2, batch=16)(x, t).shape == (3,)


@pytest.mark.lengthy
def test_a_fitted_and_a_loaded_network_learn_on(tmp_path):
    """The models' difference is 0.2 sqrt(abar) / (1 - abar) at all x: a linear reward has it."""
    options = {"batch": 64, "learning_rate": 1e-2}
    first = rrlib.RelativeReward.fit(PAIRS, partial(WindowReward, window=1), steps=3, **options)
    first.save(tmp_path / "reward.safetensors")
    loaded = rrlib.load_reward(tmp_path / "reward.safetensors")
    for reward in (first, loaded):
        before = float(reward.explained_variance(PAIRS).nanmean())
        again = rrlib.RelativeReward.fit(PAIRS, reward.network, steps=150, **options)
        assert again.network is reward.network and not again.network.training
        assert not any(parameter.requires_grad for parameter in again.network.parameters())
        assert before < 0.8 and float(again.explained_variance(PAIRS).nanmean()) > 0.95


def test_what_is_frozen_in_part_stays_so_and_what_is_frozen_whole_is_refused_by_the_bare_fit():
    network = SMALL(width=2, unit=extraction.units(BASE, "score"))
    network.g[0].requires_grad_(False)
    before = network.g[0].weight.clone(), network.g[2].weight.clone()
    rrlib.RelativeReward.fit(PAIRS, network, steps=2, batch=16)
    assert torch.equal(before[0], network.g[0].weight)
    assert not torch.equal(before[1], network.g[2].weight)
    settings = {"steps": 1, "batch": 4, "learning_rate": 1e-3, "seed": 0}
    with pytest.raises(InputError, match=r"^network: none but frozen parameters are not allowed"):
        extraction.fit(network, PAIRS.pool("score", "x_t"), **settings)


def test_a_fit_leaves_the_callers_random_numbers_alone():
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    reward = rrlib.RelativeReward.fit(PAIRS, SMALL, steps=1, batch=4, seed=3, learning_rate=0.0)
    assert torch.equal(torch.rand(3), wanted)
    torch.manual_seed(3)  # what the weights are drawn by
    mine = SMALL(width=2, unit=extraction.units(BASE, "score"))
    assert torch.equal(reward.network.g[0].weight, mine.g[0].weight)


def test_a_network_that_gives_an_observation_is_refused_under_a_condition():
    plans = tuple(torch.randn(40, 8, 4, generator=stream(k, "plans")) for k in (0, 1))
    told = tuple(torch.randn(40, 3, generator=stream(k, "told")) for k in (0, 1))
    models = [
        rrlib.Denoiser(lambda x, t, c, a=a: 0.5 * x + a * c[:, None, :1], SCHEDULER)
        for a in (0.1, 0.4)
    ]
    found = rrlib.compare(*models, plans, n=40, conditions=told)
    start = partial(rrlib.StartReward, horizon=8, observation=2, positions=())
    with pytest.raises(InputError, match=r"^network: StartReward is not allowed for models that"):
        rrlib.RelativeReward.fit(found, start, steps=1)
    unit = torch.ones(30)
    inner = ConditionalReward(WindowReward(7, 8, unit), observation=2)
    with pytest.raises(InputError, match=r"^network: ConditionalReward is not allowed"):
        ContextReward(inner, context=3)


# Precision and gradients


def test_data_that_require_gradients_and_the_callers_grad_mode_change_nothing():
    data = [torch.randn(50, 2, generator=stream(side, "data")) for side in (0, 1)]
    wanted = rrlib.RelativeReward.fit(PAIRS, SMALL, steps=3, batch=16)
    grown = rrlib.compare(BASE, EXPERT, tuple(x.requires_grad_() for x in data), n=200)
    assert not any(part.requires_grad for part in grown.tensors().values())
    with torch.no_grad():
        found = rrlib.RelativeReward.fit(grown, SMALL, steps=3, batch=16)
        assert_close(found.explained_variance(grown), wanted.explained_variance(PAIRS))
        assert not torch.is_grad_enabled()
    for name, value in wanted.network.state_dict().items():
        assert torch.equal(found.network.state_dict()[name], value)
    owned = Comparisons(
        **{name: part.clone() for name, part in grown.tensors().items()}, model=BASE
    )
    owned.expert.requires_grad_()
    rrlib.RelativeReward.fit(owned, SMALL, steps=2, batch=16)


def test_pairs_in_double_precision_are_fitted_in_theirs_and_explained_by_any():
    data = (torch.randn(50, 2, generator=stream(side, "data")) for side in (0, 1))
    wide = rrlib.compare(BASE, EXPERT, tuple(x.double() for x in data), n=200)
    double = rrlib.RelativeReward.fit(wide, steps=3, batch=16)
    assert next(double.network.parameters()).dtype == torch.float64
    single = rrlib.RelativeReward.fit(PAIRS, steps=3, batch=16)
    assert next(single.network.parameters()).dtype == torch.float32
    assert_close(single.explained_variance(wide), single.explained_variance(wide.to("cpu")))
    narrow = Comparisons(
        **{k: v if k == "t" else v.float() for k, v in wide.tensors().items()}, model=BASE
    )
    for reward in (single, double):
        options = {"check_dtype": False, "rtol": 1e-3, "atol": 1e-4}
        found = reward.explained_variance(wide)
        assert_close(found, reward.explained_variance(narrow), **options)
    with pytest.raises(InputError, match=r"^pairs of torch.float64 is not allowed: the network's"):
        rrlib.RelativeReward.fit(wide, SMALL(width=2, unit=torch.ones(30)), steps=1)


# Schedules


def test_a_reward_says_the_levels_that_it_was_fitted_on():
    reward = rrlib.RelativeReward.fit(PAIRS, SMALL, steps=1)
    abar = SCHEDULER.alphas_cumprod.double()
    assert set(reward.about) == {"log_snr"}
    assert_close(
        torch.tensor(reward.about["log_snr"]).double(), (abar / (1 - abar)).log(), atol=1e-3, rtol=0
    )


def test_a_reward_of_another_schedule_of_as_many_steps_is_refused(tmp_path):
    other = DDPMScheduler(30, beta_end=0.3, clip_sample=False)
    base, expert = (rrlib.Denoiser(model.network, other) for model in (BASE, EXPERT))
    mine = rrlib.RelativeReward.fit(PAIRS, SMALL, steps=1)
    theirs = rrlib.RelativeReward.fit(pairs(base, expert), SMALL, steps=1)
    mine.save(tmp_path / "a.safetensors", {"data": "mine"})
    rrlib.save_rewards(tmp_path / "b.safetensors", {"one": mine}, {"one": {"data": "mine"}})
    loaded = [rrlib.load_reward(tmp_path / f"{name}.safetensors") for name in "ab"]
    assert loaded[0].about == loaded[1].about == {**mine.about, "data": "mine"}
    x = torch.randn(6, 2, generator=stream(0, "anchors"))
    for reward in (mine, *loaded, rrlib.compose([mine, mine], [1, 0.5])):
        for call in (
            lambda reward: rrlib.sample(base, (2, 2), reward=reward),
            lambda reward: rrlib.best_of(base, (2, 2), reward, 2),
            lambda reward: rrlib.level(reward, base, expert, x, steps=5),
            lambda reward: reward.explained_variance(pairs(base, expert)),
            lambda reward: rrlib.compose([reward, theirs], [1, 1]),
        ):
            with pytest.raises(InputError, match=r"^reward: other levels of noise \(at t = \d+ a"):
                call(reward)
        assert rrlib.sample(BASE, (2, 2), reward=reward).shape == (2, 2)
        assert reward.explained_variance(PAIRS).shape == (30,)
    with pytest.raises(InputError, match=r"^reward: other levels of noise"):
        rrlib.sample(base, (2, 2), reward=rrlib.ExactDifference(BASE, EXPERT))
    # A reward that says nothing is held to the number of steps, as before.
    silent = rrlib.RelativeReward(mine.network, "score", "x_t")
    assert rrlib.sample(base, (2, 2), reward=silent).shape == (2, 2)


@pytest.mark.parametrize("steps", [20, 50])
def test_pairs_of_more_or_fewer_steps_are_refused(steps):
    reward = rrlib.RelativeReward.fit(PAIRS, SMALL, steps=1)
    scheduler = rrlib.cosine_scheduler(steps, clip=False)
    other = [rrlib.Denoiser(model.network, scheduler) for model in (BASE, EXPERT)]
    with pytest.raises(InputError, match=f"30 diffusion steps .* than the pairs' of {steps}"):
        reward.explained_variance(pairs(*other))
    with pytest.raises(InputError, match=f"^network: units for 30 steps .* {steps}, as the pairs'"):
        rrlib.RelativeReward.fit(pairs(*other), reward.network, steps=1)


# The steps that both models know


@pytest.fixture(scope="module")
def late() -> tuple[rrlib.RelativeReward, list[rrlib.Denoiser], rrlib.Comparisons]:
    """A reward of a base whose first levels have less noise than any that the expert knows."""
    base = rrlib.Denoiser(BASE.network, rrlib.cosine_scheduler(40, clip=False))
    noisy = DDPMScheduler(50, beta_start=0.05, beta_end=0.3, clip_sample=False)
    expert = rrlib.Denoiser(lambda x, t: 0.5 * x, noisy)
    found = pairs(base, expert)
    return rrlib.RelativeReward.fit(found, SMALL, steps=1), [base, expert], found


def test_a_reward_that_was_not_fitted_at_t_0_is_not_read_there(late, tmp_path):
    reward, (base, expert), found = late
    first, last = expert.at(base).schedule.span
    assert found.span == (first, last) and 0 < first <= int(found.t.min())
    assert reward.about["span"] == [first, last]
    reward.save(tmp_path / "reward.safetensors")
    loaded = rrlib.load_reward(tmp_path / "reward.safetensors")
    whole = rrlib.RelativeReward(
        reward.network, "score", "x_t", {"log_snr": reward.about["log_snr"]}
    )
    x = torch.zeros(3, 4, 2)
    layout = rrlib.PlanLayout(rrlib.Normaliser(*np.float32([[-1, -1], [1, 1]])), 1, 1)
    for one in (reward, loaded, rrlib.compose([whole, reward], [1, 1])):
        for call in (
            lambda: one.per_step(x[..., :1], x[..., 1:]),  # noqa: B023
            lambda: one.score([np.zeros((4, 2))], layout=layout),  # noqa: B023
            lambda: scoring.score(one, [np.zeros((4, 2))], layout=layout),  # noqa: B023
            lambda: rrlib.best_of(base, (2, 2), one, 2),  # noqa: B023
            lambda: rrlib.level(one, base, expert, x[0], steps=5),  # noqa: B023
        ):
            with pytest.raises(InputError, match=rf"^reward: values at t = 0 .* from t = {first} "):
                call()
        assert rrlib.sample(base, (2, 2), reward=one).shape == (2, 2)  # it steers all the same
    assert whole.per_step(x[..., :1], x[..., 1:]).shape == (3, 4)


def test_a_step_is_laid_out_as_the_reward_says():
    ruler = rrlib.Normaliser(np.full(3, -1, "f4"), np.ones(3, "f4"))
    network = WindowReward(3, 1, torch.ones(10))
    plans = torch.rand(2, 4, 3, generator=stream(0, "plans")) * 2 - 1
    for order in (("observations", "actions"), ("actions", "observations")):
        layout = rrlib.PlanLayout(ruler, actions=1, observations=2, order=order)
        reward = rrlib.RelativeReward(network, "score", "x_t", layout.about())
        states, actions = plans[..., :2], plans[..., 2:]
        if order[0] == "actions":
            states, actions = plans[..., 1:], plans[..., :1]
        t = torch.zeros(8, dtype=torch.long)
        wanted = reward(plans.reshape(-1, 3), t).reshape(2, 4).detach()
        assert_close(reward.per_step(states, actions), wanted)
        assert_close(torch.from_numpy(reward.score(plans).per_step).reshape(2, 4), wanted)
        both = rrlib.compose([reward, reward], [1, 1])
        assert_close(both.per_step(states, actions), 2 * wanted)
    other = rrlib.RelativeReward(network, "score", "x_t", {"order": ["observations", "actions"]})
    with pytest.raises(InputError, match=r"^rewards: steps of the orders"):
        rrlib.compose([reward, other], [1, 1])
    alone = rrlib.RelativeReward(
        WindowReward(2, 1, torch.ones(10)), "score", "x_t", {"order": ["observations"]}
    )
    assert alone.per_step(plans[..., :2], plans[..., 2:]).shape == (2, 4)


# Files


def test_a_network_that_is_in_a_file_twice_comes_back(tmp_path):
    reward = rrlib.RelativeReward.fit(PAIRS, SMALL, steps=2)
    x = torch.randn(5, 2, generator=stream(0, "points"))
    t = torch.arange(5)
    rrlib.compose([reward, reward], [1, -0.5]).save(tmp_path / "sum.safetensors")
    names = {"one": reward, "other": reward}
    rrlib.save_rewards(tmp_path / "two.safetensors", names, {name: {} for name in names})
    found = rrlib.load_reward(tmp_path / "sum.safetensors")
    assert_close(found(x, t), 0.5 * reward(x, t), rtol=1e-2, atol=1e-4)
    for one, _ in rrlib.load_rewards(tmp_path / "two.safetensors").values():
        assert_close(one(x, t), reward(x, t), rtol=1e-2, atol=1e-4)


def test_tied_weights_have_a_checkpoint(tmp_path):
    def tied() -> nn.Module:
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2))
        module[2].weight = module[0].weight
        return module

    def run(module: nn.Module, **options):
        def loss(draws: torch.Generator) -> torch.Tensor:
            return module(torch.randn(4, 2, generator=draws)).square().mean()

        return train(module, loss, steps=3, learning_rate=1e-2, seed=0, every=1, **options)

    whole, stopped, resumed = tied(), tied(), tied()
    assert len(list(run(whole))) == 3
    path = tmp_path / "checkpoint.safetensors"
    assert [one.step for one in islice(run(stopped, checkpoint=path), 2)] == [1, 2]
    assert [one.step for one in run(resumed, checkpoint=path)] == [3]
    assert torch.equal(resumed[2].weight, whole[0].weight)
