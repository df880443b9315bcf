"""Log ratios without training against closed forms, by NumPy and SciPy of their own."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from scipy.stats import multivariate_normal
from torch import nn
from torch.testing import assert_close

import rrlib
from rrlib.errors import InputError
from rrlib.estimators import levels
from rrlib.theory.sde import GaussianMixture, random_mixture, score_denoiser, turned_score
from rrlib.training import stream

SCHEDULER = rrlib.cosine_scheduler(100, clip=False)
ABAR = SCHEDULER.alphas_cumprod.double().numpy()
WAYS = {
    "elbo": rrlib.elbo_difference,
    "path": rrlib.path_difference,
    "ode": rrlib.ode_difference,
    "line": rrlib.line_integral,
}


def log_density(mixture: GaussianMixture, x: torch.Tensor, abar: float = 1.0) -> np.ndarray:
    """log p_t(x), [B], SciPy's."""
    d = x.shape[1]
    parts = [
        np.log(float(weight))
        + multivariate_normal(abar**0.5 * mean, abar * covariance + (1 - abar) * np.eye(d)).logpdf(
            x
        )
        for weight, mean, covariance in zip(
            mixture.weights.numpy(), mixture.means.numpy(), mixture.covariances.numpy(), strict=True
        )
    ]
    return np.logaddexp.reduce(parts)


def r_squared(found: levels.Estimate, truth: np.ndarray) -> float:
    return float(1 - (found.value.numpy() - truth).var() / truth.var())


