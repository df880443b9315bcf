"""Comparisons of two samplers on disk, read without ever being in memory as a whole.

A shard is one safetensors file of the runs of some prompts: for each side, base and expert, the
latents x_t of its images at every step, by how much the two denoisings of each differ, and the
finished images.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rrlib import disk
from rrlib.disk import set_aside
from rrlib.errors import InputError
from rrlib.tensor_files import read_tensors

SIDES = ("base", "expert")
RECORD = "comparisons.json"  # what the run was: models, prompts, schedule, units


def done(place: Path, mark: str) -> bool:
    """Whether this shard is there; one that is damaged is set aside, so that it is made again.

    Raises:
        InputError: it is there, of a run with other settings.
    """
    if not place.exists():
        return False
    try:
        _, about = read_tensors(place)
    except InputError as error:
        set_aside(place, str(error).rstrip("."))
        return False
    if about.get("mark") != mark:
        raise InputError(
            f"folder='{place.parent}' is not allowed: it holds shards of other prompts or "
            "settings; an empty one, or one of the same run, is needed."
        )
    return True


@dataclass(frozen=True)
class Shards:
    """A folder that `generate` filled, read without ever being in memory as a whole.

    Raises:
        InputError: it holds no shards, fewer than its prompts need, or something else.

    Tensors are read in parts, which cannot be compared with a file's checksum: see `check`.
    """

    folder: Path

    def __post_init__(self):
        try:
            found, wanted = sum(self.sizes), self.prompts
        except (SafetensorError, KeyError, TypeError, OSError) as error:
            raise InputError(f"folder='{self.folder}' holds no shards ({error}).") from None
        if not found or found != wanted:
            raise InputError(
                f"folder='{self.folder}' holds shards of {found} prompts: all {wanted} are needed "
                "(start the run again, it goes on where it stopped)."
            )

    def check(self) -> None:
        """Read every shard as a whole, one at a time; what the store loads it has checked itself.

        Raises:
            InputError: one is not what was written.
        """
        for path in self.files:
            read_tensors(path)

    @cached_property
    def files(self) -> list[Path]:
        """In the order of the prompts."""
        return sorted(self.folder.glob("shard-*.safetensors"))

    @cached_property
    def sizes(self) -> list[int]:
        """Prompts in each shard."""
        sizes = []
        for path in self.files:
            with safe_open(path, "pt") as file:
                sizes.append(file.get_slice("base.final").get_shape()[0])
        return sizes

    @cached_property
    def prompts(self) -> int:
        """How many there are."""
        if not self.files:
            return 0
        with safe_open(self.files[0], "pt") as file:
            return int(file.metadata()["prompts"])

    @cached_property
    def steps(self) -> int:
        """T."""
        with safe_open(self.files[0], "pt") as file:
            return file.get_slice("base.latents").get_shape()[1]

    @cached_property
    def record(self) -> Mapping:
        """What `images.comparisons.generate` says of the run; empty in folders of earlier versions.

        Raises:
            InputError: the file is damaged.
        """
        path = self.folder / RECORD
        return disk.read_sealed(path, allow_unsealed=True) if path.exists() else {}

    def images(self, prompts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Latents of the finished images of some prompts, the base's and the expert's, [n, ...]."""
        rows = [self.where(prompt) for prompt in prompts]
        return tuple(
            torch.stack([self.read(k, f"{side}.final", (n,)) for k, n in rows]) for side in SIDES
        )

    def where(self, prompt: int) -> tuple[int, int]:
        """Shard and row of a prompt."""
        size = self.sizes[0]
        return prompt // size, prompt % size

    def read(self, shard: int, name: str, index: tuple[int, ...]) -> Tensor:
        """A part of one tensor, float32, of its own memory (the file's mapping is let go)."""
        return self.kept(shard, name, index).float()

    def kept(self, shard: int, name: str, index: tuple[int, ...]) -> Tensor:
        """The same as the file has it, in half precision."""
        with safe_open(self.files[shard], "pt") as file:
            return file.get_slice(name)[index].clone()

    def runs(self, prompts: Sequence[int], name: str) -> Iterator[Tensor]:
        """ "latents" or "differences" of every image of some prompts, [T, C, H, W] each."""
        for shard, row in map(self.where, prompts):
            yield from (self.read(shard, f"{side}.{name}", (row,)) for side in SIDES)

    def moments(self, prompts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents at each t, [T, C, H, W], of some prompts.

        Per step and coordinate, of both sides together (appendix E), in one pass over the files.
        """
        total: Any = 0
        squares: Any = 0
        for x in self.runs(prompts, "latents"):
            total, squares = total + x.double(), squares + x.double().square()
        n = len(prompts) * len(SIDES)
        mean = total / n
        deviation = (squares / n - mean.square()).clamp(min=1e-8).sqrt()
        return mean.float(), deviation.float()

    def pool(self, prompts: Sequence[int], device: str = "cpu") -> "ShardPool":
        """The pool that `extraction.fit` reads, of some prompts."""
        return ShardPool(self, tuple(prompts), device)


@dataclass(frozen=True)
class Rows:
    """x or target of a `ShardPool`: rows are read when they are asked for."""

    pool: "ShardPool"
    name: str
    dtype: torch.dtype = torch.float32

    @property
    def device(self) -> str:
        """Where the rows go."""
        return self.pool.device

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Rows [n] of the pool, [n, C, H, W]."""
        shards, steps = self.pool.shards, self.pool.shards.steps
        found = []
        for row in rows.tolist():
            image, t = divmod(row, steps)
            prompt, side = divmod(image, len(SIDES))
            shard, place = shards.where(self.pool.prompts[prompt])
            found.append(shards.read(shard, f"{SIDES[side]}.{self.name}", (place, t)))
        return torch.stack(found).to(self.device)


@dataclass(frozen=True)
class ShardPool:
    """The contract of `pools.Pool`, its tensors left on disk.

    Row (prompt, side, t) holds the latent x_t of that image, t, and both denoisings' difference.
    """

    shards: Shards
    prompts: tuple[int, ...]
    device: str
    condition: ClassVar[None] = None  # the reward sees no text

    def __len__(self) -> int:
        return len(self.prompts) * len(SIDES) * self.shards.steps

    @property
    def x(self) -> Rows:
        """Latents, [N, C, H, W]."""
        return Rows(self, "latents")

    @property
    def target(self) -> Rows:
        """Expert minus base, [N, C, H, W]."""
        return Rows(self, "differences")

    @cached_property
    def t(self) -> Tensor:
        """Steps, [N], 0 the last."""
        images = len(self.prompts) * len(SIDES)
        return torch.arange(self.shards.steps, device=self.device).repeat(images)

    @property
    def of_base(self) -> Tensor:
        """Whether the row is of an image that the base drew, bool [N]."""
        return torch.arange(len(self), device=self.device) // self.shards.steps % len(SIDES) == 0

    def rows(self) -> tuple[Tensor, Tensor]:
        """All of x and target, [N, C, H, W] float16, for a pool that fits into memory."""
        places = [(*self.shards.where(p), side) for p in self.prompts for side in SIDES]

        def whole(name: str) -> Tensor:
            parts = [self.shards.kept(k, f"{side}.{name}", (row,)) for k, row, side in places]
            return torch.cat(parts).to(self.device)

        return whole("latents"), whole("differences")

    @property
    def bytes(self) -> int:
        """What `rows` would take."""
        shape = self.shards.read(0, "base.final", (0,)).shape
        return 2 * 2 * len(self) * shape.numel()

    def scale(self, steps: int) -> Tensor:
        """Root mean square of the target's entries at each t, [T], as `pools.Pool.scale`.

        0 at a t where both agree throughout.
        """
        total = torch.zeros(steps, dtype=torch.float64)
        for found in self.shards.runs(self.prompts, "differences"):
            total += found.double().flatten(1).square().mean(1)
        mean = total / (len(self.prompts) * len(SIDES))
        return mean.sqrt().float().to(self.device)
