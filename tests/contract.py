"""Exact means of any estimator by enumeration: over all trajectories of a small world, or tuples of them as units.

Nothing is sampled but what estimators fit beforehand. Weights come from the package's own assembly of rows, so that what is
enumerated is what a measurement adds up; ∇J comes from autograd through Σ_τ P(τ | θ) R_γ(τ), which knows neither scores nor Φ.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from finite_worlds import Enumeration, enumerate_paths, random_logits, random_mdp
from torch import Tensor

from varlab import envs, policies, scores, terms, values
from varlab.envs.finite import FiniteMDP
from varlab.estimators import Batch, Estimator, FitBatch
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.types import Trajectories, Values
from varlab.values import FunctionValues

BOTH = frozenset({"v", "q"})


@dataclass(frozen=True)
class World:
    """A finite MDP with a softmax table, and all its trajectories.

    Attributes:
        mdp: the process.
        logits: [S, A] θ.
        horizon: H.
        seed: of the values that are wrong and of the critic stream.
    """

    mdp: FiniteMDP
    logits: Tensor
    horizon: int
    seed: int = 0

    @cached_property
    def env(self) -> envs.Environment:
        return envs.environment(self.mdp, self.horizon)

    @cached_property
    def policy(self) -> policies.SoftmaxTable:
        return policies.prepare(policies.SoftmaxTable(self.env, logits=self.logits), torch.float64, torch.device("cpu"))

    @cached_property
    def paths(self) -> Enumeration:
        return enumerate_paths(self.mdp, self.horizon)

    @cached_property
    def probability(self) -> Tensor:
        return self.paths.probability(self.logits)

    def probability_under(self, logits: Tensor) -> Tensor:
        """P(τ) where a policy with other logits acts."""
        return self.paths.probability(logits)

    def gradient(self, gamma: float = 1.0) -> Tensor:
        """∇J_γ [P]."""
        logits = self.logits.clone().requires_grad_()
        j = (self.paths.probability(logits) * self.paths.returns(gamma)).sum()
        return torch.autograd.grad(j, logits)[0].flatten()

    def exact(self, gamma: float = 1.0) -> values.ExactValues:
        return values.ExactValues.of(self.mdp, self.policy, gamma, self.horizon)

    @cached_property
    def wrong(self) -> FunctionValues:
        """Values that are nobody's, of the size of rewards."""
        table = torch.Generator().manual_seed(self.seed)
        s, a = self.mdp.num_states, self.mdp.num_actions
        v = 3 * torch.randn(self.horizon + 1, s, generator=table, dtype=torch.float64)
        q = 3 * torch.randn(self.horizon, s, a, generator=table, dtype=torch.float64)
        return FunctionValues(v=lambda s, t: v[t, s], q=lambda s, a, t: q[t, s, a])

    @cached_property
    def critic_stream(self) -> Trajectories:
        return rollout(self.env, self.policy, 20, Streams(self.seed).sequence("critic"))


def random_world(seed: int, horizon: int = 4, **shape: int) -> World:
    """A random MDP that pays in every step, with episodes of length 1 to H."""
    mdp = random_mdp(seed, **shape)
    return World(mdp, random_logits(seed + 100, mdp), horizon, seed)


def bandit(rewards: tuple[tuple[float, ...], ...], logits: tuple[tuple[float, ...], ...], seed: int = 0) -> World:
    """One step, a start (or prompt) for every row of rewards [S, A], drawn uniformly; few paths, so that tuples can be listed."""
    lists = [[[(1.0, s, r, True)] for r in row] for s, row in enumerate(rewards)]
    mdp = FiniteMDP.from_lists(lists, [1 / len(rewards)] * len(rewards))
    return World(mdp, torch.tensor(logits, dtype=torch.float64), 1, seed)


#: Three worlds that every member is held to: none pays only at the end.
WORLDS = {
    "long": lambda: random_world(0),
    "other": lambda: random_world(5),
    "wide": lambda: random_world(2, horizon=3, actions=3, outcomes=2),
}
#: Those on which units of several trajectories are listed.
UNIT_WORLDS = {
    "prompts": lambda: bandit(((0.0, 1.0), (0.3, -0.5)), ((0.2, -0.4), (0.7, 0.1))),
    "three arms": lambda: bandit(((1.0, 0.2, -0.7),), ((0.3, -0.2, 0.5),)),
    "two steps": lambda: random_world(3, horizon=2, states=2, actions=2, outcomes=1),
}


def bound(estimator: Estimator, world: World, gamma: float, discount_weighting: bool = True) -> Estimator:
    """The estimator as a measurement uses it: bound to the world, and fitted on a stream of its own."""
    made = estimator.bind(world.env, world.policy)
    if not made.fits:
        return made
    traj = world.critic_stream
    score_map = scores.FactoredScores(world.policy)
    batch = FitBatch(
        traj, Values(), gamma, env=world.env, policy=world.policy, scores=score_map, discount_weighting=discount_weighting
    )
    return made.fit(batch)


