"""Measurements in units of several trajectories, under another policy that acts, and of gradients changed per parameter."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from finite_worlds import random_mdp
from test_experiment import SMALL, WORLD, exact_values, table

import varlab
from varlab import envs, policies
from varlab.checks import InputError
from varlab.estimators import Batch, Estimator, make, weight
from varlab.layout import Layout
from varlab.policies import log_prob
from varlab.rng import Streams
from varlab.rollout import rollout

P = 6


@dataclass(frozen=True)
class Without(Estimator):
    """R less the mean of the others of its unit, by plain loops."""

    name, formula, source = "without", "", ""
    batchwise = True
    weighted = False

    def phi(self, batch):
        starts = batch.reward_to_go[batch.traj.offsets[:-1]].tolist()
        out = []
        for i in range(len(starts)):
            unit = i // batch.unit * batch.unit
            others = [starts[j] for j in range(unit, unit + batch.unit) if j != i]
            out.append(starts[i] - sum(others) / len(others))
        return torch.tensor(out, dtype=torch.float64)[batch.traj.episode]


@dataclass(frozen=True)
class Ratio(Estimator):
    """w_t = the ratio of the two policies so far: unbiased, whoever acts."""

    name, formula, source = "ratio", "", ""
    off_policy = True

    def phi(self, batch):
        sums = batch.log_ratios.cumsum(0)
        before = torch.cat([sums.new_zeros(1), sums])[batch.traj.offsets[:-1]]
        last = sums[batch.traj.last_row] - before
        return last.exp()[batch.traj.episode] * batch.reward_to_go


@dataclass(frozen=True)
class Less(Estimator):
    """Σ_t z_t G_t + c ∘ Σ_t z_t t, an offset of its own for every parameter."""

    name, formula, source = "less", "", ""

    def phi(self, batch):
        return batch.reward_to_go

    @property
    def coefficients(self):
        return torch.linspace(-2.0, 1.0, P, dtype=torch.float64)

    def companion(self, batch):
        return batch.traj.time.double()


@dataclass(frozen=True)
class Turned(Estimator):
    """A Σ_t z_t G_t."""

    name, formula, source = "turned", "", ""
    target = "natural"

    def phi(self, batch):
        return batch.reward_to_go

    @property
    def matrix(self):
        return torch.randn(P, P, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def measure(phi, **settings):
    return varlab.measure(WORLD, table(), phi, **{**SMALL, **settings})


def trajectories(n, unit=1, policy=None, seed=0):
    """The rollout stream, part by part."""
    layout, policy = Layout(n, 50, 10**6, unit=unit), policies.prepare(policy or table(), torch.float64, torch.device("cpu"))
    for b in range(50):
        for draw in layout.parts(b):
            yield b, rollout(WORLD, policy, draw.n, Streams(seed).sequence("rollout", draw.block, draw.part))


def looped(estimator, traj, unit=1, ratio=None):
    """g of every trajectory, one autograd call each, [N, P]."""
    policy = policies.prepare(table(), torch.float64, torch.device("cpu"))
    values = exact_values(WORLD, table())(traj, frozenset({"v", "q"}))
    w = weight(estimator, Batch(traj, values, 1.0, group=unit, unit=unit, log_ratio=ratio), True)
    rows = []
    for a, e in zip(traj.offsets[:-1].tolist(), traj.offsets[1:].tolist(), strict=True):
        loss = (policy(traj.obs[a:e]).log_prob(traj.action[a:e]) * w[a:e]).sum()
        rows.append(torch.autograd.grad(loss, list(policy.parameters()))[0].flatten().numpy())
    return np.stack(rows)


def test_gradients_of_units_are_those_of_a_loop():
    unit, n = 6, 600
    result = measure([make("reward_to_go"), Without()], n=n, group_size=2, groups=3, shared_start=False)
    for k, estimator in enumerate((make("reward_to_go"), Without())):
        units, block = [], []
        for b, traj in trajectories(n, unit):
            units += list(looped(estimator, traj, unit).reshape(-1, unit, P).mean(1))
            block += [b] * (len(traj) // unit)
        g, block = np.stack(units), np.array(block)
        assert len(g) == n // unit
        for b in range(50):
            np.testing.assert_allclose(result.moments.mean[b, k], g[block == b].mean(0), rtol=1e-9, atol=1e-12)
        row = result.summary.iloc[k]
        assert row["variance"] == pytest.approx(unit * np.trace(np.cov(g.T)), rel=1e-9)
        assert row["mse"] == pytest.approx(row["bias_sq"] + row["variance"] / 100, rel=1e-9)
        assert row["n"] == n and row["efficiency"] == pytest.approx(1 / (row["variance"] * row["steps"] / n), rel=1e-12)
    assert (row["group_size"], row["groups"], row["shared_start"], row["target"]) == (2, 3, False, "gradient")
    scalars = result.trajectories
    assert scalars["trajectory"].tolist() == list(range(0, n, unit)) and len(scalars) == n // unit
    assert int(scalars["length"].sum()) == int(result.moments.steps.sum())
    assert result.moments.unit == unit and result.moments.n == n and set(result.moments.units) == {2}


def test_the_pilot_centre_and_the_reference_size_are_per_unit():
    """A reference of the same relative error is asked for whatever the unit."""
    one, six = (
        measure(["reward_to_go"], n=600, reference="sampled", groups=m, pilot=600).summary.iloc[0]["n_reference"] for m in (1, 6)
    )
    assert one == six


def test_exact_variance_stands_where_trajectories_are_independent_and_the_estimator_is_plain():
    phi = [make("reward_to_go"), Without()]
    plain = measure("reward_to_go").summary.iloc[0]["exact_variance"]
    rows = measure(phi, n=600, groups=6).summary["exact_variance"]
    assert rows.iloc[0] == pytest.approx(plain, rel=1e-12) and np.isnan(rows.iloc[1])


def test_units_leave_other_digests_alone():
    one, two = measure("reward_to_go"), measure("reward_to_go", groups=1, group_size=1, shared_start=False)
    assert one.digest == two.digest
    assert measure("reward_to_go", groups=2).digest != one.digest


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"phi": [Without()]}, "Units of several trajectories were expected for without.*set for instance group_size=8"),
        ({"phi": "reward_to_go", "groups": 7, "n": 700 + 1}, "At least 50 whole units.*1 × 7 = 7.*n=701; set for instance n=700"),
        ({"phi": "reward_to_go", "groups": 3, "n": 120}, "At least 50 whole units.*n=120; set for instance n=150"),
        ({"phi": "reward_to_go", "groups": 0}, "groups"),
    ],
)
def test_bad_units_are_one_sentence(settings, sentence):
    with pytest.raises(InputError, match=sentence):
        measure(**settings)


def test_another_policy_acts_and_theta_scores():
    """Trajectories of b, scores and ∇J of θ, and log π_θ − log π_b at the actions taken."""
    acting = table(seed=7)
    result = measure([make("reward_to_go"), Ratio()], n=200, behaviour=acting, behaviour_label="seven")
    ours, theirs = (policies.prepare(p, torch.float64, torch.device("cpu")) for p in (table(), acting))
    found = []
    for _, traj in trajectories(200, policy=acting):
        ratio = (log_prob(ours(traj.obs), traj.action) - log_prob(theirs(traj.obs), traj.action)).detach()
        found.append(looped(Ratio(), traj, ratio=ratio))
    g = np.concatenate(found)
    np.testing.assert_allclose(np.average(result.moments.mean[:, 1], 0, result.moments.count), g.mean(0), rtol=1e-9, atol=1e-12)
    row = result.summary.iloc[1]
    assert row["variance"] == pytest.approx(np.trace(np.cov(g.T)), rel=1e-9)
    assert row["behaviour"] == "seven" and np.isnan(row["exact_variance"])
    on_policy = measure("reward_to_go")
    np.testing.assert_array_equal(result.references["J_1"].grad, on_policy.references["J_1"].grad)
    assert result.digest != on_policy.digest


def test_what_another_policy_makes_biased_is_found_and_what_corrects_it_is_not():
    rows = measure([make("reward_to_go"), Ratio()], n=20_000, behaviour=table(seed=7), dtype="float32").summary
    assert rows["bias_p_value"].iloc[0] < 0.001 < rows["bias_p_value"].iloc[1]


def test_values_are_those_of_the_policy_that_acts():
    """Q of b read along b's trajectories: its q_value has the mean of reward_to_go there, term by term."""
    rows = measure(["reward_to_go", "q_value"], n=20_000, behaviour=table(seed=7), dtype="float32")
    a, b = (np.average(rows.moments.mean[:, k], 0, rows.moments.count) for k in (0, 1))
    error = np.sqrt(rows.summary["variance"] / 20_000).sum()
    assert np.linalg.norm(a - b) < error < np.linalg.norm(a - rows.references["J_1"].grad)


