"""Softmax tables, linear and logistic policies, and multilayer perceptrons; categorical and diagonal Gaussian."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Independent, Normal

from varlab import checks
from varlab.envs.base import Environment
from varlab.policies.base import Broadcast, categorical, features

ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU, "silu": nn.SiLU, "gelu": nn.GELU}


class SoftmaxTable(nn.Module):
    r"""Tabular softmax: π(a | s) = exp θ[s, a] / Σ_b exp θ[s, b].

    The score has the closed form ∂ log π(a | s) / ∂ θ[s, b] = 1{a = b} − π(b | s).
    """

    def __init__(self, env: Environment, logits: Tensor | None = None) -> None:
        """Start from ``logits`` [S, A], zero if None.

        Raises:
            InputError: if states or actions are not Discrete, or the logits have another shape.
        """
        super().__init__()
        if not (env.discrete_observations and env.discrete_actions):
            raise checks.InputError(
                f"Discrete observations and actions were expected for a softmax table, but {env.name} has "
                f"{env.observation_space} and {env.action_space}; use policy=mlp or policy=linear."
            )
        shape = (env.num_features, env.num_actions)
        if logits is not None and tuple(logits.shape) != shape:
            raise checks.InputError(
                f"Logits of shape {shape} (states, actions) were expected for {env.name}, but came {tuple(logits.shape)}; "
                "give one row per state."
            )
        self.logits = nn.Embedding(*shape, _weight=torch.zeros(shape) if logits is None else logits.detach().clone())

    def forward(self, obs: Tensor) -> Distribution:
        """Return the categorical distribution at states ``obs`` [...]."""
        return categorical(self.logits(obs))


class NetworkPolicy(nn.Module):
    """A network with a categorical head (logits) or a diagonal Gaussian head (mean, state-independent log σ)."""

    def __init__(self, env: Environment, net: nn.Module, log_std: float) -> None:
        """Wrap ``net``, which maps features [n, d] to one output per action (or action dimension)."""
        super().__init__()
        self.net = net
        self.num_classes = env.num_features if env.discrete_observations else None
        self.discrete = env.discrete_actions
        if not self.discrete:
            self.log_std = Broadcast(torch.full((env.num_actions,), float(log_std)))

    def forward(self, obs: Tensor) -> Distribution:
        """Return the action distribution at observations [n, ...]."""
        return self.distribution(self.net(features(obs, self.num_classes, next(self.net.parameters()).dtype)))

    def distribution(self, out: Tensor) -> Distribution:
        """Return the action distribution of the network's output [n, ...]."""
        if self.discrete:
            return categorical(out)
        return Independent(Normal(out, self.log_std(out).exp(), validate_args=False), 1, validate_args=False)


class Linear(NetworkPolicy):
    """Linear policy: logits or means W x + c."""

    def __init__(self, env: Environment, log_std: float = -0.5) -> None:
        """Build with torch's default initialisation."""
        super().__init__(env, nn.Linear(env.num_features, env.num_actions), log_std)


class Logistic(NetworkPolicy):
    """Two actions by logistic regression without a bias: π(1 | x) = 1 / (1 + exp(−w · x)); P is the number of features.

    The smallest policy that can hold CartPole up: four parameters.
    """

    def __init__(self, env: Environment, weight: Sequence[float] | None = None) -> None:
        """Start from ``weight`` w [d], zero if None.

        Raises:
            InputError: unless there are two actions, or if w has another length.
        """
        if not (env.discrete_actions and env.num_actions == 2):
            raise checks.InputError(
                f"Two actions were expected for a logistic policy, but {env.name} has {env.action_space}; use policy=linear."
            )
        net = nn.Linear(env.num_features, 1, bias=False)
        w = torch.zeros(env.num_features) if weight is None else torch.as_tensor(weight)
        if w.shape != (env.num_features,):
            raise checks.InputError(
                f"One weight for each of the {env.num_features} features of {env.name} was expected, but came shape "
                f"{tuple(w.shape)}; give a vector of that length."
            )
        with torch.no_grad():
            net.weight.copy_(w.unsqueeze(0))
        super().__init__(env, net, 0.0)

    def forward(self, obs: Tensor) -> Distribution:
        """Return the categorical distribution with logits (0, w · x)."""
        score = self.net(features(obs, self.num_classes, self.net.weight.dtype))
        return categorical(torch.cat([torch.zeros_like(score), score], -1))


class MLP(NetworkPolicy):
    """Multilayer perceptron, such as 4-64-64-2 for CartPole (4,610 parameters)."""

    def __init__(
        self, env: Environment, hidden: Sequence[int] = (64, 64), activation: str = "tanh", log_std: float = -0.5
    ) -> None:
        """Build with torch's default initialisation.

        Args:
            env: gives input and output sizes.
            hidden: widths of the hidden layers.
            activation: a name in ``ACTIVATIONS``.
            log_std: initial log σ of a Gaussian head.
        """
        sizes = [env.num_features, *(checks.positive_int("hidden", h) for h in hidden), env.num_actions]
        function = ACTIVATIONS[checks.one_of("activation", activation, ACTIVATIONS)]
        super().__init__(env, mlp(sizes, function), log_std)


def mlp(sizes: Sequence[int], activation: type[nn.Module]) -> nn.Sequential:
    """Return linear layers of the given sizes with ``activation`` between them."""
    layers: list[nn.Module] = []
    for i, (fan_in, fan_out) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        layers += [*([activation()] if i else []), nn.Linear(fan_in, fan_out)]
    return nn.Sequential(*layers)
