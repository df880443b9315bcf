"""Small published results: one JSON file per study and profile, and the bars they are held to."""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rrlib import disk
from rrlib.errors import InputError
from rrlib.lab import environment as host

UNMEASURED = "no finite number"  # why a value is null


def meets(value: float, bar: str) -> bool:
    """Whether `value` meets a bar such as ">= 0.999" or "<= 1.5"; NaN meets none.

    Raises ValueError for a bar of another form.
    """
    match = re.fullmatch(r"(>=|<=) (-?\d+(?:\.\d+)?(?:e-?\d+)?)", bar)
    if not match:
        raise ValueError(f"bar={bar!r} is not of the form '>= 0.9' or '<= 1.5'")
    limit = float(match[2])
    return bool(value >= limit if match[1] == ">=" else value <= limit)


def profile(folder: str | Path) -> str:
    """The profile that a folder of results stands for: its own name.

    Raises ValueError if it has none (`/`), or one that no table can show (a line break in it).
    """
    name = Path(folder).resolve().name
    if not name or not name.isprintable():
        raise ValueError("its last part names the profile: letters, digits, signs and spaces")
    return name


def publish(
    folder: str,
    study: str,
    *,
    rows: Sequence[Mapping[str, object]],
    summary: Mapping[str, float | Mapping[str, object]],
    parameters: SimpleNamespace | Mapping[str, object],
    wall_seconds: float | None = None,
) -> None:
    """Write `<folder>/<study>.json`, the small result that the scoreboard reads; "" writes nothing.

    The folder's own name is the profile: with results="results/quick" a chapter publishes `quick`.
    The file holds, with sorted keys:

        study       the study's name, lower case with hyphens
        profile     the folder's name
        rows        list of flat objects, one per configuration and seed; values are strings,
                    numbers, booleans or null, and every row has the same keys
        summary     name -> number, or name -> object of
                      value   number, or null where none was found       (required)
                      missing why the value is null
                      ci      [low, high], the 95 % confidence interval   low < high
                      paper   the paper's number, or its text ("over 90 %")
                      bar     ">= 0.9" or "<= 1.5"
                      label   the quantity in words; entries with a label are on the scoreboard
        provenance  parameters   name -> value (a folder or file: its name)
                    device       model of the CPU or GPU
                    versions     library -> version
                    commit       git commit of the checkout, "-dirty" appended; null outside git
                    wall_seconds processor seconds that making its artefacts took, all processes
                                 together (see `store.manifest`), or null; in what was published
                                 before this was counted, waits for other processes are in it
        checksum    of all these, see `disk.write_sealed`

    No number loses the hours of a chapter: NaN and infinity become null, and an interval that is
    not finite or has no width (one value, or equal ones, from which none can be had) is left out.

    The file appears whole or not at all. Raises ValueError if anything else is not of this form,
    InputError if the folder cannot be written.
    """
    if not folder:
        return
    given = dict(parameters if isinstance(parameters, Mapping) else vars(parameters))
    result = {
        "study": study,
        "profile": profile(folder),
        "rows": [{key: _plain(value) for key, value in row.items()} for row in rows],
        "summary": {name: _entry(entry) for name, entry in summary.items()},
        "provenance": {
            "parameters": {
                k: Path(v).name if isinstance(v, str) and os.path.isabs(v) else v
                for k, v in given.items()
            },
            "device": host.device_name(str(given.get("device", "cpu"))),
            "versions": host.versions(),
            "commit": host.commit(),
            "wall_seconds": _plain(wall_seconds),
        },
    }
    validate_result(result)
    disk.write_sealed(Path(folder) / f"{study}.json", result)


def read(path: str | Path) -> dict[str, Any]:
    """What `publish` wrote, without its checksum; a file of before there was one is taken as it is.

    Raises:
        InputError: the file cannot be read, is not as `publish` writes it, or not what it wrote.
    """
    found = disk.read_sealed(path, allow_unsealed=True)
    try:
        validate_result(found)
    except ValueError as error:
        raise InputError(f"File '{path}' is not as results are published: {error}.") from None
    return found


