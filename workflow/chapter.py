"""Run one chapter through papermill, with a line when it starts and one when it ends.

    chapter.py NOTEBOOK OUTPUT PARAMETERS

PARAMETERS is a JSON object. What the chapter prints goes to logs/<chapter>.log beside the folder of
OUTPUT; OUTPUT appears only when the chapter has run to its end and shows every figure that
NOTEBOOK shows. Until then it grows in unfinished/, beside logs/.
"""

import argparse
import os
import resource
import shutil
import sys
import time
from pathlib import Path

import nbformat
from watch import run

from rrlib.disk import atomic
from rrlib.errors import InputError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("parameters")
    args = parser.parse_args()
    name = args.notebook.stem
    output = args.output.resolve()
    log = output.parent.parent / "logs" / f"{name}.log"
    unfinished = output.parent.parent / "unfinished" / f"{name}.{os.getpid()}.ipynb"
    for folder in (log.parent, unfinished.parent):
        folder.mkdir(parents=True, exist_ok=True)
    for left in unfinished.parent.glob(f"{name}.*.ipynb"):  # by runs that were killed or failed
        left.unlink(missing_ok=True)

    print(f"{name}: started (its output goes to {log})", flush=True)
    start = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "papermill",
        "--log-output",
        "--start-timeout",
        "3600",  # a machine with other work is slow, not wrong
        "--kernel",
        "python3",
        "--language",
        "python",
    ]
    command += ["--parameters_yaml", args.parameters, str(args.notebook), str(unfinished)]
    with log.open("w", encoding="utf-8") as stream:
        code = run(command, stream)
    if code:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-12:])
        sys.exit(f"{tail}\n{name}: failed; all it printed is in {log}")
    source, executed = (nbformat.read(path, as_version=4) for path in (args.notebook, unfinished))
    if draws(source) and not draws(executed):
        sys.exit(
            f"{name}: failed, for {args.notebook} has figures and this run has none; it is in "
            f"{unfinished}"
        )
    try:
        with atomic(output) as whole:
            shutil.move(unfinished, whole)
    except InputError as error:
        sys.exit(str(error))
    # The kernel is a child of papermill, and so counted once both have ended. Linux: in KiB.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{name}: done in {time.monotonic() - start:.0f} s, peak {peak:.1f} GB", flush=True)


def draws(notebook: nbformat.NotebookNode) -> bool:
    """Whether a notebook shows any picture.

    Some may rightly be missing, where a chapter is given models of your own; all are missing where
    matplotlib draws into the void.
    """
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    return any(kind.startswith("image/") for kind in kinds)


if __name__ == "__main__":
    main()