def case(d: int, seed: int, turn: float = 0.0, n: int = 150):
    """Two models, samples of both, and the true log ratio there."""
    generator = stream(seed, f"mixtures {d}")
    pair = [random_mixture(d, k, generator) for k in (2, 3)]
    x = torch.cat([mixture.sample(n, generator) for mixture in pair])
    truth = log_density(pair[1], x) - log_density(pair[0], x)
    base, expert = (mixture.denoiser(SCHEDULER) for mixture in pair)
    if turn:
        block = torch.tensor([[0.0, -turn], [turn, 0.0]], dtype=torch.float64)
        added = turned_score(pair[1], torch.block_diag(*[block] * (d // 2)))
        expert = score_denoiser(lambda x, a: pair[1].score(x, a) + added(x, a), SCHEDULER)
    return base, expert, x, truth


@pytest.mark.lengthy
@pytest.mark.parametrize("d", [2, 64])
def test_each_agrees_with_the_closed_form(d):
    base, expert, x, truth = case(d, seed=1)
    bars = {"elbo": 0.96, "path": 0.99, "ode": 0.995, "line": 0.999}
    for name, bar in bars.items():
        once = {} if name == "line" else {"probes": 1}
        found = WAYS[name](base, expert, x, batch=2048, **once)
        assert r_squared(found, truth) >= bar, name
        assert found.value.dtype == torch.float64
        if name != "line":  # which leaves a constant open
            assert abs(float(found.value.mean()) - truth.mean()) < 0.05 * truth.std(), name
        assert found.standard_error.isnan().all()


@pytest.mark.lengthy
@pytest.mark.parametrize("d", [2, 64])
def test_a_rotation_leaves_the_flows_estimate_and_spoils_those_on_paths(d):
    base, expert, x, truth = case(d, seed=2, turn=1.5, n=100)
    assert r_squared(rrlib.ode_difference(base, expert, x, probes=1, batch=512), truth) >= 0.98
    for name in ("elbo", "path"):
        found = WAYS[name](base, expert, x, probes=1, batch=2048)
        assert r_squared(found, truth) < 0.9, name
        assert float(found.value.mean()) < truth.mean() - 1, name


def gaussians(d: int = 3):
    """Two Gaussians whose x0 is affine in x_t: means [d], variances [d], and the two models."""
    rng = np.random.default_rng(4)
    means, variances = rng.normal(size=(2, d)), rng.uniform(0.2, 1.2, size=(2, d))
    models = [
        GaussianMixture(
            torch.ones(1).double(), torch.tensor(m)[None], torch.diag(torch.tensor(v))[None]
        ).denoiser(SCHEDULER)
        for m, v in zip(means, variances, strict=True)
    ]
    return means, variances, models, torch.tensor(rng.normal(size=(40, d)))


def expected_errors(means, variances, x, abar):
    """E|eps - eps_i|^2 over the noise, [2, K, B], at noise levels abar [K], in closed form."""
    abar = abar[:, None, None]
    found = []
    for mean, variance in zip(means, variances, strict=True):
        # eps_i = sqrt(1 - abar) (x_t - sqrt(abar) mean) / (abar variance + 1 - abar).
        slope = np.sqrt(1 - abar) / (abar * variance + 1 - abar)
        offset = slope * np.sqrt(abar) * (x - mean)  # eps_i without the noise's own share
        found.append(((1 - slope * np.sqrt(1 - abar)) ** 2 + offset**2).sum(-1))
    return np.array(found)


@pytest.mark.parametrize("weights", ["variational", "unweighted"])
@pytest.mark.parametrize("steps", [None, 25])
def test_the_elbos_difference_is_the_weighted_sum_of_expected_errors(weights, steps):
    means, variances, models, x = gaussians()
    found = rrlib.elbo_difference(*models, x, weights=weights, steps=steps, probes=64, batch=4096)
    t = np.round(np.linspace(0, 99, steps or 100)).astype(int)
    snr = ABAR[t] / (1 - ABAR[t])
    base, expert = expected_errors(means, variances, x.numpy(), ABAR[t])
    if weights == "unweighted":
        wanted = (base - expert).mean(0)
    else:
        lines = -np.trapezoid(base - expert, np.log(snr), axis=0) / 2
        wanted = lines + (base - expert)[0] / 2
    away = (found.value.numpy() - wanted) / found.standard_error.numpy()
    assert np.abs(away).max() < 4.5  # 40 values of 64 draws each
    assert 0.7 < away.std() < 1.4  # the standard error is what it says
    assert found.calls == 2 * 64 * len(t)


class Recorded(nn.Module):
    """A network that keeps what it was asked."""

    def __init__(self, model: rrlib.Denoiser):
        super().__init__()
        self.model, self.asked = model, []

    def forward(self, x, t):
        found = self.model.network(x, t)
        self.asked.append((x.clone(), t.clone(), found.clone()))
        return found


def test_the_path_sum_is_that_of_the_steps_back():
    _, _, models, x = gaussians()
    seen = [Recorded(model) for model in models]
    base, expert = (rrlib.Denoiser(one, SCHEDULER) for one in seen)
    found = rrlib.path_difference(base, expert, x, steps=30, probes=1, batch=10_000)
    (x_t, t, mine), (same, _, other) = (one.asked[-1] for one in seen)
    assert torch.equal(x_t, same)
    path = x_t.reshape(30, 40, 3).numpy()
    level = t.reshape(30, 40)[:, 0].numpy()
    before, total = x.numpy(), 0.0
    earlier = 1.0
    for k, step in enumerate(level):
        a = ABAR[step] / earlier
        scores = [
            (np.sqrt(ABAR[step]) * part.reshape(30, 40, 3)[k].numpy() - path[k]) / (1 - ABAR[step])
            for part in (mine, other)
        ]
        means = [(path[k] + (1 - a) * score) / np.sqrt(a) for score in scores]
        errors = [((before - mean) ** 2).sum(-1) for mean in means]
        total = total + (errors[0] - errors[1]) / (2 * (1 - a) / a)
        before, earlier = path[k], ABAR[step]
    np.testing.assert_allclose(found.value, total, rtol=1e-6, atol=1e-8)
    # Each step of the path is the forward process's own.
    noise = (path[1:] - np.sqrt(ABAR[level[1:]] / ABAR[level[:-1]])[:, None, None] * path[:-1]) / (
        np.sqrt(1 - ABAR[level[1:]] / ABAR[level[:-1]])[:, None, None]
    )
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05


def test_the_flow_of_a_diagonal_gaussian_needs_no_luck():
    """Its Jacobian has no entries off the diagonal, so that every probe tells the whole trace."""
    means, variances, models, x = gaussians()
    found = rrlib.ode_difference(*models, x, probes=3)
    assert float(found.standard_error.max()) < 1e-10
    first = ABAR[0]
    logs = [
        multivariate_normal(first**0.5 * m, np.diag(first * v + 1 - first)).logpdf(first**0.5 * x)
        for m, v in zip(means, variances, strict=True)
    ]
    np.testing.assert_allclose(found.value, logs[1] - logs[0], rtol=0.01, atol=0.02)
    few = rrlib.ode_difference(*models, x, probes=1, steps=25)
    assert few.calls == 98 and found.calls == 398
    np.testing.assert_allclose(few.value, logs[1] - logs[0], rtol=0.1, atol=0.2)


@pytest.mark.lengthy
def test_probes_of_the_divergence_scatter_as_they_say():
    base, expert, x, _ = case(4, seed=3, n=30)
    many = rrlib.ode_difference(base, expert, x, steps=20, probes=24)
    other = rrlib.ode_difference(base, expert, x, steps=20, probes=24, seed=1)
    away = (many.value - other.value) / (many.standard_error**2 + other.standard_error**2).sqrt()
    assert 0.7 < float(away.std()) < 1.4


@pytest.mark.parametrize("step", [0, 40])
def test_the_line_integral_is_the_difference_of_log_ratios(step):
    generator = stream(2, "mixtures")
    pair = [random_mixture(5, 2, generator) for _ in range(2)]
    models = [mixture.denoiser(SCHEDULER) for mixture in pair]
    x = torch.cat([mixture.sample(20, generator) for mixture in pair])
    reference = x.new_full((5,), 0.1)

    def truth(at):
        return log_density(pair[1], at, ABAR[step]) - log_density(pair[0], at, ABAR[step])

    found = rrlib.line_integral(*models, x, reference=reference, step=step, steps=48)
    wanted = truth(x) - truth(reference[None])
    np.testing.assert_allclose(found.value, wanted, rtol=2e-3, atol=2e-3)
    assert found.calls == 96 and found.standard_error.isnan().all()
    middle = rrlib.line_integral(*models, x, step=step, steps=48)
    np.testing.assert_allclose(
        middle.value, truth(x) - truth(x.mean(0)[None]), rtol=2e-3, atol=2e-3
    )


BASE, EXPERT = (rrlib.Denoiser(lambda x, t, a=a: 0.5 * x + a, SCHEDULER) for a in (0.0, 0.2))


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_samples_of_any_shape_and_precision(way):
    plans = torch.randn(5, 4, 3, generator=stream(0, "plans"))
    state = torch.random.get_rng_state()
    found = way(BASE, EXPERT, plans, steps=8)
    assert torch.equal(state, torch.random.get_rng_state())
    assert found.value.shape == found.standard_error.shape == (5,)
    assert found.value.dtype == torch.float32 and not found.value.requires_grad
    assert torch.equal(found.value, way(BASE, EXPERT, plans, steps=8).value)
    flat = way(BASE, EXPERT, plans.flatten(1), steps=8)
    assert_close(flat.value, found.value)
    half = way(BASE, EXPERT, plans.bfloat16(), steps=8)
    assert half.value.dtype == torch.float32 and half.value.isfinite().all()
    # Swapped models have the opposite ratio, with the same draws.
    assert_close(way(EXPERT, BASE, plans, steps=8).value, -found.value, rtol=1e-3, atol=1e-3)
    small = way(BASE, EXPERT, plans, steps=8, batch=3)
    assert small.value.shape == (5,)


def test_a_level_of_noise_alone_is_left_out():
    table = DDPMScheduler(
        num_train_timesteps=20,
        rescale_betas_zero_snr=True,
        prediction_type="v_prediction",
        clip_sample=False,
    )
    base, expert = (rrlib.Denoiser(lambda x, t, a=a: a * x, table) for a in (0.1, 0.3))
    for name in ("elbo", "path", "ode"):
        assert WAYS[name](base, expert, torch.ones(2, 3)).value.isfinite().all(), name


def test_gradients_are_left_as_they_were():
    network = nn.Linear(3, 3)
    base = rrlib.Denoiser(lambda x, t: network(x), SCHEDULER)
    with torch.no_grad():
        found = rrlib.ode_difference(base, EXPERT, torch.ones(2, 3), steps=5)
        assert not torch.is_grad_enabled()
    assert found.value.isfinite().all() and network.weight.grad is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"probes": 0}, "probes=0 is not allowed: at least 1 is needed"),
        ({"probes": 1.5}, "probes=1.5 is not allowed"),
        ({"batch": 0}, "batch=0 is not allowed"),
        ({"steps": 0}, "steps=0 is not allowed: a number from 2 to 100"),
        ({"steps": 101}, "steps=101 is not allowed: a number from 2 to 100"),
        ({"base": lambda x, t: x}, "base: function is not allowed: a model with a schedule"),
        ({"expert": nn.Linear(2, 2)}, "expert: Linear is not allowed: a model with a schedule"),
        ({"samples": np.zeros((2, 3))}, "samples of ndarray is not allowed"),
        ({"samples": torch.zeros(2, 3).long()}, r"samples of torch.int64 is not allowed"),
        ({"samples": torch.zeros(3)}, r"samples of shape \(3,\) is not allowed"),
        ({"samples": torch.zeros(0, 3)}, r"samples of shape \(0, 3\) is not allowed"),
        ({"samples": torch.tensor([[0.0, np.nan]])}, "samples: numbers that are not finite"),
        (
            {"expert": rrlib.Denoiser(lambda x, t: x, rrlib.cosine_scheduler(20))},
            "expert: a clip at 1 of its x0",
        ),
        (
            {"base": rrlib.Denoiser(lambda x, t: x @ torch.eye(4), SCHEDULER)},
            r"base: samples of shape \(3,\) are not allowed by its network",
        ),
    ],
)
@pytest.mark.parametrize("name", ["elbo", "path", "ode"])
def test_what_cannot_be_asked_is_refused_in_one_sentence(name, asked, message):
    asked = {"base": BASE, "expert": EXPERT, "samples": torch.zeros(2, 3)} | asked
    models = [asked.pop(key) for key in ("base", "expert", "samples")]
    with pytest.raises(InputError, match=message) as caught:
        WAYS[name](*models, **asked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("way", "asked", "message"),
    [
        ("elbo", {"weights": "equal"}, "weights='equal' is not allowed: 'variational' or"),
        ("line", {"steps": 0}, "steps=0 is not allowed: at least 1"),
        ("line", {"step": 100}, "step=100 is not allowed: a step from 0 to 99"),
        ("line", {"reference": torch.zeros(4)}, r"reference: shape \(4,\) is not allowed"),
        ("line", {"reference": torch.full((3,), torch.inf)}, "reference: numbers that are not"),
    ],
)
def test_what_one_way_cannot_take_is_refused(way, asked, message):
    with pytest.raises(InputError, match=message):
        WAYS[way](BASE, EXPERT, torch.zeros(2, 3), **asked)


