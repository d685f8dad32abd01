"""Exact mean and variance of policy-gradient estimators on linear-quadratic-Gaussian systems, without sampling.

Under a ~ N(W s + b, diag σ²) every state and action is affine in one standard normal vector ξ: start, action noise, system
noise. Rewards, exact (or any quadratic) values, and with them every Φ of the source text, are quadratic forms in ξ. A score is a
product of two affine forms: ε_j s_i / σ_j for W_ji, ε_j / σ_j for b_j, ε_j² − 1 for log σ_j. The variance of Σ_t w_t z_t Φ_t is
then a sum of joint cumulants of four quadratic forms (:mod:`varlab.oracles.quadratic_forms`): moments up to order eight, exactly.

The noise-to-signal ratio without approximation: Non-Uniform Noise-to-Signal Ratio in the REINFORCE Policy-Gradient Estimator (Han
and Yang, 2026), which does it for the total return; the route through cumulants serves every Φ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from varlab import checks, estimators, policies
from varlab.envs.lqg import LQG, LinearQuadratic, root
from varlab.estimators.base import Estimator
from varlab.estimators.step_baselines import StepBaseline
from varlab.oracles.exact import ExactMoments
from varlab.oracles.quadratic_forms import Forms, Scores, baseline_products, covariance, mean_products
from varlab.values.linear_quadratic import GaussianPolicy, QuadraticValues, gradient, system_of, values_on


@dataclass(frozen=True)
class GaussianTrajectory:
    """A trajectory of H steps as affine functions of ξ ~ N(0, I_n), with values to look up.

    Attributes:
        policy: W, b, log σ.
        state: [H, S, n] and ``state_mean`` [H, S]: s_t = state ξ + state_mean.
        state_mean: [H, S].
        action: [H, D, n] and ``action_mean`` [H, D].
        action_mean: [H, D].
        noise: [H, D, n] rows that pick ε_t out of ξ.
        system: the dynamics.
        values: V_t and Q_t, right or wrong.
        gamma: γ.
    """

    policy: GaussianPolicy
    state: Tensor
    state_mean: Tensor
    action: Tensor
    action_mean: Tensor
    noise: Tensor
    system: LinearQuadratic
    values: QuadraticValues
    gamma: float

    @classmethod
    def of(
        cls, system: LinearQuadratic, policy: GaussianPolicy, horizon: int, values: QuadraticValues, gamma: float
    ) -> GaussianTrajectory:
        """Unroll the system.

        Args:
            system: the dynamics.
            policy: the policy.
            horizon: H.
            values: V_t and Q_t.
            gamma: γ.

        Returns:
            The trajectory; ξ holds the start, then action noise and system noise of each step (the last step has no system
            noise: the objective ends before it is seen).
        """
        start, push = root("initial_covariance", system.initial_covariance), root("noise", system.noise)
        d, first, drawn = system.action_dim, start.shape[1], push.shape[1]
        size = first + horizon * d + (horizon - 1) * drawn
        eye = torch.eye(size, dtype=torch.float64)
        state, mean = start @ eye[:first], system.initial_mean
        rows: dict[str, list[Tensor]] = {k: [] for k in ("state", "state_mean", "action", "action_mean", "noise")}
        at = first
        for _ in range(horizon):
            noise = eye[at : at + d]
            action = policy.weight @ state + policy.log_std.exp()[:, None] * noise
            action_mean = policy.weight @ mean + policy.bias
            for name, x in zip(rows, (state, mean, action, action_mean, noise), strict=True):
                rows[name].append(x)
            at += d
            state, mean = system.a @ state + system.b @ action, system.a @ mean + system.b @ action_mean
            if at < size:
                state = state + push @ eye[at : at + drawn]
                at += drawn
        return cls(policy, **{k: torch.stack(x) for k, x in rows.items()}, system=system, values=values, gamma=gamma)

    def _form(self, joint: bool, hessian: Tensor, slope: Tensor, constant: Tensor) -> Forms:
        """Return xᵀ N_t x + n_tᵀ x + c_t as forms in ξ, with x = (s_t, a_t) if ``joint``, else s_t."""
        x = torch.cat([self.state, self.action], 1) if joint else self.state
        mean = torch.cat([self.state_mean, self.action_mean], 1) if joint else self.state_mean
        inner = torch.einsum("tij,tj->ti", hessian, mean)
        a = x.transpose(1, 2) @ hessian @ x
        b = torch.einsum("tin,ti->tn", x, 2 * inner + slope)
        c = (mean * inner).sum(-1) + (mean * slope).sum(-1) + constant
        return Forms((a + a.transpose(1, 2)) / 2, b, c)

    @property
    def reward(self) -> Forms:
        """r_t."""
        cost = torch.block_diag(self.system.state_cost, self.system.action_cost)
        horizon, size = len(self.state), len(cost)
        zero = cost.new_zeros(horizon)
        return self._form(True, -cost.expand(horizon, size, size), zero[:, None].expand(horizon, size), zero)

    @property
    def v(self) -> Forms:
        """V_t(s_t)."""
        known = self.values
        return self._form(False, known.v_hessian[:-1], known.v_slope[:-1], known.v_constant[:-1])

    @property
    def q(self) -> Forms:
        """Q_t(s_t, a_t)."""
        return self._form(True, self.values.q_hessian, self.values.q_slope, self.values.q_constant)

    @property
    def reward_to_go(self) -> Forms:
        """G_t."""
        return self.reward.discounted(self.gamma)

    @property
    def td_residual(self) -> Forms:
        """δ_t, with V_H = 0 whatever the values say."""
        v = self.v
        later = v.ahead()
        return self.reward + Forms(self.gamma * later.a, self.gamma * later.b, self.gamma * later.c) - v

    def scores(self) -> Iterator[Scores]:
        """Yield the scores of each entry of θ, in θ's order."""
        horizon, size = len(self.state), self.state.shape[2]
        scale = self.policy.log_std.exp()
        nothing, one = torch.zeros(horizon, size, dtype=torch.float64), torch.ones(horizon, dtype=torch.float64)
        for part in self.policy.free:
            for j in range(len(scale)):
                noise = self.noise[:, j]
                if part == "weight":
                    for i in range(self.state.shape[1]):
                        yield Scores(noise / scale[j], self.state[:, i], self.state_mean[:, i])
                elif part == "bias":
                    yield Scores(noise / scale[j], nothing, one)
                else:
                    yield Scores(noise, noise, 0 * one)


