"""Data files as people have them: what is read, what is said, what is refused."""

import json
import os
import warnings
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from rrlib.errors import DataWarning, InputError
from rrlib.lab import store
from rrlib.lab.locomotion import presets as locomotion_presets
from rrlib.lab.locomotion import recipes as locomotion_recipes
from rrlib.lab.mazes import presets as maze_presets
from rrlib.lab.mazes import recipes as maze_recipes
from rrlib.locomotion import robots
from rrlib.locomotion import world as locomotion
from rrlib.mazes import recordings
from rrlib.mazes import world as maze
from rrlib.plans import columns
from rrlib.plans import trajectories as tr

N, T = 12, 60  # episodes and their steps
M = N * T
UMAZE = maze.load("umaze")
KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")


def arrays(world="maze", seed=0) -> dict[str, np.ndarray]:
    """A good file's arrays by D4RL's names: a ball that drifts about the U-maze's right column."""
    rng = np.random.default_rng(seed)
    ends = np.arange(M) % T == T - 1
    marks = {"rewards": rng.normal(size=M).astype("f4"), "terminals": np.zeros(M, bool)}
    marks["timeouts"] = ends
    if world == "hopper":
        observations = rng.normal(0, 0.3, (M, 11))
        observations[::T] = rng.uniform(-0.005, 0.005, (N, 11))
        observations[:, 0] += 1.25
        actions = rng.uniform(-1, 1, (M, 3))
    else:
        rows = rng.uniform(0.8, 3.2, (N, 1)) + rng.uniform(-0.01, 0.01, (N, T)).cumsum(1)
        cells = np.stack([rows.clip(0.6, 3.4), 3 + rng.uniform(-0.02, 0.02, (N, T))], axis=-1)
        xy, velocity = UMAZE.to_xy(cells.reshape(-1, 2)), rng.normal(size=(M, 2))
        observations = np.concatenate([xy, velocity], axis=1)
        actions = rng.uniform(-1, 1, (M, 2))
        marks["infos/goal"] = np.tile(np.float32([1, 1]), (M, 1))
    return {"observations": observations.astype("f4"), "actions": actions.astype("f4")} | marks


@pytest.fixture
def write(tmp_path):
    """Writes a file of these arrays; those that are None are left out."""

    def write(content: dict, **changes) -> str:
        with h5py.File(tmp_path / "data.hdf5", "w") as file:
            for key, array in (content | changes).items():
                if array is not None:
                    file[key] = array
        return str(tmp_path / "data.hdf5")

    return write


def assert_same(found: tr.Trajectories, content: dict, but: tuple[str, ...] = ()) -> None:
    for name in set(KEYS) - set(but):
        array, expected = getattr(found, name), content[name]
        np.testing.assert_array_equal(array, expected, err_msg=name, strict=True)