def test_a_network_without_a_derivative_has_no_flow():
    flat = rrlib.Denoiser(lambda x, t: torch.zeros_like(x), SCHEDULER)
    with pytest.raises(InputError, match="expert: a network without a derivative"):
        rrlib.ode_difference(BASE, flat, torch.zeros(2, 3), steps=5)


class Known(nn.Module):
    """The log ratio of two diagonal Gaussians, lowered by a constant, in the units of a target."""

    def __init__(self, means, variances, constant, target):
        super().__init__()
        self.means, self.variances = (torch.tensor(part) for part in (means, variances))
        self.constant, self.target = constant, target

    def forward(self, x, t):
        abar = torch.tensor(ABAR)[t][:, None]
        logs = []
        for mean, variance in zip(self.means, self.variances, strict=True):
            spread = abar * variance + 1 - abar
            offset = (x - abar.sqrt() * mean) ** 2 / spread
            logs.append(-0.5 * (offset + spread.log()).sum(1))
        unit = (1 - ABAR[0]) / ABAR[0] ** 0.5 if self.target == "mean" else 1.0
        return (logs[1] - logs[0] - self.constant) * unit


@pytest.mark.lengthy
@pytest.mark.parametrize("target", ["score", "mean"])
def test_the_level_is_the_constant_that_was_taken_away(target):
    means, variances, models, _ = gaussians()
    draw = torch.randn(200, 3, generator=stream(0, "anchors"), dtype=torch.float64)
    anchors = torch.tensor(means[0]) + torch.tensor(variances[0]).sqrt() * draw
    reward = rrlib.RelativeReward(Known(means, variances, 7.5, target), target, "x_t")
    found = rrlib.level(reward, *models, anchors, probes=4)
    assert found.value.shape == found.standard_error.shape == ()
    assert 0 < float(found.standard_error) < 0.1
    assert abs(float(found.value) - 7.5) < 4 * float(found.standard_error) + 0.02
    assert rrlib.level(reward, *models, anchors[:1]).standard_error.isnan()


