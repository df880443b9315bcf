"""The policies that make locomotion data: shipped with a card each, read and run.

`workflow/train_policies.py` trained them; there is no reinforcement learning here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
from safetensors.numpy import load_file

from rrlib import disk
from rrlib.errors import InputError
from rrlib.locomotion.robots import Environment

Actor = Callable[[np.ndarray], np.ndarray]  # observations [n, do] float32 -> actions [n, da]

POLICIES = Path(__file__).resolve().parent / "policies"
LOG_STD_RANGE = (-20, 2)  # SAC's, of an action's logarithmic deviation before tanh


@dataclass(frozen=True, eq=False)
class Policy:
    """An actor of SAC: a ReLU network gives a Gaussian, and tanh of that is the action.

    Attributes:
        layers: kernel [in, out] and bias [out] of each; the last gives mean and log-deviation.
    """

    layers: tuple[tuple[np.ndarray, np.ndarray], ...]

    def act(self, observations: np.ndarray, rng: np.random.Generator | None = None) -> np.ndarray:
        """Actions float32 [n, da] at observations [n, do]: the mode, or drawn if there is `rng`."""
        x = np.asarray(observations, dtype=np.float32)
        for kernel, bias in self.layers[:-1]:
            x = np.maximum(x @ kernel + bias, 0)
        kernel, bias = self.layers[-1]
        mean, log_std = np.split(x @ kernel + bias, 2, axis=-1)
        if rng is None:
            return np.tanh(mean)
        noise = rng.standard_normal(mean.shape, dtype=np.float32)
        return np.tanh(mean + np.exp(np.clip(log_std, *LOG_STD_RANGE)) * noise)


def load_policies(environment: Environment) -> tuple[Policy, ...]:
    """Snapshots of the agent along its training, up to the medium level, and last the expert.

    Raises InputError if none are shipped, if the file is damaged, or if this is another major
    version of MuJoCo than the one they were trained in.
    """
    file = policy_file(environment)
    if digest(environment) != card(environment)["sha256"]:
        raise InputError(f"Policy file '{file}' is damaged: one with its card's sha256 is needed.")
    check_version(environment)
    stacked = load_file(file)  # kernel.k [snapshots, in, out] and bias.k [snapshots, out], float16
    stacked = {name: array.astype(np.float32) for name, array in stacked.items()}
    depth = len(stacked) // 2
    return tuple(
        Policy(tuple((stacked[f"kernel.{k}"][s], stacked[f"bias.{k}"][s]) for k in range(depth)))
        for s in range(len(stacked["bias.0"]))
    )


def check_version(environment: Environment) -> None:
    """Raise InputError if policies are missing or were trained in another major MuJoCo."""
    trained = card(environment)["versions"]["mujoco"]
    if mujoco.__version__.partition(".")[0] != trained.partition(".")[0]:
        raise InputError(
            f"mujoco = {mujoco.__version__} differs from the {trained} that the policies of "
            f"environment = '{environment.name}' were trained in: the same major version is needed."
        )


def policy_file(environment: Environment) -> Path:
    """The file of the environment's policies, its card beside it; InputError if there is none."""
    file = POLICIES / f"{environment.name}.safetensors"
    if not file.exists():
        shipped = ", ".join(sorted(path.stem for path in POLICIES.glob("*.json")))
        raise InputError(
            f"No policies of environment = '{environment.name}' are shipped: allowed are "
            f"{shipped}, or a dataset of your own."
        )
    return file


def card(environment: Environment) -> dict:
    """How the environment's policies were trained and what they score.

    Raises InputError if there are none, or if the card is not as `write_card` left it.
    """
    file = policy_file(environment).with_suffix(".json")
    found = disk.read_json(file)
    told = found.pop("card_sha256", None) if isinstance(found, dict) else None
    if told is None or told != disk.digest(found):
        raise InputError(f"File '{file}' is damaged: a card of policies, as shipped, is needed.")
    return found


def write_card(environment: Environment, content: dict) -> None:
    """Write the card of the environment's policies, with a sha256 of all that it says."""
    file = POLICIES / f"{environment.name}.json"
    disk.write_json(file, content | {"card_sha256": disk.digest(content)})


def digest(environment: Environment) -> str:
    """The sha256 of the environment's policies; InputError if there are none."""
    return disk.sha256(policy_file(environment))
