"""Random finite MDPs that claims about orders of variance are decided on, and shares of them with exact intervals."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.stats
import torch

from varlab.envs.base import Environment
from varlab.envs.finite import environment
from varlab.envs.random_mdp import random_mdp
from varlab.policies.networks import SoftmaxTable
from varlab.rng import Streams, numpy_generator
from varlab.studies.claims.verdicts import Effect

STATES, ACTIONS, HORIZON = 3, 2, 3


def drawn(seed: int, number: int, outcomes: int = 2, fixed_start: bool = False) -> tuple[Environment, SoftmaxTable]:
    """Draw world ``number`` of a root seed: 3 states, 2 actions, 3 steps, rewards and logits N(0, 1).

    Args:
        seed: root seed.
        number: of the world.
        outcomes: for each state and action; 1 makes the transitions deterministic.
        fixed_start: whether every episode begins in state 0.

    Returns:
        World and softmax table, from its rollout and its θ stream.
    """
    world, theta = (numpy_generator(Streams(seed).sequence(name, number)) for name in ("rollout", "theta"))
    mdp = random_mdp(world, states=STATES, actions=ACTIONS, outcomes=outcomes, ending=0.0)
    if fixed_start:
        mdp.initial.copy_(torch.eye(STATES, dtype=torch.float64)[0])
    env = environment(mdp, HORIZON, "random MDP")
    return env, SoftmaxTable(env, torch.from_numpy(theta.standard_normal((STATES, ACTIONS))))


def share(hit: Sequence[bool] | np.ndarray) -> Effect:
    """Return the share of independent worlds in which something is so, with its Clopper–Pearson interval."""
    count, n = int(np.sum(hit)), len(hit)
    low, high = scipy.stats.binomtest(count, n).proportion_ci(0.95, method="exact")
    return Effect(count / n, float(low), float(high), n)
