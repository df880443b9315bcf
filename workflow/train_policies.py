"""Train the locomotion policies that `rrlib` ships; running those needs nothing of this.

    pip install -e '.[rl]'
    python workflow/train_policies.py train Hopper-v5 --runs _run/policies --steps 300000

SAC from sbx (stable-baselines3 in JAX), on Gymnasium's environments as they are. The actor is kept
every `EVERY` steps, the whole state every `CHECKPOINT` steps; the same command goes on from there.
Nothing is pickled: networks and optimiser are safetensors, the replay buffer is a plain npz.
"""

import argparse
import json
from importlib import metadata
from pathlib import Path

import gymnasium as gym
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import load_file, save_file
from sbx import SAC
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from rrlib import disk

# Networks and batches are half as wide as SAC usually has them, and the actor learns at every other
# update, which together make a step on one core eight times faster; a small actor ships easily.
# The learnt entropy coefficient fell to 0.02 within 100 000 steps of Hopper, and the agent kept to
# one jump and a fall for as long again, so it is held, at the value of SAC's first paper.
SETTINGS = {
    "ent_coef": 0.2,
    "learning_rate": 1e-3,
    "batch_size": 128,
    "policy_delay": 2,
    "learning_starts": 5_000,
    "policy_kwargs": {"net_arch": {"pi": [128, 128], "qf": [128, 128]}},
}
N_ENVIRONMENTS = 8
UPDATES = 32  # at once, after as many steps: one update per step, as usual
EVERY = 10_000  # steps between two snapshots of the actor
CHECKPOINT = 40_000  # steps between two checkpoints
LIBRARIES = ("sbx-rl", "stable-baselines3", "jax", "gymnasium", "mujoco")
BUFFER = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")


def make_agent(environment: str, steps: int, seed: int) -> SAC:
    """A fresh agent that remembers all its steps."""
    environments = make_vec_env(
        environment,
        N_ENVIRONMENTS,
        seed=seed,
        wrapper_class=gym.wrappers.DtypeObservation,
        wrapper_kwargs={"dtype": np.float32},
    )
    return SAC(
        "MlpPolicy",
        environments,
        buffer_size=steps,
        train_freq=UPDATES // N_ENVIRONMENTS,
        gradient_steps=UPDATES,
        seed=seed,
        verbose=1,
        **SETTINGS,
    )


def state(agent: SAC) -> tuple:
    """Everything that learns: actor, critics, entropy coefficient, their optimisers, the key."""
    return agent.policy.actor_state, agent.policy.qf_state, agent.ent_coef_state, agent.key


