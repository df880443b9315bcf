"""Models of other paths and predictions: at equal noise all are read alike."""

import itertools
from dataclasses import replace
from functools import partial

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from torch.testing import assert_close

import rrlib
from rrlib.errors import InputError
from rrlib.method import comparisons, extraction
from rrlib.method.denoisers import Denoiser, step_between
from rrlib.method.noise.schedulers import cosine_scheduler, schedule_of
from rrlib.method.noise.schedules import edm_schedule, flow_schedule
from rrlib.training import stream

# A Gaussian N(m, diag(v)) in two dimensions, and what the best network of each kind says of it.
BASE = (torch.tensor([-0.4, 0.2]), torch.tensor([0.5, 0.2]))
EXPERT = (torch.tensor([0.5, -0.1]), torch.tensor([0.2, 0.4]))
TABLES = {
    "cosine": lambda n, kind: cosine_scheduler(n, clip=False).config | {"prediction_type": kind},
    "linear": lambda n, kind: {
        "num_train_timesteps": n,
        "beta_end": min(0.999, 20 / n),
        "prediction_type": kind,
        "clip_sample": False,
    },
}


def posterior(law, x, alpha, sigma):
    """E[x_0 | x = alpha x_0 + sigma eps]."""
    mean, variance = (part.to(x) for part in law)
    return mean + alpha * variance * (x - alpha * mean) / (alpha**2 * variance + sigma**2)


def vp_model(law, table: str, steps: int, kind: str) -> Denoiser:
    """DDPM; between two steps log(alpha / sigma) is linear, here by NumPy."""
    scheduler = DDPMScheduler.from_config(TABLES[table](steps, kind))
    abar = scheduler.alphas_cumprod.double().numpy()
    nodes = np.log(abar / (1 - abar)) / 2

    def network(x, t):
        level = np.interp(t.double().numpy(), np.arange(steps), nodes)
        level = torch.from_numpy(level).reshape(-1, *[1] * (x.ndim - 1))
        alpha, sigma = (1 + (-2 * level).exp()) ** -0.5, (1 + (2 * level).exp()) ** -0.5
        x0 = posterior(law, x.double(), alpha, sigma)
        eps = (x - alpha * x0) / sigma
        says = {"sample": x0, "epsilon": eps, "v_prediction": alpha * eps - sigma * x0}
        return says[kind].to(x.dtype)

    return Denoiser(network, scheduler)


def flow_model(law, scheduler, time_scale: float = 1000.0) -> Denoiser:
    def network(x, t):
        s = (t.double() / time_scale).reshape(-1, *[1] * (x.ndim - 1))
        x0 = posterior(law, x.double(), 1 - s, s)
        return ((x - (1 - s) * x0) / s - x0).to(x.dtype)  # eps - x_0

    return Denoiser(network, scheduler)


def edm_model(law, scheduler, data: float = 0.5) -> Denoiser:
    def network(seen, t):
        sigma = (4 * t.double()).exp().reshape(-1, *[1] * (seen.ndim - 1))
        x = seen.double() * (sigma**2 + data**2) ** 0.5
        x0 = posterior(law, x, 1.0, sigma)
        kept = data**2 / (sigma**2 + data**2)
        return ((x0 - kept * x) / (sigma * data / (sigma**2 + data**2) ** 0.5)).to(seen.dtype)

    return Denoiser(network, scheduler)


MODELS = {
    "sample": lambda law: vp_model(law, "cosine", 100, "sample"),
    "epsilon": lambda law: vp_model(law, "linear", 1000, "epsilon"),
    "v": lambda law: vp_model(law, "cosine", 50, "v_prediction"),
    "flow": lambda law: flow_model(
        law, diffusers.FlowMatchEulerDiscreteScheduler(100, shift=3.0), time_scale=100.0
    ),
    "edm": lambda law: edm_model(law, diffusers.EDMEulerScheduler(num_train_timesteps=100)),
}
PAIRS = list(itertools.product(MODELS, MODELS))


def samples(law, n: int, seed: int, dtype=torch.float32) -> torch.Tensor:
    mean, variance = law
    return (mean + variance.sqrt() * torch.randn(n, 2, generator=stream(seed, "x"))).to(dtype)


