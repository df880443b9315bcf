"""Run one chapter through papermill, with a line when it starts and one when it ends.

    chapter.py NOTEBOOK OUTPUT PARAMETERS

PARAMETERS is a JSON object. What the chapter prints goes to logs/<chapter>.log beside the folder of
OUTPUT; OUTPUT appears only when the chapter has run to its end.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notebook", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("parameters")
    args = parser.parse_args()
    name = args.notebook.stem
    output = args.output.resolve()
    log = output.parent.parent / "logs" / f"{name}.log"
    unfinished = output.with_suffix(".unfinished.ipynb")
    log.parent.mkdir(parents=True, exist_ok=True)
    output.parent.mkdir(parents=True, exist_ok=True)

    print(f"{name}: started (its output goes to {log})", flush=True)
    start = time.monotonic()
    command = [
        sys.executable,
        "-m",
        "papermill",
        "--log-output",
        "--kernel",
        "python3",
        "--language",
        "python",
    ]
    command += ["--parameters_yaml", args.parameters, str(args.notebook), str(unfinished)]
    with log.open("w", encoding="utf-8") as stream:
        code = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT).returncode
    if code:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-12:])
        sys.exit(f"{tail}\n{name}: failed; all it printed is in {log}")
    unfinished.replace(output)
    # The kernel is a child of papermill, and so counted once both have ended. Linux: in KiB.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"{name}: done in {time.monotonic() - start:.0f} s, peak {peak:.1f} GB", flush=True)


if __name__ == "__main__":
    main()
