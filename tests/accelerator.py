"""A pretend accelerator: tensors that are computed on the CPU and say that they are elsewhere.

Whatever mixes the two devices raises, as on a GPU. Whatever a GPU would make the program wait for,
a value that is looked at or a copy from or to the host, is noted. Random numbers are the CPU's, so
that what is made there can be compared with what the CPU makes.

Torch's threads learn which devices there are at the first backward pass of a process, so a test
that takes a gradient here has a process of its own: see `in_a_process_of_its_own`.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import backend_registration
from torch.utils._mode_utils import no_dispatch
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "pretend"
DEVICE = torch.device(NAME, 0) if torch._C._get_privateuse1_backend_name() == NAME else None
INSIDE = "RRLIB_PRETEND_DEVICE"
MASKED = ("index", "index_put_", "index_put", "_index_put_impl_")
READS = {  # their results' values or sizes have to be known before the program can go on
    *("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "multinomial"),
    *("_unique2", "unique_dim", "unique_consecutive", "bincount", "_linalg_check_errors"),
    "repeat_interleave",
}


def begin() -> torch.device:
    """Name torch's spare device, once in a process."""
    global DEVICE
    if DEVICE is None:
        backend_registration._setup_privateuseone_for_python_backend(NAME)
        DEVICE = torch.device(NAME, 0)
    return DEVICE


def in_a_process_of_its_own(file: str) -> None:
    """Run a file's tests where `INSIDE` is set."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, file], env=os.environ | {INSIDE: "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout[-9000:]


class Elsewhere(Tensor):
    """A tensor of the pretend device; `raw` holds its numbers."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor):
        return Tensor._make_wrapper_subclass(
            cls,
            raw.shape,
            strides=raw.stride(),
            storage_offset=raw.storage_offset(),
            dtype=raw.dtype,
            device=DEVICE,
        )

    def __init__(self, raw: Tensor):
        self.raw = raw

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return _asked(function, args, kwargs or {}, [])


class OnAccelerator(Tensor):
    """Of the CPU, but NumPy cannot have it before it is moved: for tests that need no more."""

    def numpy(self):
        raise TypeError("can't convert a tensor of another device to numpy")

    def cpu(self):
        return self.as_subclass(Tensor)


class Draws(torch.Generator):
    """A generator of any device; of the pretend one it draws what the CPU's draws."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls, "cpu" if _ours(device) else device)
        made.place = DEVICE if _ours(device) else torch.device(device)
        return made

    device = property(lambda self: self.place)


class Accelerator(TorchDispatchMode):
    """Makes the pretend device work; `waits` holds what the program would have waited for."""

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _asked(function, args, kwargs or {}, self.waits)


class _Made(TorchFunctionMode):
    """What operators do not tell: `torch.tensor`, `tolist`, and whose random numbers are drawn."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        draws, device = kwargs.get("generator"), kwargs.get("device", "cpu")
        if draws is not None and _ours(draws.device) != _ours(device):
            raise RuntimeError(f"a generator of {draws.device} draws nothing on {device}")
        if function in (torch.tensor, torch.as_tensor) and _ours(kwargs.get("device")):
            return function(*args, **{**kwargs, "device": "cpu"}).to(DEVICE)
        if function is Tensor.tolist and isinstance(args[0], Elsewhere):
            return args[0].cpu().tolist()
        return function(*args, **kwargs)


@contextmanager
def accelerator() -> Iterator[Accelerator]:
    """A block in which the pretend device works, generators of it included."""
    begin()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "Generator", Draws)
        # What writes files asks it, to know which tensors share memory: no two here.
        patch.setattr(torch.UntypedStorage, "data_ptr", lambda self: self._cdata)
        patch.setattr(torch.cuda, "get_device_name", lambda _: "pretended")
        with _Made(), Accelerator() as mode:
            yield mode


def _ours(device) -> bool:
    return device is not None and torch.device(device).type == NAME


def _asked(function, args: tuple, kwargs: dict, waits: list[str]):
    """What an operator says, computed on the CPU; what a GPU would wait for goes to `waits`."""
    tensors = [x for x in _leaves((*args, *kwargs.values())) if isinstance(x, Tensor)]
    there = [x for x in tensors if isinstance(x, Elsewhere)]
    name, goes = function._overloadpacket.__name__, _ours(kwargs.get("device"))
    if not there and not goes:
        return function(*args, **kwargs)
    here = [x for x in tensors if not isinstance(x, Elsewhere)]
    source = args[1] if name == "copy_" else args[0] if args else None
    moves = name == "copy_" or (name == "_to_copy" and kwargs.get("device") is not None)
    if moves and isinstance(source, Elsewhere) != (
        isinstance(args[0], Elsewhere) if name == "copy_" else goes
    ):
        waits.append(f"copy {'from' if isinstance(source, Elsewhere) else 'to'} the device")
    elif not moves:
        _check_one_device(name, here)
    if name in READS or (name in MASKED and _masked(args[1])):
        waits.append(name)
    raw = {key: _each(_here, value) for key, value in kwargs.items()}
    raw |= {"device": torch.device("cpu")} if goes else {}
    out = function(*_each(_here, args), **raw)
    if torch.Tag.inplace_view in function.tags:  # such as unsqueeze_: the shape that it says, too
        with no_dispatch():
            function(*args, **kwargs)
    if name == "copy_" or torch.Tag.inplace_view in function.tags:
        return args[0]
    if name == "_to_copy" and moves and not goes:
        return out
    known = {id(x.raw): x for x in there}  # what is changed in place stays the same object
    return _each(lambda x: known[id(x)] if id(x) in known else _there(x), out)


# Operators nest lists once at most; torch's own walk through a tree takes most of a test's time.


def _leaves(values) -> Iterator:
    for x in values:
        yield from x if type(x) in (tuple, list) else (x,)


def _each(change, x):
    """What is changed, item by item, in a value or in lists of values."""
    return type(x)(_each(change, one) for one in x) if type(x) in (tuple, list) else change(x)


def _here(x):
    return x.raw if isinstance(x, Elsewhere) else x


def _there(x):
    return Elsewhere(x) if isinstance(x, Tensor) else x


def _check_one_device(name: str, here: list[Tensor]) -> None:
    """As torch does: numbers [] of the host may be used anywhere."""
    if any(x.ndim for x in here):
        shapes = [tuple(x.shape) for x in here]
        raise RuntimeError(f"{name}: all tensors must be on one device; {shapes} are on the CPU")


def _masked(indices) -> bool:
    return any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in indices)
