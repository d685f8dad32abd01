"""Normalisations over a unit: formulas by loops, biases in direction by enumeration, and what they tend to as units grow."""

import math
from dataclasses import dataclass, replace

import contract
import pytest
import torch
from contract import direction_bias
from units import Units

import varlab
from varlab.checks import InputError
from varlab.envs import FiniteMDP
from varlab.estimators import Batch, make, parse, weight
from varlab.estimators.normalised import NormalisedAdvantage, StepMean

STOP = 0  # the parameter that favours ending at once


def stop_or_go(first=1.0, last=2.5):
    """End now for ``first``, or go on to a second choice between 0 and ``last``: episodes of one step or two."""
    lists = [
        [[(1.0, 0, first, True)], [(1.0, 1, 0.0, False)]],
        [[(1.0, 1, 0.0, True)], [(1.0, 1, last, True)]],
    ]
    logits = torch.tensor([[0.0, 0.4], [0.3, -0.2]], dtype=torch.float64)
    return contract.World(FiniteMDP.from_lists(lists, [1.0, 0.0]), logits, 2)


def moments(world, estimator, **settings):
    """E g, Cov(g, T), E T and Var T of single trajectories."""
    g = contract.gradients(estimator, world, world.paths.traj, world.exact(settings.get("gamma", 1.0)), **settings)
    p, length = world.probability, world.paths.traj.length.double()
    mean, steps = p @ g, p @ length
    return mean, (p * (length - steps)) @ g, float(steps), float(p @ (length - steps) ** 2)


def rest(mean, gradient):
    """What no multiple of ∇J explains of E ĝ."""
    return mean - (mean @ gradient) / (gradient @ gradient) * gradient


# ---- formulas


def batch_of(seed, units, unit, gamma=0.9, group=1):
    world = contract.random_world(0)
    drawn = torch.Generator().manual_seed(seed)
    index = torch.multinomial(world.probability, units * unit, replacement=True, generator=drawn)
    traj = contract.select(world.paths.traj, index)
    return Batch(traj, world.wrong(traj, frozenset("vq")), gamma, group=group, unit=unit)


def runs(batch):
    """Rows of each unit, as (first, stop)."""
    ends = batch.traj.offsets[:: batch.unit].tolist()
    return list(zip(ends[:-1], ends[1:], strict=True))


@pytest.mark.parametrize("unit", (2, 7))
@pytest.mark.parametrize("lam", (0.0, 0.95, 1.0))
def test_normalised_advantage_is_its_formula(lam, unit):
    batch = batch_of(unit, 5, unit)
    found, inner = make("normalised_advantage", lam=lam).phi(batch), make("gae", lam=lam).phi(batch).tolist()
    for first, stop in runs(batch):
        steps = inner[first:stop]
        mean = sum(steps) / len(steps)
        std = math.sqrt(sum((x - mean) ** 2 for x in steps) / len(steps))
        expected = torch.tensor([(x - mean) / (std + 1e-8) for x in steps], dtype=torch.float64)
        torch.testing.assert_close(found[first:stop], expected, rtol=1e-12, atol=1e-12)


def test_equal_advantages_become_nothing():
    world = stop_or_go(first=1.0, last=0.0)
    traj = contract.select(world.paths.traj, torch.zeros(4, dtype=torch.int64))
    batch = Batch(traj, world.exact()(traj, frozenset("v")), 1.0, unit=4)
    assert float(batch.td_residual.abs().min()) > 0.1 and torch.equal(NormalisedAdvantage().phi(batch), torch.zeros(4).double())


@pytest.mark.parametrize("discount_weighting", (True, False))
@pytest.mark.parametrize("of", ("reward_to_go", "total_return", "gae(lam=0.5)", "group_normalised", "leave_one_out"))
def test_step_mean_is_a_mean_over_steps(of, discount_weighting):
    """The mean over the N trajectories of its Φ is Σ Φ'/Σ T, weighted as Φ' is."""
    batch = batch_of(3, 4, 6, group=3)
    found = weight(make("step_mean", of=of), batch, discount_weighting) / batch.unit
    inner = weight(parse(of), batch, discount_weighting)
    for first, stop in runs(batch):
        torch.testing.assert_close(found[first:stop], inner[first:stop] / (stop - first), rtol=1e-12, atol=1e-14)
    assert len({stop - first for first, stop in runs(batch)}) > 1


