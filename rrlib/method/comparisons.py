"""Where base and expert differ: Algorithms 1 and 2, which ask both models at the same points.

The target is *expert minus base*, for scores (Eq. 14) and for means alike.
Both algorithms fill a pool of (where, t, target) once; training reads that and asks no model again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from rrlib.errors import InputError
from rrlib.method.checks import pairs as checks
from rrlib.method.checks.numbers import check_counts
from rrlib.method.denoisers import Denoiser
from rrlib.method.noise.precision import narrow, wide
from rrlib.method.pools import Place, Pool, Target, check_kind
from rrlib.training import stream

# (x_0, x_t, base, expert) -> x_t as the models are to see it, and the models told what is given;
# see `plans.conditioning`.
Condition = Callable[..., tuple[Tensor, Sequence[Denoiser]]]


@dataclass(frozen=True, eq=False)
class Comparisons:
    """Both models' x0 at the same points, from which either target is read, at either place.

    Attributes:
        x: noised samples x_t, [N, ...].
        t: diffusion steps, [N].
        base, expert: E[x_0 | x_t] by each model, [N, ...].
        model: the base; its schedule says what an x0 means.
        condition: what both models were told of each sample, [N, ...]; None for nothing.
        span: the first and the last t at which both were trained; None if nobody said.
    """

    x: Tensor
    t: Tensor
    base: Tensor
    expert: Tensor
    model: Denoiser | None = None
    condition: Tensor | None = None
    span: tuple[int, int] | None = None

    @torch.no_grad()
    def pool(self, target: Target, place: Place) -> Pool:
        """The pool that a reward is fitted to.

        Args:
            target: "score" (Eq. 14) or "mean" (Eq. 45 with its sign turned).
            place: "x_t" (Eq. 14) or "mu_base", where ancestral sampling applies the gradient.

        Raises:
            InputError: another target or place, or comparisons whose model nobody named.
        """
        check_kind(target, place)
        model = self.reader
        convert = model.score_from_x0 if target == "score" else model.mean_from_x0
        mean = model.mean_from_x0(self.base, self.x, self.t) if place == "mu_base" else self.x
        mine, other = (convert(x0, self.x, self.t) for x0 in (self.base, self.expert))
        kind, mean = (target, place), mean.to(wide(mean))
        return Pool(mean, self.t, other - mine, kind, condition=self.condition)

    @property
    def reader(self) -> Denoiser:
        """The model whose schedule says what an x0 means; InputError if nobody named it."""
        if self.model is None:
            raise InputError(
                "pairs: comparisons without their model are not allowed: its schedule is needed."
            )
        return self.model

    def tensors(self) -> dict[str, Tensor]:
        """All that can be kept in a file."""
        names = ("x", "t", "base", "expert", "condition")
        return {name: part for name in names if (part := getattr(self, name)) is not None}

    def to(self, device: str) -> "Comparisons":
        """The same comparisons on a device."""
        return replace(self, **{name: part.to(device) for name, part in self.tensors().items()})


def compare_at(
    base: Denoiser, expert: Denoiser, x_t: Tensor, t: Tensor, seen: list[Tensor] | None = None
) -> Comparisons:
    """Ask both models about x_t [B, ...] at t [B].

    Args:
        base, expert: read at the same levels.
        x_t, t: where.
        seen: of many batches; it takes what `check_answers` then looks at, once for all of them.
            The first is looked at at once, for most that is wrong with a model is wrong there.

    Raises:
        InputError: a model cannot take samples of this shape, its answer is not finite, or its
            network rounds times between its steps.
    """
    found, seen = asked(base, expert, x_t, t), [] if seen is None else seen
    # The last t at which an answer is not finite, -1 where all are.
    bad = (~torch.isfinite(x0).flatten(1).all(1) for x0 in (found.base, found.expert))
    seen.append(torch.stack([torch.where(rows, t, -1).max() for rows in bad]))
    if len(seen) == 1:
        checks.check_answers(seen)
        checks.check_between("base", base, x_t)
        checks.check_between("expert", expert, x_t)
    return found


@torch.no_grad()
def asked(base: Denoiser, expert: Denoiser, x_t: Tensor, t: Tensor) -> Comparisons:
    """`compare_at` that looks at no value."""
    mine, other = checks.answer("base", base, x_t, t), checks.answer("expert", expert, x_t, t)
    return Comparisons(x_t, t, mine, other, base, base.condition, expert.schedule.span)


def compare(
    base: Denoiser,
    expert: Denoiser,
    data: tuple[Tensor, Tensor] | None = None,
    *,
    n: int = 20_000,
    seed: int = 0,
    shape: tuple[int, ...] | None = None,
    condition: Condition | None = None,
    conditions: Sequence[Tensor] | None = None,
    batch: int = 256,
    device: str = "cpu",
) -> Comparisons:
    """Compare two models: what a relative reward is extracted from.

    With data by Algorithm 1, without by Algorithm 2, on samples that the models draw themselves.

    Args:
        base, expert: diffusion models of one space, read at the base's levels (`aligned`).
        data: samples of what the base was trained on and of what the expert was, [m, ...] each,
            normalised alike; None draws samples of `shape`.
        n: comparisons; without data in whole runs of both models, so rather more.
        seed: of the draws.
        shape: of one sample, where there are no data.
        condition: gives both models a part of each sample, such as `plans.conditioning.ends_given`;
            None gives nothing.
        conditions: what networks of a condition are told: with data one row [m, ...] for each
            sample of the base's and of the expert's; without, two sets of rows to draw from.
        batch: samples per call of the models, where there are data.
        device: of the samples, where there are no data; those stay where they are.

    Raises:
        InputError: models of no common level or that agree everywhere, data or conditions that do
            not suit them, neither data nor a shape, or both, or a number out of range.

    >>> import rrlib
    >>> scheduler = rrlib.cosine_scheduler(50, clip=False)
    >>> models = [rrlib.Denoiser(lambda x, t, a=a: 0.5 * x + a, scheduler) for a in (0.0, 0.2)]
    >>> pairs = rrlib.compare(*models, shape=(2,), n=1_000)
    >>> pairs.x.shape, pairs.pool("score", "x_t").target.shape
    (torch.Size([1000, 2]), torch.Size([1000, 2]))
    """
    check_counts(n=n)
    checks.check_source(data, shape, condition)
    if data is not None:
        return algorithm1(
            base,
            expert,
            *data,
            size=n,
            seed=seed,
            batch=batch,
            condition=condition,
            conditions=conditions,
        )
    runs = 2 * -(-n // (2 * base.steps))
    return algorithm2(
        base, expert, shape or (), runs=runs, seed=seed, device=device, conditions=conditions
    )


@torch.no_grad()
def algorithm1(
    base: Denoiser,
    expert: Denoiser,
    base_data: Tensor,
    expert_data: Tensor,
    *,
    size: int,
    seed: int,
    batch: int = 256,
    condition: Condition | None = None,
    conditions: Sequence[Tensor] | None = None,
) -> Comparisons:
    """Algorithm 1's comparisons: x_0 from both training sets in equal parts, t uniform, x_t noised.

    Args:
        base, expert: diffusion models of one space; t runs over the base's levels, those left out
            at which the expert was never trained.
        base_data, expert_data, seed, batch, condition, conditions: see `compare`.
        size: comparisons N.

    Raises:
        InputError: models of no common level, data or conditions that do not suit them or each
            other, a number out of range, an answer that is not finite, or models that agree
            everywhere.
    """
    expert = aligned(base, expert)
    check_counts(size=size, batch=batch)
    checks.check_data(base_data, expert_data, base.schedule.clip)
    counts = len(base_data), len(expert_data)
    checks.check_conditions(conditions, counts, base_data.device)
    parts: list[Comparisons] = []
    seen: list[Tensor] = []
    for start in range(0, size, batch):
        generator = stream(seed, f"pool {start}", str(base_data.device))
        rows = picked(base_data, expert_data, min(batch, size - start), generator)
        x0 = torch.cat([base_data[rows[0]], expert_data[rows[1]]])
        x_t, t = noised(base, x0, generator, expert.schedule.span)
        pair: Sequence[Denoiser] = (base, expert)
        if conditions is not None:
            told = torch.cat([part[chosen] for part, chosen in zip(conditions, rows, strict=True)])
            pair = [model.told(told) for model in pair]
        if condition:
            x_t, pair = condition(x0, x_t, *pair)
        parts.append(compare_at(pair[0], pair[1], x_t, t, seen))
    return _join(parts, seen)


def _join(parts: Sequence[Comparisons], seen: Sequence[Tensor]) -> Comparisons:
    """`joined`; InputError for answers that are not finite, or differ nowhere."""
    checks.check_answers(seen)
    found = joined(parts)
    checks.check_differ(found.base, found.expert)
    return found


def joined(parts: Sequence[Comparisons]) -> Comparisons:
    """All comparisons of one model as one."""
    names = parts[0].tensors()
    whole = {name: torch.cat([part.tensors()[name] for part in parts]) for name in names}
    return Comparisons(**whole, model=parts[0].model, span=parts[0].span)


@torch.no_grad()
def algorithm2(
    base: Denoiser,
    expert: Denoiser,
    shape: tuple[int, ...],
    *,
    runs: int,
    seed: int,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    conditions: Sequence[Tensor] | None = None,
) -> Comparisons:
    """Algorithm 2's comparisons (appendix D): x_t from the models' own sampling, no data needed.

    Half of the runs are denoised by the base, half by the expert, and at every step both models are
    compared on the same x_t. What is noted is the difference of scores or of means at x_t; the
    paper's difference of two random steps has that mean if both share their noise.

    Args:
        base, expert: diffusion models of one space; the base's levels are walked, and both are
            compared where both were trained.
        shape: of one sample.
        runs: denoisings, an even number of at least 2, of T comparisons each.
        seed: of the draws.
        device, dtype: of the samples.
        conditions: rows [m, ...] that the base's runs and the expert's draw theirs from.

    Raises:
        InputError: models of no common level, or whose last one is not nearly noise (alpha-bar over
            0.05), a number of runs that cannot be halved, a shape that is none, an answer that is
            not finite, or models that agree everywhere.
    """
    expert = aligned(base, expert)
    first, last = expert.schedule.span
    checks.check_conditions(conditions, None, device)
    checks.check_runs(base, expert, runs, shape)
    parts: list[Comparisons] = []
    seen: list[Tensor] = []
    for place, name in enumerate(("base", "expert")):
        generator = stream(seed, f"runs of the {name}", device)
        options = {"generator": generator, "device": device, "dtype": dtype}
        x, told = torch.randn(runs // 2, *shape, **options), None
        if conditions is not None:
            rows = torch.randint(len(conditions[place]), (len(x),), **options | {"dtype": None})
            told = conditions[place][rows]
        pair = [model.told(told) for model in (base, expert)]
        for step in reversed(range(base.steps)):
            t = torch.full((len(x),), step, device=device)
            found = compare_at(pair[0], pair[1], x, t, seen)
            if first <= step <= last:
                parts.append(found)
            mean = base.mean_from_x0(getattr(found, name), x, t)
            x = narrow(mean + pair[place].deviation(t, x) * torch.randn(x.shape, **options), x)
    return _join(parts, seen)


def picked(
    base_data: Tensor, expert_data: Tensor, n: int, generator: torch.Generator
) -> list[Tensor]:
    """Rows of n samples, half of them of each data set, the base's first."""
    half = n // 2
    return [
        torch.randint(len(data), (count,), generator=generator, device=base_data.device)
        for data, count in ((base_data, n - half), (expert_data, half))
    ]


def drawn(base_data: Tensor, expert_data: Tensor, n: int, generator: torch.Generator) -> Tensor:
    """n samples x_0, half of them from each data set, the base's first."""
    mine, other = picked(base_data, expert_data, n, generator)
    return torch.cat([base_data[mine], expert_data[other]])


def noised(
    model: Denoiser,
    x0: Tensor,
    generator: torch.Generator,
    span: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor]:
    """x_t of each x_0 [n, ...] at its own t, uniform over `span` (0 .. T - 1), and these t."""
    first, last = span or (0, model.steps - 1)
    t = torch.randint(first, last + 1, (len(x0),), generator=generator, device=x0.device)
    return model.noise(x0, t, generator), t


def aligned(base: Denoiser, expert: Denoiser) -> Denoiser:
    """The expert read at the base's levels, at its own time of each (equal noise, equal x_t).

    Raises:
        InputError: the expert was trained at none of them, or one model clips x0 where the other
            does not: their difference would hold the clipping of one.
    """
    found = expert.at(base)
    checks.check_levels(base, expert, found)
    return found
