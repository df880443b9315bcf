"""Every chapter explains its parameters, and stops at once, in one sentence, at a wrong one."""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import h5py
import nbformat
import numpy as np
import papermill
import pytest
import yaml
from diffusers import DDIMScheduler
from papermill.cli import _resolve_type
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from rrlib.errors import InputError
from rrlib.images import pairs as image_pairs
from rrlib.images import pipelines
from rrlib.images.miniature import pipeline as miniature
from rrlib.images.miniature import scenes
from rrlib.lab import costs
from rrlib.lab.images import experiments as image_experiments

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = {path.stem: path for path in sorted(ROOT.glob("notebooks/*.ipynb"))}

# Parameter, value, and what the sentence must hold besides the value. FILE/sub lies under a file
# and so can be written by nobody, root included.
COMMON = [
    ("sed", "1", "seed"),
    ("seed", "-1", "from 0"),
    ("seed", "zero", "an integer"),
    ("seed", "4294967296", "from 0 to 4294967295"),
    ("seed", "1.5", "an integer"),
    ("seed", "True", "an integer"),
    ("device", "cuda:99", "cpu"),
    ("device", "abacus", "cpu"),
    ("results", "FILE/sub", "written"),
    ("store", "FILE/sub", "written"),
    ("results", "/", "names the profile"),
    ("results", "~nosuchuser/x", "home directory"),
    ("store", "loop", "written"),
    ("rules", "5", "the parameters here are"),
    ("_hidden", "5", "the parameters here are"),
    ("_parameters_checked", "5", "the parameters here are"),
    ("In", "5", "the parameters here are"),
]
MAZE = [
    ("maze", "spiral", "open, umaze, medium, large"),
    ("mazes", "open", "maze"),
    ("n_goals", "0", "from 1"),
    ("goal", "0,0", "goal"),
    ("goal", "99,1", "goal"),
    ("goal", "somewhere", "goal"),
    ("horizon", "33", "multiple of"),
    ("horizon", "0", "horizon"),
    ("horizon", "36", "multiple of 32"),
    ("size", "huge", "small, medium, paper"),
    ("diffuser_steps", "-1", "from"),
    ("episodes", "0", "from"),
    ("episodes", "1000000000", "GB of memory"),
    ("horizon", "1000000", "days"),
    ("maze_sizes", "5", "the parameters here are"),
]
DATASETS = ["missing", "text", "no_actions", "lengths", "nan", "width"]
LOCOMOTION = [
    *COMMON,
    ("environment", "ant", "halfcheetah, hopper, walker2d"),
    ("base_kind", "simple", "medium-replay"),
    ("transitions", "0", "from 5000"),
    ("size", "huge", "small, medium, paper"),
    ("diffuser_steps", "0", "from 1"),
    ("n_seeds", "0", "from 1"),
    ("steps", "1001", "to 1000"),
    ("executed", "33", "32 actions"),
    ("denoising", "11", "from 2 to 10"),
    ("version", "3", "from 4 to 5"),
    ("workers", "1000000", "from 1 to"),
    ("transitions", "1000000000", "GB of memory"),
    ("diffuser_steps", "1000000000", "days"),
    ("os", "5", "the parameters here are"),
]
STEERING = [  # 11 and 12 share all other rules with 10
    ("sed", "1", "seed"),
    ("environment", "ant", "halfcheetah, hopper, walker2d"),
    ("denoising", "11", "from 2 to 10"),
    ("weights", "-1", "from 0"),
    ("weights", "nan", "from 0"),
    ("untils", "10", "from 0 to 9"),
    ("reward_steps", "0", "from"),
    ("weights", "1e9", "to 1000"),
    ("kernel", "5", "the parameters here are"),
]
BAD = {
    "01_ornstein_uhlenbeck": [*COMMON, ("paths", "0", "from 100")],
    "02_existence_uniqueness": [*COMMON, ("paths", "0", "from 1000")],
    "03_conservative_projection": [
        *COMMON,
        ("pool", "0", "from 1"),
        ("steps", "-1", "from 1"),
    ],
    "04_gaussians": [
        *COMMON,
        ("steps", "-1", "from 1"),
        ("sweep_steps", "0", "from 1"),
        ("weight", "-1.0", "number"),
    ],
    "05_maze_data": [*COMMON, *MAZE],
    "06_maze_rewards": [
        *COMMON,
        *MAZE,
        ("reward_steps", "-1", "from"),
        ("n_seeds", "0", "from 1"),
    ],
    "08_small_data": [
        *COMMON,
        ("maze", "spiral", "open, umaze, medium, large"),
        ("n_goals", "9", "from 1 to 8"),
        ("transitions", "20000", "10000, 100000"),
        ("n_seeds", "0", "from 1"),
        ("horizon", "36", "multiple of 32"),
        ("size", "huge", "small, medium, paper"),
        ("diffuser_steps", "0", "from 1"),
    ],
    "10_locomotion_data": LOCOMOTION,
    "11_locomotion_steering": [
        *STEERING,
        ("methods", "magic", "score, scalar"),
        ("methods", "none,short", "alone"),
    ],
    "12_locomotion_transfer": [*STEERING, ("kinds", "simple", "random, medium")],
    "13_safe_sampler": [
        ("sed", "1", "seed"),
        ("configurations", "mild", "weak, medium, strong, max"),
    ],
    "14_image_rewards": [
        ("sed", "1", "seed"),
        ("configuration", "mild", "weak, medium, strong, max"),
        ("prompts", "nowhere.csv", "existing file"),
        ("prompts", "/dev/zero", "existing file"),
        ("prompts", "a black cross above a red circle, " * 20, "name too long"),
        ("results", "1.5", "./ before it"),
        ("batch", "1000000000", "GB|days"),
        ("n_seeds", "0", "from 1 to 50"),
        ("defeats", "4", "from 5"),
        ("image_sizes", "5", "the parameters here are"),
    ],
    "15_using_rewards": [
        *COMMON,
        ("maze", "spiral", "open, umaze, medium, large"),
        ("n_goals", "1", "from 2"),
        ("horizon", "36", "multiple of 32"),
        ("size", "huge", "small, medium, paper"),
        ("balls", "1", "from 2"),
        ("denoising", "51", "from 2 to 50"),
        ("n_seeds", "0", "from 1"),
        ("particles", "1", "from 2"),
        ("selected", "0", "from 1"),
    ],
    "16_do_you_have_to_learn_it": [
        *COMMON,
        ("maze", "spiral", "open, umaze, medium, large"),
        ("samples", "5", "from 20"),
        ("fit_steps", "0", "from 1"),
        ("plans", "0", "from 20"),
        ("levels", "1", "from 2"),
        ("horizon", "36", "multiple of 32"),
        ("pictures", "398", "from 40 to 397"),
        ("picture_levels", "1", "from 2"),
        ("robot_steps", "0", "from 5000"),
    ],
    "17_the_reward_as_a_reward": [
        *COMMON,
        ("worlds", "spiral", "pointmaze, hopper"),
        ("balls", "1", "from 10"),
        ("robots", "0", "from 2"),
        ("environment", "ant", "halfcheetah, hopper, walker2d"),
        ("transitions", "0", "from 5000"),
        ("cloning_steps", "0", "from 1"),
    ],
    "07_maze_grid": [
        *[bad for bad in COMMON if bad[1] != "cuda:99"],
        ("maze", "spiral", "open, umaze, medium, large"),
        ("n_seeds", "0", "from 1"),
        ("episodes", "0", "from 20"),
        ("plans", "1", "from 100"),
        ("rewards", "nowhere.safetensors", "exist"),
    ],
    "09_maze_choices": [
        *COMMON,
        *MAZE,
        ("choices", "window_5", "window_16"),
        ("choices", "x_t,x_t", "each once"),
        ("choices", "all,score", "alone"),
        ("reward_steps", "-1", "from"),
        ("n_seeds", "0", "from 1"),
    ],
}
READS_DATASETS = ("05_maze_data", "06_maze_rewards", "09_maze_choices")
READS_ROBOTS = ("10_locomotion_data", "11_locomotion_steering", "12_locomotion_transfer")


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


