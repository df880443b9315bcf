"""Files against h5py and Minari, the normaliser against scikit-learn, splits and windows."""

from dataclasses import replace

import h5py
import minari
import numpy as np
import pytest
import torch
from gymnasium import spaces
from minari.data_collector import EpisodeBuffer
from safetensors.numpy import load_file, save_file
from sklearn.preprocessing import MinMaxScaler

from rrlib.errors import InputError
from rrlib.plans import normalisers
from rrlib.plans import trajectories as tr

KEYS = ("observations", "actions", "rewards", "terminals", "timeouts")


def make(lengths=(5, 3, 4), seed=0, unfinished=False) -> tr.Trajectories:
    """Random episodes of these lengths; every second one ends by a terminal."""
    rng = np.random.default_rng(seed)
    m = sum(lengths)
    terminals, timeouts = np.zeros((2, m), dtype=bool)
    last = np.cumsum(lengths) - 1
    terminals[last[1::2]] = timeouts[last[::2]] = True
    if unfinished:
        terminals[-1] = timeouts[-1] = False
    return tr.Trajectories(
        rng.normal(size=(m, 4)).astype("f4"),
        rng.normal(size=(m, 2)).astype("f4"),
        rng.normal(size=m).astype("f4"),
        terminals,
        timeouts,
        rng.normal(size=(m, 2)).astype("f4"),
    )


def assert_equal(one: tr.Trajectories, other: tr.Trajectories) -> None:
    assert one.arrays().keys() == other.arrays().keys()
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(array, other.arrays()[name], err_msg=name, strict=True)


@pytest.fixture
def minari_root(tmp_path, monkeypatch):
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    return tmp_path / "minari"


@pytest.mark.parametrize("unfinished", [False, True])
def test_bounds_and_take(unfinished):
    data = make(unfinished=unfinished)
    np.testing.assert_array_equal(data.bounds, [(0, 5), (5, 8), (8, 12)])
    assert data.n_episodes == 3
    taken = data.take([2, 1])
    np.testing.assert_array_equal(taken.bounds, [(0, 4), (4, 7)])
    for name in ("observations", "actions", "rewards", "goals"):
        mine = getattr(data, name)
        np.testing.assert_array_equal(getattr(taken, name), np.concatenate([mine[8:12], mine[5:8]]))
    assert data.timeouts[11] != unfinished  # the original keeps its own marks


# Files


def test_hdf5_is_d4rls_layout_and_comes_back(tmp_path):
    data = make()
    tr.write_hdf5(tmp_path / "new folder" / "data.hdf5", data)
    assert [file.name for file in (tmp_path / "new folder").iterdir()] == ["data.hdf5"]
    with h5py.File(tmp_path / "new folder" / "data.hdf5") as file:
        assert set(file) == {*KEYS, "infos"}
        for key in KEYS:
            np.testing.assert_array_equal(file[key], getattr(data, key))
        np.testing.assert_array_equal(file["infos/goal"], data.goals)
    assert_equal(tr.read(tmp_path / "new folder" / "data.hdf5", 4, 2), data)


def test_reads_d4rl_files_in_other_types_and_without_goals(tmp_path):
    data = make(unfinished=True)
    with h5py.File(tmp_path / "d.hdf5", "w") as file:
        for key in KEYS:
            file[key] = getattr(data, key).astype("f8")
        file["infos/qpos"] = np.zeros(12)
    found = tr.read(str(tmp_path / "d.hdf5"), 4, 2)
    assert found.goals is None
    assert found.terminals.dtype == bool and found.observations.dtype == np.float32
    for key in KEYS:
        np.testing.assert_array_equal(getattr(found, key), getattr(data, key))


