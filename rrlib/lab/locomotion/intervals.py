"""Numbers with intervals, read off the scores of rollouts."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from rrlib import metrics

DRAWS = 4_000  # of the bootstrap


class Number(NamedTuple):
    """A number and its 95 % interval, which is (NaN, NaN) where nothing varies.

    Formatted, it has both: f"{Number(2, 1, 3):.1f}" is "2.0 (1.0 to 3.0)".
    """

    value: float
    low: float
    high: float

    @property
    def entry(self) -> dict[str, object]:
        """As `results.publish` takes it."""
        return {"value": self.value, "ci": [self.low, self.high]}

    def __format__(self, digits: str) -> str:
        """Value and interval, each in the format given."""
        value, low, high = (format(x, digits) for x in self)
        return f"{value} ({low} to {high})"


def mean(values: np.ndarray) -> Number:
    """A mean of independent values [n], with Student's interval."""
    return Number(float(np.mean(values)), *metrics.mean_interval(values))


def row(values: np.ndarray) -> dict[str, float | int]:
    """What a row of published results says of the scores of n episodes, [n]."""
    score, low, high = mean(values)
    return {"episodes": len(values), "score": score, "score_low": low, "score_high": high}


def bootstrap(
    samples: Mapping[Hashable, Sequence[np.ndarray]],
    read: Callable[[dict[Hashable, np.ndarray]], np.ndarray],
    seed: int = 0,
) -> Number:
    """A number read off mean scores, and its 95 % interval (percentile bootstrap over episodes).

    The interval is that of the draws, as they are: where the number is a skewed one, such as a
    ratio, it may leave the value itself out.

    Args:
        samples: per name the scores of each seed's episodes; a mean is over seeds of their means.
            Episodes are drawn again within a seed, so the interval is that of these models.
        read: means [...] by name -> the number [...].
        seed: of the draws.
    """
    rng = np.random.default_rng(seed)

    def means(array: np.ndarray) -> np.ndarray:
        rows = rng.integers(len(array), size=(DRAWS, len(array)))
        return array[rows].mean(1)

    value = read({k: np.mean([a.mean() for a in v]) for k, v in samples.items()})
    drawn = read({k: np.mean([means(a) for a in v], axis=0) for k, v in samples.items()})
    low, high = np.percentile(drawn, [2.5, 97.5]) if np.ptp(drawn) else (np.nan, np.nan)
    return Number(float(value), float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """Scores of several ways to plan, in one or more environments, and what is read off them.

    Numbers are `bootstrap`s; where not all seeds have all ways that a number is about, it is of
    those that do.

    Attributes:
        scores: (environment, way, seed) -> scores of its episodes, [n].
        seed: of the draws of the bootstrap.
    """

    scores: Mapping[tuple[str, Hashable, int], np.ndarray]
    seed: int = 0

    def number(
        self,
        read: Callable[[dict[Hashable, np.ndarray]], np.ndarray],
        *ways: Hashable,
        of: Sequence[str] = (),
    ) -> Number:
        """Mean over environments of what is read off mean scores.

        Args:
            read: means [...] by way -> the number [...].
            ways: that it reads.
            of: environments; none, all.
        """
        of = of or list(dict.fromkeys(name for name, _, _ in self.scores))
        samples = {(name, way): self._samples(name, way, ways) for name in of for way in ways}

        def over_environments(means: dict[Hashable, np.ndarray]) -> np.ndarray:
            return np.mean([read({w: means[name, w] for w in ways}) for name in of], axis=0)

        return bootstrap(samples, over_environments, self.seed)

    def _samples(self, name: str, way: Hashable, ways: Sequence[Hashable]) -> list[np.ndarray]:
        return [
            values
            for (n, w, seed), values in self.scores.items()
            if (n, w) == (name, way) and all((name, other, seed) in self.scores for other in ways)
        ]

    def score(self, name: str, way: Hashable) -> Number:
        """Mean score of a way in one environment."""
        return self.number(lambda m: m[way], way, of=[name])

    def gain(self, name: str, way: Hashable, over: Hashable = "base") -> Number:
        """Relative gain over another way, per cent."""
        return self.number(lambda m: 100 * (m[way] / m[over] - 1), over, way, of=[name])

    def ahead(self, name: str, way: Hashable, rival: Hashable) -> Number:
        """Score, less a rival's."""
        return self.number(lambda m: m[way] - m[rival], way, rival, of=[name])

    def gap_closed(self, way: Hashable, *of: str) -> Number:
        """Share of the gap that is closed, (way - base) / (expert - base), mean of environments."""
        three = "base", "expert", way
        return self.number(
            lambda m: (m[way] - m["base"]) / (m["expert"] - m["base"]), *three, of=of
        )
