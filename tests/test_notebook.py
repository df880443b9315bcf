"""Seeding, figures, claims, the provenance card, published results."""

import base64
import json
import os
import platform
import random
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import scoreboard
import torch
from chapter import draws
from matplotlib.animation import FuncAnimation
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from nbval.plugin import get_sanitize_patterns
from torch.testing import assert_close

from rrlib import metrics
from rrlib.errors import InputError
from rrlib.lab import environment as host
from rrlib.lab import notebook as nb
from rrlib.lab import parameters as rules
from rrlib.lab import results, store


def test_settings_are_in_place_and_nothing_slow_is_imported():
    code = (
        "import os, sys; from rrlib.lab import costs, environment as host, notebook, parameters;"
        "from rrlib.lab.images import presets; from rrlib.lab.locomotion import presets;"
        "from rrlib.lab.mazes import presets;"
        "assert all(os.environ[name] == value for name, value in host.SETTINGS.items());"
        "slow = {'torch', 'diffusers', 'transformers', 'scipy', 'mujoco', 'IPython', 'matplotlib'};"
        "print(slow & set(sys.modules))"
    )
    environment = {k: v for k, v in os.environ.items() if k not in host.SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"


def test_a_u_net_is_imported_by_those_who_build_one():
    code = (
        "import sys; import rrlib.lab.locomotion.experiments, rrlib.plans.rewards;"
        "slow = {'diffusers.models.unets', 'transformers', 'peft'};"
        "print(slow & set(sys.modules))"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


@pytest.mark.parametrize("value", ["native", "", "fast"])
def test_a_run_may_use_all_of_its_cpu(value):
    code = "from rrlib.lab import environment as host; print('MKL_CBWR' in host.SETTINGS)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"RRLIB_CPU": value},
        capture_output=True,
        text=True,
    )
    if value == "fast":
        assert "RRLIB_CPU='fast' is not allowed: native, or nothing, is needed." in done.stderr
    else:
        shared = platform.machine() in ("x86_64", "AMD64") and not value
        assert done.stdout == f"{shared}\n"


@pytest.mark.slow  # a kernel
def test_figures_are_shown_whatever_the_shell_says(monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "Agg")
    first = (
        "import matplotlib.pyplot as plt\nfrom types import SimpleNamespace\n"
        "from rrlib.lab import notebook\n"
        "study = notebook.Study('x', SimpleNamespace(seed=0, store=''))"
    )
    cells = [new_code_cell(first), new_code_cell("_ = plt.plot([0, 1])")]
    book = new_notebook(cells=cells)
    NotebookClient(book, kernel_name="python3").execute()
    assert [output.output_type for output in cells[0].outputs] == []
    assert [list(output.data) for output in cells[1].outputs] == [["text/plain", "image/png"]]
    assert draws(book)


def test_start_seeds_and_names_the_store(monkeypatch, tmp_path):
    monkeypatch.setenv("RRLIB_STORE", "before")
    nb.start(SimpleNamespace(seed=3, store=""))
    assert os.environ["RRLIB_STORE"] == "before"
    first = torch.randn(4), np.random.rand()
    nb.start(SimpleNamespace(seed=3, store=str(tmp_path)))
    assert os.environ["RRLIB_STORE"] == str(tmp_path)
    assert_close(torch.randn(4), first[0], rtol=0, atol=0)
    assert np.random.rand() == first[1]
    assert torch.get_num_threads() == 1 and torch.are_deterministic_algorithms_enabled()


def test_start_seeds_all_three_by_the_seed_and_asks_for_determinism():
    def drawn(seed):
        torch.use_deterministic_algorithms(False)
        nb.start(SimpleNamespace(seed=seed, store=""))
        assert torch.are_deterministic_algorithms_enabled()
        return float(torch.rand(())), float(np.random.rand()), random.random()

    last = 2**32 - 1
    first, again, other = drawn(3), drawn(3), drawn(last)
    assert first == again and all(a != b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("value", "bar", "line"),
    [
        (0.99934, ">= 0.999", "R²: ≈ 0.99934 (bar: at least 0.999): yes"),
        (0.99899, ">= 0.999", "R²: ≈ 0.99899 (bar: at least 0.999): no"),
        (0.9566, ">= 0.90", "R²: ≈ 0.956 (bar: at least 0.90): yes"),
        (1.3123, "<= 1.5", "R²: ≈ 1.32 (bar: at most 1.5): yes"),
        (4, ">= 4", "R²: ≈ 4 (bar: at least 4): yes"),
        (24512.7, ">= 1e4", "R²: ≈ 24512 (bar: at least 1e4): yes"),
        (1234567, ">= 1e4", "R²: ≈ 1.23e+06 (bar: at least 1e4): yes"),
        (0, "<= 0", "R²: ≈ 0 (bar: at most 0): yes"),
        (float("nan"), ">= 0", "R²: ≈ nan (bar: at least 0): no"),
        (float("inf"), "<= 0", "R²: ≈ inf (bar: at most 0): no"),
        (-0.5, "<= -0.4", "R²: ≈ -0.5 (bar: at most -0.4): yes"),
        (2.2222e-13, "<= 1e-12", "R²: ≈ 2.23e-13 (bar: at most 1e-12): yes"),
    ],
)
def test_claim_prints_a_value_cut_on_the_cautious_side(capsys, value, bar, line):
    nb.claim("R²", value, bar)
    assert results.meets(value, bar) == line.endswith("yes")
    assert capsys.readouterr().out == line + "\n"


def test_a_claim_without_an_interval_says_none(capsys):
    nb.claim("R²", 0.95, ">= 0.9", (float("nan"), float("nan")))
    assert capsys.readouterr().out == "R²: ≈ 0.95 (bar: at least 0.9): yes\n"


def test_a_claim_is_compared_by_its_bar_and_verdict(capsys):
    """What differs between CPUs is left out; a bar that is missed is not."""
    root = Path(__file__).resolve().parent.parent
    patterns = get_sanitize_patterns((root / "notebooks/nbval.cfg").read_text(encoding="utf-8"))
    lines = set()
    for value in (0.912, 0.934, 0.85):
        nb.claim("R² (held out)", value, ">= 0.9", (value - 0.01, value + 0.01))
        said = capsys.readouterr().out
        for pattern, replaced in patterns:
            said = re.sub(pattern, replaced, said)
        lines.add(said)
    assert lines == {
        f"R² (held out): ≈ its value (bar: at least 0.9): {met}\n" for met in ("yes", "no")
    }


def test_a_bar_of_another_form_is_refused():
    with pytest.raises(ValueError, match="is not of the form"):
        results.meets(1.0, "> 3")


def test_provenance_has_no_path_and_no_time(monkeypatch, tmp_path):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    parameters = SimpleNamespace(seed=0, device="cpu", results=str(tmp_path / "quick"))
    nb.provenance(parameters, numbers={"R²": 0.99934567}, artefacts=["abc"])
    nb.provenance(parameters, numbers={"R²": 0.99934567}, artefacts=["abc"])
    card = shown[0].data
    assert card == shown[1].data
    assert "| exact R² | 0.99934567 |" in card and "| parameter `seed` | `0` |" in card
    assert "| artefacts | `abc` |" in card and f"torch {metadata.version('torch')}" in card
    assert str(tmp_path) not in card


@dataclass(frozen=True)
class Number:
    """A recipe that writes a number."""

    value: float

    def make(self, folder: Path, device: str) -> None:
        (folder / "number").write_text(str(self.value))

    def load(self, folder: Path, device: str) -> float:
        return float((folder / "number").read_text())


def test_a_number_is_given_once_and_said_published_and_shown(capsys, monkeypatch, tmp_path):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    monkeypatch.setenv("RRLIB_STORE", str(tmp_path / "store"))
    chosen = SimpleNamespace(seed=0, store="", device="cpu", results=str(tmp_path / "quick"))
    seconds = {Number(2.5): 12.5}.get  # of each recipe
    monkeypatch.setattr(store, "seconds", lambda recipes, device: sum(map(seconds, recipes)))
    study, other = nb.Study("whole", chosen), nb.Study("part", chosen)
    study.claim("found", 0.123456789, "goals", bar=">= 0.1", ci=(0.1, 0.2), paper="9 %", shown="G")
    study.claim("gap", np.float32(0.25), "gap, mean", bar="<= 0.2")
    study.record("n", 4)
    study.record("minutes", 2.5, varies=True)
    study.table([])
    other.record("lost", float("nan"), shown="lost")
    study.rows = [{"seed": 0, "gap": 0.25}]
    recipe = Number(2.5)
    assert study.obtain(recipe) == 2.5 and other.obtain_all([recipe, recipe]) == [2.5, 2.5]
    study.close(other)
    assert capsys.readouterr().out == (
        "goals: ≈ 0.123, 0.1 to 0.2 (bar: at least 0.1): yes\n"
        "gap, mean: ≈ 0.25 (bar: at most 0.2): no\n"
    )
    whole, part = (
        json.loads((tmp_path / "quick" / f"{name}.json").read_text()) for name in ("whole", "part")
    )
    assert whole["summary"] == {
        "found": {
            "value": 0.123456789,
            "bar": ">= 0.1",
            "ci": [0.1, 0.2],
            "paper": "9 %",
            "label": "G",
        },
        "gap": {"value": 0.25, "bar": "<= 0.2"},
        "n": 4,
        "minutes": 2.5,
    }
    assert whole["rows"] == study.rows
    assert [one["provenance"]["wall_seconds"] for one in (whole, part)] == [seconds(recipe)] * 2
    assert part["summary"] == {
        "lost": {"value": None, "missing": "no finite number", "label": "lost"}
    }
    card = shown[0].data
    assert "| exact goals | 0.12345679 |" in card and "| exact n | 4 |" in card
    assert "| exact lost | nan |" in card and "minutes" not in card and "2.5" not in card
    assert f"| artefacts | `{store.key(recipe)}` |" in card and len(shown) == 1
    assert store.spent([recipe, recipe])[0] == store.manifest(recipe)["cpu_seconds"] / 3600


def test_a_name_has_one_number_in_a_file(tmp_path, monkeypatch):
    for folder, refused in ((str(tmp_path), True), ("", False)):
        study = nb.Study("whole", SimpleNamespace(store="", seed=0, device="cpu", results=folder))
        for value in (0.5, 0.5, float("nan"), float("nan")):  # as when a cell is run again
            study.record("same" if value == 0.5 else "lost", value)
        study.publish()
        study.record("hopper.base_data", 0.17)
        study.record("hopper.base_data", 16.3)
        if refused:
            with pytest.raises(ValueError, match=r"^whole: two numbers .* \['hopper.base_data'\]"):
                study.publish()
        else:
            study.publish()


def test_a_table_has_the_keys_of_its_first_row(monkeypatch):
    rows = [{"a|b": "x|y", "share": 0.5, "n": 1000}, {"a|b": None, "share": 0.123, "extra": 3}]
    assert nb.markdown_table(rows, formats={"share": ".1%"}).splitlines() == [
        "| a&#124;b | share | n |",
        "|---|---|---|",
        "| x&#124;y | 50.0% | 1000 |",
        "|  | 12.3% |  |",
    ]
    assert nb.markdown_table([{"x": 0.126, "y": np.float64(2)}], 1).endswith("| 0.1 | 2.0 |")


def published(folder: Path, **changed) -> dict:
    given = {
        "rows": [{"seed": 0, "maze": "open", "found": True, "distance": 0.3, "note": None}],
        "summary": {
            "plain": 3,
            "found": {
                "value": 0.9,
                "ci": [0.8, 1.0],
                "paper": "78 %",
                "bar": ">= 0.75",
                "label": "goals found",
            },
        },
        "parameters": {"seed": 0, "device": "cpu", "results": str(folder)},
        "wall_seconds": 12.5,
    }
    results.publish(str(folder), "maze-rewards", **(given | changed))
    return results.read(folder / "maze-rewards.json")


def test_publish(tmp_path):
    result = published(tmp_path / "results" / "quick")
    results.validate_result(result)
    assert result["study"] == "maze-rewards" and result["profile"] == "quick"
    assert result["summary"]["found"]["ci"] == [0.8, 1.0]
    provenance = result["provenance"]
    assert provenance["parameters"] == {"seed": 0, "device": "cpu", "results": "quick"}
    assert provenance["wall_seconds"] == 12.5 and provenance["versions"]["torch"]
    assert [path.name for path in tmp_path.rglob("*.json*")] == ["maze-rewards.json"]


NAMES = (
    *("My Results", "Größe", "Full", "Quick", "_run", "-x", "2026", ".hidden", "a|b", "*x*", "x.y"),
    *("é" * 100, "e\u0301", "a\nb", "a\tb", "\u200b", "/", ".", "..", "~", "a/b/", " x ", "日本"),
)


@pytest.mark.parametrize("name", NAMES)
def test_whatever_the_rule_accepts_is_published(tmp_path, monkeypatch, name):
    """A chapter must not find out in its last cell, after hours."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    try:
        folder = rules.results_folder().accept(name)
    except ValueError as reason:
        assert name in ("/", "a\nb", "a\tb", "\u200b") and "names the profile" in str(reason)
        return
    result = published(Path(folder))
    assert result["profile"] == Path(folder).name
    page = scoreboard.page(scoreboard.read([Path(folder) / "maze-rewards.json"]))
    found = [line for line in page.splitlines() if line.startswith("| goals found |")]
    assert len(found) == 1 and found[0].count("|") == 7


def test_no_number_loses_the_hours_of_a_chapter(tmp_path):
    nan = float("nan")
    rows = [{"seed": np.int64(3), "low": nan, "score": np.float32(0.5)}]
    summary = {
        "lost": nan,
        "gone": {"value": np.float64("inf"), "ci": [0.0, 1.0], "bar": "<= 3", "label": "gone"},
        "single": {"value": 0.5, "ci": list(metrics.mean_interval([0.5])), "label": "one"},
        "equal": {"value": 0.5, "ci": [0.5, 0.5]},
        "none": {"value": 0.5, "ci": None},
        "beside": {"value": 0.5, "ci": [np.float32(0.75), 1]},
        "array": np.array(2.5),
    }
    result = published(tmp_path, rows=rows, summary=summary, wall_seconds=nan)
    assert result["rows"] == [{"seed": 3, "low": None, "score": 0.5}]
    assert result["provenance"]["wall_seconds"] is None
    assert result["summary"] == {
        "lost": {"value": None, "missing": "no finite number"},
        "gone": {"value": None, "missing": "no finite number", "bar": "<= 3", "label": "gone"},
        "single": {"value": 0.5, "label": "one"},
        "equal": {"value": 0.5},
        "none": {"value": 0.5},
        "beside": {"value": 0.5, "ci": [0.75, 1]},
        "array": 2.5,
    }
    page = scoreboard.page(scoreboard.read([tmp_path / "maze-rewards.json"]))
    found = [line for line in page.splitlines() if line.startswith(("| gone", "| one"))]
    assert [line.split(" | ")[4] for line in found] == ["≤ 3 (not measured)", ""]
    values = [line.split(" | ")[3].split() for line in found]
    assert [value[-1] for value in values] == ["measured", "0.5"]


def test_a_digit_of_a_published_number_cannot_change_in_silence(tmp_path):
    published(tmp_path)
    path = tmp_path / "maze-rewards.json"
    whole = path.read_text(encoding="utf-8")
    for old, new in (
        ("0.8,", "0.7,"),
        ("goals found", "goals fount"),
        ('"checksum"', '"checksun"'),
    ):
        path.write_text(whole.replace(old, new), encoding="utf-8")
        with pytest.raises(InputError, match=r"maze-rewards\.json' is (damaged|not as results)"):
            results.read(path)


def test_a_published_interval_has_a_width(tmp_path):
    result = published(tmp_path)
    for ci in ([0.9, 0.9], [0.9], [0.8, None], "01", 0.9):
        result["summary"]["found"]["ci"] = ci
        with pytest.raises(ValueError, match="summary 'found' has interval"):
            results.validate_result(result)


def test_provenance_names_commit_and_device(tmp_path, monkeypatch):
    monkeypatch.setattr(host, "commit", lambda: "abc-dirty")
    monkeypatch.setattr(host, "device_name", lambda device: f"model of {device}")
    for given, device in (({"device": "cuda:1"}, "cuda:1"), ({}, "cpu")):
        found = published(tmp_path, parameters=given)["provenance"]
        assert (found["commit"], found["device"]) == ("abc-dirty", f"model of {device}")


def test_two_studies_that_end_together_keep_their_own_numbers(tmp_path):
    """Each writes its own file, and none of them reads or writes another's."""
    for study in ("whole", "part", "whole"):
        entry = {"value": 0.5, "ci": [0.0, 1.0], "label": study}
        results.publish(str(tmp_path), study, rows=[], summary={study: entry}, parameters={})
    found = scoreboard.read(sorted(tmp_path.glob("*.json")))
    assert [list(result["summary"]) for result in found] == [["part"], ["whole"]]


def test_a_full_disk_ends_in_a_sentence(tmp_path, monkeypatch):
    published(tmp_path)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"maze-rewards.json' cannot be written \(No space left"):
        published(tmp_path, summary={"x": 1})
    assert [path.name for path in tmp_path.iterdir()] == ["maze-rewards.json"]
    assert "found" in json.loads((tmp_path / "maze-rewards.json").read_text())["summary"]


