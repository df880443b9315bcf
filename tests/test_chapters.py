"""Every chapter explains its parameters, and stops at once, in one sentence, at a wrong one."""

import ast
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import papermill
import pytest
import yaml
from diffusers import DDIMScheduler

from rrlib import image_experiments, image_pairs, miniature, pipelines, scenes
from rrlib.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = {path.stem: path for path in sorted(ROOT.glob("notebooks/*.ipynb"))}

# Parameter, value, and what the sentence must hold besides the value. FILE/sub lies under a file
# and so can be written by nobody, root included.
COMMON = [
    ("sed", "1", "seed"),
    ("seed", "-1", "at least 0"),
    ("seed", "zero", "an integer"),
    ("device", "cuda:99", "cpu"),
    ("device", "abacus", "cpu"),
    ("results", "FILE/sub", "written"),
    ("store", "FILE/sub", "written"),
]
MAZE = [
    ("maze", "spiral", "open, umaze, medium, large"),
    ("mazes", "open", "maze"),
    ("n_goals", "0", "at least 1|from 1"),
    ("goal", "0,0", "goal"),
    ("goal", "99,1", "goal"),
    ("goal", "somewhere", "goal"),
    ("horizon", "33", "multiple of|divisible"),
    ("horizon", "0", "horizon"),
    ("horizon", "36", "multiple of 32"),
    ("size", "huge", "small, medium, paper"),
    ("diffuser_steps", "-1", "at least"),
    ("episodes", "0", "at least|from"),
]
DATASETS = ["missing", "text", "no_actions", "lengths", "nan", "width"]
LOCOMOTION = [
    *COMMON,
    ("environment", "ant", "halfcheetah, hopper, walker2d"),
    ("base_kind", "simple", "medium-replay"),
    ("transitions", "0", "at least"),
    ("size", "huge", "small, medium, paper"),
    ("diffuser_steps", "0", "at least"),
    ("n_seeds", "0", "from 1"),
    ("steps", "1001", "to 1000"),
    ("executed", "33", "32 actions"),
    ("denoising", "11", "from 2 to 10"),
    ("version", "3", "from 4 to 5"),
    ("workers", "1000000", "from 1 to"),
]
STEERING = [  # 09 and 10 share all other rules with 08
    ("sed", "1", "seed"),
    ("environment", "ant", "halfcheetah, hopper, walker2d"),
    ("denoising", "11", "from 2 to 10"),
    ("weights", "-1", "at least 0"),
    ("weights", "nan", "at least 0"),
    ("untils", "10", "from 0 to 9"),
    ("reward_steps", "0", "at least"),
]
BAD = {
    "01_ornstein_uhlenbeck": [*COMMON, ("paths", "0", "from 100")],
    "02_existence_uniqueness": [*COMMON, ("paths", "0", "from 1000")],
    "03_conservative_projection": [
        *COMMON,
        ("pool", "0", "at least"),
        ("steps", "-1", "at least"),
    ],
    "04_gaussians": [
        *COMMON,
        ("steps", "-1", "at least"),
        ("sweep_steps", "0", "at least"),
        ("weight", "-1.0", "number"),
    ],
    "05_maze_data": [*COMMON, *MAZE],
    "06_maze_rewards": [
        *COMMON,
        *MAZE,
        ("reward_steps", "-1", "at least"),
        ("n_seeds", "0", "from 1"),
    ],
    "07_small_data": [
        *COMMON,
        ("maze", "spiral", "open, umaze, medium, large"),
        ("n_goals", "9", "from 1 to 8"),
        ("transitions", "20000", "10000, 100000"),
        ("n_seeds", "0", "from 1"),
        ("horizon", "36", "multiple of 32"),
        ("size", "huge", "small, medium, paper"),
        ("diffuser_steps", "0", "at least"),
    ],
    "08_locomotion_data": LOCOMOTION,
    "09_locomotion_steering": [*STEERING, ("methods", "magic", "score, scalar")],
    "10_locomotion_transfer": [*STEERING, ("kinds", "simple", "random, medium")],
    "11_safe_sampler": [
        ("sed", "1", "seed"),
        ("configurations", "mild", "weak, medium, strong, max"),
    ],
    "12_image_rewards": [
        ("sed", "1", "seed"),
        ("configuration", "mild", "weak, medium, strong, max"),
        ("prompts", "nowhere.csv", "existing file"),
    ],
    "13_using_rewards": [
        *COMMON,
        ("maze", "spiral", "open, umaze, medium, large"),
        ("n_goals", "1", "from 2"),
        ("horizon", "36", "multiple of 32"),
        ("size", "huge", "small, medium, paper"),
        ("balls", "1", "at least"),
        ("n_seeds", "0", "from 1"),
    ],
    "14_maze_grid": [
        *[bad for bad in COMMON if bad[1] != "cuda:99"],
        ("maze", "spiral", "open, umaze, medium, large"),
        ("n_seeds", "0", "from 1"),
        ("episodes", "0", "at least"),
        ("plans", "1", "at least"),
        ("rewards", "nowhere.safetensors", "exist"),
    ],
    "15_maze_choices": [
        *COMMON,
        *MAZE,
        ("choices", "window_5", "window_16"),
        ("choices", "x_t,x_t", "each once"),
        ("reward_steps", "-1", "at least"),
        ("n_seeds", "0", "from 1"),
    ],
}
READS_DATASETS = ("05_maze_data", "06_maze_rewards", "15_maze_choices")