@pytest.mark.parametrize("dataset_id", ["plain-v0", "rrlib/maze/umaze-v1"])
def test_minari_loads_what_is_written(minari_root, dataset_id):
    data = make((3,) * 12)  # more than ten, so that names sorted as text would be out of order
    folder = tr.write_minari(dataset_id, data, "Twelve random episodes.")
    assert folder == minari_root / dataset_id
    dataset = minari.load_dataset(dataset_id)
    assert (dataset.total_episodes, dataset.total_steps) == (12, 36)
    assert dataset.spec.dataset_id == dataset_id and dataset_id in minari.list_local_datasets()
    for episode, (start, stop) in zip(dataset, data.bounds, strict=True):
        np.testing.assert_array_equal(episode.observations[:-1], data.observations[start:stop])
        np.testing.assert_array_equal(episode.observations[-1], data.observations[stop - 1])
        np.testing.assert_array_equal(episode.actions, data.actions[start:stop])
        np.testing.assert_array_equal(episode.rewards, data.rewards[start:stop])
        np.testing.assert_array_equal(episode.terminations, data.terminals[start:stop])
        np.testing.assert_array_equal(episode.truncations, data.timeouts[start:stop])
        assert dataset.observation_space.contains(episode.observations[0])
        assert dataset.action_space.contains(episode.actions[0])
    for path in (dataset_id, folder, folder / "data" / "main_data.hdf5"):
        assert_equal(tr.read(path, 4, 2), data)


def test_reads_point_mazes_dictionary_written_by_minari_itself(minari_root):
    data = make()
    box = spaces.Box(-np.inf, np.inf, (4,), np.float32)
    pair = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    buffers = []
    for start, stop in data.bounds:
        rows = [*range(start, stop), stop - 1]
        observations = {
            "observation": data.observations[rows] + np.arange(len(rows), dtype="f4")[:, None],
            "achieved_goal": data.observations[rows, :2],
            "desired_goal": data.goals[rows],
        }
        buffers.append(
            EpisodeBuffer(
                observations=observations,
                actions=data.actions[start:stop],
                rewards=data.rewards[start:stop],
                terminations=data.terminals[start:stop],
                truncations=np.zeros(stop - start, dtype=bool),
            )
        )
    with pytest.warns(UserWarning):  # Minari's, on an author and so on not given
        minari.create_dataset_from_buffers(
            "point-v0",
            buffers,
            observation_space=spaces.Dict(
                {"observation": box, "achieved_goal": pair, "desired_goal": pair}
            ),
            action_space=pair,
        )
    found = tr.read("point-v0", 4, 2)
    np.testing.assert_array_equal(found.bounds, data.bounds)  # though nothing said it had ended
    steps = np.concatenate([np.arange(stop - start) for start, stop in data.bounds])
    np.testing.assert_array_equal(
        found.observations, data.observations + steps[:, None].astype("f4")
    )
    np.testing.assert_array_equal(found.goals, data.goals)


def _spoil(file, case):
    """Turn a good D4RL-layout file into a bad one."""
    if case.startswith("without "):
        del file[case.removeprefix("without ")]
        return
    key, value = {
        "short rewards": ("rewards", np.zeros(7)),
        "one observation more": ("observations", np.zeros((13, 4))),
        "wide observations": ("observations", np.zeros((12, 5))),
        "narrow actions": ("actions", np.zeros((12, 1))),
        "flat actions": ("actions", np.zeros(12)),
        "deep rewards": ("rewards", np.zeros((12, 2))),
        "deeper rewards": ("rewards", np.zeros((12, 1, 1))),
        "scalar rewards": ("rewards", 0.0),
        "texts": ("rewards", np.array([b"one"] * 12)),
        "nan": ("observations", np.where(np.eye(12, 4, k=-3) > 0, np.nan, 0.5)),
        "inf": ("actions", np.full((12, 2), np.inf)),
        "half a mark": ("terminals", np.full(12, 0.5)),
        "a mark of two": ("timeouts", np.full(12, 2, np.uint8)),
        "too large for float32": ("actions", np.full((12, 2), 1e300)),
        "nan mark": ("timeouts", np.full(12, np.nan)),
        "group": ("actions/inner", np.zeros((12, 2))),
    }[case]
    file.pop(key.split("/inner")[0])
    file[key] = value


