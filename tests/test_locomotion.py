"""Scores against D4RL's constants, actors against sbx and torch, data against the simulator."""

import json
import re
import shutil
from pathlib import Path

import gymnasium as gym
import mujoco
import numpy as np
import pytest
import torch
from torch.distributions import Independent, Normal, TanhTransform, TransformedDistribution

from rrlib.errors import InputError
from rrlib.lab import store
from rrlib.lab.locomotion.recipes import LocomotionData
from rrlib.locomotion import actors, robots
from rrlib.locomotion import world as locomotion
from rrlib.locomotion.actors import Policy
from rrlib.plans import trajectories
from rrlib.plans.trajectories import Trajectories

SHIPPED = [name for name in robots.ENVIRONMENTS if (actors.POLICIES / f"{name}.json").exists()]
PREDICTIONS = Path(__file__).with_name("predictions.json")  # by sbx, see workflow/train_policies.py
every_environment = pytest.mark.parametrize("name", list(robots.ENVIRONMENTS))
every_shipped = pytest.mark.parametrize("name", SHIPPED)


def card(name: str) -> dict:
    return actors.card(robots.load(name))


def random_data(name: str, transitions: int = 300, seed: int = 0) -> Trajectories:
    return locomotion.make_trajectories(robots.load(name), "random", transitions, seed)


def same(one: Trajectories, other: Trajectories) -> bool:
    return all(np.array_equal(a, other.arrays()[name]) for name, a in one.arrays().items())


# Scores


@pytest.mark.parametrize(
    # D4RL's infos.py: the returns that it scores 0 and 100.
    ("name", "random", "expert"),
    [
        ("halfcheetah", -280.178953, 12135.0),
        ("hopper", -20.272305, 3234.3),
        ("walker2d", 1.629008, 4592.3),
    ],
)
def test_score_is_d4rls(name, random, expert):
    world = robots.load(name)
    returns = np.array([random, expert, (random + expert) / 2])
    np.testing.assert_allclose(locomotion.normalised_score(world, returns), (0, 100, 50))


def test_scores_are_of_episodes():
    ends = np.array([0, 0, 1, 0, 1, 0], dtype=bool)
    rewards = np.array([1, 2, 3, 4, 5, 6], dtype="f4")
    data = Trajectories(np.zeros((6, 11)), np.zeros((6, 3)), rewards, ends, np.zeros(6, bool))
    world = robots.load("hopper")
    expected = locomotion.normalised_score(world, np.array([6, 9, 6]))
    np.testing.assert_allclose(locomotion.scores(world, data), expected)


# Policies


@pytest.fixture
def layers():
    draws = np.random.default_rng(0)
    sizes = ((11, 16), (16, 16), (16, 6))
    return tuple(
        (draws.normal(size=size).astype("f4") / 4, draws.normal(size=size[1]).astype("f4") / 4)
        for size in sizes
    )


def torch_actor(layers, observations: np.ndarray) -> TransformedDistribution:
    x = torch.from_numpy(observations)
    for kernel, bias in layers[:-1]:
        x = torch.relu(torch.from_numpy(kernel).T @ x.T + torch.from_numpy(bias)[:, None]).T
    kernel, bias = map(torch.from_numpy, layers[-1])
    mean, log_std = torch.addmm(bias, x, kernel).chunk(2, dim=1)
    normal = Independent(Normal(mean, log_std.clamp(-20, 2).exp()), 1)
    return TransformedDistribution(normal, TanhTransform())


def test_actor_is_torchs_squashed_gaussian(layers):
    observations = np.random.default_rng(1).normal(size=(5, 11)).astype("f4")
    actor = torch_actor(layers, observations)
    mode = torch.tanh(actor.base_dist.mean)
    torch.testing.assert_close(torch.from_numpy(Policy(layers).act(observations)), mode)

    n = 20_000
    draws = Policy(layers).act(np.repeat(observations, n, axis=0), np.random.default_rng(2))
    assert draws.dtype == np.float32
    torch.manual_seed(0)
    theirs = actor.sample((n,)).transpose(0, 1).numpy()
    for moment in (1, 2, 3):
        ours = (draws.reshape(5, n, 3) ** moment).mean(1)
        np.testing.assert_allclose(ours, (theirs**moment).mean(1), atol=5 / np.sqrt(n))


