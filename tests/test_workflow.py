"""The scripts around the chapters: the normal form of a notebook, the scoreboard's table."""

import json
import re
import shutil
from pathlib import Path
from statistics import NormalDist

import chapter_tables
import nbformat
import numpy as np
import pytest
import quoted
import verify
import yaml
from build_site import pages
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from normalise import normalise, written
from recounts import recount
from scoreboard import page, read
from verify import TOLERANCES, report, summary

from rrlib import metrics
from rrlib.errors import InputError
from rrlib.lab import results
from rrlib.lab.results import publish

ROOT = Path(__file__).resolve().parent.parent


def executed() -> nbformat.NotebookNode:
    """A notebook as papermill leaves it."""
    timing = {"papermill": {"duration": 1.2}, "execution": {"iopub.execute_input": "now"}}
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "f"}, "text/plain": "bar"}
    cells = [
        new_markdown_cell("# Title", metadata=timing | {"tags": []}),
        new_code_cell("seed = 0", execution_count=4, metadata=timing | {"tags": ["parameters"]}),
        new_code_cell("seed = 1", execution_count=5, metadata={"tags": ["injected-parameters"]}),
        new_code_cell(
            "print(seed)",
            execution_count=9,
            outputs=[
                new_output("stream", name="stdout", text="a"),
                new_output("stream", name="stderr", text="100 % 3.2 s"),
                new_output("stream", name="stdout", text="b\n"),
                new_output("display_data", data=widget),
                new_output("execute_result", data={"text/plain": "1"}, execution_count=9),
            ],
            metadata={"mystnb": {"image": {"alt": "a line"}}, "collapsed": True},
        ),
    ]
    for cell, name in zip(cells, "abcd", strict=True):
        cell.id = name
    return new_notebook(cells=cells, metadata={"widgets": {"x": 1}, "papermill": {"duration": 3}})


def test_the_normal_form_has_no_trace_of_its_run():
    before = executed()
    kept = normalise(before)
    nbformat.validate(kept)
    assert [cell.id for cell in kept.cells] == ["a", "b", "d"]
    assert [cell.get("execution_count") for cell in kept.cells] == [None, 1, 2]
    title, parameters, last = kept.cells
    assert title.metadata == {} and parameters.metadata == {"tags": ["parameters"]}
    assert last.metadata == {"mystnb": {"image": {"alt": "a line"}}}
    stream, result = last.outputs
    assert stream.text == "ab\n" and stream.name == "stdout"
    assert result.execution_count == 2 and result.data == {"text/plain": "1"}
    assert set(kept.metadata) == {"kernelspec", "language_info"}
    assert len(before.cells) == 4, "the notebook given stays as it is"


def test_the_normal_form_of_a_normal_form_is_itself():
    once = written(executed())
    assert written(nbformat.reads(once, as_version=4)) == once
    assert once.endswith("}\n") and "papermill" not in once


def test_missing_cell_ids_are_made_of_places():
    notebook = executed()
    for cell in notebook.cells:
        del cell["id"]
    ids = [cell.id for cell in normalise(notebook).cells]
    assert ids == [cell.id for cell in normalise(notebook).cells] and len(set(ids)) == 3


def test_an_error_is_no_result():
    notebook = executed()
    notebook.cells[3].outputs = [new_output("error", ename="E", evalue="no", traceback=[])]
    with pytest.raises(ValueError, match="cell 2 ended in E: no"):
        normalise(notebook)


