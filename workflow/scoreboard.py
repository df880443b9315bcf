"""The scoreboard's table: the paper's numbers beside ours, from the published results.

    scoreboard.py OUTPUT RESULT...

Each RESULT is a JSON file as `rrlib.results.publish` writes it. The table has one row for each
entry of its summary that has a label.
"""

import argparse
import json
from pathlib import Path

from rrlib.results import meets, validate_result

HEADER = ("quantity", "paper", "ours (95 % interval)", "bar", "profile", "hardware")
PROFILES = ("quick", "full", "paper")


def table(results: list[dict]) -> str:
    """A Markdown table, by study and then by profile; one sentence if there is nothing to show."""
    rows = []
    for result in sorted(results, key=_place):
        for name in sorted(result["summary"]):
            entry = result["summary"][name]
            if isinstance(entry, dict) and "label" in entry:
                rows.append(_row(entry, result["profile"], result["provenance"]["device"]))
    if not rows:
        return "No results have been published yet.\n"
    lines = [HEADER, ["---"] * len(HEADER), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _place(result: dict) -> tuple:
    profile = result["profile"]
    order = PROFILES.index(profile) if profile in PROFILES else len(PROFILES)
    return result["study"], order, profile


def _row(entry: dict, profile: str, hardware: str) -> list[str]:
    ours = _number(entry["value"])
    if "ci" in entry:
        low, high = entry["ci"]
        ours += f" ({_number(low)} to {_number(high)})"
    bar = ""
    if "bar" in entry:
        sign = entry["bar"].replace(">=", "≥").replace("<=", "≤")
        bar = f"{sign} ({'met' if meets(entry['value'], entry['bar']) else 'missed'})"
    cells = [entry["label"], _number(entry.get("paper", "")), ours, bar, profile, hardware]
    return [cell.replace("|", "&#124;") for cell in cells]


def _number(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def read(paths: list[Path]) -> list[dict]:
    """The results in these files. Of two with one study and profile the later one counts.

    Raises ValueError, naming the file, for one that is not of the published form.
    """
    found = {}
    for path in paths:
        result = json.loads(path.read_text(encoding="utf-8"))
        try:
            validate_result(result)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        found[result["study"], result["profile"]] = result
    return list(found.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("results", nargs="*", type=Path)
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(table(read(args.results)), encoding="utf-8")


if __name__ == "__main__":
    main()
