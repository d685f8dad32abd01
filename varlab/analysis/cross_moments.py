"""The map of E[z_t r_u]: which reward teaches which step, time by time.

∇J = Σ_t Σ_u E[z_t r_u], where z_t is the score of step t and r_u the reward of step u; both are 0 after the end of an episode.
Below the diagonal (u < t) every entry is 0, since E[z_t | s_t] = 0 and past rewards are fixed by then: reward-to-go leaves out
nothing but noise there. Source: Spinning Up in Deep RL, Part 3, extra material: Proof for Don't Let the Past Distract You
(Achiam, 2018).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from varlab import checks, policies, scores
from varlab.analysis import bias
from varlab.analysis.blocks import CentredBlocks
from varlab.analysis.intervals import Interval, student
from varlab.envs.base import Environment
from varlab.layout import Layout
from varlab.rng import Streams, numpy_generator
from varlab.rollout import parts
from varlab.values.dynamic_programming import occupancy, policy_table
from varlab.values.fisher import score_table

#: Trajectories whose scores are made at once.
CHUNK = 256


@dataclass(frozen=True)
class CrossMoments:
    """E[z_t r_u], exact or sampled.

    Attributes:
        value: [T, T, P] estimate, t first.
        blocks: [B, T, T, P] independent block means whose mean it is, or None if exact.
        n: trajectories, 0 if exact.
    """

    value: np.ndarray
    blocks: np.ndarray | None = None
    n: int = 0

    @property
    def gradient(self) -> np.ndarray:
        """[P] Σ_t Σ_u E[z_t r_u] = ∇J."""
        return self.value.sum((0, 1))

    def share(self, direction: np.ndarray, level: float = 0.95) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ⟨E[z_t r_u], d⟩/‖d‖² with both ends of its interval, each [T, T].

        With d = ∇J the entries sum to 1 and are the shares of the gradient. Intervals are Student's over blocks and take d as it
        is: d from other data, or exact.

        Args:
            direction: [P] d.
            level: coverage.

        Returns:
            Estimate, lower and upper end; all the same if exact.
        """
        d = direction / (direction @ direction)
        value = self.value @ d
        if self.blocks is None:
            return value, value, value
        each = self.blocks @ d
        half = student(level, len(each) - 1) * each.std(0, ddof=1) / np.sqrt(len(each))
        return value, value - half, value + half

    def square(self, where: np.ndarray, rng: np.random.Generator, level: float = 0.95) -> tuple[float, Interval]:
        """Return Σ ‖E[z_t r_u]‖² over some entries, without the bias of noise, and its interval.

        Args:
            where: [T, T] bool, which entries.
            rng: generator of the sign draws (:mod:`varlab.analysis.bias`).
            level: coverage.

        Returns:
            The sum, which may be negative if sampled, and its interval.
        """
        flat = self.value[where].ravel()
        norm_sq = float(flat @ flat)
        if self.blocks is None:
            return norm_sq, Interval(norm_sq, norm_sq)
        found = CentredBlocks.of(
            np.full(len(self.blocks), self.n // len(self.blocks)), self.blocks[:, where].reshape(len(self.blocks), -1)
        )
        norm_sq, inner = float(found.mean @ found.mean), found.dev @ found.mean
        factor = bias.contribution(found.weight)
        gram, signs = factor[:, None] * found.gram * factor, bias.random_signs(rng, bias.LEAST_DRAWS, len(factor))
        null = bias.null_gram(found.weight, np.ones_like(factor), found.gram, inner, norm_sq)
        ends = bias.sign_multiplier(norm_sq, factor * inner, gram, signs, len(factor) - 1, level, 0.0, null).interval
        return bias.pair_square(norm_sq, inner, found.dev_sq, found.weight), ends


def past(horizon: int) -> np.ndarray:
    """Return [T, T] bool: where the reward comes before the step, u < t."""
    return np.tril(np.ones((horizon, horizon), dtype=bool), -1)


def exact(env: Environment, policy: nn.Module) -> CrossMoments:
    """Return the map of a finite MDP, by flows of probability forward in time; nothing is set to 0 beforehand.

    Args:
        env: a world with finite dynamics.
        policy: categorical on its states.

    Returns:
        The map for T = H.

    Raises:
        InputError: for a world without finite dynamics.
    """
    mdp = env.finite
    if mdp is None:
        raise checks.InputError(
            f"A finite MDP was expected for an exact map, but {env.name} has no outcome lists; use sampled()."
        )
    double = policies.prepare(policy, torch.float64, torch.device("cpu"))
    with torch.no_grad():
        pi = policy_table(double, mdp)
    alive, onward = occupancy(mdp, pi, env.horizon).numpy(), mdp.transition.numpy()
    table, support = score_table(mdp, double)[1:]
    z = table if support is None else _spread(table, support)
    weighted, paid = pi.numpy()[..., None] * z, mdp.expected_reward.numpy()
    flow, mean_paid, mean_score = np.einsum("sa,sax->sx", pi.numpy(), onward), (pi.numpy() * paid).sum(1), weighted.sum(1)
    # Σ over outcomes that go on to s' of p_o r_o, for rewards that are paid before.
    going = np.where(mdp.terminated.numpy(), 0.0, mdp.probability.numpy()) * mdp.reward.numpy() * pi.numpy()[..., None]
    to = np.zeros_like(flow)
    np.add.at(to, (np.arange(len(to))[:, None, None], mdp.next_state.numpy()), going)
    out = np.zeros((env.horizon, env.horizon, z.shape[2]))
    for t in range(env.horizon):
        out[t, t] = np.einsum("s,sap,sa->p", alive[t], weighted, paid)
        ahead, behind = np.einsum("s,sap,sax->xp", alive[t], weighted, onward), alive[t] @ to
        for u in range(t + 1, env.horizon):
            out[t, u] = mean_paid @ ahead  # z_t, then r_u
            ahead = flow.T @ ahead
            out[u, t] = behind @ mean_score  # r_t, then z_u
            behind = behind @ flow
    return CrossMoments(out)


def _spread(table: np.ndarray, support: np.ndarray) -> np.ndarray:
    states, actions, _ = table.shape
    out = np.zeros((states, actions, support.size))
    rows = np.arange(states)[:, None, None], np.arange(actions)[None, :, None]
    out[(*rows, support[:, None, :])] = table
    return out


def sampled(
    env: Environment, policy: nn.Module, n: int, seed: int = 0, blocks: int = 50, stream: str = "rollout"
) -> CrossMoments:
    """Estimate the map from n trajectories in independent blocks; memory is blocks · T² · P.

    Args:
        env: any world; T is its horizon.
        policy: at fixed θ.
        n: trajectories, a multiple of ``blocks``.
        seed: root seed.
        blocks: B.
        stream: of randomness.

    Returns:
        The map with its block means.

    Raises:
        InputError: if n is no multiple of the blocks.
    """
    if checks.positive_int("n", n) % checks.positive_int("blocks", blocks, least=8):
        raise checks.InputError(f"A multiple of the {blocks} blocks was expected, but n={n}; change one of them.")
    double = policies.prepare(policy, torch.float64, torch.device("cpu"))
    steps, score_map, sums = env.horizon, None, None
    layout = Layout(n, blocks, min(env.part_size, n))
    for b, traj in parts(env, double, layout, Streams(seed), stream):
        if score_map is None:
            score_map = scores.make(double, traj.obs[:16], traj.action[:16], env.name)
            sums = torch.zeros(blocks, steps, steps, score_map.num_parameters, dtype=torch.float64)
        for chunk in traj.chunks(CHUNK):
            t = chunk.rows.shape[1]
            one = torch.eye(t, dtype=torch.float64).expand(len(chunk.rows), t, t) * chunk.mask.unsqueeze(1)
            z = score_map.at(traj.obs[chunk.rows], traj.action[chunk.rows]).apply(one)  # [C, T, P]
            reward = traj.reward[chunk.rows] * chunk.mask
            sums[b, :t, :t] += torch.einsum("ctp,cu->tup", z, reward)
    means = (sums / (n // blocks)).numpy()
    return CrossMoments(means.mean(0), means, n)


def direction(env: Environment, policy: nn.Module, n: int, seed: int = 0) -> np.ndarray:
    """Estimate ∇J from n trajectories of the pilot stream, so that the map's own noise is not in it."""
    found = sampled(env, policy, n, seed, blocks=50, stream="pilot")
    return found.value[~past(env.horizon)].sum(0)


def signs(seed: int) -> np.random.Generator:
    """Return the generator of the sign draws of a root seed."""
    return numpy_generator(Streams(seed).sequence("bootstrap"))