def test_a_row_of_a_chapter_has_both_profiles(tmp_path):
    entry = {"value": 0.78125, "ci": [0.7, 0.85], "paper": 0.7812, "bar": ">= 0.75"}
    for profile, value in (("full", 0.78125), ("quick", 0.5)):
        found = entry | {"value": value, "label": "goals a|b"}
        summary = {"goal_found": found, "bare": 3, "unnamed": entry}
        given = {"maze": ["open"]} if profile == "full" else {}
        folder = str(tmp_path / profile)
        publish(folder, "maze2d", rows=[], summary=summary, parameters=given)
    text = page(read(sorted(tmp_path.rglob("*.json"))))
    (row,) = [line for line in text.splitlines() if line.startswith("| goals")]
    assert row == (
        "| goals a&#124;b | 0.781 | 0.781 (0.7 to 0.85) (stale) | 0.5 (0.7 to 0.85) "
        "| ≥ 0.75 (**missed**: quick) | Wilson's |"
    )
    assert "- maze2d, full: " in text and "**stale**, for today's profile has another maze," in text
    assert "::::{admonition} 06 Maze rewards" in text
    command = "papermill notebooks/06_maze_rewards.ipynb out.ipynb -p results results/quick\n"
    assert command in text and "-p maze open,umaze,medium,large -p n_goals 8" in text
    start = "| **section 5.1**, the same, all"
    (row,) = [line for line in text.splitlines() if line.startswith(start)]
    assert " | 78.1 % (70.0 to 85.0) (stale) | 50.0 % (70.0 to 85.0) (missed) | " in row


def test_the_first_table_has_all_of_the_paper():
    rows = yaml.safe_load((ROOT / "workflow/paper.yaml").read_text(encoding="utf-8"))
    assert len(rows) <= 30
    items = " ".join(row["item"] for row in rows)
    wanted = [f"{kind} {k}" for kind in ("Figure", "Table") for k in range(1, 7)]
    for item in [*wanted, "section 5.1", "section 5.3", "appendix F", "Appendix G"]:
        assert item in items
    for row in rows:
        assert (ROOT / f"notebooks/{row['chapter']}.ipynb").exists() and row["comparable"]
        if "study" not in row:
            continue
        results = [quoted.read(p, row["study"]) for p in ("full", "quick") if exists(p, row)]
        assert any(row["name"] in result["summary"] for result in results), row["what"]
        for result in results:
            found = result["summary"].get(row["name"])
            if isinstance(found, dict) and isinstance(found.get("paper"), float):
                theirs = quoted.said(result, row["name"], f"paper {row['form'].rstrip('+')}")
                assert row["paper"].startswith(_tenths(theirs, found)), row["what"]


def _tenths(theirs: str, found: dict) -> str:
    """The paper gives its gains, which are in per cent, to a tenth."""
    return theirs if found["paper"] < 1 else f"{found['paper']:.1f} %"


def exists(profile: str, row: dict) -> bool:
    return (ROOT / "results" / profile / f"{row['study']}.json").exists()


def test_every_published_study_has_its_chapter():
    for path in ROOT.glob("results/*/*.json"):
        alone = path.stem in ("benchmark", "faults", "rollout-speed")  # of no chapter
        assert chapter_tables.chapter_of(path.stem) or alone, path


def is_wilsons(share: float, ci: list[float]) -> bool:
    """Whether this is Wilson's 95 % interval of a share of some whole number of cases."""
    if not 0 <= share <= 1:
        return False
    n, z2 = np.arange(1, 10_001), NormalDist().inv_cdf(0.975) ** 2
    n = n[np.abs(np.round(share * n) - share * n) < 1e-6]
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = np.sqrt(z2 * share * (1 - share) / n + z2**2 / (4 * n**2)) / (1 + z2 / n)
    ends = np.stack([middle - reach, middle + reach], 1)
    return bool(np.isclose(ends, ci, rtol=0, atol=1e-9).all(1).any())


def test_intervals_are_called_wilsons_where_they_are():
    assert is_wilsons(0.75, list(metrics.wilson(18, 24)))
    seen = 0
    for result in read(sorted(ROOT.glob("results/*/*.json"))):
        for name in result["summary"]:
            found = quoted.entry(result, name)
            kind = chapter_tables.interval(f"{result['study']} {name}")
            if "ci" in found and kind != "as the chapter says":
                said = result["study"], name, kind
                expected = kind.startswith("Wilson's")
                assert is_wilsons(found["value"], found["ci"]) == expected, said
                seen += 1
    assert seen > 60