def test_a_fitted_phi_inside_step_mean_takes_its_numbers():
    batch = batch_of(3, 4, 6)
    outer = make("step_mean", of="constant_baseline")
    assert outer.fits and not make("step_mean").fits
    fitted, inner = outer.fit(batch), make("constant_baseline").fit(batch)
    assert fitted.label == outer.label == "step_mean(of='constant_baseline')"
    assert fitted.inner.fitted == inner.fitted is not None
    torch.testing.assert_close(fitted.phi(batch), StepMean()._per_step(batch, inner.phi(batch)), rtol=0, atol=0)


def test_names_read_back():
    one = parse("step_mean(of='gae(0.5)')")
    assert one.label == "step_mean(of='gae(lam=0.5)')" and parse(one.label) == one and one.needs == {"v"}
    assert make("step_mean").label == "step_mean(of='reward_to_go')" and make("step_mean").needs == frozenset()
    assert not make("step_mean", of="total_return").weighted and make("step_mean").weighted
    assert make("normalised_advantage").label == "normalised_advantage(lam=0.95)"


# ---- biases in direction, and limits

MEMBERS = ("step_mean", "step_mean(of='gae')", "normalised_advantage", "normalised_advantage(lam=1.0)")


@pytest.mark.parametrize("text", MEMBERS)
def test_the_bias_in_direction_has_a_sign_and_a_size(text):
    """Ending at once is favoured over its share of ∇J: what episodes of two steps have in common counts less."""
    world = stop_or_go()
    mean = Units.of(world, 4).mean(parse(text))
    size = {"step_mean": 0.1215, "step_mean(of='gae')": 0.00413, "normalised_advantage": 0.2306}
    assert direction_bias(mean, world.gradient()) == pytest.approx(size.get(text, 0.3133), rel=2e-3)
    assert float(rest(mean, world.gradient())[STOP]) > 1e-4
    tuples = contract.exact_mean(parse(text), world, group=4, unit=4)
    assert contract.distance(tuples, mean) < 1e-12, "the order of trajectories does not matter"


@pytest.mark.parametrize("of", ("reward_to_go", "total_return", "gae(lam=0.95)"))
def test_step_mean_tends_to_the_gradient_over_the_mean_length(of):
    """E ĝ = E g/E T − (Cov(g, T) − E g Var T/E T)/(N (E T)²) + O(1/N²), by the expansion of a ratio of means."""
    world = stop_or_go()
    g, cov, steps, var = moments(world, parse(of))
    means = {n: Units.of(world, n).mean(make("step_mean", of=of)) for n in (8, 16, 32)}
    first = -(cov - g * var / steps) / steps**2
    slope = {n: n * (x - g / steps) for n, x in means.items()}
    extrapolated = (slope[8] - 6 * slope[16] + 8 * slope[32]) / 3
    assert contract.distance(extrapolated, first) < 2e-3 * float(first.abs().max())
    limit = (means[8] - 6 * means[16] + 8 * means[32]) / 3
    assert direction_bias(limit, world.gradient()) < 1e-4 and contract.distance(limit, world.gradient() / steps) < 1e-4


@pytest.mark.parametrize("source", ("exact", "wrong"))
@pytest.mark.parametrize("lam", (0.5, 1.0))
def test_normalised_advantage_tends_to_the_mean_of_gae_over_its_standard_deviation(lam, source):
    """Mean and std of A over all steps become those of the population, and E Σ_t z_t times a constant is 0."""
    world = stop_or_go()
    values = world.exact() if source == "exact" else world.wrong
    traj = world.paths.traj
    a = make("gae", lam=lam).phi(Batch(traj, values(traj, frozenset("v")), 1.0))
    share = world.probability[traj.episode]
    mean = (share @ a) / share.sum()
    std = float(((share @ (a - mean) ** 2) / share.sum()).sqrt())
    limit = contract.exact_mean(make("gae", lam=lam), world, source=values) / std
    off = [
        float((Units.of(world, n).mean(make("normalised_advantage", lam=lam), values) - limit).norm() / limit.norm())
        for n in (16, 32, 64)
    ]
    assert off[0] > 1.8 * off[1] > 3.2 * off[2] > 0 and 64 * off[2] < 4, "the difference falls like 1/N"
    unbiased = lam == 1.0 or source == "exact"
    assert (direction_bias(limit, world.gradient()) < 1e-10) == unbiased, "what gae itself is off by stays"