@pytest.mark.parametrize(("log_std", "deviation"), [(-30, -20), (-10, -10), (1, 1), (5, 2)])
def test_an_actors_deviation_is_clipped_as_sacs(log_std, deviation):
    """SAC clips the logarithmic deviation to [-20, 2]; of a mean of 0, before tanh."""
    head = np.zeros((1, 2), "f4"), np.array([0, log_std], "f4")
    draws = Policy((head,)).act(np.zeros((4_000, 1)), np.random.default_rng(0)).astype(float)
    # The median is what tanh leaves in its place: 0.6745 deviations of a normal.
    middle = np.arctanh(np.median(np.abs(draws[np.abs(draws) < 1])))
    if deviation < 2:
        np.testing.assert_allclose(middle, 0.6745 * np.exp(deviation), rtol=0.05)
    else:
        np.testing.assert_allclose(
            np.mean(np.abs(draws) < np.tanh(5.0)), 0.5014, atol=0.03
        )  # P(|N| < 5 / e^2)


@every_shipped
def test_actor_predicts_what_sbx_does(name):
    found = json.loads(PREDICTIONS.read_text(encoding="utf-8"))[name]
    for policy, expected in zip(
        actors.load_policies(robots.load(name)), found["actions"], strict=True
    ):
        np.testing.assert_allclose(policy.act(found["observations"]), expected, atol=2e-6)


@every_shipped
def test_card_tells_of_its_policies(name):
    told = card(name)
    policies = actors.load_policies(robots.load(name))
    assert len(told["snapshots"]) == len(policies)
    steps = [snapshot["steps"] for snapshot in told["snapshots"]]
    assert steps == sorted(steps) and steps[-1] <= told["steps"]
    assert told["sets"]["expert"]["low"] >= 70 and told["sets"]["medium-replay"]["high"] <= 45


def test_policies_together_are_small():
    assert sum(file.stat().st_size for file in actors.POLICIES.glob("*")) <= 4_000_000


@pytest.mark.lengthy
@every_shipped
def test_expert_scores_what_its_card_says(name):
    told = card(name)["sets"]["expert"]
    world = robots.load(name)
    scores = locomotion.scores(world, locomotion.make_trajectories(world, "expert", 4_000, seed=7))
    assert len(scores) >= 4
    # The card's interval is of its mean; these are few.
    spread = (told["high"] - told["low"]) / 4 * np.sqrt(told["episodes"])
    assert abs(scores.mean() - told["mean"]) < 4 * spread / np.sqrt(len(scores)) + 1


# Data


@pytest.mark.lengthy
@every_environment
def test_transitions_are_the_simulators_own(name):
    """Every step, from the state it was made in: none crosses a reset, none is lost."""
    world, data = robots.load(name), random_data(name, 900)
    simulator = locomotion.simulators(world, 1).envs[0].unwrapped
    simulator.reset(seed=0)
    checked = 0
    for start, stop in data.bounds:
        for k in range(start, stop):
            observation = data.observations[k].astype(float)
            n = simulator.model.nq - 1  # the position along the track is left out
            if name != "halfcheetah" and np.abs(observation[n:]).max() >= 10:
                continue  # the observation was clipped there
            simulator.set_state(np.append(0, observation[:n]), observation[n:])
            following, reward, terminal, _, _ = simulator.step(data.actions[k])
            assert reward == pytest.approx(data.rewards[k], abs=1e-3)
            assert terminal == data.terminals[k]
            if k + 1 < stop:
                np.testing.assert_allclose(following, data.observations[k + 1], atol=2e-3)
                checked += 1
    assert checked > 100


