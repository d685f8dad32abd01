"""The perceptron's own forward and backward pass: what autograd gives, and only where the network is one."""

import pytest
import torch
from torch import nn

from varlab import envs, policies
from varlab.scores import FactoredScores
from varlab.scores import perceptron as rooms
from varlab.scores.perceptron import Perceptron

WORLDS = {"categorical": "CartPole-v1", "gaussian": "varlab/PointMass-v0", "one-hot": "FrozenLake-v1"}


def batch(env, c=5, t=7):
    generator = torch.Generator().manual_seed(1)
    if env.discrete_observations:
        obs = torch.randint(env.num_features, (c, t), generator=generator)
    else:
        obs = torch.randn(c, t, env.num_features, generator=generator, dtype=torch.float64)
    shape = (c, t) if env.discrete_actions else (c, t, env.num_actions)
    draw = torch.randint(0, env.num_actions, shape, generator=generator)
    return obs, draw if env.discrete_actions else draw.double() - 0.3


def both(policy, obs, action):
    fast = FactoredScores(policy)
    assert fast.perceptron is not None
    slow = FactoredScores(policy)
    slow.perceptron = None
    return fast.at(obs, action), slow.at(obs, action)


@pytest.mark.parametrize("rows", (1, 3, 10**6))
@pytest.mark.parametrize("activation", ("tanh", "relu"))
@pytest.mark.parametrize("world", WORLDS)
def test_inputs_and_signals_of_every_layer_are_those_of_autograd(world, activation, rows, monkeypatch):
    monkeypatch.setattr(rooms, "NUMBERS", 8 * rows)
    env = envs.make(WORLDS[world])
    policy = policies.make("mlp", env, hidden=[8, 5, 6], activation=activation).double()
    fast, slow = both(policy, *batch(env))
    assert len(fast.factors) == len(slow.factors) == 4 + (world == "gaussian")
    for a, b in zip(fast.factors, slow.factors, strict=True):
        assert a.claim.module is b.claim.module and a.delta.abs().max() > 1e-3
        torch.testing.assert_close(a.delta, b.delta, rtol=1e-12, atol=1e-14)
        if b.h is not None:
            torch.testing.assert_close(a.h, b.h, rtol=1e-12, atol=1e-14)


def test_one_layer_no_bias_and_frozen_layers():
    env = envs.make("CartPole-v1")
    policy = policies.make("mlp", env, hidden=[8, 8]).double()
    policy.net[0].weight.requires_grad_(False)
    policy.net[2].bias = None
    policy.net[4].weight.requires_grad_(False)
    fast, slow = both(policy, *batch(env))
    phi = torch.randn(5, 3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(fast.apply(phi), slow.apply(phi), rtol=1e-12, atol=1e-14)
    single = policies.make("mlp", env, hidden=[]).double()
    fast, slow = both(single, *batch(env))
    torch.testing.assert_close(fast.apply(phi), slow.apply(phi), rtol=1e-12, atol=1e-14)


class Doubled(policies.MLP):
    """Its forward does more than the network."""

    def forward(self, obs):
        return self.distribution(2.0 * self.net(obs))


def test_whatever_is_more_than_a_perceptron_is_left_to_autograd():
    env = envs.make("CartPole-v1")
    hooked = policies.make("mlp", env)
    hooked.net[0].register_forward_hook(lambda module, args, out: 2 * out)
    odd = policies.make("mlp", env)
    odd.net = nn.Sequential(odd.net[0], nn.Tanh(), nn.Tanh(), odd.net[2])
    for policy in (Doubled(env), hooked, odd, policies.make("mlp", env, activation="gelu"), policies.make("linear", env)):
        assert Perceptron.of(policy) is None
    assert Perceptron.of(policies.make("softmax_table", envs.make("FrozenLake-v1"))) is None
    assert Perceptron.of(policies.make("mlp", env)) is not None
