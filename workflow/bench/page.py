"""The tables and the figure of the page *Speed*, from results/full/benchmark.json alone."""

from pathlib import Path

import matplotlib.pyplot as plt
from chapter_tables import line, plain
from matplotlib.axes import Axes

from rrlib.lab import plots
from rrlib.lab.results import meets


def tables(result: dict) -> str:
    """Markdown: the ratios, what is held to a bar, the exponents, and what it was measured on."""
    parts = [_ratios(result["rows"]), _bars(result["summary"]), _growth(result["rows"])]
    return "\n".join([*parts, _machine(result["provenance"])])


def _ratios(rows: list[dict]) -> str:
    heads = ["| what | beside | times as much processor time for the same work |", "|---|---|---|"]
    lines = [
        line([plain(row["name"]), plain(row["against"]), interval(row)])
        for row in rows
        if row["kind"] == "ratio" and "a second of" not in row["against"]
    ]
    shares = ["", "| what | share of the rate of its largest matrix product |", "|---|---|"]
    shares += [
        line([plain(row["name"]), interval(row)])
        for row in rows
        if row["kind"] == "ratio" and "a second of" in row["against"]
    ]
    return "\n".join(["## Side by side", "", *heads, *lines, *shares, ""])


def interval(row: dict) -> str:
    """Median and quartiles."""
    return "{} ({} to {})".format(*(number(row[key]) for key in ("value", "low", "high")))


def number(value: float) -> str:
    """Two digits, or three of what is large."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"


def _bars(summary: dict) -> str:
    lines = ["## Held to a bar", "", "| what | bar | measured | |", "|---|---|---|---|"]
    for entry in (e for e in summary.values() if "bar" in e):
        value, sign = entry["value"], entry["bar"].replace(">=", "≥").replace("<=", "≤")
        told = "not measured" if value is None else number(value)
        verdict = "" if value is None else "met" if meets(value, entry["bar"]) else "**missed**"
        lines.append(line([plain(entry["label"]), sign, told, verdict]))
    return "\n".join([*lines, ""])


def _growth(rows: list[dict]) -> str:
    lines = ["## How cost grows", "", "| what | with | exponent |", "|---|---|---|"]
    for row in (row for row in rows if row["kind"] == "growth"):
        power = "{value:.2f} ({low:.2f} to {high:.2f})".format(**row)
        lines.append(line([plain(row["name"]), plain(row["against"]), power]))
    return "\n".join([*lines, ""])


def _machine(provenance: dict) -> str:
    asked, versions = provenance["parameters"], provenance["versions"]
    told = [f"{name} {versions[name]}" for name in ("torch", "diffusers", "mujoco")]
    told.append(f"commit {str(provenance['commit'])[:10]}")
    where = f"one thread of {plain(provenance['device'])} ({asked['cores']} cores)"
    load = f"the load was {asked['load']} when it began"
    whole = "One run" if asked.get("finished", True) else "One run, which was cut short"
    return f"{whole}, {asked['rounds']} rounds, on {where}; {load}; {', '.join(told)}.\n"


def draw(result: dict, path: Path) -> None:
    """Draw the ratios, on a logarithmic axis with their quartiles."""
    plots.use_style()
    rows = [row for row in result["rows"] if row["kind"] == "ratio"]
    figure, ax = plt.subplots(figsize=(8.6, 0.27 * len(rows) + 0.8))
    for place, row in enumerate(reversed(rows)):
        _dot(ax, place, row)
    ax.axvline(1, color="black", lw=0.8, ls=":")
    names = [f"{row['name']}: {row['against']}" for row in reversed(rows)]
    ax.set_yticks(range(len(rows)), names, fontsize=7)
    ax.set(xscale="log", xlabel="time of the other over ours, for the same work")
    figure.savefig(path)
    plt.close(figure)


def _dot(ax: Axes, place: int, row: dict) -> None:
    share = "a second of" in row["against"]
    colour = plots.BASE if share else plots.STEERED
    ax.plot([row["low"], row["high"]], [place, place], color=colour, lw=2)
    ax.plot(row["value"], place, "o", color=colour, ms=4)
