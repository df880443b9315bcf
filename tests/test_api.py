"""The public interface: two models in, a reward out; what cannot be right is refused."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import rrlib
from rrlib import training
from rrlib.errors import InputError
from rrlib.method import comparisons, extraction
from rrlib.plans.rewards import PlanValue, WindowReward
from rrlib.theory.sde import GaussianMixture, log_ratio
from rrlib.training import stream

SCHEDULER = rrlib.cosine_scheduler(30, clip=False)
SHAPE = (8, 3)


def linear(shift: float) -> rrlib.Denoiser:
    """A model whose x0 is half of x_t, and a shift."""
    return rrlib.Denoiser(lambda x, t: 0.5 * x + shift, SCHEDULER)


BASE, EXPERT = linear(0.0), linear(0.2)


def data(n: int, seed: int, shape: tuple[int, ...] = SHAPE) -> torch.Tensor:
    return torch.randn(n, *shape, generator=stream(seed, "data"))


def gaussians() -> tuple[GaussianMixture, GaussianMixture]:
    """Two Gaussians in two dimensions whose log ratio is linear."""
    one = {"weights": torch.ones(1).double(), "covariances": 0.3 * torch.eye(2)[None].double()}
    means = torch.tensor([[0.0, 0.0], [0.5, -0.3]]).double()
    base, expert = (GaussianMixture(means=mean[None], **one) for mean in means)
    return base, expert


def test_with_data_it_is_algorithm_1_and_without_algorithm_2():
    sides = data(50, 1), data(60, 2)
    ours = rrlib.compare(BASE, EXPERT, sides, n=37, seed=3, batch=10)
    theirs = comparisons.algorithm1(BASE, EXPERT, *sides, size=37, seed=3, batch=10)
    for name, value in theirs.tensors().items():
        assert torch.equal(ours.tensors()[name], value)
    ours = rrlib.compare(BASE, EXPERT, shape=SHAPE, n=100, seed=3)
    theirs = comparisons.algorithm2(BASE, EXPERT, SHAPE, runs=4, seed=3)  # 4 x 30 steps >= 100
    for name, value in theirs.tensors().items():
        assert torch.equal(ours.tensors()[name], value)
    assert ours.model is BASE and len(ours.t) == 120


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "data=None is not allowed without the shape of a sample"),
        ({"shape": SHAPE, "condition": rrlib.first_given(1)}, "nor with a condition"),
        ({"data": (data(5, 0), data(5, 1)), "shape": SHAPE}, "shape is not allowed with data"),
        ({"data": data(5, 0)}, "data of Tensor is not allowed: two tensors"),
        ({"data": (data(5, 0),)}, "data of tuple is not allowed: two tensors"),
        ({"data": (data(5, 0), data(5, 1, (8, 4)))}, "expert_data: samples of shape"),
        ({"data": (data(5, 0).numpy(), data(5, 1))}, "base_data of ndarray is not allowed"),
        ({"shape": SHAPE, "n": 0}, "n=0 is not allowed"),
        ({"shape": SHAPE, "n": 2.5}, "n=2.5 is not allowed"),
        ({"shape": (8, 0)}, r"shape=\(8, 0\) is not allowed"),
        ({"expert": linear(0.0), "shape": SHAPE}, "expert: no difference from the base"),
        (
            {"expert": rrlib.Denoiser(lambda x, t: x, rrlib.cosine_scheduler(20)), "shape": SHAPE},
            "expert: a clip at 1 of its x0",
        ),
    ],
)
def test_a_comparison_that_cannot_be_right_is_refused(asked, message):
    asked = {"n": 10} | asked
    with pytest.raises(InputError, match=message) as caught:
        rrlib.compare(BASE, asked.pop("expert", EXPERT), asked.pop("data", None), **asked)
    assert "\n" not in str(caught.value)


def test_models_of_two_spaces_are_refused():
    class Of(nn.Module):
        def __init__(self, width):
            super().__init__()
            self.layer = nn.Linear(width, width)

        def forward(self, x, t):
            return self.layer(x)

    base, expert = (rrlib.Denoiser(Of(width), SCHEDULER) for width in (3, 4))
    with pytest.raises(
        InputError, match=r"^expert: samples of shape \(3,\) are not allowed by its"
    ):
        rrlib.compare(base, expert, shape=(3,), n=60)
    with pytest.raises(InputError, match=r"^base: samples of shape \(4,\) are not allowed by its"):
        rrlib.compare(base, expert, shape=(4,), n=60)
    with pytest.raises(InputError, match=r"^base: samples of shape \(8, 4\) are not allowed"):
        rrlib.compare(base, expert, (data(9, 0, (8, 4)), data(9, 1, (8, 4))), n=5)

    def broken(x, t):
        raise RuntimeError("the network's own trouble")

    with pytest.raises(RuntimeError, match="own trouble"):
        rrlib.compare(base, rrlib.Denoiser(broken, SCHEDULER), shape=(3,), n=60)


@pytest.mark.slow
def test_six_lines_find_a_known_log_ratio():
    mixtures = gaussians()
    base, expert = (mixture.denoiser(SCHEDULER) for mixture in mixtures)
    draws = [m.sample(4_000, stream(k, "data")).float() for k, m in enumerate(mixtures)]
    pairs = rrlib.compare(base, expert, tuple(draws), n=8_000)
    reward = rrlib.RelativeReward.fit(pairs, steps=600)
    assert (reward.target, reward.place, reward.steps) == ("score", "x_t", 30)
    x = torch.cat([m.sample(500, stream(9, "held out")) for m in mixtures])
    truth = log_ratio(*mixtures, x, torch.ones(len(x)).double()).float()
    with torch.no_grad():
        found = reward(x.float(), torch.zeros(len(x), dtype=torch.long))
    assert_close(found - found.mean(), truth - truth.mean(), atol=0.5, rtol=0.1)
    held_out = rrlib.compare(base, expert, tuple(draws), n=2_000, seed=1)
    assert (reward.explained_variance(held_out) > 0.9).all()
    # Steered by it the base draws what the expert draws; the other way round it turns away.
    mean = rrlib.sample(base, (4_000, 2), reward=reward, seed=1).mean(0).float()
    assert_close(mean, torch.tensor([0.5, -0.3]), atol=0.06, rtol=0)
    swapped = rrlib.compare(expert, base, tuple(draws[::-1]), n=8_000)
    away = rrlib.RelativeReward.fit(swapped, steps=600)
    with torch.no_grad():
        other = away(x.float(), torch.zeros(len(x), dtype=torch.long))
    assert torch.corrcoef(torch.stack([found, other]))[0, 1] < -0.99


PAIRS = rrlib.compare(BASE, EXPERT, (data(50, 1), data(60, 2)), n=200)


@pytest.mark.parametrize("average", [1, 2])
@pytest.mark.parametrize("strided", [False, True])
def test_a_windowed_reward_is_fitted_to_cut_windows(average, strided):
    network = partial(WindowReward, window=4, hidden=(8,), strided=strided, average=average)
    options = {"target": "mean", "place": "mu_base"}
    ours = rrlib.RelativeReward.fit(PAIRS, network, steps=7, batch=16, seed=3, **options)
    torch.manual_seed(3)
    unit = extraction.units(BASE, "mean")
    inner = WindowReward(3, 4 // average, unit, (8,), strided)
    pool = PAIRS.pool("mean", "mu_base").cut(4, strided).average(average)
    settings = {"steps": 7, "batch": 16, "learning_rate": 1e-3, "seed": 3}
    training.finish(extraction.fit(inner, pool, **settings), "")
    for name, value in inner.state_dict().items():
        assert torch.equal(ours.network.state_dict()[name], value), name
    assert ours.network.average == average and not ours.network.training
    assert (ours.target, ours.place) == ("mean", "mu_base")


def test_without_a_network_whole_plans_or_points_are_seen():
    assert rrlib.RelativeReward.fit(PAIRS, steps=1).network.windows == (8, False)
    points = rrlib.compare(BASE, EXPERT, shape=(3,), n=60)
    network = rrlib.RelativeReward.fit(points, steps=1).network
    assert network.windows == (1, False) and network.width == 3
    images = rrlib.compare(BASE, EXPERT, shape=(1, 4, 4), n=60)
    with pytest.raises(InputError, match=r"network=None is not allowed for samples of shape"):
        rrlib.RelativeReward.fit(images, steps=1)


def test_a_network_that_is_there_is_fitted_in_place():
    network = PlanValue(3, extraction.displacement_units(BASE, "score"), (32, 32))
    before = [p.clone() for p in network.parameters()]
    reward = rrlib.RelativeReward.fit(PAIRS, network, steps=2, batch=16)
    assert reward.network is network
    assert any(not torch.equal(*both) for both in zip(before, network.parameters(), strict=True))
    assert not any(p.requires_grad for p in network.parameters())


class Counting(nn.Module):
    """A network of images' own making."""

    def __init__(self, width, unit):
        super().__init__()
        self.layer = nn.Linear(width, 1)
        self.register_buffer("unit", unit)

    def forward(self, x, t):
        return self.layer(x).flatten(1).sum(1) * self.unit[t]


