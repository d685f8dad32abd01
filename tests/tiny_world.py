"""Two worlds so small that every trajectory can be written down with its exact weight: one finite, one Gaussian.

Nothing here calls the package's dynamic programming, estimators or scores: it is the other route that tests compare with.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from varlab import envs, policies, scores
from varlab.types import Trajectories

S, A, H = 3, 2, 3


def mdp_lists(seed: int = 5, shift: float = 0.0) -> tuple[list, list[float]]:
    """Outcomes of every (s, a): two share s' and differ in reward, one goes elsewhere, one ends; all of them pay."""
    rng = np.random.default_rng(seed)
    lists = []
    for s in range(S):
        lists.append([])
        for _ in range(A):
            p, r, to = rng.dirichlet(np.full(4, 3.0)), rng.normal(size=4) + shift, rng.permutation(S)
            lists[s].append(
                [
                    (p[0], to[0], r[0], False),
                    (p[1], to[0], r[1], False),
                    (p[2], to[1], r[2], False),
                    (p[3], to[2], r[3], True),
                ]
            )
    return lists, [0.5, 0.3, 0.2]


def flat(parts: tuple[Tensor, ...] | list[Tensor], lead: int = 0) -> Tensor:
    """One vector of parameters from one tensor per parameter."""
    return torch.cat([p.flatten(lead) for p in parts], -1)


@dataclass(frozen=True)
class World:
    """A world, a policy at θ and every trajectory; ``weight`` [N] is P(τ|θ), or the quadrature weight of τ."""

    env: envs.Environment
    policy: nn.Module
    traj: Trajectories
    weight: Tensor
    dynamics: Tensor | None = None  # [N] what ρ_0 and P(s'|s, a) give to P(τ|θ)

    @functools.cached_property
    def scores(self) -> scores.ScoreMap:
        """The package's score map."""
        return scores.make(self.policy, self.traj.obs[:16], self.traj.action[:16])

    @property
    def theta(self) -> list[Tensor]:
        """θ, one tensor per parameter."""
        return list(self.policy.parameters())

    def gradients(self, phi: Tensor) -> Tensor:
        """Σ_t φ_t z_t of every trajectory, [N, P], through the package's score map."""
        (chunk,) = self.traj.chunks(len(self.traj))
        batch = self.scores.at(self.traj.obs[chunk.rows], self.traj.action[chunk.rows])
        out = torch.empty(len(self.traj), batch.num_parameters, dtype=torch.float64)
        out[chunk.index] = batch.apply((phi[chunk.rows] * chunk.mask).unsqueeze(1))[:, 0]
        return out

    def mean(self, g: Tensor) -> Tensor:
        """E g for any quantity [N, ...] of the trajectories."""
        return torch.tensordot(self.weight, g, 1)

    def variance(self, g: Tensor) -> float:
        """Tr Cov g."""
        return float(self.weight @ (g - self.mean(g)).square().sum(1))

    def returns(self, gamma: float = 1.0) -> Tensor:
        """R_γ(τ) [N], a plain loop."""
        rows = self.traj.offsets.tolist()
        reward = self.traj.reward.tolist()
        total = [sum(gamma**t * r for t, r in enumerate(reward[i:j])) for i, j in itertools.pairwise(rows)]
        return torch.tensor(total, dtype=torch.float64)

    def pi(self) -> Tensor:
        """π_θ(a|s) [S, A], the softmax written out, differentiable in θ."""
        if isinstance(self.policy, policies.SoftmaxTable):
            logits = self.policy.logits.weight
        else:
            (w1, b1, w2, b2), eye = self.theta, torch.eye(S, dtype=torch.float64)
            logits = torch.tanh(eye @ w1.T + b1) @ w2.T + b2
        return logits.exp() / logits.exp().sum(1, keepdim=True)

    def action_probability(self) -> Tensor:
        """Π_t π_θ(a_t|s_t) [N], differentiable in θ."""
        each = self.pi()[self.traj.state, self.traj.action]
        return torch.stack([each[i:j].prod() for i, j in itertools.pairwise(self.traj.offsets.tolist())])

    def probability(self) -> Tensor:
        """P(τ|θ) [N], differentiable in θ."""
        return self.dynamics * self.action_probability()

    def performance(self, gamma: float = 1.0) -> Tensor:
        """J(π_θ) = Σ_τ P(τ|θ) R_γ(τ), differentiable in θ: the score function appears nowhere."""
        if self.dynamics is not None:
            return self.probability() @ self.returns(gamma)
        return self.weight @ linear_rewards(self.theta, gamma)  # actions as functions of θ and noise

    def policy_gradient(self, gamma: float = 1.0) -> Tensor:
        """∇J [P] by automatic differentiation of :meth:`performance`."""
        return flat(torch.autograd.grad(self.performance(gamma), self.theta))


