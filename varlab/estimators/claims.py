"""When what a Φ claims is a proof: which settings make E g = ∇J hold without measuring it."""

from __future__ import annotations

import re

from varlab.estimators.base import Estimator

#: Sources of values that are exact, or exact in the mean given the trajectory and independent of what it did since.
EXACT_IN_THE_MEAN = re.compile(r"exact|cloning\(m=\d+\)")


def proven(
    estimator: Estimator,
    objective: str,
    *,
    gamma: float,
    discount_weighting: bool,
    cut: int | None,
    values_source: str,
    on_policy: bool = True,
) -> bool:
    """Say whether E g is the gradient of an objective by the estimator's claim and the settings.

    Args:
        estimator: the choice of Φ.
        objective: ``J_1`` or ``J_gamma``.
        gamma: γ of the estimator.
        discount_weighting: whether step t is weighted by γ^t.
        cut: L, or None for H; what is not sampled is missing from the gradient.
        values_source: ``exact`` where V and Q are those of the policy; by cloning they have that mean, which is enough for a Φ
            linear in them.
        on_policy: whether θ itself took the actions.

    Returns:
        True where it is proven; False where it is not, which does not make it biased.
    """
    same_objective = gamma == 1.0 or (objective == "J_gamma" and (discount_weighting or not estimator.weighted))
    values_are_exact = values_source == "exact" or (estimator.linear and EXACT_IN_THE_MEAN.fullmatch(values_source) is not None)
    claim = estimator.unbiased == "always" or (estimator.unbiased == "given exact values" and values_are_exact)
    acted = on_policy or estimator.off_policy
    return claim and same_objective and cut is None and acted and estimator.target == "gradient"
