"""Metrics against naive loops, closed forms, Monte Carlo and scikit-learn's own parts."""

import math

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import GroupShuffleSplit
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from rrlib import metrics
from rrlib.metrics import BINS

SHAPE = (3, 4)


def scattered(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    cells = rng.uniform(-0.5, np.array(SHAPE) - 0.5, (n, 2))
    cells[cells[:, 1] > 2.2] -= [0, 1.5]  # leave columns without data
    return cells, rng.standard_normal(n)


def bin_of(cell: np.ndarray) -> tuple[int, int]:
    return tuple(int((c + 0.5) * BINS) for c in cell)


def sums(cells: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    total, count = np.zeros((2, SHAPE[0] * BINS, SHAPE[1] * BINS))
    for cell, value in zip(cells, values, strict=True):
        total[bin_of(cell)] += value
        count[bin_of(cell)] += 1
    return total, count


def test_heat_map_without_smoothing_is_the_mean_per_bin():
    cells, values = scattered()
    heat = metrics.heat_map(cells, values, SHAPE, smoothing=0)
    total, count = sums(cells, values)
    assert heat.shape == count.shape
    assert np.array_equal(np.isnan(heat), count == 0)
    assert_allclose(heat[count > 0], (total / np.maximum(count, 1))[count > 0], rtol=1e-12)


def test_heat_map_smooths_sums_over_counts_and_masks_the_empty_bins():
    # Away from the edges, where the padding of a filter does not matter.
    rng = np.random.default_rng(1)
    cells = rng.uniform(0.9, 1.3, (40, 2))
    values, sigma = rng.standard_normal(40), 0.7
    heat = metrics.heat_map(cells, values, SHAPE, smoothing=sigma)
    total, count = sums(cells, values)
    assert np.array_equal(np.isnan(heat), count == 0)
    rows, columns = np.nonzero(count)
    for row, column in zip(rows, columns, strict=True):
        near = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / 2 / sigma**2)
        # The filter cuts its Gaussian off at four deviations.
        near *= np.maximum(abs(rows - row), abs(columns - column)) <= round(4 * sigma)
        wanted = near @ total[rows, columns] / (near @ count[rows, columns])
        assert_allclose(heat[row, column], wanted, rtol=1e-9)


@pytest.mark.parametrize("smoothing", [0, 2.0])
def test_a_constant_reward_gives_a_constant_map(smoothing):
    """Walls and unvisited corners must not pull their neighbours down."""
    cells, values = scattered()
    heat = metrics.heat_map(cells, np.full_like(values, -3.0), SHAPE, smoothing)
    assert_allclose(heat[~np.isnan(heat)], -3.0, rtol=1e-12)
    assert np.isnan(heat).any()


@pytest.mark.parametrize("goal", [(1.0, 1.0), (0.0, 2.0), (1.3, 1.7), (2.0, 0.31)])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_peak_is_where_a_bump_was_planted(goal, sign):
    rng = np.random.default_rng(0)
    cells = rng.uniform(-0.5, np.array(SHAPE) - 0.5, (60_000, 2))
    bump = sign * np.exp(-((cells - goal) ** 2).sum(1) / 2 / 0.3**2)
    found = metrics.peak(metrics.heat_map(cells, bump, SHAPE))
    distance = math.dist(found, goal)
    assert distance < 2 / BINS if sign > 0 else distance > 1


def test_peak_is_the_centre_of_its_bin():
    heat = np.full((SHAPE[0] * BINS, SHAPE[1] * BINS), np.nan)
    heat[10:20, 10:20] = 0
    heat[13, 17] = 1
    row, column = metrics.peak(heat)
    assert (row, column) == pytest.approx((0.85, 1.25))
    assert bin_of(np.array([row, column])) == (13, 17)
    # (1, 1) is the centre of its cell: bins 10 to 19 span 0.5 to 1.5.
    single = metrics.heat_map(np.array([[row, column]]), np.ones(1), SHAPE, 0)
    assert np.argwhere(~np.isnan(single)).tolist() == [[13, 17]]


@pytest.mark.parametrize(("goal", "radius"), [((1, 1), 1.0), ((1.3, 2.7), 1.0), ((3, 1), 0.5)])
def test_chance_is_that_of_darts_thrown_at_the_free_area(goal, radius):
    rows = ("#####", "#GOO#", "###O#", "#OOO#", "#####")
    walls = np.array([[c == "#" for c in row] for row in rows])
    rng = np.random.default_rng(0)
    darts = rng.uniform(-0.5, np.array(walls.shape) - 0.5, (400_000, 2))
    free = darts[~walls[tuple((darts + 0.5).astype(int).T)]]
    share = (np.hypot(*(free - goal).T) <= radius).mean()
    error = 5 * math.sqrt(share * (1 - share) / len(free))
    assert metrics.chance(walls, goal, radius) == pytest.approx(share, abs=error + 1e-3)


def test_chance_of_a_disc_inside_one_cell_is_its_area():
    walls = np.ones((5, 5), bool)
    walls[1:4, 1:4] = False
    assert metrics.chance(walls, (2, 2), 1.0) == pytest.approx(math.pi / 9, abs=1e-3)
    assert metrics.chance(walls, (2, 2), 10.0) == 1


def test_wald_is_the_papers_interval():
    """78.12 % +- 6.40 of 160; 78.75 +- 8.96 and 77.50 +- 9.15 of 80 (section 5.1)."""
    for successes, n, share, half in (
        (125, 160, 78.12, 6.40),
        (63, 80, 78.75, 8.96),
        (62, 80, 77.50, 9.15),
    ):
        low, high = metrics.wald(successes, n)
        assert 50 * (low + high) == pytest.approx(share, abs=0.006)
        assert 50 * (high - low) == pytest.approx(half, abs=0.006)


@pytest.mark.parametrize(("successes", "n"), [(0, 4), (4, 4), (125, 160), (1, 32)])
def test_wilson_is_its_formula(successes, n):
    z, p = 1.959963984540054, successes / n
    centre = (p + z**2 / 2 / n) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / 4 / n**2)
    assert metrics.wilson(successes, n) == pytest.approx((centre - half, centre + half), abs=1e-12)


