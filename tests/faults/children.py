"""Calls in processes of their own, which begin where this one is and may be ended at any time."""

import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

FORK = multiprocessing.get_context("fork")
PATIENCE = 7200  # seconds; only what hangs takes so long
Ended = tuple[int, Any]  # exit status, negative for a signal, and what was returned, or None


def called(call: Callable[[], Any]) -> Ended:
    """How a call ended in a child."""
    return together([call])[0]


def together(calls: list[Callable[[], Any]]) -> list[Ended]:
    """How calls ended that began at once, each in a child."""
    barrier, answers = FORK.Barrier(len(calls)), [FORK.SimpleQueue() for _ in calls]

    def answer(k: int) -> None:
        barrier.wait()
        answers[k].put(calls[k]())
        os._exit(0)  # nothing of the parent's is tidied up by a child

    children = [FORK.Process(target=answer, args=(k,)) for k in range(len(calls))]
    for child in children:
        child.start()
    found: list[Any] = [None] * len(calls)
    end = time.monotonic() + PATIENCE
    for k, child in enumerate(children):
        while child.is_alive() or not answers[k].empty():
            if not answers[k].empty():  # before it has ended: what is long must be taken from it
                found[k] = answers[k].get()
            child.join(0.02)
            if time.monotonic() > end:
                child.kill()
    return [(child.exitcode or 0, one) for child, one in zip(children, found, strict=True)]
