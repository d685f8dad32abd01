"""Worlds whose steps share a logit: their variances by the exact oracle, by adding up paths, and by hand."""

import numpy as np
import pytest

import varlab
from varlab import policies
from varlab.envs import shared_logit
from varlab.oracles.units import Listed

WORLDS = (
    (shared_logit.crossed_gaps, shared_logit.crossed_gaps_variance),
    (shared_logit.late_gaps, shared_logit.late_gaps_variance),
)


@pytest.mark.parametrize(("make", "known"), WORLDS)
def test_variances_are_those_of_the_oracle_and_of_all_paths(make, known):
    env, expected = make(), known()
    policy = policies.Logistic(env)
    found = varlab.exact(env, policy, list(expected))
    np.testing.assert_allclose(found.variance, list(expected.values()), atol=1e-15)
    paths = Listed.of(env, policy)
    added = paths.covariance(paths.gradients(list(expected))).diagonal()
    np.testing.assert_allclose(added, list(expected.values()), atol=1e-15)


def test_crossed_gaps_by_hand():
    """a_0 = 1 leads to e = −1: z_0 = 1/2, G_0 = 1 + r_1, and z_1 r_1 = −1/2 whatever a_1."""
    expected = shared_logit.crossed_gaps_variance()
    plain, value = [], []
    for a0 in (0, 1):
        for a1 in (0, 1):
            z0, z1 = a0 - 0.5, a1 - 0.5
            r1 = (2 * a1 - 1) * (1 if a0 == 0 else -1)
            plain.append(z0 * (1 + r1) + z1 * r1)
            value.append(z0 * r1 + z1 * r1)
    assert np.var(plain) == expected["reward_to_go"] and np.var(value) == expected["value_baseline"]
    assert set(plain) == {0.5, -0.5} and set(value) == {0.0, 1.0, -1.0}


def test_late_gaps_by_hand():
    """Step by step: 1/4 whatever a_1, with z_0 A_2 + z_1 A_2 = ±1/16 ± 1/16 about it."""
    found = []
    for a0 in (0, 1):
        for a1 in (0, 1):
            for a2 in (0, 1):
                z0, z1 = a0 - 0.5, a1 - 0.5
                last = 3 if a0 != a1 else 4
                gap = 0.25 if last == 3 else -0.25
                advantage = (a2 - 0.5) * gap
                found.append(z0 * (a1 - 0.5) + (z0 + z1) * advantage + 0.25 * 1.0 + 4 * 0.25 * gap)
    assert np.var(found) == shared_logit.late_gaps_variance()["state_action_control_variate"]
