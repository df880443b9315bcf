"""The batch against PointMaze itself, the layouts and goals, the controller and its data."""

import gymnasium as gym
import numpy as np
import pytest
from scipy import stats

from rrlib.errors import InputError
from rrlib.mazes import world as maze

LAYOUTS = {
    "open": "#######/#OOOOO#/#OOGOO#/#OOOOO#/#######",
    "umaze": "#####/#GOO#/###O#/#OOO#/#####",
    "medium": "########/#OO##OO#/#OO#OOO#/##OOO###/#OO#OOO#/#O#OO#O#/#OOO#OG#/########",
    "large": (
        "############/#OOOO#OOOOO#/#O##O#O#O#O#/#OOOOOO#OOO#/#O####O###O#/#OO#O#OOOOO#/"
        "##O#O#O#O###/#OO#OOO#OGO#/############"
    ),
}
ENVIRONMENTS = {
    "open": "PointMaze_Open-v3",
    "umaze": "PointMaze_UMaze-v3",
    "medium": "PointMaze_Medium-v3",
    "large": "PointMaze_Large-v3",
}
# Steps for the longest way (154, 154, 259 and 433 in 2 000 episodes) and two seconds to rest.
ENOUGH = {"open": 350, "umaze": 350, "medium": 450, "large": 650}
every_maze = pytest.mark.parametrize("name", list(LAYOUTS))


@pytest.fixture
def point_maze(name):
    """PointMaze of this maze, through Gymnasium."""
    env = gym.make(ENVIRONMENTS[name], max_episode_steps=10**6)
    yield env
    env.close()


def at_rest(world: maze.Maze, n: int, rng: np.random.Generator) -> np.ndarray:
    return np.concatenate([world.to_xy(world.sample(n, rng)), np.zeros((n, 2))], axis=1)


@every_maze
def test_layout_is_the_papers(name):
    rows = [[cell == "#" for cell in row] for row in LAYOUTS[name].split("/")]
    np.testing.assert_array_equal(maze.load(name).walls, rows)


@every_maze
def test_cell_units_are_gymnasium_robotics_own(name, point_maze):
    world, theirs = maze.load(name), point_maze.unwrapped.maze
    for cell in world.free_cells:
        np.testing.assert_allclose(world.to_xy(cell), theirs.cell_rowcol_to_xy(cell), atol=1e-12)
        np.testing.assert_array_equal(theirs.cell_xy_to_rowcol(world.to_xy(cell)), cell)
    cells = world.sample(50, np.random.default_rng(0))
    np.testing.assert_allclose(world.to_cells(world.to_xy(cells)), cells, atol=1e-12)


@every_maze
def test_goals_can_be_reached(name):
    world = maze.load(name)
    assert len(set(maze.GOALS[name])) == 8
    for goal in maze.GOALS[name]:
        maze.check_goal(world, goal)


@pytest.mark.parametrize(
    "goal",
    [
        (0, 1),
        (2, 1),
        (1, 3.45),  # the ball would overlap the wall to its right
        (1.45, 2.45),  # and here the corner of one
        (-3, 1),
        (1, 40),
        (float("nan"), 1),
        (1, 2, 3),
    ],
)
def test_refuses_a_goal_where_the_ball_cannot_be(goal):
    with pytest.raises(InputError, match=r"goal = .*maze 'umaze': allowed is"):
        maze.make_trajectories(maze.load("umaze"), 1, 1, goal=goal)


def test_refuses_an_unknown_maze():
    with pytest.raises(InputError, match=r"'huge' is unknown: allowed are open, umaze, medium, la"):
        maze.load("huge")


@pytest.mark.parametrize(("episodes", "steps"), [(0, 5), (-1, 5), (5, 0), (5, -7)])
def test_refuses_counts_below_one(episodes, steps):
    with pytest.raises(InputError, match=r"(episodes|steps) = -?\d is out of range: allowed is 1"):
        maze.make_trajectories(maze.load("open"), episodes, steps)


