"""What the page *Speed* measures: every row once, small; the fit of exponents; tables and figure.

No test here looks at a clock: ratios are taken of made seconds.
"""

from pathlib import Path

import benchmark
import numpy as np
import pytest
from bench import forty, gpu, growth, models, page, plan_rows, timing, world_rows

from rrlib.lab import results
from rrlib.lab.results import validate_result
from rrlib.plans.networks import PlanNetwork

ROOT = Path(__file__).resolve().parent.parent
SMALL = {
    "data": lambda: world_rows.data_making(n=3, steps=4, few=2),
    "windows": lambda: world_rows.windows(n=3_000, few=2, batch=5),
    "diffuser_quick": lambda: plan_rows.diffuser("quick"),
    "pool_quick": lambda: plan_rows.pool("quick", size=8, few=2),
    "reward_quick": lambda: plan_rows.reward_step("quick", few=2),
    "stacked_quick": lambda: plan_rows.stacked("quick", n=2),
    "sampling_quick": lambda: plan_rows.sampling("quick", n=3, few=1, steps=2),
    "rollouts": lambda: world_rows.robots(n=3, steps=2, few=1),
    "store": lambda: world_rows.store(n=1),
    "scoring": lambda: plan_rows.scoring(n=5, few=2),
}


@pytest.mark.lengthy
@pytest.mark.parametrize("key", SMALL)
def test_every_row_can_be_run(key):
    row = SMALL[key]()
    assert row.key == key and row.against
    row.call()
    for other in row.against:
        other.call()
        assert other.work > 0 and other.ours > 0


@pytest.mark.slow
def test_the_graph_is_planned():
    row = world_rows.graph()
    for call in (row.call, row.against[0].call):
        call()


def test_no_row_is_forgotten():
    measured = {make.func.__name__ if hasattr(make, "func") else make.__name__ for make in rows()}
    assert measured == {
        *("data_making", "windows", "diffuser", "pool", "reward_step", "stacked", "sampling"),
        *("robots", "store", "scoring", "graph"),
    }


def rows() -> list:
    return list(benchmark.rows())


@pytest.mark.parametrize("power", [-0.5, 0.0, 1.0, 2.0])
def test_exponents_of_made_costs(power):
    sizes = np.array([8, 16, 32, 64, 128])
    noise = np.random.default_rng(0).normal(0, 0.02, len(sizes))
    exact = growth.exponent(sizes, 3.0 * sizes**power)
    assert exact.value == pytest.approx(power, abs=1e-9)
    found = growth.exponent(sizes, 3.0 * sizes**power * np.exp(noise))
    assert found.low < power < found.high and found.high - found.low < 0.2


def test_a_ratio_is_of_units_of_work():
    ours, theirs = np.array([1.0, 2.0, 4.0]), np.array([3.0, 6.0, 8.0])
    found = timing.ratio(ours, theirs)
    assert (found.median, found.ours, found.theirs) == (3.0, 2.0, 6.0)
    assert found.low <= found.median <= found.high


def test_contenders_take_turns(monkeypatch):
    said, cost = [], {"ours": 2.0, "literal": 12.0}

    def seconds(call, device):
        return cost[call()]

    def contender(name):
        return lambda: said.append(name) or name

    monkeypatch.setattr(timing, "seconds", seconds)
    against = timing.Against("literal", contender("literal"), work=3, ours=1)
    row = timing.Row("key", "name", contender("ours"), (against,))
    found = timing.measured(row, rounds=3)["literal"]
    assert said == ["ours", "literal"] * 4  # one of them before anything is measured
    assert (found.median, found.ours, found.theirs) == (2.0, 2.0, 4.0)


def test_the_eager_network_is_that_of_the_book():
    """As many numbers are learnt on both sides, from batches of one shape."""
    size, _ = models.size_of("quick")
    ours = models.denoiser("quick").network
    assert isinstance(ours, PlanNetwork)
    count = sum(p.numel() for p in ours.unet.parameters())
    assert count == sum(p.numel() for p in ours.parameters())
    left, right = models.product("quick")
    assert left.shape[1] == right.shape[0] == 5 * size.channels[-1]


def test_images_cost_by_their_area():
    for side in (8, 16):
        assert world_rows.image_reward(side, batch=2)().shape == (2, 4, side, side)


def published() -> dict:
    return results.read(ROOT / "results" / "full" / "benchmark.json")


@pytest.mark.lengthy
def test_the_page_is_made_of_the_file_alone(tmp_path):
    result = published()
    validate_result(result)
    text = page.tables(result)
    for row in result["rows"]:
        assert page.plain(row["name"]) in text
    assert text.count("not measured") == sum(
        entry["value"] is None for entry in result["summary"].values()
    )
    page.draw(result, tmp_path / "benchmark.svg")
    assert (tmp_path / "benchmark.svg").stat().st_size > 10_000


def test_no_time_of_a_cpu_is_printed():
    result = published()
    text = page.tables(result)
    for row in result["rows"]:
        changed = replace_seconds(row)
        assert page.tables(result | {"rows": [changed]}) == page.tables(result | {"rows": [row]})
    assert "seconds" not in text


def replace_seconds(row: dict) -> dict:
    return row | {"seconds": 123.456, "their_seconds": 456.789}


@pytest.mark.slow
def test_forty_rewards_at_a_few_steps():
    found = forty.measured(4_000, steps=4, held_out=64)
    assert found.ratio > 0 and found.batched > 0 and found.steps in (2, 4)
    assert found.equal == (found.reached <= found.error)


@pytest.mark.lengthy
def test_rows_of_a_gpu_can_be_run_small():
    for row in (gpu.paper_step("cpu", "quick", side=64), gpu.experts("cpu", "quick", n=2)):
        row.call()
        row.against[0].call()


def test_without_a_gpu_its_rows_say_so():
    told = benchmark.summary([], "cpu", 1)
    assert set(told) == set(gpu.ENTRIES)
    assert all(entry["value"] is None and entry["missing"] == "no GPU" for entry in told.values())
