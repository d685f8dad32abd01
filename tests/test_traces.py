"""Variances from inner products of scores: against gradients one by one and exact oracles, and with a pairing that is wrong."""

import numpy as np
import pytest
import torch
from finite_worlds import random_mdp
from test_experiment import MDP, PHI, WORLD, exact_values, table

import varlab
from varlab import envs, policies, scores
from varlab.analysis.traces import ROUNDING, TraceBlock, kurtosis, rows
from varlab.checks import InputError
from varlab.estimators import Batch, make, parse, weight
from varlab.layout import Layout
from varlab.policies.base import log_prob
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.terms import Terms

SETTINGS = {"n": 200, "dtype": "float64", "pilot": 40}


def gradients(env, policy, phi, values, unit=1, n=200, seed=0, gamma=1.0):
    """[units, P] gradients by autograd, trajectory by trajectory, in the order in which they are sampled, and their blocks."""
    found, block = [], []
    policy = policies.prepare(policy, torch.float64, torch.device("cpu"))
    layout = Layout(n, 50, 10**6, unit=2 * unit)
    for b in range(50):
        for draw in layout.parts(b):
            streams = Streams(seed).sequence("rollout", draw.block, draw.part)
            traj = rollout(env, policy, draw.n, streams, group=unit)
            w = weight(phi, Batch(traj, values(traj, frozenset({"v", "q"})), gamma, group=unit, unit=unit), True)
            for i in range(0, draw.n, unit):
                a, e = int(traj.offsets[i]), int(traj.offsets[i + unit])
                loss = (log_prob(policy(traj.obs[a:e]), traj.action[a:e]) * w[a:e]).sum() / unit
                theta = list(policy.parameters())
                found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, theta)]).numpy())
                block.append(b)
    return np.stack(found), np.array(block)


def by_pairs(g):
    """(mean of ½‖g − g'‖², mean of ⟨g, g'⟩) over neighbouring rows."""
    return 0.5 * np.square(g[0::2] - g[1::2]).sum(1).mean(), (g[0::2] * g[1::2]).sum(1).mean()


def test_variances_are_those_of_gradients_taken_one_by_one():
    policy = table()
    found = varlab.variances(WORLD, policy, [*PHI, "all_action"], gamma=0.9, **SETTINGS).set_index("phi")
    values = exact_values(WORLD, policy, 0.9)
    for name in ("total_return", "reward_to_go", "value_baseline", "advantage", "gae(0.5)"):
        g, _ = gradients(WORLD, policy, parse(name), values, gamma=0.9)
        half_sq, inner = by_pairs(g)
        row = found.loc[parse(name).label]
        assert row["variance"] == pytest.approx(half_sq, rel=1e-10)
        assert row["mean_sq"] == pytest.approx(inner, rel=1e-8, abs=1e-12)
        assert row["nsr"] == pytest.approx(half_sq / inner if inner > 0 else np.inf)
        assert row["variance_low"] < row["variance"] < row["variance_high"] and row["mean_sq_low"] < inner < row["mean_sq_high"]
    assert list(found["n"]) == [200] * 9 and found.loc["total_return", "variance_ratio"] == 1.0
    ratio = found["variance"] / found.loc["total_return", "variance"]
    assert found["variance_ratio"].to_numpy() == pytest.approx(ratio.to_numpy(), rel=1e-12)


def test_nodes_give_what_exact_sums_over_actions_give():
    """all_action: Σ_t Σ_a ∇π(a | s_t) Q_t(s_t, a) by autograd."""
    policy = table()
    found = varlab.variances(WORLD, policy, ["reward_to_go", "all_action"], **SETTINGS).set_index("phi")
    double, q = policies.prepare(policy, torch.float64, torch.device("cpu")), exact_values(WORLD, policy).q
    rows_found = []
    layout = Layout(200, 50, 10**6, unit=2)
    for b in range(50):
        for draw in layout.parts(b):
            traj = rollout(WORLD, double, draw.n, Streams(0).sequence("rollout", draw.block, draw.part))
            for i in range(draw.n):
                total = 0.0
                for row in range(int(traj.offsets[i]), int(traj.offsets[i + 1])):
                    s, t = traj.obs[row : row + 1], row - int(traj.offsets[i])
                    pi = double(s).probs[0]
                    total = total + sum(pi[a] * float(q(s, torch.tensor([a]), torch.tensor([t]))) for a in range(len(pi)))
                rows_found.append(torch.autograd.grad(total, list(double.parameters()))[0].flatten().numpy())
    assert found.loc["all_action", "variance"] == pytest.approx(by_pairs(np.stack(rows_found))[0], rel=1e-9)


