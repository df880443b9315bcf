"""Run every chapter of the profiles `full` and `paper`, with their own sizes and almost no steps.

    smoke.py [--cores N] [--profile NAME] [CHAPTER ...]

Networks, horizons, batches, images and channels are the profile's, or the chapter's where the
profile says nothing; CAPS says what is made small.
What is asked is whether a chapter ends: its claims may fail, and nothing is published. All it makes
lies in _run/smoke and is made anew each time. A chapter whose parameters are equal in both profiles
runs once.
"""

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import papermill
import yaml

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "_run" / "smoke"
PROFILES = "full", "paper"
# Name of a parameter -> what it is at most; of the lists in KEPT, the first part is kept.
CAPS = {
    **dict.fromkeys(("diffuser_steps", "reward_steps", "fit_steps", "cloning_steps"), 2),
    **dict.fromkeys(("n_goals", "n_seeds", "rounds", "selected"), 1),
    **dict.fromkeys(("denoising", "particles", "search", "robots", "levels", "picture_levels"), 2),
    **{"episodes": 300, "balls": 10, "plans": 100, "samples": 20, "pictures": 40, "stored": 1},
    **{"n_prompts": 20, "style_prompts": 64, "steered": 10, "scenes_seen": 50},
    **{"transitions": 5_000, "robot_steps": 5_000, "world_steps": 2, "paths": 1_000},
}
KEPT = "maze", "weights", "untils", "transitions"
# What a chapter means otherwise by a name, or needs more of.
OWN = {
    "03_conservative_projection": {"pool": 10_000, "steps": 2},
    "04_gaussians": {"steps": 2, "sweep_steps": 2},
    "05_maze_data": {"plans": 4},
    "15_using_rewards": {"n_goals": 2, "balls": 2},
    "16_do_you_have_to_learn_it": {"plans": 20},
    "10_locomotion_data": {"episodes": 2, "steps": 10},
    "11_locomotion_steering": {"episodes": 2, "steps": 10},
    "12_locomotion_transfer": {"episodes": 2, "steps": 10},
    "13_safe_sampler": {"steps": 2, "n_prompts": 64},
    "14_image_rewards": {"steps": 2, "n_prompts": 64},
}


def defaults(chapter: str) -> dict:
    """A chapter's parameters as its notebook has them."""
    found = papermill.inspect_notebook(ROOT / "notebooks" / f"{chapter}.ipynb")
    return {name: ast.literal_eval(about["default"]) for name, about in found.items()}


def capped(chapter: str, given: dict) -> dict:
    """The parameters of a chapter with almost no work left, on the CPU."""
    caps = CAPS | OWN.get(chapter, {})
    return {name: _capped(name, value, caps) for name, value in given.items()}


def _capped(name: str, value: object, caps: dict) -> object:
    if name == "device":
        return "cpu"
    if isinstance(value, str) and name in KEPT:
        return value.split(",")[0]
    return min(value, caps[name]) if isinstance(value, int) and name in caps else value


def runs(profiles: tuple[str, ...], chapters: list[str]) -> dict[tuple[str, str], dict]:
    """(profile, chapter) -> its parameters; those that are equal in both profiles come once."""
    found: dict[tuple[str, str], dict] = {}
    for profile in profiles:
        path = ROOT / "workflow" / "profiles" / f"{profile}.yaml"
        for chapter, given in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            parameters = capped(chapter, defaults(chapter) | given)
            seen = any(c == chapter and p == parameters for (_, c), p in found.items())
            if not seen and (not chapters or chapter in chapters):
                found[profile, chapter] = parameters
    return found


def smoke(run: tuple[str, str], parameters: dict) -> tuple[str, int, float]:
    """Run one chapter: its name, exit status and processor seconds."""
    profile, chapter = run
    given = parameters | {"results": str(FOLDER / "results" / profile)}
    command = [sys.executable, str(ROOT / "workflow" / "chapter.py")]
    command += [str(ROOT / "notebooks" / f"{chapter}.ipynb")]
    command += [str(FOLDER / profile / "notebooks" / f"{chapter}.ipynb"), json.dumps(given)]
    env = os.environ | {"RRLIB_STORE": str(FOLDER / "artefacts")}
    child = subprocess.Popen(command, env=env, cwd=ROOT)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    return f"{profile} {chapter}", child.returncode, used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("chapters", nargs="*")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--profile", choices=PROFILES, action="append")
    args = parser.parse_args()
    shutil.rmtree(FOLDER, ignore_errors=True)
    wanted = runs(tuple(args.profile or PROFILES), args.chapters)
    with ThreadPoolExecutor(args.cores) as pool:
        ended = list(pool.map(smoke, wanted, wanted.values()))
    for name, code, seconds in sorted(ended, key=lambda end: -end[2]):
        print(f"{seconds:5.0f} s of a core  {name}{': FAILED' if code else ''}")
    if failed := [name for name, code, _ in ended if code]:
        sys.exit(f"{len(failed)} of {len(ended)} chapters failed: {', '.join(failed)}")
    print(f"all {len(ended)} chapters end")


if __name__ == "__main__":
    main()
