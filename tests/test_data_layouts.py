"""Layouts of other people's data: Minari's own collector, robomimic's HDF5, OGBench's npz."""

import io
import zipfile

import gymnasium as gym
import h5py
import minari
import numpy as np
import pytest
from minari.data_collector import EpisodeBuffer

from rrlib.errors import DataWarning, InputError
from rrlib.plans import npz_files
from rrlib.plans import trajectories as tr
from rrlib.plans.hdf5_layouts import Wanted

LENGTHS = 5, 8, 3


def content(seed=0) -> dict[str, list[np.ndarray]]:
    """Observations (two parts and a picture), actions and dones of three episodes."""
    rng = np.random.default_rng(seed)
    made = {"b_pos": 3, "a_vel": 2, "actions": 2}
    found = {
        name: [rng.normal(size=(n, wide)).astype("f4") for n in LENGTHS]
        for name, wide in made.items()
    }
    found["picture"] = [np.zeros((n, 4, 4, 3), "u1") for n in LENGTHS]
    found["dones"] = [np.arange(n) >= n - 2 for n in LENGTHS]  # success is held for two steps
    return found


# robomimic


@pytest.fixture
def robomimic(tmp_path):
    path, made = tmp_path / "low_dim.hdf5", content()
    with h5py.File(path, "w") as file:
        file.create_group("data").attrs["env_args"] = "{}"
        for k in (2, 0, 1):  # h5py lists demo_10 before demo_2
            group = file["data"].create_group(f"demo_{9 + k}")
            for name in ("b_pos", "a_vel", "picture"):
                group[f"obs/{name}"] = made[name][k]
                group[f"next_obs/{name}"] = made[name][k]
            group["actions"] = made["actions"][k].astype("f8")
            group["dones"] = made["dones"][k].astype("i8")
            group["states"] = np.zeros((LENGTHS[k], 40))
        file["mask/train"] = np.array([b"demo_9", b"demo_11"])
        file["mask/text"] = np.array(["demo_10"], dtype=h5py.string_dtype())
        file["mask/wrong"] = np.array([b"demo_9", b"demo_7"])
        file["mask/number"] = np.arange(3)
        file["mask/away"] = h5py.ExternalLink("elsewhere.hdf5", "/mask")
    return path, made


def test_robomimic_is_read_by_keys_in_their_order(robomimic):
    path, made = robomimic
    with pytest.warns(DataWarning, match=r"lacks the key '/data/demo_9/rewards': it is read with"):
        found = tr.read(path, 5, 2, observation_keys=("b_pos", "a_vel"))
    joined = [np.concatenate(both, 1) for both in zip(made["b_pos"], made["a_vel"], strict=True)]
    np.testing.assert_array_equal(found.observations, np.concatenate(joined))
    np.testing.assert_array_equal(found.actions, np.concatenate(made["actions"]))
    assert found.rewards is None
    np.testing.assert_array_equal(np.diff(found.bounds)[:, 0], LENGTHS)
    last = np.cumsum(LENGTHS) - 1
    np.testing.assert_array_equal(np.flatnonzero(found.terminals), last)
    assert not found.timeouts.any()


def test_without_keys_every_vector_is_taken_and_named(robomimic):
    path, made = robomimic
    with pytest.warns(DataWarning) as caught:
        found = tr.read(path)
    assert any(
        "its vectors a_vel, b_pos are laid side by side, in this order." in str(w.message)
        for w in caught
    )
    joined = [np.concatenate(both, 1) for both in zip(made["a_vel"], made["b_pos"], strict=True)]
    np.testing.assert_array_equal(found.observations, np.concatenate(joined))


@pytest.mark.filterwarnings("ignore::rrlib.errors.DataWarning")
@pytest.mark.parametrize(("key", "chosen"), [("train", [0, 2]), ("text", [1])])
def test_a_filter_key_takes_its_episodes(robomimic, key, chosen):
    path, made = robomimic
    found = tr.read(path, 5, 2, filter_key=key)
    np.testing.assert_array_equal(
        found.actions, np.concatenate([made["actions"][k] for k in chosen])
    )


@pytest.mark.filterwarnings("ignore::rrlib.errors.DataWarning")
@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"filter_key": "none"}, "has no list of names in '/mask/none'"),
        ({"filter_key": "number"}, "has no list of names in '/mask/number'"),
        ({"filter_key": "wrong"}, "lists 'demo_7' in '/mask/wrong': allowed is a name of its '/d"),
        ({"filter_key": "away"}, "has a link in place of '/mask/away'"),
        ({"observation_keys": ("c",)}, "lacks the key '/data/demo_9/obs/c'"),
        ({"observation_keys": ("picture",)}, r"has '/data/demo_9/obs/picture' of shape \(5, 4"),
        (
            {"observation_width": 4},
            r"has 5 numbers a step in '.*obs' \(a_vel 2, b_pos 3\): .* is 4",
        ),
        ({"action_width": 3}, r"'/data/demo_9/actions' of shape \(5, 2\): allowed is M x 3"),
        ({"needs": ("rewards",)}, "lacks the key '/data/demo_9/rewards'"),
    ],
)
def test_what_robomimics_file_lacks_is_one_sentence(robomimic, asked, message):
    with pytest.raises(InputError, match=message) as caught:
        tr.read(robomimic[0], **asked)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["soft", "external"])
