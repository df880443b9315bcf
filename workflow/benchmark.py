"""Measure what the page *Speed* shows, side by side, and write results/full/benchmark.json.

    benchmark.py [--rounds N] [--results FOLDER] [--device cuda] [--workers N]

Ratios and exponents are what counts: the seconds in the file say which machine it was. On a CPU
they are of the processor, so that a busy machine is only a little slower; the load at the start
is noted. With --device cuda the rows that need a GPU are measured, too.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from rrlib.lab import results  # sets one thread, before torch is loaded

from bench import forty, gpu, growth, plan_rows, served, timing, world_rows  # isort: skip

ROOT = Path(__file__).resolve().parent.parent
SIZES = "quick", "full", "paper"
TRANSITIONS, PLANS, STEPS = 10_000_000, 10_000, 1_200
EMPTY = dict.fromkeys(("kind", "row", "name", "against", "value", "low", "high"))
EMPTY |= dict.fromkeys(("seconds", "their_seconds", "bar"))


def rows() -> Iterator[Callable[[], timing.Row]]:
    """What makes each row; one at a time, for a row of the paper's size holds gigabytes."""
    yield world_rows.data_making
    yield world_rows.windows
    yield from (partial(plan_rows.diffuser, name) for name in SIZES)
    yield from (partial(plan_rows.pool, name) for name in SIZES[:2])
    yield from (partial(plan_rows.reward_step, name) for name in SIZES[:2])
    yield from (partial(plan_rows.stacked, name) for name in SIZES[:2])
    yield from (partial(plan_rows.sampling, name) for name in SIZES[:2])
    yield world_rows.robots
    yield world_rows.store
    yield plan_rows.scoring
    yield world_rows.graph


def ratios(rounds: int) -> list[dict]:
    """A row of the file for each row of the table and what it is held against."""
    found = []
    for make in rows():
        row = make()
        bars = {other.name: other.bar for other in row.against}
        for name, ratio in timing.measured(row, rounds).items():
            numbers = {"value": ratio.median, "low": ratio.low, "high": ratio.high}
            numbers |= {"seconds": ratio.ours, "their_seconds": ratio.theirs, "bar": bars[name]}
            told = {"kind": "ratio", "row": row.key, "name": row.name, "against": name}
            found.append(EMPTY | told | numbers)
            print(f"{row.name}, {name}: {ratio.median:.3g}", flush=True)
    return found


def exponents(rounds: int) -> list[dict]:
    """A row of the file for each growth."""
    found = []
    for each in (*plan_rows.growths(), *world_rows.growths()):
        power, costs = growth.measured(each, rounds)
        low, high = each.sizes[0], each.sizes[-1]
        told = {"kind": "growth", "row": each.key, "name": each.name}
        told |= {"against": f"{each.of}, {low:,} to {high:,}", "seconds": costs[0]}
        numbers = {"value": power.value, "low": power.low, "high": power.high}
        found.append(EMPTY | told | numbers | {"their_seconds": costs[-1]})
        print(f"{each.name}, {each.of}: exponent {power.value:.2f}", flush=True)
    return found


def single() -> dict[str, dict]:
    """Numbers that are no ratio of two contenders in turns."""
    memory, speed = served.measured(TRANSITIONS)
    words = "10 million transitions"
    told = {"windows_memory": (memory, "<= 1.2", f"{words}: memory over the file")}
    label = f"{words}: windows a second over the 200 000 asked for"
    told["windows_speed"] = speed / 200_000, ">= 1", label
    whole = timing.seconds(plan_rows.scoring(PLANS).call)
    told["scoring_second"] = whole, "<= 1", "10 000 plans scored over the second allowed"
    planned = timing.seconds(world_rows.graph().call)
    told["graph_planned"] = planned / 30, "<= 1", "dry run of the graph over the 30 s allowed"
    many = forty.measured(4_000, STEPS)
    bound = "" if many.equal else ", a lower bound"
    label = "40 rewards of a maze, Algorithm 1 as printed over ours"
    told["forty"] = many.ratio, ">= 50", f"{label}, sample by sample{bound}"
    told["forty_batched"] = many.batched, ">= 50", f"{label}, a batch at once{bound}"
    numbers = {"forty_error": many.error, "forty_reached": many.reached}
    numbers |= {"forty_steps": float(many.steps)}
    bars = {key: {"value": v, "bar": bar, "label": label} for key, (v, bar, label) in told.items()}
    return bars | {key: {"value": value} for key, value in numbers.items()}


def summary(found: list[dict], device: str, workers: int) -> dict[str, dict]:
    """What is held to a bar, and what only a GPU can say."""
    barred = (row for row in found if row["bar"])
    told = {
        f"{row['row']}_{'rate' if 'product' in row['against'] else 'eager'}": {
            "value": row["value"],
            "bar": row["bar"],
            "label": f"{row['name']}: {row['against']}, theirs over ours",
        }
        for row in barred
    }
    measured = gpu.found(device, workers) if device != "cpu" else {}
    for key, (label, bar) in gpu.ENTRIES.items():
        entry = {"value": measured.get(key), "bar": bar, "label": label}
        told[key] = entry if key in measured else entry | {"missing": "no GPU"}
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--results", default=str(ROOT / "results" / "full"))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    args = parser.parse_args()
    asked = {"rounds": args.rounds, "device": args.device, "threads": 1}
    asked |= {"load": round(os.getloadavg()[0], 1), "cores": os.cpu_count()}
    begun = time.monotonic()
    found = [*ratios(args.rounds), *exponents(max(3, args.rounds // 2))]
    told = single() | summary(found, args.device, args.workers)
    seconds = timing.processor_seconds()
    results.publish(
        args.results,
        "benchmark",
        rows=found,
        summary=told,
        parameters=asked,
        wall_seconds=seconds,
    )
    print(f"{time.monotonic() - begun:.0f} s, {seconds:.0f} of the processor", file=sys.stderr)


if __name__ == "__main__":
    main()
