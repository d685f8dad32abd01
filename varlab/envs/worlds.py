"""varlab's own worlds as Gymnasium environments, under ids such as ``varlab/PointMass-v0``.

Other libraries step them one episode at a time; :func:`varlab.envs.make` takes the same id and gives the same dynamics as
tensors, with exact values where an oracle knows them. Importing ``varlab.envs`` registers the ids.
"""

from __future__ import annotations

import gymnasium
import numpy as np
import torch

from varlab import checks
from varlab.envs import closed_form, compounding, linear_drift, lqg, prompts, random_mdp
from varlab.envs.base import Environment
from varlab.envs.finite import environment

NAMESPACE = "varlab"


class SingleEnv(gymnasium.Env):
    """One episode at a time of any :class:`~varlab.envs.base.Environment`, by its own simulator.

    It never truncates: where the objective ends is a matter of the time limit (``max_episode_steps`` of ``gymnasium.make``).

    Attributes:
        world: what is simulated.
    """

    metadata = {"render_modes": []}

    def __init__(self, world: Environment) -> None:
        """Take the spaces and a simulator of ``world``."""
        self.world = world
        self.observation_space, self.action_space = world.observation_space, world.action_space
        self._simulator = world.make_simulator(torch.device("cpu"))
        self._live = False

    def _see(self, obs: torch.Tensor) -> int | np.ndarray:
        return int(obs[0]) if self.world.discrete_observations else obs[0].numpy().copy()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[int | np.ndarray, dict]:
        """Begin an episode.

        Args:
            seed: of ``np_random``, from which every episode draws a seed of its own.
            options: not used.

        Returns:
            (observation, empty dictionary).
        """
        super().reset(seed=seed)
        sequence = np.random.SeedSequence(self.np_random.integers(2**32, size=4).tolist())
        self._live = True
        return self._see(self._simulator.reset(1, sequence)), {}

    def step(self, action: int | np.ndarray) -> tuple[int | np.ndarray, float, bool, bool, dict]:
        """Advance by one step.

        Args:
            action: a member of the action space.

        Returns:
            (observation, reward, whether it terminated, False, empty dictionary).

        Raises:
            InputError: for another action, or if no episode is going on.
        """
        if not self._live:
            raise checks.InputError(
                f"A running episode was expected for a step of {self.world.name}, but none has begun or it ended; call reset()."
            )
        chosen = np.asarray(action)
        if not self.action_space.contains(chosen):
            raise checks.InputError(
                f"An action in {self.action_space} was expected by {self.world.name}, but it is {action!r}; choose one inside."
            )
        obs, reward, terminated = self._simulator.step(torch.from_numpy(chosen[None]))
        self._live = not bool(terminated[0])
        return self._see(obs), float(reward[0]), not self._live, False, {}


class PointMass(SingleEnv):
    """A point mass that is pushed to the origin, linear-quadratic-Gaussian (:func:`varlab.envs.lqg.point_mass`)."""

    def __init__(self, **kwargs: object) -> None:
        """Pass dim, dt, mass, state_cost, action_cost and noise on."""
        super().__init__(lqg.point_mass(100, **kwargs))


class RandomLQG(SingleEnv):
    """A random linear-quadratic-Gaussian system, A of set spectral radius (:func:`varlab.envs.lqg.random_system`)."""

    def __init__(self, seed: int = 0, **kwargs: object) -> None:
        """Pass seed, state_dim, action_dim, spectral_radius and noise on."""
        super().__init__(lqg.random_system(20, seed=seed, **kwargs))


class GaussianBandit(SingleEnv):
    """r = −‖a‖² with a ∈ R^dim, one step (:func:`varlab.envs.closed_form.gaussian_bandit`)."""

    def __init__(self, dim: int = 10) -> None:
        """Pass the action dimension on."""
        super().__init__(closed_form.gaussian_bandit(dim))


class TwoArms(SingleEnv):
    """r = 1{a = 1}, one state, one step (:func:`varlab.envs.closed_form.two_arms`)."""

    def __init__(self) -> None:
        """Build the bandit."""
        super().__init__(closed_form.two_arms())


class SignFlip(SingleEnv):
    """Leaving out γ^t turns the gradient round (:func:`varlab.envs.closed_form.sign_flip`)."""

    def __init__(self) -> None:
        """Build the seven states."""
        super().__init__(closed_form.sign_flip())


class ConstantReturn(SingleEnv):
    """The return is always 0, and reward-to-go is worse than it (:func:`varlab.envs.closed_form.constant_return`)."""

    def __init__(self) -> None:
        """Build the two states."""
        super().__init__(closed_form.constant_return())


class Compounding(SingleEnv):
    """A ladder whose rungs pay ever more: heavy tails made of many paths (:func:`varlab.envs.compounding.compounding`)."""

    def __init__(self, **kwargs: object) -> None:
        """Pass rungs, growth, climb and stay on."""
        super().__init__(compounding.compounding(**kwargs))


class LinearDrift(SingleEnv):
    """s' = s + a + ε with a bounded reward (:func:`varlab.envs.linear_drift.linear_drift`)."""

    def __init__(self, **kwargs: object) -> None:
        """Pass noise and start on."""
        super().__init__(linear_drift.linear_drift(10, **kwargs))


class RandomMDP(SingleEnv):
    """A random finite MDP that pays in every step (:func:`varlab.envs.random_mdp.random_mdp`)."""

    def __init__(self, seed: int = 0, **kwargs: object) -> None:
        """Pass seed, states, actions, outcomes, ending, rewards and reward_scale on."""
        super().__init__(environment(random_mdp.random_mdp(seed, **kwargs), 10, "random MDP"))


class Prompts(SingleEnv):
    """A prompt is drawn, one answer is given and pays 0 or 1 (:func:`varlab.envs.prompts.prompts`)."""

    def __init__(self, **kwargs: object) -> None:
        """Pass prompts, answers, seed, deterministic and success on."""
        super().__init__(prompts.prompts(**kwargs))


#: Class → the time limit registered with it, which is the horizon of its world.
LIMITS = {
    PointMass: 100, RandomLQG: 20, GaussianBandit: 1, TwoArms: 1, SignFlip: 4, ConstantReturn: 2, Compounding: 12, RandomMDP: 10,
    LinearDrift: 10,
    Prompts: 1,
}  # fmt: skip
for world_class, limit in LIMITS.items():
    gymnasium.register(f"{NAMESPACE}/{world_class.__name__}-v0", f"{__name__}:{world_class.__name__}", max_episode_steps=limit)


def world_of(env: gymnasium.Env) -> Environment | None:
    """Return the tensor form of a Gymnasium environment, or None if it has none.

    Args:
        env: made by ``gymnasium.make``; wrappers registered with its id change rewards or observations, so that it has none.
    """
    if env.spec is not None and env.spec.additional_wrappers:
        return None
    inner = env.unwrapped
    return inner.world if isinstance(inner, SingleEnv) else None
