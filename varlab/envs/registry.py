"""One door to every world: ``make(id, horizon=…)``."""

from __future__ import annotations

import math
from dataclasses import replace

import gymnasium
import numpy as np

from varlab import checks
from varlab.envs import toy_text, worlds
from varlab.envs.base import Environment
from varlab.envs.finite import FiniteSimulator
from varlab.envs.geometric import with_termination
from varlab.envs.gymnasium import CartPoleSimulator, EpisodeSimulator, make_unlimited

#: Instances of an environment are Python objects: a few hundred at once keep the policy's batch large enough.
EPISODES_AT_ONCE = 256


def make(env_id: str, horizon: int | None = None, continuation: float = 1.0, **kwargs: object) -> Environment:
    """Return the world with a Gymnasium id, its own time limit replaced by ``horizon``.

    varlab's own worlds (``varlab/PointMass-v0`` and the others of :mod:`varlab.envs.worlds`) and toy-text environments are
    simulated as tensors, CartPole uses Gymnasium's vectorised implementation, and every other id runs one instance per episode.

    Args:
        env_id: Gymnasium id, such as ``CartPole-v1`` or ``varlab/PointMass-v0``.
        horizon: H in steps; the environment's registered limit if None.
        continuation: probability γ of going on after each step; below 1 the undiscounted objective of the world stands for the
            infinite-horizon discounted one (:func:`~varlab.envs.geometric.with_termination`).
        **kwargs: keyword arguments of the environment.

    Returns:
        The environment.

    Raises:
        InputError: for an unknown id, unsupported spaces, arguments that the environment refuses, or a missing horizon.
    """
    try:
        spec = gymnasium.spec(env_id)
    except gymnasium.error.Error as error:
        # Ids with another namespace (phys2d/…) and old versions only clutter the suggestions.
        known = [s.id for s in gymnasium.registry.values() if s.namespace in (None, worlds.NAMESPACE)]
        raise checks.InputError(
            f"No environment is called '{env_id}'; the nearest ids are {checks.nearest(env_id, known)}."
        ) from error
    if horizon is None:
        horizon = spec.max_episode_steps
    if horizon is None:
        raise checks.InputError(
            f"A horizon was expected for {env_id}, which has no time limit of its own, but none came; give horizon=50 or "
            "another number of steps (env.horizon=50 on the command line)."
        )
    horizon = checks.positive_int("horizon", horizon)
    try:
        probe = make_unlimited(env_id, **kwargs)
    except checks.InputError:
        raise  # a sentence already
    except (TypeError, ValueError, ArithmeticError, LookupError, AssertionError, gymnasium.error.Error, ImportError) as error:
        reason = str(error).strip() or type(error).__name__
        raise checks.InputError(
            f"{env_id} could not be made with {kwargs}: {reason}; change its arguments or install what it names."
        ) from error
    observation_space, action_space = probe.observation_space, probe.action_space
    mdp, world = toy_text.finite_mdp(probe), worlds.world_of(probe)
    probe.close()
    common = {
        "name": env_id,
        "horizon": horizon,
        "observation_space": observation_space,
        "action_space": action_space,
        "identity": {"id": env_id, "kwargs": kwargs},
    }
    if world is not None:
        env = replace(world, name=env_id, horizon=horizon)
    elif mdp is not None:
        env = Environment(make_simulator=lambda device: FiniteSimulator(mdp, device), part_size=4096, finite=mdp, **common)
    elif env_id in ("CartPole-v0", "CartPole-v1") and set(kwargs) <= {"sutton_barto_reward"}:
        env = Environment(make_simulator=lambda device: CartPoleSimulator(device, **kwargs), part_size=8192, **common)
    else:
        env = Environment(
            make_simulator=lambda device: EpisodeSimulator(env_id, device, **kwargs), part_size=EPISODES_AT_ONCE, **common
        )
    return env if continuation == 1.0 else with_termination(env, continuation)


def horizon_for(gamma: float, reward_max: float, tolerance: float = 1e-6) -> int:
    """Return the smallest H with γ^H R_max / (1 − γ) < ``tolerance``.

    With it the H-step discounted objective stands for the infinite-horizon one.

    Args:
        gamma: discount γ in [0, 1).
        reward_max: largest |r|.
        tolerance: what may be neglected of J.

    Returns:
        H in steps.

    Raises:
        InputError: if γ is 1 or more.
    """
    checks.in_range("gamma", gamma, 0.0, float(np.nextafter(1.0, 0.0)))
    if gamma == 0 or reward_max == 0:
        return 1
    steps = math.log(tolerance * (1 - gamma) / abs(reward_max)) / math.log(gamma)
    return max(1, math.floor(steps) + 1)
