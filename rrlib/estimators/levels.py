"""What all log ratios share: the levels that are visited, how models are asked, the errors."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rrlib.errors import InputError, shown
from rrlib.method.checks.numbers import check_counts, check_finite, check_samples
from rrlib.method.checks.pairs import check_ends
from rrlib.method.comparisons import Comparisons, aligned, compare_at, joined
from rrlib.method.denoisers import Denoiser
from rrlib.method.noise.precision import wide
from rrlib.training import stream


@dataclass(frozen=True, eq=False)
class Estimate:
    """Numbers, and how far each may be off by the draws that it was made from.

    Attributes:
        value: [B], or [] of a single number; in the samples' precision, but float32 at least.
        standard_error: of each value; NaN where there is nothing to tell it from: a single probe,
            or no draws at all. It says nothing of errors that all draws share: too few steps, or
            models that are wrong.
        calls: how often each sample went through a network, both models together.
    """

    value: Tensor
    standard_error: Tensor
    calls: int


@dataclass(frozen=True, eq=False)
class Levels:
    """Noise levels that are visited, from the least on, [K] each; none of noise alone."""

    t: Tensor
    abar: Tensor
    rest: Tensor

    @classmethod
    def of(cls, base: Denoiser, expert: Denoiser, samples: Tensor, steps: int | None) -> "Levels":
        """`steps` of the base's levels that the expert knows, spaced evenly; None takes all.

        InputError where the last of them is not nearly noise alone, at which a ratio is 0.
        """
        first, last = expert.schedule.span
        most = last + 1 - first
        if steps is not None and not (isinstance(steps, int) and 2 <= steps <= most):
            raise InputError(
                f"steps={shown(steps)} is not allowed: a number from 2 to {most}, the steps "
                "that both models know, is needed."
            )
        t = torch.linspace(first, last, steps or most, dtype=torch.float64).round().long()
        check_ends(base, expert, max(k for k in t.tolist() if k == first or base.schedule.abar[k]))
        t = t.to(samples.device)
        like = samples.new_empty(len(t))
        abar, rest = base.abar(t, like), base.rest(t, like)
        return cls(t[abar > 0], abar[abar > 0], rest[abar > 0])

    @property
    def snr(self) -> Tensor:
        """Signal over noise."""
        return self.abar / self.rest

    @property
    def nats(self) -> Tensor:
        """Weights of 1/2 int ... dSNR at the levels, see `elbo_difference`."""
        halves = -self.snr.log().diff() / 2
        none = halves.new_zeros(1)
        widths = torch.cat([none, halves]) + torch.cat([halves, none])
        widths[0] += 1  # errors fall like 1 / SNR^2 beyond the first level
        return self.snr * widths / 2


def checked(base: Denoiser, expert: Denoiser, samples: Tensor, **counts: int) -> Denoiser:
    """The expert at the base's levels; InputError, before anything is begun, if it cannot be."""
    for name, model in (("base", base), ("expert", expert)):
        if getattr(model, "schedule", None) is None:
            raise InputError(
                f"{name}: {type(model).__name__} is not allowed: a model with a schedule, a "
                "rrlib.Denoiser, is needed."
            )
    expert = aligned(base, expert)
    check_samples("samples", samples)
    check_finite("samples", samples)
    check_counts(**counts)
    for name, model in (("base", base), ("expert", expert)):
        check_told(name, model, len(samples))
    t = torch.zeros(1, dtype=torch.long, device=samples.device)
    compare_at(of_rows(base, t), of_rows(expert, t), samples[:1], t)  # of another space: said here
    return expert


def check_told(name: str, model: Denoiser, count: int) -> None:
    """Raise InputError unless what a model is told belongs to `count` samples, a row for each."""
    told = [] if model.condition is None else [("a condition", len(model.condition))]
    given = [("an observation", len(seen)) for _, seen in model.known if len(seen) > 1]
    for what, rows in told + given:
        if rows != count:
            raise InputError(
                f"{name}: {what} of {rows} rows is not allowed for {count} samples: one for each "
                "is needed."
            )


def of_rows(model: Denoiser, rows: Tensor) -> Denoiser:
    """The model told what belongs to some samples, `rows` [N] of those that it is told all of.

    What has a single row belongs to every sample.
    """
    return retold(model, lambda part: part[rows if len(part) > 1 else 0 * rows])


def retold(model: Denoiser, pick: Callable[[Tensor], Tensor]) -> Denoiser:
    """The model told what is picked of all that it is told, a condition and what is given."""
    if model.condition is None and not model.known:
        return model
    condition = None if model.condition is None else pick(model.condition)
    known = tuple((step, pick(seen)) for step, seen in model.known)
    return model.altered(condition=condition, known=known)


def asked(
    base: Denoiser,
    expert: Denoiser,
    x_t: Tensor,
    t: Tensor,
    rows: Tensor,
    batch: int,
    seen: list[Tensor],
) -> Comparisons:
    """Both models about x_t [N, ...] at t [N], a batch at a time; `seen` is to be checked.

    `rows` [N] says of which sample each is, and so under what the models are told it.
    """
    parts = zip(x_t.split(batch), t.split(batch), rows.split(batch), strict=True)
    return joined(
        [compare_at(of_rows(base, k), of_rows(expert, k), x, at, seen) for x, at, k in parts]
    )


def inner(a: Tensor, b: Tensor, count: int) -> Tensor:
    """<a, b> of each row, [K, count], of K times `count` rows; float32 at least."""
    return (a.to(wide(a)) * b).flatten(1).sum(1).reshape(-1, count)


def repeated(
    one: Callable[[Tensor, Tensor, torch.Generator], Tensor],
    samples: Tensor,
    few: int,
    probes: int,
    seed: int,
) -> Tensor:
    """`one` of a few samples and their rows at a time, [probes, B], with draws of its own."""
    device = str(samples.device)
    parts = []
    rows = torch.arange(len(samples), device=samples.device).split(few)
    for k, (x, which) in enumerate(zip(samples.split(few), rows, strict=True)):
        draws = [stream(seed, f"probe {probe} of {k}", device) for probe in range(probes)]
        parts.append(torch.stack([one(x, which, generator) for generator in draws]))
    return torch.cat(parts, 1)


def summary(draws: Tensor, calls: int) -> Estimate:
    """The mean over the first axis and its standard error; NaN of a single draw."""
    n = len(draws)
    error = draws.std(0) / n**0.5 if n > 1 else torch.full_like(draws[0], torch.nan)
    return Estimate(draws.mean(0), error, calls)