def said(call, *args):
    """What a call returns and the sentences that it says."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = call(*args)
    assert all(w.category is DataWarning for w in caught)
    sentences = [str(w.message) for w in caught]
    assert all(s.startswith("Dataset '") and s.endswith(".") and "\n" not in s for s in sentences)
    return found, sentences


# Forms


def test_a_good_file_is_read_without_a_word(write):
    for content, read in ((arrays(), read_maze), (arrays("hopper"), read_hopper)):
        found, sentences = said(read, write(content))
        assert_same(found, content)
        assert sentences == []


def read_maze(path):
    return recordings.read(UMAZE, path)


def read_hopper(path):
    return locomotion.read(robots.load("hopper"), path)


@pytest.mark.parametrize("form", ["f2", "f8", ">f4", ">f8", "longdouble"])
def test_numbers_of_every_width_and_order(write, form):
    content = arrays()
    halved = {k: v.astype(form) for k, v in content.items() if v.dtype == "f4"}
    found, sentences = said(read_maze, write(content, **halved))
    assert_same(found, content | {k: v.astype("f4") for k, v in halved.items()})
    assert sentences == []


@pytest.mark.parametrize("form", ["i8", "u1", ">i4", "f4", "f8"])
@pytest.mark.parametrize("column", [False, True])
def test_marks_of_every_kind_and_columns(write, form, column):
    content = arrays()
    marks = {k: content[k].astype(form) for k in ("terminals", "timeouts")}
    marks["rewards"] = content["rewards"]
    if column:
        marks = {key: array[:, None] for key, array in marks.items()}
    found, sentences = said(read_maze, write(content, **marks))
    assert_same(found, content)
    assert sentences == []


@pytest.mark.parametrize("mark", [0.5, 2, -1, np.nan, np.inf, 255])
@pytest.mark.parametrize("key", ["terminals", "timeouts"])
def test_a_mark_is_0_or_1(write, key, mark):
    marks = np.zeros(M)
    marks[7] = mark
    with pytest.raises(InputError, match=rf"has {mark:.1f} in '/{key}' at \(7,\): allowed is 0 or"):
        read_maze(write(arrays(), **{key: marks}))


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_numbers_are_looked_at_a_part_at_a_time(write, monkeypatch, rows):
    monkeypatch.setattr(columns, "ROWS", rows)
    content = arrays()
    assert_same(said(read_maze, write(content))[0], content)
    for key, value, place in (("actions", np.nan, (5, 1)), ("observations", 1e9, (4, 0))):
        wrong = content[key].astype("f8")
        wrong[place] = value
        with pytest.raises(InputError, match=rf"in '/{key}' at \({place[0]}, {place[1]}\)"):
            read_maze(write(content, **{key: wrong}))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30, -1e7, 1e300])
@pytest.mark.parametrize("key", ["observations", "actions"])
def test_what_is_learnt_is_a_number_of_some_size(write, key, value):
    content = arrays()
    wrong = content[key].astype("f8")
    wrong[3, 1] = value
    with pytest.raises(InputError, match=rf"in '/{key}' at \(3, 1\): allowed is a number, 1,000,0"):
        read_maze(write(content, **{key: wrong}))


@pytest.mark.parametrize("key", ["7", "2024", "episodes", "episode_", "episode_1", "episode_x"])
def test_a_further_key_makes_no_minari_file(write, key):
    content = arrays()
    assert_same(said(read_maze, write(content, **{key: np.zeros(3)}))[0], content)


def test_episodes_of_one_step_and_an_unfinished_last_one(write):
    content = arrays()
    ends = np.ones(M, bool)
    ends[-3:] = False
    found = read_maze(write(content, timeouts=ends))
    assert found.n_episodes == M - 2
    assert (np.diff(found.bounds) == [[1]] * (M - 3) + [[3]]).all()


# What the method never uses


@pytest.mark.parametrize(
    ("rewards", "words"),
    [
        (None, r"lacks the key '/rewards'"),
        (np.where(np.arange(M) == M - 1, np.nan, 0), r"has nan in '/rewards' at \(719,\)"),
        (np.full((M, 1), -np.inf), r"has -inf in '/rewards' at \(0, 0\)|at \(0,\)"),
        (np.full(M, 9 * 10**18), r"has 9000000000000000000 in '/rewards' at \(0,\)"),
    ],
)
def test_a_maze_needs_no_rewards(write, tmp_path, rewards, words):
    content = arrays()
    path = write(content, rewards=rewards)
    with pytest.warns(DataWarning, match=f"^Dataset '.*{words}: it is read without rewards, which"):
        found = read_maze(path)
    assert found.rewards is None
    assert_same(found, content, but=("rewards",))
    assert_same(found.take([0, 1]), {k: v[: 2 * T] for k, v in content.items()}, but=("rewards",))

    # On its way through the store nothing is said again, and nothing made up.
    recipe = said(maze_recipes.MazeFile.at, "umaze", path)[0]
    stored = said(store.obtain, recipe)[0]
    again, sentences = said(store.obtain, recipe)
    assert sentences == [] and again.rewards is None
    assert tr.digest(again) == tr.digest(stored) == tr.digest(found)


@pytest.mark.parametrize("rewards", [None, np.full(M, np.nan), np.full(M, 9 * 10**18)])
def test_a_robots_score_is_the_sum_of_its_rewards(write, rewards):
    with pytest.raises(InputError, match=r"'/rewards'.*: allowed is a"):
        read_hopper(write(arrays("hopper"), rewards=rewards))


@pytest.mark.parametrize(
    ("key", "goals"),
    [
        ("infos/goal", np.full((M, 2), np.nan)),
        ("infos/goal", np.zeros((M, 3))),
        ("infos/goal", np.ones(M)),
        ("infos/goal", np.zeros((N, 2))),
        ("infos/goal", np.array([b"left"] * M)),
        ("infos/goal", 1.0),
        ("infos/goal/direction", np.ones(M)),
        ("infos/goal", h5py.SoftLink("/nowhere")),
        ("infos", np.zeros(3)),
    ],
)
@pytest.mark.parametrize("world", ["maze", "hopper"])
def test_a_goal_that_is_no_point_is_left_alone(write, world, key, goals):
    content = arrays(world)
    path = write(content, **{"infos/goal": None, key: goals})
    found, sentences = said({"maze": read_maze, "hopper": read_hopper}[world], path)
    assert found.goals is None and sentences == []
    assert_same(found, content)


def test_goals_that_are_needed_are_asked_for(write):
    path = write(arrays(), **{"infos/goal": np.zeros((M, 3))})
    with pytest.raises(
        InputError, match=r"has '/infos/goal' of shape \(720, 3\): allowed is M x 2"
    ):
        tr.read(path, 4, 2, needs=("goals",))
    path = write(arrays(), **{"infos/goal": None})
    with pytest.raises(InputError, match="lacks the key '/infos/goal'"):
        tr.read(path, 4, 2, needs=("goals",))


def test_a_sentence_is_said_once_in_one_line_and_changes_no_key(write):
    path = write(arrays(), rewards=None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        keys = [store.key(maze_recipes.MazeFile.at("umaze", path)) for _ in range(2)]
    assert keys[0] == keys[1]
    (one,) = caught
    shown = warnings.formatwarning(one.message, one.category, one.filename, one.lineno)
    assert shown == f"rrlib:0: DataWarning: {one.message}\n"


# Actions and coordinates


@pytest.mark.parametrize(("read", "world"), [(read_maze, "maze"), (read_hopper, "hopper")])
def test_actions_far_outside_are_refused_and_others_told_of(write, read, world):
    content = arrays(world)
    actions = content["actions"] * np.float32(3) / np.abs(content["actions"]).max()
    with pytest.warns(DataWarning, match="has actions of up to 3, of which the env"):
        found = read(write(content, actions=actions))
    np.testing.assert_array_equal(found.actions, actions)
    with pytest.raises(InputError, match=r"has actions of up to 1\.2e\+04: allowed is -1 to 1\."):
        read(write(content, actions=actions * 4_000))
    with pytest.raises(InputError, match="in '/actions' at"):
        read(write(content, actions=actions * 1e30))
    edge = np.sign(actions) * np.float32(1 + 1e-6)  # rounding is no fault
    assert said(read, write(content, actions=edge))[1] == []


def as_d4rl(world: maze.Maze, data: tr.Trajectories, shift: float = 0.2) -> dict:
    """Our own data by D4RL's names and in its coordinates, written out anew: row, column."""
    rows, columns = world.walls.shape
    x, y, vx, vy = data.observations.astype("f8").T
    qpos = np.stack([rows / 2 - 0.5 - y, x + columns / 2 - 0.5], axis=1) - shift
    goal = np.stack(
        [rows / 2 - 0.5 - data.goals[:, 1], data.goals[:, 0] + columns / 2 - 0.5], axis=1
    )
    qvel = np.stack([-vy, vx], axis=1)
    following = np.concatenate([qpos, qvel], axis=1)
    following[:-1] = following[1:]
    following[data.timeouts] += np.float32(1e-3)  # what came after an episode is in no other row
    return {
        "observations": np.concatenate([qpos, qvel], axis=1).astype("f4"),
        "actions": np.stack([-data.actions[:, 1], data.actions[:, 0]], axis=1),
        "rewards": data.rewards,
        "terminals": data.terminals.astype("f4"),
        "timeouts": data.timeouts.astype("u1"),
        "infos/goal": (goal - shift).astype("f4"),
        "infos/qpos": qpos,
        "infos/qvel": qvel,
        "next_observations": following.astype("f4"),
        "metadata/algorithm": np.bytes_("waypoints"),
    }


