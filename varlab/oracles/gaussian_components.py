"""Exact variance components of every time step on a linear-quadratic-Gaussian system: state, action, trajectory.

For the term g_t = w_t z_t Φ_t of one step the parts are those of :mod:`varlab.oracles.components`. With x = (s, a) and a linear
policy, M_t(x) = E[Φ_t | x_t = x] and R_t(x) = Var[Φ_t | x_t = x] are quadratic in x, and follow backwards in time: where
Φ_t = h_t(x_t) + Y, E[Y | x_{t+1}] = K(x_{t+1}) and x_{t+1} | x_t ~ N(μ(x_t), Σ),

    M_t = h_t + K(μ) + tr K Σ,    R_t = 2 tr (K Σ)² + (2 K μ + k)ᵀ Σ (2 K μ + k) + c² E[R_{t+1} | x_t],

c = γ for returns and γλ for GAE. What is left is moments of two affine and two quadratic forms in the few Gaussian numbers that
make s_t and a_t: exact, in T (S + D)³ operations, at any horizon.

Source of the parts: The Mirage of Action-Dependent Baselines in Reinforcement Learning (Tucker, Bhupatiraju, Gu, Turner,
Ghahramani, Levine, 2018), where S_s is exact and the others are sampled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from varlab import checks, estimators, policies
from varlab.envs.lqg import LQG, LinearQuadratic, root
from varlab.estimators.base import Estimator
from varlab.oracles import gaussian
from varlab.oracles.components import Components
from varlab.oracles.quadratic_forms import Forms, Scores, covariance, square_products, variance
from varlab.values.linear_quadratic import GaussianPolicy, QuadraticValues, system_of, values_on

#: Φ → (whether it sums temporal differences, whether V is subtracted at the end).
RETURNS = {
    "reward_to_go": (False, False), "value_baseline": (False, True), "td_residual": (True, False), "gae": (True, False),
    "q_value": (False, False), "advantage": (False, True), "state_action_control_variate": (False, False),
    "factorised_baseline": (False, False),
}  # fmt: skip


@dataclass(frozen=True)
class Quadratic:
    """T functions xᵀ A_t x + b_tᵀ x + c_t: ``a`` [T, d, d] symmetric, ``b`` [T, d], ``c`` [T]."""

    a: Tensor
    b: Tensor
    c: Tensor

    @classmethod
    def zero(cls, *shape: int) -> Quadratic:
        """Return ``shape[:-1]`` zero functions of ``shape[-1]`` variables."""
        made = torch.zeros(*shape, dtype=torch.float64)
        return cls(torch.zeros(*shape, shape[-1], dtype=torch.float64), made, made.sum(-1))

    def __add__(self, other: Quadratic) -> Quadratic:
        """Return the sums."""
        return Quadratic(self.a + other.a, self.b + other.b, self.c + other.c)

    def scaled(self, factor: float) -> Quadratic:
        """Return ``factor`` times each."""
        return Quadratic(factor * self.a, factor * self.b, factor * self.c)

    def at(self, t: int) -> Quadratic:
        """Return function t alone."""
        return Quadratic(self.a[t], self.b[t], self.c[t])

    def of_affine(self, slope: Tensor, level: Tensor) -> Quadratic:
        """Return the functions of y with x = slope y + level, [..., d, e] and [..., d]."""
        inner = torch.einsum("...ij,...j->...i", self.a, level)
        a = slope.mT @ self.a @ slope
        b = torch.einsum("...de,...d->...e", slope, 2 * inner + self.b)
        return Quadratic((a + a.mT) / 2, b, ((inner + self.b) * level).sum(-1) + self.c)

    def ahead(self, slope: Tensor, level: Tensor, sigma: Tensor) -> Quadratic:
        """Return E f(x') given x, x' ~ N(slope x + level, sigma)."""
        made = self.of_affine(slope, level)
        return Quadratic(made.a, made.b, made.c + (self.a * sigma).sum((-2, -1)))

    def spread(self, slope: Tensor, level: Tensor, sigma: Tensor) -> Quadratic:
        """Return Var f(x') given x, x' ~ N(slope x + level, sigma)."""
        g, g0 = 2 * self.a @ slope, 2 * self.a @ level + self.b
        noise = self.a @ sigma
        return Quadratic(g.mT @ sigma @ g, 2 * g.mT @ sigma @ g0, g0 @ sigma @ g0 + 2 * (noise * noise.mT).sum())


@dataclass(frozen=True)
class _Setting:
    """What the recursions read."""

    system: LinearQuadratic
    policy: GaussianPolicy
    values: QuadraticValues
    gamma: float
    horizon: int

    @property
    def reward(self) -> Quadratic:
        """r(x)."""
        cost = torch.block_diag(self.system.state_cost, self.system.action_cost)
        return Quadratic(-cost, cost.new_zeros(len(cost)), cost.new_zeros(()))

    @property
    def v(self) -> Quadratic:
        """[H + 1] V_t(s) as functions of x; V_H = 0."""
        known, d = self.values, self.system.action_dim
        a = nn.functional.pad(known.v_hessian, (0, d, 0, d)).clone()
        b, c = nn.functional.pad(known.v_slope, (0, d)).clone(), known.v_constant.clone()
        a[-1], b[-1], c[-1] = 0.0, 0.0, 0.0
        return Quadratic(a, b, c)

    @property
    def q(self) -> Quadratic:
        """[H] Q_t(x)."""
        return Quadratic(self.values.q_hessian, self.values.q_slope, self.values.q_constant)

    @property
    def step(self) -> tuple[Tensor, Tensor, Tensor]:
        """Slope, level and covariance of x_{t+1} given x_t."""
        loop, offset = self.policy.closed_loop()
        f = torch.cat([self.system.a, self.system.b], 1)
        variance = torch.cat([offset.new_zeros(self.system.state_dim), (2 * self.policy.log_std).exp()])
        return loop @ f, offset, loop @ self.system.noise @ loop.T + torch.diag(variance)

    def states(self) -> tuple[Tensor, Tensor]:
        """Return mean [H, S] and a root [H, S, S] of the covariance of s_t."""
        mean, cov = self.system.initial_mean, self.system.initial_covariance
        loop, d = self.system.a + self.system.b @ self.policy.weight, self.system.b
        driven = d @ torch.diag((2 * self.policy.log_std).exp()) @ d.T + self.system.noise
        means, roots = [], []
        for _ in range(self.horizon):
            r = root("covariance of the state", (cov + cov.T) / 2)
            means.append(mean)
            roots.append(nn.functional.pad(r, (0, len(mean) - r.shape[1])))
            mean, cov = loop @ mean + d @ self.policy.bias, loop @ cov @ loop.T + driven
        return torch.stack(means), torch.stack(roots)

    def returns(self, td: bool, carry: float) -> tuple[Quadratic, Quadratic]:
        """Return M_t and R_t of Φ_t = Σ_l carry^l x_{t+l}, x_t = r_t or δ_t."""
        slope, level, sigma = self.step
        size = len(level)
        m, r, v = Quadratic.zero(size), Quadratic.zero(size), self.v
        means, rests = [], []
        for t in range(self.horizon - 1, -1, -1):
            k = m.scaled(carry)
            if td:
                k = k + v.at(t + 1).scaled(self.gamma)
            m = self.reward + k.ahead(slope, level, sigma)
            r = k.spread(slope, level, sigma) + r.ahead(slope, level, sigma).scaled(carry**2)
            if td:
                m = m + v.at(t).scaled(-1.0)
            means.append(m)
            rests.append(r)
        return _stack(means[::-1]), _stack(rests[::-1])


def _stack(made: list[Quadratic]) -> Quadratic:
    return Quadratic(*(torch.stack([getattr(x, name) for x in made]) for name in ("a", "b", "c")))


@torch.no_grad()
def gaussian_components(
    env: LQG,
    policy: nn.Module,
    phi: str | Estimator,
    *,
    gamma: float = 1.0,
    discount_weighting: bool = True,
    values: QuadraticValues | None = None,
    cross: bool = False,
) -> Components:
    """Return the exact parts of the variance of each step's term, summed over the entries of θ.

    Args:
        env: a linear system; sampling goes on to the horizon.
        policy: a :class:`~varlab.policies.Linear` policy; evaluated in float64.
        phi: a name or an object among :data:`RETURNS`. The averages over actions of ``state_action_control_variate`` and
            ``factorised_baseline`` are taken exactly, whatever nodes they name.
        gamma: discount γ.
        discount_weighting: whether step t is weighted by γ^t.
        values: quadratic V_t and Q_t, right or wrong; exact ones if None.
        cross: whether to add the covariances across time, at H² n² P operations with n = H (S + D); they are NaN otherwise.

    Returns:
        The components, T = H steps.

    Raises:
        InputError: for another kind of world, policy or Φ.
    """
    system, horizon = system_of(env)
    chosen = estimators.resolve(phi)
    checks.in_range("gamma", gamma, 0.0, 1.0)
    if len(chosen) != 1 or chosen[0].name not in RETURNS:
        raise checks.InputError(
            f"One Φ out of {', '.join(RETURNS)} was expected for exact components on {env.name}, but came "
            f"{', '.join(e.label for e in chosen)}; call once for each of these, or estimate by sampling."
        )
    double = policies.prepare(policy, torch.float64, torch.device("cpu"))
    known = values_on(env, double, gamma, values)
    e, setting = chosen[0], _Setting(system, GaussianPolicy.of(double), known, gamma, horizon)
    weight = (gamma if discount_weighting and e.weighted else 1.0) ** np.arange(horizon)
    state, action, trajectory = (weight**2 * x.numpy() for x in _parts(setting, e))
    between = np.full((horizon, horizon), np.nan)
    if cross:
        between = _cross(setting, e) * np.outer(weight, weight)
        np.fill_diagonal(between, 0.0)
    return Components(e.label, state, action, trajectory, between)


def _parts(setting: _Setting, e: Estimator) -> tuple[Tensor, Tensor, Tensor]:
    """Return the three parts [H], summed over θ."""
    td, minus_v = RETURNS[e.name]
    mean, rest = setting.returns(td, setting.gamma * (e.lam if e.name == "gae" else 0.0 if e.name == "td_residual" else 1.0))
    if e.name in ("q_value", "advantage"):
        mean, rest = setting.q, setting.q.scaled(0.0)
    if minus_v:
        mean = mean + Quadratic(*(x[:-1] for x in vars(setting.v).values())).scaled(-1.0)
    # In y = (standardised state, ε): x = slope y + level.
    states, policy = setting.system.state_dim, setting.policy
    m, roots = setting.states()
    loop, offset = policy.closed_loop()
    noise = torch.cat([torch.zeros(states, len(policy.bias), dtype=torch.float64), torch.diag(policy.log_std.exp())])
    slope = torch.cat([loop @ roots, noise.expand(len(m), -1, -1)], 2)
    level = m @ loop.T + offset
    full, rest = mean.of_affine(slope, level), Forms(*vars(rest.of_affine(slope, level)).values())
    total = torch.zeros(3, len(m), dtype=torch.float64)
    for part, dim, z in _scores(policy, m, roots):
        left = full + _baseline(setting, e, dim, slope, level).scaled(-1.0)
        own, noise_left = variance(z, Forms(left.a, left.b, left.c)), square_products(z, rest)
        given = [_given_state(z, f, states, dim) if part != "log_std" else torch.zeros(len(m)) for f in (full, left)]
        total += torch.stack([given[0], own - given[1], noise_left])
    return tuple(total)


def _scores(policy: GaussianPolicy, mean: Tensor, roots: Tensor) -> Iterator[tuple[str, int, Scores]]:
    """Yield, for each entry of θ, its kind, the action dimension that it belongs to and its scores in y at every step."""
    horizon, states = mean.shape
    size, scale = states + len(policy.bias), policy.log_std.exp()
    eye, one = torch.eye(size, dtype=torch.float64), torch.ones(horizon, dtype=torch.float64)
    for part in policy.free:
        for j in range(len(scale)):
            e = eye[states + j].expand(horizon, size)
            if part == "weight":
                for i in range(states):
                    yield part, j, Scores(e / scale[j], nn.functional.pad(roots[:, i], (0, len(scale))), mean[:, i])
            elif part == "bias":
                yield part, j, Scores(e / scale[j], 0 * e, one)
            else:
                yield part, j, Scores(e, e, 0 * one)


def _baseline(setting: _Setting, e: Estimator, dim: int, slope: Tensor, level: Tensor) -> Quadratic:
    """Return what is taken from Φ_t and does not act through its mean over actions: Q itself, or its mean over a_dim."""
    q = setting.q.of_affine(slope, level)
    if e.name == "state_action_control_variate":
        return q
    if e.name != "factorised_baseline":
        return q.scaled(0.0)
    i = setting.system.state_dim + dim
    keep = torch.ones(q.b.shape[1], dtype=torch.float64)
    keep[i] = 0.0
    # E over ε_dim with weight 1, or ε_dim² for the optimal form: E ε² · ε² = 3.
    moment = 3.0 if e.of == "optimal" else 1.0
    return Quadratic(q.a * torch.outer(keep, keep), q.b * keep, q.c + moment * q.a[:, i, i])


def _given_state(z: Scores, f: Quadratic, states: int, dim: int) -> Tensor:
    """Return Var E[z_t f | s_t] [H] for weights and biases, the product of two affine functions of s_t.

    (For log σ it is 0: E[(ε² − 1) f | s_t] = 2 f_εε whatever s_t is.)
    """
    i, scale = states + dim, z.e[:, states + dim]
    u, u0 = 2 * scale[:, None] * f.a[:, i, :states], scale * f.b[:, i]
    v, v0 = z.f[:, :states], z.h
    uu, vv, uv = (u * u).sum(1), (v * v).sum(1), (u * v).sum(1)
    return u0**2 * vv + v0**2 * uu + 2 * u0 * v0 * uv + uu * vv + uv**2


def _cross(setting: _Setting, e: Estimator) -> np.ndarray:
    """Return tr Cov(z_t Φ_t, z_u Φ_u) for all t and u by the joint cumulants of the whole trajectory."""
    if e.name not in gaussian.PHI:
        raise checks.InputError(
            f"A Φ out of {', '.join(n for n in RETURNS if n in gaussian.PHI)} was expected for covariances across time, but came "
            f"{e.label}; leave cross=True out."
        )
    s = setting
    whole = gaussian.GaussianTrajectory.of(s.system, s.policy, s.horizon, s.values, s.gamma)
    forms = gaussian.PHI[e.name](e, whole)
    return sum(covariance(z, forms) for z in whole.scores()).numpy()