@pytest.mark.parametrize(
    ("case", "message"),
    [
        *(
            (f"without {key}", f"lacks the key '/{key}': allowed is a file that has")
            for key in ("observations", "actions", "terminals")
        ),
        (
            "short rewards",
            "different lengths, 7 rewards beside 12 actions .*: allowed is one length",
        ),
        ("one observation more", "different lengths, 13 observations beside 12 actions"),
        ("wide observations", r"'/observations' of shape \(12, 5\): allowed is M x 4\."),
        ("narrow actions", r"'/actions' of shape \(12, 1\): allowed is M x 2\."),
        ("flat actions", r"'/actions' of shape \(12,\): allowed is M x 2\."),
        ("deep rewards", r"'/rewards' of shape \(12, 2\): allowed is M\."),
        ("deeper rewards", r"'/rewards' of shape \(12, 1, 1\): allowed is M\."),
        ("scalar rewards", r"'/rewards' of shape \(\): allowed is M\."),
        ("texts", r"'/rewards' of type \|S3: allowed is numbers\."),
        ("nan", r"nan in '/observations' at \(3, 0\): allowed is a number, 1,000,000 at most"),
        ("inf", r"has inf in '/actions' at \(0, 0\): allowed is a number"),
        ("too large for float32", r"has 1e\+300 in '/actions' at \(0, 0\): allowed is a number"),
        ("nan mark", r"has nan in '/timeouts' at \(0,\): allowed is 0 or 1"),
        ("half a mark", r"has 0\.5 in '/terminals' at \(0,\): allowed is 0 or 1"),
        ("a mark of two", r"has 2 in '/timeouts' at \(0,\): allowed is 0 or 1"),
        ("group", "has no array in '/actions': allowed is an array"),
    ],
)
def test_refuses_bad_d4rl_files(tmp_path, case, message):
    path = tmp_path / "bad.hdf5"
    tr.write_hdf5(path, make())
    with h5py.File(path, "a") as file:
        _spoil(file, case)
    with pytest.raises(InputError, match=rf"^Dataset '.*bad\.hdf5' .*{message}"):
        tr.read(path, 4, 2)


def test_refuses_empty_files(tmp_path):
    nothing = np.zeros((0, 2))
    with h5py.File(tmp_path / "empty.hdf5", "w") as file:
        file["observations"], file["actions"] = np.zeros((0, 4)), nothing
        file["rewards"], file["terminals"], file["timeouts"] = np.zeros((3, 0))
    with pytest.raises(InputError, match=r"empty\.hdf5' is empty .*: allowed is one transition"):
        tr.read(tmp_path / "empty.hdf5", 4, 2)


@pytest.mark.parametrize("missing", ["nowhere.hdf5", "id-v0"])
def test_refuses_what_is_not_there_and_makes_no_folder(tmp_path, minari_root, missing):
    with pytest.raises(InputError, match=rf"{missing}' is missing: allowed is a D4RL-.* or the id"):
        tr.read(tmp_path / missing if missing != "id-v0" else missing, 4, 2)
    assert not minari_root.exists()


@pytest.mark.parametrize("kind", ["text", "cut short"])
def test_refuses_what_is_not_hdf5(tmp_path, kind):
    path = tmp_path / "d.hdf5"
    tr.write_hdf5(path, make((500,)))
    path.write_bytes(b"observations: 1, 2\n" if kind == "text" else path.read_bytes()[:4000])
    with pytest.raises(InputError, match=r"d\.hdf5' is not HDF5, or is damaged: allowed is a D4RL"):
        tr.read(path, 4, 2)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("observations", np.zeros((5, 3)), r"'/episode_1/observations' of shape \(5, 3\)"),
        ("observations", np.zeros((9, 4)), "9 observations beside 4 actions in group '/episode_1'"),
        ("truncations", None, "lacks the key '/episode_1/truncations'"),
        ("actions", np.full((4, 2), np.nan), r"has nan in '/episode_1/actions' at \(0, 0\)"),
    ],
)
def test_refuses_bad_minari_files(minari_root, key, value, message):
    folder = tr.write_minari("bad-v0", make((5, 4)), "To be spoilt.")
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1"][key]
        if value is not None:
            file["episode_1"][key] = value
    with pytest.raises(InputError, match=message):
        tr.read("bad-v0", 4, 2)


