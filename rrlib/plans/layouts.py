"""What a step of a plan is made of: what turns recorded data into what a reward was fitted to."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from rrlib.errors import InputError, shown, warn
from rrlib.plans.normalisers import Normaliser
from rrlib.plans.trajectories import Trajectories

PARTS = "actions", "observations"
FAR = 1.5  # from the middle of a number's range, in halves of it; few of its own data are there
FEW, MANY = 0.05, 0.5  # shares of a number's values beyond that are told of, or refused


@dataclass(frozen=True, eq=False)
class PlanLayout:
    """The order, widths and ranges of the numbers of a plan's step.

    Attributes:
        normaliser: of a step's numbers, in their order.
        actions, observations: numbers of each, da and do.
        order: which comes first; one of the two alone, where a plan has nothing else.
        horizon: steps of the plans that the reward was fitted to, if it matters.

    Raises:
        InputError: widths, order and normaliser that do not belong together.

    >>> import numpy as np, rrlib
    >>> ruler = rrlib.Normaliser(np.zeros(6, "f4"), np.ones(6, "f4"))
    >>> layout = rrlib.PlanLayout(ruler, actions=2, observations=4, horizon=32)
    >>> layout.about()["order"], rrlib.PlanLayout.of(layout.about()).width
    (['actions', 'observations'], 6)
    """

    normaliser: Normaliser
    actions: int
    observations: int
    order: tuple[str, ...] = PARTS
    horizon: int | None = None

    def __post_init__(self) -> None:
        names = sorted(self.order)
        if not names or names not in (list(PARTS), [PARTS[0]], [PARTS[1]]):
            raise InputError(
                f"order={shown(self.order)} is not allowed: 'actions' and 'observations', each "
                "once at most, are needed."
            )
        for name in ("actions", "observations", "horizon"):
            value = getattr(self, name)
            least = 1 if name in (*self.order, "horizon") else 0
            if value is None and name == "horizon":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(
                    f"{name}={shown(value)} is not allowed: a whole number of {least} or more is "
                    "needed."
                )
        for side in ("low", "high"):
            found = np.asarray(getattr(self.normaliser, side))
            if found.shape != (self.width,) or not np.isfinite(found).all():
                raise InputError(
                    f"normaliser: {side} of shape {found.shape} is not allowed: {self.width} "
                    f"finite numbers, of {' and '.join(self.order)}, are needed."
                )

    @property
    def width(self) -> int:
        """D, numbers per step."""
        return sum(getattr(self, part) for part in self.order)

    def about(self) -> dict[str, Any]:
        """What a reward's file says of it, as JSON has it; `PlanLayout.of` reads it."""
        found: dict[str, Any] = {
            "order": list(self.order),
            "widths": {part: getattr(self, part) for part in PARTS},
        }
        found |= {side: array.tolist() for side, array in self.normaliser.to_arrays().items()}
        return found if self.horizon is None else found | {"horizon": self.horizon}

    @classmethod
    def of(cls, about: Mapping[str, Any]) -> "PlanLayout":
        """The layout that a reward's `about` names.

        Raises:
            InputError: it names none, or one that cannot be.
        """
        told = about if isinstance(about, Mapping) else {}
        lacking = [key for key in ("order", "widths", "low", "high") if key not in told]
        if lacking:
            raise InputError(
                f"about: no {', '.join(lacking)} is not allowed: a reward that says what its data "
                "are made of (saved with `PlanLayout.about`), or `layout`, is needed."
            )
        try:
            ruler = Normaliser(*(np.asarray(about[side], np.float32) for side in ("low", "high")))
            widths = {part: about["widths"][part] for part in PARTS}
            return cls(ruler, **widths, order=tuple(about["order"]), horizon=about.get("horizon"))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"about={shown(dict(about))} is not allowed: order, widths, low and high, as "
                "`PlanLayout.about` has them, are needed."
            ) from None

    def columns(self) -> np.ndarray:
        """Which numbers of (actions, observations) a plan's step has, in its order, int [D]."""
        starts = {"actions": 0, "observations": self.actions}
        return np.concatenate(
            [starts[part] + np.arange(getattr(self, part)) for part in self.order]
        )

    def trajectories(self, rows: np.ndarray, ends: np.ndarray) -> Trajectories:
        """Recorded steps [M, D] in the plan's order, their own units, as trajectories.

        Args:
            rows: numbers.
            ends: bool [M], the last step of each trajectory.
        """
        both = np.zeros((len(rows), self.actions + self.observations), np.float32)
        both[:, self.columns()] = rows
        actions, observations = np.split(both, [self.actions], axis=1)
        return Trajectories(observations, actions, None, np.zeros(len(rows), dtype=bool), ends)

    def check(self, data: Trajectories) -> None:
        """See that recorded data are what the normaliser was made for.

        A number of which many values lie far beyond its range is refused, for it is in other units,
        coordinates or another order; of which some do, a DataWarning tells.

        Raises:
            InputError: data of other widths, or far outside.
        """
        for part in self.order:
            wide = getattr(data, part).shape[1]
            if wide != getattr(self, part):
                raise InputError(
                    f"trajectories: {wide} numbers of {part} are not allowed: "
                    f"{getattr(self, part)}, as the reward was fitted to, are needed."
                )
        low, high = self.normaliser.low, self.normaliser.high
        at = 0
        told: list[str] = []
        for part in self.order:
            for k, values in enumerate(getattr(data, part).T):
                middle, half = (low[at] + high[at]) / 2, max((high[at] - low[at]) / 2, 1e-6)
                share = float((np.abs(values - middle) > FAR * half).mean())
                name = f"{part.removesuffix('s')} {k} from {values.min():.3g} to {values.max():.3g}"
                ranges = f"{low[at]:.3g} to {high[at]:.3g}"
                if share > MANY:
                    raise InputError(
                        f"trajectories: {name} is not allowed: recorded numbers in the units and "
                        f"the order of the reward's data, there about {ranges}, are needed."
                    )
                if share > FEW:
                    told.append(f"{name} (there {ranges}, and {share:.0%} are far outside)")
                at += 1
        if told:
            warn(f"trajectories are unlike the reward's own data: {', '.join(told)}.")
