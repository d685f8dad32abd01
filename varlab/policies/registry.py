"""One door to the built-in policies: ``make(kind, env, …)`` with θ drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import nn

from varlab import checks, rng
from varlab.envs.base import Environment
from varlab.policies.networks import MLP, Linear, SoftmaxTable
from varlab.policies.parameter_exploring import Controller, ParameterDistribution

#: Kinds that act step by step.
CONTROLLERS = ("softmax_table", "linear", "mlp")
KINDS = (*CONTROLLERS, "parameter_exploring")
#: Kinds that users registered.
USER: dict[str, Callable[..., nn.Module]] = {}


def register(kind: str, factory: Callable[..., nn.Module]) -> None:
    """Enter a policy of one's own, so that ``make`` and configurations find it.

    Args:
        kind: its name.
        factory: (env, theta_seed, **settings) → module whose forward gives a torch Distribution; its θ depends on these alone.

    Raises:
        InputError: if one of varlab's own has that name.
    """
    if kind in KINDS:
        raise checks.InputError(f"A new name was expected for a policy, but '{kind}' is varlab's own; choose another.")
    USER[kind] = factory


def make(
    kind: str,
    env: Environment,
    *,
    theta_seed: int = 0,
    scale: float = 1.0,
    hidden: Sequence[int] = (64, 64),
    activation: str = "tanh",
    log_std: float = -0.5,
    controller: str = "linear",
    stochastic: bool = False,
    tau: float = 0.5,
    settings: Mapping[str, object] | None = None,
) -> nn.Module:
    """Return a policy whose θ depends only on ``theta_seed``.

    A softmax table draws logits from N(0, scale²). Networks draw torch's default initialisation and multiply weights and
    biases of the last layer by ``scale``. The kind parameter_exploring is a Gaussian over the parameters of a controller, which
    has η = that controller's own θ; it acts in the world that :func:`varlab.envs.parameter_exploring` makes of ``env`` and its
    ``controller``.

    Args:
        kind: softmax_table, linear, mlp, parameter_exploring, or what a user registered.
        env: gives input and output sizes.
        theta_seed: seed of θ.
        scale: spread of the logits or of the last layer.
        hidden: widths of the hidden layers (mlp).
        activation: name of the activation (mlp).
        log_std: initial log σ (Gaussian policies).
        controller: softmax_table, linear or mlp, whose parameters are explored (parameter_exploring).
        stochastic: whether that controller draws its actions (parameter_exploring).
        tau: first standard deviation τ of every parameter (parameter_exploring).
        settings: keyword arguments of a registered factory.

    Returns:
        The policy.

    Raises:
        InputError: for an unknown kind, or settings that a registered factory does not take.
    """
    checks.one_of("policy", kind, (*KINDS, *USER))
    if kind in USER:
        try:
            return USER[kind](env, theta_seed=theta_seed, **(settings or {}))
        except TypeError as error:
            raise checks.InputError(
                f"A factory (env, theta_seed, **settings) was expected for the policy '{kind}', but {settings or {}} gave: "
                f"{error}; correct its settings."
            ) from error
    if kind == "parameter_exploring":
        checks.one_of("controller", controller, CONTROLLERS)
        inner = make(
            controller, env, theta_seed=theta_seed, scale=scale, hidden=hidden, activation=activation, log_std=log_std
        )
        acting = Controller(inner, env, stochastic)
        return ParameterDistribution(acting.start, tau, acting)
    sequence = rng.Streams(theta_seed).sequence("theta")
    if kind == "softmax_table":
        generator = rng.torch_generator(sequence)
        table = SoftmaxTable(env)
        with torch.no_grad():
            table.logits.weight.copy_(scale * torch.randn(table.logits.weight.shape, generator=generator))
        return table
    # torch's initialisers draw from the global generator: borrow it, so that nobody else's draws move.
    with rng.global_generator(int(sequence.generate_state(1)[0])):
        policy = Linear(env, log_std) if kind == "linear" else MLP(env, hidden, activation, log_std)
    last = policy.net if kind == "linear" else policy.net[-1]
    with torch.no_grad():
        last.weight.mul_(scale)
        last.bias.mul_(scale)
    return policy