def session(chapter: str, **given: object) -> SimpleNamespace:
    """What a chapter makes of parameters: its cells up to the last that checks them, run here.

    They are put in and run as papermill and IPython do, whose history a chapter reads.
    """
    book = load_notebook_node(str(CHAPTERS[chapter]))
    book = parameterize_notebook(book, given, kernel_name="python3", language="python")
    sources = [cell.source for cell in book.cells if cell.cell_type == "code"]
    last = next(k for k, source in enumerate(sources) if "rules.check(" in source)
    if CHECKS_MODELS_OR_FILES & {sources[last + 1].partition("\n\n")[2].partition("(")[0]}:
        last += 1
    history = [""]
    names = {"__name__": "__main__", "In": history, "_ih": history, "Out": {}, "DATA": "their own"}
    for source in sources[: last + 1]:
        history.append(source)
        exec(source, names)
    return names["chosen"]


CHECKS_MODELS_OR_FILES = {
    "world = image_experiments.world",
}

CHECKS_AT_ONCE = {"\npresets.check(chosen"}  # in the cell of the rules


def refusal(chapter: str, **given: object) -> str:
    """The one sentence in which a chapter refuses parameters."""
    with pytest.raises(InputError) as caught:
        session(chapter, **given)
    said = str(caught.value)
    assert said.endswith(".") and "\n" not in said and len(said) < 1000, said
    return said


