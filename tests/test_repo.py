"""The repository: pins, floors, settings, licence, and the form of the committed chapters."""

import ast
import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
import yaml
from normalise import written
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import rrlib
from rrlib import host

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted(ROOT.glob("notebooks/*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
FLOORS = [
    {"errors", "host"},
    {"disk", "costs"},
    {"tensor_files"},
    {
        "results",
        "store",
        "metrics",
        "plots",
        "maze_sizes",
        "locomotion_sizes",
        "image_sizes",
        "perceptron",
    }
    | {"denoisers", "rewards", "training", "trajectories", "pipelines", "shards"},
    {"rules", "maze", "locomotion", "images", "scenes", "miniature", "sde", "fields"}
    | {"reward_files", "image_rewards", "image_weights"},
    {"extraction", "steering", "rotation", "image_extraction"},
    {"notebook", "recipes", "planning", "rollouts", "gaits", "maze_evidence", "image_pairs"}
    | {"image_evidence", "image_checks"},
    {"maze_recipes", "locomotion_recipes", "image_recipes"},
    {"maze_experiments", "locomotion_rewards", "image_pools"},
    {"locomotion_experiments", "locomotion_evidence", "image_experiments"},
    {"locomotion_files"},
]
# Distributions whose import has another name.
MODULES = {
    "gymnasium-robotics": "gymnasium_robotics",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
}
PLANNERS = "steered", "unsteered", "expert"
UNPICKLERS = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}


def pins() -> dict[str, str]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    found = dict(line.partition("#")[0].strip().split("==") for line in lines)
    assert len(found) == len(lines)
    return found


def code() -> Iterator[tuple[str, ast.Module]]:
    """Every piece of Python here, the chapters' cells included."""
    for folder in ("rrlib", "tests", "workflow"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            yield f"{folder}/{path.name}", ast.parse(path.read_text(encoding="utf-8"))
    for path in CHAPTERS:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code":
                yield path.name, ast.parse(cell.source)


def imports(tree: ast.Module) -> set[str]:
    """Full names of what is imported, `from a import b` as both a and a.b."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


CLOCKS = re.compile(r"\b(perf_counter|monotonic|process_time|time\.time|sleep|Timer|timeit)\b")
# It waits for other processes; nothing there depends on how long that takes.
WAITING = {"test_store.py"}


def test_nothing_that_is_compared_reads_a_clock():
    """Other work on a machine makes no test red: costs are counted, and timed for show alone."""
    reads = {
        path.name
        for path in sorted((ROOT / "tests").glob("*.py"))
        if path.name != Path(__file__).name and CLOCKS.search(path.read_text(encoding="utf-8"))
    }
    assert reads <= WAITING, reads - WAITING
    for path in CHAPTERS:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type != "code" or "nbval-ignore-output" in cell.metadata.get("tags", []):
                continue
            lines = [line for line in cell.source.splitlines() if "import" not in line]
            assert not CLOCKS.search("\n".join(lines)), f"{path.name}: {cell.source}"


# Pins ------------------------------------------------------------------------------------------


def test_the_lock_holds_exact_public_pins():
    for name, version in pins().items():
        assert name == canonicalize_name(name)
        assert re.fullmatch(r"\d+(\.\d+)*(\.?(post|rc|a|b)\d+)?", version), f"{name}=={version}"


def test_the_lock_satisfies_every_range():
    pinned = pins()
    extras = PROJECT["optional-dependencies"]
    assert set(extras) == {"book", "test", "rl"}  # rl trains what is shipped; nothing here needs it
    for text in [*PROJECT["dependencies"], *extras["book"], *extras["test"]]:
        requirement = Requirement(text)
        version = pinned[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, f"{text} is pinned to {version}"


def test_conda_users_get_the_same_pins():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert environment["name"] == "rrlib"
    python, pip, packages = environment["dependencies"]
    assert python.removeprefix("python=") in SpecifierSet(PROJECT["requires-python"])
    assert pip == "pip" and packages == {"pip": ["-r requirements.lock", "-e ."]}


def test_rrlib_imports_only_what_it_declares():
    declared = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    modules = {MODULES.get(name, name) for name in declared}
    # IPython is there wherever a notebook runs, and only notebook's card uses it.
    allowed = modules | {"rrlib", "IPython"} | sys.stdlib_module_names
    for path in sorted((ROOT / "rrlib").glob("*.py")):
        roots = {name.partition(".")[0] for name in imports(ast.parse(path.read_text("utf-8")))}
        assert roots <= allowed, f"{path.name}: {roots - allowed}"


# The house -------------------------------------------------------------------------------------


def test_rooms_import_only_from_floors_below():
    floor = {room: height for height, rooms in enumerate(FLOORS) for room in rooms}
    for path in sorted((ROOT / "rrlib").glob("[!_]*.py")):
        assert path.stem in floor, f"{path.name} is on no floor"
        for name in imports(ast.parse(path.read_text(encoding="utf-8"))):
            if name.startswith("rrlib.") and (room := name.split(".")[1]) in floor:
                assert floor[room] < floor[path.stem], f"{path.stem} imports {room}"


def test_nothing_here_unpickles():
    for name, tree in code():
        roots = {module.partition(".")[0] for module in imports(tree)}
        assert not roots & UNPICKLERS, f"{name} imports {roots & UNPICKLERS}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr in ("load", "save"):
                is_torch = isinstance(node.value, ast.Name) and node.value.id == "torch"
                assert not is_torch, f"{name} uses torch.{node.attr}, which pickles"
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                allowed = isinstance(node.value, ast.Constant) and node.value.value is False
                assert allowed, f"{name} allows pickles"


def test_make_exports_the_settings_of_host():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    exported = dict(re.findall(r"^export (\w+) := (\S+)$", makefile, flags=re.MULTILINE))
    assert exported.items() >= host.SETTINGS.items()
    assert set(exported) <= set(host.SETTINGS) | {
        "ATEN_CPU_CAPABILITY",
        "ONEDNN_MAX_CPU_ISA",
        "MKL_CBWR",
    }


def test_licence_and_citation():
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert citation["license"] == "MIT" == PROJECT["license"]
    assert citation["version"] == rrlib.__version__


# Chapters --------------------------------------------------------------------------------------


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request: pytest.FixtureRequest) -> nbformat.NotebookNode:
    return nbformat.read(request.param, as_version=4)


def code_cells(chapter: nbformat.NotebookNode) -> list:
    return [cell for cell in chapter.cells if cell.cell_type == "code"]


def tags(cell: nbformat.NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def test_parameters_come_first_and_are_literals(chapter):
    first, second, *rest = code_cells(chapter)
    assert tags(first) == ["parameters"]
    assert not any("parameters" in tags(cell) for cell in (second, *rest))
    for line in ast.parse(first.source).body:
        assert isinstance(line, ast.AnnAssign), ast.unparse(line)
        ast.literal_eval(line.value)
    assert ".check(globals()" in second.source.replace("\n", "").replace(" ", "")


def test_outputs_are_stored_and_compared(chapter):
    cells = code_cells(chapter)
    # nbval compares nothing in a cell that was never executed.
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    known = {"parameters", "nbval-ignore-output", "hide-input", "remove-input", "hide-output"}
    assert {tag for cell in cells for tag in tags(cell)} <= known
    compared = [cell for cell in cells if "nbval-ignore-output" not in tags(cell)]
    assert any(output.output_type == "stream" for cell in compared for output in cell.outputs)


def test_the_last_cell_is_the_provenance_card(chapter):
    last = code_cells(chapter)[-1]
    assert "provenance(" in last.source and tags(last) == ["nbval-ignore-output"]


def test_figures_have_caption_and_alternative_text(chapter):
    for cell in code_cells(chapter):
        drawn = any("image/png" in output.get("data", {}) for output in cell.outputs)
        shown = cell.metadata.get("mystnb", {})
        assert bool(shown.get("image", {}).get("alt")) == drawn, cell.source
        assert bool(shown.get("figure", {}).get("caption")) == drawn, cell.source


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_chapters_are_in_normal_form(path):
    text = path.read_text(encoding="utf-8")
    assert written(nbformat.reads(text, as_version=4)) == text, "run `make accept`"
    assert str(ROOT) not in text and str(Path.home() / "") not in text


def published(study: str) -> dict[str, float]:
    text = (ROOT / f"results/full/{study}.json").read_text(encoding="utf-8")
    entries = json.loads(text)["summary"].items()
    return {k: v["value"] if isinstance(v, dict) else v for k, v in entries}


def test_the_readmes_numbers_are_the_published_ones():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = published("maze2d") | published("maze2d-use")
    small = published("maze2d_small_data")
    n, few = found["n"], small["n"]
    success = {k: f"{100 * found[f'{k}_success']:.1f} %" for k in PLANNERS}
    rows = [
        f"expert's goal | 125 of 160 | {round(found['goal_found'] * n)} of {n} |",
        f"within half a cell | | {round(found['goal_found_strict'] * n)} of {n} |",
        f"18 of 24 | {round(small['goal_found'] * few)} of {few} |",
        f"held out | 83.8 % | {100 * found['logreg_mean']:.1f} % |",
        f"| {success['steered']} ({success['unsteered']}, {success['expert']}) |",
        f"{found['hours']:.1f} hours of one CPU core |",
    ]
    robots, moved = published("locomotion"), published("locomotion-transfer")
    names = "hopper", "halfcheetah", "walker2d"
    gains = ", ".join(f"{robots[name + '.gain']:.0f}" for name in names)
    elsewhere = ", ".join(f"{moved[name + '.gain_seed']:.0f}" for name in names)
    rows += [
        f"| 9.6, 4.2, 36.2 % | {gains} % |",
        f"| 9.1, 4.2, 39.3 % | {elsewhere} % |",
        f"closed | a few per cent | {100 * robots['gap_closed']:.0f} % |",
    ]
    seen = {name: f"{100 * value:.1f} %" for name, value in published("images").items()}
    rows += [
        f"prompts held out | over 90 %, in training | {seen['accuracy']} |",
        f"highest tenth by reward | | {seen['hazard_bottom']}, {seen['hazard_top']} |",
        f"steered by the reward | | {seen['base_hazard']}, {seen['steered_hazard']} |",
        f"fine-tune told apart by the reward, prompts held out | | {seen['style_accuracy']} |",
    ]
    for row in rows:
        assert row in text, row
