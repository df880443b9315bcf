"""Choose snapshots that `train_agents.py` made, and write them to `rrlib/lab/agents/policies/`.

    python workflow/ship_agents.py hopper extracted --runs _run/agents --steps 120000

Of the later half of its training an agent ships the snapshot that earns most without noise, in the
wages that it was trained on and on other seeds than the chapter's: the true reward chooses only
for the agent that learned from it.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from ship_policies import policy, read_snapshot

from rrlib import disk
from rrlib.lab.agents import evidence, experiments
from rrlib.lab.agents.experiments import StepExperiment
from rrlib.locomotion.actors import Policy

CHOICE, COPIES = 1_000_001, 10  # seed and number of the episodes that choose


def earned(made: StepExperiment, teacher: str, actor: Policy) -> float:
    """Mean wages of an episode, without noise; all steps are valued at once, which is faster."""
    copies, payment = made.copies(COPIES), made.payment(teacher, CHOICE)
    observations, going = copies.reset(CHOICE), np.ones(COPIES, bool)
    rows, own = [], 0.0
    while going.any():
        moved = copies.step(actor.act(observations))
        rows.append(moved.rows[going])
        own += moved.own[going].sum() / moved.rows.shape[1]
        going &= ~(moved.fallen | moved.late)
        observations = moved.now
    copies.close()
    if payment is None:
        return own / COPIES
    played = np.concatenate(rows)
    return float(payment(played.reshape(-1, played.shape[2])).sum()) / played.shape[1] / COPIES


def ship(world: str, teacher: str, run: Path, steps: int) -> None:
    """Choose among the snapshots of so many steps, and write the agent and its card."""
    made = experiments.experiment(world)
    files = [file for file in sorted(run.glob("[0-9]*.safetensors")) if int(file.stem) <= steps]
    if not files:
        raise SystemExit(f"there are no snapshots in {run}: run train_agents.py first")
    found = {}
    for file in files[len(files) // 2 :]:
        found[file] = earned(made, teacher, policy(read_snapshot(file)))
        print(f"{world} {teacher} {file.stem}: {found[file]:.2f}", flush=True)
    best = max(found, key=lambda file: found[file])
    evidence.POLICIES.mkdir(exist_ok=True)
    target = evidence.POLICIES / f"{world}-{teacher}.safetensors"
    with disk.atomic(target) as file:
        save_file(read_snapshot(best), file)
    card = json.loads((run / "training.json").read_text(encoding="utf-8"))
    last = int(files[-1].stem)
    card |= {"steps": last, "shipped": int(best.stem), "sha256": disk.sha256(target)}
    disk.write_sealed(target.with_suffix(".json"), card)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("world", choices=experiments.WORLDS)
    parser.add_argument("teacher", choices=experiments.TEACHERS)
    parser.add_argument("--runs", type=Path, default=Path("_run/agents"))
    parser.add_argument("--steps", type=int, default=10**9, help="of a common budget")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    name = f"{chosen.world}-{chosen.teacher}-{chosen.seed}"
    ship(chosen.world, chosen.teacher, chosen.runs / name, chosen.steps)
