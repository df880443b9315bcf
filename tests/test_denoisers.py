"""Denoisers against diffusers' own scheduler, closed forms and finite differences."""

import pytest
import torch
from diffusers import DDPMScheduler
from torch.testing import assert_close

from rrlib.denoisers import (
    Denoiser,
    PlanNetwork,
    check_horizon,
    cosine_scheduler,
    denoising_loss,
)
from rrlib.errors import InputError
from rrlib.training import stream, train

STEPS = 20


def scheduler(prediction: str = "sample", clip: bool = False) -> DDPMScheduler:
    return DDPMScheduler(
        STEPS, beta_schedule="squaredcos_cap_v2", prediction_type=prediction, clip_sample=clip
    )


def toy(prediction: str, clip: bool) -> Denoiser:
    """Any smooth network will do; its outputs pass 1, so that clipping changes something."""
    mix = torch.randn(3, 3, generator=stream(1, 0))

    def network(x, t):
        return 1.5 * torch.tanh(x @ mix) + 0.02 * t[:, None, None]

    return Denoiser(network, scheduler(prediction, clip))


def batch(step: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(5, 8, 3, generator=stream(0, step), dtype=dtype)
    return x, torch.full((5,), step)


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
@pytest.mark.parametrize("step", [0, 1, STEPS // 2, STEPS - 1])
def test_x0_mean_and_deviation_make_the_step_of_diffusers(prediction, clip, step):
    denoiser = toy(prediction, clip)
    x, t = batch(step)
    theirs = denoiser.scheduler.step(
        denoiser.network(x, t), step, x, generator=torch.Generator().manual_seed(4)
    )
    assert_close(denoiser.x0(x, t), theirs.pred_original_sample, rtol=1e-5, atol=1e-5)
    draw = torch.randn(x.shape, generator=torch.Generator().manual_seed(4))
    ours = denoiser.mean(x, t) + denoiser.deviation(t, x) * draw
    assert_close(ours, theirs.prev_sample, rtol=1e-5, atol=2e-5)
    if step == 0:
        assert denoiser.deviation(t, x).eq(0).all()
        assert_close(denoiser.mean(x, t), denoiser.x0(x, t))


@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
def test_clipping_matters_in_the_toy(prediction):
    """Otherwise the comparison with clipping would repeat the one without."""
    x, t = batch(STEPS // 2)
    free, clipped = (toy(prediction, clip).x0(x, t) for clip in (False, True))
    assert_close(clipped, free.clamp(-1, 1))
    assert (free - clipped).abs().max() > 0.1


def test_the_readings_differ_per_row_of_a_mixed_batch():
    denoiser = toy("epsilon", False)
    x, _ = batch(3)
    t = torch.tensor([0, 3, 7, 12, 19])
    for reading in (denoiser.x0, denoiser.score, denoiser.mean, denoiser.epsilon):
        rows = [reading(x[i : i + 1], t[i : i + 1]) for i in range(len(t))]
        assert_close(reading(x, t), torch.cat(rows))


@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
def test_score_and_epsilon_of_a_gaussian_are_its_closed_forms(prediction):
    centre, variance = torch.tensor([0.3, -0.2, 0.5], dtype=torch.float64), 0.4
    table = scheduler(prediction)

    def exact(x, t):
        abar = table.alphas_cumprod.to(x)[t][:, None, None]
        spread = abar * variance + 1 - abar
        if prediction == "epsilon":
            return (1 - abar).sqrt() * (x - abar.sqrt() * centre) / spread
        return centre + abar.sqrt() * variance * (x - abar.sqrt() * centre) / spread

    denoiser = Denoiser(exact, table)
    x, _ = batch(2, torch.float64)
    t = torch.tensor([0, 4, 9, 15, 18])
    abar = table.alphas_cumprod.double()[t][:, None, None]
    score = -(x - abar.sqrt() * centre) / (abar * variance + 1 - abar)
    assert_close(denoiser.score(x, t), score, rtol=1e-9, atol=1e-9)
    assert_close(denoiser.epsilon(x, t), -score * (1 - abar).sqrt(), rtol=1e-9, atol=1e-9)


def test_epsilon_and_x0_of_a_known_draw_give_the_velocity_of_diffusers():
    table = scheduler()
    x0, _ = batch(0, torch.float64)
    draw, _ = batch(1, torch.float64)
    t = torch.tensor([0, 4, 9, 15, 19])
    x_t = table.add_noise(x0, draw, t)
    denoiser = Denoiser(lambda x, t: x0, table)
    assert_close(denoiser.epsilon(x_t, t), draw, rtol=1e-9, atol=1e-9)
    velocity = table.get_velocity(denoiser.x0(x_t, t), denoiser.epsilon(x_t, t), t)
    assert_close(velocity, table.get_velocity(x0, draw, t), rtol=1e-9, atol=1e-9)


def test_noise_is_the_forward_process():
    denoiser = toy("sample", False)
    x0, _ = batch(0)
    t = torch.tensor([0, 4, 9, 15, 19])
    draw = torch.randn(x0.shape, generator=stream(0, 7))
    abar = denoiser.scheduler.alphas_cumprod[t][:, None, None]
    assert_close(denoiser.noise(x0, t, stream(0, 7)), abar.sqrt() * x0 + (1 - abar).sqrt() * draw)


def test_a_mean_difference_is_beta_over_root_alpha_times_the_score_difference():
    """And with this sign: what pulls x0 up pulls score and mean up (Eq. 45 prints the opposite)."""
    base = Denoiser(lambda x, t: x.tanh(), scheduler())
    expert = Denoiser(lambda x, t: x.cos(), scheduler())
    x, _ = batch(0, torch.float64)
    t = torch.tensor([0, 4, 9, 15, 19])
    means, scores = expert.mean(x, t) - base.mean(x, t), expert.score(x, t) - base.score(x, t)
    beta = base.scheduler.betas.double()[t][:, None, None]
    # diffusers keeps its tables in float32, whose quotients carry their own rounding.
    factor = beta / (1 - beta).sqrt()
    assert_close(means, factor * scores, rtol=1e-4, atol=1e-9)
    assert_close(means, base.mean_per_score(t, x) * scores, rtol=1e-9, atol=1e-12)
    higher = expert.x0(x, t) > base.x0(x, t)
    assert higher.any() and not higher.all()
    assert torch.equal(means > 0, higher) and torch.equal(scores > 0, higher)


def test_cosine_scheduler_is_nichol_and_dhariwals():
    steps = torch.arange(51, dtype=torch.float64) / 50
    table = torch.cos((steps + 0.008) / 1.008 * torch.pi / 2).square()
    betas = (1 - table[1:] / table[:-1]).clamp(max=0.999)
    abar = (1 - betas).cumprod(0)
    ours = cosine_scheduler(50)
    assert_close(ours.alphas_cumprod.double(), abar, rtol=1e-4, atol=1e-7)
    assert ours.config.prediction_type == "sample"
    assert ours.config.clip_sample and not cosine_scheduler(50, clip=False).config.clip_sample
    assert Denoiser(lambda x, t: x, ours).steps == 50


@pytest.mark.parametrize("steps", [1, 0, -3])
def test_too_few_steps_are_refused(steps):
    with pytest.raises(InputError, match=rf"^steps={steps} is not allowed: at least 2"):
        cosine_scheduler(steps)


@pytest.mark.parametrize("channels", [(8,), (8, 16), (8, 16, 32)])
def test_plan_network_keeps_the_shape_where_check_horizon_says_so(channels):
    torch.manual_seed(0)
    network = PlanNetwork(5, channels)
    for horizon in range(1, 10):
        try:
            check_horizon(horizon, channels)
        except InputError:
            continue
        out = network(torch.randn(2, horizon, 5), torch.tensor([0, 7]))
        assert out.shape == (2, horizon, 5)
    factor = 2 ** (len(channels) - 1)
    check_horizon(3 * factor, channels)
    if factor > 1:
        odd = 3 * factor + 1
        with pytest.raises((AssertionError, RuntimeError)):  # what check_horizon saves from
            out = network(torch.randn(2, odd, 5), torch.tensor([0, 7]))
            assert out.shape == (2, odd, 5)


@pytest.mark.parametrize("horizon", [-4, 0, 2, 5, 6])
def test_check_horizon_names_value_and_factor(horizon):
    with pytest.raises(InputError, match=rf"^horizon={horizon} is not allowed: .* multiple of 4 "):
        check_horizon(horizon, (8, 16, 32))


def test_plan_network_depends_on_time_and_has_a_second_derivative():
    torch.manual_seed(0)
    network = PlanNetwork(3, (8, 16)).double()
    generator = stream(0, 0)
    x = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64).requires_grad_()
    v = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64)
    t = torch.tensor([2, 9])
    assert not torch.allclose(network(x, t), network(x, t + 5))

    def gradient(at):
        return torch.autograd.grad(network(at, t).square().sum(), at, create_graph=True)[0]

    exact = torch.autograd.grad((gradient(x) * v).sum(), x)[0]
    step = 1e-5
    ends = [gradient((x + sign * step * v).detach().requires_grad_()) for sign in (1, -1)]
    assert exact.abs().max() > 1e-3
    assert_close(exact, (ends[0] - ends[1]).detach() / (2 * step), rtol=1e-5, atol=1e-7)


def test_the_papers_plan_network_has_as_many_parameters_as_its_repository():
    count = sum(p.numel() for p in PlanNetwork(6, (32, 128, 256)).parameters())
    assert count == pytest.approx(3.68e6, rel=0.005)


@pytest.mark.parametrize("prediction", ["sample", "epsilon"])
def test_denoising_loss_is_the_mean_squared_error_of_the_networks_own_output(prediction):
    denoiser = toy(prediction, True)
    x0, _ = batch(0)
    generator = stream(3, 3)
    t = torch.randint(STEPS, (5,), generator=generator)
    draw = torch.randn(x0.shape, generator=generator)
    total = 0.0
    for i in range(5):
        abar = denoiser.scheduler.alphas_cumprod[t[i]]
        noised = abar.sqrt() * x0[i] + (1 - abar).sqrt() * draw[i]
        wanted = draw[i] if prediction == "epsilon" else x0[i]
        total += (denoiser.network(noised[None], t[i : i + 1])[0] - wanted).square().sum()
    assert_close(denoising_loss(denoiser, x0, stream(3, 3)), total / x0.numel())


def waves(n: int, seed: int) -> torch.Tensor:
    """Sine waves of random phase, [n, 8, 2]: their mean is zero, their mean square one half."""
    phase = 2 * torch.pi * torch.rand(n, 1, generator=stream(seed, 0))
    angle = phase + torch.arange(8) * torch.pi / 4
    return torch.stack([angle.sin(), angle.cos()], -1)


def test_training_beats_the_trivial_predictor_on_held_out_plans():
    torch.manual_seed(0)
    denoiser = Denoiser(PlanNetwork(2, (16, 32)), cosine_scheduler(STEPS))
    data, held_out = waves(256, 1), waves(512, 2)
    trivial = (held_out - data.mean(0)).square().mean()  # the best answer that does not look at x_t

    def loss(generator):
        rows = torch.randint(len(data), (32,), generator=generator)
        return denoising_loss(denoiser, data[rows], generator)

    for _ in train(denoiser.network, loss, steps=150, learning_rate=2e-3, seed=0, ema=0.95):
        pass
    with torch.no_grad():
        assert denoising_loss(denoiser, held_out, stream(5, 0)) < 0.5 * trivial
