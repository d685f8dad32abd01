"""The real bugs of the field, each injected into the package and each caught, by two instruments that the right code passes.

Enumeration: E g as a finite sum over every unit of two trajectories, against ∇J of the exact oracle. Right: equal to 1e-12.
Measurement: the bias test of varlab.measure at a fixed seed. Right: p > 0.001. Bug: p < 0.001, a 95 % interval of bias²
that leaves 0, and the exact bias² inside it.
"""

import numpy as np
import pytest
from mutants import (
    CUT,
    UNIT,
    GroupMean,
    MeanLogProbability,
    Mutation,
    enumerated_mean,
    first_to_finish,
    first_to_finish_rollout,
    layered,
    no_discount,
    reward_with_stale_bootstrap,
    reward_without_bootstrap,
    small,
    td_residual_of_post_step_values,
    time_baseline_of_the_evaluation_data,
    user_baseline_of_the_evaluation_data,
)
from oracles.enumerated_moments import every_trajectory

import varlab
from varlab.estimators import Baseline, resolve

N, LEVEL = 20_000, 0.001
STATE_BASELINE = Baseline(lambda obs, t: 0.7 - 1.5 * obs, called="state_baseline")
BATCH, BASELINES = "varlab.estimators.base.Batch", "varlab.estimators.baselines"

#: What is wrong, where it was seen, which Φ it is injected into, by what, and the bias ‖E g − ∇J‖/‖∇J‖ that it has here.
MUTATIONS = (
    Mutation(
        name="GAE shifted one step",
        seen="code of The Mirage of Action-Dependent Baselines (Tucker et al., 2018)",
        right="gae(lam=0.95)",
        patch=(f"{BATCH}.td_residual", property(td_residual_of_post_step_values)),
        gamma=0.9,
        bias=0.3544,
    ),
    Mutation(
        name="zero bootstrap at a cut",
        seen="skrl issue 449, Stable-Baselines3 issue 633, CleanRL issue 198",
        right="reward_to_go",
        patch=(f"{BATCH}.reward", property(reward_without_bootstrap)),
        cut=CUT,
        bias=0.8109,
    ),
    Mutation(
        name="bootstrap from the wrong state",
        seen="rsl_rl issue 151",
        right="gae(lam=0.95)",
        patch=(f"{BATCH}.reward", property(reward_with_stale_bootstrap)),
        cut=CUT,
        bias=0.2374,
    ),
    Mutation(
        name="mean log-probability times sum of returns",
        seen="Gymnasium issue 1336, its REINFORCE tutorial",
        right="reward_to_go",
        wrong=MeanLogProbability(),
        bias=0.3147,
    ),
    Mutation(
        name="time baseline fitted on the evaluation data",
        seen="potion (Papini), whose baselines are means over the batch itself",
        right="time_baseline",
        patch=(f"{BASELINES}.TimeBaseline.phi", time_baseline_of_the_evaluation_data),
        bias=0.6273,
    ),
    Mutation(
        name="state baseline fitted on the evaluation data",
        seen="samplers of pytorch-maml-rl (Deleu): baseline.fit(episodes), then advantages of those episodes",
        right=STATE_BASELINE,
        patch=(f"{BASELINES}.Baseline.phi", user_baseline_of_the_evaluation_data),
        bias=0.4421,
    ),
    Mutation(
        name="dropped γ^t",
        seen="Is the Policy Gradient a Gradient? (Nota and Thomas, 2020); Pearl issue 46",
        right="reward_to_go",
        patch=(f"{BATCH}.discount", property(no_discount)),
        gamma=0.7,
        bias=0.3259,
    ),
    Mutation(
        name="group mean including its own sample",
        seen="DeepSeekMath (Shao et al., 2024) and the group baselines after it",
        right=GroupMean(own=False),
        wrong=GroupMean(own=True),
        bias=1 / UNIT,
    ),
    Mutation(
        name="first-to-finish episodes",
        seen="ChainerRL issue 368, rlpyt issue 93, tianshou issue 1042",
        right="reward_to_go",
        patch=("varlab.rollout.rollout", first_to_finish_rollout),
        keep=first_to_finish,
        bias=0.6405,
    ),
)
each = pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: f"{m.name}: {m.bias:.1%}")


def inject(mutation, monkeypatch):
    """The Φ under test, with the bug in place."""
    if mutation.patch is not None:
        monkeypatch.setattr(*mutation.patch)
    return mutation.wrong or mutation.right


def gradient(mutation):
    """∇J of the whole horizon, by the exact oracle."""
    return varlab.exact(*mutation.world(), "reward_to_go", gamma=mutation.gamma).gradient


def relative_bias(mutation, phi, keep=None):
    """‖E g − ∇J‖/‖∇J‖ with E g by enumeration and ∇J by the exact oracle."""
    truth, (estimator,) = gradient(mutation), resolve(phi)
    return np.linalg.norm(enumerated_mean(mutation, estimator, keep).numpy() - truth) / np.linalg.norm(truth)


def measured(mutation, phi):
    settings = {"n": N, "dtype": "float64", "gamma": mutation.gamma, "cut": mutation.cut, "exact": False, "seed": 1}
    return varlab.measure(*mutation.world(), phi, **settings).summary.iloc[0]


@pytest.mark.parametrize("make", (small, layered))
def test_the_worlds_are_no_special_case(make):
    """Rewards at every step, episodes of every length, some terminated and some not; and no gradient after the cut."""
    env, policy = make()
    traj, _ = every_trajectory(env, policy)
    assert bool((traj.reward != 0).all()) and set(traj.length.tolist()) == set(range(1, env.horizon + 1))
    assert bool(traj.terminated.any()) and bool(traj.truncated.any())
    found = np.abs(varlab.exact(env, policy, "reward_to_go").gradient.reshape(-1, 4))
    assert found[: 1 if make is small else 2].max(1).min() > 0.01
    assert make is small or found[2].max() < 1e-15


@each
def test_the_right_code_is_unbiased_by_enumeration(mutation):
    assert relative_bias(mutation, mutation.right) < 1e-12


@each
def test_the_bug_is_seen_by_enumeration(mutation, monkeypatch):
    found = relative_bias(mutation, inject(mutation, monkeypatch), mutation.keep)
    assert found > 1e-3
    assert found == pytest.approx(mutation.bias, abs=1e-4)


@each
def test_the_right_code_passes_the_bias_test_of_a_measurement(mutation):
    assert measured(mutation, mutation.right).bias_p_value > LEVEL


@each
def test_the_bug_fails_the_bias_test_of_a_measurement(mutation, monkeypatch):
    row = measured(mutation, inject(mutation, monkeypatch))
    assert row.bias_p_value < LEVEL
    assert 0 < row.bias_sq_low < (mutation.bias * row.grad_norm) ** 2 < row.bias_sq_high


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("zero bootstrap at a cut", {"at_cut": "terminal"}),
        ("bootstrap from the wrong state", {"at_cut": "wrong_state"}),
        ("dropped γ^t", {"discount_weighting": False}),
    ],
)
def test_the_exact_oracle_told_of_the_bug_has_its_mean(name, settings, monkeypatch):
    """What the package offers as a choice is what the bug does by accident."""
    (mutation,) = (m for m in MUTATIONS if m.name == name)
    (estimator,) = resolve(inject(mutation, monkeypatch))
    told = varlab.exact(*mutation.world(), estimator, gamma=mutation.gamma, cut=mutation.cut, **settings).mean[0]
    np.testing.assert_allclose(enumerated_mean(mutation, estimator).numpy(), told, rtol=0, atol=1e-12)