def test_every_chapter_is_tried_with_bad_parameters():
    assert set(BAD) == set(CHAPTERS)


@pytest.mark.parametrize("name", CHAPTERS)
def test_every_parameter_has_a_type_and_a_comment(name):
    parameters = papermill.inspect_notebook(CHAPTERS[name])
    assert {"seed", "device", "store", "results"} <= set(parameters)
    for parameter in parameters.values():
        assert parameter["inferred_type_name"] in ("str", "int", "float", "bool"), parameter
        assert len(parameter["help"]) > 10, parameter


@pytest.mark.parametrize(
    "profile", sorted(ROOT.glob("workflow/profiles/*.yaml")), ids=lambda path: path.stem
)
def test_profiles_name_chapters_and_their_parameters(profile):
    given = yaml.safe_load(profile.read_text(encoding="utf-8"))
    assert set(given) == set(CHAPTERS)
    for name, values in given.items():
        known = papermill.inspect_notebook(CHAPTERS[name])
        assert set(values) <= set(known) - {"results", "store"}
        for parameter, value in values.items():
            assert type(value).__name__ == known[parameter]["inferred_type_name"], parameter


def run(chapter: str, parameter: str, value: str, folder: Path) -> str:
    """The one sentence in which a chapter refuses a value; `folder` is where it is run."""
    store = folder / "store"
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(CHAPTERS[chapter])]
    command += ["out.ipynb", "-p", parameter, value]
    start = time.monotonic()
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"RRLIB_STORE": str(store)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    took = time.monotonic() - start
    said = [line for line in done.stderr.splitlines() if line.startswith("InputError: ")]
    assert done.returncode != 0 and len(said) == 1, done.stderr[-2000:]
    # "1,2" may come back as the numbers it was read as: (1.0, 2.0).
    plain = said[0].replace(".0", "").replace(", ", ",")
    assert said[0].endswith(".") and (value in said[0] or value in plain), said[0]
    assert "Traceback" not in done.stderr.partition("Exception encountered at")[2], done.stderr
    assert took < 10, f"took {took:.1f} s"
    assert not store.exists() or not list(store.iterdir())
    return said[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("chapter", "parameter", "value", "words"),
    [(name, *case) for name in CHAPTERS for case in BAD.get(name, [])],
)
def test_a_bad_parameter_stops_a_chapter(tmp_path, chapter, parameter, value, words):
    (tmp_path / "file").touch()
    value = value.replace("FILE", str(tmp_path / "file"))
    said = run(chapter, parameter, value, tmp_path)
    assert parameter in said and any(word in said for word in words.split("|")), said
    assert {path.name for path in tmp_path.iterdir()} <= {"file", "out.ipynb", "store"}


