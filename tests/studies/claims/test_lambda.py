"""Claims about λ and discounts: exact outcomes and controls, routes of their own by enumeration, synthetic rows."""

from functools import cache

import numpy as np
import pandas as pd
import pytest
import torch
from finite_worlds import enumerate_paths

import varlab
from varlab import envs
from varlab.envs.random_mdp import random_mdp
from varlab.estimators import Batch, make
from varlab.oracles.exact import world_of
from varlab.policies import SoftmaxTable
from varlab.studies.claims import finite_cases as cases
from varlab.studies.claims import lambda_cartpole, lambda_exact
from varlab.studies.claims.catalogue import CLAIMS, STUDIES, Budget
from varlab.studies.claims.verdicts import decide
from varlab.values import ExactValues

NAMES = ("gae_bias_variance", "gae_best_lambda")
TINY = Budget("smoke", 0.01)
GAMMA = 0.9


@cache
def rows(name):
    return STUDIES[name].run(TINY)


@pytest.mark.parametrize("claim", [c for c in CLAIMS.values() if c.study in NAMES], ids=lambda c: c.id)
def test_exact_claims_and_controls(claim):
    violated = {"GA-1c", "GA-1e", "GA-2e"}
    effect, control = claim.effect(rows(claim.study)), claim.control.effect(rows(claim.study))
    assert effect.is_exact and control.is_exact
    assert decide(claim.id, effect, *claim.question).outcome == ("violated" if claim.id in violated else "holds")
    assert decide(claim.id, control, *claim.control_question).outcome == "violated"


def test_all_claims_are_there():
    assert {c.id for c in CLAIMS.values() if c.id.startswith("GA-")} == {
        *(f"GA-1{x}" for x in "abcdefg"), *(f"GA-2{x}" for x in "abcdefg"),
    }  # fmt: skip


class Small:
    """Four steps of a random MDP with every trajectory listed, and a V that is nobody's."""

    def __init__(self, ending=0.2):
        self.mdp = random_mdp(1, states=3, actions=2, outcomes=2, ending=ending)
        self.env = envs.environment(self.mdp, 4)
        self.logits = torch.tensor([[0.3, -0.5], [1.0, 0.2], [-0.4, 0.4]], dtype=torch.float64)
        self.policy = SoftmaxTable(self.env, self.logits).double()
        self.paths = enumerate_paths(self.mdp, 4)
        self.probability = self.paths.probability(self.logits)
        table = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.v = ExactValues.of(self.mdp, self.policy, GAMMA, 4).v + table
        self.source = cases.as_function(self.v)

    def batch(self):
        return Batch(self.paths.traj, self.source(self.paths.traj, frozenset("v")), GAMMA)

    def moments(self, weights):
        g = self.paths.gradients(self.logits, weights)
        mean = self.probability @ g
        return mean, float(self.probability @ (g - mean).square().sum(1))


@pytest.fixture(scope="module")
def small():
    return Small()


@pytest.mark.parametrize("lam", (0.0, 0.6, 1.0))
def test_variances_of_single_terms_are_those_of_all_trajectories(small, lam):
    batch = small.batch()
    phi = make("gae", lam=lam).phi(batch) * batch.discount
    terms = sum(small.moments(phi * (small.paths.traj.time == t))[1] for t in range(4))
    world = world_of(small.env, small.policy, small.source, GAMMA, None, "bootstrap")
    assert cases.term_variance(world, GAMMA * lam, GAMMA) == pytest.approx(terms, rel=1e-12)
    assert terms != pytest.approx(small.moments(phi)[1], rel=1e-3)  # covariances between steps are not nothing


def test_values_read_late_have_the_mean_of_all_trajectories(small):
    batch, traj = small.batch(), small.paths.traj
    late = torch.zeros_like(batch.reward)
    late[:-1] = batch.values.v[1:]
    last = traj.last_row
    late[last] = 0.0  # after termination, and at t = H, there is nothing
    mean, _ = small.moments((batch.reward_to_go - late) * batch.discount)
    # V_{t+1} is read where the step did not end the episode: at t = H − 1 the table's last row must be 0 as the convention says.
    v = small.v.clone()
    v[-1] = 0.0
    found = varlab.exact(small.env, small.policy, lambda_exact.LateValues(), gamma=GAMMA, values=cases.as_function(v))
    np.testing.assert_allclose(found.mean[0], mean.numpy(), atol=1e-13)
    assert found.bias_sq[0] > 1e-4 * (found.gradient**2).sum()


def test_errors_have_unit_norm_on_the_policys_visits():
    env, policy = cases.random_case(3, 1)
    e = cases.unit_error(env, policy, 3, 1)
    w = world_of(env, policy, None, 1.0, None, "terminal")
    assert (w.visits * e[:-1].numpy() ** 2).sum() / w.visits.sum() == pytest.approx(1.0)
    assert not torch.equal(e, cases.unit_error(env, policy, 3, 2))


def test_the_best_lambda_is_the_smallest_of_the_grid():
    table = rows("gae_best_lambda")
    env, policy = cases.random_case(0, 0)
    source = cases.wrong_values(env, policy, lambda_exact.GAMMA, 1.0 * cases.unit_error(env, policy, 0, 0))
    best = table[(table["error"] == 1.0) & (table["x"] == 100.0)]["value"].iloc[0]
    near = [make("gae", lam=float(lam)) for lam in (best - 0.02, best, best + 0.02)]
    found = varlab.exact(env, policy, near, gamma=lambda_exact.GAMMA, values=source)
    mse = found.bias_sq + found.variance / 100
    assert mse.argmin() == 1
    flat = table[table["error"] == 0.0]["value"]
    assert flat.nunique() == 1  # without bias N does not matter


