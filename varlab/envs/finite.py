"""Finite MDPs as lists of outcomes, simulated as one batch of tensors.

For every state s and action a there are O outcomes (probability, s', reward, terminated). Two outcomes may share s' and
differ in reward, so the second moment of the reward is part of the model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import gymnasium
import numpy as np
import torch
from torch import Tensor

from varlab import checks, rng
from varlab.envs.base import Environment, starts


@dataclass(frozen=True)
class FiniteMDP:
    """A finite decision process.

    Attributes:
        probability: [S, A, O] float64, rows sum to 1 over O (padding has probability 0).
        next_state: [S, A, O] int64.
        reward: [S, A, O] float64.
        terminated: [S, A, O] bool, the process ends with this outcome.
        initial: [S] float64, distribution ρ_0 of s_0.
        observations: [S, ...] what the policy sees in each state; the index s itself if None.
    """

    probability: Tensor
    next_state: Tensor
    reward: Tensor
    terminated: Tensor
    initial: Tensor
    observations: Tensor | None = None

    def __post_init__(self) -> None:
        """Check shapes, probabilities and ranges.

        Raises:
            InputError: naming the first state and action that is wrong.
        """
        dtypes = {"probability": torch.float64, "reward": torch.float64, "initial": torch.float64}
        for name, dtype in (dtypes | {"next_state": torch.int64, "terminated": torch.bool}).items():
            object.__setattr__(self, name, torch.as_tensor(getattr(self, name)).to(dtype))
        shape = self.probability.shape
        for name in ("next_state", "reward", "terminated"):
            if getattr(self, name).shape != shape:
                raise checks.InputError(
                    f"Outcome tables of one shape [S, A, O] were expected, but probability has {tuple(shape)} and {name} has "
                    f"{tuple(getattr(self, name).shape)}; pad them to the same number of outcomes."
                )
        if len(shape) != 3 or self.initial.shape != shape[:1]:
            raise checks.InputError(
                f"Tables [S, A, O] and an initial distribution [S] were expected, but came {tuple(shape)} and "
                f"{tuple(self.initial.shape)}; reshape them."
            )
        # Written so that NaN, which fails every comparison, is bad too.
        bad = ~(((self.probability.sum(-1) - 1).abs() <= 1e-8) & (self.probability >= 0).all(-1))
        if bool(bad.any()):
            s, a = (int(i) for i in bad.nonzero()[0])
            raise checks.InputError(
                f"Outcome probabilities that are ≥ 0 and sum to 1 were expected, but those of state {s}, action {a} are "
                f"{self.probability[s, a].tolist()}; normalise them in float64."
            )
        if not (abs(float(self.initial.sum()) - 1) <= 1e-8 and bool((self.initial >= 0).all())):
            raise checks.InputError(
                f"An initial distribution that is ≥ 0 and sums to 1 was expected, but its sum is {float(self.initial.sum()):g}; "
                "normalise it."
            )
        if bool(((self.next_state < 0) | (self.next_state >= shape[0])).any()):
            raise checks.InputError(
                f"Next states in 0 … {shape[0] - 1} were expected, but the table holds others; renumber them."
            )
        if not bool(torch.isfinite(self.reward).all()):
            s, a, o = (int(i) for i in (~torch.isfinite(self.reward)).nonzero()[0])
            raise checks.InputError(
                f"Finite rewards were expected, but state {s}, action {a}, outcome {o} pays "
                f"{float(self.reward[s, a, o])}; mend the table."
            )

    @property
    def num_states(self) -> int:
        """S."""
        return self.probability.shape[0]

    @property
    def num_actions(self) -> int:
        """A."""
        return self.probability.shape[1]

    @cached_property
    def expected_reward(self) -> Tensor:
        """[S, A] float64, E[r | s, a]."""
        return (self.probability * self.reward).sum(-1)

    @cached_property
    def transition(self) -> Tensor:
        """[S, A, S] float64, probability of going on to s' (termination is the missing mass)."""
        out = self.probability.new_zeros(self.num_states, self.num_actions, self.num_states)
        return out.scatter_add_(-1, self.next_state, torch.where(self.terminated, 0.0, self.probability))

    @cached_property
    def reward_only_at_end(self) -> bool:
        """Whether every outcome that pays (with positive probability) also ends the episode."""
        return not bool(((self.reward != 0) & ~self.terminated & (self.probability > 0)).any())

    @property
    def seen(self) -> Tensor:
        """[S, ...] what the policy sees in each state."""
        return torch.arange(self.num_states) if self.observations is None else self.observations

    def with_termination(self, gamma: float) -> FiniteMDP:
        """Return the process that ends after each step with probability 1 − γ.

        Its undiscounted return has the mean of this process's γ-discounted return: the infinite-horizon discounted
        objective as termination.

        Args:
            gamma: probability γ of going on.

        Returns:
            A process with twice the outcomes.
        """
        checks.in_range("gamma", gamma, 0.0, 1.0)
        ended = replace(
            self,
            probability=torch.cat([gamma * self.probability, (1 - gamma) * self.probability], -1),
            next_state=self.next_state.repeat(1, 1, 2),
            reward=self.reward.repeat(1, 1, 2),
            terminated=torch.cat([self.terminated, torch.ones_like(self.terminated)], -1),
        )
        return ended

    @classmethod
    def from_lists(
        cls, lists: Sequence[Sequence[Sequence[tuple[float, int, float, bool]]]], initial: Sequence[float]
    ) -> FiniteMDP:
        """Build from ``lists[s][a] = [(probability, next state, reward, terminated), …]``.

        Equal outcomes are joined; each list is padded to the longest.

        Args:
            lists: outcomes of every state and action.
            initial: distribution of s_0.

        Returns:
            The finite MDP.

        Raises:
            InputError: if a state has another number of actions than the first, or a table is not valid.
        """
        num_states, num_actions = len(lists), len(lists[0])
        joined: list[list[dict[tuple[int, float, bool], float]]] = []
        for s in range(num_states):
            if len(lists[s]) != num_actions:
                raise checks.InputError(
                    f"The same {num_actions} actions were expected in every state, but state {s} has "
                    f"{len(lists[s])}; pad its actions."
                )
            joined.append([])
            for a in range(num_actions):
                merged: dict[tuple[int, float, bool], float] = {}
                for p, s_next, r, end in lists[s][a]:
                    key = (int(s_next), float(r), bool(end))
                    merged[key] = merged.get(key, 0.0) + float(p)
                joined[-1].append(merged)
        width = max(len(m) for row in joined for m in row)
        shape = (num_states, num_actions, width)
        probability, next_state = np.zeros(shape), np.zeros(shape, dtype=np.int64)
        reward, terminated = np.zeros(shape), np.zeros(shape, dtype=bool)
        for s, row in enumerate(joined):
            for a, merged in enumerate(row):
                for o, ((s_next, r, end), p) in enumerate(merged.items()):
                    probability[s, a, o], next_state[s, a, o], reward[s, a, o], terminated[s, a, o] = p, s_next, r, end
                total = probability[s, a].sum()
                if abs(total - 1) < 1e-8:  # thirds written in decimals
                    probability[s, a] /= total
        tables = (torch.from_numpy(x) for x in (probability, next_state, reward, terminated))
        return cls(*tables, initial=torch.as_tensor(np.asarray(initial, dtype=np.float64)))


