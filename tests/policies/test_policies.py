"""Policies: what they compute, how θ comes from a seed, how a user's module is prepared."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal

from varlab import envs, policies
from varlab.checks import InputError
from varlab.policies.base import features

LAKE, CLIFF = envs.make("FrozenLake-v1"), envs.make("CliffWalking-v1", horizon=5)
CARTPOLE, PENDULUM = envs.make("CartPole-v1"), envs.make("Pendulum-v1")


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_softmax_table_is_the_softmax_of_its_logits():
    logits = numbers(16, 4)
    policy = policies.SoftmaxTable(LAKE, logits)
    obs = torch.tensor([0, 15, 3, 3])
    expected = logits.exp() / logits.exp().sum(1, keepdim=True)
    torch.testing.assert_close(policy(obs).probs, expected[obs], rtol=0, atol=1e-14)
    assert policies.num_parameters(policy) == 64 and list(policies.parameters(policy)) == ["logits.weight"]
    logits.zero_()
    assert float(policy(obs).probs.detach().max()) > 0.3  # a copy: the caller's tensor may change
    assert torch.equal(policies.SoftmaxTable(LAKE)(obs).probs, torch.full((4, 4), 0.25))


@pytest.mark.parametrize("hidden", [(), (5,), (7, 3)])
@pytest.mark.parametrize(("activation", "function"), [("tanh", torch.tanh), ("relu", torch.relu)])
def test_a_multilayer_perceptron_is_its_formula(hidden, activation, function):
    policy = policies.MLP(CARTPOLE, hidden, activation).double()
    obs = numbers(6, 4)
    layers = [m for m in policy.net if isinstance(m, nn.Linear)]
    assert [m.out_features for m in layers] == [*hidden, 2]
    x = obs
    for i, m in enumerate(layers):
        x = (function(x) if i else x) @ m.weight.T + m.bias
    torch.testing.assert_close(policy(obs).probs, x.softmax(1), rtol=0, atol=1e-14)
    sizes = [4, *hidden, 2]
    assert policies.num_parameters(policy) == sum((a + 1) * b for a, b in zip(sizes[:-1], sizes[1:], strict=True))


def test_the_cartpole_network_of_the_design_has_4610_parameters():
    assert policies.num_parameters(policies.make("mlp", CARTPOLE)) == 4610


def test_a_linear_policy_on_states_reads_one_hot_rows():
    policy = policies.Linear(LAKE)
    obs = torch.tensor([3, 9])
    expected = policy.net.weight.T[obs] + policy.net.bias
    torch.testing.assert_close(policy(obs).logits, expected.log_softmax(1))


@pytest.mark.parametrize("log_std", [-0.5, 0.7])
def test_a_gaussian_policy_has_a_deviation_of_its_own(log_std):
    policy = policies.Linear(PENDULUM, log_std).double()
    obs, action = numbers(5, 3), numbers(5, 1, seed=1)
    mean, sigma = obs @ policy.net.weight.T + policy.net.bias, math.exp(log_std)
    expected = -0.5 * ((action - mean) / sigma) ** 2 - math.log(sigma) - 0.5 * math.log(2 * math.pi)
    torch.testing.assert_close(policies.log_prob(policy(obs), action), expected[:, 0], rtol=0, atol=1e-6)
    assert list(policies.parameters(policy)) == ["net.weight", "net.bias", "log_std.value"]


def test_features():
    assert features(torch.tensor([2, 0]), 3, torch.float64).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert features(torch.arange(4.0), None, torch.float64).tolist() == [[0], [1], [2], [3]]
    image = numbers(2, 3, 4)
    assert torch.equal(features(image, None, torch.float64), image.flatten(1))
    assert features(torch.zeros(2, 3, dtype=torch.uint8), None, torch.float32).dtype == torch.float32


# ---- log-probabilities


def test_log_probabilities_are_summed_over_action_dimensions():
    loc, scale, action = numbers(6, 3), numbers(6, 3, seed=1).exp(), numbers(6, 3, seed=2)
    expected = (-0.5 * ((action - loc) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)).sum(1)
    for law in (Normal(loc, scale), Independent(Normal(loc, scale), 1)):
        found = policies.log_prob(law, action)
        assert found.shape == (6,)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    logits = numbers(6, 4)
    found = policies.log_prob(Categorical(logits=logits), torch.arange(6) % 4)
    torch.testing.assert_close(found, logits.log_softmax(1)[torch.arange(6), torch.arange(6) % 4])


def test_log_prob_refuses_in_sentences():
    with pytest.raises(InputError, match="torch Distribution was expected, but it gave Tensor"):
        policies.log_prob(numbers(3, 2), torch.tensor([0, 1, 0]))
    with pytest.raises(InputError, match=r"over actions of shape \(3,\) was expected for World"):
        policies.log_prob(Normal(numbers(4, 2), torch.ones(4, 2)), numbers(4, 3), "World")


def test_a_broadcast_parameter_is_repeated_for_every_row():
    broadcast = policies.Broadcast(torch.tensor([1.0, -2.0]))
    out = broadcast(torch.zeros(3, 7))
    assert out.tolist() == [[1.0, -2.0]] * 3
    out.sum().backward()
    assert broadcast.value.grad.tolist() == [3.0, 3.0]


# ---- θ


@pytest.mark.parametrize(("kind", "env"), [("softmax_table", LAKE), ("linear", PENDULUM), ("mlp", CARTPOLE), ("mlp", CLIFF)])
def test_theta_follows_its_seed_alone(kind, env):
    def theta(seed, noise):
        torch.manual_seed(noise)
        policy = policies.make(kind, env, theta_seed=seed)
        return torch.cat([p.detach().flatten() for p in policies.parameters(policy).values()])

    assert torch.equal(theta(0, 1), theta(0, 2)) and not torch.equal(theta(0, 1), theta(1, 1))


def test_scale_spreads_the_logits_and_the_last_layer():
    one, three = (policies.make("softmax_table", LAKE, scale=s).logits.weight for s in (1.0, 3.0))
    torch.testing.assert_close(three, 3 * one)
    assert 0.7 < float(one.detach().std()) < 1.3
    one, three = (policies.make("mlp", CARTPOLE, scale=s) for s in (1.0, 3.0))
    torch.testing.assert_close(three.net[-1].weight, 3 * one.net[-1].weight)
    torch.testing.assert_close(three.net[-1].bias, 3 * one.net[-1].bias)
    assert torch.equal(three.net[0].weight, one.net[0].weight)


def test_wrong_policies_are_named():
    with pytest.raises(InputError, match="No policy is called 'mpl'; the nearest names are mlp"):
        policies.make("mpl", CARTPOLE)
    with pytest.raises(InputError, match="Discrete observations and actions were expected for a softmax table, but CartPole-v1"):
        policies.make("softmax_table", CARTPOLE)
    with pytest.raises(InputError, match=r"Logits of shape \(16, 4\).*came \(4, 16\)"):
        policies.SoftmaxTable(LAKE, numbers(4, 16))
    with pytest.raises(InputError, match="No activation is called 'tan'; the nearest names are tanh"):
        policies.make("mlp", CARTPOLE, activation="tan")
    with pytest.raises(InputError, match="hidden must be a whole number"):
        policies.make("mlp", CARTPOLE, hidden=(0,))


# ---- a user's module


class User(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.drop, self.log_std = nn.Linear(3, 1), nn.Dropout(), nn.Parameter(torch.zeros(1))
        self.register_buffer("mean", torch.ones(3))

    def forward(self, obs):
        return Normal(self.drop(self.net(obs - self.mean)), self.log_std.exp())


def test_prepare_leaves_the_callers_module_alone():
    user = User()
    before = {k: v.clone() for k, v in user.state_dict().items()}
    copy = policies.prepare(user, torch.float64, "cpu")
    assert not copy.training and user.training and not user._forward_pre_hooks
    assert all(v.dtype == torch.float64 for v in copy.state_dict().values())
    with torch.no_grad():
        for p in copy.parameters():
            p.add_(1.0)
    assert all(torch.equal(v, before[k]) and v.dtype == torch.float32 for k, v in user.state_dict().items())


def test_a_prepared_copy_reads_observations_in_its_own_dtype():
    copy = policies.prepare(User(), torch.float64, "cpu")
    obs = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert torch.equal(copy(obs).loc, copy(obs.double()).loc) and copy(obs).loc.dtype == torch.float64
    again = policies.prepare(policies.prepare(User(), torch.float32, "cpu"), torch.float64, "cpu")
    x = numbers(4, 3)
    assert torch.equal(again(x).loc, nn.functional.linear(x - 1, again.net.weight, again.net.bias))  # not by way of float32


def test_prepare_refuses_what_has_no_gradient_or_no_number():
    frozen = User().requires_grad_(False)
    with pytest.raises(InputError, match="all are frozen"):
        policies.prepare(frozen, torch.float32, "cpu")
    for value in (float("nan"), float("inf")):
        broken = User()
        with torch.no_grad():
            broken.net.weight[0, 1] = value
        with pytest.raises(InputError, match=r"'net\.weight' holds NaN or infinity"):
            policies.prepare(broken, torch.float32, "cpu")


def test_theta_is_each_trainable_parameter_once():
    user = User()
    user.again = user.net
    user.net.bias.requires_grad_(False)
    assert sorted(policies.parameters(user)) == ["log_std", "net.weight"] and policies.num_parameters(user) == 4
