"""The picture of the book's first page, two densities, their scores, a reward; and its film.

picture.py OUTPUT
"""

import argparse
import base64
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import torch
from bs4 import BeautifulSoup
from matplotlib.axes import Axes

from rrlib import metrics
from rrlib.lab import plots
from rrlib.mazes import world as mazes
from rrlib.tensor_files import read_tensors
from rrlib.theory import sde

ROOT = Path(__file__).resolve().parent.parent
MAPS = ROOT / "results" / "full" / "maze2d-maps.safetensors"
CASE = "large", (7, 10), "large (7, 10), seed 0"  # a maze, an expert's goal, its map in MAPS


def draw(path: Path) -> None:
    """Draw two mixtures with the closed forms of chapter 04, and a map of the full run."""
    plots.use_style()
    figure, axes = plt.subplots(1, 4, figsize=(11, 2.05), width_ratios=(1, 1, 1, 1.1))
    _draw_mixtures(axes[:3])
    maze, goal, name = CASE
    plots.draw_maze(axes[3], mazes.load(maze).walls)
    plots.draw_heat(axes[3], read_tensors(MAPS)[0][name].float().numpy(), metrics.BINS)
    axes[3].plot(goal[1], goal[0], "o", mec=plots.EXPERT, mfc="none", ms=12, mew=2)
    axes[3].set(title="one that was extracted; ring: goal")
    axes[0].legend(loc="upper left")
    figure.savefig(path)
    plt.close(figure)


def _draw_mixtures(axes: Sequence[Axes]) -> None:
    """Densities, scores and the log ratio of two mixtures in one dimension."""
    base, expert = (
        sde.GaussianMixture(
            torch.tensor(w), torch.tensor(m)[:, None], torch.tensor(c)[:, None, None]
        )
        for w, m, c in (
            ([0.6, 0.4], [-1.2, 1.2], [0.5, 0.6]),
            ([0.15, 0.85], [-0.4, 1.5], [0.4, 0.35]),
        )
    )
    x = torch.linspace(-3.2, 3.2, 321)[:, None]
    abar = torch.full((len(x),), 0.9)
    for mixture, colour, name in ((base, plots.BASE, "base"), (expert, plots.EXPERT, "expert")):
        axes[0].plot(x, mixture.log_prob(x, abar).exp(), color=colour, label=name)
        axes[0].fill_between(x[:, 0], mixture.log_prob(x, abar).exp(), color=colour, alpha=0.15)
        axes[1].plot(x, mixture.score(x, abar), color=colour)
    s1, s2 = base.score(x, abar)[::20], expert.score(x, abar)[::20]
    for where, low, high in zip(x[::20, 0], s1[:, 0], s2[:, 0], strict=True):
        style = {"arrowstyle": "-|>", "color": plots.STEERED, "lw": 1.2}
        axes[1].annotate("", xy=(where, high), xytext=(where, low), arrowprops=style)
    axes[2].plot(x, sde.log_ratio(base, expert, x, abar), color=plots.STEERED, lw=2)
    top = x[expert.log_prob(x, abar).argmax(), 0]
    axes[2].axvline(top, color=plots.EXPERT, ls=":", label="the expert's hump")
    axes[2].legend(loc="lower left")
    titles = ("what each model draws", "their scores, and the difference", "the relative reward")
    for ax, title in zip(axes, titles, strict=True):
        ax.set(title=title, xticks=[], yticks=[], xlabel="x")


def film(chapter: Path, path: Path) -> str:
    """Write the film of an executed chapter to a WebP file; what is seen, and the finding.

    Raises ValueError for a chapter without a film.
    """
    cells = nbformat.read(chapter, as_version=4).cells
    shown = (
        output.get("data", {}).get("text/html", "")
        for cell in cells
        for output in cell.get("outputs", [])
    )
    page = BeautifulSoup("".join(shown), "html.parser")
    image = page.select_one("figure > img[src^='data:image/webp']")
    if image is None:
        raise ValueError(f"{chapter} shows no film")
    path.write_bytes(base64.b64decode(image["src"].partition(",")[2]))
    return f":alt: {image['alt']}\n\n{image.find_next_sibling('figcaption').get_text()}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("output", type=Path)
    draw(parser.parse_args().output)


if __name__ == "__main__":
    main()