class FiniteSimulator:
    """Simulates many episodes of a finite MDP as one batch of tensors."""

    def __init__(self, mdp: FiniteMDP, device: torch.device) -> None:
        """Move the tables to ``device``."""
        self.device = device
        self.num_actions, self.width = mdp.probability.shape[1:]
        # The last outcome that can happen (and below, the last first state): rounding of a cumulative sum must not select what
        # has probability 0.
        last = ((mdp.probability > 0) * torch.arange(1, self.width + 1)).amax(-1, keepdim=True) - 1
        cumulative = mdp.probability.cumsum(-1).masked_fill(torch.arange(self.width) >= last, math.inf)
        self.steps = cumulative.reshape(-1, self.width).T[:-1].contiguous().to(device)  # [O − 1, S A]
        self.next_state = mdp.next_state.reshape(-1).to(device)
        self.reward = mdp.reward.reshape(-1).to(device)
        self.terminated = mdp.terminated.reshape(-1).to(device)
        self.initial = mdp.initial.cumsum(0)[:-1].to(device)
        self.last_initial = int(mdp.initial.nonzero()[-1])
        self.observations = None if mdp.observations is None else mdp.observations.to(device)

    def _see(self) -> Tensor:
        return self.state if self.observations is None else self.observations[self.state]

    def reset(self, n: int, seed: np.random.SeedSequence, group: int = 1) -> Tensor:
        """Begin n episodes from ρ_0, each ``group`` consecutive ones in one state, and return what is seen, [n, ...]."""
        self.generator = rng.torch_generator(seed, self.device)
        u = torch.rand(starts(n, group), generator=self.generator, device=self.device, dtype=torch.float64)
        self.state = torch.searchsorted(self.initial, u, right=True).clamp_(max=self.last_initial).repeat_interleave(group)
        return self._see()

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Draw one outcome for each live episode; return what is seen, reward and termination."""
        pair = self.state * self.num_actions + action
        if self.width == 1:
            flat = pair
        else:
            u = torch.rand(pair.shape[0], generator=self.generator, device=self.device, dtype=torch.float64)
            flat = pair * self.width
            for step in self.steps:
                flat += u >= step.index_select(0, pair)
        self.state = self.next_state.index_select(0, flat)
        return self._see(), self.reward.index_select(0, flat), self.terminated.index_select(0, flat)

    def keep(self, alive: Tensor) -> None:
        """Drop finished episodes."""
        self.state = self.state[alive]

    def snapshot(self) -> Tensor:
        """Return the states of the live episodes, [n]."""
        return self.state

    def restore(self, saved: Tensor, seed: np.random.SeedSequence) -> None:
        """Go on from states [n]."""
        self.state = saved
        self.reseed(seed)

    def reseed(self, seed: np.random.SeedSequence) -> None:
        """Draw outcomes from ``seed`` from now on."""
        self.generator = rng.torch_generator(seed, self.device)


def environment(mdp: FiniteMDP, horizon: int, name: str = "FiniteMDP") -> Environment:
    """Return a finite MDP as an :class:`Environment` with H = ``horizon``."""
    seen = mdp.observations
    if seen is None:
        space: gymnasium.Space = gymnasium.spaces.Discrete(mdp.num_states)
    else:
        space = gymnasium.spaces.Box(-np.inf, np.inf, shape=tuple(seen.shape[1:]), dtype=np.float64)
    identity = {k: getattr(mdp, k) for k in ("probability", "next_state", "reward", "terminated", "initial", "observations")}
    return Environment(
        name=name,
        horizon=horizon,
        observation_space=space,
        action_space=gymnasium.spaces.Discrete(mdp.num_actions),
        make_simulator=lambda device: FiniteSimulator(mdp, device),
        part_size=4096,
        finite=mdp,
        identity={"name": name, **{k: v for k, v in identity.items() if v is not None}},
    )
