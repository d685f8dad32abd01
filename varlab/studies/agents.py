"""Agents frozen along training: θ_k with the critic that the agent itself has there, ready to be measured.

Epoch k of :func:`varlab.training.train` reads φ_{k−1}, fitted on the batches of θ_0 … θ_{k−1}; that is the critic of θ_k here.
θ_0 has seen no batch: its critic is that of its first one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from varlab import policies, storage, values
from varlab.envs.base import Environment
from varlab.envs.registry import make
from varlab.estimators.base import Batch
from varlab.plans import plan
from varlab.preparation import Preparation
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.training import CriticUpdates, train
from varlab.types import Trajectories, Values
from varlab.values import Critic, CriticSettings


@dataclass(frozen=True)
class Course:
    """How an agent is trained, and where it is looked at.

    Attributes:
        env: Gymnasium id.
        horizon: H.
        gamma: γ; steps are not weighted by γ^t, as in practice.
        epochs: label → epochs trained so far.
        episodes: of every batch.
        lr: step size of Adam.
        lam: λ of the GAE that it learns from, standardised over each batch.
    """

    env: str
    horizon: int
    gamma: float
    epochs: Mapping[str, int]
    episodes: int
    lr: float
    lam: float = 0.95
    weighting: bool = field(default=False, init=False)

    def world(self) -> Environment:
        """Return the environment."""
        return make(self.env, horizon=self.horizon)


@dataclass(frozen=True)
class Agent:
    """What an agent is at one epoch.

    Attributes:
        course: of its training.
        label: of the epoch.
        policy: π_θ.
        critic: φ.
        seed: root seed.
        mean_return: of the last batch before.
    """

    course: Course
    label: str
    policy: nn.Module
    critic: Mapping[str, Tensor]
    seed: int
    mean_return: float

    def job(self, phi: object) -> Preparation:
        """Return a measurement of Φ with the agent's own V_φ that is about to begin."""
        course, critic = self.course, CriticSettings(n=1, steps=0, init=self.critic, seed=self.seed)
        return Preparation(
            plan(
                course.world(), self.policy, phi, n=50, gamma=course.gamma, discount_weighting=course.weighting, critic=critic,
                seed=self.seed, reference="sampled",
            )  # fmt: skip
        )

    def rollout(self, n: int, stream: str, block: int = 0) -> Trajectories:
        """Return n episodes of the agent."""
        policy = policies.prepare(self.policy, torch.float32, torch.device("cpu"))
        return rollout(self.course.world(), policy, n, Streams(self.seed).sequence(stream, block))

    def fitted(self, n: int, settings: CriticSettings) -> Critic:
        """Return V_t(s) fitted to the returns of n further episodes: with many, the policy's value function.

        Args:
            n: episodes, of the stream ``critic``.
            settings: of the fit.

        Returns:
            The critic.
        """
        traj = self.rollout(n, "critic", block=1)
        target = Batch(traj, Values(), self.course.gamma).reward_to_go
        sequence = Streams(self.seed).sequence("fit", 1)
        return values.fit(self.course.world(), traj, target, settings, sequence, storage.digest, gamma=self.course.gamma)


def agents(course: Course, seed: int) -> dict[str, Agent]:
    """Train one agent as far as each label says; all are states of the same run.

    Args:
        course: of the training.
        seed: root seed of θ_0, batches and critic.

    Returns:
        Label → agent.
    """
    env, found = course.world(), {}
    start = policies.make("mlp", env, theta_seed=seed)
    for label, epochs in course.epochs.items():
        # Repeated from the start: a run keeps every θ but only its last φ.
        run = train(
            env, start, f"gae(lam={course.lam})", epochs=max(1, epochs), episodes=course.episodes, lr=course.lr, normalise=True,
            gamma=course.gamma, discount_weighting=course.weighting, seed=seed, critic=CriticUpdates(),
        )  # fmt: skip
        policy = run.policy if epochs else start
        found[label] = Agent(course, label, policy, run.critic, seed, float(run.curve["mean_return"].iloc[-1]))
    return found
