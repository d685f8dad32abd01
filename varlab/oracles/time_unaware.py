"""The best V(s) that does not see the time, on a linear system: what a critic without t converges to.

    V = argmin over quadratic functions of s of Σ_{t<H} E (V_t(s_t) − V(s_t))²,

which is also what regression on returns gives, since E[G_t | s_t] = V_t(s_t). s_t is Gaussian, and products of two quadratic
functions are of degree four, so that three Gauss–Hermite nodes in each dimension make every mean exact.

Source of the question: The Mirage of Action-Dependent Baselines in Reinforcement Learning (Tucker, Bhupatiraju, Gu, Turner,
Ghahramani, Levine, 2018), section 6, horizon-aware value functions.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from varlab import policies
from varlab.envs.lqg import LQG, LinearQuadratic, root
from varlab.estimators.nodes import gauss_hermite
from varlab.values.linear_quadratic import GaussianPolicy, QuadraticValues

#: Enough for products of two quadratic functions.
NODES = 3


@torch.no_grad()
def time_unaware(env: LQG, policy: nn.Module, gamma: float) -> QuadraticValues:
    """Return the exact values of a policy with V_t replaced by the V(s) that fits all of them best.

    Args:
        env: a linear system of few state dimensions: 3^S nodes are taken at each step.
        policy: a :class:`~varlab.policies.Linear` policy.
        gamma: discount γ.

    Returns:
        V the same at every t; Q_t exact.

    Raises:
        InputError: for another world or policy.
    """  # noqa: DOC502
    double = policies.prepare(policy, torch.float64, torch.device("cpu"))
    known = QuadraticValues.of(env, double, gamma)
    xi, weight = gauss_hermite(NODES, env.system.state_dim)
    passed = visits(env.system, GaussianPolicy.of(double), env.horizon)
    s = torch.cat([mean + xi[:, : spread.shape[1]] @ spread.T for mean, spread in passed])
    wanted = known.v(s, torch.arange(env.horizon).repeat_interleave(len(xi)))
    scale = s.abs().amax(0).clamp_min(1e-300)
    i, j = torch.triu_indices(len(scale), len(scale))
    x = s / scale  # so that the features are of one size
    features = torch.cat([x[:, i] * x[:, j], x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    each = weight.repeat(env.horizon).sqrt()[:, None]
    # Entries of s that never vary make the features dependent: gelsd takes the shortest solution.
    found = torch.linalg.lstsq(features * each, wanted[:, None] * each, driver="gelsd").solution[:, 0]
    hessian = torch.zeros(len(scale), len(scale), dtype=torch.float64)
    hessian[i, j] = found[: len(i)] / (scale[i] * scale[j])
    steps = env.horizon + 1
    return replace(
        known,
        v_hessian=((hessian + hessian.T) / 2).repeat(steps, 1, 1),
        v_slope=(found[len(i) : -1] / scale).repeat(steps, 1),
        v_constant=found[-1].repeat(steps),
        source="exact, best without t",
    )


def visits(system: LinearQuadratic, policy: GaussianPolicy, horizon: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield mean [S] and a root [S, rank] of the covariance of s_t, t = 0, …, H − 1."""
    mean, covariance = system.initial_mean, system.initial_covariance
    loop = system.a + system.b @ policy.weight
    driven = system.b @ torch.diag((2 * policy.log_std).exp()) @ system.b.T + system.noise
    for _ in range(horizon):
        yield mean, root("covariance of the state", (covariance + covariance.T) / 2)
        mean, covariance = loop @ mean + system.b @ policy.bias, loop @ covariance @ loop.T + driven
