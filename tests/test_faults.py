"""The trials of `make faults` can begin: each reader of files reads its good one."""

import subprocess
import sys
from pathlib import Path

import pytest

MAIN = Path(__file__).resolve().parent / "faults" / "main.py"


@pytest.mark.slow
def test_every_reader_that_is_to_be_fooled_reads_its_good_file():
    command = [sys.executable, str(MAIN), "--only", "fuzz", "--share", "0.001"]
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("fuzz: ")]
    assert done.returncode == 0, done.stdout + done.stderr
    tried = [line for line in lines if line.endswith(" of 1")]
    assert len(tried) > 20 and all(line.endswith(": 1 of 1") for line in tried)
