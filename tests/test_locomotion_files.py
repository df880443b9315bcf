"""Planners and their reward in a file: they come back, play what they played, and are timed."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from time_rollouts import Operators, main, summary, timed
from torch.testing import assert_close

from rrlib import training
from rrlib.errors import InputError
from rrlib.lab import store
from rrlib.lab.locomotion import experiments as locomotion_experiments
from rrlib.lab.locomotion import files as locomotion_files
from rrlib.lab.locomotion import presets as locomotion_sizes
from rrlib.lab.locomotion.recipes import LocomotionData, LocomotionDiffuser
from rrlib.lab.locomotion.rewards import LocomotionPool, LocomotionReward
from rrlib.locomotion import actors, rollouts
from rrlib.tensor_files import read_tensors, write_tensors

ROBOTS = Path(__file__).resolve().parent.parent / "results/full/locomotion-models.safetensors"
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
HOW = {"weight": 0.5, "until": 0, "place": "mu_base", "onto": "mean", "denoising": 3}
GUIDANCE = {"guidance_scale": 0.5, "stop_step": 0, "place": "mu_base"}
GUIDANCE |= {"apply_to": "mean", "num_inference_steps": 3}
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
        locomotion_files.write(path, e, CHOSEN, **HOW)
        yield e, path


@pytest.mark.lengthy
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


@pytest.mark.lengthy
def test_they_play_and_the_reward_changes_what_is_played(made):
    shipped = locomotion_files.read(made[1])
    played = {p: shipped.play(p, 2, 15, seed=3) for p in ("base", "steered", "expert")}
    again = shipped.play("steered", 2, 15, seed=3)
    assert np.array_equal(again.actions, played["steered"].actions)
    starts = [p.observations[0] for p in played.values()]
    assert np.array_equal(starts[0], starts[1]) and np.array_equal(starts[0], starts[2])
    first = np.stack([p.actions[0] for p in played.values()])
    assert len(np.unique(first, axis=0)) == 3


def test_reading_asks_no_preset_and_no_policy(made, monkeypatch):
    """Sizes that are tuned after a file was written, or other policies, break nothing."""
    before = locomotion_files.read(made[1])

    def gone(*_):
        raise AssertionError("a file holds all that its networks are built from")

    for room in (locomotion_experiments, locomotion_sizes):
        monkeypatch.setattr(room, "sizes", gone)
    monkeypatch.setattr(actors, "policy_file", gone)
    found = locomotion_files.read(made[1])
    for mine, other in zip(networks(found), networks(before), strict=True):
        assert_close(mine.state_dict(), other.state_dict(), rtol=0, atol=0)
    locomotion_files.read(ROBOTS)


def networks(shipped: locomotion_files.Shipped) -> list[torch.nn.Module]:
    return [part.network for part in (shipped.base, shipped.expert, shipped.reward)]


@pytest.mark.parametrize("kind", ["scalar", "channels"])
def test_every_kind_of_network_is_built_from_what_the_file_says(kind, tmp_path):
    data = LocomotionData("hopper", "random", 100)
    network = {"channels": (32, 64)} if kind == "channels" else {"hidden": 16, "blocks": 1}
    base = LocomotionDiffuser(data, (data,), 32, diffusion_steps=5, **network)
    reward = LocomotionReward(LocomotionPool(base, base), scalar=kind == "scalar", **network)
    built = {"base": base.blank("cpu").network, "expert": base.blank("cpu").network}
    built |= {"reward": reward.blank()}
    tensors = {
        f"{part}/{name}": value
        for part, module in built.items()
        for name, value in module.state_dict().items()
    }
    tensors |= {f"normaliser/{side}": torch.ones(14) for side in ("low", "high")}
    texts = {
        "about": {"environment": "hopper", "place": "x_t"},
        "guidance": GUIDANCE,
        "shapes": {
            "planner": locomotion_files._fields(base, locomotion_files.PLANNER),
            "reward": locomotion_files._fields(reward, locomotion_files.REWARD),
        },
    }
    write_tensors(tmp_path / "a", tensors, {k: json.dumps(v) for k, v in texts.items()})
    for found, module in zip(
        networks(locomotion_files.read(tmp_path / "a")), built.values(), strict=True
    ):
        assert type(found) is type(module)
        assert_close(found.state_dict(), module.state_dict(), rtol=0, atol=0)


def test_another_file_is_refused(made, tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        locomotion_files.read(tmp_path / "none.safetensors")
    write_tensors(tmp_path / "other.safetensors", {"x": torch.zeros(1)})
    with pytest.raises(InputError, match="holds no planners"):
        locomotion_files.read(tmp_path / "other.safetensors")
    (tmp_path / "text").write_text("text")
    with pytest.raises(InputError, match="is damaged"):
        locomotion_files.read(tmp_path / "text")
    tensors, texts = read_tensors(made[1])
    tensors["base/more"] = torch.zeros(1)
    write_tensors(tmp_path / "more", tensors, texts)
    with pytest.raises(InputError, match="holds no planners"):
        locomotion_files.read(tmp_path / "more")


def test_matrix_products_are_counted_forwards_and_backwards():
    layer = torch.nn.Linear(30, 20)
    x = torch.randn(7, 30, requires_grad=True)
    with Operators() as forwards:
        out = layer(x).sum()
    assert forwards.flops == 2 * 7 * 30 * 20 and forwards.calls >= 2
    with Operators() as backwards:
        torch.autograd.grad(out, x)
    assert backwards.flops == 2 * 7 * 30 * 20


@pytest.mark.lengthy
def test_the_command_that_times_runs(tmp_path, monkeypatch, capsys):
    asked = ["--episodes", "2", "--steps", "2", "--denoising", "2", "--workers", "1"]
    monkeypatch.setattr("sys.argv", ["time_rollouts.py", *asked, "--results", str(tmp_path)])
    main()
    assert "seconds: " in capsys.readouterr().out
    (file,) = tmp_path.iterdir()
    assert file.name == "rollout-speed.json"
    monkeypatch.setattr("sys.argv", ["time_rollouts.py", "--episodes", "0"])
    with pytest.raises(SystemExit, match="episodes=0 is not allowed"):
        main()


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


@pytest.mark.parametrize("who", ["base", "expert", "steered"])
def test_who_plans_is_asked_with_the_files_guidance_or_ones_own(who, made, monkeypatch):
    shipped, calls = locomotion_files.read(made[1]), []
    monkeypatch.setattr(rollouts, "planner", lambda *args, **how: calls.append((args, how)))
    shipped.planner(who, 4)
    shipped.planner(who, 5, guidance_scale=0.25, num_inference_steps=2)
    (first, plain), (other, changed) = calls
    assert first[0] is (shipped.expert if who == "expert" else shipped.base)
    assert first[1:4] == (shipped.normaliser, shipped.world, 8)
    for args, seed in ((first, 4), (other, 5)):
        assert torch.equal(args[4].get_state(), training.stream(seed, "plans").get_state())
    own = GUIDANCE | {"reward": shipped.reward, "force": True}
    if who != "steered":
        assert (plain, changed) == ({"num_inference_steps": 3}, {"num_inference_steps": 2})
        return
    assert plain == own
    assert changed == own | {"guidance_scale": 0.25, "num_inference_steps": 2}
