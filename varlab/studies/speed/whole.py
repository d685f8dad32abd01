"""A whole measurement beside the loop that an introductory text would write for it.

The loop runs one environment and one backward pass per trajectory and Φ. It is timed on some trajectories and scaled by
trajectories × Φ, its reference (one Φ) included; critic, pilot and intervals cost it nothing here, but are in varlab's time.
"""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from scipy.signal import lfilter
from torch import nn

import varlab
from varlab import envs, policies
from varlab.estimators import SOURCE_TEXT
from varlab.studies.speed.race import Budget, row, seconds
from varlab.studies.speed.targets import WHOLE_LOOP, Row

WORK = "whole measurement, CartPole-v1"


class Loop:
    """One environment, one trajectory at a time, one backward pass for each Φ, running moments in float64."""

    def __init__(self, env_id: str, policy: nn.Module, choices: int) -> None:
        """Make the environment; the k-th Φ is a tail sum with its own decay, as a GAE is."""
        self.env, self.policy = gymnasium.make(env_id), policy
        self.theta = list(policy.parameters())
        p = sum(x.numel() for x in self.theta)
        self.decay = np.linspace(0.9, 1.0, choices)
        self.first, self.second = (torch.zeros(choices, p, dtype=torch.float64) for _ in range(2))
        self.episodes = 0

    def sample(self) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
        """Return observations, actions and rewards of one episode."""
        obs, _ = self.env.reset(seed=self.episodes)
        self.episodes += 1
        seen, taken, paid, over = [], [], [], False
        while not over:
            with torch.no_grad():
                action = self.policy(torch.as_tensor(obs, dtype=torch.float32).unsqueeze(0)).sample().item()
            seen.append(obs)
            taken.append(action)
            obs, reward, terminated, truncated, _ = self.env.step(action)
            paid.append(reward)
            over = terminated or truncated
        return torch.as_tensor(np.array(seen), dtype=torch.float32), torch.as_tensor(taken), np.array(paid)

    def gradients(self, obs: torch.Tensor, action: torch.Tensor, reward: np.ndarray) -> None:
        """Add the gradient of one episode under every Φ to the moments."""
        for k, decay in enumerate(self.decay):
            phi = torch.as_tensor(lfilter([1], [1, -decay], reward[::-1])[::-1].copy(), dtype=torch.float32)
            for x in self.theta:
                x.grad = None
            (self.policy(obs).log_prob(action) * phi).sum().backward()
            g = torch.cat([x.grad.flatten() for x in self.theta]).double()
            self.first[k] += g
            self.second[k] += g.square()


def whole(budget: Budget, n: int = 20_000, loop_trajectories: int = 200) -> list[Row]:
    """Measure every Φ of the source text on CartPole with the MLP, reference included.

    Args:
        budget: repeats.
        n: trajectories of varlab's measurement.
        loop_trajectories: trajectories that the loop is timed on in each round.

    Returns:
        One row.
    """
    env = envs.make("CartPole-v1")
    policy = policies.make("mlp", env)
    loop = Loop("CartPole-v1", policy, len(SOURCE_TEXT))
    ratios, own, said = [], [], ""
    for _ in range(budget.rounds):
        result = varlab.measure(env, policy, n=n, sink=lambda rows: None)
        own.append(result.wall)
        n_reference = int(result.summary["n_reference"].iloc[0])
        episodes: list[tuple] = []
        sampled = seconds(lambda e=episodes: e.extend(loop.sample() for _ in range(loop_trajectories))) / loop_trajectories
        backward = seconds(lambda e=episodes: [loop.gradients(*x) for x in e]) / (loop_trajectories * len(SOURCE_TEXT))
        total = n * (sampled + len(SOURCE_TEXT) * backward) + n_reference * (sampled + backward)
        ratios.append(total / own[-1])
        said = f"n = {n:,}, n_reference = {n_reference:,}, K = {len(SOURCE_TEXT)}; loop timed on {loop_trajectories} trajectories"
    return [row(WORK, WHOLE_LOOP, ratios, float(np.median(own)), said)]
