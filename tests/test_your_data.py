"""The page on data and scores: its samples run, in their order, on files of these forms."""

import csv
import re
import shlex
import shutil
from contextlib import nullcontext
from pathlib import Path

import gymnasium as gym
import gymnasium_robotics
import h5py
import pytest
import torch
from PIL import Image
from test_command_line import planner
from test_data_files import as_d4rl

import rrlib
from rrlib.command_line.main import main, parser
from rrlib.errors import DataWarning
from rrlib.images.miniature import scenes
from rrlib.mazes import world as maze
from rrlib.plans import trajectories

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "book" / "your-data.md").read_text(encoding="utf-8")


def blocks(kind: str) -> list[str]:
    """The samples of a kind."""
    return re.findall(rf"```{kind}\n(.*?)```", PAGE, flags=re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The files that the page speaks of, in the folder that the samples run in."""
    monkeypatch.chdir(tmp_path)
    data = maze.make_trajectories(maze.load("umaze"), 6, 200, seed=1)
    trajectories.write_hdf5("my-data.hdf5", data)
    with h5py.File("maze2d-umaze.hdf5", "w") as file:
        for key, array in as_d4rl(maze.load("umaze"), data).items():
            file[key] = array
    for name in ("maze2d-rewards", "maze2d-step-rewards", "images-style"):
        shutil.copy(ROOT / f"results/full/{name}.safetensors", tmp_path)
    Path("pictures").mkdir()
    for k, one in enumerate(scenes.render(3, 0).pixels):
        Image.fromarray(one).save(f"pictures/{k}.png")
    return tmp_path


@pytest.mark.lengthy
def test_the_samples_run_in_their_order(folder, capsys):
    gym.register_envs(gymnasium_robotics)
    network = rrlib.WindowReward(6, 16, torch.ones(10))
    pixels = torch.from_numpy(scenes.render(4, 1).pixels).permute(0, 3, 1, 2) / 255
    names = {
        "reward": rrlib.RelativeReward(network, "score", "x_t"),
        "env": gym.make("PointMaze_UMaze-v3"),
        "images": pixels,
        "prompts": ["a"] * 4,
        "metadata": [{}] * 4,
    }
    for code in blocks("python"):
        with pytest.warns(DataWarning) if "maze2d-umaze" in code else nullcontext():
            exec(code, names)
    assert names["scores"].shape == (4,) and isinstance(names["g"], float)
    commands, extractions = (text.splitlines() for text in blocks("sh"))
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "rrlib" and main(arguments) == 0, command
    for name, rows in (("scores", 7), ("steps", 1201), ("pictures", 4)):
        with open(f"{name}.csv", encoding="utf-8", newline="") as file:
            assert len(list(csv.reader(file))) == rows
    for command in extractions:  # whole runs of them are in test_command_line
        parser().parse_args(shlex.split(command)[1:])


@pytest.mark.lengthy
def test_the_last_extraction_runs_as_it_stands_but_for_its_size(folder):
    for name, shift in (("base", 0.0), ("expert", 0.4)):
        planner(folder / name, shift)
    command = shlex.split(blocks("sh")[1].splitlines()[-1])[1:]
    assert main([*command, "--n", "100", "--steps", "5"]) == 0
    assert rrlib.load_reward("reward.safetensors").steps == 20
