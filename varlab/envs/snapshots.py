"""Saving and restoring one Gymnasium environment: by the attributes of its state, by MuJoCo's data, or by a deep copy.

A copy of an environment holds a copy of its random generator too: every restored one gets random numbers of its own.
"""

from __future__ import annotations

import copy
import copyreg
import random
from collections.abc import Iterable
from typing import Protocol

import gymnasium
import numpy as np
import torch
from gymnasium.envs import classic_control
from gymnasium.wrappers import OrderEnforcing

#: The whole of what changes from step to step in Gymnasium's classic control.
CLASSIC = {
    classic_control.CartPoleEnv: ("state", "steps_beyond_terminated"),
    classic_control.PendulumEnv: ("state",),
    classic_control.AcrobotEnv: ("state",),
    classic_control.MountainCarEnv: ("state",),
    classic_control.Continuous_MountainCarEnv: ("state",),
}
#: States that may be kept at once where each is large (up to half a megabyte in MuJoCo).
LARGE = 4096


class Form(Protocol):
    """How one environment is saved and restored; ``at_once`` states may be kept in memory, None for any number."""

    at_once: int | None

    def snapshot(self, env: gymnasium.Env) -> object:
        """Return the state of ``env``, untouched by what ``env`` does next."""

    def restore(self, env: gymnasium.Env, saved: object, seed: int) -> gymnasium.Env:
        """Return an environment in a saved state, ``env`` or a new one, with random numbers from ``seed``."""

    def reseed(self, env: gymnasium.Env, seed: int) -> None:
        """Draw the numbers of ``env`` from ``seed`` from now on, as :meth:`restore` would."""


class Attributes:
    """A few attributes of the innermost environment are its state."""

    at_once = None

    def __init__(self, names: tuple[str, ...]) -> None:
        """Keep the names of the attributes."""
        self.names = names

    def snapshot(self, env: gymnasium.Env) -> tuple[object, ...]:
        """Copy the attributes; their dtype is part of the state, as sums are rounded in it."""
        return tuple(copy.copy(getattr(env.unwrapped, name)) for name in self.names)

    def restore(self, env: gymnasium.Env, saved: tuple[object, ...], seed: int) -> gymnasium.Env:
        """Set the attributes."""
        _begin(env)
        for name, value in zip(self.names, saved, strict=True):
            setattr(env.unwrapped, name, copy.copy(value))
        self.reseed(env, seed)
        return env

    def reseed(self, env: gymnasium.Env, seed: int) -> None:
        """Replace Gymnasium's generator."""
        env.unwrapped.np_random = np.random.default_rng(seed)


class MujocoData(Attributes):
    """The state is MuJoCo's data: position, velocity, and what the last step left for the next."""

    at_once = LARGE

    def __init__(self) -> None:
        """No attributes beside it."""
        super().__init__(())

    def snapshot(self, env: gymnasium.Env) -> object:
        """Copy the data."""
        import mujoco  # an extra; whoever has such an environment has it

        world = env.unwrapped
        out = mujoco.MjData(world.model)
        mujoco.mj_copyData(out, world.model, world.data)
        return out

    def restore(self, env: gymnasium.Env, saved: object, seed: int) -> gymnasium.Env:
        """Copy the data back."""
        import mujoco

        super().restore(env, (), seed)
        mujoco.mj_copyData(env.unwrapped.data, env.unwrapped.model, saved)
        return env


class DeepCopy:
    """The state is a copy of everything, with every random generator inside seeded anew."""

    at_once = LARGE

    def snapshot(self, env: gymnasium.Env) -> gymnasium.Env:
        """Copy the environment."""
        return _copied(env, {})

    def restore(self, env: gymnasium.Env, saved: gymnasium.Env, seed: int) -> gymnasium.Env:
        """Copy what was saved; ``env`` is not used."""
        memo: dict = {}
        out = _copied(saved, memo)
        # The memo maps what was copied to its copy; under its own id it keeps a list of what was copied.
        _seed_all((x for key, x in memo.items() if key != id(memo)), seed)
        return out

    def reseed(self, env: gymnasium.Env, seed: int) -> None:
        """Find the generators in the order in which a copy would meet them."""
        memo: dict = {}
        _copied(env, memo)
        _seed_all(memo[id(memo)], seed)


def form_of(env: gymnasium.Env) -> Form:
    """Return how an environment is saved.

    Args:
        env: made by ``gymnasium.make``. With wrappers around it, which may have a state of their own, all is copied.

    Returns:
        The form; whether it suits the environment is for :func:`~varlab.envs.replay.check_replay` to find out.
    """
    inner, world = env, env.unwrapped
    while isinstance(inner, OrderEnforcing):
        inner = inner.env
    if inner is world and type(world) in CLASSIC:
        return Attributes(CLASSIC[type(world)])
    if inner is world and type(world).__module__.startswith("gymnasium.envs.mujoco.") and hasattr(world, "data"):
        return MujocoData()
    return DeepCopy()


def _begin(env: gymnasium.Env) -> None:
    if not getattr(env, "has_reset", True):
        env.reset(seed=0)


def _copied(env: gymnasium.Env, memo: dict) -> gymnasium.Env:
    """Return a deep copy, with torch's generators copied by their state.

    Their own way (torch 2.13) loses a reference to None each time, and after some ten thousand copies Python aborts.
    """
    before = copyreg.dispatch_table.get(torch.Generator)
    copyreg.dispatch_table[torch.Generator] = lambda g: (_generator, (str(g.device), g.get_state()))
    try:
        return copy.deepcopy(env, memo)
    finally:
        del copyreg.dispatch_table[torch.Generator]
        if before is not None:
            copyreg.dispatch_table[torch.Generator] = before


def _generator(device: str, state: torch.Tensor) -> torch.Generator:
    out = torch.Generator(device)
    out.set_state(state)
    return out


def _seed_all(objects: Iterable[object], seed: int) -> None:
    """Seed every random generator among ``objects``, each with a number of its own."""
    seen: dict[int, object] = {}
    for x in objects:
        # numpy's two interfaces share what they draw from.
        core = x.bit_generator if isinstance(x, np.random.Generator) else getattr(x, "_bit_generator", x)
        if isinstance(core, (np.random.BitGenerator, random.Random, torch.Generator)):
            seen[id(core)] = core
    for k, core in enumerate(seen.values()):
        sequence = np.random.SeedSequence(seed, spawn_key=(k,))
        if isinstance(core, np.random.BitGenerator):
            core.state = type(core)(sequence).state
        elif isinstance(core, random.Random):
            core.seed(int(sequence.generate_state(1, np.uint64)[0]))
        else:
            core.manual_seed(int(sequence.generate_state(1, np.uint64)[0]))
