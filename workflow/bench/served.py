"""Ten million transitions from a file: memory beside the file, and windows a second.

    served.py FILE

A process of its own, so that nothing else counts. Prints the bytes that reading FILE and drawing
from it took at most, beyond what was there before, and the windows drawn per processor second.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py

from rrlib.plans import trajectories
from rrlib.plans.normalisers import Normaliser
from rrlib.plans.windows import Windows
from rrlib.training import stream

HORIZON, BATCH = 32, 4_096


def measured(transitions: int) -> tuple[float, float]:
    """Memory over the file, and windows a second, of so many made transitions in HDF5."""
    from bench.world_rows import made

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "data.hdf5"
        with h5py.File(file, "w") as plain:  # not compressed: what its numbers take
            for name, array in made(transitions).arrays().items():
                plain[name] = array
        done = subprocess.run(
            [sys.executable, __file__, str(file)], capture_output=True, text=True, check=True
        )
        memory, speed = map(float, done.stdout.split())
        return memory / file.stat().st_size, speed


def peak() -> int:
    """Most memory that this process has had, bytes (Linux; `ru_maxrss` has the parent's, too)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return 1024 * int(re.search(r"VmHWM:\s*(\d+)", status)[1])


def main() -> None:
    from bench.timing import seconds

    before = peak()
    data = trajectories.load(Path(sys.argv[1]), observation_width=4, action_width=2)
    windows = Windows.of(data, Normaliser.fit(data), HORIZON, "cpu")
    draws = stream(0, "windows")
    taken = seconds(lambda: windows.draw(BATCH, draws), least=2.0)
    print(peak() - before, BATCH / taken)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    main()
