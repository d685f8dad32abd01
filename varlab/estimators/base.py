"""What an estimator is: a rule that gives each step of a trajectory its weight Φ_t, so that g = Σ_t w_t z_t Φ_t.

A new Φ is one class: a name, what it needs, what it claims, its source, and ``phi``.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from varlab import checks
from varlab.envs.base import Environment
from varlab.estimators.recursion import Recursion
from varlab.types import Trajectories, Values
from varlab.values.targets import tail_sum

if TYPE_CHECKING:
    from varlab.oracles.world import World
    from varlab.scores.base import ScoreMap

AT_CUT = ("terminal", "bootstrap", "wrong_state")
#: What a Φ may claim of E g = ∇J.
CLAIMS = ("always", "given exact values", "biased")
#: What E g is compared with: ∇J; the best multiple of ∇J, where the scale is free; or A ∇J with A the estimator's matrix.
TARGETS = ("gradient", "direction", "natural")


@dataclass(frozen=True)
class Batch:
    """What a Φ reads: trajectories, values at their steps, γ, and the rule at a cut.

    Attributes:
        traj: N trajectories.
        values: values that were asked for.
        gamma: γ.
        at_cut: what follows an episode alive at the cut L < H: ``terminal`` (0), ``bootstrap`` (V_L(s_L)) or
            ``wrong_state`` (V_L(s_{L−1})). At t = H it is 0 whatever the rule.
        group: G; trajectory i is in group i // G.
        unit: trajectories of one unit, whole groups; trajectory i is in unit i // unit.
        log_ratio: [M] log π_θ(a_t | s_t) − log π_b(a_t | s_t) where another policy b took the actions; None where θ did.
    """

    traj: Trajectories
    values: Values
    gamma: float
    at_cut: str = "bootstrap"
    group: int = 1
    unit: int = 1
    log_ratio: Tensor | None = None

    @cached_property
    def reward(self) -> Tensor:
        """[M] r_t, with γ times the value that the rule puts after a cut added to an episode's last reward."""
        traj = self.traj
        cut = traj.truncated & (traj.length < traj.horizon)
        if self.at_cut == "terminal" or not bool(cut.any()):
            return traj.reward
        end = self.values.v_last if self.at_cut == "bootstrap" else self.values.v_stale
        reward = traj.reward.clone()
        reward[traj.last_row[cut]] += self.gamma * end[cut]
        return reward

    @cached_property
    def reward_to_go(self) -> Tensor:
        """[M] G_t = r_t + γ G_{t+1}."""
        return tail_sum(self.traj, self.reward, self.gamma)

    @cached_property
    def td_residual(self) -> Tensor:
        """[M] δ_t = r_t + γ V_{t+1}(s_{t+1}) − V_t(s_t); what follows the last step is inside its reward."""
        v = self.values.v
        v_next = torch.zeros_like(v)
        v_next[:-1] = v[1:]
        v_next[self.traj.last_row] = 0.0
        return self.reward + self.gamma * v_next - v

    @cached_property
    def discount(self) -> Tensor:
        """[M] γ^t."""
        return self.gamma ** self.traj.time.double()

    @property
    def log_ratios(self) -> Tensor:
        """[M] ``log_ratio``, 0 where θ itself took the actions."""
        return torch.zeros_like(self.traj.reward) if self.log_ratio is None else self.log_ratio


@dataclass(frozen=True)
class FitBatch(Batch):
    """The critic stream, from which estimators take their numbers, with what else of θ they may look at.

    Attributes:
        env: the world.
        policy: θ, in the measurement's dtype.
        scores: its score map.
        discount_weighting: whether step t is weighted by γ^t.
    """

    env: Environment | None = None
    policy: nn.Module | None = None
    scores: ScoreMap | None = None
    discount_weighting: bool = True


