"""Run a profile's chapters two at a time and build the book; with --accept, keep their outputs.

    run.py PROFILE [--cores N] [--accept]

A run that was interrupted, SIGKILL included, goes on where it stopped: finished chapters are not
run again, and a chapter in the middle finds the models it had made so far. The book is built in
_run/<profile>/ (_run/fresh/<profile>/ where RRLIB_FRESH is 1) and copied to _build/html. --accept
runs everything in a new folder and then stores the results in results/<profile>/ and, of the quick
profile, the normal form of the executed chapters in notebooks/.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

from normalise import keep
from watch import locked, start

from rrlib.disk import atomic
from rrlib.errors import InputError
from rrlib.lab.store import fresh

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    profiles = sorted(path.stem for path in ROOT.glob("workflow/profiles/*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("profile", choices=profiles)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--accept", action="store_true")
    args = parser.parse_args()
    make = accept if args.accept else book
    try:
        runs = ROOT / "_run" / "fresh" if fresh() else ROOT / "_run"
        folder = runs / ("accept" if args.accept else args.profile)
        with locked(Path(f"{folder}.lock")) as lock:
            make(folder, args.cores, args.profile, lock)
    except BlockingIOError:
        sys.exit(f"another run is under way in {folder}")
    except KeyboardInterrupt:
        sys.exit("interrupted; the same command goes on where it stopped")
    except InputError as error:
        sys.exit(str(error))


def snakemake(
    folder: Path, target: str, cores: int, profile: str, results: Path, lock: int
) -> None:
    """Make `target` in `folder`; our own lock stands in for Snakemake's, which outlives SIGKILL.

    Snakemake inherits the lock, and so keeps it until it has ended, should this process be killed.
    """
    command = [sys.executable, "-m", "snakemake", target, "--directory", str(folder)]
    command += ["--snakefile", str(ROOT / "workflow" / "Snakefile"), "--cores", str(cores)]
    command += ["--nolock", "--rerun-incomplete", "--quiet", "rules", "progress", "host"]
    command += ["--profile", "none", "--workflow-profile", "none"]
    command += ["--config", f"profile={profile}", f"results={json.dumps(str(results))}"]
    if start(command, lock):
        sys.exit(f"the run in {folder} failed; the same command goes on where it stopped")


def book(folder: Path, cores: int, profile: str, lock: int) -> None:
    snakemake(folder, "book", cores, profile, folder / "results" / profile, lock)
    html = show(folder / "html", ROOT / "_build" / "html")
    print(f"the book: {html / 'index.html'}")


def show(made: Path, html: Path) -> Path:
    """Put a book in the place of the one that is shown, which two profiles' runs share."""
    with locked(html.with_name(f".{html.name}.lock"), wait=True), atomic(html) as beside:
        shutil.copytree(made, beside)
    assert (html / "index.html").exists()
    return html


def accept(folder: Path, cores: int, profile: str, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    made = folder / "results" / profile
    snakemake(folder, "chapters", cores, profile, made, lock)
    store(made, ROOT / "results" / profile)
    print(f"stored in {ROOT / 'results' / profile}")
    if profile != "quick":  # the committed chapters are the quick profile's
        return
    executed = sorted(str(path) for path in folder.glob("notebooks/*.ipynb"))
    command = [sys.executable, str(ROOT / "workflow" / "normalise.py")]
    subprocess.run([*command, "--into", str(ROOT / "notebooks"), *executed], check=True)
    print(f"stored in {ROOT / 'notebooks'}: {', '.join(Path(path).stem for path in executed)}")


def store(made: Path, kept: Path) -> None:
    """Copy a run's results; each is as new as it is here, and as old as it was if it is equal."""
    for path in sorted(made.rglob("*")):
        if path.is_file():
            keep(kept / path.relative_to(made), path.read_bytes())


if __name__ == "__main__":
    main()
