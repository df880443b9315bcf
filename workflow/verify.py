"""Judge the shipped rewards on fresh trajectories and compare with what was published.

    verify.py [--seed SEED]

Runs the mazes' chapter that reads them with all seeds, lets the shipped robots run from fresh
starts, runs the images' chapter on fresh prompts, and ends with an error if a number differs from
results/full by more than such draws can move it. What the scoreboard quotes of models that are too
large to ship is counted again from the rows of its file, by other code. Which rows of the
scoreboard neither reaches is said at the end. The executed chapters, figures and all, are left in
_run/verify/notebooks/.
"""

import argparse
import functools
import json
import sys
from pathlib import Path

import numpy as np
import yaml
from recounts import recount
from watch import locked, start

from rrlib import metrics
from rrlib.lab import results
from rrlib.lab.locomotion import files as locomotion_files
from rrlib.lab.mazes import experiments as maze_experiments
from rrlib.locomotion import world as locomotion
from rrlib.mazes import world as maze
from rrlib.method.reward_files import load_rewards

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "_run" / "verify"
FULL = ROOT / "results" / "full"
# 160 peaks: three may move across the line. The mean of 32 accuracies moves by about 0.003, one of
# them by 0.008.
TOLERANCES = {
    "goal_found": 3 / 160,
    "goal_found_simple": 3 / 80,
    "goal_found_advanced": 3 / 80,
    "logreg_mean": 0.01,
    "logreg_min": 0.03,
    "auc": 0.01,
}
STEPS = FULL / "maze2d-step-rewards.safetensors"
# Means over 32 goals of 100 trajectories each; two seeds were 0.002 and 0.013 apart.
STEP_TOLERANCES = {"rises": 0.02, "step_correlation": 0.05}
ROBOTS = FULL / "locomotion-models.safetensors"
LATE = 5  # the step of Table 5's row down to which the steered robot is steered
PLAYED = {"base": "base", "steered": "reward", "expert": "expert"}  # what it is called in results
EPISODES = 32
SHARES = (
    "accuracy",
    "hazard_bottom",
    "hazard_top",
    "base_hazard",
    "steered_hazard",
    "style_accuracy",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seed", type=int, default=2, help="of the fresh trajectories")
    seed = parser.parse_args().seed
    try:
        with locked(FOLDER.with_suffix(".lock")) as lock:
            failed = [*mazes(seed, lock), *steps(seed), *robots(seed), *images(seed, lock)]
            failed += scoreboard()
    except BlockingIOError:
        sys.exit(f"another run is under way in {FOLDER}")
    except KeyboardInterrupt:
        sys.exit("interrupted")
    if failed:
        sys.exit(f"not as published: {', '.join(failed)}")


def run(chapter: str, lock: int, **parameters) -> None:
    """Execute a chapter; what it publishes is found in FOLDER."""
    parameters["results"] = str(FOLDER / "results" / "verify")
    notebook, output = (folder / "notebooks" / f"{chapter}.ipynb" for folder in (ROOT, FOLDER))
    command = [sys.executable, str(ROOT / "workflow" / "chapter.py"), str(notebook), str(output)]
    if start([*command, json.dumps(parameters)], lock):
        sys.exit(f"chapter {chapter} failed, and nothing was judged by it")
    print(f"the executed chapter: {output}", flush=True)


def mazes(seed: int, lock: int) -> list[str]:
    """The shipped rewards of mazes; the names of the numbers that are too far off."""
    run("07_maze_grid", lock, seed=seed, n_seeds=5, episodes=1000, plans=8000)
    fresh = results.read(FOLDER / "results" / "verify" / "maze2d-verify.json")["rows"]
    found = {name: recount("maze2d", name, fresh) for name in TOLERANCES}
    return report(summary(FULL / "maze2d.json"), found, TOLERANCES)


def steps(seed: int) -> list[str]:
    """The shipped rewards of a step, along whole trajectories; the names of those too far off."""
    rises, correlations = [], []
    of_base = functools.cache(lambda world: maze_experiments.fresh(world, None, 100, seed))
    for reward, about in load_rewards(STEPS).values():
        world, goal = maze.load(about["maze"]), tuple(about["goal"])
        base, expert = of_base(world), maze_experiments.fresh(world, goal, 100, seed)
        cells = [world.to_cells(part.observations[:, :2]) for part in (base, expert)]
        along = reward.score(expert).per_step.reshape(100, -1)
        rises.append(np.mean(along[:, -1] > along[:, 0]))
        heat = metrics.heat_map(cells[0], reward.score(base).per_step, world.walls.shape)
        visits = metrics.log_visit_ratio(*cells, world.walls.shape)
        correlations.append(metrics.rank_correlation(heat, visits))
    found = {"rises": float(np.mean(rises)), "step_correlation": float(np.mean(correlations))}
    return report(summary(FULL / "maze2d-use.json"), found, STEP_TOLERANCES)


def images(seed: int, lock: int) -> list[str]:
    """The shipped rewards of images on fresh prompts; the names of the numbers too far off.

    Allowed are four standard errors of the difference of two shares.
    """
    run("14_image_rewards", lock, seed=seed, n_prompts=200, style_prompts=100, steered=100)
    places = FULL, FOLDER / "results" / "verify"
    both = [results.read(place / "images.json")["summary"] for place in places]
    halves = {n: [(s[n]["ci"][1] - s[n]["ci"][0]) / 2 for s in both] for n in SHARES}
    tolerances = {name: float(2 * np.hypot(*pair)) for name, pair in halves.items()}
    return report(*(summary(place / "images.json") for place in places), tolerances)


def robots(seed: int) -> list[str]:
    """Scores of the shipped planners beside the published ones; the names of those too far off.

    Allowed are four standard errors of the difference of two means, and one point for float16.
    """
    shipped = locomotion_files.read(ROBOTS)
    name = shipped.world.name
    rows = results.read(FULL / "locomotion.json")["rows"]
    # The shipped pair is the first of its robot.
    mine = {r["planner"]: r for r in reversed(rows) if r["environment"] == name}
    runs = {label: (who, {}) for who, label in PLAYED.items()}
    runs[f"until_{LATE}"] = "steered", {"stop_step": LATE}
    published, found, tolerances = summary(FULL / "locomotion.json"), {}, {}
    for planner, (who, how) in runs.items():
        played = shipped.play(who, EPISODES, locomotion.HORIZON, seed, **how)
        scores, label = locomotion.scores(shipped.world, played), f"{name}.{planner}"
        found[label], error = float(scores.mean()), scores.std(ddof=1) / EPISODES**0.5
        theirs = error  # of a number without an interval, as large as ours
        if row := mine.get(planner):
            published[label] = row["score"]
            theirs = (row["score_high"] - row["score_low"]) / 4
        tolerances[label] = float(4 * np.hypot(error, theirs) + 1)
    return report(published, found, tolerances)


def scoreboard() -> list[str]:
    """Rows of the paper that results/full has, counted again; the names of those that differ."""
    fresh = {("maze2d", name) for name in TOLERANCES} | {("images", name) for name in SHARES}
    fresh.add(("locomotion", f"hopper.until_{LATE}"))
    differ, neither, again = [], [], 0
    rows = yaml.safe_load((ROOT / "workflow" / "paper.yaml").read_text(encoding="utf-8"))
    names = [(row["study"], row["name"]) for row in rows if "study" in row]
    values = {name: value for name in names if (value := in_full(*name)) is not None}
    for (study, name), value in values.items():
        found = recount(study, name, results.read(FULL / f"{study}.json")["rows"])
        again += found is not None
        if found is None and (study, name) not in fresh:
            neither.append(f"{study}.{name}")
        elif found is not None and not np.isclose(found, value, rtol=1e-9, atol=0):
            differ.append(f"{study}.{name}, counted again")
    judged = len(fresh & set(values))
    print(
        f"scoreboard: {len(values)} rows of the paper with a full run, {judged} judged on fresh "
        f"draws, {again} counted again, neither of {len(neither)} ({', '.join(neither) or '-'})"
    )
    return differ


def in_full(study: str, name: str) -> float | None:
    """A number of results/full; None where there is none."""
    path = FULL / f"{study}.json"
    value = summary(path).get(name) if path.exists() else None
    return None if value is None or np.isnan(value) else value


def report(
    published: dict[str, float], found: dict[str, float], tolerances: dict[str, float]
) -> list[str]:
    """Print both numbers of every quantity; the names of those that differ too much."""
    failed = []
    for name, tolerance in tolerances.items():
        apart = abs(found[name] - published[name])
        failed += [] if apart <= tolerance else [name]  # so fails what could not be measured, NaN
        print(
            f"{name}: {found[name]:.4f} on fresh trajectories, {published[name]:.4f} published, "
            f"{apart:.4f} apart ({tolerance:.4f} allowed)"
        )
    return failed


def summary(path: Path) -> dict[str, float]:
    """The numbers of a published result, by name; NaN for one that could not be measured."""
    entries = results.read(path)["summary"]
    values = {k: v["value"] if isinstance(v, dict) else v for k, v in entries.items()}
    return {k: float("nan") if value is None else value for k, value in values.items()}


if __name__ == "__main__":
    main()
