"""What a scheduler of diffusers says about a model: how much noise each step has, and the clip.

Only the noise is read, so whatever samples with it (Euler, DPM-Solver, ...), a model that was
trained on x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps at integer t is read right; a scheduler
of another kind of model is refused when it is given.
"""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from rrlib.errors import InputError, shown

if TYPE_CHECKING:
    from diffusers import DDPMScheduler

Prediction = Literal["sample", "epsilon", "v_prediction"]
VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large")


def cosine_scheduler(steps: int, clip: bool = True) -> "DDPMScheduler":
    """The cosine schedule (Nichol and Dhariwal, s = 0.008) with x0 as the network's output.

    Args:
        steps: diffusion steps T, at least 2.
        clip: keep x0 in [-1, 1], the range of normalised plans (so do the paper's authors).

    >>> cosine_scheduler(100).config.prediction_type
    'sample'
    """
    if steps < 2:
        raise InputError(f"steps={steps} is not allowed: at least 2 diffusion steps are needed.")
    from diffusers import DDPMScheduler  # takes seconds; those who bring a schedule need none

    # By name: given by position, the number would be missing from what `from_config` reads.
    return DDPMScheduler(
        num_train_timesteps=steps,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=clip,
    )


@dataclass(frozen=True, eq=False)
class Schedule:
    """A scheduler's own tables; the scheduler may move or change its own without harm.

    Attributes:
        abar: alpha-bar at each t, T numbers of float32.
        prediction: what the network predicts.
        clip: x0 is kept within plus and minus this; None where it is not clipped.
        large: whether sampling uses the larger of DDPM's two deviations.
        name: of the noise schedule, for messages.
    """

    abar: tuple[float, ...]
    prediction: Prediction
    clip: float | None
    large: bool
    name: str
    copies: dict = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, scheduler) -> "Schedule":
        """Read a scheduler.

        Raises:
            InputError: it is of a kind of model that cannot be read.
        """
        config = getattr(scheduler, "config", None)

        def setting(name: str, default=None):
            return getattr(config, name, default)

        reason = _reason(scheduler, setting)
        if reason:
            raise InputError(f"scheduler: {type(scheduler).__name__} is not allowed: {reason}.")
        clip = float(setting("clip_sample_range", 1.0)) if setting("clip_sample") else None
        return cls(
            tuple(scheduler.alphas_cumprod.detach().float().tolist()),
            setting("prediction_type"),
            clip,
            setting("variance_type") == "fixed_large",
            str(setting("beta_schedule", "its own")),
        )

    def tables(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """abar at t and at t - 1 (1 before the first step), [T], on the device of `like`.

        In the precision of `like`, but no less than float32: 1 - abar rounds to 0 below.
        """
        key = like.device, wide(like)
        if key not in self.copies:
            abar = torch.tensor(self.abar, dtype=key[1]).to(like.device)
            self.copies[key] = abar, torch.cat([abar.new_ones(1), abar[:-1]])
        return self.copies[key]

    @property
    def about(self) -> str:
        """For messages."""
        ends = f"alpha-bar from {self.abar[0]:.6g} to {self.abar[-1]:.3g}"
        return f"{len(self.abar)} steps, {self.name}, {ends}"


def kept_steps(steps: int, num_inference_steps: int) -> list[int]:
    """Those of T = `steps` steps that a shorter sampling visits, from T - 1 down to 0.

    Raises:
        InputError: fewer than 2 steps, unless T is visited whole, or more than T.
    """
    if not min(2, steps) <= num_inference_steps <= steps:
        raise InputError(
            f"num_inference_steps={num_inference_steps} is not allowed: a number from 2 to "
            f"{steps}, the steps that the models were trained with, is needed."
        )
    if steps == 1:
        return [0]
    gaps = num_inference_steps - 1
    return [round(k * (steps - 1) / gaps) for k in reversed(range(num_inference_steps))]


def wide(like: Tensor) -> torch.dtype:
    """The precision of `like`, but no less than float32."""
    return torch.promote_types(like.dtype, torch.float32)


def narrow(value: Tensor, like: Tensor) -> Tensor:
    """`value` in half precision, if `like` is."""
    return value.to(like.dtype) if like.dtype != wide(like) else value


def check_times(t: Tensor, steps: int) -> None:
    """Raise InputError unless t [B] are steps of the schedule (not looked at on a GPU)."""
    if not isinstance(t, Tensor) or t.dtype.is_floating_point or t.dtype == torch.bool:
        kind = t.dtype if isinstance(t, Tensor) else type(t).__name__
        raise InputError(f"t of {kind} is not allowed: a tensor of whole numbers is needed.")
    if t.device.type != "cpu" or not t.numel():
        return  # a look would stall a GPU
    if t.min() < 0 or t.max() >= steps:
        worst = int(t.min()) if t.min() < 0 else int(t.max())
        raise InputError(f"t={worst} is not allowed: steps from 0 to {steps - 1} are needed.")


def _reason(scheduler, setting) -> str:
    """Why a scheduler's model cannot be read; empty if it can."""
    table = getattr(scheduler, "alphas_cumprod", None)
    if setting("original_inference_steps") is not None:
        return (
            "a distilled model leaps to the end of its path and has no E[x_0 | x_t]; the model "
            "that it was distilled from is needed"
        )
    if not isinstance(table, Tensor) or table.ndim != 1 or len(table) < 2:
        return (
            "it has no table alphas_cumprod; a scheduler of models of x_t = sqrt(abar) x_0 + "
            "sqrt(1 - abar) eps at whole t, such as DDPMScheduler, is needed"
        )
    if setting("prediction_type") not in get_args(Prediction):
        allowed = ", ".join(map(repr, get_args(Prediction)))
        found = shown(setting("prediction_type"))
        return f"prediction_type={found} is none of {allowed}, one of which is needed"
    if setting("use_flow_sigmas") or setting("timestep_type") == "continuous":
        return "its model is asked at other noise levels than alphas_cumprod has: these are needed"
    if setting("thresholding"):
        return "thresholding=True clips x0 by each sample's own quantile; False is needed"
    if setting("variance_type", "fixed_small") not in (None, *VARIANCES):
        found, allowed = setting("variance_type"), ", ".join(map(repr, VARIANCES))
        return f"variance_type={found!r} is none of {allowed}, one of which is needed"
    inside = bool(((table[:-1] > 0) & (table[:-1] < 1)).all()) and 0 <= float(table[-1]) < 1
    if not inside or not bool((table.diff() <= 0).all()):
        return "its alphas_cumprod do not fall from below 1 towards 0, as is needed"
    if float(table[-1]) == 0 and setting("prediction_type") == "epsilon":
        return (
            "its last step is noise alone (zero terminal SNR), where predicted noise says nothing "
            "of x0; 'v_prediction' or 'sample' is needed"
        )
    return ""
