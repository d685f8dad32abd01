"""Unbiased estimates of state, action and trajectory components from a nested sample, with intervals.

A sample is N independent states s_i of one time step (a weight of 0 stands for an episode that had ended), A independent actions
a_ij in each, and R independent continuations of each, Φ_ijr. With b_ij a baseline, and every mean over distinct indices,

    S_τ = E ‖z_ij‖² (Φ_ijr − Φ_ijr')²/2,
    S_a = E ‖z_ij‖² (Φ_ijr − b_ij)(Φ_ijr' − b_ij) − E ⟨z_ij, z_ij'⟩ (Φ_ij − b_ij)(Φ_ij' − b_ij'),
    S_s = E ⟨z_ij, z_ij'⟩ (Φ_ij − v_i)(Φ_ij' − v_i) − E ⟨z_ij, z_i'j'⟩ (Φ_ij − v_i)(Φ_i'j' − v_i'),

Φ_ij the mean over r, v_i any number that depends on the state alone. All are U-statistics: unbiased for any A, R ≥ 2, and so free
to be negative where a component is small; nothing is clipped. Plug-in variances are not: with 1/R in the place of 1/(R − 1) the
noise of the inner mean enters the outer variance. Source of the components: The Mirage of Action-Dependent Baselines in
Reinforcement Learning (Tucker et al., 2018); of the statistics: A Class of Statistics with Asymptotically Normal Distribution
(Hoeffding, 1948).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from varlab import checks
from varlab.analysis.replicates import Replicated, squared_mean

BLOCKS = 50
PARTS = ("state", "action", "trajectory")


@dataclass(frozen=True)
class NestedSample:
    """A nested sample at one time step.

    Attributes:
        phi: [N, A, R] Φ of each continuation.
        gram: [N, A, A] ⟨z_ij, z_ij'⟩.
        alive: [N] 1 where the episode had not ended, else 0; the other rows of an ended episode count for nothing.
        mean: [N, P] (1/A) Σ_j z_ij (Φ_ij − v_i).
        level: [N] v_i, 0 if none.
        weight: w_t, the weight of this step in the gradient.
    """

    phi: np.ndarray
    gram: np.ndarray
    alive: np.ndarray
    mean: np.ndarray
    level: np.ndarray
    weight: float = 1.0

    def __post_init__(self) -> None:
        """Check that there is something to compare.

        Raises:
            InputError: for fewer than two actions or continuations, or fewer states than blocks.
        """
        n, actions, rollouts = self.phi.shape
        if actions < 2 or rollouts < 2 or n < 2 * BLOCKS:
            raise checks.InputError(
                f"At least {2 * BLOCKS} states with two actions and two continuations each were expected for unbiased variance "
                f"components, but the sample has {n}, {actions} and {rollouts}; raise them."
            )


def _pairs(x: np.ndarray) -> np.ndarray:
    """Return the mean of x_r x_r' over r ≠ r' along the last axis."""
    r = x.shape[-1]
    return (x.sum(-1) ** 2 - np.square(x).sum(-1)) / (r * (r - 1))


def trajectory_part(sample: NestedSample) -> Replicated:
    """Return S_τ: what continuations from one state and action add."""
    size = np.einsum("njj->nj", sample.gram)
    each = (size * sample.phi.var(2, ddof=1)).mean(1)
    return Replicated.mean(sample.weight**2 * sample.alive * each, BLOCKS)


def action_part(sample: NestedSample, baseline: np.ndarray | None = None) -> Replicated:
    """Return S_a under a baseline.

    Args:
        sample: the sample.
        baseline: [N, A] b_ij, of the state or of state and action (whose mean over actions an estimator puts back, which does
            not change this component); 0 if None.

    Returns:
        The component; differences between baselines are paired.
    """
    left = sample.phi if baseline is None else sample.phi - baseline[:, :, None]
    size = np.einsum("njj->nj", sample.gram)
    second = (size * _pairs(left)).mean(1)
    return Replicated.mean(sample.weight**2 * sample.alive * (second - _between_actions(sample.gram, left.mean(2))), BLOCKS)


def best_value_part(sample: NestedSample) -> Replicated:
    """Return S_a under the exact V_t(s) as baseline, though V is not known.

    That is

        S_a = E ‖z_ij‖² (Φ_ijr − Φ_ik)(Φ_ijr' − Φ_il) − E ⟨z_ij, z_ij'⟩ (Φ_ij − c_ijj')(Φ_ij' − c_ijj'),

    with r ≠ r', all of j, k, l and j, j' distinct, and c_ijj' the mean of Φ over the other actions. Given state and action j both
    factors of the first term are independent, and each has mean Q_ij − V_i. In the second c does not depend on a_ij and a_ij',
    and scores have mean 0, so that any c would do; this one is near V.

    Args:
        sample: the sample, with at least three actions in each state.

    Returns:
        The component, unbiased.

    Raises:
        InputError: for two actions.
    """
    actions = sample.phi.shape[1]
    if actions < 3:
        raise checks.InputError(
            f"At least three actions in each state were expected for the component under the exact V, but there are {actions}: "
            "two others stand for V; raise actions."
        )
    # Nothing here changes when a number of the state is taken off; rounding does.
    phi = sample.phi - sample.phi.mean((1, 2), keepdims=True)
    mean = phi.mean(2)
    others = mean.sum(1, keepdims=True) - mean
    squares = np.square(mean).sum(1, keepdims=True) - np.square(mean)
    pair = (others**2 - squares) / ((actions - 1) * (actions - 2))
    size = np.einsum("njj->nj", sample.gram)
    first = (size * (_pairs(phi) - 2 * mean * others / (actions - 1) + pair)).mean(1)
    rest = (others[:, :, None] - mean[:, None, :]) / (actions - 2)  # [N, j, j'] c_ijj'
    products = sample.gram * (mean[:, :, None] - rest) * (mean[:, None, :] - rest)
    second = (products.sum((1, 2)) - np.einsum("njj->n", products)) / (actions * (actions - 1))
    return Replicated.mean(sample.weight**2 * sample.alive * (first - second), BLOCKS)


def state_part(sample: NestedSample) -> Replicated:
    """Return S_s: what E[z Φ | s] varies with the state, the same for every baseline that keeps the mean."""
    between = _between_actions(sample.gram, sample.phi.mean(2) - sample.level[:, None])
    first = Replicated.mean(sample.weight**2 * sample.alive * between, BLOCKS)
    return first - squared_mean(sample.weight * sample.alive[:, None] * sample.mean, BLOCKS)


def _between_actions(gram: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the mean over j ≠ j' of ⟨z_j, z_j'⟩ x_j x_j', [N]."""
    actions = x.shape[1]
    products = np.einsum("njk,nj,nk->n", gram, x, x) - np.einsum("njj,nj,nj->n", gram, x, x)
    return products / (actions * (actions - 1))


def parts(sample: NestedSample, baselines: Mapping[str, np.ndarray | None]) -> dict[tuple[str, str], Replicated]:
    """Return all components of a sample.

    Args:
        sample: the sample.
        baselines: name → b_ij, see :func:`action_part`.

    Returns:
        (part, name of the baseline, or "" for the parts that do not depend on it) → component.
    """
    found = {("state", ""): state_part(sample), ("trajectory", ""): trajectory_part(sample)}
    return found | {("action", name): action_part(sample, b) for name, b in baselines.items()}


def summed(found: list[dict[tuple[str, str], Replicated]]) -> dict[tuple[str, str], Replicated]:
    """Return the components of several time steps of the same trajectories, added up."""
    return {key: _sum([x[key] for x in found]) for key in found[0]}


def _sum(numbers: list[Replicated]) -> Replicated:
    out = numbers[0]
    for x in numbers[1:]:
        out = out + x
    return out