@pytest.mark.parametrize("shift", [0.0, 0.2])  # D4RL's own files have the latter
@pytest.mark.parametrize("name", ["open", "umaze", "medium", "large"])
def test_d4rls_coordinates_are_recognised_said_and_converted(write, name, shift):
    world = maze.load(name)
    data = maze.make_trajectories(world, 40, 300, seed=1)
    content = as_d4rl(world, data, shift)
    found, (sentence,) = said(recordings.read, world, write(content))
    assert_same(found, vars(data), but=("observations", "actions"))
    np.testing.assert_allclose(found.observations, data.observations, atol=1e-6)
    np.testing.assert_array_equal(found.actions, data.actions)
    np.testing.assert_allclose(found.goals, data.goals, atol=1e-6)
    assert "positions as D4RL's maze2d has them, (row, column) of cells" in sentence
    # The formula in the sentence, for the file's own numbers.
    rows, columns = world.walls.shape
    row, column = content["observations"][:, :2].T
    assert (
        f"x = column {shift + 0.5 - columns / 2:+g} and y = {rows / 2 - 0.5 - shift:g} - row"
        in (sentence)
    )
    np.testing.assert_allclose(
        column + (shift + 0.5 - columns / 2), data.observations[:, 0], atol=1e-6
    )
    np.testing.assert_allclose(rows / 2 - 0.5 - shift - row, data.observations[:, 1], atol=1e-6)
    # Velocities and moves still agree.
    moves = np.diff(found.observations[:300, :2], axis=0) / 0.01
    np.testing.assert_allclose(moves, found.observations[1:300, 2:], atol=1e-2)


