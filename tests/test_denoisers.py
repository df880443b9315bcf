"""Denoisers against diffusers' own scheduler, closed forms and finite differences."""

import diffusers
import pytest
import torch
from diffusers import DDPMScheduler
from torch.func import jacrev, vmap
from torch.nn import functional
from torch.testing import assert_close

from rrlib.errors import InputError
from rrlib.method import guidance as steering
from rrlib.method.denoisers import Denoiser
from rrlib.method.guidance import sample
from rrlib.method.noise.schedulers import cosine_scheduler
from rrlib.plans.activations import mish
from rrlib.plans.conditioning import control_loss, given, plan_loss
from rrlib.plans.networks import ChannelsFirst, PlanNetwork, check_horizon
from rrlib.training import stream, train

STEPS = 20


def scheduler(prediction: str = "sample", clip: bool = False) -> DDPMScheduler:
    return DDPMScheduler(
        num_train_timesteps=STEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type=prediction,
        clip_sample=clip,
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


PREDICTIONS = ("sample", "epsilon", "v_prediction")


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_small_log", "fixed_large"])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("step", [0, 1, STEPS // 2, STEPS - 1])
def test_x0_mean_and_deviation_make_the_step_of_diffusers(prediction, clip, step, variance):
    table = DDPMScheduler.from_config(scheduler(prediction, clip).config, variance_type=variance)
    denoiser = Denoiser(toy(prediction, clip).network, table)
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


def test_the_clip_is_the_schedulers_own():
    x, t = batch(STEPS // 2)
    table = DDPMScheduler.from_config(scheduler(clip=True).config, clip_sample_range=0.4)
    free = toy("sample", False)
    assert_close(Denoiser(free.network, table).x0(x, t), free.x0(x, t).clamp(-0.4, 0.4))


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_that_of_diffusers_to_the_bit_and_leaves_the_scheduler_alone(dtype):
    denoiser = toy("sample", False)
    x0, _ = batch(0, dtype)
    t, table = torch.tensor([0, 4, 9, 15, 19]), denoiser.scheduler.alphas_cumprod
    ours = denoiser.noise(x0, t, stream(0, 7))
    assert denoiser.scheduler.alphas_cumprod is table  # diffusers' own moves it
    draw = torch.randn(x0.shape, generator=stream(0, 7), dtype=dtype)
    assert torch.equal(ours, scheduler().add_noise(x0, draw, t))


def test_a_denoisers_tables_are_its_own():
    denoiser = toy("epsilon", False)
    x, t = batch(7)
    before = denoiser.score(x, t)
    denoiser.scheduler.alphas_cumprod.mul_(0.5)
    assert torch.equal(denoiser.score(x, t), before)


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
            with pytest.raises(InputError, match=f"^horizon={horizon} is not allowed"):
                network(torch.randn(2, horizon, 5), torch.tensor([0, 7]))
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


# Other schedulers and networks


def made(kind, **options):
    return getattr(diffusers, kind)(STEPS, **options)


@pytest.mark.filterwarnings("ignore:__array")  # of their own
@pytest.mark.parametrize(
    "kind",
    ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler",
     "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler",
     "LMSDiscreteScheduler", "DEISMultistepScheduler", "HeunDiscreteScheduler",
     "KDPM2DiscreteScheduler"],
)  # fmt: skip
def test_whatever_samples_the_model_is_read_at_its_own_noise(kind):
    """Euler and Heun noise by sigma: their own `add_noise` is none of x_t's."""
    options = {"beta_start": 0.001, "beta_end": 0.2, "beta_schedule": "linear"}
    mine = Denoiser(lambda x, t: x.tanh(), made(kind, **options))
    peer = DDPMScheduler(STEPS, clip_sample=False, **options)
    x, _ = batch(0)
    t = torch.tensor([0, 4, 9, 15, 19])
    draw = torch.randn(x.shape, generator=stream(0, 7))
    assert torch.equal(mine.noise(x, t, stream(0, 7)), peer.add_noise(x, draw, t))
    clip = kind == "DDIMScheduler"  # its default
    for i, step in enumerate(t.tolist()):
        x0 = peer.step(x[i : i + 1].tanh(), step, x[i : i + 1]).pred_original_sample
        x0 = x0.clamp(-1, 1) if clip else x0
        assert_close(mine.x0(x, t)[i : i + 1], x0, rtol=1e-5, atol=1e-5)


class Own:
    """A scheduler that says nothing of itself."""


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True), "turns time"),
        (lambda: diffusers.FlowMatchLCMScheduler(STEPS), "a distilled model"),
        (lambda: diffusers.TCDScheduler(STEPS), "a distilled model"),
        (lambda: diffusers.UniPCMultistepScheduler(STEPS, use_flow_sigmas=True), "on a flow's lev"),
        (lambda: diffusers.ScoreSdeVeScheduler(STEPS), "no table alphas_cumprod"),
        (lambda: diffusers.CMStochasticIterativeScheduler(STEPS), "a distilled model"),
        (lambda: diffusers.EDMEulerScheduler(prediction_type="sample"), "type='sample' is none"),
        (Own, "no table alphas_cumprod"),
        (lambda: diffusers.LCMScheduler(1000), "distilled model"),
        (lambda: diffusers.TCDScheduler(1000), "distilled model"),
        (lambda: DDPMScheduler(STEPS, thresholding=True), "thresholding=True"),
        (lambda: DDPMScheduler(STEPS, variance_type="learned_range"), "variance_type='learned_ran"),
        (lambda: DDPMScheduler(STEPS, variance_type="fixed_large_log"), "variance_type='fixed_lar"),
        (lambda: DDPMScheduler(STEPS, prediction_type="flow"), "prediction_type='flow' is none of"),
        (lambda: DDPMScheduler(STEPS, rescale_betas_zero_snr=True), "zero terminal SNR"),
        (lambda: DDPMScheduler(STEPS, trained_betas=[0.0] * STEPS), "do not fall from below 1"),
        (lambda: diffusers.EulerDiscreteScheduler(STEPS, prediction_type="v_prediction",
                                                  timestep_type="continuous"), "other noise lev"),
    ],
)  # fmt: skip
def test_a_scheduler_of_another_kind_of_model_is_refused_at_once(make, reason):
    made = make()
    with pytest.raises(InputError) as caught:
        Denoiser(lambda x, t: x, made)
    message = str(caught.value)
    assert message.startswith(f"scheduler: {type(made).__name__} is not allowed: ")
    assert reason in message and message.endswith(("needed.", "is needed."))
    assert message.count(". ") == 0  # one sentence