def record(episodes: list[list[tuple]], last: list, ended: list[bool], horizon: int, finite: bool) -> Trajectories:
    """Episodes [(obs, action, reward), …] as the package's record."""
    steps = [step for episode in episodes for step in episode]
    obs, action = (torch.as_tensor(np.array([s[k] for s in steps])) for k in (0, 1))
    ended, last = torch.tensor(ended), torch.as_tensor(np.array(last))
    return Trajectories(
        obs=obs,
        action=action,
        reward=torch.tensor([s[2] for s in steps], dtype=torch.float64),
        offsets=torch.tensor(np.cumsum([0] + [len(e) for e in episodes])),
        terminated=ended,
        truncated=~ended,
        last_obs=last,
        horizon=horizon,
        state=obs if finite else None,
        last_state=last if finite else None,
    )


def enumerate_all(lists: list, initial: list[float]) -> tuple[Trajectories, Tensor]:
    """Every trajectory of the finite world with ρ_0(s_0) Π P(s_{t+1}, r_t|s_t, a_t)."""
    open_ = [([], s, p) for s, p in enumerate(initial)]
    done = []
    for t in range(H):
        grown = []
        for steps, s, p in open_:
            for a, (q, s_next, r, end) in ((a, o) for a in range(A) for o in lists[s][a]):
                new = ([*steps, (s, a, r)], int(s_next), p * q)
                (done if end or t == H - 1 else grown).append((*new, end) if end or t == H - 1 else new)
        open_ = grown
    episodes, last, p, ended = map(list, zip(*done, strict=True))
    return record(episodes, last, ended, H, finite=True), torch.tensor(p, dtype=torch.float64)


@functools.cache
def finite(kind: str = "table", theta_seed: int = 0, shift: float = 0.0) -> World:
    """The finite world under a softmax table or a perceptron with four hidden units."""
    lists, initial = mdp_lists(shift=shift)
    env = envs.environment(envs.FiniteMDP.from_lists(lists, initial), H, "tiny")
    name, options = {"table": ("softmax_table", {}), "mlp": ("mlp", {"hidden": (4,)})}[kind]
    policy = policies.prepare(policies.make(name, env, theta_seed=theta_seed, **options), torch.float64, "cpu")
    traj, dynamics = enumerate_all(lists, initial)
    world = World(env, policy, traj, dynamics, dynamics)
    return World(env, policy, traj, world.probability().detach(), dynamics)


# The Gaussian world: s' = F s + G a, r = u·a − |s|² − |a|², two steps, two starts, two-dimensional actions. Everything is
# polynomial in the actions' noise, so five Gauss-Hermite nodes a dimension give means and variances without error.

F = torch.tensor([[0.9, 0.2], [-0.1, 0.8]], dtype=torch.float64)
G = torch.tensor([[0.5, 0.1], [0.0, 0.7]], dtype=torch.float64)
U = torch.tensor([0.6, -0.4], dtype=torch.float64)
STARTS = torch.tensor([[1.0, -0.5], [-0.3, 0.8]], dtype=torch.float64)
START_PROBABILITY = torch.tensor([0.7, 0.3], dtype=torch.float64)


