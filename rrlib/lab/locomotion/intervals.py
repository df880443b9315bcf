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
    shared: Callable[[Hashable], Hashable] = lambda name: name,
) -> Number:
    """A number read off mean scores, and its 95 % interval (percentile bootstrap).

    Pairs of planners, of which each has a seed, are drawn again, and in each drawn pair its
    episodes. Of a single pair there are only episodes to draw: the interval is that of these models
    and says nothing about others. Of few pairs it is somewhat narrow, as any percentile bootstrap.
    The interval is that of the draws, as they are: where the number is a skewed one, such as a
    ratio, it may leave the value itself out.

    Args:
        samples: per name the scores of each seed's episodes; a mean is over seeds of their means.
        read: means [...] by name -> the number [...].
        seed: of the draws.
        shared: names for which it is the same have the same pairs drawn.
    """
    rng, of_pairs = np.random.default_rng(seed), np.random.default_rng((seed, 1))
    drawn_pairs, draw = {}, np.arange(DRAWS)

    def episodes(array: np.ndarray) -> np.ndarray:
        rows = rng.integers(len(array), size=(DRAWS, len(array)))
        return array[rows].mean(1)

    def means(name: Hashable, arrays: Sequence[np.ndarray]) -> np.ndarray:
        n, key = len(arrays), (shared(name), len(arrays))
        if n == 1:
            return episodes(arrays[0])
        if key not in drawn_pairs:
            drawn_pairs[key] = of_pairs.integers(n, size=(n, DRAWS))
        places = [np.stack([episodes(a) for a in arrays])[k, draw] for k in drawn_pairs[key]]
        return np.mean(places, axis=0)

    value = read({k: np.mean([a.mean() for a in v]) for k, v in samples.items()})
    drawn = read({k: means(k, v) for k, v in samples.items()})
    low, high = np.percentile(drawn, [2.5, 97.5]) if np.ptp(drawn) else (np.nan, np.nan)
    return Number(float(value), float(low), float(high))


@dataclass(frozen=True)
class Comparison:
    """Scores of several ways to plan, in one or more environments, and what is read off them.

    Numbers are `bootstrap`s, in which all ways of an environment have the same pairs drawn; where
    not all seeds have all ways that a number is about, it is of those that do.

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

        return bootstrap(samples, over_environments, self.seed, shared=lambda pair: pair[0])

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

    def gains(self, name: str, way: Hashable, over: Hashable = "base") -> dict[int, float]:
        """`gain` of each pair by its seed."""
        seeds = [s for n, w, s in self.scores if (n, w) == (name, way)]
        of_pair = {s: [self.scores[name, w, s].mean() for w in (way, over)] for s in seeds}
        return {s: float(100 * (after / before - 1)) for s, (after, before) in of_pair.items()}

    def ahead(self, name: str, way: Hashable, rival: Hashable) -> Number:
        """Score, less a rival's."""
        return self.number(lambda m: m[way] - m[rival], way, rival, of=[name])

    def gap_closed(self, way: Hashable, *of: str) -> Number:
        """Share of the gap that is closed, (way - base) / (expert - base), mean of environments."""
        three = "base", "expert", way
        return self.number(
            lambda m: (m[way] - m["base"]) / (m["expert"] - m["base"]), *three, of=of
        )