@pytest.mark.lengthy
def test_each_row_leads_to_what_recomputes_it():
    """And what was made with other settings than today's is marked, row by row."""
    lines = page(read(sorted(ROOT.glob("results/*/*.json")))).splitlines()
    led = {found[1] for line in lines if (found := re.search(r"`how <(\S+)>` \|$", line))}
    assert len(led) > 4 and {f"({name})=" for name in led} <= set(lines)
    made = [line for line in lines if re.match(r"- \S+, (full|quick): ", line)]
    assert len(made) > 25
    assert all(re.search(r": commit [0-9a-f]{8}", line) for line in made)
    assert all("processor hours" in line or "hours not recorded" in line for line in made)


def test_an_old_result_is_marked_row_by_row(monkeypatch, tmp_path):
    monkeypatch.setattr(chapter_tables, "stale", lambda result: ["horizon"])
    entry = {"value": 0.5, "label": "one"}
    publish(str(tmp_path / "full"), "maze2d", rows=[], summary={"a": entry}, parameters={})
    lines = page(read([tmp_path / "full" / "maze2d.json"])).splitlines()
    assert "| one |  | 0.5 (stale) | not measured |  |  |" in lines


def test_a_file_that_is_older_than_its_bar_can_miss_it(tmp_path):
    told = {"value": 0.01, "label": "in walls", "bar": "<= 0.05"}
    for profile, entry in (("full", {"value": 0.257}), ("quick", told)):
        folder = str(tmp_path / profile)
        publish(folder, "maze2d-diffusers", rows=[], summary={"walls": entry}, parameters={})
    lines = page(read(sorted(tmp_path.rglob("*.json")))).splitlines()
    (row,) = (line for line in lines if line.startswith("| in walls"))
    assert "| ≤ 0.05 (**missed**: full) |" in row


def test_scoreboard_without_results_says_so():
    assert page([]) == "No results have been published yet.\n"


def test_of_two_results_with_one_name_the_later_counts(tmp_path):
    for place, value in (("committed", 1), ("run", 2)):
        folder = tmp_path / place / "quick"
        publish(str(folder), "maze", rows=[], summary={"x": value}, parameters={})
    paths = [tmp_path / place / "quick" / "maze.json" for place in ("committed", "run")]
    assert [result["summary"]["x"] for result in read(paths)] == [2]


def test_a_result_of_another_form_is_named(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({"study": "x"}))
    with pytest.raises(InputError, match=r"bad\.json"):
        read([path])


def test_damaged_results_are_refused_and_named(tmp_path):
    """400 mutations: each is read as what it says or refused in one sentence with its name."""
    original = (ROOT / "results/full/locomotion-diffusers.json").read_bytes()
    rng, path, refused = np.random.default_rng(0), tmp_path / "damaged.json", 0
    values = [b"null", b"[]", b"{}", b"1e999", b'"x"', b"-1", b"true", b"NaN", b"9" * 400]
    for k in range(400):
        content = bytearray(original)
        if k % 4 == 0:  # a byte is another
            content[rng.integers(len(content))] = rng.integers(256)
        elif k % 4 == 1:  # a file is cut off
            del content[rng.integers(len(content)) :]
        else:  # a value is of another kind
            found = list(re.finditer(rb'(?<=: )("[^"]*"|-?[\d.]+|\[|\{)', bytes(content)))
            match = found[rng.integers(len(found))]
            content[match.start() : match.end()] = values[rng.integers(len(values))]
        path.write_bytes(bytes(content))
        try:
            lines = page(read([path])).splitlines()
        except InputError as error:
            assert re.fullmatch(r"File '\S+damaged\.json' [^\n]+\.", str(error)), str(error)
            refused += 1
        else:
            assert {line.count("|") for line in lines if line.startswith("|")} <= {6, 7}
    assert 200 < refused < 400
    for content in (b"", b"\x00" * 99, b"[]", b"5", b'"x"', b"[" * 10**5, b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"damaged\.json"):
            read([path])