@pytest.mark.parametrize("key", ["obs/observation", "obs/c", "actions"])
def test_no_link_is_followed(robomimic, key, kind):
    path, _ = robomimic
    with h5py.File(path, "a") as file:
        target = file["data/demo_9/obs/b_pos"].name
        if key == "actions":
            del file["data/demo_9/actions"]
        link = {"soft": h5py.SoftLink(target), "external": h5py.ExternalLink(str(path), target)}
        file[f"data/demo_9/{key}"] = link[kind]
    with pytest.raises(InputError, match=rf"has a link in place of '/data/demo_9/{key}'"):
        tr.read(path)


# OGBench


def ogbench(path, compact=False, **changes):
    """A file as its generators write it (or as its loader keeps it), and what is in it."""
    made = content()
    joined = [np.concatenate(both, 1) for both in zip(made["b_pos"], made["a_vel"], strict=True)]
    arrays = {"observations": np.concatenate(joined), "actions": np.concatenate(made["actions"])}
    ends = np.zeros(sum(LENGTHS), "f4")
    ends[np.cumsum(LENGTHS) - 1] = 1
    arrays |= {"terminals": ends, "qpos": np.zeros((len(ends), 15)), "qvel": np.zeros((16, 14))}
    if compact:
        arrays["valids"] = 1 - ends
        arrays["terminals"] = np.minimum(ends + np.append(ends[1:], 1), 1)
    np.savez_compressed(path, **{k: v for k, v in (arrays | changes).items() if v is not None})
    return arrays


def test_ogbench_is_read(tmp_path):
    arrays = ogbench(tmp_path / "pointmaze.npz")
    for widths in ((5, 2), (None, None)):
        found = tr.read(tmp_path / "pointmaze.npz", *widths)
        np.testing.assert_array_equal(found.observations, arrays["observations"])
        np.testing.assert_array_equal(found.actions, arrays["actions"])
        np.testing.assert_array_equal(np.diff(found.bounds)[:, 0], LENGTHS)
        assert found.rewards is None and found.terminals.dtype == bool


def test_states_that_ogbenchs_loader_marked_as_not_valid_are_left_out(tmp_path):
    arrays = ogbench(tmp_path / "a.npz", compact=True)
    found = tr.read(tmp_path / "a.npz", 5, 2)
    np.testing.assert_array_equal(np.diff(found.bounds)[:, 0], np.array(LENGTHS) - 1)
    keep = arrays["valids"] == 1
    np.testing.assert_array_equal(found.observations, arrays["observations"][keep])


class Opened:
    """What a pickle would do."""

    def __reduce__(self):
        return (print, ("a pickle was loaded",))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"actions": None}, "lacks the key 'actions'"),
        ({"actions": np.zeros((15, 2))}, "16 observations beside 15 actions"),
        ({"actions": np.zeros((16, 3))}, r"has 'actions' of shape \(16, 3\): allowed is M x 2"),
        ({"observations": np.full((16, 5), np.nan)}, r"has nan in 'observations' at \(0, 0\)"),
        ({"terminals": np.full(16, 0.5)}, r"has 0\.5 in 'terminals' at \(0,\): allowed is 0 or 1"),
        ({"actions": np.array([Opened()] * 16, object)}, "has 'actions' of type object: .*numbers"),
        ({"observations": np.zeros((0, 5)), "actions": np.zeros((0, 2))}, "is empty: allowed is"),
    ],
)
def test_a_wrong_npz_is_one_sentence(tmp_path, changes, message, capsys):
    ogbench(tmp_path / "a.npz", **changes)
    with pytest.raises(InputError, match=rf"^Dataset '.*a\.npz' .*{message}") as caught:
        tr.read(tmp_path / "a.npz", 5, 2)
    assert "\n" not in str(caught.value) and "pickle" not in capsys.readouterr().out


def test_a_damaged_npz_is_one_sentence(tmp_path):
    path = tmp_path / "a.npz"
    ogbench(path)
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for cut in (b"", whole[:100], whole[:-30], b"no archive", bytes(1000)):
        path.write_bytes(cut)
        with pytest.raises(InputError, match="is no NumPy file, or is damaged"):
            tr.read(path, 5, 2)
    for _ in range(60):  # a checksum sees each of these, or the bytes are of no array that is read
        changed = bytearray(whole)
        for at in rng.integers(len(whole), size=3):
            changed[at] ^= 1 << rng.integers(8)
        path.write_bytes(changed)
        try:
            tr.read(path, 5, 2)
        except InputError as error:
            assert "\n" not in str(error)


