"""apply, apply_sum and gram against a loop of one autograd call per step, on every kind of policy, in float64."""

import pytest
import torch
from score_policies import ACTIONS, DIMENSIONS, FEATURES, STATES, cases

from varlab import policies, scores
from varlab.scores import factored, grams
from varlab.scores.base import products_of
from varlab.scores.factored import FactoredBatch
from varlab.types import Trajectories

CASES = cases()
LENGTHS = [6, 4, 1, 3]
CLOSE = {"rtol": 0.0, "atol": 1e-10}


def batch(case, lengths=LENGTHS, seed=0):
    """Trajectories with random observations and actions."""
    generator = torch.Generator().manual_seed(seed)
    rows, n = sum(lengths), len(lengths)
    shape = {"features": (rows, FEATURES), "images": (rows, 1, 4, 4)}.get(case.obs)
    obs = (
        torch.randint(STATES, (rows,), generator=generator)
        if shape is None
        else torch.randn(*shape, generator=generator).double()
    )
    discrete = torch.randint(ACTIONS, (rows,), generator=generator)
    action = discrete if case.discrete else torch.randn(rows, DIMENSIONS, generator=generator).double()
    length = torch.tensor([0, *lengths])
    return Trajectories(
        obs=obs, action=action, reward=torch.zeros(rows).double(), offsets=length.cumsum(0),
        terminated=torch.ones(n, dtype=torch.bool),
        truncated=torch.zeros(n, dtype=torch.bool), last_obs=obs[:n], horizon=9,
    )  # fmt: skip


def step_scores(policy, obs, action):
    """z [M, P]: one autograd call per step, one step at a time."""
    rows = []
    for o, a in zip(obs, action, strict=True):
        value = policies.log_prob(policy(o.unsqueeze(0)), a.unsqueeze(0))[0]
        theta = [p for p in policy.parameters() if p.requires_grad]
        grads = torch.autograd.grad(value, theta, allow_unused=True)
        rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(theta, grads, strict=True)]))
    return torch.stack(rows)


def loop_gradients(z, traj, phi):
    """g [N, K, P] = Σ_t φ_t z_t by three loops; φ [M, K]."""
    out = torch.zeros(len(traj), phi.shape[1], z.shape[1], dtype=z.dtype)
    for i in range(len(traj)):
        for k in range(phi.shape[1]):
            for row in range(int(traj.offsets[i]), int(traj.offsets[i + 1])):
                out[i, k] += phi[row, k] * z[row]
    return out


def chunk_phi(chunk, phi):
    """[C, K, T] with 0 after each end."""
    return (phi[chunk.rows] * chunk.mask.unsqueeze(-1)).transpose(1, 2).contiguous()


