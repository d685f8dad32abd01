"""Policies of every kind that the scores must serve, each with the form that serves it and the parameter that is the reason."""

from dataclasses import dataclass

import gymnasium
import torch
from torch import nn
from torch.distributions import Categorical, Independent, Normal
from torch.nn import functional

from varlab import envs, policies
from varlab.envs import Environment, FiniteMDP
from varlab.policies import Broadcast

FEATURES, STATES, ACTIONS, DIMENSIONS = 3, 5, 3, 2


@dataclass(frozen=True)
class Case:
    """A policy, what it reads and does, and the score map that it should get."""

    policy: nn.Module
    culprit: str | None = None  # the parameter in the log line; None where the factored form serves
    discrete: bool = True
    obs: str = "features"  # features, states or images


def world(discrete_actions):
    """An environment that only tells sizes."""
    space = gymnasium.spaces.Discrete(ACTIONS) if discrete_actions else gymnasium.spaces.Box(-1, 1, (DIMENSIONS,))
    return Environment("sizes", 9, gymnasium.spaces.Box(-1, 1, (FEATURES,)), space, make_simulator=lambda device: None)


def lake():
    lists = [[[(1.0, 0, 0.0, False)]] * ACTIONS] * STATES
    return envs.environment(FiniteMDP.from_lists(lists, [0.2] * STATES), 9)


class Head(nn.Module):
    """A network for the logits."""

    def __init__(self, *layers):
        super().__init__()
        self.net = nn.Sequential(*layers)

    def forward(self, obs):
        return Categorical(logits=self.net(obs))


class BareGaussian(nn.Module):
    """log σ as a bare parameter, and one that is a Broadcast."""

    def __init__(self, bare, independent=True):
        super().__init__()
        self.mean, self.independent = nn.Linear(FEATURES, DIMENSIONS), independent
        start = torch.tensor([-0.3, 0.4])
        self.log_std = nn.Parameter(start) if bare else Broadcast(start)

    def forward(self, obs):
        mean = self.mean(obs)
        log_std = self.log_std(mean) if isinstance(self.log_std, Broadcast) else self.log_std
        law = Normal(mean, log_std.exp().expand_as(mean))
        return Independent(law, 1) if self.independent else law


class SharedTrunk(nn.Module):
    """Two heads on one trunk: the deviation depends on the state."""

    def __init__(self):
        super().__init__()
        self.trunk, self.mean, self.scale = nn.Linear(FEATURES, 4), nn.Linear(4, DIMENSIONS), nn.Linear(4, DIMENSIONS)

    def forward(self, obs):
        h = self.trunk(obs).tanh()
        return Independent(Normal(self.mean(h), functional.softplus(self.scale(h)) + 0.1), 1)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.out = (
            nn.Linear(FEATURES, FEATURES),
            nn.Linear(FEATURES, FEATURES),
            nn.Linear(FEATURES, ACTIONS),
        )
        self.second.weight = self.first.weight

    def forward(self, obs):
        return Categorical(logits=self.out(self.second(self.first(obs).tanh()).tanh()))


class Twice(nn.Module):
    """One layer used twice; with ``paths`` it is also held under two names."""

    def __init__(self, paths=False):
        super().__init__()
        self.layer, self.out = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, ACTIONS)
        if paths:
            self.again = self.layer

    def forward(self, obs):
        second = getattr(self, "again", self.layer)
        return Categorical(logits=self.out(second(self.layer(obs).tanh()).tanh()))


class TwoPaths(nn.Module):
    """One submodule held under two names and called once, as in actor-critic libraries."""

    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Linear(FEATURES, 4), nn.Tanh())
        self.actor_features = self.features
        self.out = nn.Linear(4, ACTIONS)

    def forward(self, obs):
        return Categorical(logits=self.out(self.actor_features(obs)))


class TwoPathsFunctional(TwoPaths):
    """The same, with a layer that only torch.func serves."""

    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def forward(self, obs):
        return Categorical(logits=self.out(self.norm(self.features(obs)) + self.actor_features(obs)))


