"""A pair of planners and its reward in one small file, so that anyone can play them again."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rrlib import rollouts, store, training
from rrlib.denoisers import Denoiser
from rrlib.errors import InputError
from rrlib.locomotion import Environment
from rrlib.locomotion_experiments import LocomotionExperiment, experiments
from rrlib.rewards import Place, RelativeReward
from rrlib.trajectories import Normaliser, Trajectories

PARTS = "base", "expert", "reward"
CHOSEN = "base_kind", "transitions", "size", "diffuser_steps"  # chapters' parameters


@dataclass(frozen=True)
class Shipped:
    """What a file holds.

    Attributes:
        world: the environment.
        base, expert: planners.
        reward: extracted from the two.
        normaliser: of their plans.
        horizon: steps of a plan.
        guidance: `weight`, `until`, `place` and `onto` that the reward is used with, and
            `denoising`, see `steering.denoise`.
        device: where the networks are.
    """

    world: Environment
    base: Denoiser
    expert: Denoiser
    reward: RelativeReward
    normaliser: Normaliser
    horizon: int
    guidance: dict[str, float | int | Place]
    device: str

    def planner(self, who: str, seed: int, **guidance) -> rollouts.Planner:
        """Plans of the "base", the "expert", or the base "steered" by the reward.

        Args:
            who: which.
            seed: of the noise.
            guidance: in place of the file's own.
        """
        model = self.expert if who == "expert" else self.base
        how = self.guidance | guidance
        how |= {"reward": self.reward, "anyway": True}
        if who != "steered":
            how = {"denoising": how["denoising"]}
        draws = training.stream(seed, "plans", self.device)
        return rollouts.planner(model, self.normaliser, self.world, self.horizon, draws, **how)

    def play(self, who: str, episodes: int, steps: int, seed: int) -> Trajectories:
        """Episodes of such plans.

        Args:
            who: see `planner`.
            episodes, steps, seed: see `rollouts.play`.
        """
        return rollouts.play(self.world, self.planner(who, seed), episodes, seed, steps=steps)


def write(path: str | Path, e: LocomotionExperiment, chosen: SimpleNamespace, **guidance) -> None:
    """Write base, expert and reward of one pair; weights are rounded to float16.

    The file appears whole or not at all.

    Args:
        path: of the file.
        e: the pair, of our own data.
        chosen: the chapter's checked parameters.
        guidance: that the reward is used with, see `Shipped`.
    """
    about = {name: getattr(chosen, name) for name in CHOSEN}
    about |= {"environment": e.world.name, "seed": e.base.seed, "place": e.reward.place}
    models = (store.obtain(getattr(e, part)) for part in PARTS)
    tensors = {
        # The unit is a table, not a weight, and small at some t.
        f"{part}/{name}": value if name.endswith("unit") else value.half()
        for part, model in zip(PARTS, models, strict=True)
        for name, value in model.network.state_dict().items()
    }
    ruler = e.base.split().normaliser.to_arrays()
    tensors |= {f"normaliser/{name}": torch.from_numpy(array) for name, array in ruler.items()}
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.unfinished")
    save_file(tensors, temporary, {"about": json.dumps(about), "guidance": json.dumps(guidance)})
    temporary.replace(path)


def read(path: str | Path, device: str = "cpu") -> Shipped:
    """The planners and the reward of a file that `write` made, in single precision.

    Raises:
        InputError: there is no such file, or it holds something else.
    """
    try:
        with safe_open(path, "pt") as file:
            about, guidance = (json.loads(file.metadata()[k]) for k in ("about", "guidance"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _shipped(about, guidance, tensors, device)
    except FileNotFoundError:
        raise InputError(f"File '{path}' does not exist.") from None
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, OSError) as error:
        raise InputError(f"File '{path}' holds no planners of this book: {error}.") from None


def _shipped(about: dict, guidance: dict, tensors: dict[str, torch.Tensor], device: str) -> Shipped:
    own = {"environment": (about["environment"],), "n_seeds": 1, "base_path": "", "expert_path": ""}
    (e,) = experiments(SimpleNamespace(**about | own), reward_steps=1)
    base, expert, rho = e.base.blank(device), e.expert.blank(device), e.reward.blank().to(device)
    for part, network in zip(PARTS, (base.network, expert.network, rho), strict=True):
        mine = {k.removeprefix(f"{part}/"): v for k, v in tensors.items() if k.startswith(part)}
        network.load_state_dict({name: value.float() for name, value in mine.items()})
        network.eval().requires_grad_(False)
    reward = RelativeReward(rho, e.reward.target, about["place"])
    ruler = Normaliser(*(tensors[f"normaliser/{side}"].numpy() for side in ("low", "high")))
    return Shipped(e.world, base, expert, reward, ruler, e.base.horizon, guidance, device)