def random_phi(traj, k, seed=1):
    return torch.randn(traj.steps, k, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def products_by_every_way(at, own):
    """‖g_i‖² and ⟨g_2j, g_2j+1⟩ as the batch itself chooses, through gradients, and through Grams one and two pairs at a time."""
    yield at.products(own)
    yield products_of(at, own)
    if isinstance(at, FactoredBatch):
        yield from (grams.products(at.factors, own, at.work, pairs) for pairs in (1, 2))


def check(scores_map, traj, z, k, size):
    """Hold the three operations against the loop, chunk by chunk."""
    phi = random_phi(traj, k)
    expected = loop_gradients(z, traj, phi)
    assert scores_map.num_parameters == z.shape[1]
    total = torch.zeros(k, z.shape[1], dtype=torch.float64)
    for chunk in traj.chunks(size):
        at, own = scores_map.at(traj.obs[chunk.rows], traj.action[chunk.rows]), chunk_phi(chunk, phi)
        torch.testing.assert_close(at.apply(own), expected[chunk.index], **CLOSE)
        torch.testing.assert_close(at.apply_sum(own), expected[chunk.index].sum(0), **CLOSE)
        total += at.apply_sum(own)
        grams = at.gram()
        for c, rows in enumerate(chunk.rows):
            torch.testing.assert_close(grams[c], z[rows] @ z[rows].T, **CLOSE)
        for join in (2, 4):
            if chunk.rows.shape[0] % join == 0:
                joined = chunk.rows.reshape(-1, join * chunk.rows.shape[1])
                torch.testing.assert_close(at.gram(join), torch.stack([z[rows] @ z[rows].T for rows in joined]), **CLOSE)
        if len(chunk.index) % 2 == 0:
            g = expected[chunk.index]
            for norm_sq, inner in products_by_every_way(at, own):
                torch.testing.assert_close(norm_sq, g.square().sum(-1), **CLOSE)
                torch.testing.assert_close(inner, (g[0::2] * g[1::2]).sum(-1), **CLOSE)
        for multiple in (1, 2):
            tiled = torch.zeros_like(expected[chunk.index])
            for rows, index, g in at.tiles(own, multiple):
                assert rows.start % multiple == 0
                tiled[rows, :, index] += g
            torch.testing.assert_close(tiled, expected[chunk.index], **CLOSE)
        gathered = torch.zeros_like(expected[chunk.index])
        times = torch.zeros(z.shape[1], dtype=torch.int64)
        for index, g in at.blocks(own):
            gathered[..., index] = g
            times[index] += 1
        torch.testing.assert_close(gathered, expected[chunk.index], **CLOSE)
        assert bool((times[z.abs().sum(0) > 0] == 1).all())
    torch.testing.assert_close(total, expected.sum(0), **CLOSE)


@pytest.mark.parametrize("name", CASES)
def test_operations_equal_the_loop(name, monkeypatch):
    case = CASES[name]
    traj = batch(case)
    z = step_scores(case.policy, traj.obs, traj.action)
    assert float(z.abs().max()) > 0.1
    chosen = scores.make(case.policy, traj.obs[:8], traj.action[:8])
    assert chosen.kind == ("functional" if case.culprit else "factored")
    monkeypatch.setattr(factored, "CACHE_BYTES", 8 * chosen.num_parameters)  # tiles of one trajectory, or a few
    monkeypatch.setattr(factored, "SUM_NUMBERS", 3 * chosen.num_parameters)
    for scores_map in {chosen.kind: chosen, "functional": scores.FunctionalScores(case.policy)}.values():
        for k, size in ((1, 4), (5, 4), (5, 2), (2, 1), (9, 4)):
            check(scores_map, traj, z, k, size)


def test_wrong_gradients_would_be_seen():
    """The comparison itself: a factor 1 + 1e-8 on φ, one exchanged step and a shifted parameter are all found."""
    case = CASES["mlp categorical"]
    traj = batch(case)
    z, phi = step_scores(case.policy, traj.obs, traj.action), random_phi(traj, 3)
    expected = loop_gradients(z, traj, phi)
    (chunk,) = traj.chunks(4)
    at, own = (
        scores.make(case.policy, traj.obs, traj.action).at(traj.obs[chunk.rows], traj.action[chunk.rows]),
        chunk_phi(chunk, phi),
    )
    for wrong in (own * (1 + 1e-8), own.flip(1), own.roll(1, 2)):
        with pytest.raises(AssertionError):
            torch.testing.assert_close(at.apply(wrong), expected[chunk.index], **CLOSE)


def test_one_gram_gives_squared_norms_and_distances_of_gradients():
    case = CASES["mlp Gaussian"]
    traj = batch(case, [5, 5, 2, 4])
    (chunk,) = traj.chunks(4)
    at = scores.make(case.policy, traj.obs, traj.action).at(traj.obs[chunk.rows], traj.action[chunk.rows])
    phi = chunk_phi(chunk, random_phi(traj, 2))
    g = at.apply(phi)
    norms = torch.einsum("ckt,ctu,cku->ck", phi, at.gram(), phi)
    torch.testing.assert_close(norms, g.square().sum(-1), **CLOSE)
    pair = torch.cat([phi[0::2], -phi[1::2]], -1)
    torch.testing.assert_close(
        torch.einsum("ckt,ctu,cku->ck", pair, at.gram(2), pair), (g[0::2] - g[1::2]).square().sum(-1), **CLOSE
    )


@pytest.mark.parametrize("name", ["softmax table", "mlp categorical", "mlp Gaussian", "embedding and linear", "layer norm"])
def test_buffers_used_again_hold_nothing_of_other_batches(name):
    case = CASES[name]
    scores_map = scores.make(case.policy, *(lambda t: (t.obs, t.action))(batch(case)))
    for seed, lengths in enumerate(([6, 4, 1, 3], [2], [1, 1], [7, 7, 5], [6, 4, 1, 3])):
        traj = batch(case, lengths, seed)
        z = step_scores(case.policy, traj.obs, traj.action)
        check(scores_map, traj, z, 3 + seed % 2, len(lengths))


@pytest.mark.parametrize("name", ["softmax table", "mlp categorical", "mlp Gaussian", "bare log σ", "layer norm"])
def test_float32_agrees_to_its_rounding(name):
    case = cases()[name]
    traj = batch(case)
    z, phi = step_scores(case.policy, traj.obs, traj.action), random_phi(traj, 3)
    expected = loop_gradients(z, traj, phi)
    single = case.policy.float()

    def cast(x):
        return x.float() if x.is_floating_point() else x

    obs, action = cast(traj.obs), cast(traj.action)
    scores_map = scores.make(single, obs, action)
    assert scores_map.kind == ("functional" if case.culprit else "factored")
    (chunk,) = traj.chunks(4)
    found = scores_map.at(obs[chunk.rows], action[chunk.rows]).apply(chunk_phi(chunk, phi).float())
    torch.testing.assert_close(found.double(), expected[chunk.index], rtol=1e-4, atol=1e-4)


def test_embedding_indices_may_be_small_integers():
    case = CASES["softmax table"]
    traj = batch(case)
    (chunk,) = traj.chunks(4)
    at = scores.make(case.policy, traj.obs.int(), traj.action).at(traj.obs[chunk.rows].int(), traj.action[chunk.rows])
    expected = loop_gradients(step_scores(case.policy, traj.obs, traj.action), traj, random_phi(traj, 2))
    torch.testing.assert_close(at.apply(chunk_phi(chunk, random_phi(traj, 2))), expected[chunk.index], **CLOSE)