def published(study: str, profile: str = "full") -> dict[str, object]:
    """The summary of a study as this book publishes it: name -> number, or object (`publish`).

    Raises:
        InputError: it is not there, as in an installed copy, which has no `results` folder, or it
            is damaged.
    """
    return read(host.CHECKOUT / "results" / profile / f"{study}.json")["summary"]


def number(study: str, name: str, profile: str = "full") -> float:
    """One number of `published`."""
    entry = published(study, profile)[name]
    return entry["value"] if isinstance(entry, Mapping) else entry


def _plain(value: Any) -> Any:
    """A number of NumPy as Python's; null for one that is not finite."""
    value = value.item() if getattr(value, "ndim", None) == 0 else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _entry(entry: Any) -> Any:
    """An entry of the summary as it is published."""
    found = dict(entry) if isinstance(entry, Mapping) else {"value": entry}
    if "value" in found:
        found["value"] = _plain(found["value"])
    if "ci" in found:
        ci = [_plain(end) for end in found.pop("ci") or ()]
        if len(ci) == 2 and None not in ci and ci[0] != ci[1]:
            found["ci"] = ci
    if found.get("value", 0) is None:
        found.pop("ci", None)
        return {"missing": UNMEASURED} | found
    return found if isinstance(entry, Mapping) else found["value"]


def validate_result(result: Any) -> None:
    """Raise ValueError unless `result` is of the form that `publish` describes."""

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise ValueError(f"result: {message}")

    need(isinstance(result, Mapping), "it is no object")
    keys = {"study", "profile", "rows", "summary", "provenance"}
    need(set(result) == keys, f"keys are {sorted(result)}, not {sorted(keys)}")
    study, name = result["study"], result["profile"]
    plain = isinstance(study, str) and re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", study)
    need(bool(plain), f"study {study!r} is no plain name")
    shown = isinstance(name, str) and bool(name) and name.isprintable()
    need(shown, f"profile {name!r} is no name of a folder")
    need(isinstance(result["rows"], list), "rows are no list")
    for row in result["rows"]:
        need(isinstance(row, Mapping), f"row {row!r} is no object")
        need(set(row) == set(result["rows"][0]), f"row {row} has other keys than the first")
        scalar = all(isinstance(v, str | bool | None) or _is_number(v) for v in row.values())
        need(scalar, f"row {row} holds something that is no string, number, boolean or null")
    need(isinstance(result["summary"], Mapping), "summary is no object")
    for name, entry in result["summary"].items():
        _validate_entry(need, name, entry if isinstance(entry, Mapping) else {"value": entry})
    provenance = result["provenance"]
    need(isinstance(provenance, Mapping), "provenance is no object")
    need(isinstance(provenance.get("device"), str), "provenance names no device")


def _validate_entry(
    need: Callable[[bool, str], None], name: str, entry: Mapping[str, object]
) -> None:
    extra = set(entry) - {"value", "missing", "ci", "paper", "bar", "label"}
    need(not extra, f"summary {name!r} has unknown keys {sorted(extra)}")
    value, missing = entry.get("value"), entry.get("missing")
    known = _is_number(value) if missing is None else value is None and isinstance(missing, str)
    need(known, f"summary {name!r} has the value {value!r}, not a finite number")
    if "ci" in entry:
        ci = entry["ci"]
        two = isinstance(ci, list | tuple) and len(ci) == 2 and all(map(_is_number, ci))
        need(two and ci[0] < ci[1] and value is not None, f"summary {name!r} has interval {ci!r}")
    paper = entry.get("paper", "")
    need(isinstance(paper, str) or _is_number(paper), f"summary {name!r} has paper={paper!r}")
    need(isinstance(entry.get("label", ""), str), f"summary {name!r} has no text as label")
    need(isinstance(entry.get("bar", ""), str), f"summary {name!r} has no text as bar")
    if "bar" in entry:
        meets(0.0, entry["bar"])


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, int) or math.isfinite(value)
