"""The table of what came of the trials, and the few numbers of it that pages show."""

Row = dict[str, object]


def row(part: str, kind: str, trials: int, right: int, mended: int | None, again: bool) -> Row:
    """One kind of trial; `right` as `summary` says for each part."""
    found = {"part": part, "kind": kind, "trials": trials, "right": right}
    return found | {"mended": mended, "can_be_made_again": again}


SAID = {  # part -> name of its share, in words
    "kills": ("resumed", "SIGKILL: the run went on to the same results"),
    "damaged": ("noticed", "a damaged file was noticed"),
    "fuzz": ("fuzz", "odd files: one sentence or the right value"),
    "full disk": ("full_disk", "a full disk: one sentence, nothing half written"),
    "crowd": ("crowd", "eight processes want one artefact: made once, the same for all"),
    "folder": ("folder", "a folder of somebody else's: one sentence"),
}


def summary(rows: list[Row]) -> dict[str, object]:
    """Share and number of trials of each part; of damaged files also those made again unasked."""
    found: dict[str, object] = {}
    for part, (name, label) in SAID.items():
        mine = [r for r in rows if r["part"] == part]
        trials = sum(int(str(r["trials"])) for r in mine)
        if not trials:
            continue
        right = sum(int(str(r["right"])) for r in mine)
        found[name] = {"value": right / trials, "bar": ">= 1", "label": f"faults, {label}"}
        found |= {f"{name}_right": right, f"{name}_trials": trials}
    mine = [r for r in rows if r["part"] == "damaged"]
    trials, again, mended = (
        sum(int(str(r[name])) for r in chosen)
        for name, chosen in (
            ("trials", mine),
            ("trials", [r for r in mine if r["can_be_made_again"]]),
            ("mended", mine),
        )
    )
    if trials:
        label = "faults, a damaged file was made again unasked"
        found["mended"] = {"value": mended / trials, "bar": ">= 0.8", "label": label}
        found |= {"mended_right": mended, "mended_can": again}
    return found
