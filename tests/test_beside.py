"""The full run beside this run: what is said, what is compared, and what is missing."""

import configparser
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from rrlib.lab import environment as host
from rrlib.lab import notebook as nb
from rrlib.lab import results

ROOT = Path(__file__).resolve().parent.parent
CHOSEN = SimpleNamespace(seed=0, horizon=32, store="", device="cpu", results="")
WORDS = {
    "found": "goals found",
    "new": "what is new",
    "n": "cases",
    "far": "not here",
    "lost": "nowhere",
}


@pytest.fixture
def shown(monkeypatch, tmp_path):
    """What a study shows beside a full run of its name, published in an empty checkout."""
    seen = []
    monkeypatch.setattr("IPython.display.display", lambda what: seen.append(what.data))
    monkeypatch.setattr(host, "CHECKOUT", tmp_path)
    return seen


def full_run(folder: Path) -> None:
    results.publish(
        str(folder / "results" / "full"),
        "maze",
        rows=[],
        summary={
            "found": {"value": 0.75, "ci": [0.6, 0.85], "paper": 0.78, "bar": ">= 0.7"},
            "n": 1600,
            "far": 0.25,
            "lost": {"value": None},
        },
        parameters={"seed": 0, "horizon": 128, "device": "cpu", "results": "full"},
        wall_seconds=5400.0,
    )


def this_run(monkeypatch) -> nb.Study:
    monkeypatch.setattr(nb, "start", lambda chosen: None)
    study = nb.Study("maze", CHOSEN)
    study.record("found", 0.5, bar=">= 0.6", ci=(0.1, 0.9))
    study.record("new", 2.0, ci=(float("nan"), float("nan")))
    study.record("n", 4)
    return study


def test_the_full_run_stands_beside_this_one(shown, monkeypatch, tmp_path):
    full_run(tmp_path)
    this_run(monkeypatch).beside_full(WORDS)
    table, line = shown
    assert table.splitlines() == [
        "| quantity | full run | this run | bar | paper |",
        "|---|---|---|---|---|",
        "| goals found | 0.75 (0.6 to 0.85) | ≈ 0.5 (0.1 to 0.9) "
        "| at least 0.6 (full run: yes, this run: no) | 0.78 |",
        "| what is new | not measured | ≈ 2 |  |  |",
        "| cases | 1,600 | ≈ 4 |  |  |",
        "| not here | 0.25 | not run here |  |  |",
    ]
    assert "1.5 processor hours, on " in line and "`horizon` 128 (here 32)." in line
    assert "is older than this page and did not measure: what is new." in line
    assert "`seed`" not in line and "results" not in line


@pytest.mark.parametrize(
    ("value", "told"),
    [(float("inf"), "inf"), (float("nan"), "nan"), (1234.5, "1,234"), (-98765.4, "-98,765")],
)
def test_a_number_without_an_end_is_said(shown, monkeypatch, tmp_path, value, told):
    full_run(tmp_path)
    study = this_run(monkeypatch)
    study.record("new", value)
    study.beside_full({"new": "what is new"})
    assert f"| what is new | not measured | ≈ {told} |" in shown[0]


def test_a_missing_or_damaged_full_run_is_one_line(shown, monkeypatch, tmp_path):
    study = this_run(monkeypatch)
    study.beside_full(WORDS)
    full_run(tmp_path)
    path = tmp_path / "results/full/maze.json"
    for content in (path.read_text()[:100], json.dumps({"summary": {}})):
        path.write_text(content)
        study.beside_full(WORDS)
    assert shown == ["No full run: `results/full/maze.json` is missing here or cannot be read."] * 3


def test_a_study_may_be_held_against_another(shown, monkeypatch, tmp_path):
    full_run(tmp_path)
    study = this_run(monkeypatch)
    study.name = "verify"
    study.beside_full({"found": "goals found"}, of="maze")
    assert "| goals found | 0.75 (0.6 to 0.85) |" in shown[0]


def test_only_this_runs_values_are_left_out_of_the_comparison(shown, monkeypatch, tmp_path):
    full_run(tmp_path)
    config = configparser.RawConfigParser()
    config.read(ROOT / "notebooks/nbval.cfg")

    def compared(value: float) -> str:
        study = this_run(monkeypatch)
        study.record("found", value, bar=">= 0.6", ci=(value - 0.1, value + 0.1))
        study.beside_full(WORDS)
        table, line = shown[-2:]
        text = f"{table}\n{line.replace('commit not recorded', 'commit 26bffdcd of 2026-11-23')}"
        for section in config.sections():
            text = re.sub(config[section]["regex"], config[section]["replace"], text)
        return text

    assert compared(0.5) == compared(0.4) != compared(0.7)
    assert "| goals found | 0.75 (0.6 to 0.85) | ≈ its value | at least 0.6" in compared(0.5)
    assert "26bffdcd" not in compared(0.5)
