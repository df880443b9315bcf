"""The store of comparisons at the paper's size: its memory, and its bytes on disk.

Nothing here imports diffusers: the process that is measured holds what streaming takes, and starts
at once.
"""

import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from rrlib import training
from rrlib.images import comparisons as image_extraction
from rrlib.images.shards import Shards

PAPER_SHAPE, PAPER_STEPS, PAPER_PROMPTS = (4, 64, 64), 50, 4703  # of the latents; I2P's prompts


class PaperSampler:
    """A `Sampler` of latents and steps of the paper's size, towards a place, without a network."""

    steps: int = PAPER_STEPS
    shape: tuple[int, ...] = PAPER_SHAPE

    def __init__(self, place: float):
        self.place = place

    def condition(self, prompts: Sequence[str], truncate: bool) -> Tensor:
        return torch.zeros(len(prompts))

    def start(self, n: int, generator: torch.Generator) -> Tensor:
        return torch.randn(n, *self.shape, generator=generator)

    def noise(self, x: Tensor, step: int, texts: Tensor, state: None) -> tuple[Tensor, None]:
        return x - self.place, None

    def advance(self, x: Tensor, noise: Tensor, step: int) -> Tensor:
        return x - 0.05 * noise


def stream(prompts: int, batch: int) -> tuple[float, int]:
    """Write and read a store of the paper's latents: peak memory in GB, bytes on disk.

    It is made in shards of `batch` prompts, its moments are taken, and a training batch of 64 is
    read. A process of its own measures it, so that nothing else counts.
    """
    script = f"from rrlib.lab.images import streaming; streaming._stream({prompts}, {batch})"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    peak, size = done.stdout.split()
    return float(peak), int(size)


def _stream(prompts: int, batch: int) -> None:
    texts = [str(k) for k in range(prompts)]
    with tempfile.TemporaryDirectory() as folder:
        run = image_extraction.generate(
            Path(folder), PaperSampler(0.0), PaperSampler(0.1), texts, batch=batch, seed=0
        )
        training.finish(run, "store")
        shards = Shards(Path(folder))
        every = range(prompts)
        shards.moments(every)
        pool = shards.pool(every)
        rows = torch.randint(len(pool), (64,), generator=training.stream(0, "rows"))
        assert pool.x[rows].shape == pool.target[rows].shape == (64, *PAPER_SHAPE)
        size = sum(path.stat().st_size for path in shards.files)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux: in KiB
    print(peak, size)