def test_a_measurement_calls_them_free_of_scale():
    """Bias against the best multiple of ∇J: seen for step_mean in units of 2; no ratio of variances."""
    world = stop_or_go()
    settings = {"n": 20_000, "groups": 2, "seed": 1, "dtype": "float64", "values": "exact"}
    rows = varlab.measure(world.env, world.policy, ["total_return", *MEMBERS[::2]], **settings).summary.set_index("phi")
    for text in MEMBERS[::2]:
        row, units = rows.loc[parse(text).label], Units.of(world, 2)
        across = float(rest(units.mean(parse(text)), world.gradient()).square().sum())
        width = row.variance_high - row.variance_low
        assert row.variance_low - width / 2 < units.variance(parse(text)) < row.variance_high + width / 2
        assert row.bias_sq_low <= across <= row.bias_sq_high and math.isnan(row.variance_ratio)
    assert rows.bias_p_value[parse("step_mean").label] < 1e-3


# ---- what cannot be


@pytest.mark.parametrize("text", MEMBERS)
def test_a_unit_of_one_is_one_sentence(text):
    batch = replace(batch_of(1, 3, 2), unit=1)
    with pytest.raises(InputError, match=r"Units of at least 2 trajectories were expected for .*, but .* both 1; set groups=100"):
        parse(text).phi(batch)
    with pytest.raises(InputError, match="Whole units of 4 trajectories in groups of 1 were expected"):
        parse(text).phi(replace(batch, unit=4))


@pytest.mark.parametrize(
    ("of", "message"),
    [
        ("all_action", "weighs the scores of the steps taken was expected inside step_mean, but it is all_action"),
        ("step_mean", "inside step_mean, but it is step_mean"),
        ("reward_togo", "No Φ is called 'reward_togo'; the nearest names are reward_to_go"),
    ],
)
def test_not_everything_has_a_mean_over_steps(of, message):
    with pytest.raises(InputError, match=message):
        make("step_mean", of=of)


@pytest.mark.parametrize("lam", (1.5, -0.1, "high"))
def test_lam_outside_its_range(lam):
    with pytest.raises(InputError, match="lam of normalised_advantage"):
        make("normalised_advantage", lam=lam)


# ---- variants that must not pass: the limit is off by at most a tenth, and seen


@dataclass(frozen=True)
class OwnLength(StepMean):
    """Divides each trajectory by its own length instead of the mean length of the unit."""

    def _per_step(self, batch, x):
        return x / batch.traj.length[batch.traj.episode]


@dataclass(frozen=True)
class EpisodeMean(NormalisedAdvantage):
    """Subtracts the mean over the trajectory's own steps: a leak, as it holds a larger share of A_t than 1/(Σ T)."""

    def phi(self, batch):
        a, traj = make("gae", lam=self.lam).phi(batch), batch.traj
        own = torch.zeros(len(traj), dtype=a.dtype).index_add(0, traj.episode, a) / traj.length
        unit = traj.episode // batch.unit
        std = torch.stack([a[unit == u].std(correction=0) for u in unit.unique()])
        return (a - own[traj.episode]) / (std + 1e-8)[unit]


def limit(world, estimator, sizes=(16, 32, 64)):
    """E ĝ as the unit grows, by three steps of extrapolation in 1/N."""
    a, b, c = (Units.of(world, n).mean(estimator) for n in sizes)
    return (a - 6 * b + 8 * c) / 3


@pytest.mark.parametrize(
    ("right", "wrong", "size"),
    [(StepMean(of="gae"), OwnLength(of="gae"), 0.0287), (NormalisedAdvantage(), EpisodeMean(), 0.0671)],
    ids=("a length of its own", "a mean of its own"),
)
def test_a_number_of_each_trajectory_instead_of_the_unit_is_rejected(right, wrong, size):
    world = stop_or_go(4.0, 0.5)
    assert direction_bias(limit(world, right), world.gradient()) < 1e-4
    assert direction_bias(limit(world, wrong), world.gradient()) == pytest.approx(size, abs=1e-4)
