"""Variance components from their definition: conditional means taken by loops over all trajectories of a tiny world."""

import numpy as np
import torch


def spread(x, p):
    """Σ p ‖x − mean‖² and the mean, of rows x [n, P] with weights p [n]."""
    mean = p @ x / p.sum()
    return float(p @ (x - mean).square().sum(1)), mean


def by_hand(traj, p, z, weighted_phi):
    """State, action, trajectory [T] and covariances [T, T]: conditional means taken by loops over all trajectories."""
    length = int(traj.length.max())
    terms = torch.zeros(length, len(traj), z.shape[1], dtype=torch.float64)
    terms[traj.time, traj.episode] = z * weighted_phi[:, None]
    state, action, trajectory = np.zeros((3, length))
    for t in range(length):
        now = traj.time == t
        where = {e: (s, a) for e, s, a in torch.stack([traj.episode, traj.state, traj.action], 1)[now].tolist()}
        pairs = [where.get(i, (-1, -1)) for i in range(len(traj))]  # an ended episode is in a state of its own
        of_state, centres, shares = {}, [], []
        for s, a in sorted(set(pairs)):
            rows = torch.tensor([pair == (s, a) for pair in pairs])
            inner, mean = spread(terms[t, rows], p[rows])
            trajectory[t] += inner
            of_state.setdefault(s, []).append((mean, p[rows].sum()))
        for members in of_state.values():
            means, weights = torch.stack([m for m, _ in members]), torch.stack([w for _, w in members])
            inner, mean = spread(means, weights)
            action[t] += inner
            centres.append(mean)
            shares.append(weights.sum())
        state[t] = spread(torch.stack(centres), torch.stack(shares))[0]
    centred = terms - torch.einsum("i,tip->tp", p, terms)[:, None]
    cross = torch.einsum("i,tip,uip->tu", p, centred, centred).numpy()
    g = terms.sum(0)
    return state, action, trajectory, cross, spread(g, p)[0]


def equal(ours, twin, tolerance=1e-12):
    state, action, trajectory, cross, total = twin
    scale = max(1.0, total)
    for mine, other in ((ours.state, state), (ours.action, action), (ours.trajectory, trajectory)):
        np.testing.assert_allclose(mine, other, rtol=0, atol=tolerance * scale)
    np.testing.assert_allclose(ours.step, np.diag(cross), rtol=0, atol=tolerance * scale)
    np.testing.assert_allclose(ours.cross, cross - np.diag(np.diag(cross)), rtol=0, atol=tolerance * scale)
    assert abs(ours.total - total) <= tolerance * scale
    assert abs(ours.step.sum() + ours.lag.sum() - total) <= tolerance * scale
