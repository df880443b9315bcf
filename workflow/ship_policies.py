"""Choose snapshots that `train_policies.py` made, measure them, and write them to
`rrlib/locomotion/policies/`.

    python workflow/ship_policies.py hopper --runs _run/policies

The expert is the snapshot that scores best without noise. The medium level is the first that scores
`MEDIUM` with its noise, and the replay snapshots are spaced equally up to it. What the card reports
is measured on the weights as shipped (float16), on other episodes than those that chose.
"""

import argparse
import json
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file
from scipy import stats

from rrlib import disk
from rrlib.locomotion import actors, robots
from rrlib.locomotion import world as locomotion
from rrlib.locomotion.actors import Actor, Policy
from rrlib.locomotion.robots import Environment

MEDIUM = 40.0  # normalised score; D4RL's medium policies have 42 to 62
SNAPSHOTS = 11  # at most, of the replay
CHOICE, REPORT = 1, 2  # seeds: what chooses does not report
FEW, MANY = 10_000, 100_000  # transitions, of a snapshot and of a set


def read_snapshot(file: Path) -> dict[str, np.ndarray]:
    """A snapshot in the shipped form: the heads for mean and log-deviation side by side."""
    found = load_file(file)
    *hidden, mean, log_std = sorted({name.split(".")[0] for name in found})
    layers = {}
    for part in ("kernel", "bias"):
        arrays = [found[f"{name}.{part}"] for name in hidden]
        arrays.append(np.concatenate([found[f"{name}.{part}"] for name in (mean, log_std)], -1))
        layers |= {f"{part}.{k}": array.astype(np.float16) for k, array in enumerate(arrays)}
    return layers


def policy(layers: dict[str, np.ndarray]) -> Policy:
    """The policy of a snapshot."""
    arrays = {name: array.astype(np.float32) for name, array in layers.items()}
    return Policy(
        tuple((arrays[f"kernel.{k}"], arrays[f"bias.{k}"]) for k in range(len(arrays) // 2))
    )


def measured(scores: np.ndarray) -> dict:
    """Mean over episodes, its 95 % interval (Student's), and the number of episodes."""
    low, high = stats.t.interval(0.95, len(scores) - 1, np.mean(scores), stats.sem(scores))
    rounded = {"mean": scores.mean(), "low": low, "high": high}
    return {name: round(float(x), 2) for name, x in rounded.items()} | {"episodes": len(scores)}


def play(environment: Environment, actor: Actor, transitions: int, seed: int) -> np.ndarray:
    """Normalised scores of an actor's episodes."""
    rng = np.random.default_rng(seed)
    return locomotion.scores(environment, locomotion.collect(environment, actor, transitions, rng))


def drawn(one: Policy, seed: int) -> Actor:
    """The policy with its noise, of a seed."""
    return partial(one.act, rng=np.random.default_rng(seed))


def choose(environment: Environment, files: list[Path]) -> list[Path]:
    """The files to ship: replay snapshots up to the medium level, then the expert."""
    policies = {file: policy(read_snapshot(file)) for file in files}
    for medium in files:
        score = play(environment, drawn(policies[medium], CHOICE), FEW, CHOICE).mean()
        print(f"{medium.stem} with noise {score:.1f}", flush=True)
        if score >= MEDIUM:
            break
    else:
        raise SystemExit(f"no snapshot scores {MEDIUM:g} with its noise: train longer")
    replay = files[: files.index(medium) + 1]
    places = np.linspace(len(replay) - 1, 0, min(SNAPSHOTS, len(replay))).round().astype(int)
    best = {}
    for file in files[len(files) // 2 :]:
        best[file] = play(environment, policies[file].act, FEW, CHOICE).mean()
        print(f"{file.stem} without {best[file]:.1f}", flush=True)
    return [replay[k] for k in reversed(places)] + [max(best, key=best.get)]


def ship(environment: Environment, run: Path) -> None:
    """Choose, write the policies and their card, measure what was written."""
    snapshots = sorted(run.glob("[0-9]*.safetensors"))
    files = choose(environment, snapshots)
    layers = [read_snapshot(file) for file in files]
    stacked = {name: np.stack([one[name] for one in layers]) for name in layers[0]}
    with disk.atomic(actors.POLICIES / f"{environment.name}.safetensors") as file:
        save_file(stacked, file)
    card = json.loads((run / "training.json").read_text(encoding="utf-8"))
    card |= {"steps": int(snapshots[-1].stem), "snapshots": [], "sets": {}}
    card["sha256"] = actors.digest(environment)
    card["score"] = (
        "mean over whole episodes of D4RL's normalised score, 95 % interval of Student's t"
    )
    actors.write_card(environment, card)
    for source, one in zip(files, actors.load_policies(environment), strict=True):
        scores = {"mode": one.act, "drawn": drawn(one, REPORT)}
        scores = {name: measured(play(environment, a, FEW, REPORT)) for name, a in scores.items()}
        card["snapshots"].append({"steps": int(source.stem)} | scores)
    for kind in locomotion.KINDS:
        data = locomotion.make_trajectories(environment, kind, MANY, REPORT)
        card["sets"][kind] = measured(locomotion.scores(environment, data))
        print(kind, card["sets"][kind], flush=True)
    actors.write_card(environment, card)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("environment", choices=list(robots.ENVIRONMENTS))
    parser.add_argument("--runs", type=Path, default=Path("_run/policies"))
    chosen = parser.parse_args()
    world = robots.load(chosen.environment)
    ship(world, chosen.runs / f"{world.gymnasium}-v5")
