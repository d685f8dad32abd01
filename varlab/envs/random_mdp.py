"""Random finite MDPs with a reward in every step."""

from __future__ import annotations

import numpy as np
import scipy.special
import torch

from varlab import checks
from varlab.envs.finite import FiniteMDP

#: Laws of the rewards, as quantile functions.
LAWS = {"normal": scipy.special.ndtri, "uniform": lambda u: u}


def random_mdp(
    seed: int | np.random.Generator,
    *,
    states: int = 5,
    actions: int = 3,
    outcomes: int | None = None,
    ending: float = 0.1,
    rewards: str = "normal",
    reward_scale: float = 1.0,
) -> FiniteMDP:
    """Draw a finite MDP: the same numbers for the same seed and sizes.

    For every state and action the probabilities of the outcomes are uniform on the simplex, and so is ρ_0. Every outcome pays a
    reward of its own. With few outcomes these are the MDPs known as Garnets: On the Generation of Markov Decision Processes
    (Archibald, McKinnon, Thomas, 1995); there the next states are distinct, here two outcomes may share one.

    Args:
        seed: of the draws, or a generator to draw from.
        states: S.
        actions: A.
        outcomes: O, next states drawn uniformly for each state and action; None: every state is the next of one outcome.
        ending: share of the outcomes that end the episode (each does with this probability when the MDP is drawn).
        rewards: normal, N(0, 1), or uniform, U(0, 1).
        reward_scale: factor on the rewards.

    Returns:
        The finite MDP.
    """
    s, a = checks.positive_int("states", states), checks.positive_int("actions", actions)
    shape = (s, a, s if outcomes is None else checks.positive_int("outcomes", outcomes))
    checks.in_range("ending", ending, 0.0, 1.0)
    quantiles = LAWS[checks.one_of("law of rewards", rewards, LAWS)]
    generator = seed
    if not isinstance(seed, np.random.Generator):
        generator = np.random.default_rng(checks.positive_int("seed", seed, least=0))
    probability = generator.dirichlet(np.ones(shape[-1]), size=(s, a))
    initial = generator.dirichlet(np.ones(s))
    reward = reward_scale * quantiles(generator.random(shape))
    next_state = np.broadcast_to(np.arange(s), shape) if outcomes is None else generator.integers(s, size=shape)
    terminated = generator.random(shape) < ending
    tables = (torch.from_numpy(np.array(x)) for x in (probability, next_state, reward, terminated, initial))
    return FiniteMDP(*tables)