@dataclass(frozen=True)
class Estimator(ABC):
    """One choice of Φ_t.

    Attributes:
        name: its name in code, configuration, files and figures.
        needs: which of ``v`` and ``q`` it depends on.
        unbiased: ``always``, ``given exact values`` or ``biased``.
        weighted: whether the step weight w_t = γ^t applies (not to total_return, whose R_γ holds it already).
        fits: whether :meth:`fit` takes numbers from the critic stream.
        reads_stream: whether :meth:`fit` reads the trajectories of the critic stream, which are then part of its cost.
        batchwise: whether Φ is a function of a unit of several trajectories.
        linear: whether Φ (with what follows a cut) is linear in V and Q, so that it has the mean of exact values wherever values
            have theirs.
        target: one of :data:`TARGETS`.
        off_policy: whether its claim holds where another policy took the actions.
        formula: for tables.
        source: title, authors, year.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    unbiased: ClassVar[str] = "always"
    weighted: ClassVar[bool] = True
    fits: ClassVar[bool] = False
    reads_stream: ClassVar[bool] = True
    batchwise: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    target: ClassVar[str] = "gradient"
    off_policy: ClassVar[bool] = False
    formula: ClassVar[str]
    source: ClassVar[str]

    @classmethod
    def grid(cls, batch: Batch, members: Sequence[Estimator]) -> Tensor | None:
        """Return the Φ of several estimators of this class at once, [M, k], or None where each is taken by itself."""
        return None

    def check_unit(self, group_size: int, groups: int) -> None:  # noqa: B027
        """Refuse units that are too small for Φ; most Φ take any."""

    @property
    def label(self) -> str:
        """The name with its arguments, such as ``gae(lam=0.95)``."""
        arguments = [f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr]
        return self.name + (f"({', '.join(arguments)})" if arguments else "")

    @property
    def asks(self) -> frozenset[str]:
        """Which of ``v``, ``q`` and ``q_nodes`` it asks of a source of values at the steps: :attr:`needs`, if nothing else."""
        return self.needs

    @property
    def coefficients(self) -> Tensor | None:
        """[P] c in g = Σ_t w_t z_t Φ_t + c ∘ Σ_t z_t κ_t, κ from :meth:`companion`; None where there is no such term."""
        return None

    @property
    def matrix(self) -> Tensor | None:
        """[P, P] A, where the gradient is A g; None where it is g."""
        return None

    def bind(self, env: Environment, policy: nn.Module) -> Estimator:
        """Return this estimator with what it takes from the world and θ alone, before any sampling (nothing by default)."""
        return self

    def fit(self, batch: Batch) -> Estimator:
        """Return this estimator with the numbers it takes from the critic stream (none by default)."""
        return self

    def companion(self, batch: Batch) -> Tensor:
        """Return κ_t [M], weights of the scores that :attr:`coefficients` multiply parameter by parameter."""
        return torch.zeros_like(batch.traj.reward)

    def recursion(self, world: World) -> Recursion | None:
        """Return Φ as a recursion over a finite world (numpy tables), or None where the exact oracle does not apply."""
        return None

    @abstractmethod
    def phi(self, batch: Batch) -> Tensor:
        """Return Φ_t [M] float64 at every step of the batch."""


REGISTRY: dict[str, type[Estimator]] = {}


def register(cls: type[Estimator]) -> type[Estimator]:
    """Enter a class under its name."""
    REGISTRY[cls.name] = cls
    return cls


def weight(estimator: Estimator, batch: Batch, discount_weighting: bool) -> Tensor:
    """Return w_t Φ_t [M]: what multiplies the score z_t.

    Args:
        estimator: the choice of Φ.
        batch: what it reads.
        discount_weighting: w_t = γ^t if true, 1 if false.

    Returns:
        [M] float64.

    Raises:
        InputError: if Φ gave another shape.
    """
    phi = estimator.phi(batch)
    if phi.shape != batch.traj.reward.shape:
        raise checks.InputError(
            f"One Φ_t for each of the {batch.traj.steps} steps was expected from {estimator.label}, but it gave shape "
            f"{tuple(phi.shape)}; return a flat tensor [M]."
        )
    return phi * batch.discount if discount_weighting and estimator.weighted and batch.gamma != 1.0 else phi


def weights(estimators: Sequence[Estimator], batch: Batch, discount_weighting: bool) -> list[Tensor]:
    """Return :func:`weight` of each estimator; a grid of one class, such as GAE over λ, takes one pass over time.

    Args:
        estimators: the choices of Φ.
        batch: what they read.
        discount_weighting: w_t = γ^t if true, 1 if false.

    Returns:
        [M] float64 of each.
    """
    found: dict[int, Tensor] = {}
    for kind in {type(e): None for e in estimators}:
        index = [i for i, e in enumerate(estimators) if type(e) is kind]
        own = len(index) > 1 and "grid" in vars(kind)  # one that is inherited would not know what a subclass makes of Φ
        together = kind.grid(batch, [estimators[i] for i in index]) if own else None
        if together is not None:
            weighted = discount_weighting and kind.weighted and batch.gamma != 1.0
            together = together * batch.discount.unsqueeze(1) if weighted else together
            found |= dict(zip(index, together.unbind(1), strict=True))
    return [found[i] if i in found else weight(e, batch, discount_weighting) for i, e in enumerate(estimators)]