def two_kinds(shift: float, n: int = 40, each: int = 6, m: int = 30):
    """Rewards of plans: each trajectory has its own level, the expert's are `shift` higher."""
    rng = np.random.default_rng(0)
    kinds = []
    for count, offset in ((n, 0.0), (m, shift)):
        trajectory = np.repeat(np.arange(count), each)
        noise = rng.standard_normal(count)[trajectory] + rng.standard_normal(count * each)
        kinds.append((offset + noise, trajectory))
    (base, base_trajectory), (expert, expert_trajectory) = kinds
    return base, expert, base_trajectory, expert_trajectory


@pytest.mark.parametrize("seed", [0, 7])
def test_separability_is_scikit_learns_on_the_same_split(seed):
    base, expert, base_trajectory, expert_trajectory = two_kinds(1.5)
    halves = []
    for values, groups in ((base, base_trajectory), (expert, expert_trajectory)):
        splitter = GroupShuffleSplit(1, test_size=0.5, random_state=seed)
        halves.append(next(splitter.split(values, groups=groups)))
    x, y = np.concatenate([base, expert])[:, None], np.repeat([0, 1], [len(base), len(expert)])
    fit, test = (np.concatenate([halves[0][i], len(base) + halves[1][i]]) for i in (0, 1))
    model = make_pipeline(StandardScaler(), LogisticRegression(C=np.inf, class_weight="balanced"))
    model.fit(x[fit], y[fit])
    result = metrics.separability(base, expert, base_trajectory, expert_trajectory, seed)
    accuracy = balanced_accuracy_score(y[test], model.predict(x[test]))
    assert result.accuracy == pytest.approx(accuracy)
    assert result.auc == pytest.approx(roc_auc_score(y[test], x[test, 0]))
    assert result.n == len(test)