def pairs_of(base: str, expert: str, n: int = 2_000, seed: int = 0, dtype=torch.float32):
    """Comparisons, and the closed form of the score difference at their points."""
    models = MODELS[base](BASE), MODELS[expert](EXPERT)
    data = samples(BASE, 4_000, 1, dtype), samples(EXPERT, 4_000, 2, dtype)
    found = rrlib.compare(*models, data, n=n, seed=seed)
    table = models[0].schedule
    abar, rest = (
        torch.tensor(part).double()[found.t][:, None] for part in (table.abar, table.rest)
    )

    def score(law):
        mean, variance = (part.double() for part in law)
        return -(found.x - abar.sqrt() * mean) / (abar * variance + rest)

    return found, score(EXPERT) - score(BASE)


@pytest.mark.parametrize(("base", "expert"), PAIRS)
def test_every_kind_of_model_is_compared_with_every_other_as_the_closed_form_has_it(base, expert):
    found, exact = pairs_of(base, expert, dtype=torch.float64)
    target = found.pool("score", "x_t").target
    error = (target - exact).square().sum() / exact.square().sum()
    assert error < 1e-12, float(error) ** 0.5
    assert found.t.unique().numel() > 40


@pytest.mark.parametrize("kind", ["epsilon", "v", "flow", "edm"])
def test_in_single_precision_a_pair_is_the_same_under_every_parametrisation(kind):
    """Over the levels where the base's posterior says something; see the docstring of `paths`."""
    plain = MODELS["sample"](BASE), MODELS["sample"](EXPERT)
    others = (MODELS[kind](law).at(plain[0]) for law in (BASE, EXPERT))
    x0 = torch.cat([samples(BASE, 1_000, 1), samples(EXPERT, 1_000, 2)])
    x_t, t = comparisons.noised(plain[0], x0, stream(0, 0))
    first, last = MODELS[kind](BASE).at(plain[0]).schedule.span
    inside = (t >= first) & (t <= last)
    ours, theirs = (
        comparisons.compare_at(*models, x_t[inside], t[inside]) for models in (plain, others)
    )
    mine, other = (found.expert - found.base for found in (ours, theirs))
    assert (mine - other).norm() / mine.norm() < 1e-5


def log_density(law, x, abar, rest) -> torch.Tensor:
    """Of noised samples [K, n, 2] at alpha-bar [K, 1, 1], [K, n]."""
    mean, variance = (part.double() for part in law)
    spread = abar * variance + rest
    return -((x - abar.sqrt() * mean).square() / spread + spread.log()).sum(-1) / 2