@pytest.mark.parametrize("left", ["next_observations", "infos/goal", None])
@pytest.mark.parametrize("timeouts", [None, np.zeros(40 * 50, bool)])
def test_ends_are_derived_from_what_d4rl_keeps_beside_them(write, timeouts, left):
    data = maze.make_trajectories(UMAZE, 40, 50, seed=1)
    content = as_d4rl(UMAZE, data)
    for key in {"next_observations", "infos/goal"} - {left} if left else ():
        content[key] = None
    found, sentences = said(tr.read, write(content, timeouts=timeouts), 4, 2)
    np.testing.assert_array_equal(found.timeouts[:-1], data.timeouts[:-1])
    (sentence,) = sentences
    words = "lacks the key" if timeouts is None else "has no mark in"
    assert f"{words} '/timeouts': an episode ends where '/" in sentence
    assert sentence.endswith("which makes 40.")


def test_a_goal_that_moves_ends_no_episode(write):
    content = arrays()
    goals = np.random.default_rng(0).normal(size=(M, 2))
    wrong = content["observations"] + 1  # in other units, say
    path = write(content, **{"infos/goal": goals, "timeouts": None, "next_observations": wrong})
    found, (sentence,) = said(tr.read, path, 4, 2)
    assert found.n_episodes == 1 and "only '/terminals' ends an episode" in sentence


def test_positions_in_walls_are_no_d4rl_coordinates(write):
    content = arrays()
    content["observations"][:, :2] += 0.6
    with pytest.raises(InputError, match="% of its positions lie in walls; all must be in free"):
        read_maze(write(content))


# Ends of episodes


@pytest.mark.parametrize("timeouts", [None, np.zeros(M, bool)])
def test_a_maze_file_without_ends_is_cut_where_positions_jump(write, timeouts):
    content = arrays()
    found, sentences = said(read_maze, write(content, timeouts=timeouts))
    # Some resets are small, and yet the episodes' common length is seen.
    np.testing.assert_array_equal(found.bounds[:, 1], np.arange(1, N + 1) * T)
    assert_same(found, content, but=("timeouts",))
    *first, last = sentences
    assert "holds more episodes than the 1 that it marks: its positions jump" in last
    assert last.endswith("into 12.")
    assert len(first) == (timeouts is None)


def test_resets_of_episodes_of_any_length_are_found(write):
    rng = np.random.default_rng(1)
    lengths = rng.integers(30, 90, N)
    data = maze.make_trajectories(UMAZE, N, 90, seed=3)
    rows = np.concatenate([np.arange(k * 90, k * 90 + n) for k, n in enumerate(lengths)])
    path = write({k: getattr(data, k)[rows] for k in KEYS} | {"timeouts": None})
    found, sentences = said(read_maze, path)
    np.testing.assert_array_equal(found.bounds[:, 1], lengths.cumsum())
    assert len(sentences) == 2


def test_some_ends_marked_and_some_not(write):
    content = arrays()
    some = content["timeouts"] & (np.arange(M) > M / 2)
    found, sentences = said(read_maze, write(content, timeouts=some))
    assert_same(found, content)
    assert len(sentences) == 1 and "than the 6 that it marks" in sentences[0]


