"""Φ from the returns of a group: G trajectories, most often from one start, serve as each other's baseline.

All of them are R_i less a baseline, the same at every step of trajectory i; they differ in whether the baseline has seen R_i.
If it has not, E[z_t b] = 0 and the mean stays ∇J; if it has, a part of ∇J is subtracted too.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from varlab import checks
from varlab.estimators.base import Batch, Estimator, register

#: Added to a standard deviation, so that equal returns give 0 and not 0/0.
TINY = 1e-8


def whole_units(estimator: Estimator, batch: Batch) -> None:
    """Check that a batch consists of whole units that are large enough.

    Raises:
        InputError: if they are too small, or the trajectories do not fill them.
    """
    estimator.check_unit(batch.group, batch.unit // batch.group)
    if len(batch.traj) % batch.unit or batch.unit % batch.group:
        raise checks.InputError(
            f"Whole units of {batch.unit} trajectories in groups of {batch.group} were expected for {estimator.label}, but "
            f"{len(batch.traj)} trajectories of {batch.traj.env} came; give a multiple."
        )


@dataclass(frozen=True)
class GroupEstimator(Estimator):
    """Φ_t = A_i at every step of trajectory i, with A a function of the returns R_γ of one unit.

    As in total_return, the discount is inside R_γ.

    Attributes:
        least_groups: groups that a unit must have.
    """

    batchwise = True
    weighted = False
    least_groups = 1

    def check_unit(self, group_size: int, groups: int) -> None:
        """Refuse groups of one trajectory, and units of too few groups.

        Raises:
            InputError: saying how many there should be.
        """
        for name, words, found, least in (
            ("group_size", "trajectories in a group", group_size, 2), ("groups", "groups in a unit", groups, self.least_groups)
        ):  # fmt: skip
            if found < least:
                raise checks.InputError(
                    f"At least {least} {words} were expected for {self.label}, but {name} is {found}; set {name}="
                    f"{max(8, least)} or another number."
                )

    @abstractmethod
    def advantage(self, returns: Tensor) -> Tensor:
        """Return A [U, m, G] for returns [U, m, G] of U units with m groups of G trajectories."""

    def phi(self, batch: Batch) -> Tensor:
        """Return A_i repeated over its episode, [M].

        Raises:
            InputError: if groups or units are too small.
        """
        whole_units(self, batch)
        returns = batch.reward_to_go[batch.traj.offsets[:-1]]
        shaped = returns.view(-1, batch.unit // batch.group, batch.group)
        return self.advantage(shaped).flatten()[batch.traj.episode]


def others(returns: Tensor) -> Tensor:
    """Return the mean of the other returns of each group, [..., G]: (Σ_j R_j − R_i) / (G − 1)."""
    return (returns.sum(-1, keepdim=True) - returns) / (returns.shape[-1] - 1)


@register
@dataclass(frozen=True)
class LeaveOneOut(GroupEstimator):
    """Φ_t = R_i − mean_{j≠i} R_j over the group, which is G/(G − 1) times R_i less the mean of all.

    The baseline is independent of trajectory i given its start, so that E g = ∇J. Source: Buy 4 REINFORCE Samples, Get a
    Baseline for Free! (Kool, van Hoof, Welling, 2019); as RLOO in Back to Basics (Ahmadian et al., 2024).
    """

    name = "leave_one_out"
    formula = "R_i − mean_{j≠i} R_j"
    source = "Buy 4 REINFORCE Samples, Get a Baseline for Free! (Kool, van Hoof, Welling, 2019)"

    def advantage(self, returns: Tensor) -> Tensor:
        """Return R_i − mean_{j≠i} R_j."""
        return returns - others(returns)


@register
@dataclass(frozen=True)
class GroupMean(GroupEstimator):
    """Φ_t = R_i − mean_j R_j with R_i itself in the mean: E g = (G − 1)/G ∇J.

    R_i weighs 1/G in its own baseline and takes that part of ∇J with it; the direction is right. It is the advantage of
    Dr. GRPO, which is GRPO without the divisions by the standard deviation and by the length. Source: Understanding
    R1-Zero-Like Training: A Critical Perspective (Liu, Chen, Li, Qi, Pang, Du, Lee, Lin, 2025).
    """

    name = "group_mean"
    unbiased = "biased"
    formula = "R_i − mean_j R_j"
    source = "Understanding R1-Zero-Like Training: A Critical Perspective (Liu, Chen, Li, Qi, Pang, Du, Lee, Lin, 2025)"

    def advantage(self, returns: Tensor) -> Tensor:
        """Return R_i − mean_j R_j."""
        return returns - returns.mean(-1, keepdim=True)


@register
@dataclass(frozen=True)
class GroupNormalised(GroupEstimator):
    """Φ_t = (R_i − mean_j R_j) / (std_j R_j + 1e-8), std with G − 1: the advantage of GRPO.

    The division weighs starts by about 1/std of their returns, so that E g has another direction than ∇J however large G is
    (:func:`varlab.envs.prompts.group_normalised_factor` for returns 0 and 1). GRPO's loss further divides the sum over steps by
    the length T_i; here it is the sum. Source: DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models
    (Shao, Wang, Zhu, Xu, Song, et al., 2024).
    """

    name = "group_normalised"
    unbiased = "biased"
    target = "direction"
    formula = "(R_i − mean_j R_j) / (std_j R_j + 1e-8)"
    source = (
        "DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models (Shao, Wang, Zhu, Xu, Song, et al., "
        "2024)"
    )

    def advantage(self, returns: Tensor) -> Tensor:
        """Return the standardised returns."""
        return (returns - returns.mean(-1, keepdim=True)) / (returns.std(-1, keepdim=True) + TINY)


@register
@dataclass(frozen=True)
class JamesStein(GroupEstimator):
    """Φ_t = R_i − b_i with b_i between the leave-one-out mean of the group and the mean of the other groups.

    b_i = (1 − λ) mean_{j≠i} R_j + λ c, with c the mean over the m − 1 other groups of the unit. λ comes from these groups alone:
    b_i then is a function of trajectories that are independent of trajectory i given its start, and E g = ∇J.

    λ is the minimiser of E(b_i − μ)², μ the mean return of the group's start, if starts have means of variance τ² and returns
    have variance σ² about them: the first mean has error variance v = σ²/(G − 1); c differs from μ by τ² + (τ² + σ²/G)/(m − 1)
    = s in mean square, and independently. So λ = v/(v + s): within variance over total spread. With σ̂² the mean of the variances
    within the other groups and S² the variance of their means, which estimates τ² + σ²/G,

        λ = min(1, v̂ / (v̂ + m/(m − 1) S² − σ̂²/G)),   v̂ = σ̂²/(G − 1),   and 0 where both vanish,

    so that the means of v̂ and of the denominator are v and v + s. Leaving out on two levels, the trajectory and its group, is the
    source's; in its authors' code v is σ̂²/G and s the mean square deviation of the other means, which holds a part of σ² too. It
    needs m ≥ 3, for a spread of at least two other means. Source: Shrinking the Variance: Shrinkage Baselines for Reinforcement
    Learning with Verifiable Rewards (Zeng, Zhou, Arora, Zanette, 2025).
    """

    name = "james_stein"
    least_groups = 3
    formula = "R_i − (1 − λ) mean_{j≠i} R_j − λ mean of the other groups"
    source = (
        "Shrinking the Variance: Shrinkage Baselines for Reinforcement Learning with Verifiable Rewards (Zeng, Zhou, Arora, "
        "Zanette, 2025)"
    )

    def advantage(self, returns: Tensor) -> Tensor:
        """Return R_i − b_i."""
        centre, v, total = (x[..., None] for x in self.spreads(returns))
        lam = torch.where(total > 0, v / total, 0.0).clamp(max=1.0)
        return returns - (1 - lam) * others(returns) - lam * centre

    def spreads(self, returns: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return c, v̂ and the estimate of v + s, each [U, m], of every group from the other groups."""
        m, size = returns.shape[1:]
        mean, within = returns.mean(-1), returns.var(-1)  # [U, m]
        other = ~torch.eye(m, dtype=torch.bool, device=returns.device)
        # [U, m, m − 1]: row g holds the groups other than g; no sums are subtracted, so that S² keeps its digits.
        means, sigma_sq = (x[:, None].expand(-1, m, m)[:, other].view(-1, m, m - 1) for x in (mean, within))
        v = sigma_sq.mean(-1) / (size - 1)
        return means.mean(-1), v, v / size + means.var(-1) * m / (m - 1)  # v̂ − σ̂²/G = v̂/G