@pytest.mark.slow
@pytest.mark.parametrize(("base", "expert"), PAIRS)
def test_the_reward_of_two_kinds_of_models_is_the_log_ratio_of_their_densities(base, expert):
    """R² of rho, its constant left open, at every fourth level that both models know."""
    found, _ = pairs_of(base, expert, n=6_000)
    reward = rrlib.RelativeReward.fit(found, Quadratic, steps=300, learning_rate=5e-2)
    model = found.model
    first, last = MODELS[expert](EXPERT).at(model).schedule.span
    levels = torch.arange(first, last + 1, max(1, (last - first) // 25))
    t = levels.repeat_interleave(200)
    x0 = torch.cat([samples(BASE, 100, 3), samples(EXPERT, 100, 4)]).repeat(len(levels), 1)
    x_t = model.noise(x0, t, stream(5, 0))
    with torch.no_grad():
        rho = reward(x_t, t).double().unflatten(0, (-1, 200))
    tables = (
        torch.tensor(part).double()[levels] for part in (model.schedule.abar, model.schedule.rest)
    )
    abar, rest = (table[:, None, None] for table in tables)
    x = x_t.double().unflatten(0, (-1, 200))
    truth = log_density(EXPERT, x, abar, rest) - log_density(BASE, x, abar, rest)
    rho, truth = (part - part.mean(1, keepdim=True) for part in (rho, truth))
    r2 = 1 - (rho - truth).square().sum(1) / truth.square().sum(1)
    assert r2.mean() >= 0.999, float(r2.mean())


class Quadratic(torch.nn.Module):
    """A quadratic form at each level, as the log ratio of two Gaussians is, smooth in t."""

    def __init__(self, width: int, unit: torch.Tensor):
        super().__init__()
        waves = torch.arange(32) * torch.arange(len(unit))[:, None] * torch.pi / len(unit)
        self.register_buffer("waves", waves.cos())
        self.square, self.line = (torch.nn.Linear(32, width) for _ in range(2))
        self.register_buffer("unit", unit)

    def forward(self, x, t):
        square, line = (part(self.waves)[t] for part in (self.square, self.line))
        return self.unit[t] * (square * x.square() + line * x).sum(1)


# Against diffusers' own schedulers


@pytest.mark.parametrize("steps", [100, 1000])
def test_the_levels_of_a_flow_are_those_of_diffusers(steps):
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(steps, shift=3.0)
    ours = schedule_of(theirs)
    s = theirs.sigmas.double().flip(0)
    abar = torch.tensor(ours.abar)
    assert_close(
        abar[:-1].double(), ((1 - s) ** 2 / ((1 - s) ** 2 + s**2))[:-1], rtol=2e-4, atol=1e-7
    )
    told = ours.tables(torch.zeros(1)).time
    assert_close(told[:-1], theirs.timesteps.flip(0)[:-1], rtol=1e-5, atol=1e-3)
    assert s[-1] == 1 and 0 < ours.abar[-1] < ours.abar[-2]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within diffusers
def test_a_dpm_solver_on_flow_sigmas_is_read_as_a_flow():
    theirs = diffusers.DPMSolverMultistepScheduler(
        100, use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0
    )
    ours = schedule_of(theirs)
    assert ours.abar == flow_schedule(100, shift=3.0).abar
    theirs.set_timesteps(50)  # whole ones, rounded down
    told = ours.path.time_scale * theirs.sigmas[:-1]
    assert ((told - theirs.timesteps >= 0) & (told - theirs.timesteps < 1)).all()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_is_preconditioned_as_diffusers_does(prediction):
    theirs = diffusers.EDMEulerScheduler(num_train_timesteps=50, prediction_type=prediction)
    seen = []

    def network(x, t):
        seen.append((x, t))
        return torch.tanh(x) + t[:, None]

    model = Denoiser(network, theirs)
    table = schedule_of(theirs)
    sigma = (torch.tensor(table.rest).double() / torch.tensor(table.abar).double()).sqrt()
    assert_close(sigma[[0, -1]], torch.tensor([0.002, 80.0]).double(), rtol=1e-5, atol=0)
    for step in (0, 20, 49):
        x = torch.randn(4, 3, generator=stream(0, step), dtype=torch.float64)
        own = x * (1 + sigma[step] ** 2).sqrt()  # x_0 + sigma eps
        x0 = model.x0(x, torch.full((4,), step))
        asked, at = seen[-1]
        assert_close(asked, theirs.precondition_inputs(own, sigma[step]), rtol=1e-5, atol=1e-6)
        assert_close(at, theirs.precondition_noise(sigma[step]).expand(4), rtol=1e-5, atol=1e-5)
        literal = theirs.precondition_outputs(own, network(asked, at), sigma[step])
        assert_close(x0, literal, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "scheduler",
    [
        diffusers.EulerDiscreteScheduler(50),
        diffusers.DPMSolverMultistepScheduler(50),
        diffusers.UniPCMultistepScheduler(50),
        diffusers.DDIMScheduler(50, timestep_spacing="trailing", clip_sample=False),
    ],
)
def test_other_samplers_of_one_ddpm_are_one_model(scheduler):
    plain = DDPMScheduler(50, prediction_type="epsilon", clip_sample=False)
    x, t = torch.randn(50, 3, generator=stream(0, 0)), torch.arange(50)
    network = partial(lambda x, t: x.tanh() + 0.01 * t[:, None])
    assert torch.equal(Denoiser(network, scheduler).x0(x, t), Denoiser(network, plain).x0(x, t))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within diffusers
@pytest.mark.parametrize(
    "kind", ["EulerDiscreteScheduler", "UniPCMultistepScheduler", "DPMSolverMultistepScheduler"]
)
@pytest.mark.parametrize("betas", ["linear", "scaled_linear"])
def test_zero_terminal_snr_is_read_from_samplers_that_have_no_zero(kind, betas):
    """Trained with a last alpha-bar of 0, in whose place these have 2^-24, more than before it."""
    options = {"prediction_type": "v_prediction", "beta_schedule": betas, "clip_sample": False}
    trained = DDPMScheduler(1000, rescale_betas_zero_snr=True, **options).alphas_cumprod.double()
    theirs = getattr(diffusers, kind)(
        1000, rescale_betas_zero_snr=True, prediction_type="v_prediction", beta_schedule=betas
    )

    def network(law, x, t):
        assert not t.is_floating_point()
        alpha, sigma = (part[t][:, None] for part in (trained.sqrt(), (1 - trained).sqrt()))
        x0 = posterior(law, x.double(), alpha, sigma)
        eps = (x - alpha * x0) / sigma
        return (alpha * eps - sigma * x0).to(x.dtype)

    base, expert = (Denoiser(partial(network, law), theirs) for law in (BASE, EXPERT))
    table = base.schedule
    assert 0 < table.abar[-1] < table.abar[-2] and table.abar[-1] < 1e-7
    assert_close(torch.tensor(table.abar)[:-1], trained[:-1].float())
    t = torch.arange(0, 1000, 3)
    x = torch.randn(len(t), 2, generator=stream(0, 0), dtype=torch.float64)
    abar = torch.tensor(table.abar).double()[t][:, None]
    exact = posterior(EXPERT, x, abar.sqrt(), (1 - abar).sqrt())
    assert_close(expert.x0(x, t), exact, rtol=0, atol=5e-4)
    assert extraction.units(base, "mean").isfinite().all()
    steered = rrlib.sample(
        base,
        (2_000, 2),
        seed=1,
        reward=rrlib.ExactDifference(base, expert),
        num_inference_steps=100,
    )
    assert_close(steered.mean(0), EXPERT[0], rtol=0, atol=0.06)


class Table(torch.nn.Module):
    """x0 at whole steps, looked up after its time is rounded in a way of its own."""

    def __init__(self, law, rounding):
        super().__init__()
        self.inner, self.rounding = vp_model(law, "cosine", 50, "sample").network, rounding

    def forward(self, x, t):
        return self.inner(x, self.rounding(t))


SCHEDULE = TABLES["cosine"](50, "sample")
ROUNDINGS = {"floor": torch.Tensor.long, "nearest": torch.round, "up": torch.ceil}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_a_network_that_rounds_its_time_is_refused_at_the_levels_of_another_schedule(
    rounding, dtype
):
    table = Denoiser(Table(EXPERT, ROUNDINGS[rounding]), DDPMScheduler.from_config(SCHEDULE))
    data = samples(BASE, 500, 1, dtype), samples(EXPERT, 500, 2, dtype)
    other = vp_model(BASE, "cosine", 80, "sample")
    with pytest.raises(InputError, match=r"^expert: a network that rounds its time to whole steps"):
        rrlib.compare(other, table, data, n=300)
    with pytest.raises(InputError, match=r"^expert: a network that rounds its time to whole steps"):
        rrlib.elbo_difference(other, table, data[0], steps=5)
    # At its own levels its times are whole.
    assert len(rrlib.compare(table, other, data, n=300).x) == 300
    same = vp_model(BASE, "cosine", 50, "sample")
    assert len(rrlib.compare(same, table, data, n=300).x) == 300


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-8, 1e-4, 1e-3, 1e-2, 1.0])
def test_a_network_of_all_times_is_not_taken_for_one_that_rounds(size, dtype):
    """However little it makes of its time, in any precision."""
    expert = Denoiser(lambda x, t: x + size * t[:, None].sin().to(x.dtype), cosine_scheduler(50))
    data = (samples(BASE, 50, 1, dtype) / 9, samples(EXPERT, 50, 2, dtype) / 9)
    base = Denoiser(lambda x, t: 0.5 * x, cosine_scheduler(80))
    assert len(rrlib.compare(base, expert, data, n=60).x) == 60


