"""Parameter checks, seeding, claims, the provenance card, published results."""

import base64
import json
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.animation import FuncAnimation
from torch.testing import assert_close

from rrlib import host, results, rules
from rrlib import notebook as nb
from rrlib.errors import InputError

# What IPython itself puts into a notebook's globals.
KERNEL = {"In": ["", "seed = 0"], "Out": {}, "get_ipython": print, "exit": print, "_": "", "nb": nb}


def message(rule: rules.Rule, value: object) -> str:
    with pytest.raises(InputError) as caught:
        rules.check({"name": value}, name=rule)
    return str(caught.value)


def test_check_returns_every_value():
    names = KERNEL | {"seed": 0, "maze": "open, umaze", "scale": 2, "goal": "1.3,2"}
    found = rules.check(
        names,
        seed=rules.integer(0),
        maze=rules.several_of("open", "umaze"),
        scale=rules.real(0, 10),
        goal=rules.cell(),
    )
    assert found == SimpleNamespace(seed=0, maze=("open", "umaze"), scale=2.0, goal=(1.3, 2.0))


def test_a_choice_that_was_read_as_a_number_is_still_that_choice():
    rule = rules.several_of("10000", "100000")
    assert rules.check({"sizes": 10000}, sizes=rule).sizes == ("10000",)
    assert rules.check({"sizes": "10000,100000"}, sizes=rule).sizes == ("10000", "100000")


def test_a_text_and_a_truth_are_taken_as_they_are():
    assert rules.text().accept("") == "" and rules.text().accept(1.5) == "1.5"
    assert rules.boolean().accept(True) is True and rules.boolean().accept(False) is False


def test_several_numbers_come_as_text_or_as_one_number():
    weights, untils = rules.several_numbers(0), rules.several_numbers(0, whole=True)
    assert rules.check({"w": "0.5, 2"}, w=weights).w == (0.5, 2.0)
    assert rules.check({"w": 1}, w=weights).w == (1.0,)
    assert rules.check({"u": "0,5"}, u=untils).u == (0, 5)
    assert rules.check({"u": 3}, u=untils).u == (3,)
    for rule, value in (
        *((weights, v) for v in ("-1", "nan", "0.5,inf", "1,1.0", "", "a", None, [1.0])),
        *((untils, v) for v in ("-1", "0.5", 0.5, "1,1")),
    ):
        with pytest.raises(InputError, match=r"x=.* is not allowed: (numbers|integers) of at l"):
            rules.check({"x": value}, x=rule)


def test_unknown_parameter_is_named_with_its_likely_meaning():
    with pytest.raises(InputError) as caught:
        rules.check(KERNEL | {"seed": 0, "sed": 1}, seed=rules.integer(0), steps=rules.integer(1))
    assert str(caught.value) == (
        "sed=1 is not allowed: the parameters here are seed, steps (did you mean seed?)."
    )


def test_a_second_check_in_one_kernel_ignores_what_the_chapter_defined():
    names = KERNEL | {"seed": 0}
    rules.check(names, seed=rules.integer(0))
    names["loss"] = 0.5
    assert rules.check(names, seed=rules.integer(0)).seed == 0


@pytest.mark.parametrize(
    ("rule", "value", "allowed"),
    [
        (rules.integer(0), -1, "an integer of at least 0"),
        (rules.integer(0), "1", "an integer of at least 0"),
        (rules.integer(0), True, "an integer of at least 0"),
        (rules.integer(0), 1.0, "an integer of at least 0"),
        (rules.integer(1, 8), 9, "an integer from 1 to 8"),
        (rules.integer(8, multiple_of=4), 30, "a multiple of 4 of at least 8"),
        (rules.real(0, 1), 1.5, "a number from 0 to 1"),
        (rules.real(0), float("nan"), "a number of at least 0"),
        (rules.real(0), float("inf"), "a number of at least 0"),
        (rules.real(0), False, "a number of at least 0"),
        (rules.text(), True, "a text"),
        (rules.text(), None, "a text"),
        (rules.boolean(), 1, "True or False"),
        (rules.boolean(), "yes", "True or False"),
        (rules.one_of("a", "b"), "c", "one of a, b"),
        (rules.one_of("a", "b"), "a,b", "one of a, b"),
        (rules.several_of("a", "b"), "", "one or more of a, b, separated by commas, each once,"),
        (rules.several_of("a", "b"), "a,a", "one or more of a, b, separated by commas, each once,"),
        (rules.several_of("a", "b"), "a,c", "one or more of a, b, separated by commas, each once,"),
        (rules.several_of("a", "b"), 1, "one or more of a, b, separated by commas, each once,"),
        (rules.cell(), "1", 'a point "row,column" in cell units, or an empty string,'),
        (rules.cell(), "1,nan", 'a point "row,column" in cell units, or an empty string,'),
        (rules.cell(), 1, 'a point "row,column" in cell units, or an empty string,'),
        (rules.device(), "tpu", "cpu, or a CUDA device that exists such as cuda or cuda:0,"),
        (rules.device(), 0, "cpu, or a CUDA device that exists such as cuda or cuda:0,"),
    ],
)
def test_a_refused_value_is_one_sentence(rule, value, allowed):
    assert message(rule, value) == f"name={value!r} is not allowed: {allowed} is needed."


