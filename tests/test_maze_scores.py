"""D4RL's score of Maze2D: its own arithmetic, by hand."""

import numpy as np
import pytest

from rrlib.errors import InputError
from rrlib.mazes import scores, world


def test_the_score_is_that_of_d4rls_table():
    """umaze: min 23.85, max 161.86; Diffuser's 113.9 is a return of 181.04."""
    assert scores.normalised_score("umaze", 181.04) == pytest.approx(113.9, abs=0.01)
    assert scores.normalised_score("medium", 13.13) == 0
    assert scores.normalised_score("large", 273.99) == pytest.approx(100)
    assert scores.normalised_score("open", [0.01, 20.66]).tolist() == pytest.approx([0, 100])


def test_a_step_counts_within_half_a_cell_of_the_goal():
    maze = world.load("umaze")
    goal = maze.to_xy((1, 1))
    positions = np.tile(goal, (2, 300, 1))
    positions[0, :100] += (0.51, 0)  # outside
    positions[1, :100] += (0.3, 0.39)  # 0.49 away
    found = scores.scores(maze, positions, (1, 1))
    low, high = 23.85, 161.86
    assert found == pytest.approx([100 * (n - low) / (high - low) for n in (200, 300)])


def test_balls_of_our_controller_score_as_they_are_counted_by_hand():
    maze = world.load("umaze")
    data = world.make_trajectories(maze, 20, 301, goal=(1, 1), seed=3)
    positions = data.observations[:, :2].reshape(20, 301, 2)[:, 1:]
    x, y = maze.to_xy((1, 1))
    for ball, found in zip(positions, scores.scores(maze, positions, (1, 1)), strict=True):
        steps = sum((px - x) ** 2 + (py - y) ** 2 <= 0.25 for px, py in ball)
        assert found == pytest.approx((steps - 23.85) / (161.86 - 23.85) * 100)


def test_another_maze_and_other_episodes_are_refused():
    with pytest.raises(InputError, match="maze='spiral' is not allowed: D4RL scores open, umaze"):
        scores.normalised_score("spiral", 1.0)
    with pytest.raises(InputError, match=r"\[n, 300, 2\], D4RL's episodes of maze 'umaze'"):
        scores.scores(world.load("umaze"), np.zeros((3, 10, 2)), (1, 1))