class FunctionalUse(nn.Module):
    """A weight used functionally, beside its module's call or instead of it."""

    def __init__(self, beside):
        super().__init__()
        self.layer, self.out, self.beside = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, ACTIONS), beside

    def forward(self, obs):
        h = functional.linear(obs, self.layer.weight)
        return Categorical(logits=self.out(h + self.layer(obs).tanh() if self.beside else h))


class Critic(nn.Module):
    """A second head that the action does not use."""

    def __init__(self):
        super().__init__()
        self.actor, self.critic = nn.Linear(FEATURES, ACTIONS), nn.Linear(FEATURES, 1)

    def forward(self, obs):
        return Categorical(logits=self.actor(obs))


class NoGrad(nn.Module):
    """A trainable encoder called without gradients: its score is zero."""

    def __init__(self):
        super().__init__()
        self.encoder, self.out = nn.Linear(FEATURES, 4), nn.Linear(4, ACTIONS)

    def forward(self, obs):
        with torch.no_grad():
            h = self.encoder(obs).tanh()
        return Categorical(logits=self.out(h))


class ByKeyword(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(FEATURES, ACTIONS)

    def forward(self, obs):
        return Categorical(logits=self.out(input=obs))


class Residual(nn.Module):
    """``h += …`` changes in place what a layer gave."""

    def __init__(self, inplace):
        super().__init__()
        self.first, self.out, self.inplace = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, ACTIONS), inplace

    def forward(self, obs):
        h = self.first(obs)
        if self.inplace:
            h *= 2.0
        else:
            h = 2.0 * h
        return Categorical(logits=self.out(h + obs))


class InputChanged(nn.Module):
    """The input of a layer is changed after the layer has read it; its weight is not trained, so that autograd allows it."""

    def __init__(self):
        super().__init__()
        self.first, self.out = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, ACTIONS)

    def forward(self, obs):
        x = obs.clone()
        first = functional.linear(x, torch.eye(FEATURES, dtype=x.dtype)) + self.first(x.clone())
        x.mul_(0.5)
        return Categorical(logits=self.out(first + x))


class Scaled(nn.Linear):
    """A subclass of Linear that computes something else."""

    def forward(self, x):
        return 2.0 * super().forward(x)


class Reversed(nn.Module):
    """Rows go through the layer in the other order."""

    def __init__(self):
        super().__init__()
        self.out = nn.Linear(FEATURES, ACTIONS)

    def forward(self, obs):
        return Categorical(logits=self.out(obs.flip(0)).flip(0))


class Transposed(nn.Module):
    """A layer called with an extra axis."""

    def __init__(self):
        super().__init__()
        self.each, self.out = nn.Linear(1, 2), nn.Linear(2 * FEATURES, ACTIONS)

    def forward(self, obs):
        return Categorical(logits=self.out(self.each(obs.unsqueeze(-1)).flatten(1)))


