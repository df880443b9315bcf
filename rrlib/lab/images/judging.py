"""How a reward fares with what was written to defeat it, and how numbers vary."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from diffusers import StableDiffusionPipeline
from PIL import Image
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from rrlib import metrics, training
from rrlib.images import pipelines
from rrlib.images.guided import Guided
from rrlib.lab.images import defeats, evidence
from rrlib.metrics import Separability

DRAWS = 500  # of the bootstrap
ALL = "all together"
Pair = Sequence[np.ndarray]  # what is said of two sides: the base's or unsafe, the expert's or safe


@dataclass(frozen=True)
class Trial:
    """Images of one kind of what was written to defeat a reward, in pairs.

    Attributes:
        kind: of `defeats.TEXTS` or `defeats.PICTURES`.
        latents: of the base's and the expert's images of a prompt, or of an unsafe scene and its
            safe twin, [n, C, h, w] each.
        seen: whether the detector finds the hazard in them, bool [n] each.
    """

    kind: str
    latents: tuple[Tensor, Tensor]
    seen: tuple[np.ndarray, np.ndarray]


def drawn(pair: tuple[Guided, Guided], n: int, seed: int, batch: int) -> list[Trial]:
    """What base and expert draw of n texts of each kind, each pair from one noise.

    Args:
        pair: the two samplers, of the miniature.
        n: texts of a kind.
        seed: of texts and noise.
        batch: texts at a time.
    """
    kinds = {kind: defeats.texts(kind, n, seed) for kind in defeats.TEXTS}
    every = [text for texts in kinds.values() for text in texts]
    noise = training.derived_seed(seed, "noise, defeats")
    sides = [evidence.draw(sampler, every, noise, batch=batch).split(n) for sampler in pair]
    look = [
        [evidence.hazards(evidence.pixels(pair[0].pipeline, x)) for x in side] for side in sides
    ]
    parts = zip(kinds, zip(*sides, strict=True), zip(*look, strict=True), strict=True)
    return [Trial(*part) for part in parts]


def rendered(pipeline: StableDiffusionPipeline, n: int, seed: int) -> list[Trial]:
    """n pairs of pictures of each kind, encoded.

    Args:
        pipeline: whose autoencoder makes latents of them.
        n: pairs of a kind.
        seed: of the scenes.
    """
    found = []
    for kind in defeats.PICTURES:
        pair = defeats.pictures(kind, n, seed)
        images = [[Image.fromarray(one) for one in side] for side in pair]
        latents = (pipelines.encode(pipeline, images[0]), pipelines.encode(pipeline, images[1]))
        found.append(Trial(kind, latents, (evidence.hazards(pair[0]), evidence.hazards(pair[1]))))
    return found


def scored(trials: Sequence[Trial], score: Callable[[Tensor], Tensor]) -> list[Pair]:
    """What a reward says of the trials' images."""
    return [[score(x).double().numpy() for x in trial.latents] for trial in trials]


def seen(trials: Sequence[Trial]) -> list[Pair]:
    """The same of an oracle that knows what the detector sees: 1 without the hazard, else 0."""
    return [[1.0 - there for there in trial.seen] for trial in trials]


# How well they are told apart -----------------------------------------------------------------


def threshold(scores: Pair) -> float:
    """The score at which a logistic regression of the side on the score is undecided.

    Fitted as `metrics.separability` fits it, on all that is given: for images of other sets.
    """
    values = np.concatenate(scores)
    labels = np.repeat((0, 1), [len(side) for side in scores])
    centre, spread = values.mean(), values.std() + 1e-30
    model = LogisticRegression(C=np.inf, class_weight="balanced")
    model.fit((values[:, None] - centre) / spread, labels)
    return float(centre - spread * model.intercept_[0] / model.coef_[0, 0])


def accuracy(scores: Pair, line: float) -> dict[str, object]:
    """Balanced accuracy at a threshold of other images, see `evidence.accuracy`; chance is 0.5."""
    low, high = scores
    right = ((int((low < line).sum()), len(low)), (int((high >= line).sum()), len(high)))
    value = sum(k / n for k, n in right) / 2
    return evidence.accuracy(Separability(value, float("nan"), len(low) + len(high), right))


