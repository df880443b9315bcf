"""Robots in lock-step: blocks of simulators, here or in worker processes that know nothing else.

A worker imports this module, and so NumPy, Gymnasium and MuJoCo, and no torch: planners stay where
they are asked.
"""

import contextlib
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from rrlib.errors import InputError
from rrlib.locomotion import world as locomotion
from rrlib.locomotion.robots import Environment


class Block:
    """Some of the episodes, each in an environment of its own; it keeps what happens."""

    def __init__(self, environment: Environment, seeds: list[int], steps: int, version: int):
        self.simulators = locomotion.simulators(environment, len(seeds), version)
        self.worlds = self.simulators.envs
        self.seeds, self.steps = seeds, steps
        self.episodes: list[list[tuple]] = [[] for _ in seeds]

    def start(self) -> np.ndarray:
        """The first observations, [n, do]."""
        pairs = zip(self.worlds, self.seeds, strict=True)
        self.now = np.stack([w.reset(seed=s)[0] for w, s in pairs]).astype(np.float32)
        return self.now

    def step(self, going: np.ndarray, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Carry out [n, k, da] where [n] is true; the observations, and who still goes on."""
        still = going.copy()
        for row in np.flatnonzero(going):
            for action in actions[row]:
                if still[row]:
                    still[row] = self._one(int(row), action)
        return self.now, still

    def _one(self, row: int, action: np.ndarray) -> bool:
        following, reward, fallen, _, _ = self.worlds[row].step(action)
        late = not fallen and len(self.episodes[row]) + 1 >= self.steps
        self.episodes[row].append((self.now[row].copy(), action, reward, fallen, late))
        self.now[row] = following
        return not (fallen or late)

    def kept(self) -> list[list[tuple]]:
        """Per episode: observation, action, reward, whether it fell, whether it was the last."""
        return self.episodes

    def close(self) -> None:
        """Give the simulators back."""
        self.simulators.close()


@contextlib.contextmanager
def served(blocks: list[tuple]) -> Iterator[Callable[..., list]]:
    """Calls a method of every block, each with its own arguments: `everywhere(name, *columns)`.

    A single block lives here, several live in a process each and work at once. Whatever happens,
    simulators are closed and processes ended; what a block raises is raised here.
    """
    if len(blocks) == 1:
        with contextlib.closing(Block(*blocks[0])) as block:
            yield lambda name, *columns: [getattr(block, name)(*(c[0] for c in columns))]
        return
    with contextlib.ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        pools = [
            stack.enter_context(ProcessPoolExecutor(1, context, _end_with_parent)) for _ in blocks
        ]

        def everywhere(name: str, *columns: Sequence) -> list:
            rows = zip(*columns, strict=True) if columns else [()] * len(pools)
            pairs = zip(pools, rows, strict=True)
            try:  # a pool whose process is gone says so when asked, or when its answer is due
                asked = [pool.submit(_ask, name, *row) for pool, row in pairs]
                return [future.result() for future in asked]
            except BrokenProcessPool:
                raise InputError(
                    f"workers = {len(pools)}: one of these processes was ended from outside, as "
                    "happens when memory is short; fewer workers or episodes are needed."
                ) from None

        everywhere("open", *zip(*blocks, strict=True))
        yield everywhere
        everywhere("close")


_BLOCK: list[Block] = []  # of a worker process


def _ask(name: str, *arguments):
    if name == "open":
        _BLOCK.append(Block(*arguments))
        return None
    return getattr(_BLOCK[0], name)(*arguments)


def _end_with_parent() -> None:
    """Let this process end when the one that started it does, even by SIGKILL."""

    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in a child

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
