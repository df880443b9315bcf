"""Every reader on files that were changed at random: one sentence, or a right value."""

import random
import resource
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from judged import End, ended, same
from readers import Reader, readers

MEMORY = 12 << 30  # bytes that a case may ask for


class Found(NamedTuple):
    """What came of one reader's cases, and one line for each kind of fault."""

    reader: str
    cases: int
    refused: int
    values: int
    faults: dict[str, str]


def run(folder: Path, seed: int, share: float = 1.0, only: str = "") -> list[Found]:
    """All readers' cases, or a share of them."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    found = []
    for name, reader in readers(folder).items():
        if only in name:
            found.append(_cases(name, reader, random.Random(f"{seed}/{name}"), share))
    return found


def _cases(name: str, reader: Reader, draw: random.Random, share: float) -> Found:
    content, kinds, faults = reader.place.read_bytes(), Counter[str](), {}
    names = (reader.place.name, *reader.names)
    right = ended(reader.read, names)
    assert right.kind == "value", f"{name}: the good file is {right.said}"
    cases = max(1, round(share * reader.cases))
    for case in range(cases):
        change = draw.choice(reader.changes)
        changed = change(content, draw)
        reader.place.parent.mkdir(parents=True, exist_ok=True)
        reader.place.write_bytes(changed)
        end = _judged(ended(reader.read, names), right, reader, changed == content)
        kinds[end.kind] += 1
        if end.kind == "fault":
            key = end.said.partition(":")[0] if "raw" not in end.said else end.said
            faults.setdefault(key, f"case {case}, {change.__name__}: {end.said}")
            _keep(reader.place, changed, name, case)
        _tidy(reader.place)
    reader.place.write_bytes(content)
    return Found(name, cases, kinds["refused"], kinds["value"], faults)


def _judged(end: End, right: End, reader: Reader, untouched: bool) -> End:
    """A value must be the right one where a checksum is, or where nothing has changed."""
    if end.kind == "value" and (reader.checked or untouched) and not same(end.value, right.value):
        return End("fault", "another value in silence")
    return (
        End("fault", f"good file refused: {end.said}")
        if untouched and end.kind == "refused"
        else end
    )


def _keep(place: Path, content: bytes, name: str, case: int) -> None:
    kept = Path("_run/faults/found") / f"{name.replace('/', ' ')} {case} {place.name}"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_bytes(content)


def _tidy(place: Path) -> None:
    """Take away what was set aside."""
    for left in place.parent.glob(".*.damaged*"):
        left.unlink()