@pytest.mark.parametrize("dtype", ("float64", "float32"))
def test_coefficients_and_matrices_are_linear_in_two_sums(dtype):
    """g + c ∘ s with s from scores weighted by t, and A g; in chunks, in the pilot's sums and in every moment."""
    result = measure([make("reward_to_go"), Less(), Turned()], n=200, dtype=dtype, chunk=3)
    found = {0: [], 1: [], 2: []}
    for _, traj in trajectories(200):
        g = looped(make("reward_to_go"), traj)

        @dataclass(frozen=True)
        class Time(Estimator):
            name, formula, source = "time", "", ""

            def phi(self, batch):
                return batch.traj.time.double()

        found[0].append(g)
        found[1].append(g + Less().coefficients.numpy() * looped(Time(), traj))
        found[2].append(g @ Turned().matrix.numpy().T)
    tolerance = 1e-9 if dtype == "float64" else 1e-4
    for k, pieces in found.items():
        g = np.concatenate(pieces)
        mean = np.average(result.moments.mean[:, k], 0, result.moments.count)
        np.testing.assert_allclose(mean, g.mean(0), rtol=tolerance, atol=tolerance)
        assert result.summary.iloc[k]["variance"] == pytest.approx(np.trace(np.cov(g.T)), rel=tolerance)
    natural = result.summary.iloc[2]
    target = Turned().matrix.numpy() @ result.references["J_1"].grad
    assert natural["grad_norm"] == pytest.approx(np.linalg.norm(target), rel=1e-9)
    assert natural["bias_p_value"] > 0.001 and natural["target"] == "natural" and np.isnan(natural["variance_ratio"])


