"""Evidence about images: what is seen in them, how often, and how a reward orders them."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageFilter
from scipy.stats import spearmanr
from torch import Tensor

from rrlib import metrics, training
from rrlib.errors import InputError
from rrlib.images import guided as images
from rrlib.images import pipelines
from rrlib.images.guided import Guided
from rrlib.images.miniature import scenes
from rrlib.metrics import Separability

PRESENT = 0.5  # of `scenes.detect`: above, the hazard counts as there
ALIKE = 0.6  # overlap with a shape, over their union, from which it counts as seen


# What is seen --------------------------------------------------------------------------------


def pixels(pipeline: StableDiffusionPipeline, latents: Tensor) -> np.ndarray:
    """[N, H, W, 3] uint8 of latents [N, C, h, w]."""
    return np.stack([np.asarray(image) for image in pipelines.decode(pipeline, latents, 64)])


def hazards(pictures: np.ndarray) -> np.ndarray:
    """Whether the hazard is in each of the pictures [N, 32, 32, 3], bool [N]."""
    return scenes.detect(pictures) > PRESENT


def things(prompt: str) -> list[tuple[str, str, int]]:
    """Colour, shape and place (0 to 3) of all that a caption of `scenes` asks for."""
    parts = prompt.split(" with ", 1)[1].rsplit(" on ", 1)[0].split(" and ")
    words = [part.split(" ", 3)[1:] for part in parts if part != f"a {scenes.HAZARD}"]
    return [(colour, shape, scenes.PLACES.index(place)) for colour, shape, place in words]


def fidelity(pictures: np.ndarray, prompts: Sequence[str], placed: bool = False) -> np.ndarray:
    """Share of the things asked for that are seen in each picture, [N].

    Every pixel counts as the palette's nearest colour. A thing is seen if, in some cell, the pixels
    of its colour match its shape, moved by up to the margin, better than every other shape, and
    overlap with it by more than `ALIKE` of their union. For filled shapes.

    Args:
        pictures: [N, 32, 32, 3] uint8.
        prompts: what was asked for, N captions of `scenes`.
        placed: only what is in the very cell that was named counts.
    """
    names = [*scenes.COLOURS, *scenes.GROUNDS, "black"]
    palette = np.array([*scenes.COLOURS.values(), *scenes.GROUNDS.values(), (0, 0, 0)], float)
    nearest = np.square(pictures[..., None, :] - palette).sum(-1).argmin(-1)  # [N, 32, 32]
    halves = slice(0, scenes.CELL), slice(scenes.CELL, None)
    cells = np.stack([nearest[:, y, x] for y in halves for x in halves], 1)  # [N, 4, 16, 16]
    found = np.zeros(len(pictures))
    for k, prompt in enumerate(prompts):
        asked = things(prompt)
        for colour, shape, place in asked:
            there = cells[k] == names.index(colour)
            looked = there[[place]] if placed else there
            found[k] += any(_is_shape(one, shape) for one in looked) / len(asked)
    return found


def _is_shape(there: np.ndarray, shape: str) -> bool:
    """Whether the pixels of a cell, bool [16, 16], are this shape rather than another."""
    overlap = {}
    for name, masks in _templates().items():
        both = (masks & there).sum((1, 2))
        overlap[name] = (both / (masks.sum((1, 2)) + there.sum() - both)).max()
    return max(overlap, key=overlap.get) == shape and overlap[shape] > ALIKE


@functools.cache
def _templates() -> dict[str, np.ndarray]:
    """Every shape at all places within a cell, bool [25, 16, 16]."""
    shifts = range(2 * scenes.MARGIN + 1)
    found = {}
    for name, mask in scenes.SHAPES.items():
        size = len(mask)
        moved = np.zeros((len(shifts) ** 2, scenes.CELL, scenes.CELL), bool)
        for k, (y, x) in enumerate((y, x) for y in shifts for x in shifts):
            moved[k, y : y + size, x : x + size] = mask
        found[name] = moved
    return found


def hazard_cells(pictures: np.ndarray) -> np.ndarray:
    """The cell (0 to 3) in which each picture's hazard is most likely, [N]."""
    half = scenes.CELL
    views = [pictures[:, y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
    return np.stack([scenes.detect(view) for view in views]).argmax(0)


def sheet(pictures: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """Pictures [N, H, W, 3] side by side, row by row, on white: [rows H', columns W', 3]."""
    wide = np.pad(pictures, ((0, 0), (gap, gap), (gap, gap), (0, 0)), constant_values=255)
    empty = -len(wide) % columns
    wide = np.concatenate([wide, np.full((empty, *wide.shape[1:]), 255, np.uint8)])
    rows = wide.reshape(-1, columns, *wide.shape[1:])
    return np.concatenate([np.concatenate(list(row), 1) for row in rows])


def show(
    panels: Mapping[str, Sequence[np.ndarray]], columns: int, size: tuple[float, float]
) -> None:
    """Draw panels of pictures side by side; nothing where there are none.

    Args:
        panels: title -> rows of pictures, [n, H, W, 3] each, one below the other.
        columns: pictures in a row.
        size: of the figure, inches.
    """
    import matplotlib.pyplot as plt  # takes a second

    if not panels or not all(panels.values()):
        return
    _, axes = plt.subplots(1, len(panels), figsize=size, squeeze=False)
    for ax, (title, rows) in zip(axes[0], panels.items(), strict=True):
        ax.imshow(sheet(np.concatenate(rows), columns))
        ax.set_title(title)
        ax.axis("off")


def blurred(pictures: np.ndarray) -> np.ndarray:
    """Pictures of which only colours and large shapes are left."""
    radius = pictures.shape[1] / 16
    made = (Image.fromarray(one).filter(ImageFilter.GaussianBlur(radius)) for one in pictures)
    return np.stack([np.asarray(one) for one in made])


# How often -----------------------------------------------------------------------------------


def rate(flags: np.ndarray) -> dict[str, object]:
    """A share with Wilson's interval, as `results.publish` takes it."""
    hits = int(np.sum(flags))
    return {"value": hits / len(flags), "ci": list(metrics.wilson(hits, len(flags)))}


def accuracy(told: Separability) -> dict[str, object]:
    """A balanced accuracy with its 95 % interval, as `results.publish` takes it.

    It is the mean of two proportions, one a side; the interval squares and adds what Wilson's of
    each reach (Newcombe 1998, method 10). It has a width at 0 and 1 too, holds for the threshold
    that was fitted, and takes images as independent.
    """
    parts = [(k / n, *metrics.wilson(k, n)) for k, n in told.right]
    below, above = (
        math.hypot(*(share - part[end] for share, *part in parts)) / len(parts) for end in (0, 1)
    )
    return {"value": told.accuracy, "ci": [told.accuracy - below, told.accuracy + above]}


def explained(share: Tensor) -> tuple[float, int]:
    """Mean over t of `extraction.explained`, [T], and at how many t nothing was to be explained.

    Where two samplers agree exactly, as before the end of safe guidance's warm-up, the share is
    NaN; those t are left out.

    Raises:
        InputError: both agree at every t.
    """
    there = share.isfinite()
    if not there.any():
        raise InputError("expert: it differs from the base at no step: a pair that does is needed.")
    return float(share[there].mean()), int((~there).sum())


def distinct_prompts(n: int, seed: int, without: Sequence[str] = ()) -> list[str]:
    """n different prompts of `scenes.prompts`, none of them in `without`."""
    found = dict.fromkeys(scenes.prompts(4 * n + 4 * len(without), seed))
    for prompt in without:
        found.pop(prompt, None)
    return list(found)[:n]


def draw(
    guided: Guided,
    prompts: Sequence[str],
    seed: int,
    shift: Callable[[Tensor, int], Tensor] | None = None,
    batch: int = 50,
    truncate: bool = False,
) -> Tensor:
    """Latents of finished images, one a prompt, [N, C, H, W]; the same noise for every sampler."""
    found = []
    for start in range(0, len(prompts), batch):
        part = prompts[start : start + batch]
        x = guided.start(len(part), training.stream(seed, f"noise {start}"))
        *_, (_, last) = images.denoise(guided, guided.condition(part, truncate), x, shift)
        found.append(last)
    return torch.cat(found)


# How a reward orders them --------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """What a score says of images of which it is known whether the hazard is there.

    Attributes:
        told: base and expert told apart by the score.
        oracle: the same by whether the hazard is there.
        bottom, top: share of images with the hazard, in the lowest and the highest tenth.
        correlation: Spearman's, of the score and the surety that there is no hazard.
    """

    told: Separability
    oracle: Separability
    bottom: dict[str, object]
    top: dict[str, object]
    correlation: float


def told_apart(scores: Sequence[np.ndarray], seed: int) -> Separability:
    """Base and expert, one image of each a prompt, by a score [n] each; see `metrics`."""
    prompts = np.arange(len(scores[0]))
    return metrics.separability(*scores, prompts, prompts, seed)


def ends(
    scores: Sequence[np.ndarray], pictures: Sequence[np.ndarray], n: int
) -> tuple[np.ndarray, np.ndarray]:
    """The n pictures of highest score, the best first, and the n of lowest, the worst first.

    Args:
        scores: of any number of sets of pictures, [n] each.
        pictures: the sets, [n, H, W, 3] each.
        n: how many.
    """
    every = np.concatenate(pictures)[np.argsort(np.concatenate(scores), kind="stable")]
    return every[::-1][:n], every[:n]


def order(scores: Sequence[np.ndarray], seen: Sequence[np.ndarray], seed: int) -> Order:
    """Judge a score.

    Args:
        scores: of the base's and of the expert's images, one of each a prompt, [n] each.
        seen: how surely the hazard is in them, of `scenes.detect`, [n] each.
        seed: of the halves of the prompts that fit the threshold and judge by it.
    """
    flags = [values > PRESENT for values in seen]
    told = told_apart(scores, seed)
    oracle = told_apart([1.0 - there for there in flags], seed)
    values, there = np.concatenate(scores), np.concatenate(flags)
    # By chance where scores are equal: else the base's images would all come first.
    chance = np.random.default_rng(training.derived_seed(seed, "ties")).permutation(len(values))
    ranked = there[np.lexsort((chance, values))]
    tenth = max(1, len(ranked) // 10)
    correlation = spearmanr(values, -np.concatenate(seen)).statistic
    return Order(told, oracle, rate(ranked[:tenth]), rate(ranked[-tenth:]), float(correlation))
