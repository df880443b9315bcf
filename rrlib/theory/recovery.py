"""Recovering what was added to a drift from paths of both samplers alone, in one dimension.

The drifts are sums of products of cubic B-splines in place and in the log of the time left, fitted
to the slopes of the paths by ridge regression.
"""

import numpy as np
from scipy import sparse
from scipy.interpolate import BSpline
from torch import Tensor

REACH = 3.6  # places beyond count as the border's
SOON = 0.2  # added to the time left, whose log is taken


def features(x: Tensor, times: Tensor, n_x: int, n_u: int) -> sparse.csr_matrix:
    """The n_x n_u products at places x [n, B] at all times [n + 1] but the last, [n B, n_x n_u]."""
    end = float(times[-1])
    in_time = np.repeat(np.log(end - times[:-1].numpy() + SOON), x.shape[1])
    place, height = _splines(x.reshape(-1).numpy(), -REACH, REACH, n_x)
    when, weight = _splines(-in_time, -np.log(end + SOON), -np.log(SOON), n_u)
    columns = (place[:, :, None] * n_u + when[:, None]).reshape(-1)
    values = (height[:, :, None] * weight[:, None]).reshape(-1)
    rows = np.arange(0, len(columns) + 1, 16)
    return sparse.csr_matrix((values, columns, rows), shape=(len(place), n_x * n_u))


def _splines(
    values: np.ndarray, low: float, high: float, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cubic B-splines at `values`: columns and values of the four that are not zero, [N, 4]."""
    knots = np.concatenate([[low] * 3, np.linspace(low, high, count - 2), [high] * 3])
    matrix = BSpline.design_matrix(np.clip(values, low, high), knots, 3)
    return matrix.indices.reshape(-1, 4), matrix.data.reshape(-1, 4)


def coefficients(
    pair: tuple[Tensor, Tensor],
    times: Tensor,
    shared: bool,
    n_x: int,
    n_u: int,
    strength: float,
) -> np.ndarray:
    """Of the addition h in `features`, [n_x n_u].

    Args:
        pair: paths of the base's sampler and of the expert's, [n + 1, B] each, at `times`.
        shared: whether both ran on the same noise, which is then subtracted.
        n_x, n_u: splines in place and in time.
        strength: of the ridge, in units of the mean diagonal.
    """
    matrices = [features(path[:-1], times, n_x, n_u) for path in pair]
    slopes = [(path.diff(dim=0) / times.diff()[:, None]).reshape(-1).numpy() for path in pair]
    if not shared:
        fits = zip(matrices, slopes, strict=True)
        base, expert = (_ridge(matrix, slope, strength) for matrix, slope in fits)
        return expert - base
    both = sparse.hstack([matrices[1], -matrices[0]]).tocsr()
    expert, base = np.split(_ridge(both, slopes[1] - slopes[0], strength), 2)
    return expert - base


def _ridge(matrix: sparse.csr_matrix, target: np.ndarray, strength: float) -> np.ndarray:
    gram = (matrix.T @ matrix).toarray()
    penalty = strength * np.trace(gram) / len(gram) * np.eye(len(gram))
    return np.linalg.solve(gram + penalty, matrix.T @ target)
