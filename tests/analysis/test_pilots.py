"""Plans from pilots and verdicts on full runs: closed forms, exact worlds, coverage of the episodes, biased Φ."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from finite_worlds import random_logits, random_mdp

import varlab
from varlab import envs, policies
from varlab.analysis import pilots, planning
from varlab.analysis.convergence import cosine_at
from varlab.checks import InputError
from varlab.types import Moments, Reference
from varlab.values import FunctionValues

PHI = ["total_return", "reward_to_go", "gae(lam=0.0)"]


def wrong(env):
    v = 0.5 * np.random.default_rng(0).standard_normal((env.horizon + 1, env.finite.num_states))
    return FunctionValues(v=lambda s, t: env.finite.initial.new_tensor(v)[t, s])


@pytest.fixture(scope="module")
def world():
    mdp = random_mdp(3)
    env = envs.environment(mdp, 4)
    policy = policies.SoftmaxTable(env, logits=random_logits(1, mdp))
    result = varlab.measure(env, policy, PHI, n=20_000, pilot=100, dtype="float64", values=wrong(env), batch_size=50)
    return result, varlab.exact(env, policy, PHI, values=wrong(env))


def planned(result, target, value):
    return pilots.plan_table(result.summary, result.moments, result.references, target, value).set_index("phi")


def test_an_unbiased_phi_needs_what_the_closed_form_says(world):
    result, exact = world
    assert result.summary["unbiased"].tolist() == [True, True, False]
    for target, factor in (("cosine", 0.9**2 / (1 - 0.9**2)), ("relative_mse", 1 / 0.9)):
        plan = planned(result, target, 0.9)
        for phi in PHI[:2]:
            for end in ("", "_low", "_high"):
                assert plan.loc[phi, f"episodes{end}"] == pytest.approx(factor * plan.loc[phi, f"nsr{end}"], rel=1e-12)
            truth = factor * exact.nsr[PHI.index(phi)]
            assert plan.loc[phi, "episodes_low"] < truth < plan.loc[phi, "episodes_high"]


def test_a_biased_phi_needs_where_its_own_error_meets_the_target(world):
    """N solves ρ_N = c and MSE_N = e, so reading both at that N gives the target back; the exact N lies in the interval."""
    result, exact = world
    k, grad = 2, exact.gradient
    square, mean = grad @ grad, exact.mean[k]
    bias_sq = exact.bias_sq[k] / square
    value = 2.0 * bias_sq
    plan = planned(result, "relative_mse", value).loc[PHI[k]]
    truth = planning.episodes_for_mse(value, exact.nsr[k], bias_sq)
    assert plan["episodes"] == pytest.approx(truth, rel=0.3)
    assert plan["episodes_low"] < plan["episodes"] < plan["episodes_high"] < 1.6 * truth
    row = result.summary.iloc[k]
    solved = row["variance"] / (value * square - row["bias_sq"])
    assert plan["episodes"] == pytest.approx(solved, rel=1e-8)
    length = np.sqrt(mean @ mean / square)
    alignment = mean @ grad / np.sqrt((mean @ mean) * square)
    c = 0.8 * alignment
    plan = planned(result, "cosine", c).loc[PHI[k]]
    truth = planning.episodes_for_cosine(c, exact.nsr[k], length - 1, alignment)
    assert plan["episodes"] == pytest.approx(truth, rel=0.3)
    assert plan["episodes_low"] < plan["episodes"] < plan["episodes_high"] < 1.6 * truth


def test_a_target_below_the_bias_is_out_of_reach(world):
    result, exact = world
    plan = planned(result, "relative_mse", 0.2 * exact.bias_sq[2] / (exact.gradient @ exact.gradient)).loc[PHI[2]]
    assert plan["episodes"] == plan["episodes_high"] == math.inf


def test_both_roads_agree_where_nothing_is_biased(world):
    """An unbiased Φ treated as if nothing were proven: near the closed form, with a wider interval."""
    result, _ = world
    unproven = result.summary.assign(unbiased=False)
    free = pilots.plan_table(unproven, result.moments, result.references, "cosine", 0.5).set_index("phi")
    sharp = planned(result, "cosine", 0.5)
    for phi in PHI[:2]:
        assert free.loc[phi, "episodes"] == pytest.approx(sharp.loc[phi, "episodes"], rel=0.1)
        assert free.loc[phi, "episodes_low"] < sharp.loc[phi, "episodes"] < free.loc[phi, "episodes_high"]
    old = pilots.plan_table(
        unproven.drop(columns="unbiased"), result.moments, result.references, "cosine", 0.5
    )  # summaries before the column
    pd.testing.assert_frame_equal(old.set_index("phi"), free)


def gaussian(rng, n=1000, p=5, bias=0.3, blocks=50):
    """Gradients N(e_1 + bias e_2, I): ‖∇J‖ = 1, variance p, bias² = bias²."""
    g = rng.standard_normal((blocks, n // blocks, 1, p))
    g[..., 0] += 1
    g[..., 1] += bias
    mean = g.mean(1)
    rest = dict.fromkeys(("cross", "m4", "m2c"), np.zeros((blocks, 1)))
    m = Moments(
        np.arange(blocks), np.full(blocks, n // blocks), mean, np.square(g - mean[:, None]).sum((1, 3)), None,
        steps=np.full(blocks, 1), names=("a",), **rest,
    )  # fmt: skip
    return m, {"J_1": Reference(np.eye(p)[0], None, None, 0.0, "exact", 0, "J_1")}


ROW = {"phi": "a", "objective": "J_1", "nsr": 5.0, "nsr_low": 4.0, "nsr_high": 6.0, "flag": "", "n": 1000}


#: MSE_N = 0.09 + 5/N ≤ 0.5 from N = 12.195; cosine at least 0.9, where ‖E g‖² = 1.09 = a⁻².
TRUTHS = {"relative_mse": (0.5, 5 / 0.41), "cosine": (0.9, planning.episodes_for_cosine(0.9, 5, 1.09**0.5 - 1, 1.09**-0.5))}
#: The same with the bias left out.
UNBIASED = {"relative_mse": 10.0, "cosine": planning.episodes_for_cosine(0.9, 5.0)}


def at_size(m, references, target, size):
    """Both ends of cosine or error at a batch size, as a check of a run with that size finds them."""
    cosine = dict(zip(("cosine", "cosine_low", "cosine_high"), cosine_at(m, 0, references["J_1"])(size), strict=True))
    row = ROW | {"batch_size": size, **cosine}
    return pilots.check_table(pd.DataFrame([row]), m, references, target, TRUTHS[target][0]).iloc[0]


def test_ends_of_the_episodes_are_where_ends_of_the_error_meet_the_target():
    rng, summary = np.random.default_rng(5), pd.DataFrame([ROW])
    for _ in range(3):
        m, references = gaussian(rng)
        for target, (value, _) in TRUTHS.items():
            row = pilots.plan_table(summary, m, references, target, value).iloc[0]
            ends = ("found", "found_high", "found_low") if target == "cosine" else ("found", "found_low", "found_high")
            for n, end in zip(("episodes", "episodes_low", "episodes_high"), ends, strict=True):
                assert at_size(m, references, target, row[n])[end] == pytest.approx(value, rel=1e-7)


def test_the_interval_of_the_episodes_covers_and_a_wrong_number_does_not():
    """N lies between the ends exactly where the target lies between those of the error at N."""
    rng, hits, wrong = np.random.default_rng(0), dict.fromkeys(TRUTHS, 0), dict.fromkeys(TRUTHS, 0)
    for _ in range(200):
        m, references = gaussian(rng)
        for target, (value, truth) in TRUTHS.items():
            for size, count in ((truth, hits), (UNBIASED[target], wrong)):
                row = at_size(m, references, target, size)
                count[target] += row["found_low"] < value < row["found_high"]
    for target in TRUTHS:
        assert abs(hits[target] / 200 - 0.95) < 0.047, hits
        assert wrong[target] < 130, wrong


def test_a_gradient_that_is_not_resolved_bounds_nothing():
    m, references = gaussian(np.random.default_rng(1))
    summary = pd.DataFrame([ROW | {"flag": "gradient-not-resolved"}])
    mse = pilots.plan_table(summary, m, references, "relative_mse", 0.5).iloc[0]
    assert math.isnan(mse["episodes"]) and (mse["episodes_low"], mse["episodes_high"]) == (0.0, math.inf)
    cosine = pilots.plan_table(summary, m, references, "cosine", 0.5).iloc[0]
    assert cosine["episodes_high"] == math.inf
    with pytest.raises(InputError, match="larger pilot"):
        pilots.choose(pilots.plan_table(summary, m, references, "cosine", 0.5))


def test_what_has_not_varied_yet_decides_nothing(world):
    result, _ = world
    still = result.summary.assign(flag=["zero-variance", "", ""], nsr=0.0, cosine=1.0, cosine_low=1.0, cosine_high=1.0)
    plan = pilots.plan_table(still, result.moments, result.references, "cosine", 0.9)
    assert plan["episodes_high"][0] == math.inf and pilots.choose(plan)["phi"] != PHI[0]
    found = pilots.check_table(still, result.moments, result.references, "cosine", 0.9)["outcome"]
    assert found.tolist() == ["undecided", "met", "met"]


# ---- the check


def checked(result, target, value, **changes):
    return pilots.check_table(result.summary.assign(**changes), result.moments, result.references, target, value).set_index("phi")


def test_outcomes_follow_the_interval(world):
    result, _ = world
    row = result.summary.iloc[1]
    for value, outcome in ((row["cosine_low"], "met"), (row["cosine"], "undecided"), (row["cosine_high"] + 1e-9, "missed")):
        assert checked(result, "cosine", value).loc[PHI[1], "outcome"] == outcome
    error = row["nsr"] / 50
    for value, outcome in ((row["nsr_high"] / 50, "met"), (error, "undecided"), (0.99 * row["nsr_low"] / 50, "missed")):
        found = checked(result, "relative_mse", value).loc[PHI[1]]
        assert found["outcome"] == outcome and found["found"] == pytest.approx(error, rel=1e-12)
    width = row["variance_ratio_high"] - row["variance_ratio_low"]
    assert checked(result, "ratio_width", width).loc[PHI[1], "outcome"] == "met"
    assert checked(result, "ratio_width", 0.99 * width).loc[PHI[1], "outcome"] == "missed"


def test_a_biased_phi_is_judged_by_its_own_error(world):
    result, exact = world
    square = exact.gradient @ exact.gradient
    truth = (exact.bias_sq[2] + exact.variance[2] / 50) / square
    found = checked(result, "relative_mse", 1.0).loc[PHI[2]]
    assert found["found"] == pytest.approx(truth, rel=0.15) and found["found_low"] < found["found"] < found["found_high"]
    assert found["found"] == pytest.approx(result.summary.iloc[2]["mse"] / square, rel=1e-10)


def test_what_was_realised_is_that_of_the_whole_mean(world):
    result, _ = world
    grad = result.references["J_1"].grad
    mean = np.average(result.moments.mean[:, 1], axis=0, weights=result.moments.count)
    assert checked(result, "cosine", 0.9).loc[PHI[1], "realised"] == pytest.approx(
        mean @ grad / np.linalg.norm(mean) / np.linalg.norm(grad), rel=1e-12
    )
    assert checked(result, "relative_mse", 0.9).loc[PHI[1], "realised"] == pytest.approx(
        np.square(mean - grad).sum() / (grad @ grad), rel=1e-12
    )


def test_a_plan_that_was_carried_out_is_met(world):
    """The upper end of N, with a seed of its own: the cosine there is above the target."""
    result, exact = world
    plan = planned(result, "cosine", 0.9)
    n = math.ceil(plan.loc[PHI[1], "episodes_high"])
    assert planning.cosine_to_truth(exact.nsr[1], n) > 0.9
    too_few = int(plan.loc[PHI[1], "episodes_low"] / 2)
    assert planning.cosine_to_truth(exact.nsr[1], too_few) < 0.9


# ---- the command


def test_the_command_repeats_the_pilot_with_sizes_and_seeds_of_its_own(world):
    result, _ = world
    plan, pilot = planned(result, "cosine", 0.9).reset_index(), result.summary.iloc[0]
    row = pilots.choose(plan)
    assert row["phi"] == plan.loc[plan["episodes_high"].idxmin(), "phi"]
    size = math.ceil(row["episodes_high"])
    words = ["scripts/measure.py", "env=x", "n=20000", "seed=0", "out=a", "batch_size=5", "reference.seed=9", "+phi=[gae]"]
    said = pilots.full_run(row, pilot, "b c", words)
    assert said == f"python scripts/measure.py env=x '+phi=[gae]' n={max(20000, size)} batch_size={size} seed=1 'out=b c'"
    sampled = pilot.copy()
    sampled["reference_kind"], sampled["reference_seed"] = "value_baseline", 4
    assert "reference.seed=5" in pilots.full_run(row, sampled, "b", words)
    sampled["group_size"], sampled["groups"] = 8, 4
    unit = pilots.full_run(row, sampled, "b", [*words, "-m"])
    assert unit.startswith(f"n={max(20000, 32 * math.ceil(size / 32))} batch_size={32 * math.ceil(size / 32)} ")


def test_a_width_asks_for_the_widest_of_all(world):
    result, _ = world
    plan = planned(result, "ratio_width", 0.001).reset_index()
    row = pilots.choose(plan)
    assert row["episodes"] == plan["episodes"].max() and plan["episodes"][0] == 0.0
    assert "batch_size" not in pilots.full_run(row, result.summary.iloc[0], "b")
    assert pilots.choose(plan, PHI[0])["phi"] == PHI[0]
    with pytest.raises(InputError, match="Φ of the pilot"):
        pilots.choose(plan, "gae")


def test_text_for_a_terminal(world):
    result, _ = world
    plan = pilots.plan_table(result.summary, result.moments, result.references, "cosine", 0.9)
    lines = pilots.plan_text(plan).splitlines()
    assert lines[0] == "Episodes for a cosine of at least 0.9" and len(lines) == 5 and lines[2].startswith("total_return")
    check = pilots.check_text(pilots.check_table(result.summary, result.moments, result.references, "cosine", 0.9))
    assert "at N = 50 (n = 20,000)" in check and any(word in check for word in ("met", "missed", "undecided"))


IMPOSSIBLE = [("cosine", 1.0), ("cosine", 0.0), ("cosine", 1.5), ("relative_mse", 0.0), ("mse", 1)]


@pytest.mark.parametrize(("target", "value"), IMPOSSIBLE)
def test_impossible_targets_are_refused(world, target, value):
    result, _ = world
    for make in (pilots.plan_table, pilots.check_table):
        with pytest.raises(InputError, match="between|nearest|must lie"):
            make(result.summary, result.moments, result.references, target, value)


def test_a_sampled_reference_brings_its_own_error():
    rng = np.random.default_rng(3)
    m, references = gaussian(rng)
    blocks = np.eye(5)[0] + 0.2 * rng.standard_normal((50, 5))
    sampled = {"J_1": replace(references["J_1"], grad=blocks.mean(0), block_mean=blocks, block_count=np.full(50, 10), n=500)}
    summary = pd.DataFrame([ROW])
    ends = [pilots.plan_table(summary, m, r, "relative_mse", 0.5).iloc[0] for r in (references, sampled)]
    assert ends[1]["episodes_high"] - ends[1]["episodes_low"] > ends[0]["episodes_high"] - ends[0]["episodes_low"]
