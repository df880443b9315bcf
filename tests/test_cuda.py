"""What `test_devices` says of a pretend device, said by CUDA itself, where there is a GPU."""

import warnings

import pytest
import torch
from loops import LOOPS
from small_recipes import recipes, trained
from torch.testing import assert_close

from rrlib.lab import store

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
RECIPES = recipes()


@pytest.fixture(autouse=True)
def _as_before():
    yield
    if torch.cuda.is_available():
        torch.cuda.set_sync_debug_mode("default")


@cuda
@pytest.mark.parametrize("name", RECIPES)
def test_no_steady_step_of_a_recipe_waits(name):
    losses = []

    def step(run):
        steady = len(losses) % 3 == 1  # of three: the first copies tables, the last is looked at
        torch.cuda.set_sync_debug_mode("error" if steady else "default")
        progress = next(run)
        torch.cuda.set_sync_debug_mode("default")
        losses.append(progress.loss)
        return progress

    with trained(step):
        store.obtain(RECIPES[name], "cuda")
    assert losses and all(torch.isfinite(loss) for loss in losses)


def waits_of(loop, steps: int) -> int:
    """How often so many steps wait for the GPU, by CUDA's own count."""
    torch.set_warn_always(True)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            loop("cuda", steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.set_warn_always(False)
    return sum("synchronizing CUDA operation" in str(one.message) for one in said)


@cuda
@pytest.mark.parametrize("name", LOOPS)
def test_more_steps_of_a_loop_wait_no_more(name):
    LOOPS[name]("cuda", 4)  # libraries are loaded
    assert waits_of(LOOPS[name], 3) == waits_of(LOOPS[name], 2)


@cuda
def test_a_look_is_counted():
    assert (
        waits_of(lambda device, n: [torch.ones(1, device=device).item() for _ in range(n)], 3) == 3
    )


@cuda
def test_schedules_and_answers_there_are_those_of_the_cpu():
    found, wanted = (LOOPS["Algorithm 2"](device, 4) for device in ("cuda", "cpu"))
    assert found.x.shape == wanted.x.shape and found.t.device.type == "cuda"
    assert_close(found.t.cpu(), wanted.t)