def test_our_own_data_has_no_jumps(write):
    data = maze.make_trajectories(UMAZE, 30, 300, seed=1, gains=maze.D4RL_GAINS)
    found, sentences = said(read_maze, write({k: getattr(data, k) for k in KEYS}))
    assert sentences == [] and (found.timeouts == data.timeouts).all()


@pytest.mark.parametrize("timeouts", [None, np.zeros(T, bool)])
def test_a_single_episode_is_refused_when_parameters_are_checked(write, timeouts):
    def check(world: str, content: dict) -> None:
        path = write(content)
        if world == "maze":
            chosen = SimpleNamespace(maze=("umaze",), n_goals=1, goal=None, dataset_path=path)
            maze_presets.check_data(chosen)
        else:
            chosen = SimpleNamespace(environment=("hopper",), base_path=path, expert_path=path)
            locomotion_presets.check_data(chosen)

    for world in ("maze", "hopper"):
        content = arrays(world)
        check(world, content)
        one = {key: array[:T] for key, array in content.items()} | {"timeouts": timeouts}
        with (
            warnings.catch_warnings(category=DataWarning, action="ignore"),
            pytest.raises(InputError, match="is one episode of 60 steps: allowed are 2 episodes"),
        ):
            check(world, one)


def test_terminals_are_ends(write):
    content = arrays("hopper") | {"terminals": arrays()["timeouts"], "timeouts": None}
    with pytest.warns(DataWarning, match="only '/terminals' ends an .* makes 12"):
        found = read_hopper(write(content))
    assert_same(found, content | {"timeouts": np.zeros(M, bool)})


def episodes_of(name, lengths):
    """A robot's file of these episodes: each starts standing still, or nearly so."""
    world, rng = robots.load(name), np.random.default_rng(0)
    m, starts = sum(lengths), np.cumsum([0, *lengths[:-1]])
    observations = rng.normal(0, 0.3, (m, world.observation))
    observations[starts] = rng.uniform(-0.005, 0.005, (len(lengths), world.observation))
    observations[:, 0] += world.height
    ends = np.zeros(m, bool)
    ends[np.cumsum(lengths) - 1] = True
    return world, {
        "observations": observations.astype("f4"),
        "actions": rng.uniform(-1, 1, (m, world.action)).astype("f4"),
        "rewards": np.ones(m, "f4"),
        "terminals": np.zeros(m, bool),
        "timeouts": ends,
    }


@pytest.mark.parametrize("marked", [[], [2], [0, 3]])
@pytest.mark.parametrize(
    ("name", "lengths"),
    [
        ("halfcheetah", [1000, 1000, 1000, 1000]),
        ("hopper", [1000, 1000, 1000, 1000]),
        ("hopper", [37, 1000, 250, 400]),
        ("walker2d", [1000, 90, 1000, 12]),
    ],
)
def test_robots_episodes_end_as_in_the_environment(write, name, lengths, marked):
    world, content = episodes_of(name, lengths)
    ends = np.zeros_like(content["timeouts"])
    ends[np.cumsum(lengths)[marked] - 1] = True
    found, sentences = said(locomotion.read, world, write(content, timeouts=ends))
    np.testing.assert_array_equal(found.bounds[:, 1], np.cumsum(lengths))
    assert len(sentences) == 1 and sentences[0].endswith("and after 1000 steps at most.")
    assert f"into {len(lengths)}, where" in sentences[0]
    np.testing.assert_allclose(
        locomotion.scores(world, found), locomotion.normalised_score(world, np.array(lengths))
    )


def test_a_robot_that_fell_is_cut_from_its_fall(write):
    world, content = episodes_of(
        "halfcheetah", [300, 1000, 1000, 500]
    )  # its starts are not looked for
    terminals = np.zeros(2_800, bool)
    terminals[299] = True
    found, _ = said(locomotion.read, world, write(content, terminals=terminals, timeouts=None))
    np.testing.assert_array_equal(found.bounds[:, 1], [300, 1300, 2300, 2800])


def test_a_height_that_is_no_robots_is_told_of_and_another_robots_is_refused(write):
    world, content = episodes_of("halfcheetah", [500, 400])
    content["observations"][:, 0] -= 0.8
    found, sentences = said(locomotion.read, world, write(content))
    assert found.n_episodes == 2
    assert len(sentences) == 1 and "at height -0.80, the simulator's near 0.00" in sentences[0]
    content["observations"][:, 0] += 1.5
    with pytest.raises(InputError, match=r"start at height 0\.70; they must start near 0\.00"):
        locomotion.read(world, write(content))


