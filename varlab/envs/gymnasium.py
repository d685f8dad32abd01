"""Gymnasium environments as simulators of many episodes: CartPole's vectorised form, and any other id one by one."""

from __future__ import annotations

import random
import types

import gymnasium
import numpy as np
import torch
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from torch import Tensor

from varlab import checks, rng
from varlab.envs.base import starts
from varlab.envs.snapshots import Form, form_of

#: Larger than any horizon: Gymnasium's own time limit is replaced by varlab's.
NO_LIMIT = 2**31 - 1
GENERATORS = (np.random.Generator, np.random.RandomState, random.Random, torch.Generator)
#: What is not part of a world's own state.
NOT_SEARCHED = (gymnasium.Env, gymnasium.Space, types.ModuleType, type)


class CartPoleSimulator:
    """CartPole-v0/v1 through Gymnasium's numpy-vectorised implementation, shrinking as episodes end."""

    def __init__(self, device: torch.device, **kwargs: object) -> None:
        """Keep the keyword arguments of :class:`CartPoleVectorEnv` (``sutton_barto_reward``)."""
        self.device, self.kwargs = device, kwargs

    def reset(self, n: int, seed: np.random.SeedSequence, group: int = 1) -> Tensor:
        """Begin n episodes, each ``group`` consecutive ones in one state, and return their observations [n, 4]."""
        self.env = CartPoleVectorEnv(num_envs=n, max_episode_steps=NO_LIMIT, **self.kwargs)
        obs, _ = self.env.reset(seed=int(seed.generate_state(1)[0]))
        if starts(n, group) < n:
            self.env.state = self.env.state[:, ::group].repeat(group, axis=1)
            obs = obs[::group].repeat(group, axis=0)
        return torch.from_numpy(obs).to(self.device)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Advance the live episodes by one step; return observation, reward, termination."""
        obs, reward, terminated, _, _ = self.env.step(action.cpu().numpy())
        return (
            torch.from_numpy(obs).to(self.device),
            torch.from_numpy(reward).to(self.device, torch.float64),
            torch.from_numpy(terminated).to(self.device),
        )

    def keep(self, alive: Tensor) -> None:
        """Drop finished episodes from the batch, before Gymnasium would reset them in place."""
        env, keep = self.env, alive.cpu().numpy()
        env.state, env.steps, env.prev_done = env.state[:, keep], env.steps[keep], env.prev_done[keep]
        env.num_envs = int(keep.sum())
        if env.num_envs:
            # What batch_space gives, without copying its random generator at every step.
            env.action_space = gymnasium.spaces.MultiDiscrete(np.full(env.num_envs, env.single_action_space.n))

    def snapshot(self) -> Tensor:
        """Return the states of the live episodes, [n, 4] float64."""
        return torch.from_numpy(self.env.state.T.copy()).to(self.device)

    def restore(self, saved: Tensor, seed: np.random.SeedSequence) -> None:
        """Go on from states [n, 4]; nothing is random after the start."""
        self.env = CartPoleVectorEnv(num_envs=len(saved), max_episode_steps=NO_LIMIT, **self.kwargs)
        self.env.state = saved.cpu().numpy().T.copy()

    def reseed(self, seed: np.random.SeedSequence) -> None:
        """Nothing is random after the start."""


class EpisodeSimulator:
    """Any Gymnasium environment, one instance per live episode; each episode has a seed of its own.

    Actions of a Box space are clipped to its bounds before they reach the environment: the clipping belongs to the world,
    and log-probabilities are those of the action that the policy drew.
    """

    def __init__(self, env_id: str, device: torch.device, **kwargs: object) -> None:
        """Keep the id and keyword arguments; instances are made on first use and used again."""
        self.env_id, self.device, self.kwargs = env_id, device, kwargs
        self.pool: list[gymnasium.Env] = []
        self.form: Form | None = None

    def _observe(self, rows: list[object]) -> Tensor:
        return torch.from_numpy(np.asarray(rows)).to(self.device)

    def reset(self, n: int, seed: np.random.SeedSequence, group: int = 1) -> Tensor:
        """Begin n episodes and return their observations [n, ...].

        The episodes of a group are reset with one seed, whatever part of their world it decides, and then each gets a generator
        of its own.

        Args:
            n: number of episodes.
            seed: of this part.
            group: how many consecutive episodes begin in one state.

        Returns:
            Their observations.
        """
        self._take(n)
        count = starts(n, group)
        first, later = (seed, None) if group == 1 else rng.children(seed, 2)
        seeds = first.generate_state(count, np.uint64).repeat(group)
        obs = [_begin(env, int(s)) for env, s in zip(self.live, seeds, strict=True)]
        if later is not None:
            part_ways(self.env_id, self.live, obs, rng.children(later, n), group)
        return self._observe(obs)

    def _take(self, n: int) -> None:
        """Make n instances the live ones."""
        while len(self.pool) < n:
            self.pool.append(make_unlimited(self.env_id, **self.kwargs))
        self.live = self.pool[:n]
        space = self.pool[0].action_space
        self.bounds = (space.low, space.high) if isinstance(space, gymnasium.spaces.Box) else None
        self.time = 0
        self.form = self.form or form_of(self.pool[0])

    @property
    def snapshots_at_once(self) -> int | None:
        """How many states may be kept at once; None for any number."""
        return self.form and self.form.at_once

    def snapshot(self) -> np.ndarray:
        """Return the states of the live episodes, [n] objects."""
        out = np.empty(len(self.live), dtype=object)
        for i, env in enumerate(self.live):
            out[i] = self.form.snapshot(env)
        return out

    def restore(self, saved: np.ndarray, seed: np.random.SeedSequence) -> None:
        """Go on from states [n]; each episode has a seed of its own."""
        self._take(len(saved))
        seeds = seed.generate_state(len(saved), np.uint64)
        self.live = [self.form.restore(*each) for each in zip(self.live, saved, seeds.tolist(), strict=True)]

    def reseed(self, seed: np.random.SeedSequence) -> None:
        """Give each live episode the seed that :meth:`restore` would."""
        for env, s in zip(self.live, seed.generate_state(len(self.live), np.uint64).tolist(), strict=True):
            self.form.reseed(env, s)

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Advance the live episodes by one step; return observation, reward, termination.

        Args:
            action: [n] or [n, d].

        Returns:
            Observation [n, ...], reward [n] float64, terminated [n] bool.

        Raises:
            InputError: if a reward is not one number.
        """
        chosen = action.cpu().numpy()
        if self.bounds is not None:
            chosen = np.clip(chosen, *self.bounds).astype(self.bounds[0].dtype, copy=False)
        results = [env.step(a) for env, a in zip(self.live, chosen, strict=True)]
        self.time += 1
        obs, reward, terminated, truncated, _ = zip(*results, strict=True)
        paid = np.asarray(reward, dtype=np.float64).reshape(len(results), -1)
        if paid.shape[1] != 1:
            raise checks.InputError(
                f"One number as reward was expected from {self.env_id}, but it gave {reward[0]!r}; weigh its parts by a wrapper."
            )
        self.cut_short = [t and not e for t, e in zip(truncated, terminated, strict=True)]
        return (
            self._observe(list(obs)),
            torch.tensor(paid[:, 0], device=self.device),
            torch.tensor(np.asarray(terminated, dtype=bool), device=self.device),
        )

    def keep(self, alive: Tensor) -> None:
        """Drop finished episodes.

        Raises:
            InputError: if an episode that should go on was truncated by the environment itself.
        """
        kept = alive.tolist()
        if any(k and c for k, c in zip(kept, self.cut_short, strict=True)):
            raise checks.InputError(
                f"{self.env_id} was expected to run to the horizon, but it truncated an episode by itself after {self.time} "
                f"steps; set horizon={self.time} or lower, or lift the limit inside the environment."
            )
        self.live = [env for env, k in zip(self.live, kept, strict=True) if k]


