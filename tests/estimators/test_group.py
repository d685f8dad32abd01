"""Estimators of groups: formulas by loops, means and variances by enumeration of units, and closed forms."""

import math
from dataclasses import replace

import contract
import numpy as np
import pytest
import torch
from contract import UNIT_WORLDS, direction_bias, distance, exact_mean, moments
from scipy.stats import binom
from units import Units

import varlab
from varlab import estimators
from varlab.checks import InputError
from varlab.envs.prompts import group_advantage_variance, group_normalised_factor, prompts
from varlab.estimators import Batch, make
from varlab.estimators.group import JamesStein, LeaveOneOut, others
from varlab.types import Values

GROUP = ("leave_one_out", "group_mean", "group_normalised", "james_stein")


def relative(mean, gradient):
    """‖E ĝ − ∇J‖/‖∇J‖."""
    return float((mean - gradient).norm() / gradient.norm())


def answers(success, logits):
    """A contract world of the multi-prompt bandit with a table of success probabilities."""
    return contract.World(prompts(success=success).finite, torch.tensor(logits, dtype=torch.float64), 1)


def right_or_wrong(*p):
    """Prompts with two answers of which the first is right, given with probability p."""
    return answers([[1.0, 0.0]] * len(p), [[math.log(x / (1 - x)), 0.0] for x in p])


# ---- formulas


def mean(x):
    return sum(x) / len(x)


def var(x):
    return sum((y - mean(x)) ** 2 for y in x) / (len(x) - 1)


def james_stein(unit, g, i):
    size, m = len(unit[g]), len(unit)
    rest = [x for j, x in enumerate(unit[g]) if j != i]
    other = [group for h, group in enumerate(unit) if h != g]
    sigma_sq, spread = mean([var(x) for x in other]), var([mean(x) for x in other])
    v = sigma_sq / (size - 1)
    total = v + spread + spread / (m - 1) - sigma_sq / size
    lam = min(1.0, v / total) if total > 0 else 0.0
    return unit[g][i] - (1 - lam) * mean(rest) - lam * mean([mean(x) for x in other])


#: A_i from the returns unit[g][i] of one unit.
LOOPS = {
    "leave_one_out": lambda unit, g, i: unit[g][i] - mean([x for j, x in enumerate(unit[g]) if j != i]),
    "group_mean": lambda unit, g, i: unit[g][i] - mean(unit[g]),
    "group_normalised": lambda unit, g, i: (unit[g][i] - mean(unit[g])) / (math.sqrt(var(unit[g])) + 1e-8),
    "james_stein": james_stein,
}


@pytest.mark.parametrize("at_cut", estimators.AT_CUT)
@pytest.mark.parametrize("size", (2, 5))
@pytest.mark.parametrize("name", LOOPS)
def test_phi_is_its_formula(name, size, at_cut):
    """Returns of episodes of several lengths, some cut; five units of four groups."""
    world, m = contract.random_world(0), 4
    drawn = torch.Generator().manual_seed(size)
    traj = contract.select(world.paths.traj, torch.randint(len(world.paths.traj), (5 * m * size,), generator=drawn))
    traj = replace(traj, horizon=6)  # what was the end of the objective is a cut now
    v_last, v_stale = torch.randn(2, len(traj), generator=drawn, dtype=torch.float64)
    batch = Batch(traj, Values(v_last=v_last, v_stale=v_stale), 0.9, at_cut, group=size, unit=m * size)
    found = make(name).phi(batch)
    after = {"terminal": torch.zeros_like(v_last), "bootstrap": v_last, "wrong_state": v_stale}[at_cut].tolist()
    returns = []
    for i, (first, stop) in enumerate(zip(traj.offsets[:-1].tolist(), traj.offsets[1:].tolist(), strict=True)):
        r = sum(0.9**t * x for t, x in enumerate(traj.reward[first:stop].tolist()))
        returns.append(r + (0.9 ** (stop - first) * after[i] if bool(traj.truncated[i]) else 0.0))
    expected = []
    for u in range(0, len(traj), m * size):
        unit = [returns[u + g * size : u + (g + 1) * size] for g in range(m)]
        expected += [LOOPS[name](unit, g, i) for g in range(m) for i in range(size)]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64)[traj.episode], rtol=1e-12, atol=1e-12)
    discounted = estimators.weight(make(name), batch, True)
    assert torch.equal(discounted, found), "γ is inside R already"


