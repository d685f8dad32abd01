"""Values at nodes: every source gives at node j what it would give were that action taken."""

from dataclasses import replace

import pytest
import torch
from row_gradients import finite, sample

from varlab import envs, policies, storage, values
from varlab.checks import InputError
from varlab.envs import lqg
from varlab.estimators import Batch
from varlab.estimators.nodes import RULES, with_nodes
from varlab.rng import Streams
from varlab.types import Values
from varlab.values import CriticSettings, ExactValues, FunctionValues
from varlab.values.linear_quadratic import QuadraticValues


def linear(env):
    return policies.prepare(policies.make("linear", env, theta_seed=1), torch.float64, torch.device("cpu"))


def critic(env, policy):
    traj = sample(env, policy, 40, seed=5)
    target = Batch(traj, Values(), 1.0).reward_to_go
    settings = CriticSettings(hidden=(8,), epochs=1)
    return values.fit(env, traj, target, settings, Streams(0).sequence("fit"), storage.digest, torch.float64)


def system():
    env = lqg.random_system(4, seed=1, state_dim=3, action_dim=2)
    return env, linear(env)


def features():
    env = envs.make("CartPole-v1", horizon=6)
    return env, linear(env)


SOURCES = {
    "finite tables": (lambda: finite("mlp"), lambda e, p: ExactValues.of(e.finite, p, 0.9, e.horizon)),
    "finite functions": (
        lambda: finite("mlp"), lambda e, p: FunctionValues(q=lambda s, a, t: 100.0 * s + 10 * a + t),
    ),
    "finite critic": (lambda: finite("mlp"), critic),
    "CartPole critic": (features, critic),
    "linear system": (system, lambda e, p: QuadraticValues.of(e, p, 0.9)),
    "linear system critic": (system, critic),
    "linear system functions": (
        system, lambda e, p: FunctionValues(q=lambda s, a, t: s[:, 0] * a[:, 1] + a[:, 0] ** 2 + t),
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", SOURCES)
def test_a_node_is_an_action_that_might_have_been_taken(name, rule):
    world, make = SOURCES[name]
    env, policy = world()
    source = make(env, policy)
    traj = with_nodes(policy, sample(env, policy, 7), 3, rule)
    found = source(traj, frozenset({"q_nodes"}))
    assert found.q is None and found.v is None and source(traj, frozenset({"q"})).q_nodes is None
    assert found.q_nodes.shape == traj.nodes.weight.shape and found.q_nodes.dtype == torch.float64
    for j in range(found.q_nodes.shape[1]):
        taken = source(replace(traj, action=traj.nodes.action[:, j]), frozenset({"q"})).q
        torch.testing.assert_close(found.q_nodes[:, j], taken, rtol=1e-12, atol=1e-12)
    assert float(found.q_nodes.std(1).min()) > 0


def test_functions_without_q_are_one_sentence():
    env, policy = finite("mlp")
    with pytest.raises(InputError, match="A function q was expected"):
        FunctionValues(v=lambda s, t: 1.0 * t)(with_nodes(policy, sample(env, policy, 3), 3), frozenset({"q_nodes"}))