@pytest.mark.slow
@pytest.mark.parametrize("fault", DATASETS)
@pytest.mark.parametrize("chapter", [name for name in READS_DATASETS if name in CHAPTERS])
def test_a_bad_dataset_stops_a_chapter(tmp_path, chapter, fault):
    path = tmp_path / f"{fault}.hdf5"
    if fault == "text":
        path.write_text("no HDF5")
    elif fault != "missing":
        write_faulty(path, fault)
    run(chapter, "dataset_path", str(path), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [("rewards", "lacks the key '/rewards'"), ("robot", "allowed is M x 11"), ("height", "height")],
)
@pytest.mark.parametrize("half", ["base_path", "expert_path"])
def test_a_bad_dataset_stops_a_locomotion_chapter(tmp_path, half, fault, words):
    path = tmp_path / f"{fault}.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = np.zeros((100, 17 if fault == "robot" else 11), np.float32)
        file["actions"] = np.zeros((100, 6 if fault == "robot" else 3), np.float32)
        for name in ("rewards", "terminals", "timeouts"):
            if name != fault:
                file[name] = np.zeros(100, np.float32)
    assert words in run("09_locomotion_steering", half, str(path), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("chapter", ["11_safe_sampler", "12_image_rewards"])
def test_an_image_chapter_takes_pipelines_of_your_own(tmp_path, chapter):
    size = miniature.Size(pixels=16, vae=(8, 16), unet=(16, 32), text=16, layers=1)
    for seed in (0, 1):
        own = miniature.pipeline(size, scenes.WORDS, seed)
        pipelines.save_pipeline(own, tmp_path / f"model{seed}")
    lines = [f'"{prompt}",x' for prompt in scenes.prompts(50, 0)]
    (tmp_path / "own.csv").write_text("\n".join(["prompt,kind", *lines]), encoding="utf-8")
    given = {"model_id": "model0", "prompts": "own.csv", "steps": "3", "results": "out"}
    if chapter == "11_safe_sampler":
        given |= {"configurations": "max", "n_prompts": "10", "stored": "1"}
        wanted = "image-samplers"
    else:
        given |= {"expert_id": "model1", "n_prompts": "50", "reward_steps": "2"}
        wanted = "images"
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(CHAPTERS[chapter])]
    command += ["out.ipynb", *(part for pair in given.items() for part in ("-p", *pair))]
    environment = os.environ | {"RRLIB_STORE": str(tmp_path / "store")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "out" / f"{wanted}.json").read_text(encoding="utf-8"))
    assert found["summary"] and "hazard_top" not in found["summary"]  # the truth is not known
    if chapter == "12_image_rewards":
        reward = image_pairs.load(tmp_path / "out" / "images-safe.safetensors")
        assert len(reward.about["held_out"]) == found["summary"]["judged_prompts"] == 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "words"),
    [("folder", "model_index.json"), ("schedule", "beta_end"), ("prompt", "tokens")],
)
def test_what_cannot_be_compared_stops_an_image_chapter(tmp_path, fault, words):
    size = miniature.Size(pixels=16, vae=(8, 16), unet=(16, 32), text=16, layers=1)
    own = miniature.pipeline(size, scenes.WORDS, 0)
    pipelines.save_pipeline(own, tmp_path / "model0")
    own.scheduler = DDIMScheduler.from_config(own.scheduler.config, beta_end=0.02)
    pipelines.save_pipeline(own, tmp_path / "model1")
    text = "red " * (99 if fault == "prompt" else 1)
    (tmp_path / "own.csv").write_text(f"prompt\n{text}\n", encoding="utf-8")
    given = {"prompts": "own.csv", "model_id": "model0", "reward_steps": 2}
    given |= {"folder": {"model_id": "store"}, "schedule": {"expert_id": "model1"}}.get(fault, {})
    chosen = rules_of(given)
    (tmp_path / "store").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        with pytest.raises(InputError, match=words):
            image_experiments.world(chosen)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"configuration": "weak"},
            "configuration='weak' is not allowed with reward_steps=0: 'max'",
        ),
        ({"steps": 20}, "steps=20 is not allowed with reward_steps=0: 25"),
        ({"dtype": "float16"}, "dtype='float16' is not allowed without a model_id"),
        ({"expert_id": "x"}, "expert_id='x' is not allowed without a model_id"),
        ({"model_id": "x"}, "model_id='x' is not allowed without prompts"),
        ({"reward_steps": 5, "n_prompts": 12}, "held_out=0.15 of 12 prompts is not allowed"),
    ],
)
def test_what_the_books_reward_does_not_fit_is_refused(given, words):
    chosen = rules_of(given)
    with pytest.raises(InputError, match=words):
        image_experiments.check(image_experiments.world(chosen), chosen)


def rules_of(given: dict) -> SimpleNamespace:
    """Parameters of chapter 12, as its rules return them."""
    known = papermill.inspect_notebook(CHAPTERS["12_image_rewards"])
    defaults = {name: ast.literal_eval(entry["default"]) for name, entry in known.items()}
    return SimpleNamespace(**defaults | given)


def write_faulty(path: Path, fault: str, size: int = 1000) -> None:
    """A maze dataset in D4RL's layout with one fault."""
    arrays = {
        "observations": np.zeros((size, 4 if fault != "width" else 3), np.float32),
        "actions": np.zeros((size if fault != "lengths" else size - 1, 2), np.float32),
        "rewards": np.zeros(size, np.float32),
        "terminals": np.zeros(size, bool),
        "timeouts": np.arange(size) % 100 == 99,
    }
    if fault == "nan":
        arrays["observations"][7, 1] = np.nan
    if fault == "no_actions":
        del arrays["actions"]
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
