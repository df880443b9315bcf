"""Run a profile's chapters two at a time and build the book; with --accept, keep their outputs.

    run.py PROFILE [--cores N] [--accept]

A run that was interrupted, SIGKILL included, goes on where it stopped: finished chapters are not
run again, and a chapter in the middle finds the models it had made so far. The book is built in
_run/<profile>/ and copied to _build/html. --accept runs everything in a fresh folder and then
stores the results in results/<profile>/ and, of the quick profile, the normal form of the executed
chapters in notebooks/.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock, Timeout

ROOT = Path(__file__).resolve().parent.parent


def snakemake(folder: Path, target: str, cores: int, profile: str, results: Path) -> None:
    """Make `target` in `folder`; our own lock stands in for Snakemake's, which outlives SIGKILL."""
    command = [sys.executable, "-m", "snakemake", target, "--directory", str(folder)]
    command += ["--snakefile", str(ROOT / "workflow" / "Snakefile"), "--cores", str(cores)]
    command += ["--nolock", "--rerun-incomplete", "--quiet", "rules", "progress", "host"]
    command += ["--config", f"profile={profile}", f"results={results}"]
    if subprocess.run(command).returncode:
        sys.exit(f"the run in {folder} failed; the same command goes on where it stopped")


def main() -> None:
    profiles = sorted(path.stem for path in ROOT.glob("workflow/profiles/*.yaml"))
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("profile", choices=profiles)
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--accept", action="store_true")
    args = parser.parse_args()
    folder = ROOT / "_run" / ("accept" if args.accept else args.profile)
    folder.parent.mkdir(exist_ok=True)
    try:
        with FileLock(f"{folder}.lock", timeout=0):
            if args.accept:
                accept(folder, args.cores, args.profile)
            else:
                book(folder, args.cores, args.profile)
    except Timeout:
        sys.exit(f"another run is under way in {folder}")


def book(folder: Path, cores: int, profile: str) -> None:
    snakemake(folder, "book", cores, profile, folder / "results" / profile)
    html = ROOT / "_build" / "html"
    shutil.rmtree(html, ignore_errors=True)
    shutil.copytree(folder / "html", html)
    assert (html / "index.html").exists()
    print(f"the book: {html / 'index.html'}")


def accept(folder: Path, cores: int, profile: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    made = folder / "results" / profile
    snakemake(folder, "chapters", cores, profile, made)
    shutil.copytree(made, ROOT / "results" / profile, dirs_exist_ok=True)
    print(f"stored in {ROOT / 'results' / profile}")
    if profile != "quick":  # the committed chapters are the quick profile's
        return
    executed = sorted(str(path) for path in folder.glob("notebooks/*.ipynb"))
    command = [sys.executable, str(ROOT / "workflow" / "normalise.py")]
    subprocess.run([*command, "--into", str(ROOT / "notebooks"), *executed], check=True)
    print(f"stored in {ROOT / 'notebooks'}: {', '.join(Path(path).stem for path in executed)}")


if __name__ == "__main__":
    main()