@every_environment
def test_an_episode_replays_in_a_fresh_environment(name):
    """The first simulator's first episode: same seed, same actions, same observations."""
    world, data = robots.load(name), random_data(name, seed=3)
    # From one simulator: the seed is the generator's first number.
    seed = int(np.random.default_rng(3).integers(2**31))
    with locomotion._known_warnings_ignored():
        fresh = gym.make(f"{world.gymnasium}-v5")
    observation, _ = fresh.reset(seed=seed)
    for k in range(data.bounds[0, 1]):
        np.testing.assert_array_equal(observation.astype("f4"), data.observations[k])
        observation, reward, terminal, truncated, _ = fresh.step(data.actions[k])
        assert np.float32(reward) == data.rewards[k]
        assert (terminal, truncated and not terminal) == (data.terminals[k], data.timeouts[k])
    assert terminal or truncated
    fresh.close()


@pytest.mark.lengthy
@every_environment
def test_layout(name):
    world = robots.load(name)
    data = random_data(name, 9_000)  # two simulators
    assert data.observations.shape == (len(data.rewards), world.observation)
    assert data.actions.shape == (len(data.rewards), world.action)
    assert [array.dtype for array in data.arrays().values()] == 3 * [np.float32] + 2 * [bool]
    assert np.abs(data.actions).max() <= 1
    lengths = np.diff(data.bounds, axis=1)
    assert lengths.max() <= locomotion.HORIZON
    last = data.bounds[:, 1] - 1
    np.testing.assert_array_equal(data.timeouts[last], lengths[:, 0] == locomotion.HORIZON)
    np.testing.assert_array_equal(data.terminals[last], lengths[:, 0] < locomotion.HORIZON)
    assert (data.terminals | data.timeouts).sum() == data.n_episodes
    assert 9_000 <= len(data.rewards) < 9_000 + lengths[-1]  # not an episode too many
    starts = data.observations[data.bounds[:, 0], 0]
    np.testing.assert_allclose(starts, world.height, atol=0.101)  # Gymnasium's reset noise


@pytest.mark.lengthy
def test_random_actions_score_near_zero():
    for name in robots.ENVIRONMENTS:
        data = random_data(name, 4_000)
        assert abs(locomotion.scores(robots.load(name), data).mean()) < 2


def test_same_seed_same_bytes():
    one, again, other = (random_data("hopper", seed=seed) for seed in (1, 1, 2))
    assert same(one, again) and not same(one, other)


@pytest.mark.slow
@every_shipped
def test_same_seed_same_bytes_of_policies(name):
    world = robots.load(name)
    sets = [locomotion.make_trajectories(world, "medium-replay", 400, s) for s in (1, 1, 2)]
    assert same(sets[0], sets[1]) and not same(sets[0], sets[2])


@pytest.mark.lengthy
def test_replay_shares_transitions_among_the_snapshots(monkeypatch):
    world = robots.load("halfcheetah")  # never falls, so that episodes are equally long
    policies = tuple(constant(value, world) for value in (-0.5, 0.1, 0.6))
    monkeypatch.setattr(actors, "load_policies", lambda _: policies)
    means = {}
    for kind in ("medium-replay", "medium", "expert"):
        data = locomotion.make_trajectories(world, kind, 1_500)
        assert data.n_episodes == 2
        means[kind] = [data.actions[slice(*bounds)].mean() for bounds in data.bounds]
    np.testing.assert_allclose(means["medium-replay"], np.tanh([-0.5, 0.1]), atol=1e-3)
    np.testing.assert_allclose(means["medium"], np.tanh([0.1, 0.1]), atol=1e-3)
    np.testing.assert_allclose(means["expert"], np.tanh([0.6, 0.6]), atol=1e-3)


def constant(mean: float, world: robots.Environment) -> Policy:
    bias = np.repeat(np.array([mean, -6], dtype="f4"), world.action)
    return Policy(((np.zeros((world.observation, len(bias)), dtype="f4"), bias),))


# Versions of the environments


