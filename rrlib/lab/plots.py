"""Figures: mazes, heat-maps of reward, plans coloured by reward, histograms, densities.

Colours are safe for colour-blind readers, backgrounds opaque.
Captions and alternative texts are in the chapters, beside the cell that draws.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

BASE, EXPERT, STEERED = "#0072B2", "#D55E00", "#009E73"  # blue, vermilion, green (Okabe and Ito)
REWARD = "viridis"


def use_style() -> None:
    """Set matplotlib's defaults for the book."""
    plt.rcParams.update(
        {
            "figure.facecolor": "white",
            "axes.facecolor": "white",
            "savefig.facecolor": "white",
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 10,
            "font.size": 9,
            "legend.frameon": False,
        }
    )


def maze_grid(n: int, walls: list[np.ndarray], columns: int = 4) -> tuple[Figure, list[Axes]]:
    """A figure of n maze panels, `walls` (one [rows, columns] per panel) drawn in each."""
    columns = min(n, columns)
    rows = -(-n // columns)
    widths = [max(layout.shape[1] - 1 for layout in walls[k::columns]) for k in range(columns)]
    size = 2.4 * columns, 2.1 * rows
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, width_ratios=widths)
    for ax, layout in zip(axes.flat, walls, strict=False):
        draw_maze(ax, layout)
    for ax in axes.flat[n:]:
        ax.set_visible(False)
    return figure, list(axes.flat[:n])


def draw_maze(ax: Axes, walls: np.ndarray) -> None:
    """Walls [rows, columns] in grey, half of the outer ones; in cell units, rows downwards."""
    rows, columns = walls.shape
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    ax.imshow(np.where(walls, 0.6, 0.95), cmap="gray", vmin=0, vmax=1, extent=extent)
    ax.set(xticks=[], yticks=[], xlim=(0, columns - 1), ylim=(rows - 1, 0))
    ax.spines[:].set_visible(False)


def draw_heat(ax: Axes, heat: np.ndarray, bins: int) -> AxesImage:
    """A heat-map [rows * bins, columns * bins] of reward over the maze; NaN is left open."""
    rows, columns = (n / bins for n in heat.shape)
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    return ax.imshow(heat, cmap=REWARD, extent=extent, interpolation="nearest")


def draw_goal(ax: Axes, goal: tuple[float, float], peak: tuple[float, float] | None = None) -> None:
    """The expert's goal as an open circle of one cell's radius, the map's peak as a cross."""
    ax.add_patch(plt.Circle(goal[::-1], 1.0, fill=False, color="black", lw=1, ls=":"))
    seen = [patheffects.withStroke(linewidth=4, foreground="white")]
    ring = {"mec": EXPERT, "mfc": "none", "ms": 9, "mew": 2, "path_effects": seen}
    ax.plot(goal[1], goal[0], "o", label="goal", **ring)
    if peak is not None:
        ax.plot(peak[1], peak[0], "x", color="black", ms=7, mew=2, label="peak of the reward")


def draw_plan(ax: Axes, cells: np.ndarray, values: np.ndarray, norm) -> PathCollection:
    """One plan, [H, 2] in cell units, coloured by the reward of each step [H]; later is larger."""
    sizes = np.linspace(4, 26, len(cells))
    return ax.scatter(cells[:, 1], cells[:, 0], c=values, s=sizes, cmap=REWARD, norm=norm, lw=0)


def draw_paths(ax: Axes, cells: np.ndarray, colour: str) -> None:
    """Paths [n, H, 2] in cell units as thin lines, with a dot where each ends."""
    ax.plot(cells[..., 1].T, cells[..., 0].T, color=colour, lw=0.6, alpha=0.5)
    ax.plot(cells[:, -1, 1], cells[:, -1, 0], ".", color=colour, ms=4)


def draw_histograms(ax: Axes, base: np.ndarray, expert: np.ndarray) -> None:
    """Densities of the rewards of base and expert plans on one axis."""
    edges = np.histogram_bin_edges(np.concatenate([base, expert]), 40)
    for values, colour, name in ((base, BASE, "base"), (expert, EXPERT, "expert")):
        ax.hist(values, edges, density=True, color=colour, alpha=0.6, label=name)
    ax.set(yticks=[], xlabel="reward of a plan at t = 0")
    ax.spines["left"].set_visible(False)


def draw_shares(ax: Axes, base: np.ndarray, expert: np.ndarray) -> None:
    """The share of base and of expert plans that earn less than each reward."""
    for values, colour, name in ((base, BASE, "base"), (expert, EXPERT, "expert")):
        ax.ecdf(values, color=colour, label=name)
    ax.set(yticks=[0, 0.5, 1], xlabel="reward of a plan at t = 0")


def draw_density(ax: Axes, grid: np.ndarray, density: np.ndarray, colour: str) -> None:
    """Contours of a density [n, n] on a square grid [n] of both axes."""
    ax.contour(grid, grid, density, levels=6, colors=colour, linewidths=0.9)
    ax.set(aspect="equal", xticks=[], yticks=[])


def draw_potential(ax: Axes, grid: np.ndarray, values: np.ndarray, limit: float):
    """A potential [n, n] on a square grid in diverging colours between -limit and limit."""
    ax.set(aspect="equal", xticks=[], yticks=[])
    levels = np.linspace(-limit, limit, 21)
    return ax.contourf(grid, grid, values, levels, cmap="PuOr_r", extend="both")


def draw_planning(axes: Sequence[Axes]) -> None:
    """Two graphical models of three steps: a fixed policy, and planning with optimality seen."""

    def node(ax: Axes, place: tuple[float, float], text: str, shaded: bool = False) -> None:
        fill = "0.8" if shaded else "white"
        ax.add_patch(plt.Circle(place, 0.32, fc=fill, ec="black", zorder=2))
        ax.text(*place, text, ha="center", va="center", fontsize=10, zorder=3)

    def arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
        style = {"arrowstyle": "-|>", "color": "black", "shrinkA": 15, "shrinkB": 15}
        ax.annotate("", end, start, arrowprops=style)

    for k in range(3):
        state, action, optimal = (1.5 * k, 0), (1.5 * k, 1.1), (1.5 * k + 0.8, 2.1)
        for ax in axes:
            node(ax, state, f"$s_{k}$")
            node(ax, action, f"$a_{k}$")
            for start in (state, action) if k < 2 else ():
                arrow(ax, start, (1.5 * k + 1.5, 0))
        arrow(axes[0], state, action)
        node(axes[1], optimal, rf"$\mathcal{{O}}_{k}$", shaded=True)
        arrow(axes[1], action, optimal)
        arrow(axes[1], state, optimal)
    for ax, title in zip(axes, ("a fixed policy", "planning"), strict=True):
        ax.set(xlim=(-0.5, 4.3), ylim=(-0.5, 2.7), aspect="equal", title=title)
        ax.axis("off")