def test_units_of_several_trajectories_give_the_variance_of_one():
    policy = table()
    found = varlab.variances(WORLD, policy, ["total_return", "leave_one_out"], group_size=2, **SETTINGS).set_index("phi")
    g, _ = gradients(WORLD, policy, make("leave_one_out"), exact_values(WORLD, policy), unit=2)
    half_sq, inner = by_pairs(g)
    row = found.loc["leave_one_out"]
    assert row["variance"] == pytest.approx(2 * half_sq, rel=1e-10) and row["mean_sq"] == pytest.approx(inner, rel=1e-8)
    assert row["n"] == 200


def test_numbers_do_not_depend_on_chunks_or_on_the_other_choices():
    policy = table()
    whole = varlab.variances(WORLD, policy, PHI, **SETTINGS)
    chunked = varlab.variances(WORLD, policy, PHI, chunk=4, **SETTINGS)
    np.testing.assert_allclose(chunked["variance"], whole["variance"], rtol=1e-12)
    other = varlab.variances(WORLD, policy, PHI, part_size=2, **SETTINGS)  # other parts, other random numbers
    assert (other["variance"] != whole["variance"]).all()
    alone = varlab.variances(WORLD, policy, PHI[1:2], **SETTINGS)
    assert alone["variance"][0] == pytest.approx(whole["variance"][1], rel=1e-12)


def test_single_precision_agrees_to_its_rounding():
    policy = table()
    double, single = (varlab.variances(WORLD, policy, PHI, **{**SETTINGS, "dtype": d}) for d in ("float64", "float32"))
    np.testing.assert_allclose(single["variance"], double["variance"], rtol=1e-4)


PROBE_PHI = ("total_return", "reward_to_go", "value_baseline", "td_residual")
#: n fixed beforehand; limits are normal quantiles at 1e-6 for the whole file.
REPEATS, LIMIT = 60, 5.2


@pytest.fixture(scope="module")
def truth():
    return varlab.exact(WORLD, table(), PROBE_PHI, fourth=True)


def standard_error(truth, n):
    """[K] that of the mean of ½‖g − g'‖² over n/2 pairs, from exact fourth moments."""
    square = 0.5 * truth.fourth + 0.5 * truth.variance**2 + truth.trace_sq
    return np.sqrt((square - truth.variance**2) / (n / 2))


def test_estimates_are_unbiased_and_their_intervals_cover(truth):
    """Over repeats: mean of the estimates within 5.2 exact standard errors; 95 % intervals hold the exact value 83 to 100 %."""
    n, square = 400, (truth.mean**2).sum(1)
    made = [varlab.variances(WORLD, table(), PROBE_PHI, n=n, pilot=40, seed=100 + i) for i in range(REPEATS)]
    found = np.stack([m["variance"] for m in made])
    z = (found.mean(0) - truth.variance) / (standard_error(truth, n) / np.sqrt(REPEATS))
    assert np.abs(z).max() < LIMIT, z
    held = np.mean([(m["variance_low"] <= truth.variance) & (truth.variance <= m["variance_high"]) for m in made], 0)
    held_sq = np.mean([(m["mean_sq_low"] <= square) & (square <= m["mean_sq_high"]) for m in made], 0)
    # P(Binomial(60, .95) ≤ 49) = 2e-5
    assert (held > 49 / 60).all() and (held_sq > 49 / 60).all(), (held, held_sq)
    wrong = np.mean([(m["variance_low"] <= 2 * truth.variance) & (2 * truth.variance <= m["variance_high"]) for m in made], 0)
    assert (wrong < 49 / 60).all(), wrong


def test_the_kurtosis_of_pairs_bounds_that_of_gradients(truth):
    """2κ − 1 − 2 tr Σ²/(tr Σ)² from exact fourth moments, against the pilot's number over many pairs."""
    exact = truth.fourth / truth.variance**2
    slack = 2 * truth.trace_sq / truth.variance**2
    g = [gradients(WORLD, table(), parse(p), exact_values(WORLD, table()), n=4000)[0] for p in PROBE_PHI[:2]]
    block = TraceBlock(2)
    norm_sq = torch.from_numpy(np.stack([np.square(x).sum(1) for x in g], 1))
    block.add(norm_sq, torch.from_numpy(np.stack([(x[0::2] * x[1::2]).sum(1) for x in g], 1)))
    assert kurtosis(block) - slack[:2] == pytest.approx(exact[:2], rel=0.1)
    assert (kurtosis(block) > 0.9 * exact[:2]).all()


