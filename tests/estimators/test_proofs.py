"""Which settings make a claim a proof: checked against the exact oracle, on a world that pays at every step."""

import itertools

import numpy as np
import pytest
from contract import WORLDS, distance, exact_mean
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


@pytest.mark.parametrize("objective", ("J_1", "J_gamma"))
def test_where_another_policy_acts_only_what_corrects_for_it_is_proven(objective):
    """By enumeration under b: what is proven has the mean ∇J(θ), and nothing else of these has it by accident."""
    made = WORLDS["long"]()
    other = made.logits + 0.4 * random_logits(9, made.mdp)
    gradient = {"J_1": made.gradient(1.0), "J_gamma": made.gradient(0.9)}[objective]
    for name in ("reward_to_go", "value_baseline", "surrogate", "importance_weighted", "importance_weighted('total_return')"):
        estimator = estimators.parse(name)
        said = proven(
            estimator, objective, gamma=0.9, discount_weighting=True, cut=None, values_source="exact", on_policy=False
        )
        assert said == (distance(exact_mean(estimator, made, gamma=0.9, behaviour=other), gradient) < 1e-10), name
