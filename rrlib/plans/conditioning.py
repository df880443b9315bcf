"""What is given of a plan: models that are told, points that hold it, losses that teach it."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from rrlib.errors import InputError, shown
from rrlib.method.comparisons import Condition
from rrlib.method.denoisers import Denoiser


def given(denoiser: Denoiser, first: Tensor, last: Tensor | None = None) -> Denoiser:
    """The model of plans whose first (and last) observation is given, as Diffuser's inpainting.

    What is given is clean at every t, whatever x_t says there.

    Args:
        denoiser: of a PlanNetwork that was trained with `plan_loss`, or of any network of plans
            [B, H, D]; one that takes no third argument is not told.
        first, last: observations [B, do], normalised.

    >>> import rrlib
    >>> model = rrlib.Denoiser(lambda x, t: 0.5 * x, rrlib.cosine_scheduler(10, clip=False))
    >>> told = rrlib.given(model, first=torch.tensor([[0.7, -0.2]]))
    >>> told.x0(torch.zeros(1, 4, 3), torch.tensor([9]))[0, 0]
    tensor([ 0.0000,  0.7000, -0.2000])
    """
    ends = ((0, first),) if last is None else ((0, first), (-1, last))
    return denoiser.altered(known=(*denoiser.known, *ends))


def held(x: Tensor, first: Tensor) -> Tensor:
    """Plans [B, H, D] with the first observation [B, do] in its place."""
    x = x.clone()
    x[:, 0, -first.shape[-1] :] = first
    return x


def hold(first: Tensor) -> Callable[[Tensor], Tensor]:
    """What keeps the first observation [B, do] of plans in its place: `keep` of `sample`.

    >>> import rrlib
    >>> rrlib.hold(torch.tensor([[0.7, -0.2]]))(torch.zeros(1, 4, 3))[0, 0]
    tensor([ 0.0000,  0.7000, -0.2000])
    """
    return lambda x: held(x, first)


def first_given(observation: int) -> Condition:
    """Both planners are given the first observation of each plan, as when they control.

    x_t has it in its place, as when `guidance.denoise` holds it.

    Args:
        observation: do, numbers per observation.

    >>> import rrlib
    >>> scheduler = rrlib.cosine_scheduler(10, clip=False)
    >>> models = [rrlib.Denoiser(lambda x, t, a=a: 0.5 * x + a, scheduler) for a in (0.0, 0.1)]
    >>> data = torch.rand(9, 4, 3), torch.rand(9, 4, 3)
    >>> pairs = rrlib.compare(*models, data, n=50, condition=rrlib.first_given(observation=2))
    >>> bool((pairs.base[:, 0, 1:] == pairs.x[:, 0, 1:]).all())
    True
    """

    def condition(x0: Tensor, x_t: Tensor, *models: Denoiser) -> tuple[Tensor, Sequence[Denoiser]]:
        _check_observation(observation, x0)
        first = x0[:, 0, -observation:]
        return held(x_t, first), [given(model, first) for model in models]

    return condition


def ends_given(observation: int) -> Condition:
    """Both models are given the first and the last observation of each plan.

    Args:
        observation: do, numbers per observation.
    """

    def condition(x0: Tensor, x_t: Tensor, *models: Denoiser) -> tuple[Tensor, Sequence[Denoiser]]:
        _check_observation(observation, x0)
        ends = x0[:, 0, -observation:], x0[:, -1, -observation:]
        return x_t, [given(model, *ends) for model in models]

    return condition


def _check_observation(width: int, data: Tensor) -> None:
    if data.ndim != 3 or not 1 <= width <= data.shape[-1]:
        raise InputError(
            f"observation={shown(width)} is not allowed for data of shape {tuple(data.shape)}: "
            "plans [n, H, D] and a number from 1 to D are needed."
        )


def _check_plans(denoiser: Denoiser, x0: Tensor, observation: int) -> None:
    """Raise InputError unless the losses of plans mean something."""
    if denoiser.schedule.prediction != "sample":
        raise InputError(
            f"scheduler: prediction_type={denoiser.schedule.prediction!r} is not allowed: these "
            "losses are of x0, 'sample' is needed."
        )
    if not 1 <= observation <= x0.shape[-1]:
        raise InputError(
            f"observation={observation} is not allowed: from 1 to the plans' {x0.shape[-1]} "
            "numbers are needed."
        )


def plan_loss(
    denoiser: Denoiser,
    x0: Tensor,
    observation: int,
    generator: torch.Generator,
    share: float,
    unit: Callable[[Tensor], Tensor] | None = None,
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
        unit: mean squared error at t [B] that counts as 1, [B], such as
            `ComponentPerceptron.unexplained`; None for 1 at all t.

    Raises:
        InputError: a network that predicts something else, or a number out of range.
    """
    _check_plans(denoiser, x0, observation)
    if not 0 <= share <= 1:
        raise InputError(f"share={share} is not allowed: a number from 0 to 1 is needed.")
    device = x0.device
    t = torch.randint(denoiser.steps, (len(x0),), generator=generator, device=device)
    x_t = denoiser.noise(x0, t, generator)
    choice = torch.rand(len(x0), generator=generator, device=device)
    marks = torch.zeros(x0.shape[:2], dtype=torch.bool, device=device)
    marks[:, 0], marks[:, -1] = choice < share, choice < share / 2
    clean = marks[..., None] & (
        torch.arange(x0.shape[-1], device=device) >= x0.shape[-1] - observation
    )
    error = (denoiser.predict(torch.where(clean, x0, x_t), t, marks) - x0).square()
    return error.mean() if unit is None else (error.mean((1, 2)) / unit(t)).mean()


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

    Raises:
        InputError: a network that predicts something else, or no such observation.
    """
    _check_plans(denoiser, x0, observation)
    t = torch.randint(denoiser.steps, (len(x0),), generator=generator, device=x0.device)
    marks = torch.zeros(x0.shape[:2], dtype=torch.bool, device=x0.device)
    marks[:, 0] = True
    weight = torch.ones_like(x0[0])
    weight[0, :-observation], weight[0, -observation:] = first_action, 0.0
    x_t = held(denoiser.noise(x0, t, generator), x0[:, 0, -observation:])
    return ((denoiser.predict(x_t, t, marks) - x0).square() * weight).mean()
