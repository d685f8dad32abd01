"""Random finite MDPs, and all their trajectories by brute force: the oracle that shares no formula with the package."""

from dataclasses import dataclass

import torch

from varlab.envs.finite import FiniteMDP
from varlab.types import Trajectories


def random_mdp(seed, states=3, actions=2, outcomes=3, ending=0.3):
    """Rewards at every step; outcomes 0 and 1 share s' and differ in reward; some outcomes end the episode."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    shape = (states, actions, outcomes)
    probability, initial = 0.1 + uniform(*shape), 0.1 + uniform(states)
    next_state = torch.randint(states, shape, generator=generator)
    if outcomes > 1:
        next_state[..., 1] = next_state[..., 0]
    return FiniteMDP(
        probability=probability / probability.sum(-1, keepdim=True),
        next_state=next_state,
        reward=2 * uniform(*shape) - 0.5,
        terminated=uniform(*shape) < ending,
        initial=initial / initial.sum(),
    )


def random_logits(seed, mdp, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(mdp.num_states, mdp.num_actions, generator=generator, dtype=torch.float64)


@dataclass
class Enumeration:
    """Every path of length ≤ cut, with the world's share of its probability."""

    traj: Trajectories
    world: torch.Tensor

    def probability(self, logits):
        """P(τ | θ), differentiable in the logits of a softmax table."""
        log_pi = logits.log_softmax(-1)[self.traj.state, self.traj.action]
        return self.world * torch.zeros(len(self.traj), dtype=log_pi.dtype).index_add(0, self.traj.episode, log_pi).exp()

    def scores(self, logits):
        """z_t [M, S·A] by the closed form 1{a = b} − π(b | s)."""
        rows, (states, actions) = self.traj.steps, logits.shape
        z = torch.zeros(rows, states, actions, dtype=torch.float64)
        step = torch.arange(rows)
        z[step, self.traj.state] = -logits.softmax(-1)[self.traj.state]
        z[step, self.traj.state, self.traj.action] += 1.0
        return z.flatten(1)

    def returns(self, gamma):
        """R_γ of every path, by a plain loop."""
        bounds = self.traj.offsets.tolist()
        rewards = self.traj.reward.tolist()
        return torch.tensor(
            [sum(gamma**t * r for t, r in enumerate(rewards[i:j])) for i, j in zip(bounds[:-1], bounds[1:], strict=True)],
            dtype=torch.float64,
        )

    def gradients(self, logits, weights):
        """g = Σ_t z_t (w_t Φ_t) of every path, [N, P]."""
        z = self.scores(logits) * weights.unsqueeze(1)
        return torch.zeros(len(self.traj), z.shape[1], dtype=torch.float64).index_add(0, self.traj.episode, z)


def enumerate_paths(mdp, horizon, cut=None):
    """Walk every branch of positive probability up to ``cut`` steps (``horizon`` if None)."""
    length = horizon if cut is None else cut
    tables = [getattr(mdp, name).tolist() for name in ("probability", "next_state", "reward", "terminated")]
    paths = []

    def walk(state, steps, share):
        for action in range(mdp.num_actions):
            for p, following, reward, end in zip(*(table[state][action] for table in tables), strict=True):
                if p == 0:
                    continue
                taken = [*steps, (state, action, reward)]
                if end or len(taken) == length:
                    paths.append((taken, share * p, end, following))
                else:
                    walk(following, taken, share * p)

    for state, p in enumerate(mdp.initial.tolist()):
        if p > 0:
            walk(state, [], p)
    steps = [step for path, *_ in paths for step in path]
    state, action = (torch.tensor([s[i] for s in steps]) for i in (0, 1))
    end = torch.tensor([p[2] for p in paths])
    last = torch.tensor([p[3] for p in paths])
    traj = Trajectories(
        obs=state,
        action=action,
        reward=torch.tensor([s[2] for s in steps], dtype=torch.float64),
        offsets=torch.tensor([0, *(len(p[0]) for p in paths)]).cumsum(0),
        terminated=end,
        truncated=~end,
        last_obs=last,
        horizon=horizon,
        state=state,
        last_state=last,
        env="enumerated",
    )
    return Enumeration(traj, torch.tensor([p[1] for p in paths], dtype=torch.float64))
