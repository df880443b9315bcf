"""A pair of planners and its reward in one small file, so that anyone can play them again."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from rrlib import training
from rrlib.errors import InputError, shown
from rrlib.lab import store
from rrlib.lab.locomotion.experiments import LocomotionExperiment
from rrlib.lab.locomotion.recipes import LocomotionData, LocomotionDiffuser
from rrlib.lab.locomotion.rewards import LocomotionPool, LocomotionReward, as_guidance
from rrlib.locomotion import rollouts
from rrlib.locomotion.robots import Environment
from rrlib.method.denoisers import Denoiser
from rrlib.method.networks import files
from rrlib.method.pools import Place
from rrlib.method.rewards import RelativeReward
from rrlib.plans.layouts import PlanLayout
from rrlib.plans.normalisers import Normaliser
from rrlib.plans.trajectories import Trajectories
from rrlib.tensor_files import halved, read_tensors, write_tensors

PARTS = "base", "expert", "reward"
CHOSEN = "base_kind", "transitions", "size", "diffuser_steps"  # chapters' parameters
# What networks are built from: fields of the recipes, kept so that reading asks no preset.
PLANNER = "horizon", "diffusion_steps", "hidden", "blocks", "channels"
REWARD = "hidden", "blocks", "scalar", "channels", "target"


@dataclass(frozen=True)
class Shipped:
    """What a file holds.

    Attributes:
        world: the environment.
        base, expert: planners.
        reward: extracted from the two.
        normaliser: of their plans.
        horizon: steps of a plan.
        guidance: `guidance_scale`, `stop_step`, `place`, `apply_to` and `num_inference_steps`
            that the reward is used with, see `guidance.denoise`.
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
        how |= {"reward": self.reward, "force": True}
        if who != "steered":
            how = {"num_inference_steps": how["num_inference_steps"]}
        draws = training.stream(seed, "plans", self.device)
        return rollouts.planner(model, self.normaliser, self.world, self.horizon, draws, **how)

    def play(self, who: str, episodes: int, steps: int, seed: int, **guidance) -> Trajectories:
        """Episodes of such plans.

        Args:
            who, guidance: see `planner`.
            episodes, steps, seed: see `rollouts.play`.
        """
        plans = self.planner(who, seed, **guidance)
        return rollouts.play(self.world, plans, episodes, seed, steps=steps)


def write(path: str | Path, e: LocomotionExperiment, chosen: SimpleNamespace, **how) -> None:
    """Write base, expert and reward of one pair; weights are rounded to float16.

    The file appears whole or not at all, carries a checksum, and holds all that its networks are
    built from.

    Args:
        path: of the file.
        e: the pair, of our own data.
        chosen: the chapter's checked parameters.
        how: `weight`, `until`, `place`, `onto` and `denoising` that the reward is used with, see
            `LocomotionRollouts`.

    Raises:
        InputError: a weight that float16 cannot hold, or a file that cannot be written.
    """
    about = {name: getattr(chosen, name) for name in CHOSEN}
    about |= {"environment": e.world.name, "seed": e.base.seed, "place": e.reward.place}
    shapes = {"planner": _fields(e.base, PLANNER), "reward": _fields(e.reward, REWARD)}
    models = (store.obtain(getattr(e, part)) for part in PARTS)
    tensors = {
        # The unit is a table, not a weight, and small at some t.
        f"{part}/{name}": value.cpu() if name.endswith("unit") else halved(value, name)
        for part, model in zip(PARTS, models, strict=True)
        for name, value in model.network.state_dict().items()
    }
    ruler = e.base.normaliser.to_arrays()
    tensors |= {f"normaliser/{name}": torch.from_numpy(array) for name, array in ruler.items()}
    texts = {"about": about, "shapes": shapes, "guidance": as_guidance(**how)}
    said = {name: json.dumps(value) for name, value in texts.items()}
    write_tensors(path, tensors, told(said, tensors))


def told(texts: dict[str, str], tensors: dict[str, Tensor]) -> dict[str, str]:
    """The texts of a file, with one by which `load_rewards` finds the reward, too.

    Args:
        texts: `about`, `shapes` and `guidance`.
        tensors: of all parts.
    """
    about, shapes, guidance = (json.loads(texts[k]) for k in ("about", "shapes", "guidance"))
    shipped = _shipped(about, shapes, guidance, tensors, "cpu")
    world, reward = shipped.world, shipped.reward
    layout = PlanLayout(
        shipped.normaliser, world.action, world.observation, horizon=shipped.horizon
    )
    data = f"planner of {world.name}, data of D4RL's kind"
    named = {"base": f"{data} '{about['base_kind']}'", "expert": f"{data} 'expert'"}
    about = {"environment": world.name, "seed": about["seed"], "models": named} | layout.about()
    entry = files.Entry(reward.network, reward.target, reward.place, about)
    return texts | {files.TEXT: files.header({"reward": entry})}


def _fields(recipe: LocomotionDiffuser | LocomotionReward, names: tuple[str, ...]) -> dict:
    return {name: getattr(recipe, name) for name in names}


def read(path: str | Path, device: str = "cpu") -> Shipped:
    """The planners and the reward of a file that `write` made, in single precision.

    Raises:
        InputError: there is no such file, it is damaged, or it holds something else.
    """
    tensors, texts = read_tensors(path)
    try:
        about, shapes, guidance = (json.loads(texts[k]) for k in ("about", "shapes", "guidance"))
        return _shipped(about, shapes, guidance, tensors, device)
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(
            f"File '{path}' holds no planners of this book ({shown(str(error))})."
        ) from None


def _shipped(
    about: dict, shapes: dict, guidance: dict, tensors: dict[str, Tensor], device: str
) -> Shipped:
    # Networks are built as their recipes build them; of its data a recipe then asks the name alone.
    data = LocomotionData(about["environment"], "random")
    planner, rho = (
        {name: _tuple(v) for name, v in shapes[k].items()} for k in ("planner", "reward")
    )
    recipe = LocomotionDiffuser(data, (data,), **planner)
    reward = LocomotionReward(LocomotionPool(recipe, recipe), **rho)
    base, expert = recipe.blank(device), recipe.blank(device)
    network = reward.blank().to(device)
    for part, found in zip(PARTS, (base.network, expert.network, network), strict=True):
        _fill(found, part, tensors)
    ruler = Normaliser(*(tensors[f"normaliser/{side}"].numpy() for side in ("low", "high")))
    return Shipped(
        recipe.environment,
        base,
        expert,
        RelativeReward(network, reward.target, about["place"]),
        ruler,
        recipe.horizon,
        guidance,
        device,
    )


def _tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value  # JSON knows no tuples


def _fill(network: nn.Module, part: str, tensors: dict[str, Tensor]) -> None:
    """Give a network the weights of its part, frozen."""
    mine = {k.removeprefix(f"{part}/"): v for k, v in tensors.items() if k.startswith(f"{part}/")}
    network.load_state_dict({name: value.float() for name, value in mine.items()})
    network.eval().requires_grad_(False)
