"""The full run of a study beside the run of a page: rows of a table, and what the full run was."""

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from rrlib.errors import InputError
from rrlib.lab import environment as host
from rrlib.lab import results
from rrlib.lab.results import meets

Result = Mapping[str, Any]
UNTOLD = {"store", "results", "device", "workers"}  # parameters that change no number


def read(study: str) -> Result | None:
    """The full run as this book publishes it; None if it is not there or cannot be read."""
    try:
        return results.read(host.CHECKOUT / "results" / "full" / f"{study}.json")
    except InputError:
        return None


def rows(full: Result, here: Mapping[str, Result], words: Mapping[str, str]) -> list[dict]:
    """One row per quantity of `words`: full run, this run, bar and the paper's number.

    Args:
        full: what `read` returned.
        here: name -> entry of this run's summary, with its `value`; what is missing was not run.
        words: name in both summaries -> the quantity in words.

    What this run found stands behind ≈: when a chapter is tested it is left out
    (`notebooks/nbval.cfg`), for CPUs differ in it; the verdict on it is compared. A quantity that
    neither run has measured gets no row.
    """
    found = []
    for name, quantity in words.items():
        theirs, ours = _entry(full["summary"].get(name)), _entry(here.get(name))
        if theirs.get("value") is None and ours.get("value") is None:
            continue
        bar = ours.get("bar") or theirs.get("bar")
        found.append(
            {
                "quantity": quantity,
                "full run": said(theirs),
                "this run": f"≈ {said(ours)}" if ours else "not run here",
                "bar": bar and _verdict(bar, theirs, ours),
                "paper": _number(ours.get("paper", theirs.get("paper", ""))),
            }
        )
    return found


def origin(full: Result, chosen: SimpleNamespace) -> str:
    """Commit, time and hardware of the full run, and which parameters it had that differ."""
    known = full["provenance"]
    commit, seconds = known.get("commit"), known.get("wall_seconds")
    when = commit and host.commit_date(commit)
    parts = [
        f"commit {commit[:8]}{f' of {when}' if when else ''}" if commit else "commit not recorded",
        f"{seconds / 3600:.1f} processor hours" if seconds else "its hours were not recorded",
        f"on {known['device']}",
    ]
    given, ours = known.get("parameters", {}), vars(chosen)
    other = [
        f"`{name}` {_listed(value)} (here {_listed(ours[name])})"
        for name, value in given.items()
        if name in set(ours) - UNTOLD and _listed(value) != _listed(ours[name])
    ]
    return f"Full run: {', '.join(parts)}; {', '.join(other) or 'the parameters of this run'}."


def lacking(full: Result, here: Mapping[str, Result], words: Mapping[str, str]) -> str:
    """One line that names what the full run should have and has not; empty if it has all."""
    old = [words[name] for name in words if name in here and name not in full["summary"]]
    return f"The full run is older than this page and did not measure: {'; '.join(old)}." * bool(
        old
    )


def said(entry: Mapping[str, Any]) -> str:
    """A number and its interval in three digits."""
    if entry.get("value") is None:
        return "not measured"
    low, high = entry.get("ci") or (math.nan, math.nan)
    if not low < high:  # of one value, or of equal ones, no interval is known
        return _number(entry["value"])
    return f"{_number(entry['value'])} ({_number(low)} to {_number(high)})"


def _entry(entry: Any) -> Mapping[str, Any]:
    if entry is None or isinstance(entry, Mapping):
        return entry or {}
    return {"value": entry}


def _verdict(bar: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    side = bar.replace(">=", "at least").replace("<=", "at most")
    sides = {"full run": theirs, "this run": ours}
    met = [
        f"{name}: {'yes' if meets(entry['value'], bar) else 'no'}"
        for name, entry in sides.items()
        if entry.get("value") is not None
    ]
    return f"{side} ({', '.join(met)})"


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
