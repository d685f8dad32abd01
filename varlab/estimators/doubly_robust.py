"""The trajectory-wise control variate together with the derivative of a model's action values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from varlab import checks
from varlab.envs.base import Environment
from varlab.envs.finite import FiniteMDP
from varlab.estimators.base import Batch, register
from varlab.estimators.control_variates import trajectory_residual
from varlab.estimators.nodes import DEFAULT, StateEstimator
from varlab.values.dynamic_programming import policy_table
from varlab.values.model_gradients import ModelGradients

#: Most numbers H (S A)² of a model's derivatives.
LARGEST = 2**27


@register
@dataclass(frozen=True)
class DoublyRobust(StateEstimator):
    """Φ_t of trajectory_control_variate with ψ_tj = Q̂_t, and Σ_t w_t (E_a[∇Q̂_t(s_t, a)] − ∇Q̂_t(s_t, a_t)), ∇ that in θ.

    It is the derivative at θ' = θ of the doubly robust estimate V_t = V̂_t + ρ_t (r_t + γ V_{t+1} − Q̂_t), with ρ_t = π'(a_t |
    s_t) / π(a_t | s_t), E_π' V_0 = J(θ'), and Q̂ the action values of π' in a model of the world. Both terms have mean zero
    whatever the model. With the true model and w_t = γ^t no randomness of the actions is left: g = ∇V_0(s_0) + Σ_t γ^t (Z_t ξ_t +
    η_t) with Z_t = z_0 + … + z_t and what the transition brings, ξ_t = r_t + γ V_{t+1} − Q_t and η_t = γ ∇V_{t+1} − ∇Q_t. Source:
    From Importance Sampling to Doubly Robust Policy Gradient (Huang and Jiang, 2020).

    Attributes:
        error: how far the model's reward for each state and action is off: by +error where s + a is even, else by −error.
        model: the bound model.
    """

    nodes: int = field(default=DEFAULT, init=False, repr=False)
    error: float = 0.0
    model: Model | None = field(default=None, repr=False, compare=False)
    name = "doubly_robust"
    formula = "trajectory_control_variate + E_a[∇Q̂_t(s_t, a)] − ∇Q̂_t(s_t, a_t)"
    source = "From Importance Sampling to Doubly Robust Policy Gradient (Huang and Jiang, 2020)"

    def __post_init__(self) -> None:
        """Check the error."""
        object.__setattr__(self, "error", checks.in_range("error of doubly_robust", self.error, 0.0, 1e6))

    def count(self, env: Environment) -> int:
        """Return A.

        Raises:
            InputError: for a world without finite dynamics.
        """
        if env.finite is None:
            raise checks.InputError(
                f"A finite MDP was expected for {self.label}, because it differentiates a model, but {env.name} has no outcome "
                "lists; name trajectory_control_variate."
            )
        return super().count(env)

    def bind(self, env: Environment, policy: nn.Module) -> DoublyRobust:
        """Return it with a model of the world at θ.

        Raises:
            InputError: for a world without finite dynamics, or one too large.
        """
        self.count(env)
        mdp = env.finite
        size = env.horizon * (mdp.num_states * mdp.num_actions) ** 2
        if size > LARGEST:
            raise checks.InputError(
                f"H (S A)² of at most {LARGEST:.0e} was expected for {self.label}, but {env.name} has {size:.1e}; name "
                "trajectory_control_variate, or shorten the horizon."
            )
        with torch.no_grad():
            pi = policy_table(policy, mdp)
        parity = (torch.arange(mdp.num_states)[:, None] + torch.arange(mdp.num_actions)) % 2
        wrong = replace(mdp, reward=mdp.reward + self.error * (1 - 2 * parity.double()).unsqueeze(2))
        return replace(self, model=Model(wrong, pi, env.horizon))

    @property
    def states(self) -> Tensor:
        """[S, ...] what is seen in each state."""
        model = self._bound()
        return model.mdp.seen.to(model.pi.device)

    def phi(self, batch: Batch) -> Tensor:
        """Return the part of the return that Q̂ does not foresee, [M]."""
        return trajectory_residual(batch, self.node_phi(batch))

    def node_phi(self, batch: Batch) -> Tensor:
        """Return Q̂_t(s_t, a_tj), [M, J]."""
        q = self._bound().at(batch.gamma).q
        return q[batch.traj.time, batch.traj.state]

    def state_phi(self, batch: Batch, weight: Tensor) -> Tensor:
        """Return the coefficients of Σ_t w_t (E_a[∇Q̂_t(s_t, a)] − ∇Q̂_t(s_t, a_t)) for w_t [M], [N, S, A]."""
        model, traj = self._bound(), batch.traj
        c = model.at(batch.gamma).coefficients
        mean = (model.pi.unsqueeze(2) * c).sum(2)  # [H, S, S·A]
        each = mean[traj.time, traj.state] - c[traj.time, traj.state, traj.action]
        out = each.new_zeros(len(traj), each.shape[1]).index_add_(0, traj.episode, each * weight.unsqueeze(1))
        return out.unflatten(1, model.pi.shape)

    def _bound(self) -> Model:
        if self.model is None:
            raise checks.InputError(
                f"A world was expected for {self.label}, but it was not bound to one; call its bind(env, policy) first."
            )
        return self.model


class Model:
    """A finite model at one θ; values and derivatives for a discount are computed once."""

    def __init__(self, mdp: FiniteMDP, pi: Tensor, horizon: int) -> None:
        """Keep the model, π(a | s) [S, A] and H."""
        self.mdp, self.pi, self.horizon = mdp, pi, horizon
        self._made: dict[float, ModelGradients] = {}

    def at(self, gamma: float) -> ModelGradients:
        """Return values and derivatives for discount γ."""
        if gamma not in self._made:
            self._made[gamma] = ModelGradients.of(self.mdp, self.pi, gamma, self.horizon)
        return self._made[gamma]
