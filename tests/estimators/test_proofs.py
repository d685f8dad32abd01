"""Which settings make a claim a proof: checked against the exact oracle, on a world that pays at every step."""

import itertools

import numpy as np
import pytest
from finite_worlds import random_logits, random_mdp

import varlab
from varlab import envs, estimators
from varlab.estimators.claims import proven
from varlab.policies import SoftmaxTable
from varlab.studies.calibration import wrong_values

PHI = (
    *estimators.SOURCE_TEXT, "all_action", "state_action_control_variate", "trajectory_control_variate", "factorised_baseline",
)  # fmt: skip


@pytest.fixture(scope="module")
def world():
    mdp = random_mdp(3)
    env = envs.environment(mdp, 6)
    return env, SoftmaxTable(env, random_logits(3, mdp))


@pytest.mark.parametrize(
    ("gamma", "weighting", "cut", "values"), list(itertools.product((1.0, 0.9), (True, False), (None, 4), ("exact", "wrong")))
)
def test_what_is_proven_is_true_and_what_is_true_is_proven(world, gamma, weighting, cut, values):
    """On a random world no Φ is unbiased by accident, so that both directions can be held to the oracle."""
    env, policy = world
    source = "exact" if values == "exact" else wrong_values(env)
    exact = varlab.exact(env, policy, PHI, gamma=gamma, discount_weighting=weighting, values=source, cut=cut)
    undiscounted = varlab.exact(env, policy, "reward_to_go").gradient
    for objective, gradient in (("J_gamma", exact.gradient), ("J_1", undiscounted)):
        for name, mean in zip(PHI, exact.mean, strict=True):
            said = proven(
                estimators.parse(name), objective, gamma=gamma, discount_weighting=weighting, cut=cut, values_source=values
            )
            assert said == bool(np.abs(mean - gradient).max() < 1e-12), (name, objective)
