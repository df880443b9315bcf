"""The command line: tables that agree with the library, one sentence for whatever is wrong."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, UNet1DModel
from PIL import Image
from safetensors.torch import save_file
from test_data_files import as_d4rl

import rrlib
from rrlib.command_line.main import main
from rrlib.images import pairs as image_pairs
from rrlib.images import pipelines
from rrlib.images.miniature import pipeline as miniature
from rrlib.images.miniature import scenes
from rrlib.images.miniature import weights as image_weights
from rrlib.mazes import world as maze
from rrlib.method import comparisons
from rrlib.plans import trajectories as tr

FULL = Path(__file__).resolve().parent.parent / "results" / "full"
MAZES = f"{FULL / 'maze2d-rewards.safetensors'}:umaze (1, 1), seed 0"
STYLE = str(FULL / "images-style.safetensors")
UMAZE = maze.load("umaze")


def rows(path) -> list[list[str]]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def data():
    return maze.make_trajectories(UMAZE, 8, 200, seed=1)


@pytest.fixture
def file(data, tmp_path):
    tr.write_hdf5(tmp_path / "maze.hdf5", data)
    return tmp_path / "maze.hdf5"


@pytest.fixture(scope="module")
def reward():
    path, _, name = MAZES.rpartition(":")
    return rrlib.load_reward(path, name=name)


@pytest.mark.lengthy
def test_trajectories_are_scored(file, data, reward, tmp_path, capsys):
    out = tmp_path / "new" / "scores.csv"
    assert main(["score", str(file), "--reward", MAZES, "--out", str(out)]) == 0
    expected = reward.score(data)
    header, *found = rows(out)
    assert header == ["trajectory", "steps", "score"] and len(found) == 8
    assert [row[:2] for row in found] == [[str(k), "200"] for k in range(8)]
    np.testing.assert_allclose([float(r[2]) for r in found], expected.per_trajectory, rtol=1e-5)
    assert main(["score", str(file), "--reward", MAZES, "--per-step", "--stride", "8"]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    header, *found = csv.reader(told.out.splitlines())
    assert header == ["trajectory", "step", "score"] and found[201][:2] == ["1", "1"]
    steps = reward.score(data, stride=8).per_step
    np.testing.assert_allclose([float(r[2]) for r in found], steps, rtol=1e-5)


def test_d4rls_coordinates_are_said_and_converted(data, reward, tmp_path, capsys):
    with h5py.File(tmp_path / "d4rl.hdf5", "w") as made:
        for key, array in as_d4rl(UMAZE, data).items():
            made[key] = array
    out = tmp_path / "scores.csv"
    command = ["score", str(tmp_path / "d4rl.hdf5"), "--reward", MAZES, "--out", str(out)]
    assert main(command) == 0
    said = capsys.readouterr().err
    assert said.startswith("rrlib: Dataset '") and said.count("\n") == 1
    assert "as D4RL's maze2d has them" in said
    found = [float(row[2]) for row in rows(out)[1:]]
    np.testing.assert_allclose(found, reward.score(data).per_trajectory, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("form", ["npy", "npz", "safetensors", "hdf5"])
def test_plans_are_scored(form, data, reward, tmp_path):
    plans = tr.cut(data, tr.windows(data, 128)[::50], 128)
    path = tmp_path / f"plans.{form}"
    if form == "npy":
        np.save(path, plans)
    elif form == "npz":
        np.savez(path, plans=plans)
    elif form == "safetensors":
        save_file({"plans": torch.from_numpy(plans)}, path)
    else:
        with h5py.File(path, "w") as file:
            file["plans"] = plans
    assert main(["score", str(path), "--reward", MAZES, "--out", str(tmp_path / "a.csv")]) == 0
    found = [float(row[2]) for row in rows(tmp_path / "a.csv")[1:]]
    np.testing.assert_allclose(found, reward.score(plans).per_trajectory, rtol=1e-5)


@pytest.mark.lengthy
def test_a_file_of_ten_thousand_plans(reward, tmp_path):
    rng = np.random.default_rng(0)
    low, high = (np.float32(reward.about[side]) for side in ("low", "high"))
    plans = rng.uniform(low, high, (10_000, 128, 6)).astype("f4")
    np.save(tmp_path / "plans.npy", plans)
    out = tmp_path / "scores.csv"
    assert main(["score", str(tmp_path / "plans.npy"), "--reward", MAZES, "--out", str(out)]) == 0
    assert len(rows(out)) == 10_001


@pytest.mark.lengthy
def test_robots_are_scored(tmp_path):
    from rrlib.locomotion import robots
    from rrlib.locomotion import world as locomotion

    made = locomotion.make_trajectories(robots.load("hopper"), "medium-replay", 2_000)
    tr.write_hdf5(tmp_path / "hopper.hdf5", made)
    models = str(FULL / "locomotion-models.safetensors")
    out = str(tmp_path / "a.csv")
    assert main(["score", str(tmp_path / "hopper.hdf5"), "--reward", models, "--out", out]) == 0
    assert len(rows(out)) == made.n_episodes + 1


@pytest.mark.lengthy
def test_a_folder_of_pictures_is_scored(tmp_path, capsys):
    pixels, folder = scenes.render(5, 0).pixels, tmp_path / "pictures"
    folder.mkdir()
    for k, one in enumerate(pixels):
        Image.fromarray(one).save(folder / f"{k}.png")
    (folder / "notes.txt").write_text("no picture")
    assert main(["score", str(folder), "--reward", STYLE, "--out", str(tmp_path / "a.csv")]) == 0
    header, *found = rows(tmp_path / "a.csv")
    assert header == ["image", "score"] and [row[0] for row in found] == [
        f"{k}.png" for k in range(5)
    ]
    expected = image_pairs.load(STYLE).score(list(pixels), image_weights.load(image_weights.BASE))
    np.testing.assert_allclose([float(row[1]) for row in found], expected, rtol=1e-4, atol=1e-5)


# What is wrong


def sentence(arguments, capsys) -> str:
    """What a command says when it cannot go on."""
    capsys.readouterr()
    assert main([str(one) for one in arguments]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.startswith("rrlib: ") and told.err.endswith(".\n")
    assert told.err.count("\n") == 1 and "Traceback" not in told.err
    return told.err


@pytest.mark.lengthy
def test_bad_input_is_one_sentence_and_leaves_no_file(file, tmp_path, capsys):
    text, empty, away = tmp_path / "a.txt", tmp_path / "empty", tmp_path / "none"
    text.write_text("nothing")
    empty.mkdir()
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes((FULL / "images-style.safetensors").read_bytes()[:-1])
    cut = tmp_path / "cut.hdf5"
    cut.write_bytes(file.read_bytes()[:2000])
    np.savez(tmp_path / "half.npz", observations=np.zeros((5, 4)))
    np.save(tmp_path / "wide.npy", np.zeros((5, 9, 7)))
    np.save(tmp_path / "text.npy", np.array(["a"] * 6))
    (tmp_path / "fake.npy").write_text("no array")
    (empty / "a.png").write_text("no picture")
    path = MAZES.rpartition(":")[0]
    out = tmp_path / "out.csv"
    cases = {
        (file, path): "holds 160 rewards: one is needed, or the name",
        (file, f"{path}:none"): "name='none' is not allowed: one of the 160",
        (file, away): "does not exist",
        (file, text): "is damaged or no safetensors file",
        (file, damaged): "is damaged",
        (file, FULL / "maze2d-maps.safetensors"): "holds no rewards of this version",
        (away, MAZES): "is missing",
        (text, MAZES): "is not HDF5, or is damaged",
        (cut, MAZES): "is not HDF5, or is damaged",
        (empty, MAZES): "is a folder without",
        (tmp_path / "half.npz", MAZES): "lacks the key 'actions'",
        (tmp_path / "wide.npy", MAZES): r"of shape (9, 7) is not allowed",
        (tmp_path / "text.npy", MAZES): "of type <U1",
        (tmp_path / "fake.npy", MAZES): "is no NumPy file, or is damaged",
        (damaged, MAZES): "is damaged",
        (away, STYLE): "a folder with pictures, or a picture, is needed",
        (file, STYLE): "a file with a picture is needed",
        (empty, STYLE): "a file with a picture is needed",
    }
    for (what, which), words in cases.items():
        said = sentence(["score", what, "--reward", which, "--out", out], capsys)
        assert words in said, said
    for options, words in {
        ("--stride", "129"): "stride=129 is not allowed",
        ("--pipeline", "x"): "--pipeline='x' is not allowed: the reward is of plans",
        ("--out", f"{text}/a.csv"): "a file in a folder open for writing is needed",
        ("--out", str(empty)): "it is a folder, a file is needed",
        ("--filter-key", "train"): "filter_key='train' is not allowed",
    }.items():
        said = sentence(["score", file, "--reward", MAZES, "--out", out, *options], capsys)
        assert words in said, said
    said = sentence(["score", empty, "--reward", STYLE, "--pipeline", away], capsys)
    assert "there is no such folder" in said
    assert "no steps" in sentence(["score", empty, "--reward", STYLE, "--per-step"], capsys)
    assert not out.exists()


def test_a_reward_that_does_not_say_its_layout_scores_no_raw_data(file, tmp_path, capsys):
    network = rrlib.WindowReward(6, 4, torch.ones(5))
    rrlib.RelativeReward(network, "score", "x_t").save(tmp_path / "a.safetensors")
    said = sentence(["score", file, "--reward", tmp_path / "a.safetensors"], capsys)
    assert "a reward that says what its data are made of" in said


def test_what_argparse_refuses_has_its_own_code(capsys):
    for wrong in ([], ["score"], ["score", "a", "--reward", "b", "--stride", "x"], ["sing"]):
        with pytest.raises(SystemExit) as caught:
            main(wrong)
        assert caught.value.code == 2
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0 and rrlib.__version__ in capsys.readouterr().out


@pytest.mark.lengthy
def test_it_is_a_module_and_an_entry_point(tmp_path):
    command = [sys.executable, "-m", "rrlib", "info", str(tmp_path / "none")]
    told = subprocess.run(command, capture_output=True, text=True)
    assert told.returncode == 2 and told.stdout == "" and "is missing" in told.stderr
    assert "Traceback" not in told.stderr


# info


@pytest.mark.lengthy
def test_info_tells_of_rewards_data_plans_and_pipelines(file, tmp_path, capsys):
    np.save(tmp_path / "plans.npy", np.zeros((7, 8, 6)))
    (tmp_path / "pictures").mkdir()
    for k in range(2):
        Image.new("RGB", (4, 4)).save(tmp_path / f"pictures/{k}.PNG")
    cases = {
        str(tmp_path / "pictures"): ["pictures: 2, from 0.PNG to 1.PNG"],
        MAZES.rpartition(":")[0]: [
            "160 rewards",
            "umaze (1, 1), seed 0: WindowReward, target mean",
        ],
        MAZES: ["reward: WindowReward", '"actions": 2', "horizon: 128", "goal: [1, 1]"],
        STYLE: ["reward: EncoderReward", "fine-tuned on hollow shapes"],
        str(FULL / "locomotion-models.safetensors"): ["ConditionalReward", 'environment: "hopper"'],
        str(file): ["8 episodes, 1,600 steps, from 200 to 200 steps", "goals: yes"],
        str(tmp_path / "plans.npy"): ["plans of shape (7, 8, 6)"],
        str(image_weights.FOLDER / "pipeline"): ["pipeline: StableDiffusionPipeline", "unet: "],
    }
    for path, words in cases.items():
        assert main(["info", path]) == 0
        told = capsys.readouterr()
        assert all(word in told.out for word in words) and told.err == "", told
    for k, shape in enumerate([(0, 8, 6), (8, 6), (2, 2, 8, 6)]):
        np.save(tmp_path / f"odd{k}.npy", np.zeros(shape, np.float32))
        save_file({"plans": torch.zeros(shape)}, tmp_path / f"odd{k}.safetensors")
        for form in ("npy", "safetensors"):
            said = sentence(["info", tmp_path / f"odd{k}.{form}"], capsys)
            assert said.endswith(f"of shape {shape}: plans [N, H, D] are needed.\n"), said
    assert "is missing" in sentence(["info", tmp_path / "none"], capsys)
    assert "holds no rewards" in sentence(["info", f"{file}:a"], capsys)
    assert "one of the 160" in sentence(["info", MAZES + "x"], capsys)


# extract


def planner(folder, shift: float, seed: int = 0):
    """A saved network whose x0 is its own, moved."""
    torch.manual_seed(seed)
    network = UNet1DModel(
        in_channels=3, out_channels=3, block_out_channels=(8, 16), norm_num_groups=4,
        down_block_types=("DownResnetBlock1D",) * 2, up_block_types=("UpResnetBlock1D",),
        mid_block_type="MidResTemporalBlock1D", out_block_type="OutConv1DBlock", act_fn="mish",
        use_timestep_embedding=True, layers_per_block=1, downsample_each_block=False,
    )  # fmt: skip
    with torch.no_grad():
        network.out_block.final_conv1d_2.bias += shift
    network.save_pretrained(folder / "unet")
    options = {"prediction_type": "sample", "clip_sample": False}
    scheduler = DDPMScheduler(20, beta_schedule="squaredcos_cap_v2", **options)
    scheduler.save_pretrained(folder / "scheduler")
    return str(folder)


@pytest.fixture
def planners(tmp_path):
    return [planner(tmp_path / name, shift) for name, shift in (("base", 0.0), ("expert", 0.4))]


@pytest.mark.lengthy
def test_the_reward_of_two_saved_planners_without_data(planners, tmp_path, capsys):
    out = str(tmp_path / "r.safetensors")
    options = ["--horizon", "8", "--n", "400", "--steps", "60"]
    assert main(["extract", *planners, "--out", out, *options]) == 0
    assert "explained" in capsys.readouterr().out
    reward = rrlib.load_reward(out)
    assert reward.about["models"] == {"base": planners[0], "expert": planners[1]}
    x = torch.zeros(2, 8, 3)
    x[1] += 0.5
    low, high = reward(x, torch.zeros(2, dtype=torch.long))
    assert high > low  # the expert's plans are higher


def test_models_are_compared_where_they_are(planners, tmp_path, monkeypatch):
    def compared(base, expert, **how):
        assert str(next(base.network.parameters()).device) == how["device"] == "meta"
        raise LookupError

    monkeypatch.setattr(comparisons, "compare", compared)
    command = ["extract", *planners, "--out", str(tmp_path / "r"), "--horizon", "8"]
    with pytest.raises(LookupError):
        main([*command, "--device", "meta"])


@pytest.mark.lengthy
def test_with_data_and_layout_the_reward_scores_raw_data(planners, tmp_path, capsys):
    rng = np.random.default_rng(0)
    low, high = np.float32([-5, 0, 0]), np.float32([5, 10, 1])
    layout = rrlib.PlanLayout(rrlib.Normaliser(low, high), 1, 2, horizon=8).about()
    (tmp_path / "layout.json").write_text(json.dumps(layout))
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", rng.uniform(low, high, (30, 20, 3)))
    data = [str(tmp_path / f"{name}.npy") for name in "ab"]
    out = str(tmp_path / "r.safetensors")
    command = ["extract", *planners, "--out", out, "--data", *data, "--n", "300", "--steps", "30"]
    command += ["--window", "4"]
    assert "--layout is missing" in sentence([*command, "--horizon", "8"], capsys)
    assert main([*command, "--layout", str(tmp_path / "layout.json")]) == 0
    reward = rrlib.load_reward(out)
    assert reward.network.window == 4 and reward.about["widths"] == layout["widths"]
    assert main(["score", data[0], "--reward", out, "--out", str(tmp_path / "s.csv")]) == 0
    assert len(rows(tmp_path / "s.csv")) == 31


def test_planners_that_know_no_noise_want_data(planners, tmp_path, capsys):
    for folder in planners:  # twenty of a thousand steps' betas
        short = DDPMScheduler(20, prediction_type="sample", clip_sample=False)
        short.save_pretrained(Path(folder, "scheduler"))
    command = ["extract", *planners, "--out", tmp_path / "r.safetensors", "--horizon", "8"]
    assert "base: a noisiest level of alpha-bar 0.82" in sentence(command, capsys)


@pytest.mark.lengthy
def test_models_that_are_no_pair_are_refused(planners, tmp_path, capsys):
    out = ["--out", tmp_path / "r.safetensors"]
    pipeline = image_weights.FOLDER / "pipeline"
    base, expert = planners
    broken, number = tmp_path / "broken", tmp_path / "number.json"
    number.write_text("5")
    (broken / "unet").mkdir(parents=True)
    (broken / "unet" / "config.json").write_text('{"_class_name": "Popen"}')
    DDPMScheduler(20).save_pretrained(broken / "scheduler")
    odd, deep = (planner(tmp_path / name, 0.0) for name in ("odd", "deep"))
    config = Path(deep, "unet", "config.json")
    config.write_text(config.read_text().replace('per_block": 1', f'per_block": {2**63}'))
    scheduler = Path(odd, "scheduler", "scheduler_config.json")
    scheduler.write_text(scheduler.read_text().replace('"sample"', "0"))
    cases = [
        ([base, tmp_path / "none", "--horizon", "8"], "there is no unet/config.json"),
        ([base, broken, "--horizon", "8"], "its network is a 'Popen'"),
        ([base, pipeline], "a pipeline and a network are no pair"),
        ([base, expert], "--horizon is missing"),
        ([base, expert, "--horizon", "8", "--window", "3"], "--window=3 is not allowed"),
        ([base, expert, "--horizon", "8", "--steps", "0"], "--steps=0 is not allowed"),
        ([base, expert, "--horizon", "8", "--seed", "-1"], "--seed=-1 is not allowed"),
        ([base, expert, "--horizon", "8", "--seed", 2**63], f"--seed={2**63} is not allowed"),
        ([base, expert, "--horizon", "8", "--device", "foo"], "--device='foo' is not allowed"),
        ([base, expert, "--horizon", "8", "--device", "hpu"], "--device='hpu' is not allowed"),
        ([base, expert, "--horizon", "8", "--prompts", "a"], "--prompts='a' is not allowed: it is"),
        ([base, base, "--horizon", "8", "--n", "50"], "no difference from the base"),
        ([base, expert, "--layout", number], "number.json' is not allowed: about: no order, wid"),
        ([base, odd, "--horizon", "8"], "prediction_type=0 is none of"),
        ([base, deep, "--horizon", "8"], "asks for more than the"),
        ([pipeline, pipeline], "--prompts is missing"),
        ([pipeline, pipeline, "--window", "3", "--prompts", "a"], "--window=3 is not allowed"),
        ([pipeline, pipeline, "--prompts", tmp_path / "none"], "none"),
    ]
    for arguments, words in cases:
        said = sentence(["extract", *arguments, *out], capsys)
        assert words in said, said
    assert not Path(out[1]).exists()


@pytest.mark.slow
def test_the_reward_of_two_saved_pipelines(tmp_path, capsys):
    size = miniature.Size(pixels=16, vae=(8, 16), unet=(16, 32), text=16, layers=1)
    for seed, name in enumerate(("model", "tuned")):
        pipelines.save_pipeline(miniature.pipeline(size, scenes.WORDS, seed), tmp_path / name)
    (tmp_path / "prompts.csv").write_text(
        "prompt\n" + "".join(f'"{one}"\n' for one in scenes.prompts(50, 0))
    )
    sides = [str(tmp_path / name) for name in ("model", "tuned")]
    out = str(tmp_path / "r.safetensors")
    options = ["--prompts", str(tmp_path / "prompts.csv"), "--batch", "50", "--steps", "2"]
    assert main(["extract", *sides, "--out", out, *options]) == 0
    assert "told apart on held-out prompts" in capsys.readouterr().out
    assert rrlib.load_reward(out).about["models"] == {"base": sides[0], "expert": sides[1]}
    for k, one in enumerate(np.zeros((2, 16, 16, 3), np.uint8)):
        Image.fromarray(one).save(tmp_path / f"{k}.png")
    assert main(["score", str(tmp_path / "0.png"), "--reward", out]) == 0


def test_a_reward_is_judged_on_plans_that_it_was_not_fitted_to(planners, tmp_path, monkeypatch):
    """Whose numbers each comparison is of: every step of the data has numbers of its own."""
    low, high = np.float32([-5, 0, 0]), np.float32([5, 10, 1])
    layout = rrlib.PlanLayout(rrlib.Normaliser(low, high), 1, 2, horizon=8).about()
    (tmp_path / "layout.json").write_text(json.dumps(layout))
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        np.save(tmp_path / f"{name}.npy", rng.uniform(low, high, (30, 8, 3)))
    asked, compare = [], comparisons.compare

    def few(*args, n, **how):
        asked.append((args[2], n, how["seed"]))
        return compare(*args, n=20, **how)

    monkeypatch.setattr(comparisons, "compare", few)
    data = [str(tmp_path / f"{name}.npy") for name in "ab"]
    command = ["extract", *planners, "--out", str(tmp_path / "r.safetensors"), "--data", *data]
    command += ["--layout", str(tmp_path / "layout.json"), "--steps", "2", "--n", "50"]
    assert main([*command, "--seed", "3"]) == 0
    (fitted, n, seed), (judged, _, other) = asked
    assert (n, seed) == (50, 3) and other != seed
    for mine, rest in zip(fitted, judged, strict=True):
        ours, theirs = (set(part[:, 0, 0].tolist()) for part in (mine, rest))
        assert len(ours) + len(theirs) == 30 and len(theirs) >= 2 and not ours & theirs
