"""Behaviour cloning: what of an expert's data an agent has without any reward."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from rrlib import training
from rrlib.lab import costs, recipes, store
from rrlib.lab.locomotion.recipes import LocomotionData
from rrlib.locomotion.actors import Actor
from rrlib.plans import normalisers
from rrlib.plans.normalisers import Normaliser


@dataclass(frozen=True)
class ClonedPolicy:
    """A perceptron that does what was done: the mean squared error of the action (BC).

    Raises:
        InputError: training would take more memory than there is, or months.
    """

    data: LocomotionData
    hidden: int = 256
    steps: int = 5_000
    batch: int = 256
    learning_rate: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        each = costs.perceptron_step(self.batch, 1, 23, self.hidden, 1)
        costs.check_training(each, self.steps, batch=self.batch, hidden=self.hidden)

    def make(self, folder: Path, device: str) -> None:
        """Train the network, write `policy.safetensors`."""
        data = store.obtain(self.data)
        ruler = normalisers.standardiser(data)
        rows = np.concatenate([data.actions, data.observations], 1)
        wide = data.actions.shape[1]
        seen = torch.from_numpy(ruler.normalise(rows)[:, wide:]).to(device)
        done = torch.from_numpy(data.actions).to(device)
        network = self.blank(wide, seen.shape[1]).to(device)

        def loss(draws: torch.Generator) -> Tensor:
            chosen = torch.randint(len(seen), (self.batch,), generator=draws, device=device)
            return functional.mse_loss(network(seen[chosen]), done[chosen])

        file = folder / "policy.safetensors"
        recipes.fitted(network, loss, file, "behaviour cloning", **training.options(self))
        ranges = {name: torch.from_numpy(a) for name, a in ruler.to_arrays().items()}
        save_file(network.state_dict() | {f"ruler.{k}": v for k, v in ranges.items()}, file)

    def load(self, folder: Path, device: str) -> Actor:
        """Observations [n, do] -> actions [n, da]."""
        found = load_file(folder / "policy.safetensors")
        ruler = Normaliser(*(found.pop(f"ruler.{side}").numpy() for side in ("low", "high")))
        observation = found["0.weight"].shape[1]
        wide = len(ruler.low) - observation
        network = self.blank(wide, observation).to(device)
        network.load_state_dict(found)
        network.requires_grad_(False)

        def act(observations: np.ndarray) -> np.ndarray:
            rows = np.zeros((len(observations), wide + observation), np.float32)
            rows[:, wide:] = observations
            x = torch.from_numpy(ruler.normalise(rows)[:, wide:]).to(device)
            return network(x).clamp(-1, 1).cpu().numpy()

        return act

    def blank(self, action: int, observation: int) -> nn.Sequential:
        """The network before training."""
        torch.manual_seed(self.seed)
        layers = [nn.Linear(observation, self.hidden), nn.ReLU()]
        layers += [nn.Linear(self.hidden, self.hidden), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(self.hidden, action))