@pytest.mark.parametrize("bad", ["no-version", "spa ce-v0", ""])
def test_refuses_a_malformed_minari_id(minari_root, bad):
    with pytest.raises(InputError, match=rf"'{bad}' is malformed: allowed is \(namespace/\)name-v"):
        tr.write_minari(bad, make(), "")
    assert not minari_root.exists()


def test_refuses_a_minari_id_that_is_taken(minari_root):
    tr.write_minari("one-v0", make(), "The first.")
    with pytest.raises(InputError, match="'one-v0' is taken: allowed is one that does not exist"):
        tr.write_minari("one-v0", make(seed=1), "The second.")
    assert_equal(tr.read("one-v0", 4, 2), make())


def test_refuses_a_folder_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(InputError, match=r"file/d\.hdf5' cannot be written \(.*\): a path"):
        tr.write_hdf5(tmp_path / "file" / "d.hdf5", make())
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file"))
    with pytest.raises(InputError, match=r"file/d-v0' cannot be written \(.*\): a path"):
        tr.write_minari("d-v0", make(), "")


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    tr.write_hdf5(tmp_path / "d.hdf5", make())
    bad = make(seed=1)
    monkeypatch.setattr(tr.Trajectories, "arrays", lambda self: {"rewards": object()})
    with pytest.raises(TypeError):
        tr.write_hdf5(tmp_path / "d.hdf5", bad)
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["d.hdf5"]
    assert_equal(tr.read(tmp_path / "d.hdf5", 4, 2), make())


def test_a_failed_minari_write_leaves_nothing(minari_root):
    data = make()
    short = tr.Trajectories(**{**data.arrays(), "goals": data.goals[:7]})  # fails at episode 2
    with pytest.raises(IndexError):
        tr.write_minari("d-v0", short, "")
    assert not minari_root.exists()


# Splits and windows


def test_split_is_by_episode_and_disjoint():
    data = make((2, 5, 3, 4, 6, 3, 2, 4, 5, 3))
    train, held_out = tr.split(data, 0.3, seed=1)
    assert (train.n_episodes, held_out.n_episodes) == (7, 3)
    episodes = [data.rewards[start:stop].tolist() for start, stop in data.bounds]
    sides = [
        [s.rewards[start:stop].tolist() for start, stop in s.bounds] for s in (train, held_out)
    ]
    assert sorted(sides[0] + sides[1]) == sorted(episodes)  # all of them, whole, each once
    again, other = (tr.split(data, 0.3, seed=seed)[1] for seed in (1, 2))
    assert_equal(again, held_out)
    assert other.rewards.tolist() != held_out.rewards.tolist()


@pytest.mark.parametrize(("fraction", "held_out"), [(0.01, 1), (0.99, 2)])
def test_split_leaves_an_episode_to_each_side(fraction, held_out):
    assert [part.n_episodes for part in tr.split(make(), fraction, 0)] == [3 - held_out, held_out]


@pytest.mark.parametrize(
    ("lengths", "fraction", "message"),
    [
        ((5,), 0.5, "1 episode cannot be split: allowed are 2 or more"),
        ((5, 3), 0, "fraction = 0 is out of range: allowed is 0 < fraction < 1"),
        ((5, 3), 1.5, "fraction = 1.5 is out of range"),
        ((5, 3), float("nan"), "fraction = nan is out of range"),
    ],
)
def test_split_refuses(lengths, fraction, message):
    with pytest.raises(InputError, match=message):
        tr.split(make(lengths), fraction, 0)


@pytest.mark.parametrize("horizon", [1, 3, 4, 6])
@pytest.mark.parametrize("unfinished", [False, True])
def test_windows_and_cut_against_a_plain_loop(horizon, unfinished):
    data = make((5, 3, 1, 6), unfinished=unfinished)
    starts, plans = [], []
    for start, stop in data.bounds:
        for first in range(start, max(stop - horizon, start) + 1):
            plan = np.zeros((horizon, 6), dtype="f4")
            for h in range(horizon):
                plan[h, 2:] = data.observations[min(first + h, stop - 1)]
                if first + h < stop:
                    plan[h, :2] = data.actions[first + h]
            starts.append(first)
            plans.append(plan)
    np.testing.assert_array_equal(tr.windows(data, horizon), starts)
    np.testing.assert_array_equal(tr.cut(data, np.array(starts), horizon), plans, strict=True)


