"""Where a measurement's values come from: exact recursions, critics on a stream of their own, or branches from saved states."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from varlab import policies, storage, values
from varlab.envs.base import Environment
from varlab.estimators.base import Batch, Estimator
from varlab.estimators.nodes import NodeEstimator
from varlab.rng import Streams
from varlab.types import Trajectories, Values
from varlab.values import exact as exact_values
from varlab.values.cloning import Cloning, node_name
from varlab.values.critic import Critic
from varlab.values.error import with_error

#: (trajectories, names asked for) → values; ``source`` is its name in rows, ``steps`` the environment steps it has cost.
ValueSource = Callable[[Trajectories, frozenset[str]], Values]


class Sources:
    """Sources of values for any discount and root seed; critic streams and critics are made once and used again.

    Attributes:
        streams: root seed → trajectories of its critic stream.
        critics: (root seed, γ) → critic.
    """

    def __init__(
        self,
        env: Environment,
        policy: nn.Module,
        options: Mapping[str, object],
        sample: Callable[[int], Trajectories],
        dtype: torch.dtype,
        device: torch.device,
        cores: int = 1,
    ) -> None:
        """Prepare to make sources.

        Args:
            env: the world.
            policy: the policy whose values they are, in float64.
            options: of a plan: ``values``, ``critic``, and what dials them.
            sample: root seed → critic stream.
            dtype: of critics, and of the policy in branches.
            device: where values are looked up.
            cores: how many may fit critics.
        """
        self.cores = cores
        self.env, self.policy, self.options, self.dtype, self.device = env, policy, options, dtype, device
        self._sample = sample
        self.streams: dict[int, Trajectories] = {}
        self.critics: dict[tuple[int, float], Critic] = {}

    def critic_stream(self, seed: int) -> Trajectories:
        """Return the critic stream of a root seed, sampled once."""
        if seed not in self.streams:
            self.streams[seed] = self._sample(seed)
        return self.streams[seed]

    def measured(self, gamma: float, seed: int) -> ValueSource:
        """Return the source that the measured Φ look values up in: as the plan says, with the error that it asks for.

        Args:
            gamma: γ.
            seed: root seed of the critic stream.

        Returns:
            The source, which may draw afresh for every trajectory.
        """
        given, error = self.options["values"], self.options["values_error"]
        base = given
        if given == "cloning":
            policy = policies.prepare(self.policy, self.dtype, self.device)
            m, at_cut = self.options["continuations"], self.options["at_cut"]
            base = Cloning(self.env, policy, m, gamma=gamma, at_cut=at_cut, device=self.device)
        elif isinstance(given, str):
            base = self.of(gamma, seed)
        if error == 0.0:
            return base
        same = {"env": self.env, "policy": self.policy, "device": self.device}
        return with_error(base, error, self.options["error_seed"], stream=lambda: self.critic_stream(seed), **same)

    def of(self, gamma: float, seed: int) -> ValueSource:
        """Return the best that a reference can have for discount γ: exact values, or critics fitted on the stream of ``seed``."""
        wanted = self.options["values"] if self.options["values"] in ("exact", "critic") else "auto"
        if wanted == "exact" or (wanted == "auto" and exact_values.applies(self.env, self.policy)):
            return exact_values.source(self.env, self.policy, gamma, self.device)
        if (seed, gamma) not in self.critics:
            traj = self.critic_stream(seed)
            target = Batch(traj, Values(), gamma).reward_to_go
            sequence = Streams(seed).sequence("fit")
            self.critics[seed, gamma] = values.fit(
                self.env, traj, target, self.options["critic"], sequence, storage.digest, self.dtype, gamma, self.cores
            )
        return self.critics[seed, gamma]


def cost(source: ValueSource | None, estimator: Estimator, nodes: Mapping[tuple[str, int], int], at_cut: bool) -> int:
    """Return the environment steps that the values of one Φ have cost.

    Args:
        source: of values: branches are charged to what asks for them, the data of a critic to whatever needs it.
        estimator: the choice of Φ.
        nodes: kind of nodes → J.
        at_cut: whether a rule looks up V at the cut.

    Returns:
        Steps.
    """
    spent = getattr(source, "spent", None)
    if spent is None:
        return getattr(source, "steps", 0) if estimator.needs or at_cut else 0
    at_nodes = node_name(estimator.rule, nodes[estimator.key]) if isinstance(estimator, NodeEstimator) else "q_nodes"
    names = {at_nodes if name == "q_nodes" else name for name in estimator.asks}
    return sum(spent[name] for name in names | ({"v_last", "v_stale"} if at_cut else set()))