@pytest.mark.lengthy
@every_maze
def test_samples_are_uniform_where_the_ball_fits(name):
    world = maze.load(name)
    cells = world.sample(4000, np.random.default_rng(0))
    assert world.clearance(cells).min() >= maze.RADIUS
    assert world.clearance(cells).min() < maze.RADIUS + 0.01  # it also uses the room there is
    # The same free space, filled evenly by a grid, gives the expected share of each cell.
    rows, columns = world.walls.shape
    grid = np.stack(np.meshgrid(*(np.arange(-0.475, m - 0.5, 0.05) for m in (rows, columns))), -1)
    grid = grid.reshape(-1, 2)
    grid = grid[world.is_free(grid)]

    def count(points):
        flat = np.rint(points).astype(int) @ (columns, 1)
        return np.bincount(flat, minlength=world.walls.size)[~world.walls.ravel()]

    expected = count(grid) / len(grid) * len(cells)
    assert stats.chisquare(count(cells), expected).pvalue > 1e-3


@pytest.mark.lengthy
@every_maze
def test_batch_equals_point_maze_step_by_step(name, point_maze):
    world, n, steps = maze.load(name), 12, 300
    rng = np.random.default_rng(1)
    states = at_rest(world, n, rng)
    states[:, 2:] = rng.uniform(-6, 6, (n, 2))  # some above the limit of 5
    angles = rng.uniform(0, 2 * np.pi, (n, 1)) + 0.01 * np.arange(
        steps
    )  # long pushes, slowly round
    actions = 1.2 * np.stack([np.cos(angles), np.sin(angles)], -1) + rng.normal(
        0, 0.1, (n, steps, 2)
    )

    expected = np.empty((n, steps, 4))
    for ball in range(n):
        point_maze.reset(seed=0)
        point_maze.unwrapped.point_env.set_state(states[ball, :2], states[ball, 2:])
        for k in range(steps):
            # The inner environment: gym.make's checker would refuse actions that it then clips.
            found = point_maze.unwrapped.step(actions[ball, k])[0]
            expected[ball, k] = found["observation"]

    batch = np.empty((n, steps, 4))
    accelerations = np.zeros((n, 2))
    for k in range(steps):
        states, accelerations = maze.step(world, states, actions[:, k], accelerations)
        batch[:, k] = states
    np.testing.assert_allclose(batch[..., :2], expected[..., :2], rtol=0, atol=1e-9)
    np.testing.assert_allclose(batch[..., 2:], expected[..., 2:], rtol=0, atol=1e-7)
    touching = world.clearance(world.to_cells(batch[..., :2])) < maze.RADIUS + 0.002
    assert touching.any(axis=1).sum() >= n // 2  # or the comparison would be of free flight alone


@pytest.mark.lengthy
@every_maze
@pytest.mark.parametrize("gains", [maze.PAPER_GAINS, maze.D4RL_GAINS])
def test_every_ball_arrives_and_rests_at_its_target(name, gains):
    world = maze.load(name)
    data = maze.make_trajectories(world, 200, ENOUGH[name], gains=gains)
    last = data.bounds[:, 1] - 1
    np.testing.assert_array_less(
        np.linalg.norm(data.observations[last, :2] - data.goals[last], axis=1), 0.005
    )
    assert np.abs(data.observations[last, 2:]).max() < 1e-3
    assert np.abs(data.actions[last]).max() < 0.05  # at rest, not chattering


def test_a_ball_rests_at_a_target_on_the_border_of_two_cells():
    world = maze.load("large")
    targets = world.to_xy(np.array([(3, 1.5), (3, 1.4999), (3, 1.501), (3.5001, 1)]))
    states = np.concatenate([world.to_xy([(1, 4), (3, 6), (1, 1), (7, 1)]), np.zeros((4, 2))], 1)
    accelerations = np.zeros((4, 2))
    for _ in range(ENOUGH["large"]):
        chosen = maze.control(world, states, targets)
        states, accelerations = maze.step(world, states, chosen, accelerations)
    np.testing.assert_allclose(states[:, :2], targets, atol=1e-6)
    np.testing.assert_allclose(chosen, 0, atol=1e-6)


