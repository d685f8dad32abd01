"""Φ where another policy b took the actions: importance weights, and the surrogate gradients of TRPO and PPO.

With ρ_t = π_θ(a_t | s_t) / π_b(a_t | s_t) and the prefix products P_t = ρ_0 ρ_1 … ρ_t, E_b[P_t f(s_0, a_0, …, s_t, a_t)] =
E_θ[f(s_0, a_0, …, s_t, a_t)]: what f reads must lie at or before the last ratio. A term z_t r_u therefore needs the product up to
max(t, u); the whole product P_{T−1} does for every term, with the noise of ratios that the term does not need. Surrogates keep
ρ_t alone: their states are still those of b. Where θ itself acts every ratio is 1, and each Φ is its base, bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from varlab import checks
from varlab.estimators.base import Batch, Estimator, register, tail_sum
from varlab.estimators.registry import make

if TYPE_CHECKING:
    from varlab.estimators.recursion import Recursion
    from varlab.oracles.world import World

BASES = ("total_return", "reward_to_go", "value_baseline")
FORMS = ("per_decision", "trajectory")


def prefix_products(batch: Batch) -> Tensor:
    """Return P_t = Π_{u≤t} ρ_u [M] within each episode, through the sum of log ratios."""
    traj = batch.traj
    return traj.flat(traj.padded(batch.log_ratios).cumsum(1)).exp()


@register
@dataclass(frozen=True)
class ImportanceWeighted(Estimator):
    """A base's Φ_t with importance weights, unbiased for ∇J(θ) whatever policy took the actions.

    ``per_decision`` gives each reward the ratios that it needs:

    - reward_to_go: Φ_t = Σ_{u≥t} γ^{u−t} P_u r_u, by Y_t = P_t r_t + γ Y_{t+1}; value_baseline subtracts P_t V_t(s_t), whose
      product with z_t has mean 0 because E_b[ρ_t z_t | s_t] = E_θ[z_t | s_t] = 0;
    - total_return: Φ_t = Σ_{u<t} γ^u P_t r_u + Σ_{u≥t} γ^u P_u r_u. A past reward needs P_t: with P_u alone E_b[z_t P_u r_u] is
      not E_θ[z_t r_u] = 0, since under b the score has a mean.

    ``trajectory`` multiplies the base's Φ_t by P_{T−1}. Source: Eligibility Traces for Off-Policy Policy Evaluation (Precup,
    Sutton, Singh, 2000) for returns; Learning from Scarce Experience (Peshkin and Shelton, 2002) for gradients.

    Attributes:
        base: total_return, reward_to_go or value_baseline (with any V).
        form: per_decision or trajectory.
    """

    base: str = "reward_to_go"
    form: str = "per_decision"
    name = "importance_weighted"
    off_policy = True
    formula = "Σ_{u≥t} γ^{u−t} ρ_0 … ρ_u r_u"
    source = "Eligibility Traces for Off-Policy Policy Evaluation (Precup, Sutton, Singh, 2000)"

    def __post_init__(self) -> None:
        """Check the names."""
        checks.one_of("base of importance_weighted", self.base, BASES)
        checks.one_of("form of importance_weighted", self.form, FORMS)

    @property
    def needs(self) -> frozenset[str]:
        """V for value_baseline."""
        return make(self.base).needs

    @property
    def weighted(self) -> bool:
        """Whether γ^t applies: not to total_return."""
        return make(self.base).weighted

    def phi(self, batch: Batch) -> Tensor:
        """Return the weighted Φ_t, [M]."""
        traj, product = batch.traj, prefix_products(batch)
        if self.form == "trajectory":
            return make(self.base).phi(batch) * product[traj.last_row][traj.episode]
        to_go = tail_sum(traj, product * batch.reward, batch.gamma)
        if self.base == "reward_to_go":
            return to_go
        if self.base == "value_baseline":
            return to_go - product * batch.values.v
        # Y_0 gives every reward P_u; rewards before t are raised to P_t by what is missing.
        past = batch.discount * batch.reward
        lacking = product * _before(batch, past) - _before(batch, product * past)
        return to_go[traj.offsets[:-1]][traj.episode] + lacking

    def recursion(self, world: World) -> Recursion | None:
        """Return the form that the exact oracle evaluates, in which θ acts."""
        return make(self.base).recursion(world)


def _before(batch: Batch, x: Tensor) -> Tensor:
    """Return Σ_{u<t} x_u [M] within each episode."""
    columns = batch.traj.padded(x)
    total = torch.zeros_like(columns)
    total[:, 1:] = columns.cumsum(1)[:, :-1]
    return batch.traj.flat(total)


@register
@dataclass(frozen=True)
class Surrogate(Estimator):
    """Φ_t = ρ_t A_t: the gradient at θ of the surrogate objective E_b Σ_t w_t ρ_t(θ) A_t, A_t by GAE under the values given.

    The values are those of b, and so are the states, so that it is biased where θ is not θ_b. Where it is, it equals gae(lam) and
    shares its claim. Source: Trust Region Policy Optimization (Schulman, Levine, Moritz, Jordan, Abbeel, 2015).

    Attributes:
        lam: λ of GAE.
    """

    lam: float = 0.95
    name = "surrogate"
    needs = frozenset({"v"})
    formula = "ρ_t Σ_l (γλ)^l δ_{t+l}"
    source = "Trust Region Policy Optimization (Schulman, Levine, Moritz, Jordan, Abbeel, 2015)"

    @property
    def unbiased(self) -> str:
        """The claim of gae where θ itself acts."""
        return make("gae", lam=self.lam).unbiased

    def __post_init__(self) -> None:
        """Check λ."""
        object.__setattr__(self, "lam", checks.in_range(f"lam of {self.name}", self.lam, 0.0, 1.0))

    def phi(self, batch: Batch) -> Tensor:
        """Return ρ_t A_t, [M]."""
        return batch.log_ratios.exp() * make("gae", lam=self.lam).phi(batch)

    def recursion(self, world: World) -> Recursion | None:
        """Return the form that the exact oracle evaluates, in which θ acts."""
        return make("gae", lam=self.lam).recursion(world)


@register
@dataclass(frozen=True)
class ClippedSurrogate(Surrogate):
    """Φ_t = ρ_t A_t where PPO's objective min(ρ_t A_t, clip(ρ_t, 1 − ε, 1 + ε) A_t) still moves with ρ_t, 0 where it is flat.

    It is flat where A_t > 0 and ρ_t > 1 + ε, or A_t < 0 and ρ_t < 1 − ε: where the step has gone far enough in the direction that
    A_t asks for. A step that went the wrong way keeps its gradient, whatever ρ_t. Source: Proximal Policy Optimization Algorithms
    (Schulman, Wolski, Dhariwal, Radford, Klimov, 2017).

    Attributes:
        eps: ε.
    """

    eps: float = 0.2
    name = "clipped_surrogate"
    formula = "ρ_t A_t where min(ρ_t A_t, clip(ρ_t) A_t) moves with ρ_t, else 0"
    source = "Proximal Policy Optimization Algorithms (Schulman, Wolski, Dhariwal, Radford, Klimov, 2017)"

    def __post_init__(self) -> None:
        """Check λ and ε."""
        super().__post_init__()
        object.__setattr__(self, "eps", checks.in_range("eps of clipped_surrogate", self.eps, 0.0, 1.0))

    def phi(self, batch: Batch) -> Tensor:
        """Return ρ_t A_t or 0, [M]."""
        surrogate, ratio = super().phi(batch), batch.log_ratios.exp()
        flat = torch.where(surrogate > 0, ratio > 1 + self.eps, ratio < 1 - self.eps)
        return surrogate.masked_fill(flat, 0.0)
