"""Pictures of gaits: a robot's capsules in its plane, from what it observes.

The three robots move in a plane and consist of capsules, so MuJoCo's kinematics give an exact
drawing of them, and no graphics library is needed where no screen is.
"""

import contextlib
from collections.abc import Sequence

import mujoco
import numpy as np
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from rrlib.locomotion import world as locomotion
from rrlib.locomotion.robots import Environment

CORNERS = 24  # of an outline


def outlines(environment: Environment, observations: np.ndarray) -> np.ndarray:
    """The robot's limbs seen from the side, [n, limbs, corners, 2], in metres (forward, up).

    Args:
        environment: the robot.
        observations: of successive steps of one episode, [n, do]. They leave out how far the robot
            has come: it starts at 0, and its speed says the rest.
    """
    with contextlib.closing(locomotion.simulators(environment, 1)) as world:
        model, step = world.envs[0].unwrapped.model, world.envs[0].unwrapped.dt
    data = mujoco.MjData(model)
    limbs = np.flatnonzero(model.geom_type == mujoco.mjtGeom.mjGEOM_CAPSULE)
    speeds = observations[:, model.nq - 1]  # forward; positions come first, all but the first one
    places = np.append(0.0, np.cumsum(speeds[:-1] * step))
    found = []
    for place, observation in zip(places, observations, strict=True):
        data.qpos[:] = place, *observation[: model.nq - 1]
        mujoco.mj_kinematics(model, data)
        axes = data.geom_xmat[limbs].reshape(-1, 3, 3)[:, :, 2] * model.geom_size[limbs, 1, None]
        centres = data.geom_xpos[limbs]
        ends = np.stack([centres + axes, centres - axes], 1)[..., [0, 2]]
        found.append(_capsules(ends, model.geom_size[limbs, 0]))
    return np.stack(found)


def _capsules(ends: np.ndarray, radii: np.ndarray) -> np.ndarray:
    """Outlines [k, corners, 2] of capsules with ends [k, 2, 2] and radii [k]."""
    along = ends[:, 0] - ends[:, 1]
    angle = np.arctan2(along[:, 1], along[:, 0])
    half = np.linspace(-np.pi / 2, np.pi / 2, CORNERS // 2)
    turns = angle[:, None] + np.concatenate([half, half + np.pi])
    circle = np.stack([np.cos(turns), np.sin(turns)], -1) * radii[:, None, None]
    return np.repeat(ends, CORNERS // 2, axis=1) + circle


def draw(ax: Axes, outline: np.ndarray, colour: str, reach: float = 0.9) -> PolyCollection:
    """One posture [limbs, corners, 2], with the ground, the axes moving along with the robot."""
    limbs = PolyCollection(list(outline), facecolor=colour, edgecolor="white", lw=0.6)
    ax.add_collection(limbs)
    ax.axhline(0, color="0.4", lw=1)
    ax.set(aspect="equal", ylim=(-0.1, 1.8), yticks=[])
    _follow(ax, outline, reach)
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.set_xticks([])
    return limbs


def _follow(ax: Axes, outline: np.ndarray, reach: float) -> None:
    centre = outline[0, :, 0].mean()
    ax.set_xlim(centre - reach, centre + reach)


def strip(axes: Sequence[Axes], found: np.ndarray, steps: Sequence[int], colour: str) -> None:
    """Postures at some steps of one episode, one per panel; a step after its end stays empty.

    Args:
        axes: as many as steps.
        found: outlines of the episode.
        steps: which of them.
        colour: of the robot.
    """
    for ax, step in zip(axes, steps, strict=True):
        if step < len(found):
            draw(ax, found[step], colour)
        else:
            ax.set_axis_off()


def animate(
    figure: Figure,
    axes: Sequence[Axes],
    episodes: Sequence[np.ndarray],
    colours: Sequence[str],
    every: int,
) -> FuncAnimation:
    """Several episodes side by side, each frozen at its end.

    Args:
        figure, axes: a panel per episode.
        episodes: outlines of each, [n, limbs, corners, 2].
        colours: of each.
        every: steps between two frames.
    """
    drawn = [draw(ax, e[0], c) for ax, e, c in zip(axes, episodes, colours, strict=True)]

    def show(frame: int) -> list[PolyCollection]:
        for ax, limbs, found in zip(axes, drawn, episodes, strict=True):
            now = found[min(frame * every, len(found) - 1)]
            limbs.set_verts(list(now))
            _follow(ax, now, 0.9)
        return drawn

    return FuncAnimation(figure, show, frames=-(-max(map(len, episodes)) // every))
