"""Chapters 05 and 06 in a small form on a file of D4RL's maze2d: its goal is found."""

from types import SimpleNamespace

import h5py
import pytest
from test_data_files import as_d4rl

from rrlib.errors import DataWarning
from rrlib.lab import store
from rrlib.lab.mazes import experiments
from rrlib.mazes import recordings
from rrlib.mazes import world as maze

CHOSEN = SimpleNamespace(
    maze=("umaze",), n_goals=1, goal=None, seed=0, episodes=200, size="small", horizon=32,
    diffuser_steps=150,
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::rrlib.errors.DataWarning")
def test_the_goal_is_found_with_the_bases_data_from_d4rls_file(tmp_path):
    world = maze.load("umaze")
    data = maze.make_trajectories(world, CHOSEN.episodes, 300, seed=4)
    with h5py.File(tmp_path / "maze2d-umaze-v1.hdf5", "w") as file:
        for key, array in as_d4rl(world, data).items():
            if key not in ("rewards", "timeouts"):
                file[key] = array
    path = str(tmp_path / "maze2d-umaze-v1.hdf5")
    with pytest.warns(DataWarning, match="positions as D4RL's maze2d has them"):
        recordings.read(world, path)
    (e,) = experiments.experiments(SimpleNamespace(**vars(CHOSEN), dataset_path=path), 1, 300)
    (found,) = e.judge(store.obtain(e.rewards), e.samples(200, 1_500, 1), 1)
    assert found.distance <= 0.5  # half a cell; by chance in one case of nine
    assert found.auc >= 0.85
