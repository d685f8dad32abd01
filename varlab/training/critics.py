"""Where values come from along training: critics that follow the policy with warm starts, exact tables at every θ, or given.

    φ_k = argmin_φ E_{s_t, Ĝ_t ∼ π_k} (V_φ(s_t) − Ĝ_t)², by ``train_v_iters`` steps of Adam from φ_{k−1},

and Q_φ(s_t, a_t) likewise. Epoch k reads V and Q of φ_{k−1}, which saw the batches before it and not its own: on it V_φ is a
baseline that leaves the mean alone. φ_{−1} is not fitted at all. Adam's moments are kept from epoch to epoch. Source: Spinning Up
in Deep RL, Vanilla Policy Gradient (Achiam, 2018).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from varlab import checks, policies
from varlab.envs.base import Environment
from varlab.sources import ValueSource
from varlab.types import Trajectories
from varlab.values import critic
from varlab.values import exact as exact_values

#: A float32 takes no step size much larger.
LARGEST_LR = 1e30


@dataclass(frozen=True)
class CriticUpdates:
    """How critics follow the policy.

    Attributes:
        hidden: widths of the hidden layers.
        activation: name of the activation.
        lr: step size of Adam.
        train_v_iters: full-batch steps after every epoch.
        init: φ of an earlier critic (``Training.critic``), or None for a fresh start.
    """

    hidden: Sequence[int] = (64, 64)
    activation: str = "tanh"
    lr: float = 1e-3
    train_v_iters: int = 80
    init: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            InputError: for a negative number of steps or a step size that is not positive.
        """
        checks.positive_int("critic.train_v_iters", self.train_v_iters, least=0)
        for width in self.hidden:
            checks.positive_int("critic.hidden", width)
        if not 0 < self.lr <= LARGEST_LR:
            raise checks.InputError(
                f"A positive critic.lr (of at most {LARGEST_LR:g}) was expected, but it is {self.lr!r}; set for instance "
                "critic.lr=0.001."
            )


class FollowingCritic:
    """V_φ and Q_φ that are fitted a little after every epoch."""

    def __init__(
        self,
        env: Environment,
        settings: CriticUpdates,
        need: frozenset[str],
        sequence: np.random.SeedSequence,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """Make φ_{−1}.

        Args:
            env: gives input sizes.
            settings: network and optimiser.
            need: which of ``v`` and ``q`` are read, and so fitted.
            sequence: seed of the initialisation.
            dtype: of the networks.
            device: where they live.
        """
        self.env, self.settings, self.need = env, settings, need
        self.network = critic.new_network(env, settings, sequence, dtype, device)
        self.scaled = settings.init is not None
        if settings.init is not None:
            critic.start_from(self.network, settings.init, env.name, settings.hidden)
        self.optimizer = critic.adam(self.network, settings.lr)
        self.steps = 0

    def source(self, policy: nn.Module) -> ValueSource:
        """Return V_φ and Q_φ as they are; the policy has nothing to say."""
        return critic.Critic(self.network, "critic:training", self.steps, float("nan"), (float("nan"), float("nan")))

    def update(self, traj: Trajectories, target: Tensor) -> None:
        """Move φ towards the reward-to-go of one batch.

        Args:
            traj: the batch.
            target: [M] reward-to-go.

        Raises:
            InputError: if φ is no longer finite.
        """
        if not self.scaled:
            critic.set_scale(self.network, target)
            self.scaled = True
        goal = target.to(self.network.scale.dtype)
        whole_batch = itertools.repeat(None, self.settings.train_v_iters)
        critic.descend(self.network, self.optimizer, traj, goal, whole_batch, self.need)
        self.steps += traj.cost
        if not all(bool(torch.isfinite(p).all()) for p in self.network.parameters()):
            raise checks.InputError(
                f"Finite critics were expected on {self.env.name}, but φ holds NaN or infinity after {self.steps} steps; lower "
                f"critic.lr={self.settings.lr}."
            )

    def state_dict(self) -> dict[str, Tensor]:
        """Return φ."""
        return {name: x.detach().cpu().clone() for name, x in self.network.state_dict().items()}


class ExactAtTheta:
    """Exact values at every θ, where the world has them."""

    def __init__(self, env: Environment, gamma: float, device: torch.device) -> None:
        """Keep the world."""
        self.env, self.gamma, self.device = env, gamma, device

    def source(self, policy: nn.Module) -> ValueSource:
        """Return the values of the policy at its present θ."""
        return exact_values.source(self.env, policies.prepare(policy, torch.float64, self.device), self.gamma, self.device)

    def update(self, traj: Trajectories, target: Tensor) -> None:
        """Learn nothing."""


class GivenValues:
    """A function of trajectories that a user gave, the same at every θ; None where nothing reads values."""

    def __init__(self, given: ValueSource | None) -> None:
        """Keep the function."""
        self.given = given

    def source(self, policy: nn.Module) -> ValueSource | None:
        """Return the function."""
        return self.given

    def update(self, traj: Trajectories, target: Tensor) -> None:
        """Learn nothing."""