@pytest.mark.parametrize("prediction", ["sample", "v_prediction"])
def test_a_last_step_of_noise_alone_is_read_by_its_limit(prediction):
    table = DDPMScheduler(
        STEPS, rescale_betas_zero_snr=True, prediction_type=prediction, clip_sample=False
    )
    assert table.alphas_cumprod[-1] == 0
    denoiser = Denoiser(lambda x, t: x.tanh(), table)
    x, t = batch(STEPS - 1)
    assert_close(denoiser.x0(x, t), x.tanh() if prediction == "sample" else -x.tanh())
    assert_close(denoiser.score(x, t), -x)
    assert denoiser.mean(x, t).isfinite().all() and denoiser.deviation(t, x).isfinite().all()
    with pytest.raises(InputError, match=r"noise alone .* target='mean' and displacement_units"):
        denoiser.mean_per_score(t, x)


def test_a_scheduler_made_again_from_its_configuration_keeps_its_number_of_steps():
    again = diffusers.DDIMScheduler.from_config(cosine_scheduler(50).config)
    assert again.config.num_train_timesteps == 50 and len(again.alphas_cumprod) == 50


def unet(channels: int) -> diffusers.UNet1DModel:
    torch.manual_seed(0)
    return diffusers.UNet1DModel(
        in_channels=channels, out_channels=channels, block_out_channels=(32, 32),
        down_block_types=("DownBlock1DNoSkip", "AttnDownBlock1D"),
        up_block_types=("AttnUpBlock1D", "UpBlock1DNoSkip"), extra_in_channels=64,
    )  # fmt: skip


def test_a_network_of_diffusers_is_read_as_it_is_or_turned_to_plans():
    network, t = unet(6), torch.tensor([3])
    plans = torch.randn(1, 32, 6, generator=stream(0, 0))
    with torch.no_grad():
        straight = Denoiser(network, scheduler()).x0(plans.mT, t)
        assert torch.equal(straight, network(plans.mT, t).sample)
        turned = Denoiser(ChannelsFirst(network), scheduler())
        assert torch.equal(turned.x0(plans, t), straight.mT)
        # It is not told what is given: its own third argument means something else.
        held = given(Denoiser(network, scheduler()), plans.mT[:, 0, :3])
        assert torch.equal(held.x0(plans.mT, t)[:, 0, -3:], plans.mT[:, 0, :3])
        with pytest.raises(InputError, match=r"\(1, 32, 6\) is not allowed: 6 channels .*Channels"):
            Denoiser(network, scheduler()).x0(plans, t)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(2, 8, 3, dtype=torch.float64), "x_t of torch.float64 is not all.*float32"),
        (torch.zeros(2, 8, 3).numpy(), "x_t: ndarray is not allowed: a torch tensor is needed"),
        (torch.zeros(2, 8, 5), r"x of shape \(2, 8, 5\) is not allowed: plans \[B, H, 3\]"),
        (torch.zeros(2, 7, 3), "horizon=7 is not allowed"),
    ],
)  # fmt: skip
def test_what_a_network_cannot_take_is_named(x, message):
    torch.manual_seed(0)
    denoiser = Denoiser(PlanNetwork(3, (8, 16)), scheduler())
    with pytest.raises(InputError, match=message):
        denoiser.x0(x, torch.tensor([1, 2]))


