"""One number for all that a pipeline computes with, so that another pipeline has another."""

import json
from collections.abc import Mapping
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from rrlib import disk, tensor_files
from rrlib.errors import InputError
from rrlib.images.adapters import carries
from rrlib.images.kinds.checks import SETTINGS

PLAIN = (bool, int, float, str, type(None))
# Attributes of modules that change no output; `config` is told apart, see `_config`.
SILENT = {"config", "gradient_checkpointing", "name_or_path", "peft_config", "training"}
ADAPTERS = ("_active_adapter", "_disable_adapters")  # private, but PEFT's layers compute by them
STATE = ("truncation", "padding")  # of a tokenizer: what it was last asked for


def digest(pipeline: DiffusionPipeline, seen: dict[int, str] | None = None) -> str:
    """sha256 of all components of a pipeline.

    Of a module: weights and buffers, the settings of each of its parts (the scales, names and state
    of adapters among them) and its configuration. Of a tokenizer: vocabulary, merges and limits. Of
    a scheduler: its configuration. Of the pipeline itself: what else changes its images. Where it
    lies and which version wrote it do not count.

    It takes about a second for each GB of weights, at every call: adapters and weights change in
    place, so an earlier digest may be wrong.

    Args:
        pipeline: of diffusers.
        seen: digests of the components of another pipeline, filled here; what both share is read
            once.

    Raises:
        InputError: a component whose weights are not in memory (on the device "meta").
    """
    seen = {} if seen is None else seen
    found = {}
    for name, part in pipeline.components.items():
        if id(part) not in seen or _adapted(part):
            seen[id(part)] = _component(name, part)
        found[name] = seen[id(part)]
    settings = {name: pipeline.config[name] for name in SETTINGS if name in pipeline.config}
    return disk.digest(found | settings)


def _adapted(part: Any) -> bool:
    """Whether a component may be another at the next look, though it is the same object."""
    return isinstance(part, nn.Module) and any(carries(module) for module in part.modules())


def _component(name: str, part: Any) -> str:
    about = {"class": type(part).__name__, "config": _config(part)}
    if isinstance(part, nn.Module):
        tensors = dict(part.named_parameters()) | dict(part.named_buffers())
        if any(value.is_meta for value in tensors.values()):
            raise InputError(
                f"pipeline: its {name} is not in memory (device 'meta'): one that is loaded, not "
                "offloaded, is needed."
            )
        parts = {name: _settings(module) for name, module in part.named_modules()}
        about["settings"] = parts
        return tensor_files.digest(tensors, {"about": json.dumps(about, sort_keys=True)})
    if hasattr(part, "get_vocab"):
        about["tokenizer"] = _tokenizer(part)
    return disk.digest(about)


def _config(part: Any) -> dict[str, Any]:
    """A component's configuration without places and versions."""
    config: Any = getattr(part, "config", None)
    content = config.to_dict() if hasattr(config, "to_dict") else dict(config or {})
    versions = {"transformers_version", "dtype", "torch_dtype"}  # tensors have their own types
    return {k: _plain(v) for k, v in content.items() if k[0] != "_" and k not in versions}


def _settings(module: nn.Module) -> dict[str, Any]:
    """What a module computes with besides its weights: its public attributes."""
    names = (name for name in vars(module) if name[0] != "_" and name not in SILENT)
    found = {name: _plain(vars(module)[name], within=True) for name in names}
    found |= {name: _plain(getattr(module, name, None)) for name in ADAPTERS}
    return found | {"class": type(module).__name__}


def _plain(value: Any, within: bool = False) -> Any:
    """A value as JSON has it; an object is told by its class and, `within`, its plain attributes.

    An attention's processor is such an object, and an image adapter's scale one of its attributes.
    """
    if isinstance(value, PLAIN):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, set | frozenset):
        return sorted(map(str, value))
    if hasattr(value, "tolist"):  # arrays and tensors
        return value.detach().tolist() if isinstance(value, Tensor) else value.tolist()
    inside = vars(value).items() if within and hasattr(value, "__dict__") else ()
    parts = {key: _plain(part) for key, part in inside if key[0] != "_"}
    return {"class": type(value).__name__, **parts}


def _tokenizer(part: Any) -> dict[str, Any]:
    limits = (part.model_max_length, part.padding_side, _plain(part.special_tokens_map))
    found = {"vocabulary": part.get_vocab(), "limits": limits}
    if hasattr(part, "backend_tokenizer"):  # it knows the merges and how texts are cut, too
        whole = json.loads(part.backend_tokenizer.to_str())
        found["rules"] = {key: value for key, value in whole.items() if key not in STATE}
    return found
