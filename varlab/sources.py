"""Where a measurement's values come from: exact recursions or critics, each on a stream of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from varlab import storage, values
from varlab.envs.base import Environment
from varlab.estimators.base import Batch
from varlab.rng import Streams
from varlab.types import Trajectories, Values
from varlab.values import exact as exact_values
from varlab.values.critic import Critic

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
    ) -> None:
        """Prepare to make sources.

        Args:
            env: the world.
            policy: the policy whose values they are, in float64.
            options: ``values`` and ``critic`` of a plan.
            sample: root seed → critic stream.
            dtype: of critics.
            device: where values are looked up.
        """
        self.env, self.policy, self.options, self.dtype, self.device = env, policy, options, dtype, device
        self._sample = sample
        self.streams: dict[int, Trajectories] = {}
        self.critics: dict[tuple[int, float], Critic] = {}

    def critic_stream(self, seed: int) -> Trajectories:
        """Return the critic stream of a root seed, sampled once."""
        if seed not in self.streams:
            self.streams[seed] = self._sample(seed)
        return self.streams[seed]

    def of(self, gamma: float, seed: int) -> ValueSource:
        """Return the source of values for discount γ: exact, or critics fitted on the stream of ``seed``."""
        wanted = self.options["values"] if isinstance(self.options["values"], str) else "auto"
        if wanted == "exact" or (wanted == "auto" and exact_values.applies(self.env, self.policy)):
            return exact_values.source(self.env, self.policy, gamma, self.device)
        if (seed, gamma) not in self.critics:
            traj = self.critic_stream(seed)
            target = Batch(traj, Values(), gamma).reward_to_go
            sequence = Streams(seed).sequence("fit")
            self.critics[seed, gamma] = values.fit(
                self.env, traj, target, self.options["critic"], sequence, storage.digest, self.dtype
            )
        return self.critics[seed, gamma]