def _fitted(number: object, population: Tensor) -> Tensor:
    """Return a baseline that was fitted on data, else its population value."""
    return population if number is None else torch.as_tensor(number, dtype=torch.float64)


def _constant(e: Estimator, x: GaussianTrajectory) -> Forms:
    g = x.reward_to_go
    return g.shifted(-_fitted(e.fitted, g.mean.mean()))


def _time(e: Estimator, x: GaussianTrajectory) -> Forms:
    g = x.reward_to_go
    return g.shifted(-_fitted(e.fitted, g.mean))


#: Name of a Φ → its T quadratic forms. Every episode has H steps, so that means over steps are plain means.
PHI: dict[str, Callable[[Estimator, GaussianTrajectory], Forms]] = {
    "total_return": lambda e, x: x.reward_to_go.repeat_first(),
    "reward_to_go": lambda e, x: x.reward_to_go,
    "constant_baseline": _constant,
    "time_baseline": _time,
    "value_baseline": lambda e, x: x.reward_to_go - x.v,
    "q_value": lambda e, x: x.q,
    "advantage": lambda e, x: x.q - x.v,
    "td_residual": lambda e, x: x.td_residual,
    "n_step": lambda e, x: x.td_residual.discounted(x.gamma, e.k),
    "gae": lambda e, x: x.td_residual.discounted(x.gamma * e.lam),
}
#: Classes of optimal_baseline whose population values are known; those that were fitted, and features, are functions of s_t too.
CLASSES = ("constant", "time", "parameter")


def covers(e: Estimator) -> bool:
    """Return whether a Φ has exact moments here."""
    if type(e) is not estimators.REGISTRY.get(e.name):
        return False
    if e.name == "optimal_baseline":
        return e.of in CLASSES or (e.of == "features" and e.fitted is not None)
    return e.name in PHI