def test_what_makes_a_network_is_told_width_and_unit():
    images = rrlib.compare(BASE, EXPERT, shape=(1, 4, 5), n=60)
    reward = rrlib.RelativeReward.fit(images, Counting, steps=3, learning_rate=0.1)
    assert torch.equal(reward.network.unit, extraction.units(BASE, "score"))
    assert reward.gradient(images.x, images.t).shape == images.x.shape


def test_comparisons_come_to_where_the_reward_is():
    network = WindowReward(3, 8, extraction.units(BASE, "score")).to("meta")
    shares = rrlib.RelativeReward(network, "score", "x_t").explained_variance(PAIRS)
    assert shares.shape == (30,) and shares.device.type == "meta"


def test_the_seed_decides_the_fit():
    fits = [rrlib.RelativeReward.fit(PAIRS, steps=3, seed=seed).network for seed in (0, 0, 1)]
    weights = [fit.g[0].weight for fit in fits]
    assert torch.equal(*weights[:2]) and not torch.equal(*weights[1:])


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"target": "scores"}, "target='scores' is not allowed"),
        ({"place": "mu"}, "place='mu' is not allowed"),
        ({"steps": 0}, "steps=0 is not allowed"),
        ({"batch": 0}, "batch=0 is not allowed"),
        ({"network": partial(WindowReward, window=3)}, "window=3 is not allowed: a divisor"),
        (
            {"network": WindowReward(4, 8, torch.ones(30))},
            r"x_t of shape \(\d+, 8, 3\) is not allowed: plans of width 4",
        ),
        (
            {"network": WindowReward(3, 8, torch.ones(9))},
            r"network: units for 9 steps are not allowed: 30, as the pairs' schedule has",
        ),
    ],
    ids=str,
)
def test_a_fit_that_cannot_be_right_is_refused(asked, message):
    asked = {"steps": 1} | asked
    with pytest.raises(InputError, match=message) as caught:
        rrlib.RelativeReward.fit(PAIRS, asked.pop("network", None), **asked)
    assert "\n" not in str(caught.value)