def typed(value: str) -> object:
    """A value of papermill's command line, as papermill reads it."""
    return _resolve_type(value)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder to run a chapter in, and its store."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RRLIB_STORE", str(tmp_path / "store"))
    return tmp_path


def test_chapters_are_checked_to_where_they_read_files():
    """The cell after the rules is run, too, wherever it checks."""
    for name in ("05_maze_data", "10_locomotion_data", "13_safe_sampler"):
        book = nbformat.read(CHAPTERS[name], as_version=4)
        second, third = [cell.source for cell in book.cells if cell.cell_type == "code"][1:3]
        at_once = any(check in second for check in CHECKS_AT_ONCE)
        assert at_once or any(check in third for check in CHECKS_MODELS_OR_FILES)


@pytest.mark.parametrize(
    ("chapter", "parameter", "value", "words"),
    [(name, *case) for name in CHAPTERS for case in BAD.get(name, [])],
)
def test_a_bad_parameter_stops_a_chapter(place, chapter, parameter, value, words):
    (place / "file").touch()
    (place / "loop").symlink_to("loop")
    value = value.replace("FILE", str(place / "file"))
    said = refusal(chapter, **{parameter: typed(value)})
    assert parameter in said and any(word in said for word in words.split("|")), said
    # "1,2" may come back as the numbers it was read as, (1.0, 2.0); a long text is cut.
    plain = said.replace(".0", "").replace(", ", ",")
    assert value[:29] in said or str(typed(value)) in said or value in plain, said
    assert {path.name for path in place.iterdir()} == {"file", "loop"}


@pytest.mark.lengthy
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_number_has_two_ends(place, chapter):
    """10^9, 2^70 and 400 digits are refused, with what they would cost where that can be said."""
    known = papermill.inspect_notebook(CHAPTERS[chapter])
    assert session(chapter)
    for name, about in known.items():
        huge = (2**70, 10**400, -1) + (10**9,) * (name != "seed")
        for value in huge if about["inferred_type_name"] == "int" else ():
            said = refusal(chapter, **{name: value})
            assert said.startswith(f"{name}=") and " from " in said, said
            if value == 10**9 and name not in LIMITED:
                assert "it would take about" in said, said
        for value in (10**400, float("nan"), float("inf"), -1, -0.001):
            if about["inferred_type_name"] == "float":
                said = refusal(chapter, **{name: value})
                assert said.startswith(f"{name}=") and "a number from" in said, said


# Their ends are those of the method, or of the machine, and no matter of cost.
LIMITED = {"n_goals", "n_seeds", "steps", "executed", "denoising", "version", "workers", "rounds"}


@pytest.mark.parametrize("profile", sorted(ROOT.glob("workflow/profiles/*.yaml")), ids=str)
def test_every_profile_passes_the_rules(place, monkeypatch, profile):
    """On a GPU where one is named, and in 16 GB."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr(costs, "memory", lambda: 16.0)
    given = yaml.safe_load(profile.read_text(encoding="utf-8"))
    for name, values in given.items():
        assert session(name, **values, results=f"out/{profile.stem}")


def test_numbers_that_are_too_much_together_are_refused(place, monkeypatch):
    monkeypatch.setattr(costs, "memory", lambda: 4.0)
    said = refusal("05_maze_data", episodes=100_000)
    named = "n_goals=2, episodes=100000, horizon=32, diffuser_steps=4000, resamplings=0, plans=500"
    assert said.startswith(f"{named} are not")
    assert "about 6.0 GB of memory" in said and "this machine has 4.0 GB" in said
    assert session("05_maze_data", episodes=60_000).episodes == 60_000
    days = {"n_goals": 8, "size": "paper", "diffuser_steps": 500_000, "horizon": 256}
    said = refusal("05_maze_data", maze="open,umaze,medium,large", **days)
    assert "days; 31 days are the most" in said, said


@pytest.mark.parametrize("name", ["results", "store", "dataset_path"])
@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("x" * 300, "File name too long"),
        ("~nosuchuser/x", "home directory"),
        ("loop/x", "symbolic links|Symlink loop"),
        ("closed/x", "Permission denied"),
        ("a\0b", "null"),
        ("\udcff", "surrogates"),
        (True, "needed"),
        (None, "needed"),
        (["x"], "needed"),
        (0.5, "./ before it"),
    ],
)
def test_a_path_that_cannot_be_looked_at_is_refused(place, monkeypatch, name, value, words):
    (place / "loop").symlink_to("loop")
    see = os.stat

    def stat(path, **more):
        if "closed" in str(path):
            raise PermissionError(13, "Permission denied", str(path))
        return see(path, **more)

    monkeypatch.setattr(os, "stat", stat)
    said = refusal("05_maze_data", **{name: value})
    assert said.startswith(f"{name}=") and any(word in said for word in words.split("|")), said


def test_a_whole_number_is_a_name(place):
    assert session("01_ornstein_uhlenbeck", results=2026).results == str(place / "2026")
    assert session("13_safe_sampler", concept=5).concept == "5"


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_what_papermill_did_not_put_in_is_no_parameter(place, chapter):
    """`DATA` is there in every session here, as by a start-up file of IPython's."""
    assert session(chapter, seed=1).seed == 1