def test_real_resets_are_recognised_without_any_mark(write):
    data = locomotion.make_trajectories(robots.load("hopper"), "random", 1_000)
    blank = np.zeros(len(data.actions), bool)
    content = data.arrays() | {"terminals": blank, "timeouts": blank}
    found, _ = said(read_hopper, write(content))
    np.testing.assert_array_equal(found.bounds, data.bounds)


# Places


@pytest.fixture
def minari_root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


def test_a_minari_dataset_by_every_name(write, minari_root):
    content = arrays()
    folder = tr.write_minari("maze/u-v0", tr.read(write(content), 4, 2), "A maze.")
    for path in ("maze/u-v0", folder, folder / "data", folder / "data/main_data.hdf5"):
        found, sentences = said(read_maze, str(path))
        assert_same(found, content)
        assert sentences == []


def test_minari_keeps_unknown_rewards_unknown(write, minari_root):
    found = said(tr.read, write(arrays(), rewards=None), 4, 2)[0]
    tr.write_minari("u-v0", found, "No rewards.")
    again, sentences = said(tr.read, "u-v0", 4, 2)
    assert again.rewards is None and len(sentences) == 1
    assert_same(again, arrays(), but=("rewards",))


@pytest.mark.parametrize("path", ["arrow-v0", "FOLDER/arrow-v0", "FOLDER/arrow-v0/data"])
def test_minaris_arrow_form_is_recognised(minari_root, path):
    (minari_root / "arrow-v0" / "data" / "0").mkdir(parents=True)
    card = json.dumps({"data_format": "arrow", "total_episodes": 1})
    (minari_root / "arrow-v0" / "data" / "metadata.json").write_text(card)
    with pytest.raises(
        InputError, match="is a Minari dataset in Arrow form: allowed is its HDF5 f"
    ):
        read_maze(path.replace("FOLDER", str(minari_root)))


def test_a_folder_is_offered_no_id(tmp_path, minari_root):
    with pytest.raises(InputError, match=r"is a folder without data/main_data\.hdf5: ") as caught:
        read_maze(str(tmp_path))
    assert "id" not in str(caught.value).rpartition("allowed is")[2].split()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_of_somebody_else_is_one_sentence(write, tmp_path):
    path = write(arrays())
    os.chmod(path, 0)
    os.seteuid(65534)
    try:
        with pytest.raises(InputError, match=r"cannot be (read|looked at) \(Permission denied\)"):
            tr.read(path, 4, 2)
    finally:
        os.seteuid(0)


# Recipes


@pytest.mark.parametrize(
    ("recipe", "name", "world"),
    [
        (maze_recipes.MazeFile, "umaze", "maze"),
        (locomotion_recipes.LocomotionFile, "hopper", "hopper"),
    ],
)
def test_a_file_that_changes_under_way_is_refused(write, tmp_path, recipe, name, world):
    content = arrays(world)
    path = write(content)
    before = recipe.at(name, path)
    for change in (
        {"actions": -content["actions"]},
        {"rewards": content["rewards"] + 1},
        {"timeouts": content["timeouts"] | (np.arange(M) == 7)},
    ):
        write(content, **change)
        with pytest.raises(InputError, match=r"data\.hdf5' has changed since this run began"):
            store.obtain(before)
        assert store.key(recipe.at(name, path)) != store.key(before)
    write(content)
    assert_same(store.obtain(before), content)


# Trajectories


def test_no_episodes_at_all(write):
    data = tr.read(write(arrays()), 4, 2)
    for nothing in ([], np.zeros(0, int), np.zeros(N, bool)):
        none = data.take(nothing)
        assert none.n_episodes == 0 and none.bounds.shape == (0, 2)
        assert none.observations.shape == (0, 4) and none.observations.dtype == np.float32
        assert none.goals.shape == (0, 2) and len(tr.windows(none, 5)) == 0
        assert tr.cut(none, tr.windows(none, 5), 5).shape == (0, 5, 6)


def test_a_mask_takes_the_episodes_that_it_marks(write):
    data = tr.read(write(arrays()), 4, 2)
    mask = np.arange(N) % 3 == 1
    assert tr.digest(data.take(mask)) == tr.digest(data.take(np.flatnonzero(mask)))
