"""What varlab.exact() refuses, in a sentence; and a negative control: errors of 3 % in its terms are seen by enumeration."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from enumerated_moments import differences, moments
from finite_worlds import random_logits, random_mdp

import varlab
from varlab import envs, estimators, policies, values
from varlab.estimators import Estimator
from varlab.estimators.recursion import Recursion
from varlab.oracles import coordinates, recursions, rows
from varlab.oracles.exact import operations
from varlab.oracles.world import Successors, World
from varlab.policies import SoftmaxTable
from varlab.values import FunctionValues

HORIZON = 4


@dataclass(frozen=True)
class Unknown(Estimator):
    """A Φ that states no recursion."""

    name = "unknown"
    formula = source = "none"

    def phi(self, batch):
        return batch.reward_to_go


@dataclass(frozen=True)
class Window(Unknown):
    """A Φ whose recursion is a window over a whole return, which no formula covers."""

    name = "window"

    def recursion(self, world):
        return Recursion(world.reward, world.gamma, window=2, total=True)


@dataclass(frozen=True)
class Averaged(Unknown):
    """A Φ from the beginning whose actions are averaged, or whose baseline sees them."""

    name = "averaged"
    psi: bool = True

    def recursion(self, world):
        b = {"expected" if self.psi else "subtract": lambda t: np.ones_like(world.pi)}
        return Recursion(world.reward, world.gamma, total=True, **b)


@pytest.fixture(scope="module")
def env():
    return envs.environment(random_mdp(0), HORIZON, "Tiny")


@pytest.fixture(scope="module")
def policy(env):
    return SoftmaxTable(env, random_logits(1, env.finite))


def refuses(match, *arguments, **settings):
    with pytest.raises(varlab.InputError, match=match) as caught:
        varlab.exact(*arguments, **settings)
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence


def test_a_world_without_outcome_lists():
    env = envs.make("CartPole-v1", horizon=5)
    refuses("A finite MDP was expected.*CartPole-v1.*use varlab.measure", env, policies.make("linear", env))
    refuses("A finite MDP was expected.*CartPole-v1", "CartPole-v1", policies.make("linear", env))


def test_estimators_without_a_recursion(env, policy):
    refuses("recursion over states was expected.*unknown has none; use varlab.measure", env, policy, Unknown())
    refuses("recursion over states was expected.*a window over the whole return", env, policy, Window())


@pytest.mark.parametrize("psi", (True, False))
def test_a_sum_from_the_beginning_with_what_sees_actions(psi, env, policy):
    refuses("A baseline of the first state alone was expected of averaged", env, policy, Averaged(psi))


def test_unknown_names(env, policy):
    refuses("No Φ is called 'reward_to_stay'.*reward_to_go", env, policy, "reward_to_stay")
    refuses("No rule at_cut is called 'bootstrapped'.*bootstrap", env, policy, cut=2, at_cut="bootstrapped")
    refuses("No source of values is called 'critic'.*exact", env, policy, values="critic")
    refuses("No environment is called 'FrozenLake-v9'.*FrozenLake", "FrozenLake-v9", policy)


def test_settings_out_of_range(env, policy):
    refuses("gamma must lie in", env, policy, gamma=1.1)
    refuses("gamma must lie in", env, policy, gamma=float("nan"))
    refuses("cut must be a whole number of at least 1", env, policy, cut=0)
    refuses("cut of at most the horizon 4 was expected, but cut=5", env, policy, cut=5)


def test_values_that_are_missing(env, policy):
    only_v = FunctionValues(v=lambda s, t: 1.0 * s)
    only_q = FunctionValues(q=lambda s, a, t: 1.0 * s)
    refuses("Values q were expected for q_value.*pass q", env, policy, "q_value", values=only_v)
    refuses("Values q were expected for advantage", env, policy, "advantage", values=only_v)
    for phi in ("value_baseline", "td_residual", "n_step(k=2)", "gae(lam=0.5)"):
        refuses(r"Values v were expected for .*pass v", env, policy, phi, values=only_q)
    for at_cut in ("bootstrap", "wrong_state"):
        settings = {"values": only_q, "cut": 2, "at_cut": at_cut}
        refuses(f"Values v were expected because at_cut={at_cut}", env, policy, "reward_to_go", **settings)
    # What is not needed may be missing.
    assert varlab.exact(env, policy, ["q_value", "total_return"], values=only_q, cut=2, at_cut="terminal").variance.min() > 0
    assert varlab.exact(env, policy, "reward_to_go", values=FunctionValues()).variance.min() > 0


def test_values_of_another_form(env, policy):
    refuses("Values with a table over states were expected.*function has none", env, policy, values=lambda traj, need: None)
    other = values.ExactValues.of(env.finite, policy.double(), 1.0, HORIZON + 2)
    refuses(r"Values v of shape \(5, 3\) were expected on Tiny, but the table has \(7, 3\)", env, policy, values=other)
    column = FunctionValues(q=lambda s, a, t: s[:, None].double())
    refuses(r"Values q of shape \(4, 3, 2\) were expected", env, policy, "q_value", values=column)
    nan = FunctionValues(v=lambda s, t: torch.where(s == 1, torch.nan, 0.0))
    refuses("Finite moments were expected on Tiny, but those of value_baseline", env, policy, "value_baseline", values=nan)


def test_a_policy_that_is_not_categorical_on_the_states(env, policy):
    class Continuous(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.mean = torch.nn.Parameter(torch.zeros(()))

        def forward(self, obs):
            return torch.distributions.Normal(self.mean.expand(len(obs)), 1.0)

    refuses("A categorical policy over 2 actions in 3 states was expected", env, Continuous())
    bigger = SoftmaxTable(envs.environment(random_mdp(0, actions=3), HORIZON))
    refuses("A categorical policy over 2 actions in 3 states was expected", env, bigger)
    frozen = SoftmaxTable(env).requires_grad_(False)
    refuses("parameters that require a gradient", env, frozen)


def test_what_would_take_long_is_left_out_unless_asked_for(env, policy, monkeypatch):
    double = policies.prepare(policy, torch.float64, "cpu")
    settings = {"gamma": 1.0, "discount_weighting": True, "cut": None, "at_cut": "terminal"}
    phi = [estimators.parse("reward_to_go")]
    assert rows.exact_rows(env, double, phi, None, wanted=None, **settings)[1] == ""
    monkeypatch.setattr(rows, "OPERATIONS", 10)
    found, sentence = rows.exact_rows(env, double, phi, None, wanted=None, **settings)
    assert found == [None] and sentence.startswith("exact_variance is empty because it would take 4e+02 multiplications")
    assert rows.exact_rows(env, double, phi, None, wanted=True, **settings)[0][0].mean.any()


def test_a_network_costs_a_map_from_all_pairs_of_logits_to_its_parameters(env, policy):
    """L · S · A · O · min(P, S A) for the table; (S A)² P more for a network, whatever the horizon."""
    mlp = policies.make("mlp", env, hidden=(5,))
    assert operations(env, policy, 2, 3) == 2 * 3 * 18 * 6
    assert operations(env, mlp, 2, 3) == 2 * 3 * 18 * 6 + 2 * 6**2 * policies.num_parameters(mlp)


# Negative controls: each changes one term, and enumeration must notice at least one Φ.

PHI = [estimators.parse(x) for x in (*estimators.SOURCE_TEXT, "n_step(k=2)", "n_step(k=3)") if not estimators.parse(x).fits]
SETTINGS = ({}, {"gamma": 0.8}, {"gamma": 0.8, "discount_weighting": False}, {"gamma": 0.8, "cut": 2})


def worst(env, policy):
    """The largest relative difference from enumeration over Φ, settings, mean and variance."""
    out = 0.0
    double = policies.prepare(policy, torch.float64, "cpu")
    for settings in SETTINGS:
        source = values.ExactValues.of(env.finite, double, settings.get("gamma", 1.0), HORIZON)
        found, truth = varlab.exact(env, policy, PHI, **settings), moments(env, double, PHI, source, **settings)
        pairs = zip((found.mean, found.variance_per_parameter), truth, strict=True)
        out = max(out, *(differences(*pair).max() for pair in pairs))
    return out


def wrong_step(change):
    """Every step of the vector recursion changed."""

    def step(flow, scored, pairs, averaged=None):
        return coordinates.Step(*change(flow, scored, pairs), averaged)

    return lambda m: m.setattr(recursions, "Step", step)


def scaled(mapping, key):
    return {k: 1.03 * v if k == key else v for k, v in mapping.items()}


def wrong_world(name):
    """One table of the world too large."""
    right = getattr(World, name).func
    return lambda m: m.setattr(World, name, property(lambda self: 1.03 * right(self)))


def scaled_method(cls, name):
    right = getattr(cls, name)
    return lambda m: m.setattr(cls, name, lambda self, *arguments: 1.03 * right(self, *arguments))


def wrong_past(power):
    """One moment of what a total sum has collected, in all steps but the first."""
    right = recursions._collected

    def wrong(*arguments):
        out = right(*arguments)
        out[1:, power] *= 1.03
        return out

    return lambda m: m.setattr(recursions, "_collected", wrong)


ERRORS = {
    "probability of being alive": wrong_world("visits"),
    "probability of going on": wrong_world("going_on"),
    "expectation over next states of E X": scaled_method(World, "ahead_by_action"),
    "temporal difference": scaled_method(World, "td_residual"),
    "reward": scaled_method(World, "reward"),
    "what flows on": scaled_method(Successors, "__call__"),
    "E W from E W": wrong_step(lambda flow, scored, pairs: (scaled(flow, (0, 0)), scored, pairs)),
    "E XW from x E W": wrong_step(lambda flow, scored, pairs: (scaled(flow, (1, 0)), scored, pairs)),
    "E XW from c E XW": wrong_step(lambda flow, scored, pairs: (scaled(flow, (1, 1)), scored, pairs)),
    "E XW in a window from a shorter one": wrong_step(lambda flow, scored, pairs: (scaled(flow, (2, 1)), scored, pairs)),
    "E W and E XW from z Φ": wrong_step(lambda flow, scored, pairs: (flow, 1.03 * scored, pairs)),
    "pairs with E W": wrong_step(lambda flow, scored, pairs: (flow, scored, scaled(pairs, 0))),
    "pairs with E XW": wrong_step(lambda flow, scored, pairs: (flow, scored, scaled(pairs, 1))),
    "squares of steps": scaled_method(coordinates.TableLogits, "second"),
    "mean": scaled_method(coordinates.TableLogits, "first"),
    "probability with which a total sum weighs": wrong_past(0),
    "what a total sum has collected": wrong_past(1),
    "its square": wrong_past(2),
}


def test_without_an_error_enumeration_agrees(env, policy):
    assert worst(env, policy) < 1e-12


@pytest.mark.parametrize("error", ERRORS)
def test_an_error_of_three_percent_in_one_term_is_seen(error, env, policy, monkeypatch):
    ERRORS[error](monkeypatch)
    assert worst(env, policy) > 1e-4


def test_the_constant_of_a_baseline_is_seen(env, policy):
    found = varlab.exact(env, policy, "constant_baseline")
    wrong = varlab.exact(env, policy, replace(estimators.parse("constant_baseline"), fitted=1.03))
    assert abs(found.variance[0] / wrong.variance[0] - 1) > 1e-4
