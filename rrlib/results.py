"""Small published results: one JSON file per study and profile, and the bars they are held to."""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

from rrlib import disk, host


def meets(value: float, bar: str) -> bool:
    """Whether `value` meets a bar such as ">= 0.999" or "<= 1.5"; NaN meets none.

    Raises ValueError for a bar of another form.
    """
    match = re.fullmatch(r"(>=|<=) (-?\d+(?:\.\d+)?(?:e-?\d+)?)", bar)
    if not match:
        raise ValueError(f"bar={bar!r} is not of the form '>= 0.9' or '<= 1.5'")
    limit = float(match[2])
    return bool(value >= limit if match[1] == ">=" else value <= limit)


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
                      value   number                                     (required)
                      ci      [low, high], the 95 % confidence interval   low <= value <= high
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

    The file appears whole or not at all. Raises ValueError if anything is not of this form, NaN
    and infinity included.
    """
    if not folder:
        return
    given = dict(parameters if isinstance(parameters, Mapping) else vars(parameters))
    result = {
        "study": study,
        "profile": Path(folder).resolve().name,
        "rows": [dict(row) for row in rows],
        "summary": {k: dict(v) if isinstance(v, Mapping) else v for k, v in summary.items()},
        "provenance": {
            "parameters": {
                k: Path(v).name if isinstance(v, str) and os.path.isabs(v) else v
                for k, v in given.items()
            },
            "device": host.device_name(str(given.get("device", "cpu"))),
            "versions": host.versions(),
            "commit": host.commit(),
            "wall_seconds": wall_seconds,
        },
    }
    _write(Path(folder) / f"{study}.json", result)


def join(folder: str, study: str, part: str) -> None:
    """Copy the summary of the study `part` into that of `study`, if both are in `folder`.

    Two chapters that contribute to one study both call this after `publish`, so it is complete
    whichever ends first. The copies have no labels: the scoreboard shows them once, under `part`.
    """
    path, other = (Path(folder) / f"{name}.json" for name in (study, part))
    if not (folder and path.exists() and other.exists()):
        return
    result, more = (json.loads(p.read_text(encoding="utf-8")) for p in (path, other))
    for name, entry in more["summary"].items():
        if isinstance(entry, dict):
            entry.pop("label", None)
        result["summary"][name] = entry
    _write(path, result)


def published(study: str, profile: str = "full") -> dict[str, object]:
    """The summary of a study as this book publishes it: name -> number, or object (`publish`).

    Raises:
        InputError: it is not there, as in an installed copy, which has no `results` folder.
    """
    return disk.read_json(host.CHECKOUT / "results" / profile / f"{study}.json")["summary"]


def _write(path: Path, result: Mapping[str, object]) -> None:
    validate_result(result)
    content = json.dumps(result, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(content + "\n", encoding="utf-8")
    temporary.replace(path)


def validate_result(result: Mapping[str, object]) -> None:
    """Raise ValueError unless `result` is of the form that `publish` describes."""

    def need(condition: bool, message: str) -> None:
        if not condition:
            raise ValueError(f"result: {message}")

    keys = {"study", "profile", "rows", "summary", "provenance"}
    need(set(result) == keys, f"keys are {sorted(result)}, not {sorted(keys)}")
    for key in ("study", "profile"):
        name = result[key]
        need(bool(re.fullmatch(r"[a-z0-9][a-z0-9_.-]*", name)), f"{key} {name!r} is no plain name")
    for row in result["rows"]:
        need(set(row) == set(result["rows"][0]), f"row {row} has other keys than the first")
        scalar = all(isinstance(v, str | bool | None) or _is_number(v) for v in row.values())
        need(scalar, f"row {row} holds something that is no string, number, boolean or null")
    for name, entry in result["summary"].items():
        entry = entry if isinstance(entry, Mapping) else {"value": entry}
        extra = set(entry) - {"value", "ci", "paper", "bar", "label"}
        need(not extra, f"summary {name!r} has unknown keys {sorted(extra)}")
        value = entry.get("value")
        need(_is_number(value), f"summary {name!r} has the value {value!r}, not a finite number")
        if "ci" in entry:
            ci = entry["ci"]
            two = isinstance(ci, Sequence) and len(ci) == 2 and all(map(_is_number, ci))
            need(two and ci[0] <= value <= ci[1], f"summary {name!r} has the interval {ci!r}")
        paper = entry.get("paper", "")
        need(isinstance(paper, str) or _is_number(paper), f"summary {name!r} has paper={paper!r}")
        need(isinstance(entry.get("label", ""), str), f"summary {name!r} has no text as label")
        if "bar" in entry:
            meets(value, entry["bar"])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