def save(agent: SAC, folder: Path) -> None:
    """Write a checkpoint; the old one stays until the new one is whole."""
    leaves = {str(i): np.asarray(leaf) for i, leaf in enumerate(jax.tree.leaves(state(agent)))}
    filled = agent.num_timesteps // agent.n_envs  # nothing is ever overwritten
    buffer = {name: getattr(agent.replay_buffer, name)[:filled] for name in BUFFER}
    counts = {"steps": np.array(agent.num_timesteps), "updates": np.array(agent._n_updates)}
    leaves = {f"leaf.{name}": leaf for name, leaf in leaves.items()}
    # An open file, since a path gets ".npz" appended.
    with disk.atomic(folder / "checkpoint.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **buffer, **counts, **leaves)


def restore(agent: SAC, folder: Path) -> None:
    """Go on from a checkpoint, if there is one; the environments begin new episodes."""
    if not (folder / "checkpoint.npz").exists():
        return
    with np.load(folder / "checkpoint.npz", allow_pickle=False) as saved:
        leaves, structure = jax.tree.flatten(state(agent))
        leaves = [jax.numpy.asarray(saved[f"leaf.{i}"]) for i in range(len(leaves))]
        agent.policy.actor_state, agent.policy.qf_state, agent.ent_coef_state, agent.key = (
            jax.tree.unflatten(structure, leaves)
        )
        agent.num_timesteps, agent._n_updates = int(saved["steps"]), int(saved["updates"])
        agent.replay_buffer.pos = len(saved["rewards"])
        for name in BUFFER:
            getattr(agent.replay_buffer, name)[: agent.replay_buffer.pos] = saved[name]
    # Other noise than at the start, or the first steps would be made of the same draws again.
    np.random.seed(agent.seed + agent.num_timesteps)
    agent.policy.key = jax.random.PRNGKey(agent.seed + agent.num_timesteps)
    print(f"going on from step {agent.num_timesteps}")


class Keeper(BaseCallback):
    """Keeps snapshots of the actor, and checkpoints."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def _on_step(self) -> bool:
        step = self.num_timesteps
        if step % EVERY == 0:
            layers = flatten_dict(self.model.policy.actor_state.params["params"], sep=".")
            layers = {name: np.asarray(layer) for name, layer in layers.items()}
            save_file(layers, self.folder / f"{step:08d}.safetensors")
        if step % CHECKPOINT == 0:
            save(self.model, self.folder)
        return True


def train(environment: str, folder: Path, steps: int, seed: int) -> None:
    """Train, or go on training, until `steps` steps are made."""
    folder.mkdir(parents=True, exist_ok=True)
    card = {
        "environment": environment,
        "algorithm": "SAC",
        "settings": SETTINGS,
        "steps": steps,
        "seed": seed,
        "versions": {library: metadata.version(library) for library in LIBRARIES},
    }
    (folder / "training.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    agent = make_agent(environment, steps, seed)
    restore(agent, folder)
    left = steps - agent.num_timesteps
    agent.learn(left, Keeper(folder), log_interval=40, reset_num_timesteps=False)
    save(agent, folder)


def predict(environment: str, file: Path) -> dict[str, list]:
    """What sbx itself does with shipped policies, actions without noise at some observations.

    `tests/predictions.json` keeps these, so that the test of our own actors needs no sbx.
    """
    agent = make_agent(environment, N_ENVIRONMENTS, seed=0)
    width = agent.observation_space.shape[0]
    observations = np.random.default_rng(0).normal(size=(4, width)).round(3).astype(np.float32)
    actions = []
    stacked = load_file(file)
    last = len(stacked) // 2 - 1
    for s in range(len(stacked["bias.0"])):
        layers = {
            (f"Dense_{k}", part): stacked[f"{part}.{k}"][s]
            for k in range(last)
            for part in ("kernel", "bias")
        }
        for part in ("kernel", "bias"):  # mean and log-deviation are two layers of sbx
            halves = np.split(stacked[f"{part}.{last}"][s], 2, axis=-1)
            layers |= {(f"Dense_{last + i}", part): half for i, half in enumerate(halves)}
        layers = {name: layer.astype(np.float32) for name, layer in layers.items()}
        agent.policy.actor_state = agent.policy.actor_state.replace(
            params={"params": unflatten_dict(layers)}
        )
        actions.append(agent.predict(observations, deterministic=True)[0].round(7).tolist())
    return {"observations": observations.tolist(), "actions": actions}


def write_predictions(root: Path) -> None:
    """Write `tests/predictions.json` anew for all shipped policies."""
    found = {}
    for file in sorted((root / "rrlib" / "locomotion" / "policies").glob("*.safetensors")):
        card = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
        found[file.stem] = predict(card["environment"], file)
    text = json.dumps(found) + "\n"
    (root / "tests" / "predictions.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train, or go on training")
    training.add_argument("environment")
    training.add_argument("--runs", type=Path, default=Path("_run/policies"))
    training.add_argument("--steps", type=int, default=300_000)
    training.add_argument("--seed", type=int, default=0)
    commands.add_parser("predict", help="write tests/predictions.json for the shipped policies")
    chosen = parser.parse_args()
    if chosen.command == "train":
        train(chosen.environment, chosen.runs / chosen.environment, chosen.steps, chosen.seed)
    else:
        write_predictions(Path(__file__).resolve().parent.parent)