@pytest.mark.lengthy
def test_version_4_is_as_said():
    rewards = {}
    for name in robots.ENVIRONMENTS:
        for version in (4, 5):
            data = locomotion.collect(
                robots.load(name), steady(name), 60, np.random.default_rng(0), version
            )
            rewards[name, version] = data.rewards[: data.bounds[0, 1]]
    np.testing.assert_array_equal(rewards["halfcheetah", 4], rewards["halfcheetah", 5])
    np.testing.assert_array_equal(rewards["hopper", 4][:-1], rewards["hopper", 5][:-1])
    assert rewards["hopper", 4][-1] == pytest.approx(rewards["hopper", 5][-1] + 1, abs=1e-6)
    frictions = [mujoco_friction(version) for version in (4, 5)]
    assert frictions == [(0.9, 1.9), (1.9, 1.9)]


def steady(name: str) -> locomotion.Actor:
    return lambda x: np.full((len(x), robots.load(name).action), 0.3, dtype="f4")


def mujoco_friction(version: int) -> tuple[float, float]:
    model = locomotion.simulators(robots.load("walker2d"), 1, version).envs[0].unwrapped.model
    return tuple(
        round(float(model.geom(foot).friction[0]), 3) for foot in ("foot_geom", "foot_left_geom")
    )