# Ends, precision, scale


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("base", "expert"), [("flow", "edm"), ("edm", "v"), ("epsilon", "flow")])
def test_in_half_precision_all_is_finite_and_within_two_per_cent(base, expert, dtype):
    """Of networks that are exact: the rounding of an answer is not the readings' to mend."""

    def halved(model: Denoiser) -> Denoiser:
        return replace(model, network=lambda x, t: model.network(x.float(), t))

    models = halved(MODELS[base](BASE)), halved(MODELS[expert](EXPERT))
    models = models[0], comparisons.aligned(*models)
    first, last = models[1].schedule.span
    t = torch.arange(first, last + 1).repeat_interleave(50)
    x0 = torch.cat([samples(BASE, 25, 1), samples(EXPERT, 25, 2)]).repeat(last + 1 - first, 1)
    x_t = models[0].noise(x0, t, stream(0, 0)).to(dtype)
    half = comparisons.compare_at(*models, x_t, t)
    whole = comparisons.compare_at(*models, x_t.float(), t)
    for target in ("score", "mean"):
        rough, fine = (found.pool(target, "x_t").target for found in (half, whole))
        assert rough.isfinite().all()
        assert (rough - fine).norm() < 0.02 * fine.norm(), target


@pytest.mark.parametrize(
    "schedule",
    [
        edm_schedule(200),
        flow_schedule(1000, shift=3.0),
        cosine_scheduler(1000, clip=False),
        DDPMScheduler(1000, clip_sample=False),
    ],
)
def test_a_steps_beta_is_exact_at_both_ends(schedule):
    """Where alpha-bar rounds to 1, and where 1 - alpha-bar does.

    In float32 the quotient alone is off by up to 2 %, the difference of 1 - alpha-bar by up to 40.
    """
    model, like = Denoiser(lambda x, t: x, schedule), torch.zeros(1)
    abar, rest = (np.array(part) for part in (model.schedule.abar, model.schedule.rest))
    fallen = np.where(abar[:-1] < 0.5, abar[:-1] - abar[1:], rest[1:] - rest[:-1])  # in float64
    found = [float(step_between(model, like, k, k - 1).beta) for k in range(1, len(abar))]
    np.testing.assert_allclose(found, fallen / abar[:-1], rtol=2e-5)


