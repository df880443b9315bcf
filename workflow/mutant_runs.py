"""Runs a meant defect's tests in a copy of the tree, see `mutants.py`.

Packages that rrlib imports are loaded once; each run is a fork that loads rrlib from the copy.
"""

import contextlib
import hashlib
import multiprocessing
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from pathlib import Path

import pytest
from mutants import FOUND, ROOT, TEXTUAL, Mutant, mark, mutated, place

from rrlib import disk
from rrlib.errors import InputError
from rrlib.lab import environment

PATIENCE = 7200  # seconds; a defect that never ends is seen, too


def copied(folder: Path) -> None:
    """The files of the checkout, as they are, in an empty folder."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, check=True, text=True).stdout
    for name in filter(None, names.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def red(folder: Path, tests: Sequence[str]) -> str:
    """The first quick test that fails in a copy of the tree; empty if none does.

    Raises:
        InputError: pytest itself fails, such as over a test that is not there.
    """
    log = folder / "log.txt"
    tested = multiprocessing.get_context("fork").Process(target=_pytest, args=(folder, tests, log))
    tested.start()
    tested.join(PATIENCE)
    if tested.exitcode is None:
        tested.kill()
        tested.join()
        return "a test that does not end"
    said = log.read_text(encoding="utf-8", errors="replace")
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", said, re.MULTILINE)
    if tested.exitcode == 0 or (tested.exitcode == 1 and failed):
        return failed[1] if failed else ""
    raise InputError(f"pytest ended with {tested.exitcode}: {said[-1500:]}")


def _pytest(folder: Path, tests: Sequence[str], log: Path) -> None:
    """Run a copy's tests in this process, a fork that has loaded all but rrlib."""
    os.chdir(folder)
    os.environ |= {"PYTHONPATH": str(folder)}
    sys.path.insert(0, str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] == "rrlib"]:
        del sys.modules[name]
    ignored = [f"--ignore={name}" for name in TEXTUAL]
    options = ["-q", "-x", "-n", "0", "--tb=no", "-rfE", "-p", "no:cacheprovider"]
    quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # plugins are loaded already
    command = [*options, *quiet, "-m", "not slow and not book", *ignored, *tests]
    with open(log, "w", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
        with contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
            code = pytest.main(command)
    os._exit(int(code))  # nothing of the parent's is cleaned up here


def loaded() -> None:
    """Load what all of rrlib imports, once: a fork then begins in a second."""
    for path in sorted((ROOT / "rrlib").rglob("*.py")):
        if path.stem != "__main__":
            parts = path.relative_to(ROOT).with_suffix("").parts
            import_module(".".join(parts).removesuffix(".__init__"))


def found(mutant: Mutant, folder: Path, named: bool) -> dict[str, object]:
    """What becomes of a defect in a copy of the tree, which is then as before.

    Returns:
        caught; by, the first test that failed; against, "named" tests or "all" quick ones.
    """
    path = place(folder, mutant)
    whole = path.read_bytes()
    path.write_text(mutated(path, mutant), encoding="utf-8")
    try:
        by, against = red(folder, mutant["tests"]), "named"
        if not by and not named:
            by, against = red(folder, ["tests"]), "all"
    finally:
        path.write_bytes(whole)
    return {"caught": bool(by), "by": by, "against": against}


def state() -> str:
    """A digest of rrlib and tests, but for what was found before."""
    digest = hashlib.sha256()
    for path in sorted(path for part in ("rrlib", "tests") for path in (ROOT / part).rglob("*")):
        if path.is_file() and path != FOUND and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(ROOT)}\0{disk.sha256(path)}\n".encode())
    return digest.hexdigest()[:16]


def run(chosen: Sequence[Mutant], cores: int, named: bool) -> dict[str, dict]:
    """Name -> what was found, now or by an earlier run of the same tree.

    Raises:
        InputError: a test that is named fails without any defect.
    """
    kept = ROOT / "_run" / "mutants" / state()
    due = [mutant for mutant in chosen if _earlier(mutant, kept, named) is None]
    if due:
        loaded()
    fork, commit = multiprocessing.get_context("fork"), environment.commit()
    with tempfile.TemporaryDirectory() as scratch, ProcessPoolExecutor(cores, fork) as pool:
        tests = sorted({test for mutant in due for test in mutant["tests"]})
        if tests and (failed := pool.submit(_unharmed, Path(scratch), tests).result()):
            raise InputError(f"'{failed}' fails without any defect: a tree that passes is needed.")
        each = partial(_one, scratch=Path(scratch), kept=kept, named=named, commit=commit)
        for result in pool.map(each, due):
            print(result, flush=True)
    return {mutant["name"]: _earlier(mutant, kept, named) for mutant in chosen}


def _earlier(mutant: Mutant, kept: Path, named: bool) -> dict | None:
    """What was found before, unless more is asked for."""
    file = kept / f"{mark(mutant)}.json"
    result = disk.read_json(file) if file.exists() else None
    return result if result and (named or result["caught"] or result["against"] == "all") else None


def _mine(scratch: Path) -> Path:
    """This process's copy of the tree."""
    folder = scratch / str(os.getpid())
    if not folder.exists():
        copied(folder)
    return folder


def _unharmed(scratch: Path, tests: Sequence[str]) -> str:
    return red(_mine(scratch), tests)


def _one(mutant: Mutant, scratch: Path, kept: Path, named: bool, commit: str | None) -> str:
    result = found(mutant, _mine(scratch), named) | {"commit": commit}
    disk.write_json(kept / f"{mark(mutant)}.json", result)
    return f"{result['by'] or 'NOT CAUGHT'}: {mutant['name']}"
