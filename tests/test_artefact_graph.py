"""The graph whose nodes are artefacts: what chapters ask for, its parts, what jobs get."""

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path

import artefact_graph as graph
import nbformat
import pytest
import slurm
import snakemake.cli

from rrlib.errors import InputError
from rrlib.lab import keys, store
from rrlib.lab.mazes.recipes import MazeDiffuser, MazePool, MazeRewards

ROOT = Path(__file__).resolve().parent.parent
PROFILES = "quick", "full", "paper"


@pytest.fixture(scope="module")
def plans() -> dict[str, dict]:
    return {name: graph.plan(name) for name in PROFILES}


@pytest.mark.book
def test_chapters_are_made_of_what_the_plan_says(plans):
    """The keys on a chapter's card, as it was last run, are the plan's."""
    pins = (ROOT / "requirements.lock").read_text()
    if not all(f"{name}=={version}." in pins for name, version in keys.libraries().items()):
        pytest.skip("keys of other versions than those that the chapters were run with")
    for chapter, wanted in plans["quick"]["chapters"].items():
        notebook = nbformat.read(ROOT / "notebooks" / f"{chapter}.ipynb", as_version=4)
        card = json.dumps(notebook.cells[-1].get("outputs", []))
        assert wanted and set(wanted) <= set(re.findall(r"`([0-9a-f]{16})`", card)), chapter


def test_every_chapter_that_trains_a_maze_or_a_robot_is_in_the_plan(plans):
    asks = {
        path.stem
        for path in ROOT.glob("notebooks/*_*.ipynb")
        if re.search(r"(mazes|locomotion) import experiments", path.read_text(encoding="utf-8"))
    }
    # 07 reads shipped rewards and trains nothing; 16's small pairs are 06's and come with the book.
    shown = {"07_maze_grid", "16_do_you_have_to_learn_it"}
    assert asks - set(graph.CHAPTERS) == shown
    for plan in plans.values():
        assert set(plan["chapters"]) == set(graph.CHAPTERS)


def test_nothing_is_due_before_what_it_is_made_of(plans):
    for plan in plans.values():
        nodes, done = plan["artefacts"], set()
        assert {key for asked in plan["chapters"].values() for key in asked} <= set(nodes)
        while ready := {
            k for k, node in nodes.items() if k not in done and done >= {*node["needs"]}
        }:
            done |= ready
        assert done == set(nodes)


def test_sizes_of_the_grids(plans):
    """4 mazes of a base and 8 goals in 06; 08 has 3 sizes of data, 3 goals, and 4 bases each.

    In each maze 09 has two experts of its own, of one goal.
    """
    kinds = [node["kind"] for node in plans["full"]["artefacts"].values()]
    assert kinds.count("ComponentDiffuser") == 4 * (1 + 8) + 3 * 4 * (1 + 3) + 4 * 2
    assert plans["full"]["chapters"]["06_maze_rewards"] != plans["full"]["chapters"]["05_maze_data"]


def test_jobs_ask_for_gpus_where_the_profile_computes_on_one(plans):
    def gpus(name: str) -> set[tuple[str, int]]:
        return {(node["kind"], node["gpu"]) for node in plans[name]["artefacts"].values()}

    assert {n for _, n in gpus("quick") | gpus("full")} == {0}
    assert ("MazeDiffuser", 1) in gpus("paper") and ("MazeData", 0) in gpus("paper")


@dataclass(frozen=True)
class Kept:
    parts: tuple = ()

    def make(self, folder: Path, device: str) -> None: ...


@dataclass(frozen=True)
class NotKept:
    part: Kept
    number: int = 3


def test_what_is_not_kept_is_looked_through():
    first, second = Kept(), Kept((1,))
    assert list(keys.parts(Kept((NotKept(first), second)))) == [first, second]
    real = {MazeRewards: "make", MazeDiffuser: "make", MazePool: None}
    assert all(hasattr(kind, "make") == bool(has) for kind, has in real.items())


def test_a_profile_without_a_resource_is_one_sentence():
    with pytest.raises(InputError, match=r"full: Kept: mem_mb=None is not allowed: an integer"):
        graph.resources(["MazeData", "Kept"], "full")
    with pytest.raises(InputError, match=r"profile='none' is unknown"):
        graph.plan("none")
    with pytest.raises(InputError, match=r"key='abc' is not allowed"):
        graph.make("quick", "abc")


def test_a_job_has_the_store_make_its_artefact(plans, monkeypatch):
    asked = []
    monkeypatch.setattr(store, "obtain", lambda recipe, device: asked.append((recipe, device)))
    monkeypatch.delenv("RRLIB_DEVICE", raising=False)
    key = plans["quick"]["chapters"]["06_maze_rewards"][-1]
    graph.make("quick", key)
    ((recipe, device),) = asked
    assert store.key(recipe, device) == key and isinstance(recipe, MazeRewards)
    os.environ.pop("RRLIB_DEVICE", None)


@pytest.mark.slow
def test_the_graph_of_artefacts_has_a_job_for_each(plans, tmp_path, capfd):
    """Snakemake's own count, of a run that makes nothing."""
    before = Path.cwd()
    command = ["chapters", "--snakefile", str(ROOT / "workflow/Snakefile"), "--dry-run", "--cores"]
    command += ["2", "--directory", str(tmp_path), "--profile", "none", "--quiet", "rules"]
    try:
        with pytest.raises(SystemExit) as end:
            snakemake.cli.main([*command, "--config", "profile=quick", "unit=artefact"])
    finally:
        os.chdir(before)
    assert not end.value.code
    said = "".join(capfd.readouterr())
    counts = dict(re.findall(r"^(artefact|chapter) +(\d+)$", said, re.MULTILINE))
    assert int(counts["artefact"]) == len(plans["quick"]["artefacts"])
    assert int(counts["chapter"]) == len(graph.profile("quick"))


def test_slurm_that_is_not_installed_is_one_line(tmp_path):
    (tmp_path / "sbatch").touch(mode=0o755)
    with pytest.raises(SystemExit, match=r"slurmd, squeue, scontrol not found: apt-get install"):
        slurm.check_installed(str(tmp_path))
