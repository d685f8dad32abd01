"""varlab.exact(): mean and variance of an estimator on a finite MDP, without sampling."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from varlab import checks, estimators, policies
from varlab.envs.base import Environment
from varlab.envs.lqg import LQG
from varlab.envs.registry import make as make_env
from varlab.estimators.base import Estimator
from varlab.estimators.recursion import Recursion
from varlab.oracles.fourth_moments import LIMIT, WINDOW, Fourth, carried_window, fourth_moments, size
from varlab.oracles.recursions import total_sum, weighted_sum
from varlab.oracles.score_moments import less_baseline
from varlab.oracles.world import World, build
from varlab.policies.base import num_parameters
from varlab.policies.networks import SoftmaxTable
from varlab.types import Trajectories, Values
from varlab.values.dynamic_programming import ExactValues, gradient


@dataclass(frozen=True)
class ExactMoments:
    """Exact moments of K estimators on a finite MDP; all float64.

    Attributes:
        names: the K choices.
        mean: [K, P] E g.
        variance: [K] tr Cov g.
        variance_per_parameter: [K, P] diag Cov g.
        gradient: [P] ∇J_γ of the H-step objective.
        j: J_γ.
        fourth: [K] E ‖g − E g‖⁴, or None where it was not asked for.
        trace_sq: [K] tr (Cov g)², or None likewise.
    """

    names: tuple[str, ...]
    mean: np.ndarray
    variance: np.ndarray
    variance_per_parameter: np.ndarray
    gradient: np.ndarray
    j: float
    fourth: np.ndarray | None = None
    trace_sq: np.ndarray | None = None

    @property
    def bias_sq(self) -> np.ndarray:
        """[K] ‖E g − ∇J_γ‖²."""
        return ((self.mean - self.gradient) ** 2).sum(1)

    @property
    def nsr(self) -> np.ndarray:
        """[K] variance / ‖∇J_γ‖²."""
        with np.errstate(divide="ignore", invalid="ignore"):
            return self.variance / (self.gradient**2).sum()

    @property
    def kurtosis(self) -> np.ndarray:
        """[K] E ‖g − E g‖⁴ / variance², NaN where the variance is nothing but rounding."""
        variance = np.where(self.variance > 1e-13 * (self.mean**2).sum(1), self.variance, np.nan)
        return self._asked(self.fourth) / variance**2

    def variance_standard_error(self, n: int) -> np.ndarray:
        """Return the standard error of the unbiased estimate of tr Cov g from n independent trajectories.

        Its square is (E ‖g − E g‖⁴ − V²) / n + 2 tr (Cov g)² / (n (n − 1)), V = tr Cov g: the estimate is the U-statistic with
        kernel ‖g_i − g_j‖² / 2. Source of the decomposition: A Class of Statistics with Asymptotically Normal Distribution
        (Hoeffding, 1948).

        Args:
            n: number of trajectories.

        Returns:
            [K] standard errors.

        Raises:
            InputError: for fewer than two trajectories, or if :func:`exact` was not asked for fourth moments.
        """
        if checks.positive_int("n", n) < 2:
            raise checks.InputError("At least n = 2 trajectories were expected for an estimate of a variance, but n=1; raise n.")
        spread = np.maximum(self._asked(self.fourth) - self.variance**2, 0.0)
        return np.sqrt(spread / n + 2 * self._asked(self.trace_sq) / (n * (n - 1)))

    @staticmethod
    def _asked(moment: np.ndarray | None) -> np.ndarray:
        if moment is None:
            raise checks.InputError("Fourth moments were expected, but exact() did not compute them; call it with fourth=True.")
        return moment


def exact(
    env: Environment | str,
    policy: nn.Module,
    phi: Sequence[str | Estimator] | str | Estimator = estimators.SOURCE_TEXT,
    *,
    gamma: float = 1.0,
    discount_weighting: bool = True,
    values: str | Callable[[Trajectories, frozenset[str]], Values] = "exact",
    cut: int | None = None,
    at_cut: str = "bootstrap",
    fourth: bool = False,
) -> ExactMoments:
    """Return exact mean and variance of the gradient under every Φ.

    Args:
        env: a world with finite dynamics, the id of one, or a linear system (:mod:`varlab.envs.lqg`).
        policy: categorical on its states, or linear on a linear system; evaluated in float64.
        phi: names or objects; baselines that were not fitted take their population values.
        gamma: discount γ.
        discount_weighting: whether step t is weighted by γ^t.
        values: ``exact``, or any source with a ``table`` (critic, functions), right or wrong.
        cut: L ≤ H.
        at_cut: terminal, bootstrap or wrong_state.
        fourth: whether to add fourth moments, for the exact kurtosis and the exact standard error of an estimated variance; on a
            finite MDP with S · D² ≤ 10^7, D = min(P, S (A − 1)), and Φ whose window has at most 10 steps.

    Returns:
        The moments.

    Raises:
        InputError: for a world without finite dynamics, an estimator without a recursion, values and settings that cannot be
            used, or fourth moments of too large a world.
    """
    env = make_env(env) if isinstance(env, str) else env
    if isinstance(values, str):
        checks.one_of("source of values", values, ("exact",))
    if isinstance(env, LQG) and isinstance(values, str) and cut is None:
        from varlab.oracles.gaussian import gaussian  # which builds on this file's record

        if fourth:
            raise checks.InputError(
                f"A finite MDP was expected for fourth moments, but {env.name} is a linear system; leave fourth=True out and "
                "take the kurtosis that varlab.measure estimates."
            )
        return gaussian(env, policy, phi, gamma=gamma, discount_weighting=discount_weighting)
    if env.finite is None:
        raise checks.InputError(
            f"A finite MDP was expected for exact moments, but {env.name} has no outcome lists; use varlab.measure."
        )
    chosen = estimators.resolve(phi)
    checks.in_range("gamma", gamma, 0.0, 1.0)
    checks.one_of("rule at_cut", at_cut, estimators.AT_CUT)
    double = policies.prepare(policy, torch.float64, torch.device("cpu"))
    source = ExactValues.of(env.finite, double, gamma, env.horizon) if isinstance(values, str) else values
    world = world_of(env, double, source, gamma, cut, at_cut, discount_weighting)
    if fourth:
        for e in chosen:
            _affordable(world, e)
    rows = [exact_row(world, e, discount_weighting) for e in chosen]
    grad, j = gradient(env.finite, double, gamma, env.horizon)
    for e, row in zip(chosen, rows, strict=True):
        if not (np.isfinite(row.mean).all() and np.isfinite(row.variance_per_parameter).all()):
            raise checks.InputError(
                f"Finite moments were expected on {env.name}, but those of {e.label} hold NaN or infinity; look at θ and at its "
                "values or baseline in every state, visited or not."
            )
    mean, per_parameter = np.stack([r.mean for r in rows]), np.stack([r.variance_per_parameter for r in rows])
    names, more = tuple(e.label for e in chosen), ()
    if fourth:
        found = [fourth_row(world, e, discount_weighting) for e in chosen]
        more = np.array([x.fourth for x in found]), np.array([x.trace_sq for x in found])
    return ExactMoments(names, mean, per_parameter.sum(1), per_parameter, grad.numpy(), j, *more)


def world_of(
    env: Environment,
    policy: nn.Module,
    source: object | None,
    gamma: float,
    cut: int | None,
    at_cut: str,
    discount_weighting: bool = True,
) -> World:
    """Return the arrays that the recursions run on.

    Args:
        env: a world with finite dynamics.
        policy: in float64, on the CPU.
        source: values with a ``table``, or None where no Φ and no rule at a cut needs any.
        gamma: γ.
        cut: L, or None for H.
        at_cut: rule at the cut.
        discount_weighting: whether step t is weighted by γ^t.

    Returns:
        The world.

    Raises:
        InputError: for a cut beyond the horizon, or values that are missing or of another shape.
    """
    cut = env.horizon if cut is None else checks.positive_int("cut", cut)
    if cut > env.horizon:
        raise checks.InputError(
            f"A cut of at most the horizon {env.horizon} was expected, but cut={cut}; lower it or leave it out."
        )
    if source is not None and not hasattr(source, "table"):
        raise checks.InputError(
            f"Values with a table over states were expected for exact moments, but {type(source).__name__} has none; give "
            "values='exact', a Critic or FunctionValues."
        )
    found = (None, None) if source is None else source.table(env.finite, env.horizon)
    v, q = (None if x is None else x.detach().cpu().numpy() for x in found)
    s, a = env.finite.num_states, env.finite.num_actions
    for name, x, shape in (("v", v, (env.horizon + 1, s)), ("q", q, (env.horizon, s, a))):
        if x is not None and x.shape != shape:
            raise checks.InputError(
                f"Values {name} of shape {shape} were expected on {env.name}, but the table has {x.shape}; evaluate them for "
                "this world and horizon, one number for each state."
            )
    if v is None and cut < env.horizon and at_cut != "terminal":
        raise checks.InputError(
            f"Values v were expected because at_cut={at_cut} looks them up at the cut {cut}, but the source gives none; pass v "
            "too or set at_cut=terminal."
        )
    return build(env.finite, policy, v, q, gamma, env.horizon, cut, at_cut, discount_weighting)


def operations(env: Environment, policy: nn.Module, choices: int, cut: int | None) -> int:
    """Return about how many multiplications exact moments of K estimators take.

    Args:
        env: a world with finite dynamics.
        policy: categorical on its states.
        choices: K.
        cut: L, or None for H.

    Returns:
        K · L · S · A · O · min(P, S A), and K · (S A)² · P more where a network's pairs of logits are mapped to more parameters.
    """
    pairs, p = env.finite.num_states * env.finite.num_actions, num_parameters(policy)
    steps = (cut or env.horizon) * env.finite.probability.numel() * min(p, pairs)
    return choices * (steps + (0 if p < pairs or type(policy) is SoftmaxTable else pairs**2 * p))


@dataclass(frozen=True)
class ExactRow:
    """Exact moments of one estimator: ``mean`` [P] E g and ``variance_per_parameter`` [P] diag Cov g."""

    mean: np.ndarray
    variance_per_parameter: np.ndarray


def recursion_of(world: World, estimator: Estimator, whole: bool = True) -> Recursion:
    """Return the recursion of an estimator whose values are all there.

    Args:
        world: dynamics, policy and values.
        estimator: the choice of Φ.
        whole: whether baselines of single parameters, or of later steps beside a total return, would be left out.

    Returns:
        Its recursion.

    Raises:
        InputError: if it has none that the oracles cover, or needs values that are not there.
    """
    recursion = estimator.recursion(world)
    if recursion is None or (recursion.total and recursion.window is not None):
        raise checks.InputError(
            f"A Φ with a recursion over states was expected for exact moments, but {estimator.label} has "
            f"{'none' if recursion is None else 'a window over the whole return'}; use varlab.measure."
        )
    if whole and (recursion.later is not None or recursion.by_parameter is not None):
        raise checks.InputError(
            "A baseline of all parameters alike was expected here, and of the first state alone beside a total return, but that "
            f"of {estimator.label} is another; take its mean and variance alone, or base=reward_to_go."
        )
    for name in estimator.needs:
        if getattr(world, name) is None:
            raise checks.InputError(
                f"Values {name} were expected for {estimator.label}, but the source gives none; pass {name} too."
            )
    if recursion.total and (recursion.expected is not None or recursion.baseline(0).shape[1] > 1):
        raise checks.InputError(
            f"A baseline of the first state alone was expected of {estimator.label}, whose Φ is the sum from the beginning, but "
            "it averages over actions or its baseline sees them; use varlab.measure."
        )
    return recursion


def exact_row(world: World, estimator: Estimator, discount_weighting: bool) -> ExactRow:
    """Return exact mean and variance of one estimator.

    Args:
        world: dynamics, policy and values.
        estimator: the choice of Φ.
        discount_weighting: w_t = γ^t if true, 1 if false.

    Returns:
        Its moments.
    """
    recursion = recursion_of(world, estimator, whole=False)
    if recursion.total:
        first, second = total_sum(world, recursion)
    else:
        first, second = weighted_sum(world, recursion, step_discount(world, estimator, discount_weighting))
    if recursion.later is not None or recursion.by_parameter is not None:
        second = less_baseline(world, recursion, second)
    return ExactRow(first, np.maximum(second - first**2, 0.0))


def fourth_row(world: World, estimator: Estimator, discount_weighting: bool) -> Fourth:
    """Return exact fourth moments of one estimator.

    Args:
        world: dynamics, policy and values.
        estimator: the choice of Φ.
        discount_weighting: w_t = γ^t if true, 1 if false.

    Returns:
        Its moments.
    """
    return fourth_moments(world, recursion_of(world, estimator), step_discount(world, estimator, discount_weighting))


def _affordable(world: World, estimator: Estimator) -> None:
    recursion = recursion_of(world, estimator)
    cost, window = size(world, recursion), carried_window(world, recursion)
    if window is not None and window > WINDOW:
        raise checks.InputError(
            f"A window of at most {WINDOW} steps was expected for fourth moments, but {estimator.label} has {window}; shorten it "
            "or leave fourth=True out."
        )
    if cost > LIMIT:
        raise checks.InputError(
            f"S · D² of at most {LIMIT:.0e} was expected for fourth moments, D = min(P, S (A − 1)), times k (k + 1) / 6 for a "
            f"window of k steps, but {estimator.label} has {cost:.1e} in {world.num_states} states; leave fourth=True out."
        )


def step_discount(world: World, estimator: Estimator, discount_weighting: bool) -> float:
    """Return κ of w_t = κ^t: γ where the estimator's steps are weighted, else 1."""
    return world.gamma if discount_weighting and estimator.weighted else 1.0