def test_controller_goes_round_the_wall_of_the_u_maze():
    world = maze.load("umaze")
    target = world.to_xy([(3, 1)])
    for cell, following in [((1, 1), (1, 2)), ((1, 3), (2, 3)), ((2, 3), (3, 3)), ((3, 3), (3, 2))]:
        states = np.concatenate([world.to_xy([cell]), np.zeros((1, 2))], axis=1)
        way = world.to_xy([following]) - states[:, :2]
        action = maze.control(world, states, target, gains=(0.5, -1.0))
        np.testing.assert_allclose(action, 0.5 * way, atol=1e-12)
    moving = np.concatenate([world.to_xy([(3, 1.1)]), [[0.2, -0.1]]], axis=1)
    action = maze.control(world, moving, target)
    np.testing.assert_allclose(action, [[3.0 * -0.1 - 0.548 * 0.2, 0.548 * 0.1]], atol=1e-12)


def test_trajectories_replay_in_point_maze_with_its_rewards():
    """Actions, the observation before each, PointMaze's reward after each, and the goal."""
    world = maze.load("medium")
    data = maze.make_trajectories(world, 3, 300, seed=5)
    env = gym.make("PointMaze_Medium-v3", max_episode_steps=10**6).unwrapped
    for start, stop in data.bounds:
        env.reset(seed=0)
        env.goal = data.goals[start].astype(float)
        first = data.observations[start].astype(float)
        env.point_env.set_state(first[:2], first[2:])
        observations, rewards = [first], []
        for action in data.actions[start:stop]:
            found, reward, *_ = env.step(action.astype(float))
            observations.append(found["observation"])
            rewards.append(reward)
        np.testing.assert_allclose(data.observations[start:stop], observations[:-1], atol=1e-4)
        np.testing.assert_array_equal(data.rewards[start:stop], rewards)
    env.close()
    assert len(np.unique(data.rewards)) == 2


def test_trajectories_are_laid_out_as_d4rl_and_follow_the_seed():
    world = maze.load("umaze")
    data = maze.make_trajectories(world, 4, 30, seed=3)
    np.testing.assert_array_equal(data.bounds, [(0, 30), (30, 60), (60, 90), (90, 120)])
    assert not data.terminals.any()
    assert {array.dtype for array in data.arrays().values()} == {np.dtype("f4"), np.dtype("?")}
    assert len(np.unique(data.goals, axis=0)) == 4
    again, other = (maze.make_trajectories(world, 4, 30, seed=seed) for seed in (3, 4))
    for name, array in data.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], array)
    assert not np.array_equal(other.observations, data.observations)


def test_an_experts_goal_is_the_same_in_every_episode():
    world = maze.load("open")
    data = maze.make_trajectories(world, 4, 10, goal=(1.3, 1.7))
    np.testing.assert_allclose(data.goals, np.tile(world.to_xy((1.3, 1.7)), (40, 1)), atol=1e-6)
    assert len(np.unique(data.observations[::10, :2], axis=0)) == 4  # starts differ all the same


def test_a_thousand_balls_are_one_call_of_mujoco(monkeypatch):
    """Why they are fast: a step costs as many calls for a thousand balls as for one."""
    world, calls = maze.load("umaze"), []
    rollout = maze.mujoco.rollout.rollout

    def counted(model, data, states, *args, **more):
        calls.append(len(states))
        return rollout(model, data, states, *args, **more)

    monkeypatch.setattr(maze.mujoco.rollout, "rollout", counted)
    for n in (1, 1000):
        states = at_rest(world, n, np.random.default_rng(0))
        maze.step(world, states, np.zeros((n, 2)), np.zeros((n, 2)))
    assert calls == [1, 1000]