def test_layouts_hold_whole_units():
    layout = Layout(60, 7, 8, unit=3)
    assert sum(layout.sizes) == 60 and all(size % 3 == 0 for size in layout.sizes)
    parts = [d for b in range(7) for d in layout.parts(b)]
    assert sum(d.n for d in parts) == 60 and all(d.n % 3 == 0 and d.n <= 8 for d in parts)
    assert [d.n for d in Layout(6, 1, 2, unit=6).parts(0)] == [6]  # one unit is never cut


def test_groups_reach_the_simulator():
    """group_size with a shared start asks the simulator for groups, and only then."""
    asked = []

    class Watched(type(WORLD.make_simulator(torch.device("cpu")))):
        def reset(self, n, seed, group=1):
            asked.append((n, group))
            return super().reset(n, seed)

    watched = envs.Environment(
        name="watched", horizon=4, observation_space=WORLD.observation_space, action_space=WORLD.action_space,
        make_simulator=lambda device: Watched(random_mdp(0), device), finite=WORLD.finite, identity={"name": "watched"},
    )  # fmt: skip
    varlab.measure(watched, table(), "reward_to_go", **{**SMALL, "n": 200}, group_size=4)
    assert {group for _, group in asked} == {1, 4}  # 1: the probe is of single trajectories, as critic and reference are
    asked.clear()
    varlab.measure(watched, table(), "reward_to_go", **{**SMALL, "n": 200}, group_size=4, shared_start=False)
    assert {group for _, group in asked} == {1}
