"""Figures and cells of tables of chapter 14, of numbers with intervals."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from rrlib.lab import plots

Entry = Mapping[str, Any]  # with a value, and with ends where an interval is known
RIVAL = "#CC79A7"  # Okabe and Ito's purple
LOOKS = (
    {"color": plots.STEERED, "marker": "o"},
    {"color": RIVAL, "marker": "s"},
    {"color": "black", "marker": "d", "markerfacecolor": "none"},
)  # of draw_kinds, in the order of what is drawn


def said(entry: Entry) -> str:
    """A number and its interval, as a table has them; without one where none is known."""
    low, high = entry["ci"]
    value = f"{entry['value']:.2f}"
    return f"{value} ({low:.2f} to {high:.2f})" if low < high else value


def bars(entries: Sequence[Entry]) -> np.ndarray:
    """Lengths below and above the values, [2, n], 0 where no interval is known."""
    ends = np.array([(e["value"] - e["ci"][0], e["ci"][1] - e["value"]) for e in entries], float)
    return np.nan_to_num(ends.T.clip(min=0))


def draw_kinds(ax: Axes, found: Mapping[str, Mapping[str, Entry]]) -> None:
    """A row for each kind, a mark for each way to judge it, and chance as a dotted line.

    Args:
        ax: to draw on.
        found: at most three ways -> kind -> number; the kinds of the first are the rows.
    """
    kinds = list(next(iter(found.values())))
    for k, ((who, of), look) in enumerate(zip(found.items(), LOOKS, strict=False)):
        rows = np.arange(len(kinds)) + 0.22 * (k - 1)
        entries = [of[kind] for kind in kinds]
        values = [entry["value"] for entry in entries]
        ax.errorbar(values, rows, xerr=bars(entries), ls="", ms=4, lw=1, label=who, **look)
    ax.axvline(0.5, color="black", ls=":", lw=0.8)
    ax.set_yticks(range(len(kinds)), kinds)
    ax.invert_yaxis()


def draw_trade(
    ax: Axes,
    across: Sequence[Entry],
    up: Sequence[Entry],
    weights: Sequence[float] = (),
    marker: str = "o",
    **look: str,
) -> None:
    """A point or a curve of one number against another, both with intervals.

    Args:
        ax: to draw on.
        across, up: the two numbers, n each.
        weights: written beside the points, n or none.
        marker, look: of matplotlib's `errorbar`; other marks than circles are drawn larger.
    """
    x, y = ([entry["value"] for entry in entries] for entries in (across, up))
    size = 4 if marker == "o" else 11
    ax.errorbar(x, y, xerr=bars(across), yerr=bars(up), marker=marker, ms=size, lw=1, **look)
    for place, w in zip(zip(x, y, strict=True), weights, strict=False):
        ax.annotate(f"{w:g}", place, (4, 4), textcoords="offset points", fontsize=8)