@pytest.mark.parametrize("horizon", [0, -4])
def test_windows_refuse_a_horizon_below_one(horizon):
    with pytest.raises(InputError, match=rf"horizon = {horizon} is out of range: allowed is 1"):
        tr.windows(make(), horizon)


# Normaliser


def joined(*sets: tr.Trajectories) -> np.ndarray:
    return np.concatenate([np.concatenate([s.actions, s.observations], axis=1) for s in sets])


def test_normaliser_is_min_max_over_all_sets():
    base, expert = make(seed=1), make(seed=2)
    normaliser = normalisers.Normaliser.fit(base, expert)
    rows = joined(base, expert)
    expected = MinMaxScaler((-1, 1)).fit(rows)
    found = normaliser.normalise(rows)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected.transform(rows), atol=1e-6)
    np.testing.assert_allclose(normaliser.denormalise(found), rows, atol=1e-6)
    alone = normalisers.Normaliser.fit(base).normalise(rows)
    assert not np.allclose(alone, found, atol=1e-2)  # one set alone gives another normaliser


def test_a_constant_coordinate_goes_to_zero_and_back():
    data = make()
    data.observations[:, 1] = 3.5
    normaliser = normalisers.Normaliser.fit(data)
    plans = tr.cut(data, tr.windows(data, 3), 3)
    found = normaliser.normalise(plans)
    np.testing.assert_array_equal(found[..., 3], 0)
    np.testing.assert_allclose(normaliser.denormalise(found), plans, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensors_are_normalised_like_arrays_and_keep_their_gradients(dtype):
    data = make()
    normaliser = normalisers.Normaliser.fit(data)
    plans = tr.cut(data, tr.windows(data, 3), 3)
    tensor = torch.from_numpy(plans).to(dtype).requires_grad_()
    found = normaliser.normalise(tensor)
    torch.testing.assert_close(
        found.detach().float(), torch.from_numpy(normaliser.normalise(plans))
    )
    torch.testing.assert_close(normaliser.denormalise(found), tensor)
    found.sum().backward()
    slopes = 2 / (normaliser.high - normaliser.low)
    torch.testing.assert_close(tensor.grad[0, 0].float(), torch.from_numpy(slopes))


def test_normaliser_survives_safetensors(tmp_path):
    normaliser = normalisers.Normaliser.fit(make())
    save_file(normaliser.to_arrays(), tmp_path / "n.safetensors")
    again = normalisers.Normaliser(**load_file(tmp_path / "n.safetensors"))
    plans = joined(make(seed=3))
    np.testing.assert_array_equal(again.normalise(plans), normaliser.normalise(plans))


def test_standardised_sets_have_mean_0_and_deviation_a_half_together():
    """Whatever their lengths: each counts the same, and how far apart they are counts, too."""
    near, far = make((40, 5)), make((300, 80, 20), seed=1)
    far = replace(far, observations=far.observations + np.float32([3, -2, 0, 50]))
    ruler = normalisers.standardiser(near, far)
    rows = [
        ruler.normalise(np.concatenate([s.actions, s.observations], 1).astype(float))
        for s in (near, far)
    ]
    np.testing.assert_allclose(np.mean([r.mean(0) for r in rows], axis=0), 0, atol=1e-5)
    squares = np.mean([np.square(r).mean(0) for r in rows], axis=0)
    np.testing.assert_allclose(squares, 0.25, rtol=1e-5)
    alone = normalisers.standardiser(near)
    both = np.concatenate([near.actions, near.observations], 1)
    centre, half = alone.centre_and_half
    np.testing.assert_allclose(centre, both.mean(0), atol=1e-6)
    np.testing.assert_allclose(half, 2 * both.std(0), rtol=1e-5)