@pytest.mark.slow  # a kernel for each
@pytest.mark.parametrize("chapter", CHAPTERS)
def test_papermill_ends_in_the_one_sentence(tmp_path, chapter):
    """What is tried in process above holds on the whole way, with names of a user's own about."""
    startup = tmp_path / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "own.py").write_text("DATA = 'their own'; rules = 1")
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(CHAPTERS[chapter])]
    own = {"RRLIB_STORE": str(tmp_path / "store"), "IPYTHONDIR": str(startup.parent.parent)}
    done = subprocess.run(
        [*command, str(tmp_path / "out.ipynb"), "-p", "sed", "1"],
        cwd=tmp_path,
        env=os.environ | own,
        capture_output=True,
        text=True,
    )
    said = [line for line in done.stderr.splitlines() if line.startswith("InputError: ")]
    assert done.returncode != 0 and len(said) == 1, done.stderr[-2000:]
    assert said[0].startswith("InputError: sed=1 is not allowed: the parameters here are ")
    assert said[0].endswith("(did you mean seed?).")
    assert "Traceback" not in done.stderr.partition("Exception encountered at")[2], done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"ipython", "out.ipynb"}


@pytest.mark.parametrize("fault", DATASETS)
@pytest.mark.parametrize("chapter", READS_DATASETS)
def test_a_bad_dataset_stops_a_chapter(place, chapter, fault):
    path = place / f"{fault}.hdf5"
    if fault == "text":
        path.write_text("no HDF5")
    elif fault != "missing":
        write_faulty(path, fault)
    assert path.name in refusal(chapter, dataset_path=str(path))


@pytest.mark.parametrize(
    ("fault", "words"),
    [("rewards", "lacks the key '/rewards'"), ("robot", "allowed is M x 11"), ("height", "height")],
)
@pytest.mark.parametrize("half", ["base_path", "expert_path"])
@pytest.mark.parametrize("chapter", READS_ROBOTS)
def test_a_bad_dataset_stops_a_locomotion_chapter(place, chapter, half, fault, words):
    path = place / f"{fault}.hdf5"
    with h5py.File(path, "w") as file:
        file["observations"] = np.zeros((100, 17 if fault == "robot" else 11), np.float32)
        file["actions"] = np.zeros((100, 6 if fault == "robot" else 3), np.float32)
        for name in ("rewards", "terminals", "timeouts"):
            if name != fault:
                file[name] = np.zeros(100, np.float32)
    said = refusal(chapter, **{half: str(path)})
    assert words in said and path.name in said


@pytest.mark.slow
@pytest.mark.parametrize("chapter", ["13_safe_sampler", "14_image_rewards"])
def test_an_image_chapter_takes_pipelines_of_your_own(tmp_path, chapter):
    size = miniature.Size(pixels=16, vae=(8, 16), unet=(16, 32), text=16, layers=1)
    for seed in (0, 1):
        own = miniature.pipeline(size, scenes.WORDS, seed)
        pipelines.save_pipeline(own, tmp_path / f"model{seed}")
    lines = [f'"{prompt}",x' for prompt in scenes.prompts(50, 0)]
    (tmp_path / "own.csv").write_text("\n".join(["prompt,kind", *lines]), encoding="utf-8")
    given = {"model_id": "model0", "prompts": "own.csv", "steps": "3", "results": "out"}
    if chapter == "13_safe_sampler":
        given |= {"configurations": "max", "n_prompts": "10", "stored": "1"}
        wanted = "image-samplers"
    else:
        given |= {"expert_id": "model1", "n_prompts": "50", "reward_steps": "2", "steered": "10"}
        wanted = "images"
    command = [sys.executable, "-m", "papermill", "--no-progress-bar", str(CHAPTERS[chapter])]
    command += ["out.ipynb", *(part for pair in given.items() for part in ("-p", *pair))]
    environment = os.environ | {"RRLIB_STORE": str(tmp_path / "store")}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "out" / f"{wanted}.json").read_text(encoding="utf-8"))
    assert found["summary"] and "hazard_top" not in found["summary"]  # the truth is not known
    if chapter == "14_image_rewards":
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
        ({"n_seeds": 3}, "n_seeds=3 is not allowed with reward_steps=0: 1 is needed"),
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
    """Parameters of chapter 14, as its rules return them."""
    known = papermill.inspect_notebook(CHAPTERS["14_image_rewards"])
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
