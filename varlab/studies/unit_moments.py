"""Exact mean and variance of estimators of groups and batches on one-step worlds, by enumeration of multisets.

A unit is m groups of G trajectories. Its gradient, the mean over trajectories of z_i Φ_i, is the same for every order of the
trajectories in a group and of the groups, so that multisets with multinomial weights stand for all tuples. Φ is computed by the
estimators themselves, from trajectories laid end to end as a measurement has them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
import torch
from torch import nn

from varlab import checks, policies
from varlab.envs.base import Environment
from varlab.estimators.base import Batch, Estimator
from varlab.types import Trajectories
from varlab.values.dynamic_programming import ExactValues, gradient
from varlab.values.fisher import score_table

#: Most trajectories that are laid end to end: seconds and a few hundred megabytes.
LIMIT = 6_000_000
#: Trajectories whose Φ is computed at once.
ROWS = 400_000


@dataclass(frozen=True)
class Units:
    """All units of a one-step world up to the order within them.

    Attributes:
        env: the world.
        policy: in float64.
        group: G.
        state: [U, m G] prompt of each trajectory.
        action: [U, m G].
        reward: [U, m G].
        weight: [U] probability of the unit, whatever its order.
    """

    env: Environment
    policy: nn.Module
    group: int
    state: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    weight: np.ndarray

    def phi(self, estimator: Estimator) -> np.ndarray:
        """Return Φ_i [U, m G], with the policy's exact V where the estimator needs it."""
        units, size = self.state.shape
        source = ExactValues.of(self.env.finite, self.policy, 1.0, 1) if estimator.needs else None
        each = max(1, ROWS // size)
        found = [self._phi(estimator, source, slice(i, i + each)) for i in range(0, units, each)]
        return np.concatenate(found)

    def _phi(self, estimator: Estimator, source: ExactValues | None, part: slice) -> np.ndarray:
        state, action, reward = (torch.from_numpy(x[part].ravel()) for x in (self.state, self.action, self.reward))
        ended = torch.ones(len(state), dtype=torch.bool)
        traj = Trajectories(
            obs=state, action=action, reward=reward, offsets=torch.arange(len(state) + 1), terminated=ended, truncated=~ended,
            last_obs=state, horizon=1, state=state, last_state=state, env=self.env.name,
        )  # fmt: skip
        values = source(traj, estimator.needs) if source is not None else None
        phi = estimator.phi(Batch(traj, values, 1.0, group=self.group, unit=self.state.shape[1]))
        return phi.numpy().reshape(-1, self.state.shape[1])

    def moments(self, phi: np.ndarray) -> UnitMoments:
        """Return exact moments of the gradient with weights Φ [U, m G]."""
        size = self.state.shape[1]
        pi, z, support = score_table(self.env.finite, self.policy)
        dense = np.zeros((*pi.shape, policies.num_parameters(self.policy)))
        if support is None:
            dense[:] = z
        else:
            dense[np.arange(len(pi))[:, None, None], np.arange(pi.shape[1])[:, None], support[:, None, :]] = z
        cell = self.state * pi.shape[1] + self.action
        total = np.zeros((len(cell), pi.size))
        np.add.at(total, (np.arange(len(cell))[:, None], cell), phi)
        g = total @ dense.reshape(pi.size, -1) / size
        mean = self.weight @ g
        variance = size * float(self.weight @ ((g - mean) ** 2).sum(1))
        grad, _ = gradient(self.env.finite, self.policy, 1.0, 1)
        return UnitMoments(mean, variance, grad.numpy())


@dataclass(frozen=True)
class UnitMoments:
    """Exact moments of one estimator.

    Attributes:
        mean: [P] E ĝ.
        variance: trajectories of a unit times tr Cov ĝ: per trajectory, as in a measurement.
        gradient: [P] ∇J.
    """

    mean: np.ndarray
    variance: float
    gradient: np.ndarray

    @property
    def bias(self) -> float:
        """‖E ĝ − ∇J‖ / ‖∇J‖."""
        return float(np.linalg.norm(self.mean - self.gradient) / np.linalg.norm(self.gradient))

    @property
    def scale(self) -> float:
        """The multiple c of ∇J nearest to E ĝ."""
        return float(self.mean @ self.gradient / (self.gradient @ self.gradient))

    @property
    def direction_bias(self) -> float:
        """‖E ĝ − c ∇J‖ / ‖E ĝ‖, the sine of the angle between E ĝ and ∇J."""
        return float(np.linalg.norm(self.mean - self.scale * self.gradient) / np.linalg.norm(self.mean))


def enumerate_units(env: Environment, policy: nn.Module, group: int, groups: int = 1, shared_start: bool = True) -> Units:
    """Return all units of a one-step world.

    Args:
        env: a finite world of one step.
        policy: categorical on its states.
        group: G.
        groups: m.
        shared_start: whether the trajectories of a group begin in one state; if not they are independent.

    Returns:
        The units.

    Raises:
        InputError: for a world of several steps, or more than :data:`LIMIT` trajectories in all units.
    """
    size, m = checks.positive_int("group", group), checks.positive_int("groups", groups)
    if env.finite is None or env.horizon != 1:
        raise checks.InputError(
            f"A finite world of one step was expected for an enumeration of units, but {env.name} has horizon {env.horizon}"
            f"{'' if env.finite is not None else ' and no outcome lists'}; use varlab.measure with group_size={size}."
        )
    double = policies.prepare(policy, torch.float64, torch.device("cpu"))
    pi, _, _ = score_table(env.finite, double)
    start = env.finite.initial.numpy()
    chance = pi[:, :, None] * env.finite.probability.numpy()
    where = np.argwhere((start[:, None, None] * chance) > 0)  # outcomes (s, a, o), by state
    given = chance[tuple(where.T)]
    alike = [np.flatnonzero(where[:, 0] == s) for s in range(len(start)) if start[s] > 0]
    if not shared_start:
        given, alike = given * start[where[:, 0]], [np.arange(len(where))]
    count = math.comb(sum(math.comb(len(x) + size - 1, size) for x in alike) + m - 1, m)
    if count * m * size > LIMIT:
        raise checks.InputError(
            f"At most {LIMIT:,} trajectories were expected in all units together, but {m} groups of {size} on {env.name} have "
            f"{count * m * size:,}; take fewer answers, smaller groups or varlab.measure."
        )
    tables, weights = [], []
    for members in alike:
        chosen, weight = multisets(given[members], size)
        tables.append(members[chosen])
        weights.append(weight * (start[where[members[0], 0]] if shared_start else 1.0))
    one, weight = np.concatenate(tables), np.concatenate(weights)
    of_unit, weight = multisets(weight, m)
    index = one[of_unit].reshape(len(of_unit), m * size)
    s, a, o = (where[index, i] for i in range(3))
    return Units(env, double, size, s, a, env.finite.reward.numpy()[s, a, o].astype(float), weight)


def multisets(probability: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return all multisets of ``size`` draws from K outcomes and their probabilities.

    Args:
        probability: [K] of each outcome.
        size: draws.

    Returns:
        [U, size] outcomes in ascending order, and [U] size! / Π c_k! · Π p_k^{c_k}.
    """
    chosen = np.array(list(combinations_with_replacement(range(len(probability)), size)), dtype=np.int64)
    factorial = np.array([float(math.factorial(k)) for k in range(size + 1)])
    run = np.ones(len(chosen))  # the length of a run of equal draws that ends here
    orders = np.full(len(chosen), factorial[size])
    for i in range(1, size):
        run = np.where(chosen[:, i] == chosen[:, i - 1], run + 1, 1)
        orders /= run  # 1 · 2 ⋯ c over a run is c!
    return chosen, orders * probability[chosen].prod(1)
