"""What a scheduler of diffusers says about a model: its noise levels, its prediction, the clip.

Only the noise is read, so whatever samples with it (Euler, DPM-Solver, ...), a model is read as it
was trained; a scheduler of a kind of model that has no E[x_0 | x_t] is refused when it is given.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from rrlib.errors import InputError, shown
from rrlib.method.noise.paths import EDM, VariancePreserving
from rrlib.method.noise.schedules import Schedule, edm_schedule, flow_schedule

if TYPE_CHECKING:
    from diffusers import DDPMScheduler, SchedulerMixin

VARIANCES = ("fixed_small", "fixed_small_log", "fixed_large")
FLOWS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
EDMS = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler")
DISTILLED = (
    "CMStochasticIterativeScheduler",
    "FlowMapEulerDiscreteScheduler",
    "FlowMatchLCMScheduler",
    "LCMScheduler",
    "SCMScheduler",
    "TCDScheduler",
)
Setting = Callable[..., Any]  # (name, default=None) -> what a scheduler's config has


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


def schedule_of(scheduler: "Schedule | SchedulerMixin") -> Schedule:
    """Read a scheduler of diffusers; a Schedule is what it is.

    Raises:
        InputError: it is of a kind of model that cannot be read.
    """
    if isinstance(scheduler, Schedule):
        return scheduler
    config = getattr(scheduler, "config", None)

    def setting(name: str, default: Any = None) -> Any:
        return getattr(config, name, default)

    name = type(scheduler).__name__
    path = _other_path(name, setting)
    reason = _reason(scheduler, name, setting, path)
    if reason:
        raise InputError(f"scheduler: {name} is not allowed: {reason}.")
    steps, kind = setting("num_train_timesteps"), setting("prediction_type")
    if path == "flow":
        shift = setting("shift", setting("flow_shift", 1.0))
        shift = 1.0 if setting("use_dynamic_shifting") else shift
        return flow_schedule(steps, shift, float(steps))  # diffusers tells s times its own steps
    if path == "edm":
        low, high, data = (float(setting(f"sigma_{part}")) for part in ("min", "max", "data"))
        sign = -1 if kind == "v_prediction" else 1
        return replace(edm_schedule(steps, low, high, data), path=EDM(low, high, data, sign))
    abar = tuple(_table(scheduler, setting).tolist())
    return Schedule(
        abar,
        tuple(1 - a for a in abar),
        VariancePreserving(abar),
        kind,
        float(setting("clip_sample_range", 1.0)) if setting("clip_sample") else None,
        setting("variance_type") == "fixed_large",
        str(setting("beta_schedule", "its own")),
        own=True,
    )


def _table(scheduler, setting: Setting) -> Tensor:
    """alpha-bar [T] of a scheduler that has a table of it, float32.

    Of zero terminal SNR the samplers with sigmas (Euler, DPM-Solver, UniPC) have 2^-24 in the place
    of a last 0, so that sigma is finite. Linear betas fall below that before: then a half of the
    level before stands for it, noise all but alone as well. It is the network's own last step
    either way, and told so.
    """
    table = scheduler.alphas_cumprod.detach().float()
    if not setting("rescale_betas_zero_snr") or len(table) < 2 or table[-1] <= table[-2]:
        return table
    table = table.clone()
    table[-1] = table[-2] / 2
    return table


def _other_path(name: str, setting: Setting) -> Literal["flow", "edm", ""]:
    """The kind of path that a scheduler's models have, if it is no DDPM's."""
    if name in FLOWS or setting("use_flow_sigmas"):
        return "flow"
    return "edm" if name in EDMS else ""


def _reason(scheduler, name: str, setting: Setting, path: str) -> str:
    """Why a scheduler's model cannot be read; empty if it can."""
    if setting("original_inference_steps") is not None or name in DISTILLED:
        return (
            "a distilled model leaps to the end of its path and has no E[x_0 | x_t]; the model "
            "that it was distilled from is needed"
        )
    if path == "flow":
        return _reason_of_flow(setting)
    if path == "edm":
        return _reason_of_edm(setting)
    return _reason_of_table(scheduler, setting)


def _reason_of_flow(setting: Setting) -> str:
    if setting("prediction_type", "flow_prediction") != "flow_prediction":
        found = shown(setting("prediction_type"))
        return f"prediction_type={found} on a flow's levels is none: 'flow_prediction' is needed"
    if setting("invert_sigmas"):
        return "invert_sigmas=True turns time around; a model of noise at s = 1 is needed"
    return ""


def _reason_of_edm(setting: Setting) -> str:
    if setting("prediction_type") not in ("epsilon", "v_prediction"):
        found = shown(setting("prediction_type"))
        return f"prediction_type={found} is none of 'epsilon', 'v_prediction', which are needed"
    if setting("thresholding"):
        return "thresholding=True clips x0 by each sample's own quantile; False is needed"
    return ""


def _reason_of_table(scheduler, setting: Setting) -> str:
    table = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(table, Tensor) or table.ndim != 1 or len(table) < 2:
        return (
            "it has no table alphas_cumprod; a scheduler of models of x_t = sqrt(abar) x_0 + "
            "sqrt(1 - abar) eps at whole t, such as DDPMScheduler, of a flow or of EDM, is needed"
        )
    kinds = ("sample", "epsilon", "v_prediction")
    if setting("prediction_type") not in kinds:
        allowed = ", ".join(map(repr, kinds))
        found = shown(setting("prediction_type"))
        return f"prediction_type={found} is none of {allowed}, one of which is needed"
    if setting("timestep_type") == "continuous":
        return "its model is asked at other noise levels than alphas_cumprod has: these are needed"
    if setting("thresholding"):
        return "thresholding=True clips x0 by each sample's own quantile; False is needed"
    if setting("variance_type", "fixed_small") not in (None, *VARIANCES):
        found, allowed = setting("variance_type"), ", ".join(map(repr, VARIANCES))
        return f"variance_type={found!r} is none of {allowed}, one of which is needed"
    table = _table(scheduler, setting)
    inside = bool(((table[:-1] > 0) & (table[:-1] < 1)).all()) and 0 <= float(table[-1]) < 1
    if not inside or not bool((table.diff() <= 0).all()):
        return "its alphas_cumprod do not fall from below 1 towards 0, as is needed"
    if float(table[-1]) == 0 and setting("prediction_type") == "epsilon":
        return (
            "its last step is noise alone (zero terminal SNR), where predicted noise says nothing "
            "of x0; 'v_prediction' or 'sample' is needed"
        )
    return ""