def test_a_device_that_does_not_exist_is_refused():
    n_devices = torch.cuda.device_count()
    said = message(rules.device(), f"cuda:{n_devices}")
    assert said.startswith(f"name='cuda:{n_devices}' is not allowed")
    assert said.endswith(f"is needed (this machine has {n_devices} CUDA devices).")


def test_existing_file_or_empty(tmp_path):
    rule = rules.existing_file_or_empty()
    assert rules.check({"name": ""}, name=rule).name == ""
    assert rules.check({"name": str(tmp_path)}, name=rule).name == str(tmp_path.resolve())
    assert str(tmp_path / "none") in message(rule, str(tmp_path / "none"))


def test_writable_folder_leaves_nothing_behind(tmp_path):
    rule = rules.writable_folder()
    assert rules.check({"name": ""}, name=rule).name == ""
    wanted = tmp_path / "a" / "b"
    assert rules.check({"name": str(wanted)}, name=rule).name == str(wanted.resolve())
    (tmp_path / "file").touch()
    said = message(rule, str(tmp_path / "file" / "sub"))
    assert str(tmp_path / "file" / "sub") in said and "(Not a directory)" in said
    assert os.listdir(tmp_path) == ["file"]


def test_settings_are_in_place_and_the_import_is_quick():
    code = (
        "import os, sys, time; start = time.perf_counter();"
        "from rrlib import host, notebook, rules;"
        "took = time.perf_counter() - start;"
        "assert all(os.environ[name] == value for name, value in host.SETTINGS.items());"
        "assert not {'torch', 'IPython', 'matplotlib'} & set(sys.modules); print(took)"
    )
    environment = {k: v for k, v in os.environ.items() if k not in host.SETTINGS}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) < 2


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


@pytest.mark.parametrize(
    ("value", "bar", "digits", "line"),
    [
        (0.99934, ">= 0.999", None, "R²: at least 0.999: yes"),
        (0.99834, ">= 0.999", None, "R²: at least 0.999: no"),
        (0.9566, ">= 0.90", 2, "R²: 0.95 (bar: at least 0.90): yes"),
        (1.3123, "<= 1.5", 1, "R²: 1.4 (bar: at most 1.5): yes"),
        (4, ">= 4", 0, "R²: 4 (bar: at least 4): yes"),
        (float("nan"), ">= 0", 1, "R²: at least 0: no"),
    ],
)
def test_claim_prints_no_more_than_it_needs(capsys, value, bar, digits, line):
    nb.claim("R²", value, bar, digits)
    assert results.meets(value, bar) == line.endswith("yes")
    assert capsys.readouterr().out == line + "\n"


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
    return json.loads((folder / "maze-rewards.json").read_text(encoding="utf-8"))


def test_publish(tmp_path):
    result = published(tmp_path / "results" / "quick")
    results.validate_result(result)
    assert result["study"] == "maze-rewards" and result["profile"] == "quick"
    assert result["summary"]["found"]["ci"] == [0.8, 1.0]
    provenance = result["provenance"]
    assert provenance["parameters"] == {"seed": 0, "device": "cpu", "results": "quick"}
    assert provenance["wall_seconds"] == 12.5 and provenance["versions"]["torch"]
    assert [path.name for path in tmp_path.rglob("*.json*")] == ["maze-rewards.json"]


def test_join_adds_the_summary_of_a_part_whichever_comes_first(tmp_path):
    def publish(study, name, value):
        entry = {"value": value, "ci": [0.0, 1.0], "label": name}
        results.publish(str(tmp_path), study, rows=[], summary={name: entry}, parameters={})
        results.join(str(tmp_path), "whole", "part")
        return {path.stem: json.loads(path.read_text()) for path in tmp_path.glob("*.json")}

    for order in (("part", "whole"), ("whole", "part")):
        for study in order:
            found = publish(study, study, 0.5)
        assert set(found["part"]["summary"]) == {"part"}
        joined = found["whole"]["summary"]
        assert joined["whole"]["label"] == "whole"
        assert joined["part"] == {"value": 0.5, "ci": [0.0, 1.0]}
        for path in tmp_path.iterdir():
            path.unlink()
    results.join("", "whole", "part")


def test_publish_into_no_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    results.publish("", "study", rows=[], summary={}, parameters={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "changed",
    [
        {"rows": [{"a": 1}, {"b": 1}]},
        {"rows": [{"a": [1, 2]}]},
        {"rows": [{"a": float("nan")}]},
        {"summary": {"x": float("inf")}},
        {"summary": {"x": "0.9"}},
        {"summary": {"x": True}},
        {"summary": {"x": {"ci": [0, 1]}}},
        {"summary": {"x": {"value": 2.0, "ci": [0, 1]}}},
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