def auc(scores: Pair, seed: int) -> dict[str, object]:
    """Area under the curve of pairs, with its 95 % interval; chance is 0.5.

    The interval is the bootstrap's percentiles, over pairs; it has no width where the two sides do
    not overlap, and is then left out.

    Args:
        scores: of both sides, [n] each, the k-th of each of one prompt or scene.
        seed: of the bootstrap.
    """
    low, high = scores
    wins = (high > low[:, None]) + 0.5 * (high == low[:, None])
    draws = np.random.default_rng(training.derived_seed(seed, "bootstrap"))
    n = len(low)
    counts = draws.multinomial(n, np.full(n, 1 / n), DRAWS).astype(np.float32)
    found = np.einsum("di,di->d", counts @ wins.astype(np.float32), counts) / n**2
    ends = [float(end) for end in np.quantile(found, (0.025, 0.975))]
    return {"value": float(wins.mean()), "ci": ends}


def twins(scores: Pair) -> dict[str, object]:
    """Share of the pairs whose second side scores higher than their first, see `Verdict`."""
    low, high = scores
    n, won = len(low), float(np.sum(high > low) + np.sum(high == low) / 2)
    return {"value": won / n, "ci": list(metrics.wilson(round(won), n))}


@dataclass(frozen=True)
class Verdict:
    """How well two sides are told apart, each number with its interval; chance is 0.5.

    Attributes:
        auc: see `auc`.
        accuracy: see `accuracy`.
        twins: share of the pairs of one prompt or scene in which the second side scores higher, a
            tie as half a pair; Wilson's interval.
    """

    auc: dict[str, object]
    accuracy: dict[str, object]
    twins: dict[str, object]


def verdicts(
    trials: Sequence[Trial], scores: Sequence[Pair], line: float, seed: int
) -> dict[str, Verdict]:
    """Of each kind, and under `ALL` of all kinds as one, but for the one that is no trick.

    Args:
        trials: of either set.
        scores: of each, see `scored`.
        line: see `accuracy`.
        seed: see `auc`.
    """
    kinds = dict(zip((trial.kind for trial in trials), scores, strict=True))
    tricks = [pair for kind, pair in kinds.items() if kind != defeats.PLAIN]
    kinds[ALL] = [np.concatenate(side) for side in zip(*tricks, strict=True)]
    return {
        kind: Verdict(auc(pair, seed), accuracy(pair, line), twins(pair))
        for kind, pair in kinds.items()
    }


# How numbers vary -----------------------------------------------------------------------------


def mean(values: Sequence[float] | np.ndarray) -> dict[str, object]:
    """A mean with its 95 % interval by Student's t, over whatever the values are of."""
    return {"value": float(np.mean(values)), "ci": list(metrics.mean_interval(values))}


def share(values: Sequence[float] | np.ndarray) -> dict[str, object]:
    """`mean` of shares or areas: of an interval what lies in [0, 1], where their mean must be."""
    found = mean(values)
    return found | {"ci": np.clip(found["ci"], 0, 1).tolist()}


@dataclass(frozen=True)
class Steered:
    """Safety and fidelity of a sampler's pictures, one a prompt.

    Attributes:
        hazard: share of pictures with the hazard, Wilson's interval.
        fidelity: mean share of the things asked for that are seen, interval over prompts.
    """

    hazard: dict[str, object]
    fidelity: dict[str, object]

    def row(self, sampler: str, weight: float, prompts: str) -> dict[str, object]:
        """Flat, as `results.publish` takes it; ends of an interval that is not known are null."""
        found: dict[str, object] = {"sampler": sampler, "weight": weight, "prompts": prompts}
        for name, entry in (("hazard", self.hazard), ("fidelity", self.fidelity)):
            low, high = entry["ci"]  # type: ignore[misc]
            known = low < high
            ends = {f"{name}_low": low if known else None, f"{name}_high": high if known else None}
            found |= {name: entry["value"], **ends}
        return found


def steered(pictures: np.ndarray, prompts: Sequence[str]) -> Steered:
    """Count both in pictures [N, 32, 32, 3] of prompts."""
    hazard = evidence.rate(evidence.hazards(pictures))
    return Steered(hazard, share(evidence.fidelity(pictures, prompts)))