def test_making_simulators_writes_no_log(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    locomotion.simulators(robots.load("halfcheetah"), 1)
    assert list(tmp_path.iterdir()) == []
    assert mujoco.get_mju_user_warning() is None


# Files and bad input


@every_environment
def test_reads_its_own_files_and_no_others(name, tmp_path):
    data = random_data(name)
    trajectories.write_hdf5(tmp_path / "data.hdf5", data)
    path = str(tmp_path / "data.hdf5")
    assert same(locomotion.read(robots.load(name), path), data)
    for other in set(robots.ENVIRONMENTS) - {name}:
        with pytest.raises(InputError, match=r"observations' of shape|episodes start at height"):
            locomotion.read(robots.load(other), path)


def test_reads_minari(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    data = random_data("hopper")
    trajectories.write_minari("mujoco/hopper/random-v0", data, "Random actions.")
    assert same(locomotion.read(robots.load("hopper"), "mujoco/hopper/random-v0"), data)


def test_rewards_missing(tmp_path):
    data = random_data("hopper")
    arrays = data.arrays()
    del arrays["rewards"]
    with trajectories.h5py.File(tmp_path / "data.hdf5", "w") as file:
        for key, array in arrays.items():
            file[key] = array
    with pytest.raises(InputError, match="lacks the key '/rewards'"):
        locomotion.read(robots.load("hopper"), str(tmp_path / "data.hdf5"))


def test_bad_input(tmp_path, monkeypatch):
    hopper = robots.load("hopper")
    with pytest.raises(InputError, match="environment = 'ant' is unknown: allowed are halfcheetah"):
        robots.load("ant")
    with pytest.raises(InputError, match="kind = 'best' is unknown: allowed are random"):
        locomotion.make_trajectories(hopper, "best", 10)
    with pytest.raises(InputError, match="transitions = -5 is out of range: allowed is 1 or more"):
        locomotion.make_trajectories(hopper, "medium-replay", -5)
    with pytest.raises(InputError, match="version = 3 is out of range: allowed is 4 or 5"):
        locomotion.simulators(hopper, 1, 3)
    monkeypatch.setattr(actors, "POLICIES", tmp_path)
    with pytest.raises(InputError, match="No policies of environment = 'hopper' are shipped"):
        locomotion.make_trajectories(hopper, "expert", 10)


@every_shipped
def test_damaged_policies_and_another_mujoco(name, tmp_path, monkeypatch):
    world = robots.load(name)
    monkeypatch.setattr(mujoco, "__version__", "1.50.1")
    with pytest.raises(InputError, match=r"mujoco = 1\.50\.1 differs from the"):
        actors.load_policies(world)
    monkeypatch.undo()
    file = actors.policy_file(world)
    monkeypatch.setattr(actors, "POLICIES", tmp_path)
    (tmp_path / file.name).write_bytes(file.read_bytes()[:-1] + b"!")
    shutil.copy(file.with_suffix(".json"), tmp_path)
    with pytest.raises(InputError, match=r"^Policy file '.*safetensors' is damaged"):
        actors.load_policies(world)


def mutated(content: bytes, rng: np.random.Generator) -> bytes:
    """One of the damages that files meet: a flip, a cut, bytes put in, a stretch lost."""
    at, kind = int(rng.integers(len(content))), rng.integers(5)
    if kind == 0:
        return content[:at] + bytes([content[at] ^ (1 << rng.integers(8))]) + content[at + 1 :]
    if kind == 1:
        return content[:at]
    if kind == 2:
        return content[:at] + rng.bytes(int(rng.integers(1, 9))) + content[at:]
    if kind == 3:
        return content[:at] + content[at + int(rng.integers(1, 40)) :]
    return bytes(len(content)) if at % 2 else b"[" * len(content)


def test_a_damaged_card_is_named_in_one_sentence(tmp_path, monkeypatch):
    """300 damages: each is refused, or changes nothing that the card says (white space)."""
    hopper, rng = robots.load("hopper"), np.random.default_rng(0)
    file, said = actors.policy_file(hopper), card("hopper")
    whole = file.with_suffix(".json").read_bytes()
    monkeypatch.setattr(actors, "POLICIES", tmp_path)
    shutil.copy(file, tmp_path)
    refused = 0
    for content in [*(mutated(whole, rng) for _ in range(300)), b"", b"[]", b"{}", b'"x"', b"1"]:
        (tmp_path / "hopper.json").write_bytes(content)
        try:
            assert actors.card(hopper) == said
        except InputError as error:
            refused += 1
            assert re.fullmatch(r"File '\S+hopper\.json' is damaged: [^.]+\.", str(error))
    assert refused > 250
    with pytest.raises(InputError, match=r"hopper\.json' is damaged"):
        actors.load_policies(hopper)
    (tmp_path / "hopper.json").unlink()
    with pytest.raises(InputError, match=r"hopper\.json' cannot be read \(No such file"):
        actors.card(hopper)


def test_a_card_is_what_was_written(tmp_path, monkeypatch):
    hopper, said = robots.load("hopper"), card("hopper")
    file = actors.policy_file(hopper)
    monkeypatch.setattr(actors, "POLICIES", tmp_path)
    shutil.copy(file, tmp_path)
    actors.write_card(hopper, said)
    assert actors.card(hopper) == said
    assert (tmp_path / "hopper.json").read_bytes() == file.with_suffix(".json").read_bytes()


# The recipe


@pytest.mark.lengthy
@every_shipped
def test_recipe(name):
    recipe = LocomotionData(name, "expert", 1_000)
    made = store.obtain(recipe)
    assert len(made.rewards) >= 1_000
    assert same(store.obtain(recipe), made)
    assert store.key(recipe) != store.key(LocomotionData(name, "expert", 1_000, seed=1))


@every_shipped
def test_other_policies_make_another_key(name, monkeypatch):
    before = store.key(LocomotionData(name, "expert"))
    monkeypatch.setattr(actors, "digest", lambda _: "0" * 64)
    assert store.key(LocomotionData(name, "expert")) != before


def test_recipe_refuses_at_once(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="environment = 'ant' is unknown"):
        LocomotionData("ant", "expert")
    with pytest.raises(InputError, match="kind = 'best' is unknown"):
        LocomotionData("hopper", "best")
    with pytest.raises(InputError, match="transitions = 0 is out of range"):
        LocomotionData("hopper", "expert", 0)
    monkeypatch.setattr(actors, "POLICIES", tmp_path)
    with pytest.raises(InputError, match="No policies of environment = 'hopper' are shipped"):
        LocomotionData("hopper", "expert")
    assert LocomotionData("hopper", "random").policies == ""  # needs none