def test_what_is_published_is_of_the_form():
    """No interval without a width among them: of one value, none is known."""
    paths = sorted(ROOT.glob("results/*/*.json"))
    assert len(read(paths)) == len(paths) > 20


def test_pages_of_a_table_of_contents():
    toc = {
        "root": "a",
        "parts": [
            {"chapters": [{"file": "b", "sections": [{"file": "c"}]}]},
            {"chapters": [{"file": "d"}]},
        ],
    }
    assert pages(toc) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("name", TOLERANCES)
def test_verify_names_what_is_not_as_published(name, sign, capsys):
    published = dict.fromkeys(TOLERANCES, 0.9)
    assert report(published, published, TOLERANCES) == []
    assert (
        report(published, published | {name: 0.9 + sign * 0.9 * TOLERANCES[name]}, TOLERANCES) == []
    )
    assert report(
        published, published | {name: 0.9 + sign * 1.1 * TOLERANCES[name]}, TOLERANCES
    ) == [name]
    assert f"{name}: 0.9000 on fresh trajectories, 0.9000 published" in capsys.readouterr().out


@pytest.mark.parametrize("profile", ["full", "quick"])
def test_published_numbers_are_what_their_rows_say(profile):
    rows = yaml.safe_load((ROOT / "workflow" / "paper.yaml").read_text(encoding="utf-8"))
    rows = [(row["study"], row["name"]) for row in rows if "study" in row]
    counted = 0
    for study, name in rows:
        path = ROOT / "results" / profile / f"{study}.json"
        value = summary(path).get(name) if path.exists() else None
        if value is None or np.isnan(value):
            continue
        found = recount(study, name, results.read(path)["rows"])
        if found is not None:
            counted += 1
            assert found == pytest.approx(value, rel=1e-9), (study, name)
    assert counted >= {"full": 16, "quick": 8}[profile]


@pytest.mark.lengthy
def test_verify_names_a_number_that_its_rows_do_not_say(monkeypatch, tmp_path, capsys):
    assert verify.scoreboard() == []
    assert "neither of 2 (maze2d.earns_more, maze2d.hours)" in capsys.readouterr().out
    for path in (ROOT / "results" / "full").glob("*.json"):
        shutil.copy(path, tmp_path)
    told = results.read(tmp_path / "maze2d.json")
    told["rows"][7]["distance"] = 3.0
    given = {"rows": told["rows"], "summary": told["summary"], "parameters": {}}
    publish(str(tmp_path), "maze2d", **given)
    monkeypatch.setattr(verify, "FULL", tmp_path)
    wrong = ["goal_found_simple", "goal_found"]
    assert verify.scoreboard() == [f"maze2d.{name}, counted again" for name in wrong]


@pytest.mark.parametrize("side", [0, 1])
def test_verify_names_what_could_not_be_measured(tmp_path, side):
    sides = [{"x": 0.5}, {"x": 0.5}]
    for k, value in ((side, float("nan")), (1 - side, 0.5)):
        publish(str(tmp_path), f"s{k}", rows=[], summary={"x": value}, parameters={})
        sides[k] = summary(tmp_path / f"s{k}.json")
    assert report(*sides, {"x": 9.0}) == ["x"]


def test_the_chapters_that_go_first_exist():
    text = (ROOT / "workflow/Snakefile").read_text(encoding="utf-8")
    named = re.findall(r'^ {4}"(\d\d_\w+)",$', text, re.MULTILINE)
    assert len(named) > 3
    assert set(named) <= {path.stem for path in ROOT.glob("notebooks/*.ipynb")}
