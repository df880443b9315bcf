"""Denoisers against diffusers' own scheduler, closed forms and finite differences."""

import pytest
import torch
from diffusers import DDPMScheduler
from torch.testing import assert_close

from rrlib.denoisers import (
    Denoiser,
    PlanNetwork,
    check_horizon,
    control_loss,
    cosine_scheduler,
    given,
    plan_loss,
)
from rrlib.errors import InputError
from rrlib.steering import sample
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


@pytest.mark.parametrize("patch", [1, 2, 3])
@pytest.mark.parametrize("channels", [(8,), (8, 16), (8, 16, 32)])
def test_plan_network_keeps_the_shape_where_check_horizon_says_so(channels, patch):
    torch.manual_seed(0)
    network = PlanNetwork(5, channels, patch)
    factor = patch * 2 ** (len(channels) - 1)
    allowed = []
    for horizon in range(1, 2 * factor + 2):
        try:
            check_horizon(horizon, channels, patch)
        except InputError:
            with pytest.raises((AssertionError, RuntimeError)):  # what check_horizon saves from
                out = network(torch.randn(2, horizon, 5), torch.tensor([0, 7]))
                assert out.shape == (2, horizon, 5)
            continue
        allowed.append(horizon)
        out = network(torch.randn(2, horizon, 5), torch.tensor([0, 7]))
        assert out.shape == (2, horizon, 5)
    assert allowed == list(range(factor, 2 * factor + 2, factor))


@pytest.mark.parametrize(("patch", "horizons"), [(1, (-4, 0, 2, 5, 6)), (2, (-8, 0, 4, 12, 9))])
def test_check_horizon_names_value_and_factor(patch, horizons):
    for horizon in horizons:
        message = rf"^horizon={horizon} is not allowed: .* multiple of {4 * patch} "
        with pytest.raises(InputError, match=message):
            check_horizon(horizon, (8, 16, 32), patch)
    check_horizon(8 * patch, (8, 16, 32), patch)


