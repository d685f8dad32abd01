"""Gymnasium's toy-text environments (FrozenLake, CliffWalking, Taxi) as finite MDPs."""

from __future__ import annotations

import gymnasium

from varlab.envs.finite import FiniteMDP


def finite_mdp(env: gymnasium.Env) -> FiniteMDP | None:
    """Read the outcome lists ``P`` and the initial distribution of a toy-text environment.

    Args:
        env: a Gymnasium environment.

    Returns:
        Its finite MDP, or None where it has no such tables or they do not tell the whole dynamics (Taxi with a fickle
        passenger changes its destination outside ``P``; wrappers registered with the id change rewards or observations).
    """
    if env.spec is not None and env.spec.additional_wrappers:
        return None
    world = env.unwrapped
    tables, initial = getattr(world, "P", None), getattr(world, "initial_state_distrib", None)
    if tables is None or initial is None or getattr(world, "fickle_passenger", False):
        return None
    num_states, num_actions = int(env.observation_space.n), int(env.action_space.n)
    lists = [[tables[s][a] for a in range(num_actions)] for s in range(num_states)]
    return FiniteMDP.from_lists(lists, initial)