def test_only_a_reward_at_x_t_has_a_level():
    reward = rrlib.RelativeReward(nn.Identity(), "mean", "mu_base")
    with pytest.raises(InputError, match="reward: place='mu_base' is not allowed"):
        rrlib.level(reward, BASE, EXPERT, torch.zeros(2, 3))


@pytest.mark.parametrize("way", ["elbo", "path", "ode"])
def test_no_batch_has_the_draws_of_another(way):
    """The same sample 8 times, in batches of few: what differs is drawn anew for each."""
    base, expert, x, _ = case(2, 0, n=1)
    again = x[:1].expand(8, -1)
    found = WAYS[way](base, expert, again, steps=6, probes=2, batch=12)
    assert len(found.value.unique()) == 8
    other = WAYS[way](base, expert, again, steps=6, probes=2, batch=12, seed=1)
    assert not set(other.value.tolist()) & set(found.value.tolist())


def test_a_standard_error_is_that_of_a_mean_of_draws():
    draws = torch.tensor([[1.0, 0.0], [3.0, 0.0], [5.0, 3.0]])
    found = levels.summary(draws, 7)
    assert found.value.tolist() == [3.0, 1.0] and found.calls == 7
    assert_close(found.standard_error, torch.tensor([2.0, 3**0.5]) / 3**0.5)


