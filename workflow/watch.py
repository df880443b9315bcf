"""Runs that exclude each other, and processes that end when their run does, however it ends.

`start` gives what it starts a pipe as standard input and keeps the other end open; all that is
started from there inherits it, whatever stands between (Snakemake, a shell). When the starter is
gone, SIGKILL included, the pipe is at its end, and every `run` below ends its command and itself.
"""

import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

PIPE = "RRLIB_RUN_PIPE"  # the pipe's inode, so that no other standard input is taken for it
# A user's own profile of Snakemake is for a cluster; chapters choose how they draw.
DROPPED = "SNAKEMAKE_PROFILE", "MPLBACKEND"


@contextmanager
def locked(path: Path, wait: bool = False) -> Iterator[int]:
    """Hold a lock on the file `path`: its descriptor. Every process that inherits it holds it.

    Raises BlockingIOError if another process has it and `wait` is not asked for.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield descriptor
    finally:
        os.close(descriptor)


def start(command: list[str], lock: int) -> int:
    """Run a command to its end; it and its children can tell when this process has ended.

    Args:
        command: program and arguments.
        lock: of `locked`; the command keeps it until it has ended, should this process be killed.

    Returns:
        its exit status.
    """
    inner, outer = os.pipe()
    variables = {name: value for name, value in os.environ.items() if name not in DROPPED}
    variables[PIPE] = str(os.fstat(inner).st_ino)
    try:
        return subprocess.run(command, stdin=inner, env=variables, pass_fds=(lock,)).returncode
    finally:
        os.close(inner)
        os.close(outer)


def run(command: list[str], output: IO[str]) -> int:
    """Run a command to its end, its output and errors into a file; the exit status.

    When the process that called `start` ends before, the command is killed and so is this process.
    """
    child = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
    )
    try:
        if _tied():
            threading.Thread(target=_end_with_starter, args=(child,), daemon=True).start()
        return child.wait()
    except BaseException:  # interrupted
        child.kill()
        raise


def _tied() -> bool:
    """Whether this process descends from a `start` and still has its pipe."""
    try:
        return os.environ.get(PIPE) == str(os.fstat(0).st_ino)
    except OSError:  # no standard input at all
        return False


def _end_with_starter(child: subprocess.Popen) -> None:
    while os.read(0, 1):  # nobody writes: it returns at the pipe's end
        pass
    child.kill()
    print("the run that this belongs to has ended, and so it ends", file=sys.stderr, flush=True)
    os._exit(1)