def test_pairs_chosen_by_their_lengths_would_be_noticed():
    """Neighbours of similar length are not independent: what is paired must not be sorted first."""
    env = envs.environment(random_mdp(5, ending=0.4), 12, name="ragged")
    policy = policies.prepare(table(env, 1), torch.float64, torch.device("cpu"))
    traj = rollout(env, policy, 4000, Streams(3).sequence("rollout", 0, 0))
    e = make("total_return")
    made = Terms.of_steps(traj, weight(e, Batch(traj, None, 1.0), True).unsqueeze(1))
    chosen = scores.make(policy, traj.obs[:8], traj.action[:8])

    def inner(together):
        products = []
        for chunk in made.chunks(512, together):
            at, phi = made.at(chosen, chunk, torch.float64)
            products.append((chunk.index, at.products(phi)[1][:, 0]))
        return products

    paired = inner(2)
    assert all(bool((index[0::2] + 1 == index[1::2]).all() and (index[0::2] % 2 == 0).all()) for index, _ in paired)
    right, wrong = (torch.cat([x for _, x in made_]).numpy() for made_ in (paired, inner(1)))
    exact = varlab.exact(env, table(env, 1), ["total_return"])
    square = float((exact.mean**2).sum())
    error = right.std() / np.sqrt(len(right))
    assert abs(right.mean() - square) < LIMIT * error and abs(wrong.mean() - square) > LIMIT * error


def test_gradients_that_never_vary_have_no_variance():
    """One action only: every score is 0; ‖E g‖² is 0 and not resolved."""
    env = envs.environment(random_mdp(0, actions=1), 4, name="one action")
    found = varlab.variances(env, table(env), ["total_return", "reward_to_go"], **SETTINGS)
    assert (found["variance"] == 0).all() and (found["variance_high"] == 0).all() and found["nsr"].isna().all()
    assert all("zero-variance" in flag and "mean-not-resolved" in flag for flag in found["flag"])


def test_rounding_is_not_taken_for_variance():
    block = [TraceBlock(2) for _ in range(10)]
    for b in block:
        b.add(torch.tensor([[1e6, 1.0], [1e6, 1.0]]), torch.tensor([[1e6 - 0.5, 0.5]]))
    first, second = rows(block, ["rounded", "real"], 1)
    assert first["variance"] == 0.0 and "zero-variance" in first["flag"] and second["variance"] == 0.5
    assert rows(block, ["a", "b"], 1, rounding=ROUNDING[torch.float64])[0]["variance"] == 0.5


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"n": 101}, "Whole pairs of units of 1 trajectories.*set for instance n=100"),
        ({"n": 60}, "at least 50 of them.*n=100"),
        ({"n": 200, "group_size": 4, "phi": ["leave_one_out"]}, "n=400"),
        ({"n": 100, "phi": ["natural"]}, "natural_gradient"),
    ],
)
def test_what_cannot_be_paired_is_one_sentence(settings, sentence):
    settings = {"phi": ["reward_to_go"], "pilot": 40, **settings}
    with pytest.raises(InputError, match=sentence):
        varlab.variances(WORLD, table(), **settings)


def test_a_gradient_that_is_not_finite_names_its_trajectory():
    class Broken(type(make("reward_to_go"))):
        def phi(self, batch):
            out = super().phi(batch).clone()
            out[0] = float("nan")
            return out

    with pytest.raises(InputError, match="Finite gradients were expected"):
        varlab.variances(WORLD, table(), [Broken()], **SETTINGS)


def test_progress_and_steps_are_told():
    seen = []
    found = varlab.variances(WORLD, table(), ["reward_to_go"], progress=lambda *x: seen.append(x), **SETTINGS)
    assert seen[-1] == ("rollout", 200, 200) and 1 <= found["steps"][0] <= 4 and MDP.num_states == 3


def test_blocks_that_are_merged_are_one_block_of_all_pairs():
    generator = torch.Generator().manual_seed(3)
    norm_sq, inner = (torch.rand(n, 2, generator=generator, dtype=torch.float64) for n in (12, 6))
    whole, first, second = (TraceBlock(2) for _ in range(3))
    whole.add(3 + norm_sq, inner)
    first.add(3 + norm_sq[:8], inner[:4])
    second.add(3 + norm_sq[8:], inner[4:])
    first.merge(second)
    assert first.pairs == whole.pairs == 6
    for name in ("norm_sq", "inner", "half_sq", "fourth"):
        torch.testing.assert_close(getattr(first, name), getattr(whole, name), rtol=1e-14, atol=0)