def test_publish_into_no_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results.publish("", "study", rows=[], summary={}, parameters={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changed",
    [
        {"rows": [{"a": 1}, {"b": 1}]},
        {"rows": [{"a": [1, 2]}]},
        {"summary": {"x": "0.9"}},
        {"summary": {"x": True}},
        {"summary": {"x": {"ci": [0, 1]}}},
        {"summary": {"x": {"value": 2.0, "ci": [3, 1]}}},
        {"summary": {"x": {"value": 2.0, "bar": 2}}},
        {"summary": {"x": {"value": 2.0, "label": 2}}},
        {"summary": {"x": {"value": 2.0, "paper": [2]}}},
        {"summary": {"x": {"value": 2.0, "bar": "about 2"}}},
        {"summary": {"x": {"value": 2.0, "titel": "x"}}},
    ],
)
def test_publish_refuses_what_is_not_of_the_form(tmp_path, changed):
    with pytest.raises(ValueError):
        published(tmp_path / "quick", **changed)
    assert not list(tmp_path.rglob("*"))


def test_a_film_is_in_the_page_with_its_texts(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    figure, ax = plt.subplots(figsize=(1, 1))
    line = ax.plot([0, 1], [0, 0])[0]
    moving = FuncAnimation(figure, lambda k: line.set_ydata([0, k / 3]), [0, 1, 2])
    nb.film(moving, alt='a "line"', caption="It rises.")
    page = shown[0].data
    assert 'alt="a &quot;line&quot;"' in page and "<figcaption>It rises.</figcaption>" in page
    content = base64.b64decode(re.search(r"data:image/webp;base64,([^\"]+)", page)[1])
    assert content[8:12] == b"WEBP" and content.count(b"ANMF") == 3  # one chunk a frame
    assert not plt.fignum_exists(figure.number)