@pytest.mark.lengthy
def test_an_npz_that_declares_more_than_it_holds_is_refused(tmp_path):
    path, header = tmp_path / "a.npz", io.BytesIO()
    shape = {"shape": (10**10, 5), "fortran_order": False, "descr": "<f4"}
    np.lib.format.write_array_header_2_0(header, shape)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("observations.npy", header.getvalue())
    with pytest.raises(InputError, match=r"declares 'observations' of shape \(10000000000, 5\)"):
        npz_files.read_trajectories(path, Wanted((5, 2)))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("observations.npy", bytes(200 << 20))
    with pytest.raises(InputError, match="100 times a file's size at most"):
        npz_files.read_trajectories(path, Wanted((5, 2)))


# What Minari's DataCollector writes: its buffers, through its storage


BOX = gym.spaces.Box(-1, 1, (2,), np.float32)
GOAL = {"observation": BOX, "desired_goal": BOX, "achieved_goal": BOX}
PARTS = {"velocity": BOX, "arm": gym.spaces.Dict({"tip": BOX}), "id": gym.spaces.Discrete(3)}


def collected(root, monkeypatch, observations, actions):
    """A data set as a DataCollector leaves it, and its episodes as Minari gives them back."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(root))
    observations.seed(0)
    actions.seed(0)
    buffers = [
        EpisodeBuffer(
            id=k,
            seed=k,
            observations=stacked([observations.sample() for _ in range(n + 1)]),
            actions=stacked([actions.sample() for _ in range(n)]),
            rewards=[1.0] * n,
            terminations=[False] * (n - 1) + [k == 1],
            truncations=[False] * (n - 1) + [k != 1],
            infos={"place": np.zeros((n + 1, 3))},
        )
        for k, n in enumerate(LENGTHS)
    ]
    minari.create_dataset_from_buffers(
        "own/world-v0", buffers, observation_space=observations, action_space=actions,
        data_format="hdf5", algorithm_name="a", author="b", author_email="c", code_permalink="d",
        description="e",
    )  # fmt: skip
    return list(minari.load_dataset("own/world-v0").iterate_episodes())


def stacked(samples):
    if isinstance(samples[0], dict):
        return {key: stacked([one[key] for one in samples]) for key in samples[0]}
    return np.stack(samples)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["goal", "parts", "discrete"])
def test_what_minaris_collector_writes_is_read(tmp_path, monkeypatch, kind):
    spaces = {
        "goal": (gym.spaces.Dict(GOAL), BOX),
        "parts": (gym.spaces.Dict(PARTS), BOX),
        "discrete": (gym.spaces.Discrete(5), gym.spaces.Discrete(4)),
    }[kind]
    episodes = collected(tmp_path, monkeypatch, *spaces)
    wide = {"goal": (2, 2), "parts": (5, 2), "discrete": (5, 4)}[kind]
    for widths in (wide, (None, None)):
        found = tr.read("own/world-v0", *widths)
        steps = [len(e.rewards) for e in episodes]
        np.testing.assert_array_equal(np.diff(found.bounds)[:, 0], steps)
        assert (found.observations.shape[1], found.actions.shape[1]) == wide
        np.testing.assert_array_equal(
            found.terminals, np.concatenate([e.terminations for e in episodes])
        )
    seen = [e.observations for e in episodes]
    if kind == "goal":
        rows = [o["observation"][:-1] for o in seen]
        goals = np.concatenate([o["desired_goal"][:-1] for o in seen])
        np.testing.assert_array_equal(found.goals, goals)
    elif kind == "parts":
        rows = [
            np.concatenate([o["arm"]["tip"], o["id"][:, None], o["velocity"]], 1)[:-1] for o in seen
        ]
    else:
        rows = [np.eye(5)[o[:-1]] for o in seen]
        actions = np.concatenate([np.eye(4)[e.actions] for e in episodes])
        np.testing.assert_array_equal(found.actions, actions)
    np.testing.assert_array_equal(found.observations, np.concatenate(rows).astype("f4"))


def test_an_id_outside_of_its_space_is_refused(tmp_path):
    with h5py.File(tmp_path / "a.hdf5", "w") as file:
        group = file.create_group("episode_0")
        group["observations"], group["actions"] = np.zeros((4, 2)), np.array([0, 4, 1])
        for name in ("rewards", "terminations", "truncations"):
            group[name] = np.zeros(3)
    with pytest.raises(InputError, match=r"has 4 in '/episode_0/actions' at \(1,\): .*from 0 to 3"):
        tr.read(tmp_path / "a.hdf5", 2, 4)
    assert tr.read(tmp_path / "a.hdf5", 2, 5).actions.tolist()[1] == [0, 0, 0, 0, 1]
    assert tr.read(tmp_path / "a.hdf5").actions.tolist() == [[0], [4], [1]]
