"""Contenders measured side by side: in turns, round by round, so that a busy machine slows all."""

import resource
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

LEAST = 0.05  # seconds of a measurement; a shorter call is repeated
Call = Callable[[], object]


@dataclass(frozen=True)
class Against:
    """What a row is held against.

    Attributes:
        name: in words, of the table.
        call: does its work once.
        work: units of work that it then has done, such as samples.
        ours: units that our own call does; both in the same unit.
        bar: on the ratio, such as ">= 2"; None for none.
    """

    name: str
    call: Call
    work: float = 1.0
    ours: float = 1.0
    bar: str | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table: our call, and what it is measured beside.

    Attributes:
        key: of the results file.
        name: what is done, in words.
        call: does our work once.
        against: at least one.
    """

    key: str
    name: str
    call: Call
    against: tuple[Against, ...]


@dataclass(frozen=True)
class Ratio:
    """Time of a unit of the other's work over ours: median of the rounds, quartiles, seconds."""

    median: float
    low: float
    high: float
    ours: float
    theirs: float


def processor_seconds() -> float:
    """Of this process and of the children that have ended: waits for other work do not count."""
    parts = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(part.ru_utime + part.ru_stime for part in parts)


def seconds(call: Call, device: str = "cpu", least: float = LEAST) -> float:
    """Time of one call: of the processor, or of the clock where a GPU works."""
    clock = processor_seconds if device == "cpu" else time.perf_counter
    begun, calls, spent = clock(), 0, 0.0
    while calls == 0 or spent < least:
        call()
        if device != "cpu":
            torch.cuda.synchronize(device)
        calls, spent = calls + 1, clock() - begun
    return spent / calls


def measured(row: Row, rounds: int, device: str = "cpu") -> dict[str, Ratio]:
    """Name of each contender -> how its time compares, all called once before, then in turns."""
    for call in (row.call, *(other.call for other in row.against)):
        call()
    found = [
        (seconds(row.call, device), [seconds(other.call, device) for other in row.against])
        for _ in range(rounds)
    ]
    ours = np.array([own for own, _ in found])
    theirs = np.array([others for _, others in found]).T
    return {
        other.name: ratio(ours / other.ours, taken / other.work)
        for other, taken in zip(row.against, theirs, strict=True)
    }


def ratio(ours: np.ndarray, theirs: np.ndarray) -> Ratio:
    """Of seconds per unit, [rounds] each, of rounds that were measured together."""
    low, median, high = np.quantile(theirs / ours, [0.25, 0.5, 0.75])
    return Ratio(*map(float, (median, low, high, np.median(ours), np.median(theirs))))