def test_shrinkage_at_its_ends():
    """Equal other means: λ = 1, as long as returns vary; no variance in the other groups: λ = 0, leave-one-out."""
    drawn = torch.tensor([[[3.0, 0.0], [1.0, 0.0], [0.0, 1.0]]], dtype=torch.float64)
    assert make("james_stein").advantage(drawn)[0, 0].tolist() == [2.5, -0.5]
    for still in ([[3.0, 1.0], [1.0, 1.0], [0.0, 0.0]], [[3.0, 1.0], [1.0, 1.0], [1.0, 1.0]]):
        assert make("james_stein").advantage(torch.tensor([still], dtype=torch.float64))[0, 0].tolist() == [2.0, -2.0]


def test_spreads_estimate_the_errors_of_the_two_means():
    """Their means are v and v + s: the error of the leave-one-out mean, and its mean square distance from the other groups."""
    world, size, m = right_or_wrong(0.9, 0.2, 0.4), 3, 3
    units = Units.of(world, size, groups=m)
    batch = Batch(units.traj, Values(), 1.0)
    returns = batch.reward_to_go.view(-1, m, size)
    p = torch.tensor([0.9, 0.2, 0.4], dtype=torch.float64)[units.traj.obs].view(-1, m, size)
    centre, v, total = (units.probability @ x.mean(1) for x in JamesStein().spreads(returns))
    assert float(v) == pytest.approx(float(units.probability @ (others(returns) - p).square().mean((1, 2))), abs=1e-14)
    apart = others(returns) - JamesStein().spreads(returns)[0][..., None]
    assert float(total) == pytest.approx(float(units.probability @ apart.square().mean((1, 2))), abs=1e-14)
    assert float(centre) == pytest.approx(0.5, abs=1e-14) and 0.1 < float(v / total) < 0.9


def test_eight_answers_of_which_three_are_right():
    """The published numbers: 1.21 and −0.72 with the division, 0.71 and −0.43 by leave-one-out."""
    returns = torch.tensor([[[1.0] * 3 + [0.0] * 5]], dtype=torch.float64)
    for name, right, wrong in (("group_normalised", 1.2076, -0.7246), ("leave_one_out", 0.7143, -0.4286)):
        found = make(name).advantage(returns)[0, 0].tolist()
        assert found == pytest.approx([right] * 3 + [wrong] * 5, abs=5e-5)


@pytest.mark.parametrize("p", (0.25, 0.6))
@pytest.mark.parametrize("size", (2, 3, 8))
def test_variance_of_the_advantage(p, size):
    """p(1 − p)(G − 1)/G against p(1 − p)G/(G − 1): at G = 8 and p = 1/4, 0.164 against 0.214."""
    units = Units.of(right_or_wrong(p), size)
    batch = Batch(units.traj, Values(), 1.0, group=size, unit=size)
    for name, left_out in (("group_mean", False), ("leave_one_out", True)):
        phi = make(name).phi(batch).view(-1, size)  # one step each
        mean = units.probability @ phi.mean(1)
        exact = group_advantage_variance(p, size, left_out)
        assert abs(float(mean)) < 1e-14
        assert float(units.probability @ phi.square().mean(1)) == pytest.approx(exact, abs=1e-14)
        # Once more from the law of the number of other successes.
        k = np.arange(size)
        square = sum(
            share * (binom.pmf(k, size - 1, p) @ (r - (k if left_out else k + r) / (size - 1 if left_out else size)) ** 2)
            for r, share in ((1, p), (0, 1 - p))
        )
        assert square == pytest.approx(exact, abs=1e-14)
    if (p, size) == (0.25, 8):
        both = [group_advantage_variance(p, size, x) for x in (False, True)]
        assert both == pytest.approx([0.1640625, 0.2142857], abs=1e-7)


# ---- means


@pytest.mark.parametrize("shared_start", (True, False))
@pytest.mark.parametrize("gamma", (1.0, 0.9))
@pytest.mark.parametrize("world", UNIT_WORLDS)
def test_leave_one_out_is_unbiased_and_the_own_mean_shrinks(world, gamma, shared_start):
    """E ĝ = ∇J, and (G − 1)/G ∇J, with either weighting: R_γ holds the discount."""
    made = UNIT_WORLDS[world]()
    gradient = made.gradient(gamma)
    assert float(gradient.norm()) > 0.05
    for size in (2, 3):
        for weighting in (True, False):
            settings = {"gamma": gamma, "group": size, "unit": size, "shared_start": shared_start}
            settings["discount_weighting"] = weighting
            assert distance(exact_mean(make("leave_one_out"), made, **settings), gradient) < 1e-12
            assert distance(exact_mean(make("group_mean"), made, **settings), (size - 1) / size * gradient) < 1e-12


