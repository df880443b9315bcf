"""A reward of plans as the reward of a Gymnasium environment."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch

from rrlib.errors import InputError, shown
from rrlib.method.checks.levels import check_start
from rrlib.method.networks.sums import per_step
from rrlib.method.rewards import RelativeReward
from rrlib.plans.layouts import PlanLayout
from rrlib.plans.scoring import steps_seen


class RelativeRewardWrapper(gym.Wrapper):
    """An environment whose reward is g(s, a, 0), what a relative reward says of a step.

    A `WindowReward` of window 1 is given the observation before the action, and the action. One of
    h steps is given the last h of them; at an episode's start, where there are fewer, the first one
    stands for those before it. The environment's own reward is ``info["environment_reward"]``.

    Args:
        env: with observations and actions that are vectors; of a dictionary of observations
            "observation" is taken, as in PointMaze.
        reward: that can value single steps (`RelativeReward.per_step`).
        layout: what a step is made of; None takes what the reward's file says.

    Raises:
        InputError: spaces of other widths than the reward's, or a reward that values whole plans
            only, was not fitted at t = 0, or does not say what a step is made of; when stepped, an
            observation or action of another form.

    >>> import gymnasium as gym, numpy as np, rrlib, torch
    >>> env = gym.make("MountainCarContinuous-v0")  # observations of 2 numbers, actions of 1
    >>> network = rrlib.WindowReward(width=3, window=1, unit=torch.ones(10))
    >>> ruler = rrlib.Normaliser(np.full(3, -1, "f4"), np.ones(3, "f4"))
    >>> about = rrlib.PlanLayout(ruler, actions=1, observations=2).about()
    >>> reward = rrlib.RelativeReward(network, "score", "x_t", about)
    >>> wrapped = rrlib.RelativeRewardWrapper(env, reward)
    >>> _ = wrapped.reset(seed=0)
    >>> _, g, _, _, info = wrapped.step(np.array([0.5], "f4"))
    >>> type(g).__name__, sorted(info)
    ('float', ['environment_reward'])
    """

    def __init__(self, env: gym.Env, reward: RelativeReward, layout: PlanLayout | None = None):
        super().__init__(env)
        check_start(reward)
        self.relative_reward = reward
        self.layout = layout or PlanLayout.of(reward.about)
        self.window = steps_seen(reward.network, self.layout)
        widths = {"actions": env.action_space, "observations": _observed(env.observation_space)}
        for part, space in widths.items():
            wanted = getattr(self.layout, part)
            if not isinstance(space, gym.spaces.Box) or space.shape != (wanted,):
                raise InputError(
                    f"env: {part} of {shown(str(space))} are not allowed: vectors of {wanted} "
                    "numbers, as the reward was fitted to, are needed."
                )
        self._value(np.zeros((self.window, self.layout.width), np.float32))  # or says why it cannot
        self._steps: list[np.ndarray] = []
        self._observation = np.zeros(0)

    def reset(self, **options: Any) -> tuple[Any, dict]:
        """As the environment's own; what was remembered of the episode before is forgotten."""
        observation, info = self.env.reset(**options)
        self._steps, self._observation = [], self._vector(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict]:
        """As the environment's own, with g in place of the reward."""
        both = np.concatenate([np.asarray(action, np.float32).reshape(-1), self._observation])
        if both.shape != (self.layout.actions + self.layout.observations,):
            raise InputError(
                f"action: {shown(action)} is not allowed: {self.layout.actions} numbers, after "
                "`reset`, are needed."
            )
        self._steps = [*self._steps[1 - self.window :], both] if self.window > 1 else [both]
        missing = [self._steps[0]] * (self.window - len(self._steps))
        rows = np.stack([*missing, *self._steps])[:, self.layout.columns()]
        observation, own, terminated, truncated, info = self.env.step(action)
        self._observation = self._vector(observation)
        told = {**info, "environment_reward": float(own)}
        return observation, self._value(rows), terminated, truncated, told

    def _vector(self, observation: Any) -> np.ndarray:
        found = observation["observation"] if isinstance(observation, dict) else observation
        return np.asarray(found, np.float32)

    @torch.no_grad()
    def _value(self, rows: np.ndarray) -> float:
        """g at t = 0 of a window of steps [h, D], in their own units."""
        network = self.relative_reward.network
        weight = next(network.parameters(), torch.zeros(0))
        plans = torch.from_numpy(self.layout.normaliser.normalise(rows))[None].to(weight)
        return float(per_step(network, plans)[0, -1])


def _observed(space: gym.Space) -> gym.Space:
    """The space of what is taken of an observation."""
    if isinstance(space, gym.spaces.Dict) and "observation" in space.spaces:
        return space["observation"]
    return space
