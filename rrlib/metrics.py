"""What counts as evidence: peaks, separability, distances, intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.stats import binomtest, spearmanr, t
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupShuffleSplit

BINS = 10  # bins of the heat-map per cell and axis (the paper's)


def heat_map(
    cells: np.ndarray, values: np.ndarray, shape: tuple[int, int], smoothing: float = 2.0
) -> np.ndarray:
    """Mean of `values` per bin, smoothed; NaN where no point fell.

    Smoothing is normalised: a Gaussian over sums divided by the same Gaussian over counts, so bins
    without data (walls, unvisited corners) neither pull nor push.

    Args:
        cells: positions in cell units, [N, 2] (row, column); (1, 1) is the centre of that cell.
        values: [N].
        shape: (rows, columns) of the maze.
        smoothing: standard deviation of the Gaussian in bins (0 for none).

    Returns:
        [rows * BINS, columns * BINS].
    """
    total, count = _histogram(cells, shape, values), _histogram(cells, shape)
    empty = count == 0
    if smoothing:
        total, count = (gaussian_filter(grid, smoothing) for grid in (total, count))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(empty, np.nan, total / count)


def log_visit_ratio(
    base: np.ndarray, expert: np.ndarray, shape: tuple[int, int], smoothing: float = 2.0
) -> np.ndarray:
    """log of expert's share over base's share of visits per bin; NaN where either is missing.

    Args:
        base, expert: positions in cell units, [N, 2], [M, 2].
        shape: (rows, columns) of the maze.
        smoothing: of the visits, as `heat_map`'s.

    Returns:
        [rows * BINS, columns * BINS].
    """
    shares, counts = [], [_histogram(cells, shape) for cells in (base, expert)]
    seen = (counts[0] > 0) & (counts[1] > 0)
    for cells, count in zip((base, expert), counts, strict=True):
        shares.append((gaussian_filter(count, smoothing) if smoothing else count) / len(cells))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(seen, np.log(shares[1] / shares[0]), np.nan)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two maps over the bins that both know (scipy's)."""
    both = np.isfinite(a) & np.isfinite(b)
    return float(spearmanr(a[both], b[both]).statistic)


def _histogram(
    cells: np.ndarray, shape: tuple[int, int], weights: np.ndarray | None = None
) -> np.ndarray:
    edges = [np.arange(n * BINS + 1) / BINS - 0.5 for n in shape]
    return np.histogram2d(cells[:, 0], cells[:, 1], edges, weights=weights)[0]


def peak(heat: np.ndarray) -> tuple[float, float]:
    """Centre of the highest bin, in cell units (row, column)."""
    row, column = np.unravel_index(np.nanargmax(heat), heat.shape)
    return (row + 0.5) / BINS - 0.5, (column + 0.5) / BINS - 0.5


def chance(walls: np.ndarray, goal: tuple[float, float], radius: float = 1.0) -> float:
    """Share of the free area within `radius` cells of `goal`: a random peak's chance to count.

    Args:
        walls: bool [rows, columns].
        goal: cell units.
        radius: in cells, Euclidean.
    """
    fine = 50
    rows, columns = (np.arange(n * fine) / fine - 0.5 + 0.5 / fine for n in walls.shape)
    near = np.hypot(rows[:, None] - goal[0], columns[None] - goal[1]) <= radius
    free = np.kron(~walls, np.ones((fine, fine), bool))
    return float((near & free).sum() / free.sum())


def wald(successes: int, n: int) -> tuple[float, float]:
    """The paper's 95 % interval, p +- 1.96 sqrt(p (1 - p) / n); of no width at p = 0 or 1."""
    p = successes / n
    half = 1.96 * np.sqrt(p * (1 - p) / n)
    return float(p - half), float(p + half)


