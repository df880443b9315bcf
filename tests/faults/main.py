"""Faults on purpose: kills, damaged files, a full disk, a crowd, odd files; one table of what came.

    main.py [--seed N] [--results FOLDER] [--share S] [--only PART]...

Prints one line for each kind of trial, and each fault that was found; with --results it publishes
the table as `faults.json` there. It ends with 1 if anything went wrong. `make faults` calls it.
"""

import argparse
import os
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = "kills", "fuzz", "damaged", "machine"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", default="2", help="of all that is drawn")
    parser.add_argument("--results", default="", help="folder that gets faults.json")
    parser.add_argument("--share", type=float, default=1.0, help="of the trials, for a quick look")
    parser.add_argument("--only", choices=PARTS, action="append", help="these parts alone")
    given = parser.parse_args()
    if not (given.seed.isascii() and given.seed.isdigit() and int(given.seed) < 2**32):
        sys.exit(f"SEED={given.seed[:80]!r} is not allowed: a whole number below 2**32 is needed.")
    sys.path[:0] = [str(ROOT)]  # the checkout that this file is of
    sys.path += [str(ROOT / "tests"), str(ROOT / "workflow")]
    folder = Path(tempfile.mkdtemp(prefix="rrlib-faults-"))
    folder.chmod(0o755)
    try:
        from rrlib.lab import environment  # noqa: F401, I001 (before torch, which trials load)
        import trials

        found = trials.run(given.only or [*PARTS], folder, int(given.seed), given.share)
    except KeyboardInterrupt:
        sys.exit("interrupted")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report(*found, given.results, int(given.seed))


def report(rows: list, faults: list[str], folder: str, seed: int) -> None:
    """Print the table and the faults, and publish them; end with 1 if there are any."""
    from table import summary

    from rrlib.lab import results

    for one in rows:
        mended = "" if one["mended"] is None else f", {one['mended']} made again unasked"
        print(f"{one['part']}: {one['kind']}: {one['right']} of {one['trials']}{mended}")
    if os.geteuid() != 0:
        print("folder: not tried, for only root can become another user")
    told = summary(rows)
    for entry in told.values():
        if isinstance(entry, dict):
            print(f"{entry['label']}: {entry['value']:.4f} (bar: {entry['bar']})")
    spent = os.times()
    seconds = spent.user + spent.system + spent.children_user + spent.children_system
    options = {"parameters": {"seed": seed}, "wall_seconds": round(seconds)}
    results.publish(folder, "faults", rows=rows, summary=told, **options)
    if faults:
        sys.exit("\n".join([f"{len(faults)} faults:", *faults]))


if __name__ == "__main__":
    main()
