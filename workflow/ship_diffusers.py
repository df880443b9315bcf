"""Put the diffusers that a run of the quick profile trained into `shipped/`, for everybody to use.

    python workflow/ship_diffusers.py --store _run/fresh/artefacts

`make ship` does it all: a run that takes nothing from `shipped/`, in an empty store, and then this.
Diffusers are ordinary denoisers and take most of a run's time; rewards, which the book is about,
are always extracted where the book is run.
"""

import argparse
import shutil
from pathlib import Path

from rrlib import disk
from rrlib.lab import store

KINDS = ("MazeDiffuser", "LocomotionDiffuser", "DigitsDiffuser", "StepDiffuser", "ToyDiffuser")


def ship(source: Path, target: Path) -> list[Path]:
    """Copy the finished diffusers of a store to `target`, in place of all that is there."""
    found = [
        path.parent for kind in KINDS for path in sorted(source.glob(f"{kind}/*/{store.MANIFEST}"))
    ]
    if not found:
        raise SystemExit(f"there are no diffusers in {source}: run the chapters with it first")
    with disk.atomic(target) as beside:
        for place in found:
            shutil.copytree(place, beside / place.relative_to(source))
    return [target / place.relative_to(source) for place in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--store", type=Path, required=True)
    made = ship(parser.parse_args().store, store.SHIPPED)
    size = sum(path.stat().st_size for place in made for path in place.iterdir()) / 2**20
    print(f"{len(made)} diffusers, {size:.1f} MiB, in {store.SHIPPED}")


if __name__ == "__main__":
    main()