def wilson(successes: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion (scipy's)."""
    interval = binomtest(successes, n).proportion_ci(0.95, "wilson")
    return float(interval.low), float(interval.high)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the mean of independent values by Student's t.

    (NaN, NaN) where nothing varies (one value, or equal ones): how far it may be off is not known,
    and `results.publish` leaves such an interval out.
    """
    found = np.asarray(values, dtype=float)
    if len(found) < 2 or np.ptp(found) == 0:
        return math.nan, math.nan
    half = t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found))
    return float(found.mean() - half), float(found.mean() + half)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p values corrected for their number by Holm's step-down method, in the same order.

    Of hypotheses that all hold, one is rejected at 0.05 or below in at most 5 % of cases, whatever
    they have to do with one another.
    """
    found = np.asarray(p_values, dtype=float)
    order = np.argsort(found)
    stepped = found[order] * np.arange(len(found), 0, -1)
    corrected = np.empty_like(found)
    corrected[order] = np.minimum(np.maximum.accumulate(stepped), 1.0)
    return corrected


@dataclass(frozen=True)
class Separability:
    """How well the reward alone tells base from expert, on trajectories not used for the fit."""

    accuracy: float
    auc: float
    n: int  # plans scored
    right: tuple[tuple[int, int], ...] = ()  # of each side: plans told right, plans


def separability(
    base: np.ndarray,
    expert: np.ndarray,
    base_trajectory: np.ndarray,
    expert_trajectory: np.ndarray,
    seed: int,
) -> Separability:
    """Held-out logistic regression on the reward; chance is 0.5.

    Half of the trajectories of each kind fit the regression, the other half score it.
    It has no penalty, so that the unit of the reward, which means nothing, does not matter.

    Args:
        base, expert: rewards of plans, [n], [m].
        base_trajectory, expert_trajectory: which trajectory each plan was cut from, [n], [m].
        seed: of the split.
    """
    values = [base, expert]
    folds = [  # a chapter counts seeds from its own, which may be the last that scikit-learn takes
        next(GroupShuffleSplit(1, test_size=0.5, random_state=seed % 2**32).split(v, groups=g))
        for v, g in zip(values, (base_trajectory, expert_trajectory), strict=True)
    ]
    x: tuple[list, list] = ([], [])
    y: tuple[list, list] = ([], [])
    for label, (value, fold) in enumerate(zip(values, folds, strict=True)):
        for half in (0, 1):
            x[half].append(value[fold[half]])
            y[half].append(np.full(len(fold[half]), label))
    (fit_x, test_x), (fit_y, test_y) = (map(np.concatenate, part) for part in (x, y))
    centre, spread = fit_x.mean(), fit_x.std() + 1e-30
    model = LogisticRegression(C=np.inf, class_weight="balanced")
    model.fit((fit_x[:, None] - centre) / spread, fit_y)
    weights = np.where(test_y == 1, 0.5 / test_y.sum(), 0.5 / (1 - test_y).sum())
    right = model.predict((test_x[:, None] - centre) / spread) == test_y
    sides = tuple((int(right[test_y == k].sum()), int((test_y == k).sum())) for k in (0, 1))
    auc = float(roc_auc_score(test_y, test_x))
    return Separability(float(weights @ right), auc, len(test_y), sides)


def r_squared(estimate: np.ndarray, truth: np.ndarray) -> float:
    """Share of the variance of `truth` that `estimate` explains, an additive constant removed.

    Rewards are defined up to a constant per t: ask this for one t at a time. Both [N].
    """
    residual = estimate - truth
    return float(1 - residual.var() / truth.var())


def sliced_wasserstein(a: np.ndarray, b: np.ndarray, directions: int = 256, seed: int = 0) -> float:
    """Sliced Wasserstein-2 distance of two samples of one size, [n, d] each.

    Root of the mean, over random directions, of the squared W2 of the projections, which in one
    dimension is the mean squared difference of the sorted values.
    """
    rng = np.random.default_rng(seed)
    axes = rng.standard_normal((a.shape[1], directions))
    axes /= np.linalg.norm(axes, axis=0)
    gap = np.sort(a @ axes, axis=0) - np.sort(b @ axes, axis=0)
    return float(np.sqrt(np.mean(gap**2)))