@pytest.mark.parametrize("patch", [1, 2, 4])
def test_plan_network_is_its_unet_on_patches_filled_one_number_at_a_time(patch):
    torch.manual_seed(0)
    network = PlanNetwork(3, (8, 16), patch)
    x, t = torch.randn(2, 8, 3, generator=stream(0, 0)), torch.tensor([2, 9])
    marks = torch.zeros(2, 8, dtype=torch.bool)
    marks[0, 0] = marks[1, 0] = marks[1, 5] = True
    seen = torch.empty(2, 4 * patch, 8 // patch)
    for i in range(2):
        for step in range(8):
            row = 4 * (step % patch)
            for j in range(3):
                seen[i, row + j, step // patch] = x[i, step, j]
            seen[i, row + 3, step // patch] = float(marks[i, step])
    out = network.unet(seen, t).sample
    assert out.shape == (2, 3 * patch, 8 // patch)
    literal = torch.empty(2, 8, 3)
    for step in range(8):
        for j in range(3):
            literal[:, step, j] = out[:, 3 * (step % patch) + j, step // patch]
    assert torch.equal(network(x, t, marks), literal)
    unmarked = network(x, t)
    assert torch.equal(unmarked, network(x, t, torch.zeros_like(marks)))
    assert (unmarked - literal).abs().amax((1, 2)).min() > 1e-4  # a mark is felt


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
    """3.68 M, three digits, once the weights that read the marks are left out."""
    network = PlanNetwork(6, (32, 128, 256))
    first = network.unet.down_blocks[0].resnets[0]
    marks = [first.conv_in.conv1d.weight[:, 6], first.residual_conv.weight[:, 6]]
    assert sum(part.numel() for part in marks) == 32 * 5 + 32
    count = sum(p.numel() for p in network.parameters())
    assert count - 32 * 5 - 32 == pytest.approx(3.68e6, abs=0.005e6)
    assert count < 3.685e6  # with them too


# What is given


def marked(clip: bool = True) -> Denoiser:
    """A smooth network that is told what is given; `seen` holds what it was asked."""
    mix = torch.randn(3, 3, generator=stream(1, 0))

    def network(x, t, marks=None):
        network.seen.append((x.clone(), t, marks))
        told = 0 if marks is None else 0.4 * marks[..., None]
        return torch.tanh(x.cumsum(1) @ mix + told) + 0.02 * t[:, None, None]

    network.seen = []
    return Denoiser(network, scheduler(clip=clip))


def ends(both: bool) -> dict[int, torch.Tensor]:
    """Observations [5, 2] of step 0, and of the last of eight."""
    found = {0: torch.rand(5, 2, generator=stream(6, 0)) * 2 - 1}
    return found | ({7: torch.rand(5, 2, generator=stream(6, 1)) * 2 - 1} if both else {})


@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("both", [False, True])
def test_given_holds_and_marks_what_is_given_and_leaves_the_rest_to_the_network(both, clip):
    plain, kept = marked(clip), ends(both)
    held = given(plain, *kept.values())
    assert held.scheduler is plain.scheduler
    for step in range(STEPS):
        x, t = batch(step)
        untouched = x.clone()
        ours = held.x0(x, t)
        assert torch.equal(x, untouched)
        asked, at, marks = plain.network.seen[-1]
        literal, told = x.clone(), torch.zeros(5, 8, dtype=torch.bool)
        for i in range(5):
            for end, observation in kept.items():
                told[i, end] = True
                for j in range(2):
                    literal[i, end, 1 + j] = observation[i, j]  # after the one action
        assert torch.equal(asked, literal) and torch.equal(at, t)
        assert marks.dtype == torch.bool and torch.equal(marks, told)
        answer = plain.network(literal, t, told)
        answer = answer.clamp(-1, 1) if clip else answer
        for end, observation in kept.items():
            answer[:, end, 1:] = observation
        assert torch.equal(ours, answer)


@pytest.mark.parametrize("both", [False, True])
def test_given_ignores_what_x_t_says_there(both):
    plain, kept = marked(), ends(both)
    held = given(plain, *kept.values())
    x, t = batch(9)
    other, action, next_to = x.clone(), x.clone(), x.clone()
    for end in kept:
        other[:, end, 1:] += 3
        action[:, end, 0] += 0.1
        next_to[:, end - 1 if end else 1, 1:] += 0.1
    assert torch.equal(held.x0(other, t), held.x0(x, t))
    for changed in (action, next_to):
        assert not torch.equal(held.x0(changed, t), held.x0(x, t))


@pytest.mark.parametrize("both", [False, True])
def test_sampling_a_given_model_ends_where_it_was_told(both):
    torch.manual_seed(0)
    kept = ends(both)
    model = given(Denoiser(PlanNetwork(3, (8, 16)), cosine_scheduler(STEPS)), *kept.values())
    plans = sample(model, (5, 8, 3), stream(2, 0))
    for end, observation in kept.items():
        assert_close(plans[:, end, 1:], observation, rtol=0, atol=1e-6)
    assert (plans[:, :, 0].abs() <= 1 + 1e-6).all()


# Training


def test_plan_loss_is_the_mean_squared_error_of_the_networks_own_output():
    denoiser = marked()
    x0 = torch.randn(40, 8, 3, generator=stream(0, 0))
    generator = stream(3, 3)
    t = torch.randint(STEPS, (40,), generator=generator)
    draw = torch.randn(x0.shape, generator=generator)
    choice = torch.rand(40, generator=generator)
    assert len({int(4 * c) for c in choice}) == 4  # all three kinds are there
    total = 0.0
    for i in range(40):
        abar = denoiser.scheduler.alphas_cumprod[t[i]]
        seen = (abar.sqrt() * x0[i] + (1 - abar).sqrt() * draw[i])[None]
        marks = torch.zeros(1, 8, dtype=torch.bool)
        known = [0, 7] if choice[i] < 0.25 else [0] if choice[i] < 0.5 else []
        for step in known:
            marks[0, step] = True
            seen[0, step, 1:] = x0[i, step, 1:]  # the observation, not the action
        total += (denoiser.network(seen, t[i : i + 1], marks)[0] - x0[i]).square().sum()
    assert_close(plan_loss(denoiser, x0, 2, stream(3, 3), 0.5), total / x0.numel())


@pytest.mark.parametrize("share", [0.25, 0.5])
def test_plan_loss_gives_the_first_to_half_of_a_share_and_both_to_the_other_half(share):
    denoiser, n = marked(), 20_000
    x0 = torch.randn(n, 8, 3, generator=stream(0, 0))
    plan_loss(denoiser, x0, 2, stream(4, 0), share)
    ((x, t, marks),) = denoiser.network.seen
    assert not marks[:, 1:7].any()
    kinds = 2 * marks[:, 0].long() + marks[:, 7].long()
    for late in (False, True):  # whatever t
        rows = (t >= STEPS // 2) == late
        shares = torch.bincount(kinds[rows], minlength=4) / rows.sum()
        expected = torch.tensor([1 - share, 0.0, share / 2, share / 2])
        assert_close(shares, expected, rtol=0, atol=0.03)  # six deviations
        assert shares[1] == 0
    assert torch.bincount(t, minlength=STEPS).shape == (STEPS,)
    clean = x == x0  # noise leaves nothing as it was
    assert torch.equal(clean[..., 1], marks) and torch.equal(clean[..., 2], marks)
    assert not clean[..., 0].any()


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
        return plan_loss(denoiser, data[rows], 1, generator, 0.5)

    for _ in train(denoiser.network, loss, steps=400, learning_rate=4e-3, seed=0, ema=0.95):
        pass
    with torch.no_grad():
        assert plan_loss(denoiser, held_out, 1, stream(5, 0), 0.5) < 0.5 * trivial
        # As a density: half of the plans come with nothing given.
        t = torch.randint(STEPS, (512,), generator=stream(5, 1))
        x_t = denoiser.noise(held_out, t, stream(5, 2))
        assert (denoiser.x0(x_t, t) - held_out).square().mean() < 0.5 * trivial
        # As a planner: out of pure noise, the two ends alone tell the phase of what lies between.
        last = torch.full((512,), STEPS - 1)
        noise = torch.randn(held_out.shape, generator=stream(5, 3))
        told = given(denoiser, held_out[:, 0, 1:], held_out[:, -1, 1:])
        planned = (told.x0(noise, last) - held_out)[:, 1:-1].square().mean()
        assert planned < 0.7 * trivial


def test_control_loss_holds_the_first_observation_and_weighs_the_first_action():
    """A network that returns what it is shown: the loss is the noise itself, weighed."""
    torch.manual_seed(0)
    x0, scheduler = torch.randn(6, 4, 5), cosine_scheduler(STEPS)
    seen = {}

    def network(x, t, marks):
        seen.update(x=x, t=t, marks=marks)
        return x

    found = control_loss(Denoiser(network, scheduler), x0, 2, stream(3, 0), 7.0)
    assert torch.equal(seen["x"][:, 0, 3:], x0[:, 0, 3:])
    assert seen["marks"][:, 0].all()
    assert not seen["marks"][:, 1:].any()
    total = 0.0
    for plan, wanted in zip(seen["x"], x0, strict=True):
        for step in range(4):
            for number in range(5):
                error = (plan[step, number] - wanted[step, number]) ** 2
                total += error * (7.0 if step == 0 and number < 3 else 1.0)
    assert_close(found, total / x0.numel())
    generator = stream(3, 0)
    t = torch.randint(STEPS, (6,), generator=generator)
    noised = Denoiser(network, scheduler).noise(x0, t, generator)
    assert torch.equal(seen["t"], t)
    assert torch.equal(seen["x"][:, 1:], noised[:, 1:])
