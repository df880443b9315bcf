"""Use an installed rrlib as a stranger would, outside of any checkout.

    release_smoke.py RESULTS

RESULTS is the folder `results/full` of a checkout, whose shipped rewards are read and asked. The
two models are small and untrained: what is tried is that everything is installed and fits together.
Exits 0 if all is well.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet1DModel

import rrlib


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("results", type=Path)
    results = parser.parse_args().results.resolve()
    if results.parent.parent in Path(rrlib.__file__).resolve().parents:
        raise SystemExit(f"rrlib is that of the checkout: {rrlib.__file__}")
    print(f"rrlib {rrlib.__version__}, torch {torch.__version__}")
    extracts()
    print("extracted, steered, saved, loaded")
    print(f"{asks(results / 'maze2d-rewards.safetensors')} of the shipped rewards asked")


def extracts() -> None:
    """The six lines of the README, on two small networks."""
    torch.manual_seed(0)
    scheduler = DDPMScheduler(num_train_timesteps=20, beta_schedule="squaredcos_cap_v2")
    networks = [
        UNet1DModel(
            in_channels=6,
            out_channels=6,
            block_out_channels=(16, 32),
            down_block_types=("DownResnetBlock1D", "DownResnetBlock1D"),
            up_block_types=("UpResnetBlock1D",),
            mid_block_type="MidResTemporalBlock1D",
            out_block_type="OutConv1DBlock",
            use_timestep_embedding=True,
            act_fn="mish",
        ).eval()
        for _ in range(2)
    ]
    base, expert = (rrlib.Denoiser(rrlib.ChannelsFirst(n), scheduler) for n in networks)
    data = [2 * torch.rand(64, 16, 6) - 1 for _ in range(2)]
    pairs = rrlib.compare(base, expert, data, n=256, seed=0)
    reward = rrlib.RelativeReward.fit(pairs, steps=5)
    steered = rrlib.sample(base, (4, 16, 6), reward=reward, seed=1)
    with tempfile.TemporaryDirectory() as folder:
        reward.save(Path(folder) / "reward.safetensors")
        again = rrlib.load_reward(Path(folder) / "reward.safetensors")
    t = torch.zeros(4, dtype=torch.long)
    assert torch.isfinite(steered).all()
    torch.testing.assert_close(again(steered, t), reward(steered, t))


def asks(file: Path) -> int:
    """Read a file of rewards, and ask the first about random plans; how many there are."""
    rewards = rrlib.load_rewards(file)
    reward, _ = next(iter(rewards.values()))
    t, horizon, width = torch.zeros(2, dtype=torch.long), reward.network.window, 6
    assert torch.isfinite(reward(torch.randn(2, horizon, width), t)).all()
    return len(rewards)


if __name__ == "__main__":
    main()
