"""What a fit and its reward are held to: their comparisons, their schedule, the steps they saw."""

from functools import partial

import pytest
import torch

import rrlib
from rrlib.errors import InputError
from rrlib.method import extraction
from rrlib.method.checks.resumed import numbers_of
from rrlib.plans.rewards import WindowReward
from rrlib.training import ROUNDING, stream

SCHEDULER = rrlib.cosine_scheduler(30, clip=False)
SMALL = partial(WindowReward, window=1, hidden=(4,))


def linear(shift: float) -> rrlib.Denoiser:
    """A model whose x0 is half of x_t, and a shift."""
    return rrlib.Denoiser(lambda x, t: 0.5 * x + shift, SCHEDULER)


BASE, EXPERT = linear(0.0), linear(0.2)


def pairs(base=BASE, expert=EXPERT, seed: int = 0, n: int = 200) -> rrlib.Comparisons:
    data = (torch.randn(50, 2, generator=stream(side, "data")) for side in (0, 1))
    return rrlib.compare(base, expert, tuple(data), n=n, seed=seed)


PAIRS = pairs()

# Checkpoints


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> str:
    """What a finished fit leaves behind: its checkpoint of step 500, by a path that is a text."""
    path = str(tmp_path_factory.mktemp("fit") / "checkpoint.safetensors")
    rrlib.RelativeReward.fit(PAIRS, SMALL, steps=501, batch=4, checkpoint=path)
    return path


@pytest.mark.lengthy
@pytest.mark.parametrize(
    ("other", "options", "message"),
    [
        (pairs(EXPERT, BASE), {}, "other comparisons;"),
        (pairs(seed=1), {}, "other comparisons;"),
        (pairs(n=100), {}, "other comparisons;"),
        (PAIRS, {"target": "mean"}, "target='score', other comparisons;"),
        (PAIRS, {"place": "mu_base"}, "place='x_t', other comparisons;"),
        (PAIRS, {"batch": 5}, "batch=4;"),
    ],
)
def test_a_checkpoint_of_another_fit_is_refused(finished, other, options, message):
    with pytest.raises(InputError, match=f"it is of a run with {message} another name"):
        options = {"steps": 501, "batch": 4, "checkpoint": finished} | options
        rrlib.RelativeReward.fit(other, SMALL, **options)


@pytest.mark.lengthy
def test_the_same_fit_goes_on_from_its_checkpoint(finished):
    alone = rrlib.RelativeReward.fit(PAIRS, SMALL, steps=501, batch=4)
    again = rrlib.RelativeReward.fit(PAIRS, SMALL, steps=501, batch=4, checkpoint=finished)
    for name, value in alone.network.state_dict().items():
        assert torch.equal(again.network.state_dict()[name], value)
    pool = PAIRS.pool("score", "x_t")
    network, options = SMALL(width=2, unit=alone.network.unit), {"batch": 4, "seed": 0}
    run = extraction.fit(
        network, pool, steps=501, learning_rate=1e-3, checkpoint=finished, **options
    )
    assert next(run).step == 501


def test_numbers_that_tell_pools_apart_leave_room_for_rounding():
    pool = PAIRS.pool("score", "x_t")
    unit = extraction.units(BASE, "score")
    mine = numbers_of(pool, unit)

    def apart(other: list[float]) -> bool:
        return any(abs(a - b) > ROUNDING for a, b in zip(mine, other, strict=True))

    noise = 1 + 1e-4 * torch.randn(pool.target.shape, generator=stream(0, "noise"))
    rounded = extraction.Pool(pool.x * noise, pool.t, pool.target * noise)
    assert not apart(numbers_of(rounded, unit))
    assert apart(numbers_of(extraction.Pool(pool.x, pool.t, -pool.target), unit))
    assert apart(numbers_of(extraction.Pool(pool.x, pool.t, 1.1 * pool.target), unit))
    assert apart(numbers_of(extraction.Pool(pool.x, pool.t.flip(0), pool.target), unit))
    assert apart(numbers_of(pool, extraction.displacement_units(BASE, "score")))
