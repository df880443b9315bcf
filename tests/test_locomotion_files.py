"""Planners and their reward in a file: they come back, play what they played, and are timed."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from time_rollouts import Operators, summary, timed
from torch.testing import assert_close

from rrlib import locomotion_experiments, locomotion_files, locomotion_sizes, store, training
from rrlib.errors import InputError

CHOSEN = SimpleNamespace(
    environment=("hopper",),
    base_kind="random",
    transitions=2_000,
    size="small",
    diffuser_steps=60,
    seed=1,
    n_seeds=1,
    base_path="",
    expert_path="",
)
GUIDANCE = {"weight": 0.5, "until": 0, "place": "mu_base", "onto": "mean", "denoising": 3}
FOUND = {"seconds": 90.0, "physics": 0.3, "gflop": 48.0, "operators": 6e3, "score": 98.0}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RRLIB_STORE", str(tmp_path_factory.mktemp("store")))
        network = {"hidden": 16, "blocks": 1, "batch": 16, "learning_rate": 2e-3}
        small = locomotion_sizes.Sizes(8, 5, network, 100, 100, network)
        patch.setattr(locomotion_experiments, "sizes", lambda *_: small)
        (e,) = locomotion_experiments.experiments(CHOSEN, 20)
        path = tmp_path_factory.mktemp("files") / "hopper.safetensors"
        locomotion_files.write(path, e, CHOSEN, **GUIDANCE)
        yield e, path


def test_what_is_read_predicts_what_was_written(made):
    e, path = made
    shipped = locomotion_files.read(path)
    assert (shipped.world, shipped.horizon, shipped.guidance) == (e.world, 8, GUIDANCE)
    x = e.base.split().draw(20, training.stream(0, 0))
    t = torch.arange(20) % 5
    for mine, part in ((shipped.base, e.base), (shipped.expert, e.expert)):
        assert_close(mine.x0(x, t), store.obtain(part).x0(x, t), atol=2e-3, rtol=1e-2)
    theirs = store.obtain(e.reward)
    assert (shipped.reward.target, shipped.reward.place) == (theirs.target, theirs.place)
    assert_close(shipped.reward.gradient(x, t), theirs.gradient(x, t), atol=2e-3, rtol=2e-2)
    for side in ("low", "high"):
        ruler = e.base.split().normaliser
        assert np.array_equal(getattr(shipped.normaliser, side), getattr(ruler, side))


def test_they_play_and_the_reward_changes_what_is_played(made):
    shipped = locomotion_files.read(made[1])
    played = {p: shipped.play(p, 2, 15, seed=3) for p in ("base", "steered", "expert")}
    again = shipped.play("steered", 2, 15, seed=3)
    assert np.array_equal(again.actions, played["steered"].actions)
    starts = [p.observations[0] for p in played.values()]
    assert np.array_equal(starts[0], starts[1]) and np.array_equal(starts[0], starts[2])
    first = np.stack([p.actions[0] for p in played.values()])
    assert len(np.unique(first, axis=0)) == 3


def test_another_file_is_refused(made, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        locomotion_files.read(tmp_path / "none.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="holds no planners"):
        locomotion_files.read(tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("text")
    with pytest.raises(InputError, match="holds no planners"):
        locomotion_files.read(tmp_path / "text")


def test_matrix_products_are_counted_forwards_and_backwards():
    layer = torch.nn.Linear(30, 20)
    x = torch.randn(7, 30, requires_grad=True)
    with Operators() as forwards:
        out = layer(x).sum()
    assert forwards.flops == 2 * 7 * 30 * 20 and forwards.calls >= 2
    with Operators() as backwards:
        torch.autograd.grad(out, x)
    assert backwards.flops == 2 * 7 * 30 * 20


def test_the_shipped_planners_are_timed(made):
    shipped = locomotion_files.read(made[1])
    one, two = (timed(shipped, 2, 3, n, 1) for n in (2, 4))
    assert two["gflop"] == 2 * one["gflop"] and 1.5 < two["operators"] / one["operators"] < 2.5
    assert 0 < one["physics"] < 1 and one["seconds"] > 0


def test_a_time_is_published_of_a_gpu_and_of_whole_rollouts_alone():
    assert set(summary(FOUND, "cpu", True)) == {"physics", "gflop", "operators"}
    assert set(summary(FOUND, "cuda", False)) == {"physics", "gflop", "operators"}
    told = summary(FOUND, "cuda", True)
    assert told["minutes"]["value"] == 1.5 and told["score"] == 98.0
