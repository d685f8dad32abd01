"""Claims about discounts and time limits: exact outcomes and controls, and the same numbers from all trajectories."""

from functools import cache

import numpy as np
import pytest
import torch
from finite_worlds import enumerate_paths

import varlab
from varlab import envs
from varlab.envs.random_mdp import random_mdp
from varlab.estimators import Batch, make
from varlab.policies import SoftmaxTable
from varlab.studies.claims import discounting, time_limits
from varlab.studies.claims.catalogue import CLAIMS, STUDIES, Budget
from varlab.studies.claims.verdicts import decide
from varlab.values import ExactValues

NAMES = ("dropped_discount", "discount_variance", "time_limits")
VIOLATED = {"NT-2a", "TL-1a", "TL-1e"}
TINY = Budget("smoke", 0.01)


@cache
def rows(name):
    return STUDIES[name].run(TINY)


@pytest.mark.parametrize("claim", [c for c in CLAIMS.values() if c.study in NAMES], ids=lambda c: c.id)
def test_exact_claims_and_controls(claim):
    effect, control = claim.effect(rows(claim.study)), claim.control.effect(rows(claim.study))
    assert effect.is_exact and control.is_exact
    assert decide(claim.id, effect, *claim.question).outcome == ("violated" if claim.id in VIOLATED else "holds")
    assert decide(claim.id, control, *claim.control_question).outcome == "violated"


def test_all_claims_are_there():
    assert {c.id for c in CLAIMS.values() if c.study in NAMES} == {
        "NT-1a", "NT-1b", "NT-1c", "NT-2a", "NT-2b", "NT-2c", "TL-1a", "TL-1b", "TL-1c", "TL-1d", "TL-1e", "TL-1f",
    }  # fmt: skip


class Small:
    """Four steps of a random MDP that begins in one state, cut at two, with every trajectory listed."""

    gamma, cut = 0.9, 2

    def __init__(self):
        drawn = random_mdp(4, states=3, actions=2, outcomes=2, ending=0.2)
        drawn.initial[:] = torch.tensor([1.0, 0.0, 0.0], dtype=torch.float64)
        self.mdp, self.env = drawn, envs.environment(drawn, 4)
        self.logits = torch.tensor([[0.3, -0.5], [1.0, 0.2], [-0.4, 0.4]], dtype=torch.float64)
        self.policy = SoftmaxTable(self.env, self.logits).double()
        self.values = ExactValues.of(drawn, self.policy, self.gamma, 4)

    def mean(self, paths, phi, weighted=True):
        w = self.gamma ** paths.traj.time.double() if weighted else 1.0
        return paths.probability(self.logits) @ paths.gradients(self.logits, w * phi)


@pytest.fixture(scope="module")
def small():
    return Small()


@pytest.mark.parametrize("weighted", (True, False))
def test_the_update_field_is_the_mean_over_all_trajectories(small, weighted):
    paths = enumerate_paths(small.mdp, 4)
    batch = Batch(paths.traj, small.values(paths.traj, frozenset("v")), small.gamma)
    found = discounting.update_field(small.mdp, small.logits.flatten(), small.gamma, 4, weighted)
    torch.testing.assert_close(found, small.mean(paths, batch.reward_to_go, weighted), rtol=1e-12, atol=1e-12)


def test_the_jacobian_is_that_of_finite_differences(small):
    theta, h = small.logits.flatten(), 1e-6

    def field(x):
        return discounting.update_field(small.mdp, x, small.gamma, 4, False)

    jacobian = torch.autograd.functional.jacobian(field, theta)
    steps = h * torch.eye(len(theta), dtype=torch.float64)
    differences = torch.stack([(field(theta + s) - field(theta - s)) / (2 * h) for s in steps], 1)
    torch.testing.assert_close(jacobian, differences, rtol=1e-6, atol=1e-8)
    assert discounting.asymmetry(jacobian) > 1e-3
    assert discounting.asymmetry(torch.ones(3, 3)) == 0.0


def test_the_sampled_part_is_what_bootstrapping_estimates(small):
    paths = enumerate_paths(small.mdp, 4, cut=small.cut)
    batch = Batch(paths.traj, small.values(paths.traj, frozenset("v")), small.gamma, "bootstrap")
    part = time_limits.sampled_part(small.env, small.policy, small.gamma, small.cut)
    np.testing.assert_allclose(small.mean(paths, make("gae", lam=0.95).phi(batch)).numpy(), part, atol=1e-13)


def test_the_leak_is_the_value_of_the_first_state(small):
    """V_0(s_0) is put after the last reward of every trajectory alive at the cut, in a loop."""
    paths = enumerate_paths(small.mdp, 4, cut=small.cut)
    traj, lam = paths.traj, 0.95
    v, leaked = small.values.v, float(small.values.v[0, 0])
    phi = torch.zeros_like(traj.reward)
    for i in range(len(traj)):
        first, last = int(traj.offsets[i]), int(traj.offsets[i + 1]) - 1
        alive = bool(traj.truncated[i])
        advantage = 0.0
        for row in range(last, first - 1, -1):
            t, s = int(traj.time[row]), int(traj.state[row])
            onward = float(v[t + 1, traj.state[row + 1]]) if row < last else leaked if alive else 0.0
            delta = float(traj.reward[row]) + small.gamma * onward - float(v[t, s])
            advantage = delta + small.gamma * lam * advantage
            phi[row] = advantage
    found = varlab.exact(small.env, small.policy, time_limits.LeakedGAE(lam), gamma=small.gamma, cut=small.cut)
    np.testing.assert_allclose(found.mean[0], small.mean(paths, phi).numpy(), atol=1e-13)


def test_bias_and_variance_of_a_smaller_discount_are_those_of_all_trajectories(small):
    """The columns of the study, on the smaller world: γ inside Q, no γ^t outside, compared with ∇J_1."""
    paths = enumerate_paths(small.mdp, 4)
    g = paths.gradients(small.logits, Batch(paths.traj, small.values(paths.traj, frozenset("v")), 0.5).reward_to_go)
    p = paths.probability(small.logits)
    found = varlab.exact(small.env, small.policy, "reward_to_go", gamma=0.5, discount_weighting=False)
    assert found.variance[0] == pytest.approx(float(p @ (g - p @ g).square().sum(1)), rel=1e-12)
    table = rows("discount_variance")
    assert (table[(table["gamma"] == 1.0)]["bias"] < 1e-25).all()
    assert table[table["case"] == "constant return"].set_index("gamma")["variance"][[0.0, 1.0]].tolist() == [1.0, 0.5]


@pytest.mark.parametrize("name", NAMES)
def test_figures_draw(name):
    figure = STUDIES[name].draw(rows(name), None)
    assert all(len(ax.lines) >= 3 for ax in figure.axes)
