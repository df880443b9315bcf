"""One contract for every diffusion model: a network, a diffusers scheduler, and four readings.

The readings of a model at (x_t, t) are x0 = E[x_0 | x_t], epsilon, the score and the mean of
p(x_{t-1} | x_t).
They say the same thing in four ways; every conversion between them is here and nowhere else.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler, UNet1DModel
from torch import Tensor, nn

from rrlib.errors import InputError


def cosine_scheduler(steps: int, clip: bool = True) -> DDPMScheduler:
    """The cosine schedule (Nichol and Dhariwal, s = 0.008) with x0 as the network's output.

    Args:
        steps: diffusion steps T, at least 2.
        clip: keep x0 in [-1, 1], the range of normalised plans (so do the paper's authors).
    """
    if steps < 2:
        raise InputError(f"steps={steps} is not allowed: at least 2 diffusion steps are needed.")
    return DDPMScheduler(
        steps, beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=clip
    )


@dataclass(frozen=True)
class Denoiser:
    """A diffusion model.

    Attributes:
        network: (x_t [B, ...], t [B] int64) -> prediction [B, ...], x0 or epsilon as the
            scheduler's `prediction_type` says ("sample" or "epsilon").
        scheduler: diffusers' DDPMScheduler; t runs over 0 .. T - 1, and t = 0 is the least noise.
    """

    network: Callable[[Tensor, Tensor], Tensor]
    scheduler: DDPMScheduler

    def __post_init__(self):
        kind = self.scheduler.config.prediction_type
        if kind not in ("sample", "epsilon"):
            raise InputError(
                f"scheduler: prediction_type={kind!r} is not allowed: "
                "'sample' or 'epsilon' is needed."
            )

    @property
    def steps(self) -> int:
        """T, the number of diffusion steps."""
        return self.scheduler.config.num_train_timesteps

    def _at(self, table: Tensor, t: Tensor, like: Tensor) -> Tensor:
        """table[t] shaped [B, 1, ...] to multiply `like` [B, ...]."""
        return table.to(like)[t].reshape(-1, *[1] * (like.ndim - 1))

    def abar(self, t: Tensor, like: Tensor) -> Tensor:
        """alpha-bar at t, [B, 1, ...]."""
        return self._at(self.scheduler.alphas_cumprod, t, like)

    def noise(self, x0: Tensor, t: Tensor, generator: torch.Generator) -> Tensor:
        """A draw of x_t given x_0 [B, ...] at t [B] (the forward process, appendix A.2)."""
        draw = torch.randn(x0.shape, generator=generator, device=x0.device, dtype=x0.dtype)
        return self.scheduler.add_noise(x0, draw, t)

    def x0(self, x_t: Tensor, t: Tensor) -> Tensor:
        """E[x_0 | x_t], [B, ...], clipped where the scheduler clips."""
        out = self.network(x_t, t)
        if self.scheduler.config.prediction_type == "epsilon":
            abar = self.abar(t, x_t)
            out = (x_t - (1 - abar).sqrt() * out) / abar.sqrt()
        if self.scheduler.config.clip_sample:
            limit = self.scheduler.config.clip_sample_range
            out = out.clamp(-limit, limit)
        return out

    def score(self, x_t: Tensor, t: Tensor) -> Tensor:
        """grad log p_t(x_t), [B, ...]."""
        return self.score_from_x0(self.x0(x_t, t), x_t, t)

    def epsilon(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The predicted noise, [B, ...]: minus the score times sqrt(1 - abar_t)."""
        return -self.score(x_t, t) * (1 - self.abar(t, x_t)).sqrt()

    def mean(self, x_t: Tensor, t: Tensor) -> Tensor:
        """mu(x_t, t), the mean of p(x_{t-1} | x_t), [B, ...] (Eq. 17); x0 itself at t = 0."""
        return self.mean_from_x0(self.x0(x_t, t), x_t, t)

    def score_from_x0(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The score that belongs to an x0, [B, ...] (Tweedie's formula)."""
        abar = self.abar(t, x_t)
        return (abar.sqrt() * x0 - x_t) / (1 - abar)

    def mean_from_x0(self, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """The mean that belongs to an x0, [B, ...]: of q(x_{t-1} | x_t, x_0)."""
        abar, before = self.abar(t, x_t), self._abar_before(t, x_t)
        alpha = abar / before
        return (before.sqrt() * (1 - alpha) * x0 + alpha.sqrt() * (1 - before) * x_t) / (1 - abar)

    def mean_per_score(self, t: Tensor, like: Tensor) -> Tensor:
        """beta_t / sqrt(alpha_t), [B, 1, ...]: a score difference times it is a mean difference."""
        alpha = self.abar(t, like) / self._abar_before(t, like)
        return (1 - alpha) / alpha.sqrt()

    def deviation(self, t: Tensor, like: Tensor) -> Tensor:
        """sigma_t of p(x_{t-1} | x_t), [B, 1, ...] (the smaller of DDPM's two choices)."""
        abar, before = self.abar(t, like), self._abar_before(t, like)
        return ((1 - abar / before) * (1 - before) / (1 - abar)).sqrt()

    def _abar_before(self, t: Tensor, like: Tensor) -> Tensor:
        table = self.scheduler.alphas_cumprod
        return self._at(torch.cat([table.new_ones(1), table[:-1]]), t, like)


class PlanNetwork(nn.Module):
    """Diffuser's temporal U-Net (diffusers' UNet1DModel) for plans [B, H, D].

    Args:
        width: D, numbers per time step (actions, then observations).
        channels: per resolution; the horizon is halved between two resolutions.
        patch: time steps that enter the U-Net as one; it then works on H / patch of them, and
            costs that much less.

    It can be told which time steps are given: one more input channel says so.
    """

    def __init__(self, width: int, channels: tuple[int, ...] = (32, 128, 256), patch: int = 1):
        super().__init__()
        levels = len(channels)
        self.patch = patch
        self.unet = UNet1DModel(
            in_channels=(width + 1) * patch,
            out_channels=width * patch,
            time_embedding_type="positional",
            use_timestep_embedding=True,
            flip_sin_to_cos=False,
            freq_shift=1,
            act_fn="mish",
            norm_num_groups=8,
            layers_per_block=1,
            downsample_each_block=False,
            block_out_channels=channels,
            down_block_types=("DownResnetBlock1D",) * levels,
            up_block_types=("UpResnetBlock1D",) * (levels - 1),
            mid_block_type="MidResTemporalBlock1D",
            out_block_type="OutConv1DBlock",
        )

    def forward(self, x: Tensor, t: Tensor, given: Tensor | None = None) -> Tensor:
        """Prediction [B, H, D] for x [B, H, D] at t [B].

        given: bool [B, H], the steps whose observations are clean; None for none.
        """
        mark = x.new_zeros(x.shape[:2]) if given is None else given.to(x)
        patches = torch.cat([x, mark[..., None]], -1).unflatten(1, (-1, self.patch)).flatten(2)
        out = self.unet(patches.mT, t).sample.mT  # [B, H / patch, patch D]
        return out.reshape(x.shape)


def check_horizon(horizon: int, channels: tuple[int, ...], patch: int = 1) -> None:
    """Raise InputError unless `horizon` can be cut and halved as the network does."""
    factor = patch * 2 ** (len(channels) - 1)
    if horizon < factor or horizon % factor:
        raise InputError(
            f"horizon={horizon} is not allowed: a positive multiple of {factor} is needed by "
            f"a network of {len(channels)} resolutions."
        )


def given(denoiser: Denoiser, first: Tensor, last: Tensor | None = None) -> Denoiser:
    """The model of plans whose first (and last) observation is given, as Diffuser's inpainting.

    What is given is clean at every t, whatever x_t says there.

    Args:
        denoiser: of a PlanNetwork that was trained with `plan_loss`.
        first, last: observations [B, do], normalised.
    """
    ends = {0: first} if last is None else {0: first, -1: last}

    def put(x: Tensor) -> Tensor:
        x = x.clone()
        for step, observation in ends.items():
            x[:, step, -observation.shape[-1] :] = observation
        return x

    def network(x: Tensor, t: Tensor) -> Tensor:
        marks = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
        marks[:, list(ends)] = True
        return put(denoiser.network(put(x), t, marks))

    return Denoiser(network, denoiser.scheduler)


def plan_loss(
    denoiser: Denoiser, x0: Tensor, observation: int, generator: torch.Generator, share: float
) -> Tensor:
    """Mean squared error of a plan network's x0 at uniform t, [] (Eq. 18 in x0's form).

    Some plans have their first observation given, as many their first and last, the others are
    noised throughout: one network serves as density of plans and as planner (see `given`).

    Args:
        denoiser: of a PlanNetwork that predicts x0.
        x0: plans [B, H, D], normalised.
        observation: do, numbers per observation.
        generator: of t, noise and what is given.
        share: of the plans that have an observation given.
    """
    device = x0.device
    t = torch.randint(denoiser.steps, (len(x0),), generator=generator, device=device)
    x_t = denoiser.noise(x0, t, generator)
    choice = torch.rand(len(x0), generator=generator, device=device)
    marks = torch.zeros(x0.shape[:2], dtype=torch.bool, device=device)
    marks[:, 0], marks[:, -1] = choice < share, choice < share / 2
    clean = marks[..., None] & (
        torch.arange(x0.shape[-1], device=device) >= x0.shape[-1] - observation
    )
    return (denoiser.network(torch.where(clean, x0, x_t), t, marks) - x0).square().mean()


def control_loss(
    denoiser: Denoiser,
    x0: Tensor,
    observation: int,
    generator: torch.Generator,
    first_action: float = 10.0,
) -> Tensor:
    """Diffuser's loss for control, []: the first observation is given, the first action matters.

    Args:
        denoiser: of a PlanNetwork that predicts x0.
        x0: plans [B, H, D], normalised.
        observation: do, numbers per observation.
        generator: of t and noise.
        first_action: weight of the squared error of the first action; all others weigh 1.
    """
    t = torch.randint(denoiser.steps, (len(x0),), generator=generator, device=x0.device)
    marks = torch.zeros(x0.shape[:2], dtype=torch.bool, device=x0.device)
    marks[:, 0] = True
    weight = torch.ones_like(x0[0])
    weight[0, :-observation], weight[0, -observation:] = first_action, 0.0
    x_t = held(denoiser.noise(x0, t, generator), x0[:, 0, -observation:])
    return ((denoiser.network(x_t, t, marks) - x0).square() * weight).mean()


def held(x: Tensor, first: Tensor) -> Tensor:
    """Plans [B, H, D] with the first observation [B, do] in its place."""
    x = x.clone()
    x[:, 0, -first.shape[-1] :] = first
    return x


def kept_steps(steps: int, denoising: int) -> list[int]:
    """The `denoising` of T = `steps` steps that a shorter sampling visits, from T - 1 down to 0.

    Raises:
        InputError: fewer than 2 steps, unless T is visited whole, or more than T.
    """
    if not min(2, steps) <= denoising <= steps:
        raise InputError(
            f"denoising={denoising} is not allowed: a number from 2 to {steps}, the steps that the "
            "models were trained with, is needed."
        )
    return [round(k * (steps - 1) / (denoising - 1)) for k in reversed(range(denoising))]


def between(
    denoiser: Denoiser, x0: Tensor, x_t: Tensor, t: int, before: int
) -> tuple[Tensor, Tensor]:
    """Mean [B, ...] and deviation [] of q(x_before | x_t, x_0), steps between t and it left out.

    With before = t - 1 it is `Denoiser.mean_from_x0` and `Denoiser.deviation`; before = -1 is x_0.
    """
    table = denoiser.scheduler.alphas_cumprod.to(x_t)
    abar, earlier = table[t], table[before] if before >= 0 else table.new_ones(())
    alpha = abar / earlier
    mean = (earlier.sqrt() * (1 - alpha) * x0 + alpha.sqrt() * (1 - earlier) * x_t) / (1 - abar)
    return mean, ((1 - alpha) * (1 - earlier) / (1 - abar)).sqrt()