def test_an_error_of_the_networks_own_is_left_as_it_is():
    def network(x, t):
        raise RuntimeError("my own")

    with pytest.raises(RuntimeError, match="my own"):
        Denoiser(network, scheduler()).x0(*batch(1))


def test_an_answer_with_a_variance_is_refused():
    model = Denoiser(lambda x, t: torch.cat([x, x], 1), scheduler())
    with pytest.raises(InputError, match=r"answer of shape \(5, 16, 3\) to x_t of shape \(5, 8, 3"):
        model.x0(*batch(1))


@pytest.mark.parametrize("step", [-1, STEPS, -STEPS])
def test_a_step_that_does_not_exist_is_refused_and_does_not_wrap(step):
    denoiser, (x, _) = toy("sample", False), batch(1)
    t = torch.tensor([0, 1, step, 3, 4])
    for ask in (denoiser.x0, denoiser.score, denoiser.mean, denoiser.epsilon):
        with pytest.raises(InputError, match=rf"^t={step} is not allowed: steps from 0 to 19"):
            ask(x, t)
    with pytest.raises(InputError, match=rf"^t={step} is not allowed"):
        denoiser.noise(x, t, stream(0, 0))
    with pytest.raises(InputError, match=r"^t of torch.float32 is not allowed"):
        denoiser.x0(x, t.float())


# Half precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_in_half_precision_readings_are_those_of_single_but_for_rounding(prediction, dtype):
    """At every t of a thousand: 1 - abar itself would round to 0 there."""
    table = DDPMScheduler(1000, prediction_type=prediction, clip_sample=False)
    mix = torch.randn(3, 3, generator=stream(1, 0))

    def network(x, t):  # the rounding of its answer is not the readings' to mend
        return (x.float() @ mix).tanh().half().bfloat16().to(x.dtype)

    model, t = Denoiser(network, table), torch.arange(1000)
    x = torch.randn(1000, 3, generator=stream(0, 0)).to(dtype)
    for name in ("x0", "score", "mean", "epsilon"):
        ours, theirs = (getattr(model, name)(part, t) for part in (x, x.float()))
        assert ours.dtype == dtype and theirs.dtype == torch.float32
        assert ours.isfinite().all()
        assert torch.equal(ours, theirs.to(dtype)), name
    noised = model.noise(x, t, stream(0, 1))
    assert noised.dtype == dtype and noised.isfinite().all()
    assert model.answer(x, t).dtype == torch.float32


def test_sampling_in_half_precision_stays_there_and_near():
    model = Denoiser(lambda x, t: 0.5 * x, cosine_scheduler(STEPS))
    start = torch.randn(50, 3, generator=stream(0, 0)).bfloat16()
    for _, x in steering.denoise(model, start, stream(1, 0)):
        assert x.dtype == torch.bfloat16 and x.isfinite().all()


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


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("clip", [False, True])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_given_values_stand_in_x0_whatever_the_network_predicts(prediction, clip, told):
    """At every t, and in score and mean as well: with x0 they are one reading."""
    mix = torch.randn(3, 3, generator=stream(1, 0))
    seen = []

    def plainly(x, t):
        seen.append(x)
        return 3 * torch.tanh(x.cumsum(1) @ mix)

    def network(x, t, marks=None):
        return plainly(x, t)

    plain = Denoiser(network if told else plainly, scheduler(prediction, clip))
    kept = {0: torch.full((5, 2), 0.7), 7: torch.full((5, 2), -0.3)}
    held = given(plain, *kept.values())
    for step in range(STEPS):
        x, t = batch(step)
        x0 = held.x0(x, t)
        abar, back = plain.abar(t, x), {}
        back["score"] = (held.score(x, t) * (1 - abar) + x) / abar.sqrt()
        back["epsilon"] = (x - held.epsilon(x, t) * (1 - abar).sqrt()) / abar.sqrt()
        zero = plain.mean_from_x0(torch.zeros_like(x), x, t)
        one = plain.mean_from_x0(torch.ones_like(x), x, t)
        back["mean"] = (held.mean(x, t) - zero) / (one - zero)
        for end, value in kept.items():
            assert torch.equal(x0[:, end, 1:], value)
        for name, found in back.items():  # as exact as that quotient is in float32
            loose = 1e-6 if step < STEPS - 1 else 1e-2
            assert_close(found, x0, rtol=loose * 30, atol=loose * 30, msg=name)
        # Elsewhere it is the plain model's answer to what the network saw.
        literal = plain.x0(seen[-1], t)
        assert torch.equal(x0[:, 1:7], literal[:, 1:7])
        assert torch.equal(x0[..., 0], literal[..., 0])