def test_shares_of_interior_optima_on_synthetic_rows():
    one, other = (c for c in CLAIMS.values() if c.study == "discount_and_lambda")
    labels = [r"to $\nabla J_1$", r"to $\nabla J_\gamma$"]
    table = pd.DataFrame(
        [(x, size, *cases.share(k, 200), 200) for x, k in zip(labels, (180, 70), strict=True) for size in (100.0,)]
        + [(x, 1e12, *cases.share(0, 200), 200) for x in labels],
        columns=["label", "x", "value", "value_low", "value_high", "n"],
    )
    assert decide(one.id, one.effect(table), *one.question).outcome == "holds"
    assert decide(other.id, other.effect(table), *other.question).outcome == "violated"
    for c in (one, other):
        assert decide(c.id, c.control.effect(table), *c.control_question).outcome == "violated"


def test_the_interior_of_the_grid_is_counted(monkeypatch):
    """One MDP, two points of the grid recomputed by hand: the best of all lies where the study says."""
    monkeypatch.setattr(lambda_exact, "DISCOUNTS", (0.0, 0.9, 1.0))
    monkeypatch.setattr(lambda_exact, "GRID", (0.0, 0.9, 1.0))
    table = lambda_exact.discount_and_lambda(TINY)
    inside = 0
    for number in range(2):
        env, policy = cases.random_case(0, number, "uniform")
        truth = varlab.exact(env, policy, "reward_to_go").gradient
        e = lambda_exact.GRID_ERROR * cases.unit_error(env, policy, 0, number)
        mse = {}
        for g in (0.0, 0.9, 1.0):
            source = cases.wrong_values(env, policy, g, e)
            for lam in (0.0, 0.9, 1.0):
                f = varlab.exact(env, policy, f"gae(lam={lam})", gamma=g, values=source, discount_weighting=False)
                mse[g, lam] = ((f.mean[0] - truth) ** 2).sum() + f.variance[0] / 1000
        inside += min(mse, key=mse.get) == (0.9, 0.9)
    row = table[(table["label"] == r"to $\nabla J_1$") & (table["x"] == 1000.0)].iloc[0]
    assert row.value == inside / 2


@pytest.fixture(scope="module")
def cartpole():
    """Short episodes and few of them."""
    patch = pytest.MonkeyPatch()
    env, policy = lambda_cartpole.world()
    assert env.horizon == 500
    with torch.no_grad():
        policy.net.weight.mul_(0.1)  # poles fall early
    patch.setattr(lambda_cartpole, "world", lambda: (envs.make("CartPole-v1", horizon=30), policy))
    patch.setattr(lambda_cartpole, "CRITIC", {"n": 20, "epochs": 2, "hidden": (8,)})
    yield lambda_cartpole.gae_cartpole(TINY)
    patch.undo()


def test_cartpole_rows_are_complete_and_their_ratios_are_those_of_the_errors(cartpole):
    mse = cartpole[cartpole["statistic"] == "mse"].set_index(["objective", "gamma", "lam", "N"])["value"]
    assert len(mse) == 5 * len(lambda_cartpole.LAMBDAS) * len(lambda_cartpole.SIZES)
    other = cartpole[cartpole["statistic"] != "mse"].set_index("statistic")
    at = mse["J_gamma", 0.99]
    assert other.value["interior"] == pytest.approx(max(at[0.98, 100] / at[0.0, 100], at[0.98, 100] / at[1.0, 100]))
    assert other.value["moves"] == pytest.approx(max(at[0.8, 5] / at[0.98, 5], at[0.98, 1000] / at[0.8, 1000]))
    one = mse["J_1"]
    below = min(one[g, x, 100] for g in (0.98, 0.99, 0.995) for x in lambda_cartpole.LAMBDAS)
    assert other.value["discounted"] == pytest.approx(below / one[1.0, 0.98, 100])
    assert other.value["small batch"] == pytest.approx(one[0.99, 1.0, 10] / one[1.0, 1.0, 10])
    assert (other["value_low"] <= other["value"]).all() and (other["value"] <= other["value_high"]).all()


@pytest.mark.parametrize("claim", [c for c in CLAIMS.values() if c.study == "gae_cartpole"], ids=lambda c: c.id)
def test_cartpole_claims_read_their_rows(claim, cartpole):
    """Each ratio is set far to one side of 1, and the claim follows it; a claim that reads another row does not."""
    name = {
        "GA-1g": "variance", "GA-2d": "interior", "GA-2f": "moves", "GA-2g": "discounted", "NT-2d": "small batch",
    }[claim.id]  # fmt: skip
    for value, outcome in ((0.5, "holds"), (2.0, "violated")):
        table = cartpole.copy()
        table.loc[table["statistic"] == name, ["value", "value_low", "value_high"]] = value, 0.9 * value, 1.1 * value
        assert decide(claim.id, claim.effect(table), *claim.question).outcome == outcome


@pytest.mark.parametrize("name", NAMES)
def test_figures_draw(name):
    figure = STUDIES[name].draw(rows(name), None)
    assert all(len(ax.lines) >= 3 for ax in figure.axes)


def test_the_figure_of_cartpole_has_both_panels(cartpole):
    left, right = lambda_cartpole.draw(cartpole).axes
    assert len(left.lines) == 4 and len(right.lines) == len(lambda_cartpole.DISCOUNTS)
