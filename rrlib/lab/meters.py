"""What a piece of work took: processor time and memory, without its parts' own."""

import os
import resource
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rrlib.lab import keys


class _Parts(threading.local):
    """What the parts of the recipe that is being made took so far."""

    seconds = 0.0
    cuda_peak = 0


_parts = _Parts()


@contextmanager
def metered(device: str) -> Iterator[dict[str, Any]]:
    """Fills a dictionary with what the block took, see `store.manifest`."""
    outer, cuda_peak = _parts.seconds, max(_parts.cuda_peak, _cuda_peak(device, restart=True))
    started, _parts.seconds, _parts.cuda_peak = _clock(), 0.0, 0
    took: dict[str, Any] = {}
    try:
        yield took
    finally:
        elapsed = _clock() - started
        own, peak = elapsed - _parts.seconds, max(_parts.cuda_peak, _cuda_peak(device))
        _parts.seconds, _parts.cuda_peak = outer + elapsed, max(cuda_peak, peak)
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    on_gpu = keys.kind(device) == "cuda"
    took["cpu_seconds"] = round(own, 1)
    took["process_peak_mb"] = round(held / unit)
    took["cuda_peak_mb"] = round(peak / 2**20) if on_gpu else None


def _clock() -> float:
    """Processor seconds of this process and of the children that it has waited for."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def _cuda_peak(device: str, restart: bool = False) -> int:
    """Bytes, since the last start; 0 on a CPU."""
    if keys.kind(device) != "cuda":
        return 0
    import torch

    peak = torch.cuda.max_memory_allocated(device)
    if restart:
        torch.cuda.reset_peak_memory_stats(device)
    return peak
