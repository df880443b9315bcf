"""Files of reward networks: what is in them, and nothing of what a reward means.

A file is safetensors. Its text "rewards" is JSON, name -> {"about", "target", "place", "network"};
its tensors are named "<name>/<parameter>", weights in float16 and tables as they are.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rrlib.errors import InputError, shown
from rrlib.tensor_files import halved, read_tensors, write_tensors

# Where each kind of network that a file may hold is defined. Nothing else is ever imported for one.
KINDS = {
    "WindowReward": "rrlib.plans.rewards",
    "PlanValue": "rrlib.plans.rewards",
    "StartReward": "rrlib.plans.rewards",
    "ConditionalReward": "rrlib.plans.rewards",
    "ContextReward": "rrlib.plans.rewards",
    "PlanPotential": "rrlib.plans.perceptron",
    "EncoderReward": "rrlib.images.rewards",
    "WeightedSum": "rrlib.method.networks.sums",
    "Rescaled": "rrlib.method.networks.sums",
}


TEXT = "rewards"  # its key among the texts of a file


@dataclass(frozen=True)
class Entry:
    """A reward as a file has it; `about` is what its user must know, as JSON has it."""

    network: nn.Module
    target: Any  # what `rewards.RelativeReward` makes of it, and of the place
    place: Any
    about: Mapping


def write(path: str | Path, entries: Mapping[str, Entry]) -> None:
    """Write rewards by name, weights rounded to float16; see `reward_files.save_rewards`."""
    tensors: dict[str, Tensor] = {}
    for name, entry in entries.items():
        tables = _tables(entry.network)
        described(entry, name)  # before any weight is looked at
        for key, value in entry.network.state_dict().items():
            # A table is measured or computed, not learnt, and its range may be wider.
            table = key.rpartition(".")[2] in tables
            tensors[f"{name}/{key}"] = value.cpu() if table else halved(value, key)
    write_tensors(path, tensors, {TEXT: header(entries)})


def header(entries: Mapping[str, Entry]) -> str:
    """The text of a file that says what its rewards are.

    Raises:
        InputError: a network of another kind, or an `about` that is no JSON.
    """
    try:
        return json.dumps({name: described(entry, name) for name, entry in entries.items()})
    except (TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"about is not allowed ({error}): what JSON can hold is needed.") from None


def described(entry: Entry, name: str) -> dict:
    """What a file says of one reward, as JSON has it; InputError for a network of another kind."""
    about = {"about": dict(entry.about), "target": entry.target, "place": entry.place}
    return about | {"network": _described(entry.network, name)}


class Stored(Mapping[str, Entry]):
    """The rewards of a file by name, frozen; each is built when it is asked for.

    Args:
        path: of the file.
        tensors: name of a reward -> its own by their names.
        specs: name of a reward -> what the file says of it.
    """

    def __init__(self, path: str | Path, tensors: Mapping[str, Mapping], specs: Mapping[str, dict]):
        self.path, self.tensors, self.specs = path, tensors, specs

    def __len__(self) -> int:
        return len(self.specs)

    def __iter__(self) -> Iterator[str]:
        return iter(self.specs)

    def __contains__(self, name: object) -> bool:
        return name in self.specs

    def __getitem__(self, name: str) -> Entry:
        spec = self.specs[name]
        with blamed(self.path):
            state = {key: value.float() for key, value in self.tensors[name].items()}
            network = _built(spec["network"], state, "")
            network.load_state_dict(state)
            network.eval().requires_grad_(False)
            return Entry(network, spec["target"], spec["place"], dict(spec["about"]))


def read(path: str | Path) -> Stored:
    """The rewards of a file by name, in single precision on the CPU.

    Raises:
        InputError: there is no such file, it is damaged, of another version, or holds something
            else; of a single reward that is not as it should be, once it is asked for.
    """
    tensors, texts = read_tensors(path)
    with blamed(path):
        specs = dict(json.loads(texts[TEXT]).items())
        found: dict[str, dict[str, Tensor]] = {name: {} for name in specs}
        for key, value in tensors.items():
            name, _, part = key.rpartition("/")
            if name in found:
                found[name][part] = value
    return Stored(path, found, specs)


@contextmanager
def blamed(path: str | Path) -> Iterator[None]:
    """Whatever goes wrong over what a file says becomes an InputError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise InputError(
            f"Reward file '{path}' holds no rewards of this version of rrlib ({shown(str(error))})."
        ) from None


def scorer(network: nn.Module) -> str:
    """The module that scores recorded data by a network: of plans, or of images."""
    kinds = (KINDS.get(type(part).__name__, "") for part in network.modules())
    images = any(kind.startswith("rrlib.images.") for kind in kinds)
    return "rrlib.images.scoring" if images else "rrlib.plans.scoring"


def _tables(network: nn.Module) -> set[str]:
    return {table for part in network.modules() for table in getattr(part, "TABLES", ())}


def _described(network: nn.Module, name: str) -> dict:
    """What a network is built from, as JSON has it."""
    kind = type(network).__name__
    if KINDS.get(kind) != type(network).__module__:
        raise InputError(
            f"reward {shown(name)} of a {kind} cannot be written: a reward of a "
            f"{', '.join(list(KINDS)[:-1])} or {list(KINDS)[-1]} is needed."
        )
    found = {"kind": kind, "shape": {k: getattr(network, k) for k in getattr(network, "SHAPE", ())}}
    for part in getattr(network, "PARTS", ()):
        inner = getattr(network, part)
        found[part] = (
            [_described(one, name) for one in inner]
            if isinstance(inner, nn.ModuleList)
            else _described(inner, name)
        )
    return found


def _built(spec: dict, state: Mapping[str, Tensor], place: str) -> nn.Module:
    """The network of a description; `place` is where its tensors are in the state."""
    kind = getattr(import_module(KINDS[spec["kind"]]), spec["kind"])
    given = {k: tuple(v) if isinstance(v, list) else v for k, v in spec["shape"].items()}
    given |= {table: state[f"{place}{table}"] for table in getattr(kind, "TABLES", ())}
    for part in getattr(kind, "PARTS", ()):
        inner = spec[part]
        given[part] = (
            [_built(one, state, f"{place}{part}.{k}.") for k, one in enumerate(inner)]
            if isinstance(inner, list)
            else _built(inner, state, f"{place}{part}.")
        )
    return kind(**given)
