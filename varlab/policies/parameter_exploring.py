"""Exploration in the space of parameters: a Gaussian over θ, and the controller that acts with a θ."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution, Independent, Normal
from torch.func import functional_call, vmap

from varlab import checks
from varlab.envs.base import Environment
from varlab.policies.base import Broadcast, categorical, parameters, sample


class Controller:
    """A policy as a function of its parameters: each of n episodes acts with a θ of its own.

    θ are the parameters with requires_grad that the action depends on: without noise of its own that leaves out log σ, which
    would only add noise to the gradient. Everything else keeps the value that it has in ``policy``.

    Attributes:
        num_parameters: P, the length of θ.
        start: [P] θ of the policy that it was made of.
        identity: what distinguishes it in a digest.
    """

    def __init__(self, policy: nn.Module, env: Environment, stochastic: bool = False) -> None:
        """Copy the policy.

        Args:
            policy: categorical or diagonal Gaussian.
            env: the world in which it acts.
            stochastic: whether actions are drawn; otherwise they are the most likely one, or the mean.

        Raises:
            InputError: for another distribution, or where actions depend on no parameter.
        """
        self.skeleton, self.stochastic = copy.deepcopy(policy).eval(), stochastic
        held = parameters(self.skeleton)
        dtype = torch.int64 if env.discrete_observations else next((p.dtype for p in held.values()), torch.float32)
        with torch.enable_grad():
            distribution = self.skeleton(torch.zeros(1, *env.observation_space.shape, dtype=dtype))
            self.discrete = type(distribution) is Categorical
            outputs = [x for x in self._numbers(distribution, env.name) if x.requires_grad]
            total = sum(x.sum() for x in outputs)
            reached = torch.autograd.grad(total, list(held.values()), allow_unused=True) if outputs else [None] * len(held)
        self.shapes = {name: p.shape for (name, p), g in zip(held.items(), reached, strict=True) if g is not None}
        if not self.shapes:
            raise checks.InputError(
                f"A controller whose actions depend on parameters that require a gradient was expected on {env.name}, but those "
                f"of {type(policy).__name__} depend on none; set requires_grad on θ, or make it stochastic."
            )
        self.start = torch.cat([held[name].detach().reshape(-1) for name in self.shapes])
        self.num_parameters = self.start.shape[0]
        rest = [*self.skeleton.named_parameters(), *self.skeleton.named_buffers()]
        self.fixed = {name: x.detach() for name, x in rest if name not in self.shapes}

    @property
    def identity(self) -> Mapping[str, object]:
        """Its module, its mode, and the numbers that are no part of θ."""
        return {"module": str(self.skeleton), "stochastic": self.stochastic, "theta": list(self.shapes), "fixed": self.fixed}

    def act(self, theta: Tensor, obs: Tensor, generator: torch.Generator) -> Tensor:
        """Return actions [n] or [n, d], all by one batched call of the module.

        Args:
            theta: [n, P], one θ for each row.
            obs: [n, ...].
            generator: source of randomness of a stochastic controller.

        Returns:
            The actions.

        Raises:
            InputError: for a module that cannot be batched over θ.
            RuntimeError: what the module itself raised.
        """
        fixed = {name: x.to(theta) if x.is_floating_point() else x.to(theta.device) for name, x in self.fixed.items()}
        sizes = [shape.numel() for shape in self.shapes.values()]

        def one(row: Tensor, seen: Tensor) -> tuple[Tensor, ...]:
            own = {name: x.view(shape) for (name, shape), x in zip(self.shapes.items(), row.split(sizes), strict=True)}
            distribution = functional_call(self.skeleton, {**fixed, **own}, (seen.unsqueeze(0),))
            return tuple(x.squeeze(0) for x in self._numbers(distribution))

        try:
            with torch.no_grad():
                first, *scale = vmap(one)(theta, obs.to(theta.dtype) if obs.is_floating_point() else obs)
        except RuntimeError as error:
            if "vmap" not in str(error):
                raise
            raise checks.InputError(
                f"A controller that runs under torch.func.vmap was expected, but {type(self.skeleton).__name__} does not: "
                f"{str(error).splitlines()[0]}; take out what looks at numbers (if, item())."
            ) from error
        if not self.stochastic:
            return first.argmax(-1) if self.discrete else first
        return sample(categorical(first) if self.discrete else Normal(first, *scale, validate_args=False), generator)

    def _numbers(self, distribution: Distribution, env: str = "the environment") -> tuple[Tensor, ...]:
        """Return logits [n, A], or means [n, d] and, where actions are drawn, scales [n, d]."""
        inner = distribution.base_dist if type(distribution) is Independent else distribution
        if type(distribution) is Categorical and distribution.logits.dim() == 2:
            return (distribution.logits,)
        if type(inner) is Normal and inner.loc.dim() == 2:
            return (inner.loc, inner.scale) if self.stochastic else (inner.loc,)
        raise checks.InputError(
            f"A categorical or diagonal Gaussian controller was expected on {env}, but its distribution is "
            f"{type(inner).__name__}; explore the parameters of one of these."
        )


class ParameterDistribution(nn.Module):
    """θ ~ N(η, diag τ²), the same for every observation; its parameters are η and log τ.

    With ζ = (θ − η) / τ the scores are ζ / τ for η and ζ² − 1 for log τ. Source: Parameter-Exploring Policy Gradients (Sehnke et
    al., 2010).

    Attributes:
        mean: η [P].
        log_std: log τ [P].
        controller: what acts with θ, or None.
    """

    def __init__(self, mean: Tensor, std: float | Tensor = 1.0, controller: Controller | None = None) -> None:
        """Start at η = ``mean`` [P] and τ = ``std``, one number or [P].

        Raises:
            InputError: if a τ is not positive, or there is not one for each parameter.
        """
        super().__init__()
        std = torch.as_tensor(std, dtype=mean.dtype)
        if std.shape not in ((), mean.shape) or not bool((std > 0).all()):
            raise checks.InputError(
                f"Positive standard deviations τ were expected, one or {mean.numel()} of them, but came {std.tolist()}; give one "
                "number above 0."
            )
        self.mean = Broadcast(mean.detach().clone())
        self.log_std = Broadcast(std.log() + torch.zeros_like(mean))
        self.controller = controller

    def forward(self, obs: Tensor) -> Distribution:
        """Return the distribution over θ for each row of ``obs`` [n, ...]."""
        return Independent(Normal(self.mean(obs), self.log_std(obs).exp(), validate_args=False), 1, validate_args=False)

    def extra_repr(self) -> str:
        """Say how many parameters are explored."""
        return f"parameters={self.mean.value.numel()}"