# The ends of the way from data to noise.


def shifted(mean: float, steps: int) -> rrlib.Denoiser:
    """N((mean, 0), I) under diffusers' default betas, which are for 1000 steps."""
    table = DDPMScheduler(steps, clip_sample=False, prediction_type="sample")
    at = torch.tensor([[mean, 0.0]]).double()
    return GaussianMixture(torch.ones(1).double(), at, torch.eye(2)[None].double()).denoiser(table)


@pytest.mark.lengthy
@pytest.mark.parametrize("name", ["elbo", "path", "ode"])
def test_a_log_ratio_is_whole_where_its_last_level_is_nearly_noise(name):
    """300 steps end at alpha-bar 0.049, near the most that is allowed: that share is left out.

    A flow's end differs by the root of it, which is the share of the means that is left there.
    """
    base, expert = shifted(0.0, 300), shifted(1.5, 300)
    left = base.schedule.abar[-1]
    assert 0.04 < left < 0.05
    x = torch.randn(60, 2, generator=stream(0, "x"), dtype=torch.float64)
    truth = 1.5 * x[:, 0] - 1.5**2 / 2
    slope = float(np.polyfit(truth, WAYS[name](base, expert, x).value, 1)[0])
    assert slope == pytest.approx(1 - (left**0.5 if name == "ode" else left), abs=0.06)


