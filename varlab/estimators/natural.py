"""The natural policy gradient: another Φ's gradient, multiplied by the inverse of the exact Fisher matrix."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from varlab import checks, policies
from varlab.estimators.base import Batch, Estimator, FitBatch, register
from varlab.estimators.registry import make
from varlab.values.fisher import inverse_fisher

BASES = ("total_return", "reward_to_go", "value_baseline", "q_value", "advantage")


@register
@dataclass(frozen=True)
class NaturalGradient(Estimator):
    """F⁺ g with g the gradient of a base's Φ_t and F = Σ_t w_t Σ_s d_t(s) E_a[z zᵀ] the exact Fisher matrix of a finite MDP.

    F is weighted like the objective whose gradient g estimates: w_t = γ^t, or 1 where the base's steps are not discounted. It is
    computed from the world and θ, not from data, so that E F⁺ g = F⁺ ∇J where E g = ∇J. That is the steepest ascent for a given
    Kullback-Leibler divergence of actions, and the x of least Σ_t w_t E (xᵀ z_t − A_t)²: for a softmax table the advantage of
    each action, averaged over the visits of its state, less the mean over actions. As actions become certain F⁺ grows without
    bound, and most often the variance with it. Source: A Natural Policy Gradient (Kakade, 2001).

    Attributes:
        base: total_return, reward_to_go, value_baseline, q_value or advantage.
        rcond: eigenvalues of F of at most this share of the largest count as 0.
        fitted: [P, P] F⁺.
    """

    base: str = "value_baseline"
    rcond: float = 1e-10
    fitted: Tensor | None = field(default=None, repr=False, compare=False)
    name = "natural_gradient"
    fits = True
    reads_stream = False
    target = "natural"
    formula = "F⁺ Σ_t w_t z_t Φ_t, F = Σ_t w_t E[z_t z_tᵀ]"
    source = "A Natural Policy Gradient (Kakade, 2001)"

    def __post_init__(self) -> None:
        """Check base and rcond."""
        checks.one_of("base of natural_gradient", self.base, BASES)
        object.__setattr__(self, "rcond", checks.in_range("rcond of natural_gradient", self.rcond, 0.0, 1.0))

    @property
    def needs(self) -> frozenset[str]:
        """Those of the base."""
        return make(self.base).needs

    @property
    def weighted(self) -> bool:
        """As for the base."""
        return make(self.base).weighted

    @property
    def unbiased(self) -> str:
        """The claim of the base, here of E F⁺ g = F⁺ ∇J."""
        return make(self.base).unbiased

    def fit(self, batch: FitBatch) -> NaturalGradient:
        """Compute F⁺ from the world and θ.

        Args:
            batch: its environment, policy, γ and weights; its trajectories are not read.

        Returns:
            This estimator with F⁺.

        Raises:
            InputError: if the world has no finite dynamics.
        """
        env = batch.env
        if env is None or env.finite is None:
            raise checks.InputError(
                f"A finite MDP was expected for {self.label}, whose Fisher matrix is a sum over states and actions, but "
                f"{batch.traj.env} has no outcome lists; leave it out there."
            )
        policy = policies.prepare(batch.policy, torch.float64, torch.device("cpu"))
        gamma = batch.gamma if batch.discount_weighting or not self.weighted else 1.0
        inverse = torch.from_numpy(inverse_fisher(env.finite, policy, env.horizon, gamma, self.rcond))
        return replace(self, fitted=inverse.to(batch.traj.reward.device))

    @property
    def matrix(self) -> Tensor:
        """[P, P] F⁺.

        Raises:
            InputError: before :meth:`fit`.
        """
        if self.fitted is None:
            raise checks.InputError(
                f"A Fisher matrix was expected for {self.label}, but it has not seen the world; fit it, as varlab.measure does."
            )
        return self.fitted

    def phi(self, batch: Batch) -> Tensor:
        """Return Φ_t of the base, [M]."""
        return make(self.base).phi(batch)
