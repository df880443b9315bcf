"""Algorithm 2 for samplers of images, its comparisons kept on disk in shards.

At every step both samplers denoise the same latent; kept are the latent and by how much the two
results differ.
A shard is one safetensors file for some prompts; it appears whole or not at all, so a run that was
killed goes on at the next one, and no more than one shard is ever held in memory.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rrlib.errors import InputError
from rrlib.training import Progress, stream

SIDES = ("base", "expert")


class Sampler(Protocol):
    """What Algorithm 2 asks of a model: `images.Guided` has it."""

    steps: int
    device: torch.device

    def condition(self, prompts: Sequence[str]) -> Tensor: ...

    def start(self, n: int, generator: torch.Generator) -> Tensor: ...

    def noise(self, x: Tensor, step: int, texts: Tensor, state: Any) -> tuple[Tensor, Any]: ...

    def advance(self, x: Tensor, noise: Tensor, step: int) -> Tensor: ...


@torch.no_grad()
def run(
    pair: tuple[Sampler, Sampler], texts: Sequence[Tensor], x: Tensor, side: int
) -> dict[str, Tensor]:
    """Algorithm 2's inner loop: images of one side, and both denoisings of every latent.

    Each sampler carries its own state along the run, the other's latents included: it is asked what
    it would do if it had come here.

    Args:
        pair: base and expert.
        texts: what each was conditioned on.
        x: noise to begin from, [n, C, H, W].
        side: whose denoising is followed, 0 the base's or 1 the expert's.

    Returns:
        latents x_t and differences (expert's next latent minus the base's), [n, T, C, H, W] with
        t = 0 the last step, and the images' latents `final` [n, C, H, W]; float16 on the CPU.
    """
    states: list[Any] = [None, None]
    latents, differences = [], []
    for step in range(pair[0].steps):
        ahead = []
        for k, sampler in enumerate(pair):
            noise, states[k] = sampler.noise(x, step, texts[k], states[k])
            ahead.append(sampler.advance(x, noise, step))
        latents.append(x.half().cpu())
        # Half precision keeps a small difference, not the difference of two numbers it rounded.
        differences.append((ahead[1] - ahead[0]).half().cpu())
        x = ahead[side]
    order = slice(None, None, -1)
    return {
        "latents": torch.stack(latents[order], 1),
        "differences": torch.stack(differences[order], 1),
        "final": x.half().cpu(),
    }


def generate(
    folder: Path,
    base: Sampler,
    expert: Sampler,
    prompts: Sequence[str],
    *,
    batch: int,
    seed: int,
    about: str = "",
):
    """Fill `folder` with Algorithm 2's shards; yields a `training.Progress` after each.

    For each prompt one image by the base and one by the expert, each from noise of its own. What
    is there already, of an earlier run that was stopped, is kept.

    Args:
        folder: exists.
        base, expert: samplers of one latent space and schedule.
        prompts: one run of each side for each.
        batch: prompts at a time, and in a shard.
        seed: of the noise.
        about: what else the images depend on (the models); shards made with another are refused.

    Raises:
        InputError: no prompts, a batch below 1, samplers of other steps or latents, a folder of
            other prompts or settings, or a batch that the GPU's memory cannot hold.
    """
    if batch < 1 or not prompts:
        raise InputError(
            f"batch={batch} with {len(prompts)} prompts is not allowed: at least 1 of each is "
            "needed."
        )
    _check(base, expert)
    told = json.dumps([list(prompts), base.steps, batch, seed, about])
    mark = hashlib.sha256(told.encode()).hexdigest()
    starts = range(0, len(prompts), batch)
    for number, start in enumerate(starts):
        place = folder / f"shard-{number:05d}.safetensors"
        part = prompts[start : start + batch]
        if not _done(place, mark):
            shard = _fitting(lambda part, n=number: _shard((base, expert), part, seed, n), part)
            temporary = folder / f".{place.name}.unfinished"
            save_file(shard, temporary, {"mark": mark, "prompts": str(len(prompts))})
            temporary.replace(place)
        yield Progress(number + 1, len(starts), torch.zeros(()))


def _shard(
    pair: tuple[Sampler, Sampler], prompts: Sequence[str], seed: int, number: int
) -> dict[str, Tensor]:
    texts = [sampler.condition(prompts) for sampler in pair]
    shard = {}
    for side, name in enumerate(SIDES):
        draws = stream(seed, f"{name} {number}")  # on the CPU: the same noise for every device
        found = run(pair, texts, pair[0].start(len(prompts), draws), side)
        shard |= {f"{name}.{key}": value.contiguous() for key, value in found.items()}
    return shard


def _fitting(attempt, prompts: Sequence[str]):
    """attempt(prompts); out of memory, say how many would have fitted."""
    try:
        return attempt(prompts)
    except torch.OutOfMemoryError:
        pass  # outside of the handler, whose traceback holds on to the tensors
    fits = len(prompts) // 2
    while fits:
        try:
            attempt(prompts[:fits])
            break
        except torch.OutOfMemoryError:
            fits //= 2
    allowed = f"a batch of {fits} fits" if fits else "not even a batch of 1 fits"
    raise InputError(
        f"batch={len(prompts)} is not allowed: it exceeds the GPU's memory, where {allowed}."
    )


def _done(place: Path, mark: str) -> bool:
    if not place.exists():
        return False
    with safe_open(place, "pt") as file:
        if (file.metadata() or {}).get("mark") != mark:
            raise InputError(
                f"folder='{place.parent}' is not allowed: it holds shards of other prompts or "
                "settings; an empty one, or one of the same run, is needed."
            )
    return True


def _check(base: Sampler, expert: Sampler) -> None:
    for name, mine, other in (
        ("steps", base.steps, expert.steps),
        ("shape", base.shape, expert.shape),
    ):
        if mine != other:
            raise InputError(f"expert: {name}={other} is not allowed: the base's {mine} is needed.")


@dataclass(frozen=True)
class Shards:
    """A folder that `generate` filled, read without ever being in memory as a whole.

    Raises:
        InputError: it holds no shards, fewer than its prompts need, or something else.
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
        with safe_open(self.files[shard], "pt") as file:
            return file.get_slice(name)[index].float()

    def moments(self, prompts: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents at each t, [T, C, H, W], of some prompts.

        Per step and coordinate, of both sides together (appendix E), in one pass over the files.
        """
        total = squares = 0
        for prompt in prompts:
            shard, row = self.where(prompt)
            for side in SIDES:
                x = self.read(shard, f"{side}.latents", (row,)).double()
                total, squares = total + x, squares + x.square()
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
    """The contract of `extraction.Pool`, its tensors left on disk.

    Row (prompt, side, t) holds the latent x_t of that image, t, and both denoisings' difference.
    """

    shards: Shards
    prompts: tuple[int, ...]
    device: str

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

    def scale(self, steps: int) -> Tensor:
        """Root mean square of the target's entries at each t, [T], as `extraction.Pool.scale`."""
        total = torch.zeros(steps, dtype=torch.float64)
        for prompt in self.prompts:
            shard, row = self.shards.where(prompt)
            for side in SIDES:
                found = self.shards.read(shard, f"{side}.differences", (row,)).double()
                total += found.flatten(1).square().mean(1)
        mean = total / (len(self.prompts) * len(SIDES))
        # Half precision's smallest step, for a t where both agree throughout.
        return mean.sqrt().clamp(min=6e-8).float().to(self.device)
