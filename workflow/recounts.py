"""Published numbers counted again from the rows of their own file, by code that no chapter uses."""

from collections.abc import Callable, Iterable
from statistics import fmean

Rows = list[dict]
ADVANCED = "medium", "large"  # mazes
FEWEST = 10_000  # transitions, the paper's


def recount(study: str, name: str, rows: Rows) -> float | None:
    """The number `name` of a study, from what it says of each case; None where rows lack it."""
    if study in ("locomotion", "locomotion-transfer"):
        robot, _, quantity = name.partition(".")
        count = ROBOTS.get((study, quantity))
        return count and count([row for row in rows if row["environment"] == robot])
    count = MAZES.get((study, name))
    return count and count(rows)


def near(rows: Iterable[dict]) -> float:
    """Share of peaks within a cell of their goals."""
    return fmean(row["distance"] <= 1 for row in rows)


def by_expert(rows: Rows) -> list[float]:
    """Accuracy of each expert, mean of its rewards."""
    experts = dict.fromkeys((row["maze"], row["goal"]) for row in rows)
    return [fmean(r["accuracy"] for r in rows if (r["maze"], r["goal"]) == e) for e in experts]


def score(rows: Rows, **what: str) -> float:
    """Mean score of the rows that are so, each of one pair."""
    return fmean(row["score"] for row in rows if all(row[k] == v for k, v in what.items()))


def gain(after: float, before: float) -> float:
    """Per cent."""
    return 100 * (after - before) / before


MAZES: dict[tuple[str, str], Callable[[Rows], float]] = {
    ("maze2d", "goal_found"): near,
    ("maze2d", "goal_found_simple"): lambda rows: near(
        row for row in rows if row["maze"] not in ADVANCED
    ),
    ("maze2d", "goal_found_advanced"): lambda rows: near(
        row for row in rows if row["maze"] in ADVANCED
    ),
    ("maze2d", "logreg_mean"): lambda rows: fmean(by_expert(rows)),
    ("maze2d", "logreg_min"): lambda rows: min(by_expert(rows)),
    ("maze2d", "auc"): lambda rows: fmean(row["auc"] for row in rows),
    ("maze2d_small_data", "goal_found"): lambda rows: near(
        row for row in rows if row["transitions"] == FEWEST
    ),
}
ROBOTS: dict[tuple[str, str], Callable[[Rows], float]] = {
    ("locomotion", "gain"): lambda rows: gain(
        score(rows, planner="reward"), score(rows, planner="base")
    ),
    ("locomotion", "ahead"): lambda rows: (
        score(rows, planner="reward") - score(rows, planner="discriminator")
    ),
    ("locomotion-transfer", "gain_seed"): lambda rows: gain(
        score(rows, base="seed", way="reward"), score(rows, base="seed", way="unsteered")
    ),
}
