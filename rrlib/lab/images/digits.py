"""Real pictures: the digits of scikit-learn, a model of all and its fine-tune on the even ones."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import ClassVar

import torch
from diffusers import DDPMScheduler, UNet2DModel
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from rrlib import training
from rrlib.lab import recipes, store
from rrlib.method import comparisons, extraction
from rrlib.method.denoisers import Denoiser
from rrlib.method.pools import Place, Target
from rrlib.method.rewards import RelativeReward
from rrlib.plans.rewards import WindowReward

PIXELS = 8
HELD_OUT = 397  # of 1797 pictures: nothing is trained on them


@cache
def pictures(held_out: bool) -> tuple[Tensor, Tensor]:
    """Pictures [n, 1, 8, 8] in [-1, 1] and their digits [n], of one side of the split."""
    whole = load_digits()
    order = torch.randperm(len(whole.target), generator=torch.Generator().manual_seed(0))
    rows = order[:HELD_OUT] if held_out else order[HELD_OUT:]
    pixels = torch.from_numpy(whole.images).float()[:, None] / 8 - 1
    return pixels[rows], torch.from_numpy(whole.target)[rows]


@dataclass(frozen=True)
class DigitsDiffuser:
    """An unconditional DDPM of digits, epsilon of 1000 steps as diffusers' pipelines have it.

    Attributes:
        even: learn the even digits alone.
        start: a model that it is a fine-tune of; None begins at random.
        channels: of the U-Net, per resolution.
        steps, batch, learning_rate, seed: see `training.train`.
    """

    even: bool = False
    start: "DigitsDiffuser | None" = None
    channels: tuple[int, ...] = (16, 32)
    steps: int = 3_000
    batch: int = 64
    learning_rate: float = 2e-3
    seed: int = 0

    def data(self, held_out: bool = False) -> Tensor:
        """What it learns, or more of the kind that it does not, [n, 1, 8, 8]."""
        pixels, digits = pictures(held_out)
        return pixels[digits % 2 == 0] if self.even else pixels

    def make(self, folder: Path, device: str) -> None:
        """Train it, write `denoiser.safetensors`."""
        model, data = self.blank(device), self.data().to(device)
        network, file = model.network, folder / "denoiser.safetensors"
        if self.start:
            network.load_state_dict(store.obtain(self.start, device).network.state_dict())

        def loss(draws: torch.Generator) -> Tensor:
            rows = torch.randint(len(data), (self.batch,), generator=draws, device=device)
            t = torch.randint(model.steps, (self.batch,), generator=draws, device=device)
            noise = torch.randn(len(rows), 1, PIXELS, PIXELS, generator=draws, device=device)
            x_t = model.scheduler.add_noise(data[rows], noise, t)
            return (model.predict(x_t, t) - noise).square().mean()

        label = "diffuser of even digits" if self.even else "diffuser of digits"
        recipes.fitted(network, loss, file, label, **training.options(self))
        save_file(network.state_dict(), file)

    def load(self, folder: Path, device: str) -> Denoiser:
        """The trained model."""
        return recipes.load_denoiser(self.blank(device), folder, device)

    def blank(self, device: str) -> Denoiser:
        """Before training."""
        torch.manual_seed(self.seed)
        network = UNet2DModel(
            sample_size=PIXELS,
            in_channels=1,
            out_channels=1,
            block_out_channels=self.channels,
            layers_per_block=1,
            down_block_types=("DownBlock2D",) * len(self.channels),
            up_block_types=("UpBlock2D",) * len(self.channels),
            norm_num_groups=8,
            add_attention=False,
        )
        return Denoiser(network.to(device), DDPMScheduler(1000))


class PixelReward(nn.Module):
    """rho of all pixels of a small picture [B, 1, h, w], a perceptron."""

    def __init__(self, width: int, unit: Tensor):
        super().__init__()
        self.points = WindowReward(width * width, 1, unit, hidden=(256, 128, 64))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """rho, [B]."""
        return self.points(x.flatten(1), t)


@dataclass(frozen=True)
class DigitsReward:
    """What the fine-tune prefers, by `RelativeReward.fit`, in its own settings as it stands."""

    code_version: ClassVar[int] = 2  # 1 began at the base's seed
    base: DigitsDiffuser
    expert: DigitsDiffuser
    pool: int = 8_000
    target: Target = "score"
    place: Place = "x_t"
    steps: int = 1_500
    batch: int = 256
    learning_rate: float = 1e-3
    seed: int = 0

    def compared(
        self, size: int, seed: int, held_out: bool, device: str = "cpu"
    ) -> comparisons.Comparisons:
        """Both models at noised pictures of their training, or held-out ones."""
        pair = [store.obtain(half, device) for half in (self.base, self.expert)]
        data = [half.data(held_out).to(device) for half in (self.base, self.expert)]
        return comparisons.algorithm1(*pair, *data, size=size, seed=seed, batch=500)

    def make(self, folder: Path, device: str) -> None:
        """Compare and fit, write `reward.safetensors`."""
        pool = self.compared(self.pool, self.seed, False, device).pool(self.target, self.place)
        network, file = self._network().to(device), folder / "reward.safetensors"
        options = training.options(self) | {"batch": self.batch}
        recipes.fitted(network, pool, file, "reward of digits", **options)
        save_file(network.state_dict(), file)

    def load(self, folder: Path, device: str) -> RelativeReward:
        """The fitted reward."""
        network = recipes.load_network(self._network(), folder / "reward.safetensors", device)
        return RelativeReward(network, self.target, self.place)

    def _network(self) -> PixelReward:
        unit = extraction.units(self.base.blank("cpu"), self.target)
        torch.manual_seed(self.seed)  # after `blank`, which sets a seed of its own
        return PixelReward(PIXELS, unit)


def reward() -> DigitsReward:
    """The pair of the book: all digits, and the fine-tune on the even ones."""
    base = DigitsDiffuser()
    return DigitsReward(base, DigitsDiffuser(even=True, start=base, steps=1_000))


@dataclass(frozen=True)
class Told:
    """Areas under curves on held-out pictures, beside somebody who knows every digit.

    Attributes:
        even: pictures of even digits against odd ones.
        sides: the expert's pictures (even) against the base's (all).
        oracle: the same by whether the digit is even.
    """

    even: float
    sides: float
    oracle: float


def told(scores: Tensor, digits: Tensor) -> Told:
    """How well scores [n] of pictures of `digits` [n] tell the expert's from the base's."""
    even = digits % 2 == 0
    return Told(_area(scores, even, ~even), _area(scores, even), _area(even.double(), even))


def _area(scores: Tensor, expert: Tensor, base: Tensor | None = None) -> float:
    """Under the curve of the expert's pictures against the base's, None for all."""
    other = scores if base is None else scores[base]
    mine = scores[expert]
    side = torch.arange(len(mine) + len(other)) < len(mine)
    return float(roc_auc_score(side.numpy(), torch.cat([mine, other]).numpy()))
