"""All trajectories of a small finite world with their probabilities, and all units of N of them: moments by adding up.

For estimators that no recursion covers: functions of a batch, of ratios π_θ/π_b, or of whatever a user writes as Φ. Nothing is
sampled; ∇J and the recursions of :mod:`varlab.oracles.exact` are other routes to the same numbers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from varlab import checks, estimators, policies, scores, terms
from varlab.envs.base import Environment
from varlab.estimators.base import Batch, Estimator
from varlab.types import Trajectories, Values
from varlab.values.dynamic_programming import ExactValues, policy_table

#: Most trajectories, and most units, that are listed.
LIMIT = 500_000
#: Units whose gradients are made at once.
CHUNK = 4096


@dataclass(frozen=True)
class Listed:
    """Every unit that can occur, end to end, and its probability.

    Attributes:
        env: the world.
        policy: θ, in float64.
        traj: the trajectories, N consecutive ones to a unit.
        probability: [U] float64, of each unit; sums to 1.
        unit: N.
    """

    env: Environment
    policy: nn.Module
    traj: Trajectories
    probability: Tensor
    unit: int = 1

    @classmethod
    def of(cls, env: Environment, policy: nn.Module, behaviour: nn.Module | None = None) -> Listed:
        """List every trajectory of positive probability.

        Args:
            env: a world with finite dynamics.
            policy: θ, categorical on its states, whose scores are taken.
            behaviour: the policy that acts, if not θ.

        Returns:
            The trajectories, shorter ones first.

        Raises:
            InputError: for a world without finite dynamics, or of too many trajectories.
        """
        if env.finite is None:
            raise checks.InputError(
                f"A finite MDP was expected to list its trajectories, but {env.name} has no outcome lists; use varlab.measure."
            )
        double = policies.prepare(policy, torch.float64, torch.device("cpu"))
        acting = double if behaviour is None else policies.prepare(behaviour, torch.float64, torch.device("cpu"))
        with torch.no_grad():
            traj, probability = _walk(env, policy_table(acting, env.finite))
        return cls(env, double, traj, probability)

    def units(self, size: int) -> Listed:
        """List the units of ``size`` independent trajectories, one order of each standing for all.

        That suits every Φ that does not look at the order of the trajectories in a unit.

        Args:
            size: N, at least 1.

        Returns:
            The units; K trajectories make (K + N − 1)! / (N! (K − 1)!) of them.

        Raises:
            InputError: if they are too many, or these are units already.
        """
        if self.unit != 1:
            raise checks.InputError(f"Single trajectories were expected, but these are units of {self.unit}; list them anew.")
        size, kinds = checks.positive_int("size of a unit", size), len(self.traj)
        count = 1.0
        for i in range(1, size + 1):
            count *= (kinds + i - 1) / i
        _few("units", count, self.env)
        chosen = torch.tensor(list(itertools.combinations_with_replacement(range(kinds), size)))
        times = torch.zeros(len(chosen), kinds, dtype=torch.float64)
        times.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float64))
        orders = torch.lgamma(torch.tensor(size + 1.0, dtype=torch.float64)) - torch.lgamma(times + 1).sum(1)
        probability = (orders + times @ self.probability.log()).exp()
        return replace(self, traj=select(self.traj, chosen.flatten()), probability=probability, unit=size)

    def gradients(
        self,
        phi: Sequence[str | Estimator] | str | Estimator,
        source: Callable[[Trajectories, frozenset[str]], Values] | None = None,
        gamma: float = 1.0,
        discount_weighting: bool = True,
        behaviour: nn.Module | None = None,
    ) -> Tensor:
        """Return the gradient of every unit under every Φ.

        Args:
            phi: K choices; those that take numbers from a critic stream must hold them.
            source: of values; exact ones of the policy that acts if None.
            gamma: γ.
            discount_weighting: whether step t is weighted by γ^t.
            behaviour: the policy that acted, if not θ: its log ratios are handed to Φ.

        Returns:
            [U, K, P] float64.

        Raises:
            InputError: if a Φ lacks fitted numbers.
        """
        chosen = [e.bind(self.env, self.policy) for e in estimators.resolve(phi)]
        for e in chosen:
            if e.fits and getattr(e, "fitted", e) is None:
                raise checks.InputError(
                    f"Numbers from a critic stream were expected in {e.label}, but it was not fitted; call its fit first."
                )
        double = self.policy if behaviour is None else policies.prepare(behaviour, torch.float64, torch.device("cpu"))
        source = source or ExactValues.of(self.env.finite, double, gamma, self.env.horizon)
        ratio = None
        if behaviour is not None:
            with torch.no_grad():
                ours, theirs = (policies.log_prob(p(self.traj.obs), self.traj.action) for p in (self.policy, double))
            ratio = ours - theirs

        def read(part: Trajectories, asks: frozenset[str]) -> Batch:
            return Batch(part, source(part, asks), gamma, "bootstrap", 1, self.unit, ratio)

        rows = terms.assemble(chosen, self.traj, self.policy, read, discount_weighting, self.unit)
        maps = [scores.make(self.policy, self.traj.obs[:16], self.traj.action[:16], self.env.name) for _ in rows]
        out = torch.zeros(len(self.probability), len(chosen), maps[0].num_parameters, dtype=torch.float64)
        for index, batch, weights in terms.chunks(rows, maps, CHUNK, torch.float64, terms.matrices(chosen)):
            for columns, g in batch.blocks(weights):
                out[index[:, None], :, columns] = g.transpose(1, 2)
        return out

    def mean(self, gradients: Tensor) -> Tensor:
        """Return E g [K, P] of :meth:`gradients`."""
        return torch.einsum("u,ukp->kp", self.probability, gradients)

    def covariance(self, gradients: Tensor) -> Tensor:
        """Return N times the traces of the covariances between choices, [K, K]: on the diagonal tr Cov per trajectory."""
        centred = gradients - self.mean(gradients)
        return self.unit * torch.einsum("u,ukp,ulp->kl", self.probability, centred, centred)


def select(traj: Trajectories, index: Tensor) -> Trajectories:
    """Return the trajectories of an index, repetitions allowed, end to end."""
    length = traj.length[index]
    offsets = torch.cat([length.new_zeros(1), length.cumsum(0)])
    rows = torch.arange(int(offsets[-1])) - (offsets[:-1] - traj.offsets[index]).repeat_interleave(length)
    of_step = {name: x[rows] for name in ("obs", "action", "reward", "state") if (x := getattr(traj, name)) is not None}
    ends = ("terminated", "truncated", "last_obs", "last_state")
    of_end = {name: x[index] for name in ends if (x := getattr(traj, name)) is not None}
    return replace(traj, offsets=offsets, nodes=None, **of_step, **of_end)


def _walk(env: Environment, pi: Tensor) -> tuple[Trajectories, Tensor]:
    """Follow all branches together, one step of time after the other."""
    mdp = env.finite
    state = mdp.initial.nonzero().squeeze(1)
    chance, seen, ended = mdp.initial[state], [], []
    for t in range(env.horizon):
        branch = (chance[:, None, None] * pi[state].unsqueeze(2) * mdp.probability[state]).flatten()
        kept = branch.nonzero().squeeze(1)
        _few("trajectories", len(kept) + sum(len(c) for c, *_ in ended), env)
        parent, (action, outcome) = kept // mdp.probability[0].numel(), _unravel(kept, mdp.probability.shape[1:])
        place = state[parent], action, outcome
        seen = [tuple(x[parent] for x in step) for step in seen]
        seen.append((state[parent], action, mdp.reward[place]))
        state, chance, end = mdp.next_state[place], branch[kept], mdp.terminated[place]
        stop = end if t < env.horizon - 1 else torch.ones_like(end)
        ended.append((chance[stop], end[stop], state[stop], [tuple(x[stop] for x in step) for step in seen]))
        going = ~stop
        state, chance, seen = state[going], chance[going], [tuple(x[going] for x in step) for step in seen]
        if not len(state):
            break
    columns = [torch.cat([torch.stack([step[i] for step in steps], 1).flatten() for *_, steps in ended]) for i in range(3)]
    length = torch.cat([torch.full_like(last, len(steps)) for _, _, last, steps in ended])
    end, last = (torch.cat([x[i] for x in ended]) for i in (1, 2))
    traj = Trajectories(
        obs=mdp.seen[columns[0]], action=columns[1], reward=columns[2],
        offsets=torch.cat([length.new_zeros(1), length.cumsum(0)]),
        terminated=end, truncated=~end, last_obs=mdp.seen[last], horizon=env.horizon, state=columns[0], last_state=last,
        env=env.name,
    )  # fmt: skip
    return traj, torch.cat([x[0] for x in ended])


def _unravel(flat: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    inner = flat % (shape[0] * shape[1])
    return inner // shape[1], inner % shape[1]


def _few(what: str, count: float, env: Environment) -> None:
    if count > LIMIT:
        raise checks.InputError(
            f"At most {LIMIT} {what} were expected to be listed, but {env.name} has {count:.3g} or more; shorten its horizon, "
            "lower the size of a unit, or sample with varlab.measure."
        )
