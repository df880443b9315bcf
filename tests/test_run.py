"""The two commands: what a run depends on, what ends it, and what the shell may not change."""

import ast
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tomllib
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path

import chapter
import nbformat
import oldest
import pytest
import snakemake.cli
import watch
from nbformat.v4 import new_code_cell, new_notebook, new_output
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from run import show, store
from test_repo import imports, pins

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / "workflow"
SNAKEFILE = (WORKFLOW / "Snakefile").read_text(encoding="utf-8")
# Only a failing test waits so long.
GUARD = 300

# What a run depends on -------------------------------------------------------------------------

STUB = """import sys
from pathlib import Path
output = {output}
output.parent.mkdir(parents=True, exist_ok=True)
output.write_text("made")
"""
CHAPTERS = "01_theory", "10_locomotion_data", "14_image_rewards", "07_maze_grid"


# What builds the book, besides build_site.
BUILDERS = ["chapter_tables", "headline", "normalise", "picture", "quoted", "scoreboard", "watch"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout of four chapters that are quick to run, in a folder with a space in its name."""
    root = tmp_path / "my checkout"
    for path, text in {
        "workflow/Snakefile": SNAKEFILE,
        "workflow/profiles/quick.yaml": "".join(f"{name}: {{seed: 0}}\n" for name in CHAPTERS),
        "workflow/chapter.py": STUB.format(output="Path(sys.argv[2])"),
        "workflow/build_site.py": STUB.format(output="Path('html/index.html')"),
        **{f"workflow/{name}.py": "" for name in BUILDERS},
        **{f"notebooks/{name}.ipynb": "{}" for name in CHAPTERS},
        **{name: "" for name in ("_config.yml", "_toc.yml", "requirements.lock", "book/intro.md")},
        "rrlib/room.py": "",
        "rrlib/deep/room.py": "",
        "rrlib/locomotion/policies/hopper.safetensors": "",
        "rrlib/images/miniature/files/pipeline/unet/weights": "",
        "results/full/images-safe.safetensors": "",
        "results/full/maze2d-rewards.safetensors": "",
        "results/full/maze2d.json": "{}",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text, encoding="utf-8")
    return root


def graph(root: Path, folder: Path, *options: str, **config: str | int) -> None:
    """Snakemake as run.py calls it, in this process."""
    given = {"profile": "quick", "results": json.dumps(str(folder / "results"))} | config
    command = ["book", "--snakefile", str(root / "workflow" / "Snakefile"), *options]
    command += ["--directory", str(folder), "--nolock", "--profile", "none", "--config"]
    before = Path.cwd()
    try:
        with pytest.raises(SystemExit) as end:
            snakemake.cli.main([*command, *(f"{name}={value}" for name, value in given.items())])
    finally:
        os.chdir(before)
    assert not end.value.code


def due(root: Path, capfd: pytest.CaptureFixture) -> set[str]:
    """What the next run would make, chapters by their numbers."""
    capfd.readouterr()
    graph(root, root / "_run", "--dry-run", "--cores", "2")
    said = "".join(capfd.readouterr())
    return {Path(name).stem[:2] for name in re.findall(r"^ +output: (\S+)$", said, re.MULTILINE)}


@pytest.mark.lengthy
def test_a_run_makes_again_what_has_changed(checkout, capfd):
    graph(checkout, checkout / "_run", "--quiet", "--cores", "2")
    assert due(checkout, capfd) == set()
    book, everything = {"in"}, {name[:2] for name in CHAPTERS} | {"in"}
    for path, text, wanted in [
        ("results/full/maze2d.json", '{"accepted": 1}', {"07"} | book),  # stands beside its own
        ("results/full/new.json", "{}", book),
        ("workflow/watch.py", "# changed", book),
        ("rrlib/locomotion/policies/hopper.safetensors", "other", {"10"} | book),
        ("rrlib/images/miniature/files/pipeline/unet/weights", "other", {"14"} | book),
        ("results/full/images-safe.safetensors", "other", {"14"} | book),
        ("results/full/maze2d-rewards.safetensors", "other", {"07"} | book),
        ("rrlib/deep/room.py", "x = 1", everything),
        ("requirements.lock", "torch==1", everything),
    ]:
        changed = checkout / path
        before = changed.read_bytes() if changed.exists() else None
        changed.write_text(text, encoding="utf-8")
        assert due(checkout, capfd) == wanted, path
        changed.unlink() if before is None else changed.write_bytes(before)
    profile = checkout / "workflow/profiles/quick.yaml"
    profile.write_text(profile.read_text().replace("01_theory: {seed: 0}", "01_theory: {seed: 1}"))
    assert due(checkout, capfd) == {"01"} | book


def reached(names: set[str]) -> set[str]:
    """The rooms of rrlib that some imports lead to."""
    found: set[str] = set()
    while rooms := {name for name in names if name.startswith("rrlib.")} - found:
        found |= rooms
        paths = [ROOT / f"{room.replace('.', '/')}.py" for room in rooms]
        names = {name for path in paths if path.exists() for name in imported(path)}
    return found


@cache
def imported(path: Path) -> set[str]:
    return imports(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.lengthy
def test_the_graph_knows_what_shipped_files_chapters_read():
    told = ast.literal_eval(re.search(r"^SHIPPED = (\{.*?^\})", SNAKEFILE, re.M | re.S)[1])
    for path in sorted(ROOT.glob("notebooks/*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        code = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
        rooms = reached(imports(ast.parse(code)))
        wanted = set(re.findall(r"results/full/[\w*-]+\.safetensors", code))
        wanted |= {"rrlib/locomotion/policies/*"} if "rrlib.locomotion.world" in rooms else set()
        wanted |= {"shipped/MazeDiffuser/*/*"} if "rrlib.lab.mazes.recipes" in rooms else set()
        wanted |= (
            {"shipped/LocomotionDiffuser/*/*"} if "rrlib.lab.locomotion.recipes" in rooms else set()
        )
        if "rrlib.lab.agents.recipes" in rooms:
            wanted |= {"rrlib/lab/agents/policies/*", "shipped/StepDiffuser/*/*"}
        studies = re.findall(r"\.number\(\"([\w-]+)\"", code)
        if "beside_full" in code:  # another study's, its own, or both of two
            others = re.findall(r'\bof="([\w-]+)"', code)
            own = re.findall(r'(\w+) = notebook.Study\("([\w-]+)"', code)
            studies += others or [study for name, study in own if f"{name}.beside_full" in code]
        wanted |= {f"results/full/{study}.json" for study in studies}
        wanted |= {"shipped/DigitsDiffuser/*/*"} if "rrlib.lab.images.digits" in rooms else set()
        wanted |= {"shipped/ToyDiffuser/*/*"} if "rrlib.lab.toys" in rooms else set()
        if "rrlib.lab.images.experiments" in rooms:
            wanted |= {"rrlib/images/miniature/files/**/*", "results/full/images-*.safetensors"}
        assert set(told.get(path.stem, [])) == wanted, path.stem
    for patterns in told.values():
        assert all(any(ROOT.glob(pattern)) for pattern in patterns)


def test_a_cluster_is_told_what_the_paper_profile_needs(tmp_path, capfd):
    graph(ROOT, tmp_path, "--dry-run", "--cores", "16", profile="paper", workers=8)
    said = "".join(capfd.readouterr())
    jobs = {}
    for job in said.split("rule chapter:"):
        if name := re.search(r"wildcards: chapter=(\S+)", job):
            jobs[name[1]] = dict(re.findall(r"(\w+)[=:] ?(\d+)\b", job))
    assert set(jobs) == {path.stem for path in ROOT.glob("notebooks/*.ipynb")}
    for name, job in jobs.items():
        needs_gpu = name[:2] not in ("01", "02", "03", "04", "07")
        assert job["gpu"] == str(int(needs_gpu)), name
        assert int(job["mem_mb"]) == (64_000 if needs_gpu else 8_000)
        assert job.get("threads", "1") == ("8" if "locomotion" in name else "1")
        assert job["runtime"] == "1440"


# What ends a run -------------------------------------------------------------------------------


def python(code: str, *arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", code, *map(str, arguments)]


@pytest.fixture
def pipe(tmp_path: Path):
    """A named pipe's path, and a descriptor that reads from it without ever blocking."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    yield path, descriptor
    os.close(descriptor)


@pytest.fixture
def begun():
    """Starts a command in a process group of its own; a failing test leaves none of it behind."""
    started = []

    def begin(command: list[str]) -> subprocess.Popen:
        started.append(subprocess.Popen(command, process_group=0))
        return started[-1]

    yield begin
    for process in started:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def heard(descriptor: int) -> bytes:
    """What comes next through the pipe; nothing once all its writers have ended."""
    assert select.select([descriptor], [], [], GUARD)[0], "nothing came"
    return os.read(descriptor, 100)


STARTER = f"""import sys; sys.path.insert(0, {str(WORKFLOW)!r}); import json, watch
from pathlib import Path
with watch.locked(Path(sys.argv[1])) as lock:
    sys.exit(watch.start(json.loads(sys.argv[2]), lock))
"""
LONG = "import os, signal, sys; os.write(os.open(sys.argv[1], os.O_WRONLY), b'up'); signal.pause()"
TIED = f"""import sys; sys.path.insert(0, {str(WORKFLOW)!r}); import json, watch
sys.exit(watch.run(json.loads(sys.argv[1]), sys.stdout))
"""


def test_a_killed_run_takes_along_what_it_started(tmp_path, pipe, begun):
    path, descriptor = pipe
    tied = python(TIED, json.dumps(python(LONG, path)))
    shell = ["bash", "-c", '"$@"; exit $?', "bash", *tied]  # as Snakemake puts one between
    starter = begun(python(STARTER, tmp_path / "lock", json.dumps(shell)))
    assert heard(descriptor) == b"up"
    starter.kill()
    starter.wait()
    assert heard(descriptor) == b"", "all have ended"
    with watch.locked(tmp_path / "lock", wait=True):
        pass


def test_a_killed_run_keeps_its_lock_until_what_it_started_has_ended(tmp_path, pipe, begun):
    path, descriptor = pipe
    code = "import os, signal, sys; os.write({}, str(os.getpid()).encode()); signal.pause()"
    stubborn = python(code.format("os.open(sys.argv[1], os.O_WRONLY)"), path)
    starter = begun(python(STARTER, tmp_path / "lock", json.dumps(stubborn)))
    left = int(heard(descriptor))
    starter.kill()
    starter.wait()
    with pytest.raises(BlockingIOError), watch.locked(tmp_path / "lock"):
        pass
    os.kill(left, signal.SIGKILL)
    with watch.locked(tmp_path / "lock", wait=True):
        pass


def test_nothing_ends_that_no_run_started(pipe):
    # Its standard input is at its end from the start, as it is under cron or SLURM.
    done = subprocess.run(
        python(TIED, json.dumps(python("print('ran')"))),
        stdin=subprocess.DEVNULL,
        env=os.environ | {watch.PIPE: "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "ran\n"


def test_a_run_says_that_another_is_under_way(tmp_path):
    shutil.copytree(WORKFLOW, tmp_path / "workflow")  # a checkout's own lock may be held
    folder = tmp_path / "_run" / "accept"
    with watch.locked(Path(f"{folder}.lock")):
        command = [sys.executable, str(tmp_path / "workflow" / "run.py"), "quick", "--accept"]
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"another run is under way in {folder}\n"


def test_the_book_that_is_shown_appears_whole(tmp_path):
    made, html = tmp_path / "made", tmp_path / "_build" / "html"
    for name in ("old", "new"):
        made.mkdir()
        (made / "index.html").write_text(name)
        (made / f"{name}.html").touch()
        show(made, html)
        shutil.rmtree(made)
    assert {path.name for path in html.iterdir()} == {"index.html", "new.html"}
    with pytest.raises(ValueError):  # nothing was made
        show(made, html)
    assert (html / "index.html").read_text() == "new"


# A chapter -------------------------------------------------------------------------------------


def notebook(*kinds: str) -> nbformat.NotebookNode:
    cells = []
    for place, kind in enumerate(kinds):
        output = new_output("display_data", data={kind: "x"})
        cells.append(new_code_cell("draw()", id=f"cell-{place}", outputs=[output]))
    return new_notebook(cells=cells)


@pytest.mark.parametrize(
    ("executed", "lost"),
    [
        (("image/png", "image/png", "text/plain"), False),
        (("image/svg+xml", "text/plain", "text/plain"), False),
        (("text/plain", "text/html", "text/plain"), True),
        ((), True),
    ],
)
def test_a_chapter_without_its_figures_is_not_done(executed, lost, tmp_path, monkeypatch):
    source, output = (
        tmp_path / "source" / "01_x.ipynb",
        tmp_path / "run" / "notebooks" / "01_x.ipynb",
    )
    source.parent.mkdir(parents=True)
    nbformat.write(notebook("image/png", "image/png", "text/plain"), source)

    def papermill(command: list[str], stream) -> int:
        assert f"01_x.{os.getpid()}." in command[-1], "each process writes its own"
        assert not output.exists()
        nbformat.write(notebook(*executed), command[-1])
        return 0

    monkeypatch.setattr(chapter, "run", papermill)
    monkeypatch.setattr(sys, "argv", ["chapter.py", str(source), str(output), "{}"])
    if lost:
        with pytest.raises(SystemExit, match="has figures and this run has none"):
            chapter.main()
    else:
        chapter.main()
    assert output.exists() == (not lost)
    assert {path.name for path in output.parent.glob("*")} <= {output.name}


def test_accepted_results_are_new_where_they_differ(tmp_path):
    made, kept = tmp_path / "made", tmp_path / "kept"
    for folder in (made, kept):
        (folder / "deep").mkdir(parents=True)
        (folder / "same.json").write_text("1")
    for name in ("other.json", "deep/new.json"):
        (made / name).write_text("2")
    (kept / "other.json").write_text("1")
    for path in (*made.rglob("*.json"), *kept.rglob("*.json")):
        os.utime(path, (1, 1))
    store(made, kept)
    changed = {path.name: path.stat().st_mtime > 1 for path in kept.rglob("*.json")}
    assert changed == {"same.json": False, "other.json": True, "new.json": True}
    assert (kept / "deep" / "new.json").read_text() == (kept / "other.json").read_text() == "2"


# The environment -------------------------------------------------------------------------------

# It stands in for Python and pip: it notes how it was called, and makes environments of itself.
INTERPRETER = """#!/usr/bin/env bash
{ echo "in $PWD: $*"; env | grep -E '^(PIP|PYTHON)' | sort; } >>"$CALLS"
if [ "$*" = "-m venv .venv" ]; then
    mkdir -p .venv/bin
    cp "$0" .venv/bin/python
    echo "command = $0 -m venv $PWD/.venv" >.venv/pyvenv.cfg
fi
"""


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A checkout without environment, as an archive unpacks it: nothing may be executed."""
    root = tmp_path / "my checkout"
    (root / "workflow").mkdir(parents=True)
    shutil.copyfile(WORKFLOW / "environment.sh", root / "workflow" / "environment.sh")
    shutil.copyfile(ROOT / "Makefile", root / "Makefile")
    (root / "pyproject.toml").touch()
    (root / "requirements.lock").write_text("torch==2.13.0\n")
    return root


def environment(root: Path, **variables: str) -> subprocess.CompletedProcess:
    """Run environment.sh as make does, with an interpreter that only notes how it is called."""
    interpreter = root.parent / "an interpreter"
    interpreter.write_text(INTERPRETER)
    interpreter.chmod(0o755)
    given = {"PYTHON": str(interpreter), "CALLS": str(root.parent / "calls")}
    return subprocess.run(
        ["bash", "workflow/environment.sh"],
        cwd=root,
        env=os.environ | given | variables,
        capture_output=True,
        text=True,
    )


def calls(root: Path) -> str:
    return (root.parent / "calls").read_text()


def test_an_environment_is_made_and_kept(bare):
    assert environment(bare).returncode == 0
    (bare / ".venv" / "kept").touch()
    assert environment(bare).returncode == 0
    assert (bare / ".venv" / "kept").exists()
    assert calls(bare).count("-m venv .venv") == 1
    assert f"in {bare}: -m pip install --quiet --no-deps --no-build-isolation -e ." in calls(bare)


def test_an_environment_that_was_copied_or_moved_is_made_anew(bare):
    environment(bare)
    moved = bare.with_name("moved")
    bare.rename(moved)
    (moved / ".venv" / "old").touch()
    assert environment(moved).returncode == 0
    assert not (moved / ".venv" / "old").exists()
    assert f"-m venv {moved}/.venv" in (moved / ".venv" / "pyvenv.cfg").read_text()


def test_an_environment_of_another_program_is_refused_and_kept(bare):
    (bare / ".venv").mkdir()
    (bare / ".venv" / "pyvenv.cfg").write_text("home = /usr/bin\nuv = 0.9.1\n")
    done = environment(bare)
    assert done.returncode == 1 and (bare / ".venv" / "pyvenv.cfg").exists()
    assert done.stderr.count("\n") == 1 and "made by another program: move it away" in done.stderr


def test_the_shell_does_not_turn_the_environment_elsewhere(bare, tmp_path):
    other = tmp_path / "other"
    (other / "workflow").mkdir(parents=True)
    (other / ".venv").mkdir()
    settings = {"PIP_USER": "1", "PIP_TARGET": "/x", "PIP_INDEX_URL": "kept", "CDPATH": str(other)}
    settings |= {name: "1" for name in ("PYTHONOPTIMIZE", "PYTHONDONTWRITEBYTECODE")}
    settings |= {"PYTHONPATH": "/x", "PYTHONHOME": "/x", "PYTHONSAFEPATH": "1"}
    assert environment(bare, **settings).returncode == 0
    assert (other / ".venv").exists()
    noted = set(calls(bare).splitlines())
    assert {line for line in noted if line.startswith("in ")} == {
        line for line in noted if line.startswith(f"in {bare}: ")
    }
    assert {"PIP_USER=0", "PIP_INDEX_URL=kept"} <= noted
    assert not {line for line in noted if re.match("PIP_TARGET|PYTHON[A-Z]", line)}


@pytest.mark.parametrize("missing", ["git", "python"])
def test_what_the_machine_lacks_is_said_at_once(missing, bare):
    tools = bare.parent / "tools"
    tools.mkdir()
    for tool in ("bash", "env", "dirname", "grep", "awk", *(["git"] if missing != "git" else [])):
        (tools / tool).symlink_to(shutil.which(tool))
    done = environment(bare, PATH=str(tools), PYTHON="python3.11" if missing == "python" else "")
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert {"git": "git is needed", "python": "version 3.11 or 3.12"}[missing] in done.stderr


def test_a_folder_with_a_colon_is_refused(bare):
    turned = bare.rename(bare.with_name("a:b"))
    done = environment(turned)
    assert done.returncode == 1 and done.stderr.count("\n") == 1 and "has a colon" in done.stderr


def test_no_pin_asks_for_a_newer_python_than_we_do():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    promised = re.match(r">=([\d.]+),", project["requires-python"])[1] + ".0"
    for name, version in pins().items():
        try:
            found = metadata.metadata(name)
        except metadata.PackageNotFoundError:  # pinned, not installed yet
            continue
        if found["Version"].partition("+")[0] == version:
            assert promised in SpecifierSet(found.get("Requires-Python", "")), name


def test_the_oldest_versions_are_the_lower_ends_of_the_ranges():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    found = dict(pin.split("==") for pin in oldest.pins(project))
    for text in [*project["dependencies"], *extras["book"], *extras["test"]]:
        requirement = Requirement(text)
        lower = [s.version for s in requirement.specifier if s.operator in (">=", "==")]
        assert [found.get(requirement.name)] == (lower or [None]), text


# What make does --------------------------------------------------------------------------------


def make(root: Path, *arguments: str, **variables: str) -> str:
    command = ["make", "--no-print-directory", *arguments]
    environ = {name: value for name, value in os.environ.items() if name != "MAKEFLAGS"}
    done = subprocess.run(
        command, cwd=root, env=environ | variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_does_what_it_is_told_and_not_what_the_shell_holds(bare):
    shell = {"PROFILE": "full", "CORES": "9", "SEED": "9", "PYTHON": "python2", "LOCK_FLAGS": "-x"}
    assert make(bare, "-n", "book", "verify", "lock", **shell) == make(
        bare, "-n", "book", "verify", "lock"
    )
    assert "run.py full --cores 3" in make(bare, "-n", "book", "PROFILE=full", "CORES=3")


def test_make_compares_every_chapter_the_longest_first():
    said = make(ROOT, "-n", "test")
    run = re.findall(r"notebooks/(\w+)\.ipynb", said)
    assert sorted(run) == sorted(path.stem for path in ROOT.glob("notebooks/*.ipynb"))
    first = re.findall(r'^ {4}"(\d\d_\w+)",$', SNAKEFILE, re.MULTILINE)
    assert len(first) > 3 and run[: len(first)] == first


def test_make_shields_what_it_starts(bare):
    (bare / "shown.mk").write_text("include Makefile\nshown:\n\t@env\n")
    names = "PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONOPTIMIZE", "PYTHONSTARTUP"
    names += "PYTHONDONTWRITEBYTECODE", "SNAKEMAKE_PROFILE", "PYTEST_ADDOPTS", "MPLBACKEND"
    names += "IPYTHONDIR", "JUPYTER_PATH", "GIT_DIR", "CDPATH", "MUJOCO_GL"
    kept = {"RRLIB_STORE": "/store", "PYTHONUTF8": "1", "PIP_INDEX_URL": "/index"}
    given = dict.fromkeys(names, "x") | kept
    said = dict(
        line.split("=", 1)
        for line in make(bare, "-f", "shown.mk", "shown", **given).splitlines()
        if "=" in line
    )
    assert not set(names) & set(said)
    assert kept.items() <= said.items()


def test_make_has_a_home_where_there_is_none(bare):
    (bare / "shown.mk").write_text('include Makefile\nshown:\n\t@echo "$$HOME"\n')
    assert make(bare, "-f", "shown.mk", "shown") == f"{os.environ['HOME']}\n"
    own = bare / "_run" / "home"
    assert make(bare, "-f", "shown.mk", "shown", HOME="/nowhere") == f"{own}\n" and own.is_dir()


def test_make_sees_that_the_environment_was_copied(bare):
    environment(bare)
    (bare / ".venv" / ".stamp").touch()
    assert "environment.sh" not in make(bare, "-n", "book")
    copy = bare.with_name("copy")
    shutil.copytree(bare, copy)
    (copy / ".venv" / ".stamp").touch()
    assert "environment.sh" in make(copy, "-n", "book")


def test_no_script_goes_where_cdpath_leads():
    for path in (ROOT / ".ci" / "run", *WORKFLOW.glob("*.sh")):
        text = path.read_text(encoding="utf-8")
        assert 0 <= text.find("\nunset CDPATH") < text.find("\ncd "), path


def test_no_script_needs_to_be_executable():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in makefile.splitlines():
        for before in re.findall(r"(\S+) workflow/\w+\.\w+", line):
            assert before in ("bash", "$(PY)"), line
