"""The repository: pins, floors, settings, licence, and the form of the committed chapters."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import headline
import nbformat
import pytest
import quoted
import yaml
from nbval.plugin import get_sanitize_patterns
from normalise import written
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import rrlib
from rrlib.lab import environment as host

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = sorted(ROOT.glob("notebooks/*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Distributions whose import has another name.
MODULES = {
    "gymnasium-robotics": "gymnasium_robotics",
    "pillow": "PIL",
    "scikit-learn": "sklearn",
}
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
    """Full names of what is imported absolutely, `from a import b` as both a and a.b."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


CLOCKS = re.compile(r"\b(perf_counter|monotonic|process_time|time\.time|sleep|Timer|timeit)\b")


def test_nothing_that_is_compared_reads_a_clock():
    """Other work on a machine makes no test red: costs are counted, and timed for show alone."""
    for path in sorted((ROOT / "tests").glob("*.py")):
        for line in path.read_text(encoding="utf-8").splitlines():
            # A clock that is replaced is not read.
            if path.name != Path(__file__).name and "monkeypatch.setattr(" not in line:
                assert not CLOCKS.search(line), f"{path.name}: {line}"
    for path in CHAPTERS:
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type != "code" or "nbval-ignore-output" in cell.metadata.get("tags", []):
                continue
            lines = [line for line in cell.source.splitlines() if "import" not in line]
            assert not CLOCKS.search("\n".join(lines)), f"{path.name}: {cell.source}"


