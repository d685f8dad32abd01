"""Exact values, J and ∇J of a linear policy with Gaussian noise on a linear-quadratic-Gaussian system.

With x = (s, a), F = [A B] and V_t(s) = sᵀ P_t s + p_tᵀ s + v_t, V_H = 0, the Riccati-type recursion of a *fixed* policy is

    Q_t(s, a) = xᵀ N_t x + n_tᵀ x + c_t,   N_t = −diag(Q, R) + γ Fᵀ P_{t+1} F,   n_t = γ Fᵀ p_{t+1},
    c_t = γ (v_{t+1} + tr P_{t+1} Σ_ω),    V_t(s) = E[Q_t(s, a)], a = W s + b + σ ε.

Source: Optimal Control: Linear Quadratic Methods (Anderson and Moore, 1990); the gradient by the policy gradient theorem
(Sutton, McAllester, Singh, Mansour, 2000).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from varlab import checks
from varlab.envs.lqg import LQG, LinearQuadratic
from varlab.policies.base import parameters
from varlab.policies.networks import Linear
from varlab.types import Trajectories, Values
from varlab.values.functions import at_nodes, slope_at_mean

#: Name of a parameter of :class:`~varlab.policies.Linear` → what it is here.
PARTS = {"net.weight": "weight", "net.bias": "bias", "log_std.value": "log_std"}


@dataclass(frozen=True)
class GaussianPolicy:
    """π(a | s) = N(W s + b, diag σ²).

    Attributes:
        weight: [D, S] W.
        bias: [D] b.
        log_std: [D] log σ.
        free: names of the parts that are in θ, in θ's order; the others are frozen.
    """

    weight: Tensor
    bias: Tensor
    log_std: Tensor
    free: tuple[str, ...] = ("weight", "bias", "log_std")

    @classmethod
    def of(cls, policy: nn.Module) -> GaussianPolicy:
        """Read a linear policy in float64; gradients flow to its parameters.

        Args:
            policy: a :class:`~varlab.policies.Linear` on continuous actions.

        Returns:
            Its matrices.

        Raises:
            InputError: for any other policy.
        """
        if type(policy) is not Linear or policy.discrete:
            raise checks.InputError(
                f"A varlab.policies.Linear policy with continuous actions was expected on a linear system, but came "
                f"{type(policy).__name__}; exact values exist only where the mean action is linear in the state."
            )
        parts = {PARTS[name]: p.double() for name, p in policy.named_parameters()}
        return cls(**parts, free=tuple(PARTS[name] for name in parameters(policy)))

    def closed_loop(self) -> tuple[Tensor, Tensor]:
        """Return M [S + D, S] and m [S + D] with E[(s, a) | s] = M s + m."""
        states = self.weight.shape[1]
        eye = torch.eye(states, dtype=self.weight.dtype, device=self.weight.device)
        return torch.cat([eye, self.weight]), torch.cat([self.bias.new_zeros(states), self.bias])


def system_of(env: object) -> tuple[LinearQuadratic, int]:
    """Return the linear system and the horizon of an environment.

    Raises:
        InputError: if it is not a plain linear system.
    """
    if not isinstance(env, LQG) or env.system is None or env.identity.get("continuation", 1.0) != 1.0:
        raise checks.InputError(
            f"A linear-quadratic-Gaussian environment without random termination was expected, but came "
            f"{getattr(env, 'name', env)!r}; make one by varlab.envs.lqg.environment and discount by gamma."
        )
    return env.system, env.horizon


@dataclass(frozen=True)
class QuadraticValues:
    """V_t(s) = sᵀ P_t s + p_tᵀ s + v_t and Q_t(s, a) = xᵀ N_t x + n_tᵀ x + c_t with x = (s, a); a source of values.

    Attributes:
        v_hessian: [H + 1, S, S] P_t.
        v_slope: [H + 1, S] p_t.
        v_constant: [H + 1] v_t.
        q_hessian: [H, S + D, S + D] N_t.
        q_slope: [H, S + D] n_t.
        q_constant: [H] c_t.
        source: name that the rows carry.
        steps: environment steps spent.
    """

    v_hessian: Tensor
    v_slope: Tensor
    v_constant: Tensor
    q_hessian: Tensor
    q_slope: Tensor
    q_constant: Tensor
    source: str = "exact"
    steps: int = 0

    @classmethod
    def of(cls, env: LQG, policy: nn.Module, gamma: float) -> QuadraticValues:
        """Return the exact values of ``policy``."""
        system, horizon = system_of(env)
        with torch.no_grad():
            return evaluate(system, GaussianPolicy.of(policy), gamma, horizon)

    def to(self, device: torch.device) -> QuadraticValues:
        """Return the same values on ``device``."""
        return replace(self, **{name: x.to(device) for name, x in vars(self).items() if isinstance(x, Tensor)})

    def v(self, state: Tensor, t: Tensor) -> Tensor:
        """Return V_t(s) [m] for states [m, S] at times [m]."""
        return _quadratic(state.double(), t, self.v_hessian, self.v_slope, self.v_constant)

    def q(self, state: Tensor, action: Tensor, t: Tensor) -> Tensor:
        """Return Q_t(s, a) [m] for states [m, S] and actions [m, D] at times [m]."""
        x = torch.cat([state.double(), action.double()], -1)
        return _quadratic(x, t, self.q_hessian, self.q_slope, self.q_constant)

    def __call__(self, traj: Trajectories, need: frozenset[str]) -> Values:
        """Evaluate at the visited steps.

        Args:
            traj: trajectories of the same system.
            need: which of ``v``, ``q``, ``q_nodes`` and ``q_slope`` are wanted.

        Returns:
            Values at every step.
        """
        return Values(
            v=self.v(traj.obs, traj.time) if "v" in need else None,
            v_last=self.v(traj.last_obs, traj.length) if "v" in need else None,
            v_stale=self.v(traj.obs[traj.last_row], traj.length) if "v" in need else None,
            q=self.q(traj.obs, traj.action, traj.time) if "q" in need else None,
            q_nodes=at_nodes(self.q, traj) if "q_nodes" in need else None,
            q_slope=slope_at_mean(self.q, traj, self.source) if "q_slope" in need else None,
            source=self.source,
            steps=self.steps,
        )


def values_on(env: LQG, policy: nn.Module, gamma: float, values: QuadraticValues | None = None) -> QuadraticValues:
    """Return the values that an estimator looks up: those given, or the policy's own.

    Args:
        env: the linear system.
        policy: in float64.
        gamma: γ.
        values: right or wrong ones, or None.

    Returns:
        The values.

    Raises:
        InputError: if they are for another horizon.
    """
    known = QuadraticValues.of(env, policy, gamma) if values is None else values
    if known.q_hessian.shape[0] != env.horizon:
        raise checks.InputError(
            f"Values for horizon {env.horizon} were expected for {env.name}, but they are for {known.q_hessian.shape[0]}; "
            "evaluate them on this environment."
        )
    return known


def _quadratic(x: Tensor, t: Tensor, hessian: Tensor, slope: Tensor, constant: Tensor) -> Tensor:
    """Return xᵀ N_t x + n_tᵀ x + c_t, row by row; the rows of one time together, so that no matrix is copied for each row."""
    order = torch.argsort(t, stable=True)
    parts = x[order].split(torch.bincount(t, minlength=len(hessian)).tolist())
    made = [((y @ n2 + n1) * y).sum(-1) + n0 for y, n2, n1, n0 in zip(parts, hessian, slope, constant, strict=True)]
    return torch.cat(made)[torch.argsort(order)]


def evaluate(system: LinearQuadratic, policy: GaussianPolicy, gamma: float, horizon: int) -> QuadraticValues:
    """Return time-indexed values by backward recursion, differentiable in the policy's matrices.

    Args:
        system: the dynamics.
        policy: the policy.
        gamma: discount γ.
        horizon: H.

    Returns:
        V_t and Q_t.
    """
    f = torch.cat([system.a, system.b], 1)
    paid = -torch.block_diag(system.state_cost, system.action_cost)
    loop, offset = policy.closed_loop()
    variance = torch.cat([offset.new_zeros(system.state_dim), (2 * policy.log_std).exp()])
    v = [(paid.new_zeros(system.state_dim, system.state_dim), paid.new_zeros(system.state_dim), paid.new_zeros(()))]
    q = []
    for _ in range(horizon):
        p2, p1, p0 = v[-1]
        n2, n1, n0 = paid + gamma * f.T @ p2 @ f, gamma * f.T @ p1, gamma * (p0 + (p2 * system.noise).sum())
        q.append((n2, n1, n0))
        level = offset @ n2 @ offset + n1 @ offset + n0 + (n2.diagonal() * variance).sum()
        v.append((loop.T @ n2 @ loop, loop.T @ (2 * n2 @ offset + n1), level))
    stacked = [torch.stack(x) for x in (*zip(*v[::-1], strict=True), *zip(*q[::-1], strict=True))]
    return QuadraticValues(*stacked)


def expected_return(env: LQG, policy: nn.Module, gamma: float) -> Tensor:
    """Return J_γ = E Σ_{t<H} γ^t r_t = E V_0(s_0), differentiable in θ through the recursion."""
    system, horizon = system_of(env)
    return _start(evaluate(system, GaussianPolicy.of(policy), gamma, horizon), system)


def _start(values: QuadraticValues, system: LinearQuadratic) -> Tensor:
    mean, p2 = system.initial_mean, values.v_hessian[0]
    return mean @ p2 @ mean + (p2 * system.initial_covariance).sum() + values.v_slope[0] @ mean + values.v_constant[0]


@torch.no_grad()
def gradient(env: LQG, policy: nn.Module, gamma: float) -> tuple[Tensor, float]:
    """Return the exact policy gradient: the mean and covariance of s_t forwards, Q_t backwards.

    With E ∂Q_t/∂a = G_t s + g_t given s, ∇_W J = Σ γ^t (G_t E[s sᵀ] + g_t E[s]ᵀ), ∇_b J = Σ γ^t (G_t E[s] + g_t) and
    ∂J/∂ log σ_j = Σ γ^t 2 σ_j² (N_t)_{a_j a_j}.

    Args:
        env: the linear system.
        policy: a linear Gaussian policy.
        gamma: discount γ, also the weight γ^t of step t.

    Returns:
        ∇J_γ [P] float64 in θ's order, frozen parameters left out, and J_γ.
    """
    system, horizon = system_of(env)
    pi = GaussianPolicy.of(policy)
    values = evaluate(system, pi, gamma, horizon)
    states, variance = system.state_dim, (2 * pi.log_std).exp()
    total = {"weight": torch.zeros_like(pi.weight), "bias": torch.zeros_like(pi.bias), "log_std": torch.zeros_like(pi.bias)}
    mean, covariance = system.initial_mean, system.initial_covariance
    loop = system.a + system.b @ pi.weight
    for t in range(horizon):
        rows = values.q_hessian[t][states:]
        slope = 2 * (rows[:, :states] + rows[:, states:] @ pi.weight)
        level = 2 * rows[:, states:] @ pi.bias + values.q_slope[t][states:]
        w = gamma**t
        total["weight"] += w * (slope @ (covariance + torch.outer(mean, mean)) + torch.outer(level, mean))
        total["bias"] += w * (slope @ mean + level)
        total["log_std"] += w * 2 * variance * rows[:, states:].diagonal()
        mean = loop @ mean + system.b @ pi.bias
        covariance = loop @ covariance @ loop.T + system.b @ torch.diag(variance) @ system.b.T + system.noise
    return torch.cat([total[name].reshape(-1) for name in pi.free]), float(_start(values, system))