def test_a_plan_can_be_given_more_afterwards():
    first, last = ends(True).values()
    model = given(given(marked(), first), first + 0.1, last)
    x, t = batch(3)
    assert torch.equal(model.x0(x, t)[:, 0, 1:], first + 0.1)
    assert torch.equal(model.x0(x, t)[:, 7, 1:], last)
    assert not marked().known


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


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_losses_of_x0_refuse_a_network_that_predicts_something_else(prediction):
    model, x0 = Denoiser(lambda x, t, given: x, scheduler(prediction)), torch.zeros(4, 8, 3)
    message = rf"^scheduler: prediction_type='{prediction}' is not allowed: .* 'sample' is needed"
    with pytest.raises(InputError, match=message):
        plan_loss(model, x0, 2, stream(0, 0), 0.5)
    with pytest.raises(InputError, match=message):
        control_loss(model, x0, 2, stream(0, 0))


@pytest.mark.parametrize(("observation", "share"), [(0, 0.5), (4, 0.5), (2, -0.1), (2, 1.1)])
def test_losses_name_numbers_out_of_range(observation, share):
    with pytest.raises(InputError, match=r"^(observation|share)=.* is not allowed"):
        plan_loss(marked(), torch.zeros(4, 8, 3), observation, stream(0, 0), share)


def test_the_first_action_weighs_ten_unless_told():
    x0 = torch.randn(6, 4, 5, generator=stream(0, 0))
    model = Denoiser(lambda x, t, given: x, scheduler())
    default = control_loss(model, x0, 2, stream(3, 0))
    assert torch.equal(default, control_loss(model, x0, 2, stream(3, 0), 10.0))
    assert not torch.equal(default, control_loss(model, x0, 2, stream(3, 0), 9.0))


def waves(n: int, seed: int) -> torch.Tensor:
    """Sine waves of random phase, [n, 8, 2]: their mean is zero, their mean square one half."""
    phase = 2 * torch.pi * torch.rand(n, 1, generator=stream(seed, 0))
    angle = phase + torch.arange(8) * torch.pi / 4
    return torch.stack([angle.sin(), angle.cos()], -1)


@pytest.mark.slow
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
    """A network that returns what it is shown and more: what it says of what is given is naught."""
    torch.manual_seed(0)
    x0, scheduler = torch.randn(6, 4, 5), cosine_scheduler(STEPS)
    seen = {}

    def network(x, t, marks):
        seen.update(x=x, t=t, marks=marks)
        return x + 0.25

    found = control_loss(Denoiser(network, scheduler), x0, 2, stream(3, 0), 7.0)
    assert torch.equal(seen["x"][:, 0, 3:], x0[:, 0, 3:])
    assert seen["marks"][:, 0].all()
    assert not seen["marks"][:, 1:].any()
    total = 0.0
    for plan, wanted in zip(seen["x"], x0, strict=True):
        for step in range(4):
            for number in range(5):
                error = (plan[step, number] + 0.25 - wanted[step, number]) ** 2
                given = step == 0 and number >= 3
                total += error * (0.0 if given else 7.0 if step == 0 else 1.0)
    assert_close(found, total / x0.numel())
    generator = stream(3, 0)
    t = torch.randint(STEPS, (6,), generator=generator)
    noised = Denoiser(network, scheduler).noise(x0, t, generator)
    assert torch.equal(seen["t"], t)
    assert torch.equal(seen["x"][:, 1:], noised[:, 1:])


@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_mish_without_a_gradient_is_torchs_own_in_all_digits(dtype, near):
    x = torch.linspace(-60, 200, 5201, dtype=dtype)
    own = functional.mish(x.double()).to(dtype)
    assert_close(mish(x), own, rtol=near, atol=0)
    assert torch.equal(mish(x.requires_grad_()), functional.mish(x))
    slope = vmap(jacrev(mish))(x.detach())
    assert_close(slope, vmap(jacrev(functional.mish))(x.detach()), rtol=near, atol=near)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mish_in_half_precision_is_torchs_own(dtype):
    """e^x is beyond float16 from 11.1 on."""
    x = torch.linspace(-60, 200, 5201).to(dtype)
    assert torch.equal(mish(x), functional.mish(x)) and mish(x).isfinite().all()


def test_a_plan_network_says_the_same_whether_or_not_it_is_asked_for_a_gradient():
    torch.manual_seed(0)
    network, t = PlanNetwork(3, (8, 16)), torch.tensor([2, 9])
    x = torch.randn(2, 8, 3, generator=stream(0, 0))
    asked = network(x.requires_grad_(), t)
    with torch.no_grad():
        assert_close(network(x, t), asked, rtol=1e-5, atol=1e-6)
