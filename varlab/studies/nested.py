"""Nested sampling where no oracle applies: states of independent episodes, actions in each, continuations of each.

At time t every episode that is still alive is gone on with from its saved state: A fresh actions, R fresh continuations of
each to the horizon or the end. One continuation gives Φ for several λ at once, as λ-returns

    G_t^λ = V_t(s_t) + Σ_l (γλ)^l δ_{t+l},

which for λ = 1 is the return whatever V is, and of which V_t(s_t) is taken off as a baseline. Costs n (1 + A R) episodes for the
first time step and n A R shorter ones for every other. Source of the design: The Mirage of Action-Dependent Baselines in
Reinforcement Learning (Tucker et al., 2018), with independent episodes in place of states of one training batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from varlab import capabilities, checks, policies, scores
from varlab.analysis.nested import NestedSample
from varlab.capabilities import Cloneable
from varlab.envs.base import Environment
from varlab.envs.replay import check_replay
from varlab.policies.base import sample
from varlab.rng import Streams, children, descend, torch_generator
from varlab.rollout import rollout
from varlab.types import Trajectories

#: Branches that are stepped together: rows of tensors, or instances of an environment.
TILE = 2**14

StateValue = Callable[[Tensor, Tensor], Tensor]
Baseline = Callable[[Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """What was sampled at one time step.

    Attributes:
        time: t.
        samples: λ → nested sample.
        baselines: name → [N, A] baseline at each state and action.
        steps: environment steps of its branches.
    """

    time: int
    samples: Mapping[float, NestedSample]
    baselines: Mapping[str, np.ndarray]
    steps: int


@torch.no_grad()
def nested(
    env: Environment,
    policy: nn.Module,
    times: Sequence[int],
    *,
    n: int,
    gamma: float = 1.0,
    discount_weighting: bool = True,
    v: StateValue | None = None,
    lams: Sequence[float] = (1.0,),
    baselines: Mapping[str, Baseline] | None = None,
    actions: int = 2,
    rollouts: int = 2,
    seed: int = 0,
) -> list[Step]:
    """Sample the terms z_t Φ_t of some time steps in a nested design.

    Args:
        env: a world whose states can be saved and restored.
        policy: whose scores and continuations they are.
        times: the t, each below the horizon.
        n: independent episodes.
        gamma: discount γ.
        discount_weighting: whether step t is weighted by γ^t.
        v: (obs [m, ...], t [m]) → V [m]; needed for λ < 1, and lowers the noise of the state's component.
        lams: the λ of Φ = G^λ.
        baselines: name → (obs [m, ...], action [m, ...], t [m]) → b [m]; one of the state alone leaves the action unread.
        actions: A ≥ 2.
        rollouts: R ≥ 2.
        seed: root seed.

    Returns:
        One record per time step, over the same episodes.

    Raises:
        InputError: for a time beyond the horizon, λ < 1 without v, or a world whose states do not replay.
    """
    times = sorted({checks.positive_int("time of a step", t, least=0) for t in times})
    if not times or times[-1] >= env.horizon:
        raise checks.InputError(
            f"Times from 0 to {env.horizon - 1} were expected on {env.name}, but they are {times}; a term belongs to a step."
        )
    if v is None and any(lam != 1.0 for lam in lams):
        raise checks.InputError(f"A function v was expected for λ below 1, but lams={list(lams)} came without; pass v.")
    job = _Branches(env, policies.prepare(policy, torch.float64, torch.device("cpu")), gamma, v, tuple(lams), seed)
    traj = rollout(env, job.policy, n, job.streams.sequence("rollout"), cut=times[-1] + 1, snapshots=True)
    return [
        job.step(traj, t, actions, rollouts, gamma**t if discount_weighting else 1.0, dict(baselines or {})) for t in times
    ]


class _Branches:
    """Continuations of one policy from saved states."""

    def __init__(
        self, env: Environment, policy: nn.Module, gamma: float, v: StateValue | None, lams: tuple[float, ...], seed: int
    ) -> None:
        self.env, self.policy, self.gamma, self.lams, self.streams = env, policy, gamma, lams, Streams(seed)
        self.simulator: Cloneable = check_replay(env, torch.device("cpu"))
        self.known = v is not None
        self.v = v or (lambda obs, t: torch.zeros(len(obs), dtype=torch.float64))
        self.map: scores.ScoreMap | None = None

    def step(
        self, traj: Trajectories, t: int, actions: int, rollouts: int, weight: float, baselines: dict[str, Baseline]
    ) -> Step:
        """Return the sample of time t."""
        lives = traj.length > t
        rows = traj.offsets[:-1][lives] + t
        if not len(rows):
            raise checks.InputError(
                f"Episodes that are alive at time {t} were expected on {self.env.name}, but all {len(traj)} had ended; name "
                "earlier times or raise n."
            )
        obs, saved = traj.obs[rows], capabilities.take(traj.snapshots.steps, rows)
        chosen, taken = children(self.streams.sequence("branch", t), 2)
        generator = torch_generator(chosen)
        each = obs.repeat_interleave(actions, 0)
        action = sample(self.policy(each), generator)
        again = torch.arange(len(obs)).repeat_interleave(actions * rollouts)
        tiles = zip(again.split(TILE), action.repeat_interleave(rollouts, 0).split(TILE), strict=True)
        total, steps = [], 0
        for i, (index, act) in enumerate(tiles):
            world, drawn = descend(taken, i, 0), descend(taken, i, 1)
            found, cost = self.go_on(capabilities.take(saved, index), obs[index], act, t, world, torch_generator(drawn))
            total.append(found)
            steps += cost
        phi = torch.cat(total).reshape(len(obs), actions, rollouts, len(self.lams))
        when = torch.full((len(obs),), t)
        level = self.v(obs, when).double()
        gram, mean = self.scores_of(each.unflatten(0, (-1, actions)), action.unflatten(0, (-1, actions)), phi, level)
        spread = {}
        for name, b in baselines.items():
            value = b(each, action, when.repeat_interleave(actions))
            spread[name] = self._full(value.double().reshape(-1, actions), lives)
        samples = {
            lam: NestedSample(
                self._full(phi[..., k], lives), self._full(gram, lives), lives.double().numpy(), self._full(mean[:, k], lives),
                self._full(level, lives), weight,
            )
            for k, lam in enumerate(self.lams)
        }  # fmt: skip
        return Step(t, samples, spread, steps)

    @staticmethod
    def _full(x: Tensor, lives: Tensor) -> np.ndarray:
        out = torch.zeros(len(lives), *x.shape[1:], dtype=torch.float64)
        out[lives] = x.double()
        return out.numpy()

    def scores_of(self, obs: Tensor, action: Tensor, phi: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """Return ⟨z_ij, z_ij'⟩ [m, A, A] and (1/A) Σ_j z_ij (Φ_ij − v_i) [m, L, P]."""
        if self.map is None:
            self.map = scores.make(self.policy, obs[0], action[0])
        weights = (phi.mean(2) - level[:, None, None]).mT / action.shape[1]
        made = [
            (batch.gram(), batch.apply(w))
            for o, a, w in zip(obs.split(64), action.split(64), weights.split(64), strict=True)
            for batch in [self.map.at(o, a)]
        ]
        return tuple(torch.cat(x) for x in zip(*((g.clone(), m.clone()) for g, m in made), strict=True))

    def go_on(
        self, saved: object, obs: Tensor, action: Tensor, t: int, world: np.random.SeedSequence, generator: torch.Generator
    ) -> tuple[Tensor, int]:
        """Return λ-returns [m, L] of continuations that begin with ``action`` at time t, and their environment steps."""
        world_of = self.simulator
        world_of.restore(saved, world)
        m = len(obs)
        live, steps = torch.arange(m), 0
        lam = self.gamma * torch.tensor(self.lams, dtype=torch.float64)
        value = self.v(obs, torch.full((m,), t)).double()
        total = value[:, None].repeat(1, len(self.lams))
        for k in range(self.env.horizon - t):
            obs, reward, end = world_of.step(action if k == 0 else sample(self.policy(obs), generator))
            steps += len(obs)
            last = t + k + 1 == self.env.horizon
            later = torch.zeros(len(obs), dtype=torch.float64)
            if self.known and not last:
                later = torch.where(end, later, self.v(obs, torch.full((len(obs),), t + k + 1)).double())
            total[live] += lam**k * (reward + self.gamma * later - value)[:, None]
            if last or bool(end.all()):
                break
            if bool(end.any()):
                world_of.keep(~end)
                obs, live, later = obs[~end], live[~end], later[~end]
            elif getattr(world_of, "cut_short", None):
                world_of.keep(~end)
            value = later
        return total, steps