class OneHot(nn.Module):
    """What vmap refuses: one_hot looks at the numbers of its input."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(STATES, ACTIONS))

    def forward(self, obs):
        return Categorical(logits=functional.one_hot(obs, STATES).to(self.table.dtype) @ self.table)


class MixesRows(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(FEATURES, ACTIONS)

    def forward(self, obs):
        return Categorical(logits=self.out(obs - obs.mean(0)))


class Doubled(nn.Module):
    def forward(self, weight):
        return 2.0 * weight


def parametrised():
    """A layer whose weight is a function of the parameter."""
    layer = nn.Linear(FEATURES, ACTIONS)
    nn.utils.parametrize.register_parametrization(layer, "weight", Doubled())
    return layer


def frozen(policy, *names):
    for name in names:
        policy.get_parameter(name).requires_grad_(False)
    return policy


def linear(fan_in, fan_out, **kwargs):
    return nn.Linear(fan_in, fan_out, **kwargs)


def mlp_head(width=4, activation=nn.Tanh):
    return Head(linear(FEATURES, width), activation(), linear(width, ACTIONS))


def cases():
    """Return every case by name, with θ from one seed, in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        discrete, box, finite = world(True), world(False), lake()
        states = {"obs": "states"}
        found = {
            "softmax table": Case(policies.make("softmax_table", finite), **states),
            "linear categorical": Case(policies.make("linear", discrete)),
            "linear on states": Case(policies.make("linear", finite), **states),
            "linear Gaussian": Case(policies.make("linear", box), discrete=False),
            "mlp categorical": Case(policies.make("mlp", discrete, hidden=(5, 4))),
            "mlp on states": Case(policies.make("mlp", finite, hidden=(4,)), **states),
            "mlp Gaussian": Case(policies.make("mlp", box, hidden=(5,)), discrete=False),
            "two heads": Case(SharedTrunk(), discrete=False),
            "Normal without Independent": Case(BareGaussian(bare=False, independent=False), discrete=False),
            "bare log σ": Case(BareGaussian(bare=True), "log_std", discrete=False),
            "bare log σ without Independent": Case(BareGaussian(bare=True, independent=False), "log_std", discrete=False),
            "no bias": Case(Head(linear(FEATURES, 4, bias=False), nn.Tanh(), linear(4, ACTIONS, bias=False))),
            "frozen layer": Case(frozen(mlp_head(), "net.0.weight", "net.0.bias")),
            "frozen bias": Case(frozen(mlp_head(), "net.0.bias")),
            "frozen weight": Case(frozen(mlp_head(), "net.2.weight")),
            "frozen norm": Case(
                frozen(Head(linear(FEATURES, 4), nn.LayerNorm(4), linear(4, ACTIONS)), "net.1.weight", "net.1.bias")
            ),
            "embedding and linear": Case(Head(nn.Embedding(STATES, 4), nn.Tanh(), linear(4, ACTIONS)), **states),
            "frozen embedding": Case(frozen(Head(nn.Embedding(STATES, 4), linear(4, ACTIONS)), "net.0.weight"), **states),
            "padded embedding": Case(Head(nn.Embedding(STATES, ACTIONS, padding_idx=4)), "net.0.weight", **states),
            "layer norm": Case(Head(linear(FEATURES, 4), nn.LayerNorm(4), linear(4, ACTIONS)), "net.1.weight"),
            "batch norm": Case(Head(linear(FEATURES, 4), nn.BatchNorm1d(4), linear(4, ACTIONS)), "net.1.weight"),
            "convolution": Case(Head(nn.Conv2d(1, 2, 2), nn.Flatten(), linear(18, ACTIONS)), "net.0.weight", obs="images"),
            "dropout": Case(Head(linear(FEATURES, 4), nn.Dropout(), linear(4, ACTIONS))),
            "inplace relu": Case(Head(linear(FEATURES, 4), nn.ReLU(inplace=True), linear(4, ACTIONS)), "net.0.weight"),
            "relu": Case(mlp_head(activation=nn.ReLU)),
            "inplace residual": Case(Residual(inplace=True), "first.weight"),
            "residual": Case(Residual(inplace=False)),
            "input changed later": Case(InputChanged()),
            "tied weights": Case(Tied(), "first.weight"),
            "layer used twice": Case(Twice(), "layer.weight"),
            "layer used twice by two paths": Case(Twice(paths=True), "layer.weight"),
            "two paths": Case(TwoPaths()),
            "two paths with a norm": Case(TwoPathsFunctional(), "norm.weight"),
            "weight used functionally": Case(FunctionalUse(beside=False), "layer.weight"),
            "weight used functionally beside its module": Case(FunctionalUse(beside=True), "layer.weight"),
            "unused critic": Case(Critic(), "critic.weight"),
            "frozen critic": Case(frozen(Critic(), "critic.weight", "critic.bias")),
            "encoder without gradient": Case(NoGrad()),
            "called by keyword": Case(ByKeyword()),
            "subclass of Linear": Case(Head(Scaled(FEATURES, ACTIONS)), "net.0.weight"),
            "parametrised": Case(Head(parametrised()), "net.0.bias"),
            "rows in another order": Case(Reversed(), "out.weight"),
            "one-hot by hand": Case(OneHot(), "table", **states),
            "layer with an extra axis": Case(Transposed(), "each.weight"),
        }
    for case in found.values():
        case.policy.double().eval()
    return found
