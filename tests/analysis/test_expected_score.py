"""Scores averaged over actions: 0 for every built-in policy, not 0 where the scores are of another distribution."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Categorical

from varlab import envs, policies
from varlab.analysis.expected_score import expected_score
from varlab.rollout import rollout

CARTPOLE, PENDULUM, LAKE = envs.make("CartPole-v1", horizon=20), envs.make("Pendulum-v1", horizon=3), envs.make("FrozenLake-v1")


class Exploring(nn.Module):
    """Acts at random with probability ε."""

    def __init__(self, policy, eps):
        super().__init__()
        self.policy, self.eps = policy, eps

    def forward(self, obs):
        probs = self.policy(obs).probs
        return Categorical(probs=(1 - self.eps) * probs + self.eps / probs.shape[-1])


def cases():
    for env, kinds in ((CARTPOLE, ("linear", "mlp")), (PENDULUM, ("linear", "mlp")), (LAKE, ("softmax_table", "linear"))):
        yield from ((env, policies.make(kind, env)) for kind in kinds)
    yield CARTPOLE, policies.Logistic(CARTPOLE, (0.1, -0.2, 0.3, 1.0))


@pytest.mark.parametrize(("env", "policy"), cases())
def test_every_policy_of_the_package_has_expected_score_zero(env, policy):
    traj = rollout(env, policy, 10, np.random.SeedSequence(0))
    found = expected_score(policy, traj)
    assert found.mean.shape == (traj.steps, policies.num_parameters(policy))
    assert found.worst < 1e-13 and float(found.size.min()) > 1e-6


def test_sizes_are_the_scores_own():
    policy = policies.Logistic(CARTPOLE, (0.1, -0.2, 0.3, 1.0))
    traj = rollout(CARTPOLE, policy, 5, np.random.SeedSequence(0))
    p = policy(traj.obs).probs[:, 1].double().detach()
    torch.testing.assert_close(
        expected_score(policy, traj).size, (p * (1 - p)).sqrt() * traj.obs.double().norm(dim=1), rtol=1e-5, atol=0
    )


def test_actions_of_another_policy_are_noticed():
    policy = policies.Logistic(CARTPOLE, (0.1, -0.2, 3.0, 1.0))
    traj = rollout(CARTPOLE, policy, 5, np.random.SeedSequence(0))
    eps = 0.2
    found = expected_score(policy, traj, acting=Exploring(policy, eps))
    p = policy(traj.obs).probs[:, 1].double().detach()
    wanted = (eps * (0.5 - p))[:, None] * traj.obs.double()  # Σ_a π_ε(a) z(a) = (p_ε − p) x
    torch.testing.assert_close(found.mean, wanted, rtol=1e-4, atol=1e-6)
    assert found.worst > 0.01
