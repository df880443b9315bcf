"""Parameter checks: what is taken, and the one sentence for what is not."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from rrlib.errors import InputError
from rrlib.lab import costs
from rrlib.lab import notebook as nb
from rrlib.lab import parameters as rules
from rrlib.lab.images import presets as image_sizes

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
        seed=rules.integer(0, 9),
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
    weights, untils = rules.several_numbers(0, 9), rules.several_numbers(0, 9, whole=True)
    assert rules.check({"w": "0.5, 2"}, w=weights).w == (0.5, 2.0)
    assert rules.check({"w": 1}, w=weights).w == (1.0,)
    assert rules.check({"u": "0,5"}, u=untils).u == (0, 5)
    assert rules.check({"u": 3}, u=untils).u == (3,)
    for rule, value in (
        *(
            (weights, v)
            for v in ("-1", "nan", "0.5,inf", "1,1.0", "", "a", None, [1.0], "9.1", 10**400)
        ),
        *((untils, v) for v in ("-1", "0.5", 0.5, "1,1", "10", "9" * 5000)),
    ):
        with pytest.raises(
            InputError, match=r"^x=.{0,190} is not allowed: (numbers|integers) from 0 to 9, "
        ):
            rules.check({"x": value}, x=rule)


def test_unknown_parameter_is_named_with_its_likely_meaning():
    with pytest.raises(InputError) as caught:
        rules.check(
            KERNEL | {"seed": 0, "sed": 1}, seed=rules.integer(0, 9), steps=rules.integer(1, 9)
        )
    assert str(caught.value) == (
        "sed=1 is not allowed: the parameters here are seed, steps (did you mean seed?)."
    )


def test_a_second_check_in_one_kernel_ignores_what_the_chapter_defined():
    names = KERNEL | {"seed": 0}
    rules.check(names, seed=rules.integer(0, 9))
    names["loss"] = 0.5
    assert rules.check(names, seed=rules.integer(0, 9)).seed == 0


@pytest.mark.parametrize(
    ("rule", "value", "allowed"),
    [
        (rules.integer(0, 9), -1, "an integer from 0 to 9"),
        (rules.integer(0, 9), "1", "an integer from 0 to 9"),
        (rules.integer(0, 9), True, "an integer from 0 to 9"),
        (rules.integer(0, 9), 1.0, "an integer from 0 to 9"),
        (rules.integer(1, 8), 9, "an integer from 1 to 8"),
        (rules.integer(8, 40, multiple_of=4), 30, "a multiple of 4 from 8 to 40"),
        (rules.integer(8, 40, multiple_of=4), 44, "a multiple of 4 from 8 to 40"),
        (rules.integer(8, 40, multiple_of=4), 4, "a multiple of 4 from 8 to 40"),
        (rules.real(0, 1), 1.5, "a number from 0 to 1"),
        (rules.real(0, 9), float("nan"), "a number from 0 to 9"),
        (rules.real(0, 9), float("inf"), "a number from 0 to 9"),
        (rules.real(0, 9), False, "a number from 0 to 9"),
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


@pytest.mark.parametrize(
    ("rule", "value", "words"),
    [
        (rules.real(0, 9), 10**400, "name=1000"),
        pytest.param(rules.integer(0, 9), 10**5000, "name=an integer of 16610 bits", id="a"),
        (rules.several_of("a"), "a" * 5000, "(5002 characters)"),
        pytest.param(rules.several_of("a"), 10**5000, "name=an integer of 16610 bits", id="b"),
        (rules.several_of("a", alone=("none", "all")), "a,none", "(none and all only alone)"),
        (rules.one_of("a"), ["a"] * 900, "characters) is not allowed"),
        (rules.cell(), "1" * 5000 + ",x", "characters) is not allowed"),
        (rules.device(), "cuda:" + "9" * 5000, "characters) is not allowed"),
    ],
)
def test_a_long_value_is_cut(rule, value, words):
    said = message(rule, value)
    assert words in said and len(said) < 300, said


def test_what_goes_alone_goes():
    rule = rules.several_of("a", "b", alone=("none",))
    assert rule.accept("none") == ("none",) and rule.accept("a,b") == ("a", "b")


def kernel(*cells: str) -> dict:
    """Globals after these cells, the last of which asks the rules."""
    names = {"In": ["", *cells, "rules.check(globals())"], "seed": 0, "rules": rules, "mine": 1}
    for cell in cells:
        exec(cell, names)
    return names


def test_names_are_those_of_papermills_cell():
    given = {"seed": rules.integer(0, 9)}
    assert rules.check(kernel("seed = 0", "# Parameters\nseed = 3\n"), **given).seed == 3
    assert rules.check(kernel("other = 2"), **given).seed == 0
    for line in ("rules = 5", "In = 5", "_x = 5", "mine = 5", "_parameters_checked = 5"):
        with pytest.raises(InputError, match=rf"^{line.replace(' ', '')} is not allowed: the par"):
            rules.check(kernel(f"# Parameters\nseed = 3\n{line}\n"), **given)
    with pytest.raises(InputError, match=r"^nan=nan is not"):
        rules.check(kernel("# Parameters\nnan = float('nan')\n"), **given)


@pytest.mark.parametrize("name", ["_x", "_parameters_checked", "In", "Out", "steps"])
def test_without_a_history_any_plain_value_may_be_papermills(name):
    with pytest.raises(InputError, match=f"^{name}=5 is not allowed"):
        rules.check({"seed": 0, "__name__": "x", "_i1": "", name: 5}, seed=rules.integer(0, 9))


def test_a_number_beyond_its_end_is_refused_with_its_cost(monkeypatch):
    monkeypatch.setattr(costs, "memory", lambda: 8.0)
    given = {"n": rules.integer(1, 100), "m": rules.integer(1, 100), "seed": rules.integer(0, 9)}
    names = {"n": 1000, "m": 2, "seed": 7}

    def cost(asked):
        return costs.Cost(gigabytes=asked.n * asked.m / 100, hours=asked.n)

    with pytest.raises(InputError) as caught:
        rules.check(names, cost, **given)
    assert str(caught.value) == (
        "n=1000 is not allowed: an integer from 1 to 100 is needed (it would take about 20 GB of "
        "memory and 42 days)."
    )
    with pytest.raises(InputError) as caught:
        rules.check(names | {"n": 90, "m": 90}, cost, **given)
    assert str(caught.value) == (
        "n=90, m=90 are not allowed together: smaller ones are needed (they would take about 81 GB "
        "of memory and 3.8 days; this machine has 8.0 GB of memory)."
    )
    assert rules.check(names | {"n": 90, "m": 8}, cost, **given).n == 90
    with pytest.raises(InputError, match=r"^m=999 is not allowed: an integer from 1 to 100"):
        rules.check(names | {"n": 1, "m": 999}, **given)


@pytest.mark.parametrize(
    ("cost", "said", "excess"),
    [
        (costs.Cost(), "about 0.1 hours", ""),
        (costs.Cost(0.5, 5.0), "about 5.0 hours", ""),
        (costs.Cost(1600, 0.2), "about 1,600 GB of memory", "this machine has 16 GB of memory"),
        (costs.Cost(2, 24 * 31), "about 2.0 GB of memory and 31 days", ""),
        (costs.Cost(2, 24 * 32), "about 2.0 GB of memory and 32 days", "31 days are the most"),
        (costs.Cost(hours=1e20), "about 10^18 days", "31 days are the most"),
    ],
)
def test_a_cost_in_words(monkeypatch, cost, said, excess):
    monkeypatch.setattr(costs, "memory", lambda: 16.0)
    assert (str(cost), cost.excess()) == (said, excess)


def test_memory_is_this_machines():
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = int(next(line for line in lines if line.startswith("MemTotal")).split()[1])
    assert costs.memory() == pytest.approx(total * 1024 / 1e9, rel=0.01)


def test_a_device_that_does_not_exist_is_refused():
    n_devices = torch.cuda.device_count()
    said = message(rules.device(), f"cuda:{n_devices}")
    assert said.startswith(f"name='cuda:{n_devices}' is not allowed")
    assert said.endswith(f"is needed (this machine has {n_devices} CUDA devices).")


def test_existing_file_or_empty(tmp_path):
    rule = rules.existing_file_or_empty()
    assert rules.check({"name": ""}, name=rule).name == ""
    assert rules.check({"name": str(tmp_path)}, name=rule).name == str(tmp_path.resolve())
    assert "none' is not allowed: the path of an existing" in message(rule, str(tmp_path / "none"))
    os.mkfifo(tmp_path / "pipe")
    assert "pipe' is not allowed: the path of an existing" in message(rule, str(tmp_path / "pipe"))
    (tmp_path / "7").touch()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert rule.accept(7) == str(tmp_path.resolve() / "7")


def test_writable_folder_leaves_nothing_behind(tmp_path):
    rule = rules.writable_folder()
    assert rules.check({"name": ""}, name=rule).name == ""
    wanted = tmp_path / "a" / "b"
    assert rules.check({"name": str(wanted)}, name=rule).name == str(wanted.resolve())
    (tmp_path / "file").touch()
    said = message(rule, str(tmp_path / "file" / "sub"))
    assert "file/sub' is not allowed" in said and "(Not a directory)" in said
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("config", "share"),
    [
        ({"sample_size": 64, "block_out_channels": [320, 640]}, 1),
        ({"sample_size": 8, "block_out_channels": [32, 64]}, 1 / 640),
        ({"sample_size": [8, 16], "block_out_channels": [320]}, 1 / 32),
        ({"sample_size": None}, 1),
        ([], 1),
    ],
)
def test_a_pipeline_costs_what_its_size_says(tmp_path, config, share):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config))
    assert image_sizes.share(str(tmp_path)) == pytest.approx(share)
    assert image_sizes.share("someone/elsewhere") == 1


def test_a_chapter_takes_rules_of_a_table_and_may_have_its_own():
    table = {name: rules.integer(0, 9) for name in ("n", "m", "k")}
    found = rules.of(table, "n m", "k", m=rules.integer(5, 9), own=rules.text())
    assert list(found) == ["n", "m", "k", *rules.shared(), "own"]
    assert found["n"] is table["n"] and found["m"].allowed == "an integer from 5 to 9"


@pytest.mark.parametrize(
    ("rule", "ends"),
    [
        (rules.integer(2, 9), (2, 9)),
        (rules.integer(8, 40, multiple_of=4), (8, 40)),
        (rules.real(0.5, 9.0), (0.5, 9.0)),
    ],
)
def test_both_ends_of_a_range_are_allowed(rule, ends):
    for value in ends:
        assert rules.check({"x": value}, x=rule).x == value
    for value in (ends[0] - 4, ends[1] + 4):
        with pytest.raises(InputError, match=r"x=.* is not allowed"):
            rules.check({"x": value}, x=rule)


def test_several_numbers_take_both_ends():
    assert rules.check({"x": "0,9"}, x=rules.several_numbers(0, 9, whole=True)).x == (0, 9)
    assert rules.check({"x": "0,9"}, x=rules.several_numbers(0, 9)).x == (0.0, 9.0)
