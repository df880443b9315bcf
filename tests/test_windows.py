"""Training plans that are drawn on a device, against `cut` and the normaliser."""

import numpy as np
import pytest
import torch

from rrlib.lab.recipes import Split
from rrlib.plans import normalisers, trajectories
from rrlib.plans.trajectories import Trajectories
from rrlib.plans.windows import Windows
from rrlib.training import stream


def some(lengths: tuple[int, ...]) -> Trajectories:
    """Episodes of these lengths; one coordinate never varies."""
    rng, n = np.random.default_rng(0), sum(lengths)
    ends = np.zeros(n, bool)
    ends[np.cumsum(lengths) - 1] = True
    rows = rng.normal(3, 2, (n, 5)).astype("f4")
    rows[:, 1] = 7
    return Trajectories(rows[:, :3], rows[:, 3:], None, ends, np.zeros(n, bool))


RULER = normalisers.Normaliser.fit(some((50,)))


@pytest.mark.parametrize("lengths", [(9, 30, 12), (3, 8, 2, 40), (5,), (1, 1)])
@pytest.mark.parametrize("ruler", [normalisers.Normaliser.fit, normalisers.standardiser])
def test_windows_are_those_that_are_cut_and_normalised(lengths, ruler):
    data, horizon, n = some(lengths), 8, 500
    normaliser = ruler(data)
    starts = trajectories.windows(data, horizon)
    rows = torch.randint(len(starts), (n,), generator=stream(4, 0)).numpy()
    wanted = normaliser.normalise(trajectories.cut(data, starts[rows], horizon))
    found = Windows.of(data, normaliser, horizon, "cpu").draw(n, stream(4, 0))
    assert found.dtype == torch.float32 and np.array_equal(found.numpy(), wanted)
    again = Split(data, data, normaliser, horizon).draw(n, stream(4, 0))
    assert torch.equal(found, again)


def test_windows_take_room_for_episodes_and_not_for_steps():
    few, many = (Windows.of(some((n, n)), RULER, 4, "cpu") for n in (10, 400))
    assert (few.windows, many.windows) == (14, 794)
    for name in ("stops", "counts", "ahead"):
        assert len(getattr(few, name)) == len(getattr(many, name)) == 2


def test_windows_on_the_cpu_copy_no_data():
    data = some((20, 30))
    found = Windows.of(data, normalisers.Normaliser.fit(data), 4, "cpu")
    assert np.shares_memory(found.observations.numpy(), data.observations)
    assert np.shares_memory(found.actions.numpy(), data.actions)