def paid(s: Tensor, a: Tensor) -> Tensor:
    """r(s, a)."""
    return a @ U - s.square().sum(-1) - a.square().sum(-1)


@functools.cache
def nodes() -> tuple[Tensor, Tensor, Tensor]:
    """Starts [N, 2], noise [N, 2, 2] of both steps, weights [N]."""
    x, w = np.polynomial.hermite_e.hermegauss(5)
    noise = torch.tensor(list(itertools.product(x, repeat=4))).reshape(-1, 2, 2)
    weight = torch.tensor([np.prod(c) for c in itertools.product(w / w.sum(), repeat=4)])
    m = len(weight)
    return STARTS.repeat_interleave(m, 0), noise.repeat(2, 1, 1), torch.kron(START_PROBABILITY, weight)


def linear_paths(theta: list[Tensor]) -> list[Tensor]:
    """s_0, a_0, s_1, a_1, s_2 at every node."""
    w, c, log_std = theta
    s, noise, _ = nodes()
    out = [s]
    for t in range(2):
        out.append(out[-1] @ w.T + c + log_std.exp() * noise[:, t])
        out.append(out[-2] @ F.T + out[-1] @ G.T)
    return out


def linear_rewards(theta: list[Tensor], gamma: float) -> Tensor:
    """R_γ [N] at every node, differentiable in θ."""
    s0, a0, s1, a1, _ = linear_paths(theta)
    return paid(s0, a0) + gamma * paid(s1, a1)


def linear_values(world: World, gamma: float) -> tuple:
    """V_t(s) and Q_t(s, a) in closed form."""
    w, c, log_std = (p.detach() for p in world.theta)
    cov = G @ torch.diag((2 * log_std).exp()) @ G.T

    def soon(s: Tensor) -> Tensor:
        return paid(s, s @ w.T + c) - (2 * log_std).exp().sum()

    def v(s: Tensor, t: Tensor) -> Tensor:
        onward = soon(s @ F.T + (s @ w.T + c) @ G.T) - torch.trace((torch.eye(2) + w.T @ w) @ cov)
        return torch.where(t < 2, soon(s), 0.0) + torch.where(t < 1, gamma * onward, 0.0)

    def q(s: Tensor, a: Tensor, t: Tensor) -> Tensor:
        return paid(s, a) + gamma * v(s @ F.T + a @ G.T, t + 1)

    return v, q


class LinearSimulator:
    """The Gaussian world as a simulator; its only chance is the start."""

    def reset(self, n: int, seed: np.random.SeedSequence) -> Tensor:
        """Draw the starts."""
        u = torch.as_tensor(np.random.default_rng(seed).random(n))
        self.s = STARTS[(u >= START_PROBABILITY[0]).long()]
        return self.s

    def step(self, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Advance."""
        reward, self.s = paid(self.s, action), self.s @ F.T + action @ G.T
        return self.s, reward, torch.zeros(len(reward), dtype=torch.bool)

    def keep(self, alive: Tensor) -> None:
        """Nothing ends early."""
        self.s = self.s[alive]


@functools.cache
def gaussian() -> World:
    """The Gaussian world under a linear diagonal Gaussian policy with two action dimensions."""
    box = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    env = envs.Environment("tiny linear", 2, box, box, lambda device: LinearSimulator())
    policy = policies.prepare(policies.make("linear", env, theta_seed=1), torch.float64, "cpu")
    with torch.no_grad():
        policy.log_std.value.copy_(torch.tensor([-0.5, -0.2]))
        s0, a0, s1, a1, s2 = (x.numpy() for x in linear_paths(list(policy.parameters())))
        reward = [paid(torch.as_tensor(s), torch.as_tensor(a)).tolist() for s, a in ((s0, a0), (s1, a1))]
    episodes = [[(s0[i], a0[i], reward[0][i]), (s1[i], a1[i], reward[1][i])] for i in range(len(s0))]
    return World(env, policy, record(episodes, s2, [False] * len(s0), 2, finite=False), nodes()[2])