LINES = [lambda x, t, a=a: 0.5 * x + a for a in (0.0, 0.2)]
ENDS = {
    "base: a noisiest level of alpha-bar 0.36": [DDPMScheduler(100, clip_sample=False)] * 2,
    "expert: a noisiest level of alpha-bar 0.2": [
        rrlib.edm_schedule(100),
        rrlib.edm_schedule(100, sigma_max=2.0),
    ],
}


@pytest.mark.parametrize("name", ["elbo", "path", "ode", "level", "algorithm 2"])
@pytest.mark.parametrize("message", ENDS)
def test_an_estimate_that_would_break_off_before_noise_is_refused(message, name):
    """At alpha-bar 0.36 elbo would have 0.64 of the truth, and ode 0.40."""
    base, expert = (rrlib.Denoiser(*pair) for pair in zip(LINES, ENDS[message], strict=True))
    data = torch.randn(50, 2), torch.randn(50, 2)
    pairs = rrlib.compare(base, expert, data, n=100)  # which needs no noise
    with pytest.raises(InputError, match=message) as caught:
        if name == "level":
            reward = rrlib.RelativeReward.fit(pairs, steps=2)
            rrlib.level(reward, base, expert, data[0])
        elif name == "algorithm 2":
            rrlib.compare(base, expert, shape=(2,), n=100)
        else:
            WAYS[name](base, expert, data[0], steps=5)
    assert str(caught.value).count(". ") == 0
    assert rrlib.line_integral(base, expert, data[0]).value.isfinite().all()  # at one level
    assert rrlib.sample(expert, (3, 2)).isfinite().all()


def test_levels_that_leave_only_noise_alone_out_are_looked_at_without_it():
    table = DDPMScheduler(
        20, rescale_betas_zero_snr=True, prediction_type="v_prediction", clip_sample=False
    )
    pair = [rrlib.Denoiser(line, table) for line in LINES]
    with pytest.raises(InputError, match=r"base: a noisiest level of alpha-bar 1 "):
        rrlib.elbo_difference(*pair, torch.zeros(2, 3), steps=2)


def test_an_expert_of_too_little_noise_steers_no_samples_from_noise():
    base, expert = (
        rrlib.Denoiser(line, rrlib.edm_schedule(50, sigma_max=most))
        for line, most in zip(LINES, (80.0, 2.0), strict=True)
    )
    both = rrlib.ExactDifference(base, expert)
    message = "expert: a noisiest level of alpha-bar 0.2.* where it steers samples"
    with pytest.raises(InputError, match=message):
        rrlib.sample(base, (3, 2), reward=both)
    with pytest.raises(InputError, match=message):
        rrlib.sample_weighted(base, (3, 2), both, particles=2)
    # One that knows all of the base's levels steers as it samples by itself.
    short = [
        rrlib.Denoiser(line, ENDS["base: a noisiest level of alpha-bar 0.36"][0]) for line in LINES
    ]
    assert rrlib.sample(short[0], (3, 2), reward=rrlib.ExactDifference(*short)).isfinite().all()


def test_a_step_that_the_expert_does_not_know_is_refused():
    base, expert = (
        rrlib.Denoiser(line, rrlib.edm_schedule(50, sigma_min=least))
        for line, least in zip(LINES, (0.002, 0.5), strict=True)
    )
    first, last = expert.at(base).schedule.span
    x = torch.randn(20, 2)
    message = f"=0 is not allowed: a step from {first} to {last}, which both models know"
    reward = rrlib.RelativeReward.fit(rrlib.compare(base, expert, (x, x), n=100), steps=2)
    with pytest.raises(InputError, match="^step" + message):
        rrlib.line_integral(base, expert, x)
    with pytest.raises(InputError, match="^step" + message):
        rrlib.difference_jacobians(base, expert, x, 0, "x_t")
    with pytest.raises(InputError, match=r"^reward: values at t = 0 .*from t = 17 to 49"):
        rrlib.level(reward, base, expert, x)
    assert rrlib.line_integral(base, expert, x, step=first).value.isfinite().all()
