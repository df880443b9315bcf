"""Judge the shipped rewards on fresh trajectories and compare with what was published.

    verify.py [--seed SEED]

Runs the mazes' chapter that reads them with all seeds, lets the shipped robots run from fresh
starts, runs the images' chapter on fresh prompts, and ends with an error if a number differs from
results/full by more than such draws can move it. The executed chapters, figures and all, are left
in _run/verify/notebooks/.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from watch import locked, start

from rrlib.lab import results
from rrlib.lab.locomotion import files as locomotion_files
from rrlib.locomotion import world as locomotion

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "_run" / "verify"
# 160 peaks: three may move across the line. The mean of 32 accuracies moves by about 0.003.
TOLERANCES = {"goal_found": 3 / 160, "logreg_mean": 0.01}
ROBOTS = ROOT / "results" / "full" / "locomotion-models.safetensors"
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
            failed = [*mazes(seed, lock), *robots(seed), *images(seed, lock)]
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
    found = FOLDER / "results" / "verify" / "maze2d-verify.json"
    return report(summary(ROOT / "results" / "full" / "maze2d.json"), summary(found), TOLERANCES)


def images(seed: int, lock: int) -> list[str]:
    """The shipped rewards of images on fresh prompts; the names of the numbers too far off.

    Allowed are four standard errors of the difference of two shares.
    """
    run("14_image_rewards", lock, seed=seed, n_prompts=200, style_prompts=100, steered=100)
    places = ROOT / "results" / "full", FOLDER / "results" / "verify"
    both = [results.read(place / "images.json")["summary"] for place in places]
    halves = {n: [(s[n]["ci"][1] - s[n]["ci"][0]) / 2 for s in both] for n in SHARES}
    tolerances = {name: float(2 * np.hypot(*pair)) for name, pair in halves.items()}
    return report(*(summary(place / "images.json") for place in places), tolerances)


def robots(seed: int) -> list[str]:
    """Scores of the shipped planners beside the published ones; the names of those too far off.

    Allowed are four standard errors of the difference of two means, and one point for float16.
    """
    shipped = locomotion_files.read(ROBOTS)
    rows = results.read(ROOT / "results" / "full" / "locomotion.json")["rows"]
    mine = {r["planner"]: r for r in rows if r["environment"] == shipped.world.name}
    published, found, tolerances = {}, {}, {}
    for planner, name in PLAYED.items():
        played = shipped.play(planner, EPISODES, locomotion.HORIZON, seed)
        scores = locomotion.scores(shipped.world, played)
        row, label = mine[name], f"{shipped.world.name}.{name}"
        published[label], found[label] = row["score"], float(scores.mean())
        half = (row["score_high"] - row["score_low"]) / 2  # two standard errors
        error = np.hypot(half / 2, scores.std(ddof=1) / EPISODES**0.5)
        tolerances[label] = float(4 * error + 1)
    return report(published, found, tolerances)


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
