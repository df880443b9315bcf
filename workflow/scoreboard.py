"""The scoreboard's table: the paper's numbers beside ours, from the published results.

    scoreboard.py OUTPUT RESULT...

Each RESULT is a JSON file as `rrlib.results.publish` writes it. The table has one row for each
entry of its summary that has a label.
"""

import argparse
import re
from pathlib import Path

from rrlib import disk
from rrlib.errors import InputError
from rrlib.lab.results import meets, validate_result

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
    value = entry["value"]
    ours = "not measured" if value is None else _number(value)
    if "ci" in entry:
        low, high = entry["ci"]
        ours += f" ({_number(low)} to {_number(high)})"
    bar = ""
    if "bar" in entry:
        sign = entry["bar"].replace(">=", "≥").replace("<=", "≤")
        met = value is not None and meets(value, entry["bar"])
        bar = f"{sign} ({'met' if met else 'missed'})"
    label, profile, hardware = (_plain(text) for text in (entry["label"], profile, hardware))
    return [label, _number(entry.get("paper", "")), ours, bar, profile, hardware]


def _plain(text: str) -> str:
    """A text that Markdown shows letter by letter, as a cell of one line."""
    return re.sub(
        r"[\\`*_{}\[\]<>|#$~&]", lambda sign: f"&#{ord(sign[0])};", " ".join(text.split())
    )


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return _plain(value)
    try:
        return f"{value:.4g}"
    except OverflowError:  # an integer of over 308 digits
        return f"10^{len(str(value)) - 1}"


def read(paths: list[Path]) -> list[dict]:
    """The results in these files. Of two with one study and profile the later one counts.

    Raises InputError, naming the file, for one that is damaged or not of the published form.
    """
    found = {}
    for path in paths:
        result = disk.read_json(path)
        try:
            validate_result(result)
        except ValueError as error:
            raise InputError(f"File '{path}' is not as results are published: {error}.") from None
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
