"""Plans carried out: a diffusion model as the planner of a ball in PointMaze."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from rrlib.errors import InputError
from rrlib.estimators import particles
from rrlib.estimators.particles import Particles, sample_weighted
from rrlib.mazes import world as maze
from rrlib.mazes.world import Maze
from rrlib.method import guidance as steering
from rrlib.method.denoisers import Denoiser
from rrlib.method.rewards import RelativeReward
from rrlib.plans.conditioning import given, hold
from rrlib.plans.normalisers import Normaliser

# The controller that keeps the ball on its plan: plans are 0.01 s a step, so it can be stiff.
TRACKING = (10.0, 1.0)


def plans_from(
    model: Denoiser,
    first: Tensor,
    horizon: int,
    generator: torch.Generator,
    reward: RelativeReward | None = None,
    guidance_scale: float = 1.0,
    num_inference_steps: int | None = None,
    resamplings: int = 0,
) -> Tensor:
    """Plans [n, H, 6] that begin at the observations `first` [n, 4], all normalised.

    Args:
        model: a base or an expert, trained with `conditioning.plan_loss`.
        first: where the balls are, on any device.
        horizon: H, steps of a plan.
        generator: of the noise, on the model's device; so are the plans.
        reward, guidance_scale: steer the model; None samples the model itself.
        num_inference_steps: denoising steps, see `guidance.denoise`; None takes all.
        resamplings: of each step, see there.
    """
    shape, first = (len(first), horizon, first.shape[1] + maze.ACTION), first.to(generator.device)
    scale = guidance_scale if reward else 0.0
    return steering.sample(
        given(model, first),
        shape,
        generator,
        reward=reward,
        guidance_scale=scale,
        keep=hold(first),
        num_inference_steps=num_inference_steps,
        resamplings=resamplings,
    )


def observed(normaliser: Normaliser, states: np.ndarray) -> Tensor:
    """Observations [n, 4] in the simulator's units as plans have them, normalised."""
    # A plan's numbers are actions first; those of the present step are not asked.
    row = np.concatenate([np.zeros((len(states), maze.ACTION)), states], 1)[:, None]
    return torch.from_numpy(normaliser.normalise(row.astype(np.float32))[:, 0, maze.ACTION :])


def weighted_plans(
    model: Denoiser,
    first: Tensor,
    horizon: int,
    reward: RelativeReward,
    *,
    particles: int,
    guidance_scale: float = 1.0,
    seed: int = 0,
    num_inference_steps: int | None = None,
) -> Particles:
    """`plans_from` made exact for sums of rewards: N weighted plans for each ball, [n, N, H, 6].

    Args:
        model, first, horizon, num_inference_steps: see `plans_from`.
        reward, guidance_scale: steer the model.
        particles, seed: see `particles.sample_weighted`. The given observation does not weigh.
    """
    device = str(next(reward.network.parameters(), first).device)
    told = first.to(device).repeat_interleave(particles, 0)
    return sample_weighted(
        given(model, told),
        (len(first), horizon, first.shape[1] + maze.ACTION),
        reward,
        particles=particles,
        guidance_scale=guidance_scale,
        seed=seed,
        device=device,
        keep=hold(told),
        num_inference_steps=num_inference_steps,
    )


def selected_plans(
    model: Denoiser,
    first: Tensor,
    horizon: int,
    generator: torch.Generator,
    reward: RelativeReward,
    n: int,
    num_inference_steps: int | None = None,
) -> Tensor:
    """Selection in guidance's place: of n unsteered plans for each ball the one of most reward.

    Args:
        model, first, horizon, generator, num_inference_steps: see `plans_from`.
        reward: says which, at t = 0.
        n: see `particles.best_of`.
    """
    first = first.to(generator.device)
    shape = (len(first), horizon, first.shape[1] + maze.ACTION)
    told = given(model, first)
    return particles.best_of(
        told, shape, reward, n, generator, num_inference_steps=num_inference_steps
    )


def drive(
    world: Maze,
    planner: Callable[[Tensor], Tensor],
    normaliser: Normaliser,
    starts: np.ndarray,
    steps: int,
    every: int,
) -> np.ndarray:
    """Let `planner` drive n balls in PointMaze's own physics; their positions [n, steps, 2], x y.

    The ball is pushed by the plan's own action and by a controller that holds it to where the plan
    has it at that step; after `every` steps there is a new plan from where it is.

    Args:
        world: the maze.
        planner: normalised observations [n, 4] -> normalised plans [n, H, 6], H >= every.
        normaliser: of the planner's plans.
        starts: positions at rest in cell units, [n, 2].
        steps: of an episode, 0.01 s each.
        every: steps that are carried out of each plan.

    Raises:
        InputError: plans are not finite.
    """
    n = len(starts)
    states = np.concatenate([world.to_xy(starts), np.zeros((n, 2))], 1)
    accelerations, positions = np.zeros((n, 2)), np.empty((n, steps, 2))
    stiff, damped = TRACKING
    for step in range(steps):
        k = step % every
        if k == 0:
            plans = planner(observed(normaliser, states)).cpu().numpy()
            plans = normaliser.denormalise(plans)
            if not np.isfinite(plans[:, :every]).all():  # MuJoCo would push no ball at all
                raise InputError(
                    "planner: its plans are not finite; finite ones are needed (a smaller weight, "
                    "if they are steered)."
                )
        push, wanted = plans[:, k, : maze.ACTION], plans[:, k, maze.ACTION :]
        push = push + stiff * (wanted[:, :2] - states[:, :2])
        push = push + damped * (wanted[:, 2:] - states[:, 2:])
        states, accelerations = maze.step(world, states, push, accelerations)
        positions[:, step] = states[:, :2]
    return positions


def push(
    world: Maze,
    policy: Callable[[Tensor], Tensor],
    starts: np.ndarray,
    steps: int,
    every: int,
) -> np.ndarray:
    """Let a policy of action chunks push n balls; their positions [n, steps, 2], x y.

    Args:
        world: the maze.
        policy: observations [n, 4] in the simulator's units -> forces [n, H, 2], H >= every.
        starts: positions at rest in cell units, [n, 2].
        steps: of an episode, 0.01 s each.
        every: steps that are carried out of each chunk.
    """
    n = len(starts)
    states = np.concatenate([world.to_xy(starts), np.zeros((n, 2))], 1)
    accelerations, positions = np.zeros((n, 2)), np.empty((n, steps, 2))
    for step in range(steps):
        if step % every == 0:
            forces = policy(torch.from_numpy(states.astype(np.float32))).cpu().numpy()
        states, accelerations = maze.step(world, states, forces[:, step % every], accelerations)
        positions[:, step] = states[:, :2]
    return positions


def reached(world: Maze, positions: np.ndarray, goal: tuple[float, float]) -> np.ndarray:
    """Step [n] at which each ball first comes within 0.45 (PointMaze's success) of `goal`.

    It is the number of steps where a ball never does.

    Args:
        world: the maze.
        positions: x y, [n, steps, 2].
        goal: cell units.
    """
    near = np.linalg.norm(positions - world.to_xy(goal), axis=-1) <= maze.NEAR
    return np.where(near.any(1), near.argmax(1), positions.shape[1])