def _begin(env: gymnasium.Env, seed: int) -> object:
    """Reset with 64 bits of seed, so that no two of many episodes share one; with 32 where the world takes no more."""
    try:
        return env.reset(seed=seed)[0]
    except (ValueError, OverflowError):
        return env.reset(seed=seed % 2**32)[0]


def part_ways(
    env_id: str, live: list[gymnasium.Env], obs: list[object], seeds: list[np.random.SeedSequence], group: int
) -> None:
    """Give episodes that began in one state generators of their own.

    Args:
        env_id: for messages.
        live: n environments, just reset, each ``group`` consecutive ones with one seed.
        obs: their n first observations.
        seeds: of their n generators.
        group: how many share a start.

    Raises:
        InputError: if one seed gave several starts, or a world keeps randomness outside ``np_random``, which its episodes would
            go on sharing.
    """
    kept = _other_generator(live[0])
    if kept is not None:
        raise checks.InputError(
            f"{env_id} was expected to draw all its randomness from self.np_random, so that episodes with one start can part, "
            f"but it also keeps a generator in {kept}; use self.np_random there, or set shared_start=false."
        )
    for i, env in enumerate(live):
        if not np.array_equal(obs[i], obs[i - i % group]):
            raise checks.InputError(
                f"{env_id} was expected to begin in one state for one seed, but reset(seed=…) gave {obs[i - i % group]} and "
                f"{obs[i]}; draw its first state from self.np_random, or set shared_start=false."
            )
        env.unwrapped.np_random = rng.numpy_generator(seeds[i])


def _other_generator(env: gymnasium.Env) -> str | None:
    """Return where an environment or a wrapper of it keeps a random generator other than ``np_random``, or None."""
    layers = [env]
    while isinstance(layers[-1], gymnasium.Wrapper):
        layers.append(layers[-1].env)
    for layer in layers:
        held = [(f"{type(layer).__name__}.{name}", x) for name, x in vars(layer).items() if name != "_np_random"]
        # One level down: objects of the world's own, such as a simulator; spaces keep generators that no step draws from.
        owned = [(p, x) for p, x in held if hasattr(x, "__dict__") and not isinstance(x, NOT_SEARCHED)]
        held += [(f"{place}.{name}", inner) for place, x in owned for name, inner in vars(x).items()]
        for place, x in held:
            if isinstance(x, GENERATORS):
                return place
    return None


def make_unlimited(env_id: str, **kwargs: object) -> gymnasium.Env:
    """Make one environment without Gymnasium's time limit and without its passive checker."""
    return gymnasium.make(env_id, max_episode_steps=-1, disable_env_checker=True, **kwargs)