def test_separability_is_a_half_for_equal_and_one_for_separated_rewards():
    equal = metrics.separability(*two_kinds(0.0, n=800, m=400), seed=0)
    assert equal.accuracy == pytest.approx(0.5, abs=0.05)
    assert equal.auc == pytest.approx(0.5, abs=0.05)
    apart = metrics.separability(*two_kinds(30.0), seed=0)
    assert (apart.accuracy, apart.auc) == (1, 1)
    # Units of the reward do not matter, however small.
    base, expert, *trajectories = two_kinds(30.0)
    tiny = metrics.separability(1e-9 * base, 1e-9 * expert, *trajectories, seed=0)
    assert tiny.accuracy == 1


def test_separability_does_not_leak_across_trajectories():
    """Four trajectories at -10, -1 | 1, 10: known all four, a threshold at 0 makes no mistake.

    Known -10 and 1 alone, the threshold falls below -1, and the unseen half is half wrong.
    A split by plan would know all four at every seed.
    """
    each = 20
    values = np.repeat([-10.0, -1.0, 1.0, 10.0], each)
    base, expert = values[: 2 * each], values[2 * each :]
    trajectory = np.repeat([0, 1], each)
    results = [metrics.separability(base, expert, trajectory, trajectory, s) for s in range(8)]
    assert min(result.accuracy for result in results) == pytest.approx(0.5)
    assert all(result.n == 2 * each for result in results)


def test_r_squared_removes_a_constant_and_nothing_else():
    rng = np.random.default_rng(0)
    truth, noise = rng.standard_normal((2, 1000))
    noise -= noise.mean()
    assert metrics.r_squared(truth + 5, truth) == pytest.approx(1)
    assert metrics.r_squared(np.zeros(1000), truth) == pytest.approx(0)
    assert metrics.r_squared(-truth, truth) == pytest.approx(-3)
    assert metrics.r_squared(2 * truth, truth) == pytest.approx(0)
    one = metrics.r_squared(truth + noise, truth)
    assert one == pytest.approx(1 - noise.var() / truth.var())
    assert metrics.r_squared(3 * (truth + noise) - 1, 3 * truth + 2) == pytest.approx(one)


@pytest.mark.parametrize("d", [1, 2, 5])
def test_sliced_wasserstein_of_a_shift_is_its_length_over_root_d(d):
    """W2 along a direction u is |u . m|, whose mean square over directions is |m|^2 / d."""
    rng = np.random.default_rng(0)
    a = rng.standard_normal((300, d))
    shift = np.arange(1, d + 1) / 2
    distance = metrics.sliced_wasserstein(a, rng.permutation(a + shift), directions=5000)
    assert distance == pytest.approx(np.linalg.norm(shift) / math.sqrt(d), rel=0.03)
    a, fresh = rng.standard_normal((2, 3000, d))
    near = metrics.sliced_wasserstein(a, fresh + shift)
    assert near == pytest.approx(np.linalg.norm(shift) / math.sqrt(d), rel=0.15)


def test_sliced_wasserstein_of_a_stretch_is_the_difference_of_deviations():
    a = np.random.default_rng(0).standard_normal((3000, 3))
    scale = np.sqrt((a**2).sum(1).mean() / 3)
    assert metrics.sliced_wasserstein(a, 3 * a) == pytest.approx(2 * scale, rel=0.03)
    assert metrics.sliced_wasserstein(a, a[::-1]) == 0