def gradients(
    estimator: Estimator,
    world: World,
    traj: Trajectories,
    source: object,
    gamma: float = 1.0,
    discount_weighting: bool = True,
    group: int = 1,
    unit: int = 1,
    at_cut: str = "bootstrap",
    log_ratio: Tensor | None = None,
) -> Tensor:
    """ĝ [U, P] of every unit of ``traj``, from the rows that a measurement adds up."""

    def read(part: Trajectories, asks: frozenset[str]) -> Batch:
        return Batch(part, source(part, asks | BOTH), gamma, at_cut, group, unit, log_ratio)

    made = terms.assemble([estimator], traj, world.policy, read, discount_weighting, unit)
    maps = [scores.FactoredScores(world.policy) for _ in made]
    out = torch.zeros(len(traj) // unit, world.logits.numel(), dtype=torch.float64)
    for index, batch_scores, phi in terms.chunks(made, maps, 4096, torch.float64, terms.matrices([estimator])):
        for columns, g in batch_scores.blocks(phi):
            out[index[:, None], columns] = g[:, 0]
    return out


def units(world: World, probability: Tensor, group: int, unit: int, shared_start: bool) -> tuple[Trajectories, Tensor]:
    """All tuples of trajectories that make a unit, end to end, and the probability of each.

    With a shared start the trajectories of a group begin in one state: P = ρ_0(s)^(1 − G) Π P(τ_i) for groups from state s.
    """
    paths = world.paths.traj
    start = paths.state[paths.offsets[:-1]].tolist()
    initial = world.mdp.initial.tolist()
    of_group = [
        c for c in itertools.product(range(len(paths)), repeat=group) if not shared_start or len({start[i] for i in c}) == 1
    ]
    chance = [
        float(torch.stack([probability[i] for i in c]).prod()) * (initial[start[c[0]]] ** (1 - group) if shared_start else 1.0)
        for c in of_group
    ]
    chosen, weight = [], []
    for c in itertools.product(range(len(of_group)), repeat=unit // group):
        chosen += [i for g in c for i in of_group[g]]
        weight.append(float(torch.tensor([chance[g] for g in c], dtype=torch.float64).prod()))
    return select(paths, torch.tensor(chosen)), torch.tensor(weight, dtype=torch.float64)


def select(traj: Trajectories, index: Tensor) -> Trajectories:
    """The trajectories of an index (repetitions allowed), end to end."""
    length = traj.length[index]
    offsets = torch.cat([length.new_zeros(1), length.cumsum(0)])
    rows = torch.arange(int(offsets[-1])) - (offsets[:-1] - traj.offsets[index]).repeat_interleave(length)
    of_step = {name: getattr(traj, name)[rows] for name in ("obs", "action", "reward", "state")}
    of_end = {name: getattr(traj, name)[index] for name in ("terminated", "truncated", "last_obs", "last_state")}
    return replace(traj, offsets=offsets, **of_step, **of_end)


def moments(
    estimator: Estimator,
    world: World,
    *,
    source: object = None,
    gamma: float = 1.0,
    discount_weighting: bool = True,
    group: int = 1,
    unit: int = 1,
    shared_start: bool = True,
    behaviour: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """E ĝ [P] and diag Cov ĝ [P] of a unit, exactly.

    Args:
        estimator: as it is named; it is bound and fitted here.
        world: one of the worlds above.
        source: of values; exact ones if None.
        gamma: γ.
        discount_weighting: w_t = γ^t.
        group: G.
        unit: trajectories of one unit.
        shared_start: whether the trajectories of a group begin in one state.
        behaviour: [S, A] logits of the policy that acts, or None for θ.
    """
    fitted = bound(estimator, world, gamma, discount_weighting)
    probability = world.probability if behaviour is None else world.probability_under(behaviour)
    traj, chance = (world.paths.traj, probability) if unit == 1 else units(world, probability, group, unit, shared_start)
    ratio = None
    if behaviour is not None:
        ours, theirs = (x.log_softmax(-1)[traj.state, traj.action] for x in (world.logits, behaviour))
        ratio = ours - theirs
    g = gradients(
        fitted, world, traj, source or world.exact(gamma), gamma, discount_weighting, group, unit, log_ratio=ratio
    )
    assert abs(float(chance.sum()) - 1) < 1e-9
    mean = chance @ g
    return mean, chance @ (g - mean).square()


def exact_mean(estimator: Estimator, world: World, **settings: object) -> Tensor:
    """E ĝ [P] of a unit, exactly: :func:`moments`."""
    return moments(estimator, world, **settings)[0]


def distance(a: Tensor, b: Tensor) -> float:
    """Largest difference of two vectors."""
    return float((a - b).abs().max())


def direction_bias(mean: Tensor, gradient: Tensor) -> float:
    """‖E ĝ − c ∇J‖/‖E ĝ‖ against the best multiple c: the sine of the angle between them."""
    rest = mean - (mean @ gradient) / (gradient @ gradient) * gradient
    return float(rest.norm() / mean.norm())