@pytest.mark.parametrize(
    ("world", "shared_start"), [*((w, True) for w in UNIT_WORLDS), ("prompts", False), ("three arms", False)]
)
def test_james_stein_is_unbiased(world, shared_start):
    made = UNIT_WORLDS[world]()
    for size, m in ((2, 3), (2, 4), (3, 3)) if shared_start and world != "two steps" else ((2, 3),):
        settings = {"gamma": 0.9, "group": size, "unit": size * m, "shared_start": shared_start}
        assert distance(exact_mean(make("james_stein"), made, **settings), made.gradient(0.9)) < 1e-12


@pytest.mark.parametrize("size", (3, 4))
def test_groups_may_be_listed_up_to_order(size):
    world = answers([[0.9, 0.2], [0.3, 0.6]], [[0.4, -0.1], [-0.3, 0.2]])
    units = Units.of(world, size)
    for name in ("leave_one_out", "group_normalised"):
        mean, diagonal = moments(make(name), world, group=size, unit=size)
        assert distance(units.mean(make(name)), mean) < 1e-14
        assert units.variance(make(name)) == pytest.approx(size * float(diagonal.sum()), abs=1e-14)


@pytest.mark.parametrize("size", (2, 3, 4, 8))
def test_leave_one_out_has_the_variance_of_the_own_mean_times_its_scale_squared(size):
    units = Units.of(right_or_wrong(0.3, 0.6), size)
    ratio = units.variance(make("leave_one_out")) / units.variance(make("group_mean"))
    assert ratio == pytest.approx((size / (size - 1)) ** 2, rel=1e-12)


# ---- the division by the standard deviation


@pytest.mark.parametrize("size", (2, 3, 4, 8))
def test_group_normalised_weighs_prompts_by_its_factor(size):
    """E[ĝ | prompt] = f(p) ∇p: rows of the table are prompts, so that each row of E ĝ is f(p(s)) times that of ∇J."""
    world = answers([[0.9, 0.2], [0.3, 0.05]], [[0.4, -0.1], [-0.3, 0.2]])
    mean = Units.of(world, size).mean(make("group_normalised")).view(2, 2)
    success = torch.tensor([[0.9, 0.2], [0.3, 0.05]], dtype=torch.float64)
    p = (world.logits.softmax(-1) * success).sum(-1).tolist()
    factor = torch.tensor([group_normalised_factor(x, size) for x in p], dtype=torch.float64)
    assert distance(mean, factor[:, None] * world.gradient().view(2, 2)) < 1e-12


def test_group_normalised_is_biased_in_direction_and_stays_so():
    """At p = 0.05 and 0.5 the hard prompt is over-weighted, by a factor that tends to √(0.25/0.0475) = 2.29 as G grows."""
    world = right_or_wrong(0.05, 0.5)
    hard, easy = 0.05 * 0.95, 0.25  # what ∇p is along each prompt's logits

    def off(weight):
        return abs(weight - 1) * hard * easy / math.hypot(weight * hard, easy) / math.hypot(hard, easy)

    weight = {g: group_normalised_factor(0.05, g) / group_normalised_factor(0.5, g) for g in (2, 3, 4, 8, 16, 64, 1024, 65536)}
    for size in (2, 3, 4, 8, 16):
        mean = Units.of(world, size).mean(make("group_normalised"))
        rows = (mean / world.gradient()).view(2, 2)[:, 0].tolist()
        assert rows[0] / rows[1] == pytest.approx(weight[size], rel=1e-12)
        assert direction_bias(mean, world.gradient()) == pytest.approx(off(weight[size]), abs=1e-12)
    assert max(off(weight[2]), off(weight[3])) < 1e-12, "of two or three returns that differ there is one standard deviation"
    assert 1 < weight[4] < weight[8] < weight[16] < weight[64] < weight[1024]
    assert weight[65536] == pytest.approx((0.25 / 0.0475) ** 0.5, rel=1e-3)
    sizes = [off(weight[g]) for g in (4, 16, 65536)]
    assert sizes == pytest.approx([0.0106, 0.1225, 0.2214], abs=1e-4), "larger groups make it worse"


def test_group_normalised_of_equal_returns_is_nothing():
    returns = torch.full((1, 2, 4), 0.3, dtype=torch.float64)
    assert float(make("group_normalised").advantage(returns).abs().max()) < 1e-7


# ---- shrinkage