def test_what_a_push_runs_are_targets_of_the_makefile():
    """The commands, and a tag's, are those that a reader has."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    asked = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))
    lines = [step.get("run", "") for job in asked["jobs"].values() for step in job["steps"]]
    made = {line.split()[1] for line in lines if line.startswith("make ")}
    assert made == {"test", "smoke", "release", "book"} and made <= targets
    versions = asked["jobs"]["test"]["strategy"]["matrix"]["python"]
    assert all(SpecifierSet(PROJECT["requires-python"]).contains(v) for v in versions)


# Pins ------------------------------------------------------------------------------------------


def test_the_lock_holds_exact_public_pins():
    for name, version in pins().items():
        assert name == canonicalize_name(name)
        assert re.fullmatch(r"\d+(\.\d+)*(\.?(post|rc|a|b)\d+)?", version), f"{name}=={version}"


def test_the_lock_satisfies_every_range():
    pinned = pins()
    extras = PROJECT["optional-dependencies"]
    # browser: to look at pages; rl: to make what is shipped.
    assert set(extras) == {"book", "test", "browser", "rl", "lora"}
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


@pytest.mark.lengthy
def test_rrlib_imports_only_what_it_declares():
    declared = {canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]}
    modules = {MODULES.get(name, name) for name in declared}
    # IPython is there wherever a notebook runs, and only notebook's card uses it.
    allowed = modules | {"rrlib", "IPython"} | sys.stdlib_module_names
    for path in sorted((ROOT / "rrlib").rglob("*.py")):
        roots = {name.partition(".")[0] for name in imports(ast.parse(path.read_text("utf-8")))}
        assert roots <= allowed, f"{path.name}: {roots - allowed}"


# The house -------------------------------------------------------------------------------------


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    """What import-linter says of the package in a folder; it changes the logging of its process."""
    command = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"
    options = {"cwd": folder, "env": {**os.environ, "PYTHONPATH": str(folder)}}
    return subprocess.run(
        [sys.executable, "-c", command], **options, capture_output=True, text=True
    )


def test_the_method_is_read_in_six_files_and_no_file_is_long():
    """CONTRIBUTING names the six, 1 400 lines together; none of rrlib has more than 350."""
    house = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").partition("Read these first")[2]
    names = re.findall(r"^\| `(\w+\.py)` \|", house.partition("| package |")[0], re.MULTILINE)
    lines = {p: len(p.read_bytes().splitlines()) for p in (ROOT / "rrlib").rglob("*.py")}
    assert len(names) == 6
    assert sum(lines[ROOT / "rrlib" / "method" / name] for name in names) <= 1400
    assert not {path.name: n for path, n in lines.items() if n > 350}


@pytest.mark.lengthy
def test_the_house_keeps_its_import_rules():
    """They are in pyproject.toml, with their reasons."""
    told = lint_imports(ROOT)
    assert told.returncode == 0 and " 0 broken" in told.stdout, told.stdout + told.stderr


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("method/rewards", "from rrlib.plans import networks"),
        ("method/extraction", "from rrlib.lab import store"),
        ("mazes/world", "from rrlib.locomotion import world"),
        ("images/guided", "import rrlib.lab.environment"),
        ("theory/fields", "from rrlib.plans.trajectories import Trajectories"),
        ("lab/mazes/presets", "from rrlib.lab.images import presets"),
        ("errors", "from rrlib import disk"),
    ],
)
def test_a_broken_import_rule_is_seen(room, line, tmp_path):
    shutil.copytree(ROOT / "rrlib", tmp_path / "rrlib", ignore=shutil.ignore_patterns("*.safe*"))
    with (tmp_path / f"rrlib/{room}.py").open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    told = lint_imports(tmp_path)
    assert told.returncode == 1 and "BROKEN" in told.stdout, told.stdout + told.stderr


@pytest.mark.slow
def test_a_stranger_gets_no_settings_and_no_laboratory():
    """What is no part of the book's laboratory sets no variable of its user's process."""
    rooms = [p.relative_to(ROOT).with_suffix("") for p in sorted((ROOT / "rrlib").rglob("*.py"))]
    names = [
        ".".join(room.parts).removesuffix(".__init__") for room in rooms if "lab" not in room.parts
    ]
    code = "import os\nbefore = dict(os.environ)\n" + "".join(f"import {name}\n" for name in names)
    code += "import sys\nchanged = set(os.environ.items()) ^ set(before.items())\n"
    # Libraries of others may set what they like for themselves.
    code += f"print(sorted(name for name, _ in changed if name in {sorted(host.SETTINGS)}))\n"
    code += "print([name for name in sys.modules if name.startswith('rrlib.lab')])"
    bare = {name: value for name, value in os.environ.items() if name not in host.SETTINGS}
    told = subprocess.run([sys.executable, "-c", code], env=bare, capture_output=True, text=True)
    assert told.stdout.splitlines()[-2:] == ["[]", "[]"], told.stdout + told.stderr


@pytest.mark.lengthy
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
        "RRLIB_CPU",  # only with another PROFILE than quick
        "RRLIB_FRESH",  # only with FRESH=1
        "RRLIB_STORE",
    }


def make(*words: str) -> subprocess.CompletedProcess:
    """What make would do, nothing of it done."""
    # A make that runs these tests passes on what it was given.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    ours = {name: value for name, value in ours.items() if name != "MFLAGS"}
    command = ["make", "--dry-run", "--no-print-directory", *words]
    return subprocess.run(command, cwd=ROOT, env=ours, capture_output=True, text=True)


def test_only_the_quick_profile_is_held_to_shared_vector_units():
    command = ["make", "--no-print-directory", "told", "--eval=told: ; @env"]
    shells = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    vectors = {"ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR"} & set(host.SETTINGS)
    for more, wanted in (([], vectors), (["PROFILE=full"], {"RRLIB_CPU"})):
        told = subprocess.check_output([*command, *more], cwd=ROOT, env=shells, text=True)
        seen = {line.partition("=")[0] for line in told.splitlines()}
        assert seen & (vectors | {"RRLIB_CPU"}) == wanted


def test_fresh_empties_the_store_that_is_used_and_no_other():
    rule = "--eval=told: ; at $(RRLIB_STORE), fresh '$(RRLIB_FRESH)'"
    for goal in ("book", "test", "accept"):
        plain, fresh = (make(goal, "told", *more, rule).stdout for more in ([], ["FRESH=1"]))
        assert "_run/fresh" not in plain and "fresh ''" in plain
        assert "rm -rf _run/fresh\n" in fresh
        assert f"at {ROOT}/_run/fresh/artefacts, fresh '1'" in fresh


@pytest.mark.parametrize("value", ["2", "yes", "0", "1 1x"])
def test_fresh_has_one_value(value):
    refused = make("book", f"FRESH={value}")
    assert refused.returncode == 2
    assert f"FRESH='{value}' is not allowed: FRESH=1, or no FRESH, is needed" in refused.stderr


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
    assert [tag for tag in tags(first) if tag != "hide-input"] == ["parameters"]
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


def test_what_is_compared_of_a_cell_is_text(chapter):
    """Drawn pixels differ between CPUs: nbval leaves figures out, nbval.cfg films."""
    left_out = get_sanitize_patterns((ROOT / "notebooks/nbval.cfg").read_text())
    for cell in code_cells(chapter):
        for output in cell.outputs:
            for kind, shown in output.get("data", {}).items():
                if kind == "image/png" or "nbval-ignore-output" in tags(cell):
                    continue
                for pattern, replaced in left_out:
                    shown = re.sub(pattern, replaced, shown)
                assert "base64" not in shown and not kind.startswith("image/"), cell.source


def test_no_cell_is_longer_than_a_screen(chapter):
    assert max(len(cell.source.splitlines()) for cell in code_cells(chapter)) <= 25


def test_the_last_cell_is_the_provenance_card(chapter):
    last = code_cells(chapter)[-1]
    assert re.search(r"\bprovenance\(|\.close\(", last.source)
    assert {*tags(last)} - {"hide-input"} == {"nbval-ignore-output"}


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


def test_every_reference_has_an_address():
    """A DOI, an arXiv number, or a page of its own."""
    text = (ROOT / "book/references.bib").read_text(encoding="utf-8")
    entries = re.split(r"^@", text, flags=re.MULTILINE)[1:]
    assert len(entries) > 20
    address = r"^ *(doi = \{10\.\d+/|eprint = \{\d{4}\.\d{4,5}\}|url = \{https://)"
    for one in entries:
        assert re.search(address, one, flags=re.MULTILINE), one


def test_every_chapter_has_exercises_with_folded_answers():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = nbformat.read(path, as_version=4).cells
        text = "\n".join(c.source for c in cells if c.cell_type == "markdown")
        if path.stem[:2] > "14":  # to come
            continue
        assert "## Exercises" in text, path.name
        assert len(re.findall(r"\{admonition\} Answer\n:class: dropdown", text)) >= 2, path.name


def test_the_readme_has_the_first_pages_table():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert headline.renewed(readme) == readme, "run `python workflow/headline.py --write`"
    assert "_generated/headline.md" in (ROOT / "book/intro.md").read_text(encoding="utf-8")


def test_the_headline_is_read_from_the_files():
    table = headline.table()
    assert "{" not in table
    hours = 36 * 24 + 160 * 2  # the paper's: a day a diffuser, two hours a reward
    found = {name: quoted.read("full", name) for name in ("maze2d", "locomotion", "images")}
    for text in (
        f"125 of 160 | {quoted.said(found['maze2d'], 'goal_found', 'count+')} |",
        f"9.6 % | {quoted.said(found['locomotion'], 'hopper.gain', 'pc0+')} |",
        f"over 90 % | {quoted.said(found['images'], 'accuracy', '%1+')} |",
        f"{hours / 24:.0f} days of a P40 GPU | {quoted.said(found['maze2d'], 'time', 'h1')} hours",
    ):
        assert text in table
