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
    if lost := lost_figures(*(nbformat.read(p, as_version=4) for p in (args.notebook, unfinished))):
        sys.exit(
            f"{name}: failed, for cells that draw a figure in {args.notebook} drew none: "
            f"{', '.join(lost)}; the run is in {unfinished}"
        )
    try:
        with atomic(output) as whole:
            shutil.move(unfinished, whole)
    except InputError as error:
        sys.exit(str(error))
    # The kernel is a child of papermill, and so counted once both have ended. Linux: in KiB.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{name}: done in {time.monotonic() - start:.0f} s, peak {peak:.1f} GB", flush=True)


def lost_figures(source: nbformat.NotebookNode, executed: nbformat.NotebookNode) -> list[str]:
    """The ids of cells that show a picture in `source` and none in `executed`."""
    drawn = _drawn(executed)
    return [name for name in _drawn(source) if name not in drawn]


def _drawn(notebook: nbformat.NotebookNode) -> list[str]:
    found = []
    for cell in notebook.cells:
        kinds = {kind for output in cell.get("outputs", []) for kind in output.get("data", {})}
        if any(kind.startswith("image/") for kind in kinds):
            found.append(cell.id)
    return found


if __name__ == "__main__":
    main()