def test_log_visit_ratio_is_that_of_the_shares_bin_by_bin():
    rng = np.random.default_rng(0)
    base, expert = rng.uniform(-0.5, 1.5, (4000, 2)), rng.uniform(-0.5, 0.5, (500, 2))
    ratio = metrics.log_visit_ratio(base, expert, (2, 2), smoothing=0)
    assert ratio.shape == (20, 20)
    for i, j in ((0, 0), (3, 7), (9, 9), (4, 15), (18, 2)):
        low = np.array((i, j)) / 10 - 0.5
        inside = [((c >= low) & (c < low + 0.1)).all(1).mean() for c in (base, expert)]
        if min(inside) == 0:
            assert np.isnan(ratio[i, j])
        else:
            assert ratio[i, j] == pytest.approx(np.log(inside[1] / inside[0]))
    assert np.isnan(ratio[10:]).all() and np.isfinite(ratio[:10, :10]).mean() > 0.9


def test_rank_correlation_asks_only_bins_that_both_know():
    a = np.array([[1.0, 2.0, 3.0], [np.nan, 5.0, 4.0]])
    b = np.array([[10.0, 20.0, np.nan], [7.0, 50.0, 45.0]])
    assert metrics.rank_correlation(a, b) == pytest.approx(1)
    assert metrics.rank_correlation(a, -b) == pytest.approx(-1)


def test_a_peak_is_where_something_is_known_though_all_of_it_is_below_zero():
    heat = np.full((20, 20), np.nan)
    heat[3, 4], heat[15, 7] = -2.0, -1.0
    assert metrics.peak(heat) == pytest.approx((1.05, 0.25))


def test_maps_are_smoothed_by_two_bins_unless_asked_otherwise():
    cells = np.random.default_rng(0).uniform(-0.5, 1.5, (4000, 2))
    two = metrics.heat_map(cells, cells[:, 0], (2, 2), 2.0)
    np.testing.assert_array_equal(metrics.heat_map(cells, cells[:, 0], (2, 2)), two)
    two = metrics.log_visit_ratio(cells, cells[:2000], (2, 2), 2.0)
    np.testing.assert_array_equal(metrics.log_visit_ratio(cells, cells[:2000], (2, 2)), two)


def test_holms_correction_steps_down():
    # Smallest times four, next times three, and none below the one before it.
    found = metrics.holm([0.04, 0.01, 0.03, 0.005])
    assert found == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert metrics.holm([0.9, 0.6]).tolist() == [1.0, 1.0] and metrics.holm([]).shape == (0,)


def test_holms_correction_keeps_its_promise_whatever_the_values_have_in_common(seed=3):
    draws = np.random.default_rng(seed)
    shared, own = draws.normal(size=(2000, 1)), draws.normal(size=(2000, 12))
    p_values = 2 * stats.norm.sf(np.abs(0.6 * shared + 0.8 * own))
    wrong = np.mean([metrics.holm(row).min() <= 0.05 for row in p_values])
    assert 0.02 < wrong < 0.06 and np.mean((p_values <= 0.05).any(1)) > 0.2


def test_mean_interval_is_students(seed=3):
    values = np.random.default_rng(seed).normal(size=7)
    low, high = metrics.mean_interval(values)
    theirs = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((theirs.low, theirs.high))


@pytest.mark.parametrize("values", [[2.0], [0.1, 0.1, 0.1], [0.1, float("nan")]])
def test_where_nothing_varies_there_is_no_interval(values):
    assert np.isnan(metrics.mean_interval(values)).all()


def test_separability_takes_any_seed_that_a_chapter_may_count_to():
    last = 2**32 - 1
    found = [metrics.separability(*two_kinds(1.5), seed=last + k) for k in (0, 1)]
    assert found[1] == metrics.separability(*two_kinds(1.5), seed=0) != found[0]


def test_separability_does_not_depend_on_the_unit_of_the_reward():
    base, expert, *trajectories = two_kinds(2.0)
    ours = metrics.separability(base, expert, *trajectories, seed=0)
    scaled = metrics.separability(1e4 * base, 1e4 * expert, *trajectories, seed=0)
    assert scaled.accuracy == pytest.approx(ours.accuracy)