def gain(world, size):
    """Share of the variance of leave_one_out that james_stein removes, with three groups."""
    units = Units.of(world, size, groups=3)
    assert relative(units.mean(make("james_stein")), world.gradient()) < 1e-12
    return 1 - units.variance(make("james_stein")) / units.variance(make("leave_one_out"))


def test_shrinkage_lowers_the_variance_and_most_with_small_groups():
    """Similar prompts, p = 0.62 and 0.57: a third of the variance at G = 2, a twenty-fifth at G = 8."""
    similar = right_or_wrong(0.6225, 0.5744)
    gains = [gain(similar, size) for size in (2, 4, 8)]
    assert gains == pytest.approx([0.371, 0.155, 0.041], abs=2e-3)
    assert gain(right_or_wrong(0.88, 0.12), 2) == pytest.approx(0.192, abs=2e-3), "also where prompts differ"


# ---- a measurement


def test_a_measurement_agrees_with_the_enumeration():
    """Means by the test of bias, variances by their intervals, of every member in units of 3 groups of 2."""
    world = right_or_wrong(0.6, 0.3)
    env = prompts(success=[[1.0, 0.0]] * 2)
    settings = {"n": 24_000, "group_size": 2, "groups": 3, "seed": 4, "dtype": "float64"}
    rows = varlab.measure(env, world.policy, list(GROUP), **settings).summary.set_index("phi")
    units = Units.of(world, 2, groups=3)
    for name in GROUP:
        exact, row = units.variance(make(name)), rows.loc[name]
        width = row.variance_high - row.variance_low
        assert row.variance_low - width / 2 < exact < row.variance_high + width / 2 and width < 0.2 * exact
    assert rows.bias_p_value[["leave_one_out", "james_stein"]].min() > 0.01
    own = float((0.5 * world.gradient()).square().sum())
    assert rows.bias_sq["group_mean"] == pytest.approx(own, rel=0.15) and rows.bias_p_value["group_mean"] < 1e-3


# ---- what cannot be


@pytest.mark.parametrize("name", GROUP)
def test_a_group_of_one_is_one_sentence(name):
    traj = UNIT_WORLDS["prompts"]().paths.traj
    for batch in (Batch(traj, Values(), 1.0), Batch(traj, Values(), 1.0, unit=4)):
        with pytest.raises(InputError, match=rf"At least 2 trajectories in a group .* for {name}, .* is 1; set group_size=8"):
            make(name).phi(batch)
    with pytest.raises(InputError, match=f"Whole units of 9 trajectories in groups of 3 were expected for {name}, but 4 "):
        make(name).phi(Batch(traj, Values(), 1.0, group=3, unit=9))


def test_shrinkage_needs_three_groups():
    traj = UNIT_WORLDS["prompts"]().paths.traj
    for batch in (Batch(traj, Values(), 1.0, group=2, unit=2), Batch(traj, Values(), 1.0, group=2, unit=4)):
        with pytest.raises(InputError, match=r"At least 3 groups in a unit .* for james_stein, but groups is [12]; set groups=8"):
            make("james_stein").phi(batch)


# ---- variants that must not pass: a bias of at most a tenth of ‖∇J‖, and seen


class OffByOne(LeaveOneOut):
    """Leaves out the next trajectory instead of its own."""

    def advantage(self, returns):
        return returns - others(returns).roll(-1, -1)


class Leak(JamesStein):
    """λ from all groups, its own included, so that it has seen R_i."""

    def spreads(self, returns):
        m, size = returns.shape[1:]
        v = returns.var(-1).mean(-1, keepdim=True) / (size - 1)
        total = v / size + returns.mean(-1).var(-1, keepdim=True) * m / (m - 1)
        return super().spreads(returns)[0], v.expand(-1, m), total.expand(-1, m)


def test_leaving_out_the_next_trajectory_is_rejected():
    """R_i then weighs 1/(G − 1) in its own baseline: at G = 12 a bias of 1/11."""
    world = right_or_wrong(0.4)
    right, wrong = (exact_mean(e, world, group=12, unit=12) for e in (LeaveOneOut(), OffByOne()))
    assert distance(right, world.gradient()) < 1e-12
    assert relative(wrong, world.gradient()) == pytest.approx(1 / 11, rel=1e-9)


def test_a_coefficient_that_has_seen_the_return_is_rejected():
    world = right_or_wrong(0.6225, 0.5744)
    units = Units.of(world, 4, groups=3)
    right, wrong = (units.mean(e) for e in (JamesStein(), Leak()))
    assert relative(right, world.gradient()) < 1e-12
    assert 0.05 < relative(wrong, world.gradient()) < 0.1