@pytest.mark.lengthy
@pytest.mark.parametrize(
    "model",
    [
        vp_model(EXPERT, "cosine", 400, "v_prediction"),
        flow_model(EXPERT, flow_schedule(400)),
        edm_model(EXPERT, edm_schedule(400)),
    ],
)
def test_samples_of_every_kind_are_the_models_own_law(model):
    found = rrlib.sample(model, (8_000, 2), seed=3)
    mean, variance = EXPERT
    assert_close(found.mean(0), mean, rtol=0, atol=0.03)
    assert_close(found.var(0), variance, rtol=0.07, atol=0)


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_of_scaled_data_is_read_in_the_datas_own_numbers(kind):
    """Twice the numbers: the same law, another level of noise."""
    law = (2 * EXPERT[0], 4 * EXPERT[1])
    wide = Denoiser(MODELS[kind](law).network, MODELS[kind](law).scheduler, scale=2.0)
    plain = MODELS["sample"](EXPERT)
    both = comparisons.aligned(plain, wide)
    first, last = both.schedule.span
    t = torch.arange(first, last + 1)
    x = torch.randn(len(t), 2, generator=stream(0, 0), dtype=torch.float64)
    assert_close(both.x0(x, t), plain.x0(x, t), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("schedule", [flow_schedule(20), edm_schedule(20), cosine_scheduler(20)])
def test_what_is_given_is_seen_clean_in_the_models_own_numbers(schedule, scale):
    seen = []

    def network(x, t):
        seen.append(x)
        return torch.tanh(x)

    first = torch.tensor([[0.7, -0.2]]).expand(20, 2)
    model = rrlib.given(Denoiser(network, schedule, scale=scale), first)
    t = torch.arange(20)
    x0 = model.x0(torch.randn(20, 4, 3, generator=stream(0, 0)), t)
    assert torch.equal(x0[:, 0, 1:], first)
    # EDM's network sees its own numbers times c_in.
    table = schedule_of(schedule)
    sigma2 = (torch.tensor(table.rest) / torch.tensor(table.abar))[:, None]
    c_in = (sigma2 + 0.25).rsqrt() if table.prediction == "edm" else 1.0
    assert_close(seen[0][:, 0, 1:], scale * first * c_in, rtol=1e-4, atol=1e-6)


def test_a_pair_of_models_with_no_level_in_common_is_refused():
    few = schedule_of(DDPMScheduler(10, trained_betas=[1e-6] * 10, clip_sample=False))
    base = Denoiser(lambda x, t: x, edm_schedule(20, sigma_min=0.5, sigma_max=80.0))
    with pytest.raises(InputError, match=r"^expert: its levels \(10 steps, .*\) are not allowed"):
        rrlib.compare(base, Denoiser(lambda x, t: x, few), shape=(2,), n=100)


def test_an_expert_that_has_never_seen_noise_draws_no_samples():
    base = Denoiser(lambda x, t: x, edm_schedule(20))
    expert = Denoiser(lambda x, t: 0.9 * x, edm_schedule(20, sigma_max=2.0))
    with pytest.raises(InputError, match=r"^expert: a noisiest level of alpha-bar 0\.\d+ is not"):
        rrlib.compare(base, expert, shape=(2,), n=100)
    data = torch.randn(50, 2), torch.randn(50, 2)
    found = rrlib.compare(base, expert, data, n=500)
    assert found.t.max() < 19  # those levels alone that both know


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: flow_schedule(1), "^steps=1 is not allowed: at least 2"),
        (lambda: flow_schedule(10, shift=0.0), "^shift=0.0 is not allowed: a positive"),
        (lambda: flow_schedule(10, prediction="velocity"), "^prediction='velocity' is not allowed"),
        (
            lambda: flow_schedule(10, prediction="edm"),
            "^prediction='edm' is not allowed: 'sample' or 'epsilon' or 'v_prediction' or 'flow_p",
        ),
        (
            lambda: Denoiser(
                lambda x, t: x,
                replace(schedule_of(cosine_scheduler(5)), prediction="edm", copies={}),
            ).x0(torch.zeros(1, 2), torch.tensor([1])),
            "^prediction='edm' is not allowed: 'sample' or",
        ),
        (lambda: edm_schedule(10, prediction="eps"), "^prediction='eps' is not allowed"),
        (lambda: edm_schedule(10, sigma_min=3.0, sigma_max=2.0), "^sigma_max=2.0 is not allowed"),
        (lambda: edm_schedule(10, sigma_data=float("inf")), "^sigma_data=inf is not allowed"),
        (lambda: Denoiser(lambda x, t: x, flow_schedule(10), scale=0), "^scale=0 is not allowed"),
    ],
)
def test_numbers_out_of_range_are_named(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_a_flow_is_steered_at_every_level():
    """At pure noise a score says nothing of x_0; the noisiest level lies below it."""
    base, expert = flow_model(BASE, flow_schedule(60)), flow_model(EXPERT, flow_schedule(60))
    steered = rrlib.sample(base, (4_000, 2), seed=1, reward=rrlib.ExactDifference(base, expert))
    assert_close(steered.mean(0), EXPERT[0], rtol=0, atol=0.04)
    assert extraction.units(base, "mean").isfinite().all()


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_model_that_was_asked_before_is_read_anew_at_other_levels(kind, scale):
    """Its tables are of the levels that it is read at, not of those that it was asked at first."""
    base = Denoiser(lambda x, t: 0.5 * x, cosine_scheduler(12, clip=False))
    x = torch.randn(12, 2, generator=stream(0, 0), dtype=torch.float64)
    t = torch.arange(12)
    found = []
    for before in (False, True):
        plain = MODELS[kind](EXPERT)
        network, schedule = plain.network, schedule_of(plain.scheduler)
        if before:  # by itself, and so all its tables are there
            Denoiser(network, schedule).x0(x[:1], t[:1])
        model = Denoiser(network, schedule, scale=scale)
        if before:
            model.x0(x[:1], t[:1])
        there = comparisons.aligned(base, model)
        first, last = there.schedule.span
        inside = slice(first, last + 1)
        found.append(there.x0(x[inside], t[inside]))
    assert torch.equal(*found)