def _optimal(e: Estimator, x: GaussianTrajectory, discount: float) -> tuple[Forms, Tensor | None]:
    """Return Φ of an optimal_baseline, and [P] the b_p that it is less for each parameter, or None.

    The best b of a class minimises Σ_t (a_t b_t² − 2 c_t b_t), a_t = Σ_p E[w_t² z_tp²] and c_t = Σ_p E[w_t z_tp g_0p].
    """
    forms = PHI[e.base](e, x)
    if e.fitted is not None:
        return _less(forms, e.fitted, x), None
    if e.by_parameter is not None:
        return forms, e.by_parameter.cpu().double()
    w = discount ** torch.arange(len(forms.c), dtype=torch.float64)
    found = [baseline_products(z, forms) for z in x.scores()]
    a = torch.stack([w**2 * square for _, square in found])
    c = torch.stack([w * (product @ w) for product, _ in found])
    over = {"constant": (0, 1), "time": 0, "parameter": 1}[e.of]
    a, c = a.sum(over), c.sum(over)
    b = torch.where(a > 0, c / torch.where(a > 0, a, 1.0), 0.0)
    return (forms, b) if e.of == "parameter" else (forms.shifted(-b.expand(len(w))), None)


def _less(forms: Forms, b: StepBaseline, x: GaussianTrajectory) -> Forms:
    """Return the forms less a fitted b_t(s_t)."""
    if b.of != "features":
        return forms.shifted(-b.value.cpu().expand(len(forms.c)))
    n, horizon = x.state.shape[1], len(forms.c)
    slope, curvature, rest = b.value.cpu().split([n, n, len(b.value) - 2 * n])
    time = torch.arange(horizon, dtype=torch.float64)[:, None] / horizon
    level = torch.cat([time, time**2, time**3, torch.ones_like(time)], 1) @ rest
    return forms - x._form(False, torch.diag(curvature).expand(horizon, n, n), slope.expand(horizon, n), level)


@torch.no_grad()
def gaussian(
    env: LQG,
    policy: nn.Module,
    phi: Sequence[str | Estimator] | str | Estimator = estimators.SOURCE_TEXT,
    *,
    gamma: float = 1.0,
    discount_weighting: bool = True,
    values: QuadraticValues | None = None,
) -> ExactMoments:
    """Return exact mean and per-parameter variance of the gradient under every Φ on a linear system.

    Its cost grows as H² n² P for each Φ with n = H (S + D) entries of ξ: about half a second for H = 20, S = 4, D = 2 and P = 12,
    minutes for H = 100. All of θ counts: weights, biases and log σ; what has no requires_grad is left out.

    Args:
        env: a linear system; sampling goes on to the horizon.
        policy: a :class:`~varlab.policies.Linear` policy; evaluated in float64.
        phi: names or objects among ``PHI``, or ``optimal_baseline``; baselines that were not fitted take their population values.
        gamma: discount γ.
        discount_weighting: whether step t is weighted by γ^t.
        values: quadratic V_t and Q_t, right or wrong; exact ones if None.

    Returns:
        The moments.

    Raises:
        InputError: for another kind of world, policy or Φ.
    """
    system, horizon = system_of(env)
    chosen = estimators.resolve(phi)
    checks.in_range("gamma", gamma, 0.0, 1.0)
    for e in chosen:
        if not covers(e):
            raise checks.InputError(
                f"A Φ that is quadratic in the trajectory was expected for exact moments on {env.name}, but came {e.label}; "
                f"choose among {', '.join(PHI)} and optimal_baseline of {', '.join(CLASSES)}, or use varlab.measure."
            )
    double = policies.prepare(policy, torch.float64, torch.device("cpu"))
    known = values_on(env, double, gamma, values)
    trajectory = GaussianTrajectory.of(system, GaussianPolicy.of(double), horizon, known, gamma)
    mean, variance = [], []
    for e in chosen:
        discount = gamma if discount_weighting and e.weighted else 1.0
        forms, own = _optimal(e, trajectory, discount) if e.name == "optimal_baseline" else (PHI[e.name](e, trajectory), None)
        weight = discount ** torch.arange(horizon, dtype=torch.float64)
        pairs = []
        for p, z in enumerate(trajectory.scores()):
            f = forms if own is None else forms.shifted(-own[p])
            pairs.append((weight @ mean_products(z, f), weight @ covariance(z, f) @ weight))
        mean.append([float(m) for m, _ in pairs])
        variance.append([max(float(v), 0.0) for _, v in pairs])
    grad, j = gradient(env, double, gamma)
    per_parameter = np.array(variance)
    names = tuple(e.label for e in chosen)
    return ExactMoments(names, np.array(mean), per_parameter.sum(1), per_parameter, grad.numpy(), j)
