"""A critic's first-order expansion about the mean action as control variate."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from varlab import checks
from varlab.envs.base import Environment
from varlab.estimators.base import Batch, register, tail_sum
from varlab.estimators.nodes import LEAST, NodeEstimator


@register
@dataclass(frozen=True)
class QProp(NodeEstimator):
    """Φ_t = Â_t − c_tᵀ (a_t − μ_t) with c_t = ∂Q_t(s_t, a)/∂a at the mean action μ_t, and ψ_tj = c_tᵀ (a_tj − μ_t).

    Â_t is the generalised advantage, with λ = 1 G_t − V_t(s_t). Moving one coordinate of the action at a time to its three nodes,
    Σ_j p_tj z(s_t, a_tj) ψ_tj = (∂μ_t/∂θ)ᵀ c_t exactly: the score of the mean action is linear in a, and that of log σ, even
    about μ_t, drops out. So the mean is that of Â_t whatever Q is. Source: Q-Prop: Sample-Efficient Policy Gradient with an
    Off-Policy Critic (Gu, Lillicrap, Ghahramani, Turner, Levine, 2017), with η = 1.

    Attributes:
        lam: λ of Â_t in [0, 1].
    """

    rule: ClassVar[str] = "coordinate"
    nodes: int = field(default=LEAST, init=False, repr=False)
    lam: float = 1.0
    name = "q_prop"
    needs = frozenset({"v", "q"})
    asks = frozenset({"v", "q_slope"})
    formula = "Â_t − c_tᵀ (a_t − μ_t), c_t = ∂Q_t/∂a at μ_t, and ∇μ_t c_t"
    source = "Q-Prop: Sample-Efficient Policy Gradient with an Off-Policy Critic (Gu et al., 2017)"

    @property
    def unbiased(self) -> str:
        """Whether it needs exact values: only λ = 1 does not."""
        return "always" if self.lam == 1.0 else "given exact values"

    def __post_init__(self) -> None:
        """Check λ."""
        object.__setattr__(self, "lam", checks.in_range("lam of q_prop", self.lam, 0.0, 1.0))

    def count(self, env: Environment) -> int:
        """Return J = 3 D.

        Raises:
            InputError: for discrete actions.
        """
        if env.discrete_actions:
            self._refuse(env.name)
        return super().count(env)

    def phi(self, batch: Batch) -> Tensor:
        """Return Â_t − c_tᵀ (a_t − μ_t), [M]."""
        slope, mean = self._slope(batch), batch.traj.nodes.mean.double()
        advantage = tail_sum(batch.traj, batch.td_residual, batch.gamma * self.lam)
        return advantage - (slope * (batch.traj.action.double() - mean)).sum(1)

    def node_phi(self, batch: Batch) -> Tensor:
        """Return c_tᵀ (a_tj − μ_t), [M, J]: c_td times how far node j of dimension d lies from μ_td.

        The part of the dimensions that stay where a_t is would be the same at all nodes of d, and is left out: with it the sum
        over the nodes would hold the scores of the other dimensions too.
        """
        slope, nodes = self._slope(batch), batch.traj.nodes
        dims = slope.shape[1]
        moved = nodes.action.unflatten(1, (dims, -1)).diagonal(dim1=1, dim2=3)  # [M, m, D]
        off = moved.double() - nodes.mean.double().unsqueeze(1)
        return (slope.unsqueeze(1) * off).transpose(1, 2).flatten(1)

    def _slope(self, batch: Batch) -> Tensor:
        if batch.traj.nodes.mean is None:
            self._refuse(batch.traj.env)
        if batch.values.q_slope is None:
            raise checks.InputError(
                f"Values q_slope [M, D] were expected for {self.label}, but the source {batch.values.source} gives none; return "
                "∂Q/∂a at traj.nodes.mean where 'q_slope' is asked for."
            )
        return batch.values.q_slope

    def _refuse(self, env: str) -> None:
        raise checks.InputError(
            f"Continuous actions were expected for {self.label}, which expands Q about the mean action, but those of {env} are "
            "discrete; name state_action_control_variate, which takes Q at every action."
        )