def test_samples_depend_on_the_seed_alone_or_on_a_generator():
    drawn = [rrlib.sample(BASE, (2, *SHAPE), seed=seed) for seed in (0, 0, 1)]
    assert torch.equal(*drawn[:2]) and not torch.equal(*drawn[1:])
    generator = torch.Generator().manual_seed(1)
    assert torch.equal(rrlib.sample(BASE, (2, *SHAPE), generator), drawn[2])
    assert rrlib.sample(BASE, (2, 3), dtype=torch.float64).dtype == torch.float64


@pytest.mark.parametrize("target", ["score", "mean"])
def test_a_network_is_made_in_the_targets_units_and_by_the_seed(target, monkeypatch):
    """Before the first step: what makes it is told width and unit, and draws by the seed."""
    made = []

    def make(**told):
        made.append((told, WindowReward(window=4, hidden=(5,), **told)))
        return made[-1][1]

    seen = []
    monkeypatch.setattr(extraction, "fit", lambda network, pool, **how: seen.append(how) or ())
    pairs = rrlib.compare(BASE, EXPERT, shape=SHAPE, n=60)
    for seed in (3, 3, 4):
        rrlib.RelativeReward.fit(pairs, make, target=target, seed=seed, steps=1)
    told, networks = zip(*made, strict=True)
    assert all(one.keys() == {"width", "unit"} and one["width"] == 3 for one in told)
    for one in told:
        assert_close(one["unit"], extraction.units(BASE, target))
    first = [network.g[0].weight for network in networks]
    assert torch.equal(first[0], first[1]) and not torch.equal(first[0], first[2])
    assert [how["seed"] for how in seen] == [3, 3, 4]
