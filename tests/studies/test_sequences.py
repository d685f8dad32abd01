"""Sequence worlds: scores against autograd, variances against sums over tuples, surrogates against the Φ of the package."""

import itertools

import numpy as np
import pytest
import torch

from varlab import checks, estimators
from varlab.estimators import Batch
from varlab.studies.sequences import Sequences
from varlab.types import Trajectories, Values

WORLD = Sequences.draw(4, 2, tokens=2, length=3)
OTHER = WORLD.logits + np.array([[0.4, -0.1], [-0.9, 0.2], [0.3, 0.7]])


def log_probability(logits):
    """log P of every sequence, by a loop."""
    out = []
    for sequence in WORLD.tokens.tolist():
        total, last = 0.0, 2
        for token in sequence:
            total = total + logits[last].log_softmax(-1)[token]
            last = token
        out.append(total)
    return torch.stack(out)


def test_probabilities_scores_and_values():
    logits = torch.tensor(WORLD.logits, requires_grad=True)
    log_p = log_probability(logits)
    np.testing.assert_allclose(WORLD.chance, log_p.exp().detach().numpy(), rtol=1e-13)
    assert WORLD.chance.sum() == pytest.approx(1, abs=1e-14) and set(WORLD.pays) == {0.0, 1.0}
    for k in range(8):
        grad = torch.autograd.grad(log_p[k], logits, retain_graph=True)[0]
        np.testing.assert_allclose(WORLD.scores()[k].sum(0), grad.numpy().ravel(), atol=1e-14)
    for k, sequence in enumerate(WORLD.tokens):
        for t in range(3):
            same = (WORLD.tokens[:, :t] == sequence[:t]).all(1)
            value = (WORLD.chance * WORLD.pays)[same].sum() / WORLD.chance[same].sum()
            assert WORLD.value[k, t] == pytest.approx(value, rel=1e-12)


def gradients(b):
    return np.einsum("ktp,kt->kp", WORLD.scores(), WORLD.pays[:, None] - b)


def spread(weight, g):
    return float(weight @ ((g - weight @ g) ** 2).sum(1))


def test_variances_are_sums_over_sequences():
    m = WORLD.moments
    for b in (0.0, 0.3, np.array([0.1, -0.7, 2.0]), m.best, m.cumulative):
        assert m.variance(b) == pytest.approx(spread(WORLD.chance, gradients(b)), rel=1e-11)
    for t, step in itertools.product(range(3), (-1e-3, 1e-3)):
        assert m.variance(m.best + step * np.eye(3)[t]) > m.variance(m.best)
    weight = (WORLD.scores() ** 2).sum(2)
    for t in range(3):
        so_far = weight[:, : t + 1].sum(1)
        assert m.cumulative[t] == pytest.approx((WORLD.chance * so_far) @ WORLD.pays / ((WORLD.chance * so_far).sum()), rel=1e-12)


def test_leave_one_out_is_the_sum_over_triples():
    whole, p, r = WORLD.scores().sum(1), WORLD.chance, WORLD.pays
    triples = np.array(list(itertools.product(range(8), repeat=3)))
    weight = p[triples].prod(1)
    others = (r[triples].sum(1, keepdims=True) - r[triples]) / 2
    g = (whole[triples] * (r[triples] - others)[..., None]).mean(1)
    assert WORLD.moments.leave_one_out(3) == pytest.approx(3 * spread(weight, g), rel=1e-11)


def test_estimated_token_baselines_by_a_loop():
    index = np.array([[0, 3, 5], [7, 7, 2]])
    found = WORLD.estimated_token_baselines(index)
    z, weight = WORLD.scores(), (WORLD.scores() ** 2).sum(2).cumsum(1)
    for group, g in zip(index, found, strict=True):
        total = 0
        for i, k in enumerate(group):
            rest = [j for m, j in enumerate(group) if m != i]
            for t in range(3):
                b = sum(weight[j, t] * WORLD.pays[j] for j in rest) / sum(weight[j, t] for j in rest)
                total = total + z[k, t] * (WORLD.pays[k] - b) / 3
        np.testing.assert_allclose(g, total, atol=1e-14)


@pytest.mark.parametrize(("form", "phi"), [("unclipped", "surrogate(lam=1)"), ("clipped", "clipped_surrogate(lam=1, eps=0.2)")])
def test_surrogates_are_those_of_the_package(form, phi):
    count = len(WORLD.tokens)
    paid = np.zeros((count, 3))
    paid[:, -1] = WORLD.pays
    obs, action, reward = (torch.from_numpy(x.flatten()) for x in (WORLD.last, WORLD.tokens, paid))
    ended = torch.ones(count, dtype=torch.bool)
    traj = Trajectories(
        obs=obs, action=action, reward=reward, offsets=3 * torch.arange(count + 1), terminated=ended, truncated=~ended,
        last_obs=obs[:count], horizon=3,
    )  # fmt: skip
    ratio = torch.from_numpy((WORLD.log_steps(OTHER) - WORLD.log_steps()).ravel())
    batch = Batch(traj, Values(v=torch.from_numpy(WORLD.value.ravel())), 1.0, log_ratio=ratio)
    weights = estimators.parse(phi).phi(batch).numpy().reshape(count, 3)
    expected = np.einsum("ktp,kt->kp", WORLD.scores(OTHER), weights)
    np.testing.assert_allclose(WORLD.surrogate(OTHER, form), expected, atol=1e-13)
    assert form == "unclipped" or (weights == 0).any()


def test_kurtosis_and_refusal():
    g = WORLD.surrogate(WORLD.logits, "no_ratio")
    np.testing.assert_allclose(g, WORLD.surrogate(WORLD.logits, "clipped"), atol=1e-15)  # θ_b itself: ratios are 1
    square = ((g - WORLD.chance @ g) ** 2).sum(1)
    assert WORLD.kurtosis(g) == pytest.approx((WORLD.chance * square**2).sum() / (WORLD.chance * square).sum() ** 2, rel=1e-12)
    with pytest.raises(checks.InputError, match="form of surrogate"):
        WORLD.surrogate(OTHER, "truncated")
