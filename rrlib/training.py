"""The training loop: a generator of typed progress, with an average of the weights and resume."""

import copy
import hashlib
import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from tqdm import tqdm

from rrlib.disk import set_aside
from rrlib.errors import InputError
from rrlib.tensor_files import read_tensors, write_tensors

ROUNDING = 0.02  # by which measured numbers of size 1 may differ between two machines


@dataclass(frozen=True)
class Progress:
    """One optimisation step: its number (from 1), how many there will be, and the batch's loss."""

    step: int
    steps: int
    loss: Tensor  # []


def stream(seed: int, use: int | str, device: str = "cpu") -> torch.Generator:
    """Random numbers for one use, such as a training step: a function of (seed, use) alone.

    A run that is resumed at some step therefore draws what an uninterrupted run draws there.
    """
    return torch.Generator(device).manual_seed(derived_seed(seed, use))


def derived_seed(seed: int, use: int | str) -> int:
    """The seed of one use: other uses, and other seeds, have unrelated ones."""
    digest = hashlib.blake2b(f"{seed}/{use}".encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")


def train(
    module: nn.Module,
    loss: Callable[[torch.Generator], Tensor],
    *,
    steps: int,
    learning_rate: float,
    seed: int,
    ema: float = 0.995,
    decay: bool = True,
    checkpoint: str | Path | None = None,
    every: int = 500,
    about: Mapping[str, Any] | None = None,
) -> Iterator[Progress]:
    """Minimise `loss` over the parameters of `module` with Adam; yields after every step.

    When the generator is exhausted, `module` holds the exponential average of its weights.

    Args:
        module: network, changed in place.
        loss: batch loss [] from the random numbers of the step.
        steps: optimisation steps, at least 1.
        learning_rate: Adam's, at the start.
        seed: of the batches.
        ema: decay of the average of the weights, per step; at step n no more than n / (9 + n), and
            none at the first, so that short runs forget the start.
        decay: anneal the learning rate to zero along half a cosine, else hold it.
        checkpoint: safetensors file to resume from, rewritten (atomically) every `every` steps; one
            that is damaged, or of another network, is set aside, and the run begins anew.
        every: steps between two checkpoints.
        about: what else a run must have in common with the one that it goes on from, as JSON has
            it; a list is of measured numbers, which may differ by rounding.

    Raises:
        InputError: `steps` is below 1, or the checkpoint is of a run with other settings or cannot
            be written.
        FloatingPointError: the loss is not finite (looked at when a checkpoint is due).
    """
    if steps < 1:
        raise InputError(f"steps={steps} is not allowed: at least 1 step is needed.")
    device = str(next(module.parameters()).device)
    average = copy.deepcopy(module)
    averages, weights = (list(m.parameters()) for m in (average, module))  # it takes time: once
    learning = [weight for weight in weights if weight.requires_grad]
    optimiser = torch.optim.Adam(module.parameters(), lr=learning_rate, fused=True)
    settings = {"steps": steps, "learning_rate": learning_rate, "seed": seed}
    settings |= {"ema": ema, "decay": decay, **(about or {})}
    parts = module, average, optimiser
    file = Path(checkpoint) if checkpoint else None
    start = _restore(file, settings, *parts) if file else 0
    for step in range(start + 1, steps + 1):
        if decay:
            annealed = learning_rate * 0.5 * (1 + math.cos(math.pi * (step - 1) / steps))
            optimiser.param_groups[0]["lr"] = annealed
        with torch.enable_grad():  # whatever the caller's own mode
            value = loss(stream(seed, step, device))
            optimiser.zero_grad(set_to_none=True)
            value.backward(inputs=learning)  # not of the batch, where a reward's gradient is taken
        optimiser.step()
        _follow(averages, weights, min(ema, step / (9 + step)) if step > 1 else 0.0)
        if step % every == 0 or step == steps:
            if not torch.isfinite(value):
                raise FloatingPointError(f"the loss is {value.item()} at step {step}")
            if file and step < steps:
                _save(file, step, settings, *parts)
        yield Progress(step, steps, value.detach())
    _follow(weights, averages, 0.0)


@torch.no_grad()
def _follow(averages: list[nn.Parameter], values: list[nn.Parameter], keep: float) -> None:
    """Move averages of weights towards the weights, keeping a share of what they were."""
    torch._foreach_lerp_(averages, values, 1 - keep)


class Stack(nn.Module):
    """Modules of one shape that work, and so are trained, as one.

    Its parameters are theirs, stacked along a new first axis; a batch is the members' batches one
    after another, of one size each. What is minimised is the mean of the members' losses, and Adam
    treats each number alone, so each member is trained as if by itself.

    Args:
        members: at least one, on the device where they stay; `members()` gives them back, with what
            they have learnt.
    """

    def __init__(self, members: Sequence[nn.Module]):
        super().__init__()
        parameters, buffers = stack_module_state(list(members))
        self.names = list(parameters)
        self.weights = nn.ParameterList(p.detach().clone() for p in parameters.values())
        # Named as in a member, so that they move along and a fit finds the units.
        self.fixed = nn.Module()
        for name, value in buffers.items():
            self.fixed.register_buffer(name.replace(".", "/"), value.clone(), persistent=False)
        self._member = [copy.deepcopy(members[0])]  # a list: its own weights are not parameters

    def __len__(self) -> int:
        return len(self.weights[0])

    def forward(self, *batch: Tensor) -> Tensor:
        """What each member says of its own share of the batch, [K B, ...]."""
        if len(batch[0]) % len(self):
            raise InputError(
                f"batch of {len(batch[0])} is not allowed: a multiple of the {len(self)} modules "
                "is needed."
            )
        cut = [part.unflatten(0, (len(self), -1)) for part in batch]

        def one(state: dict[str, Tensor], *inputs: Tensor) -> Tensor:
            return functional_call(self._member[0], state, inputs)

        return vmap(one)(self._state(), *cut).flatten(0, 1)

    def _state(self) -> dict[str, Tensor]:
        fixed = {name.replace("/", "."): value for name, value in self.fixed.named_buffers()}
        return dict(zip(self.names, self.weights, strict=True)) | fixed

    def members(self) -> list[nn.Module]:
        """The modules, one by one."""
        state, like = self._state(), self.weights[0]
        found = [copy.deepcopy(self._member[0]).to(like) for _ in range(len(self))]
        for k, member in enumerate(found):
            member.load_state_dict({name: value[k].detach() for name, value in state.items()})
        return found


def options(settings: Any) -> dict[str, Any]:
    """What `train` takes of a dataclass of settings: `steps`, `learning_rate` and `seed`."""
    return {name: getattr(settings, name) for name in ("steps", "learning_rate", "seed")}


def finish(progress: Iterable[Progress], label: str) -> None:
    """Run a training to its end, with a progress bar where a person is watching.

    Batch runs (papermill, nbval) show none: their outputs are compared.
    """
    watched = sys.stderr.isatty() or "JPY_SESSION_NAME" in os.environ
    bar = tqdm(desc=label, disable=not watched, leave=False)
    for item in progress:
        bar.total = item.steps
        bar.update()
    bar.close()


def _state(module: nn.Module, average: nn.Module, optimiser: torch.optim.Adam) -> dict:
    adam = optimiser.state_dict()["state"]
    return {
        **{f"module.{name}": value for name, value in module.state_dict().items()},
        **{f"average.{name}": value for name, value in average.state_dict().items()},
        **{f"adam.{i}.{name}": v for i, state in adam.items() for name, v in state.items()},
    }


def _save(path: Path, step: int, settings: dict, *parts) -> None:
    write_tensors(path, _state(*parts), {"step": str(step), "settings": json.dumps(settings)})


def _restore(path: Path, settings: dict, module, average, optimiser) -> int:
    """The step of a checkpoint, whose state is taken over; 0 if there is none that can be used."""
    if not path.exists():
        return 0
    try:
        saved, about = read_tensors(path, str(next(module.parameters()).device))
    except InputError as error:
        set_aside(path, str(error).rstrip("."))
        return 0
    told = json.loads(about.get("settings", "{}"))
    other = [
        f"other {name}" if isinstance(value, list) else f"{name}={value!r}"
        for name, value in told.items()
        if not _alike(settings.get(name), value)
    ]
    if other:
        raise InputError(
            f"checkpoint='{path}' is not allowed: it is of a run with {', '.join(other)}; another "
            "name, or the same settings, are needed."
        )
    if told and not settings.keys() <= told.keys():
        set_aside(path, "it does not say what it was fitted to")
        return 0
    if "step" not in about or not _fits(saved, module, average):
        set_aside(path, "it is of another network")
        return 0
    groups: dict[str, dict] = {"module": {}, "average": {}, "adam": {}}
    for name, value in saved.items():
        group, rest = name.split(".", 1)
        groups[group][rest] = value
    module.load_state_dict(groups["module"])
    average.load_state_dict(groups["average"])
    state: dict[int, dict] = {}
    for name, value in groups["adam"].items():
        index, slot = name.split(".", 1)
        state.setdefault(int(index), {})[slot] = value.cpu() if slot == "step" else value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    return int(about["step"])


def _alike(mine: Any, other: Any) -> bool:
    """Whether two runs have a setting in common; measured numbers may differ by rounding."""
    if isinstance(mine, list) and isinstance(other, list) and len(mine) == len(other):
        return all(abs(a - b) <= ROUNDING for a, b in zip(mine, other, strict=True))
    return mine == other


def _fits(saved: dict[str, Tensor], module: nn.Module, average: nn.Module) -> bool:
    """Whether all of a checkpoint can be taken over, looked at before any of it is."""
    wanted = {f"module.{name}": value.shape for name, value in module.state_dict().items()}
    wanted |= {f"average.{name}": value.shape for name, value in average.state_dict().items()}
    shapes = {str(k): value.shape for k, value in enumerate(module.parameters())}
    # Adam remembers nothing of a parameter that never had a gradient.
    for index in {name.split(".")[1] for name in saved if name.startswith("adam.")} & {*shapes}:
        wanted[f"adam.{index}.step"] = torch.Size()
        wanted |= {f"adam.{index}.{slot}": shapes[index] for slot in ("exp_avg", "exp_avg_sq")}
    return {name: value.shape for name, value in saved.items()} == wanted
