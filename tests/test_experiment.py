"""measure() end to end: what comes out, what is refused, what stays equal, and whether its verdicts are right."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from finite_worlds import enumerate_paths, random_mdp
from torch import nn
from torch.distributions import Categorical

import varlab
from varlab import envs, policies, storage
from varlab.checks import InputError
from varlab.envs import lqg
from varlab.estimators import AT_CUT, Baseline, Batch, make, parse, weight
from varlab.experiment import plan
from varlab.layout import Layout
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.summary import COLUMNS
from varlab.types import Values
from varlab.values import CriticSettings, FunctionValues, evaluate, policy_table

#: DESIGN section 6, word for word: the first columns of every summary, in this order.
CONTRACT = """env, policy, theta, phi, gamma, discount_weighting, horizon, n, n_reference, reference_kind,
objective, grad_norm, variance, variance_low, variance_high, variance_ratio, variance_ratio_low,
variance_ratio_high, bias_sq, bias_sq_low, bias_sq_high, bias_p_value, mse, nsr, kurtosis, steps, efficiency,
exact_variance, seed, values_source, batch_size, cut, at_cut, dtype, device, mse_low, mse_high, nsr_low, nsr_high,
cosine, cosine_low, cosine_high, grad_norm_low, grad_norm_high, exact_bias_sq, exact_nsr, flag, reference_digest,
digest""".replace("\n", " ").split(", ")

MDP = random_mdp(0)
WORLD = envs.environment(MDP, 4, name="random")
PHI = ("total_return", "reward_to_go", "time_baseline", "value_baseline", "advantage", "td_residual", "n_step(2)", "gae(0.5)")
SMALL = {"n": 120, "dtype": "float64", "pilot": 40, "critic": CriticSettings(n=30, hidden=(4,), epochs=1)}


def table(env=WORLD, seed=0):
    return policies.make("softmax_table", env, theta_seed=seed)


def measure(env=WORLD, policy=None, phi=PHI, **settings):
    return varlab.measure(env, policy or table(env), phi, **{**SMALL, **settings})


@pytest.fixture(scope="module")
def result():
    return measure()


def naive_gradients(env, policy, phi, values, gamma=1.0, n=120, part_size=10**6, seed=0, discount_weighting=True):
    """[n, P] gradients of one Φ on the rollout stream by autograd, trajectory by trajectory, and the blocks they fall into."""
    rows, block = [], []
    layout = Layout(n, 50, part_size)
    policy = policies.prepare(policy, torch.float64, torch.device("cpu"))
    for b in range(50):
        for draw in layout.parts(b):
            traj = rollout(env, policy, draw.n, Streams(seed).sequence("rollout", draw.block, draw.part))
            w = weight(phi, Batch(traj, values(traj, frozenset({"v", "q"})), gamma), discount_weighting)
            for i in range(draw.n):
                a, e = int(traj.offsets[i]), int(traj.offsets[i + 1])
                loss = (policy(traj.obs[a:e]).log_prob(traj.action[a:e]) * w[a:e]).sum()
                rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))]).numpy())
                block.append(b)
    return np.stack(rows), np.array(block)


def exact_values(env, policy, gamma=1.0):
    policy = policies.prepare(policy, torch.float64, torch.device("cpu"))
    v, q = evaluate(env.finite, policy_table(policy, env.finite).detach(), gamma, env.horizon)
    return FunctionValues(v=lambda s, t: v[t, s], q=lambda s, a, t: q[t, s, a])


# ---- What comes out ------------------------------------------------------------------------------------------------------


def test_summary_keeps_the_contract(result):
    columns = list(result.summary.columns)
    assert columns[: len(CONTRACT)] == CONTRACT and columns == list(COLUMNS)
    assert result.summary["phi"].tolist() == [parse(p).label for p in PHI]


def test_rows_say_what_was_measured(result):
    s = result.summary
    one = s.iloc[0]
    assert (one["env"], one["policy"], one["theta"], one["horizon"], one["n"]) == ("random", "SoftmaxTable", "given", 4, 120)
    assert (one["gamma"], one["cut"], one["at_cut"], one["dtype"], one["device"]) == (1.0, 4, "bootstrap", "float64", "cpu")
    assert (one["objective"], one["reference_kind"], one["n_reference"]) == ("J_1", "exact", 0)
    assert set(s["digest"]) == {result.digest} and set(s["reference_digest"]) == {result.references["J_1"].digest}
    assert set(s["numerics"]) == {varlab.NUMERICS} and set(s["batch_size"]) == {100}
    sources = dict(zip(s["phi"], s["values_source"], strict=True))
    assert (sources["reward_to_go"], sources["time_baseline"], sources["advantage"]) == ("none", "critic stream", "exact")


def test_moments_are_those_of_a_naive_loop(result):
    """Mean, variance and cross moments of every Φ by one autograd call per trajectory, from the rollout stream itself."""
    exact = exact_values(WORLD, table())
    comparator, _ = naive_gradients(WORLD, table(), make("total_return"), exact)
    for k, label in enumerate(result.moments.names):
        if label == "time_baseline":
            continue  # fitted; its numbers are held against the critic stream below
        g, block = naive_gradients(WORLD, table(), parse(label), exact)
        for b in range(50):
            mine, other = g[block == b], comparator[block == b]
            np.testing.assert_allclose(result.moments.mean[b, k], mine.mean(0), rtol=1e-9, atol=1e-12)
            d, e = mine - mine.mean(0), other - other.mean(0)
            np.testing.assert_allclose(result.moments.trace_m2[b, k], (d**2).sum(), rtol=1e-8, atol=1e-12)
            np.testing.assert_allclose(result.moments.m2[b, k], (d**2).sum(0), rtol=1e-8, atol=1e-12)
            np.testing.assert_allclose(result.moments.cross[b, k], (d * e).sum(), rtol=1e-8, atol=1e-11)
        row = result.summary.iloc[k]
        assert row["variance"] == pytest.approx(np.trace(np.cov(g.T)), rel=1e-9)
        assert row["mse"] == pytest.approx(row["bias_sq"] + row["variance"] / 100, rel=1e-9)
        assert row["efficiency"] == pytest.approx(1 / (row["variance"] * row["steps"] / row["n"]), rel=1e-12)


def test_baselines_come_from_the_critic_stream_and_the_measurements_own_seed(result):
    policy = policies.prepare(table(), torch.float64, torch.device("cpu"))
    critic = rollout(WORLD, policy, 30, Streams(0).sequence("critic"))
    fitted = make("time_baseline").fit(Batch(critic, Values(), 1.0))
    g, _ = naive_gradients(WORLD, table(), fitted, exact_values(WORLD, table()))
    k = result.moments.names.index("time_baseline")
    row = result.summary.iloc[k]
    assert row["variance"] == pytest.approx(np.trace(np.cov(g.T)), rel=1e-9)
    assert row["steps"] == result.moments.steps.sum() + critic.steps and result.steps["critic"] == critic.steps


def test_trajectories_are_kept_with_their_scalars(result):
    kept = result.trajectories
    assert len(kept) == 120 and kept["trajectory"].tolist() == list(range(120))
    assert np.bincount(kept["block"]).tolist() == result.moments.count.tolist()
    assert kept["length"].sum() == result.steps["rollout"] == result.moments.steps.sum()
    g, _ = naive_gradients(WORLD, table(), make("reward_to_go"), exact_values(WORLD, table()))
    start = naive_returns()
    np.testing.assert_allclose(kept["return"], start, rtol=1e-6)
    center = pilot_center(make("reward_to_go"))
    h = g - center
    np.testing.assert_allclose(kept["norm_sq[reward_to_go]"], (h**2).sum(1), rtol=1e-5)
    direction = h @ result.references["J_1"].grad
    np.testing.assert_allclose(kept["dot[reward_to_go]"], direction, rtol=1e-4, atol=1e-6)


def naive_returns():
    out = []
    policy = policies.prepare(table(), torch.float64, torch.device("cpu"))
    for b in range(50):
        for draw in Layout(120, 50, 10**6).parts(b):
            traj = rollout(WORLD, policy, draw.n, Streams(0).sequence("rollout", draw.block, draw.part))
            bounds = traj.offsets.tolist()
            out += [float(traj.reward[a:e].sum()) for a, e in zip(bounds[:-1], bounds[1:], strict=True)]
    return out


def pilot_center(phi):
    """Mean gradient of the pilot stream's 40 trajectories, by autograd."""
    policy = policies.prepare(table(), torch.float64, torch.device("cpu"))
    traj = rollout(WORLD, policy, 40, Streams(0).sequence("pilot"))
    loss = (policy(traj.obs).log_prob(traj.action) * phi.phi(Batch(traj, Values(), 1.0))).sum() / 40
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()))]).numpy()


@pytest.mark.parametrize("n", (50, 73))
def test_n_need_not_be_a_multiple_of_the_blocks(n):
    made = measure(phi="reward_to_go", n=n)
    assert made.moments.n == n == made.moments.count.sum() and len(made.moments.count) == 50
    assert made.moments.count.max() - made.moments.count.min() <= 1 and len(made.trajectories) == n
    g, _ = naive_gradients(WORLD, table(), make("reward_to_go"), exact_values(WORLD, table()), n=n)
    assert made.summary["variance"][0] == pytest.approx(np.trace(np.cov(g.T)), rel=1e-9)


def test_both_objectives_give_a_row_each():
    made = measure(phi=("total_return", "reward_to_go"), gamma=0.8, objectives=("J_1", "J_gamma"), n=50)
    assert made.summary[["objective", "phi"]].values.tolist() == [
        ["J_1", "total_return"], ["J_1", "reward_to_go"], ["J_gamma", "total_return"], ["J_gamma", "reward_to_go"],
    ]  # fmt: skip
    assert set(made.references) == {"J_1", "J_gamma"} and set(made.summary["gamma"]) == {0.8}
    for name, gamma in (("J_1", 1.0), ("J_gamma", 0.8)):
        double = policies.prepare(table(), torch.float64, torch.device("cpu"))
        grad, _ = varlab.values.gradient(MDP, double, gamma, 4)
        np.testing.assert_allclose(made.references[name].grad, grad.numpy(), rtol=1e-12)
    by = made.summary.groupby("objective")["variance"].first()
    assert by["J_1"] == by["J_gamma"]
    assert {"dot[reward_to_go|J_1]", "dot[reward_to_go|J_gamma]"} <= set(made.trajectories.columns)


def test_gamma_one_has_one_objective_and_less_has_the_discounted_one_by_default():
    assert plan(WORLD, table(), n=50, objectives=("J_1", "J_gamma")).options["objectives"] == ["J_1"]
    assert plan(WORLD, table(), n=50, gamma=0.9).options["objectives"] == ["J_gamma"]
    assert plan(WORLD, table(), n=50, gamma=0.9, objectives="J_1").options["objectives"] == ["J_1"]


# ---- Worlds and policies -------------------------------------------------------------------------------------------------


def test_cartpole_by_its_id():
    policy = policies.make("mlp", envs.make("CartPole-v1", horizon=30), hidden=(8,))
    made = varlab.measure(
        envs.make("CartPole-v1", horizon=30), policy, ("total_return", "advantage", "gae"), n=60, pilot=20, n_reference=100,
        critic=CriticSettings(n=20, hidden=(8,), epochs=2),
    )  # fmt: skip
    assert made.summary["reference_kind"].tolist() == ["value_baseline"] * 3 and set(made.summary["n_reference"]) == {100}
    assert made.critic is not None and set(made.summary["values_source"]) == {"none", made.critic.source}
    assert (made.summary["variance"] > 0).all() and np.isfinite(made.summary["bias_p_value"]).all()
    assert made.steps["reference"] > 0 and set(made.steps) == {"critic", "pilot", "reference", "rollout"}
    few = {"n": 50, "pilot": 10, "n_reference": 50, "critic": CriticSettings(n=5)}
    by_id = varlab.measure("CartPole-v1", policy, "total_return", cut=10, **few)
    assert by_id.summary["horizon"][0] == 500 and by_id.summary["cut"][0] == 10


def test_pendulum_with_a_gaussian_policy():
    env = envs.make("Pendulum-v1", horizon=5)
    made = varlab.measure(
        env, policies.make("mlp", env, hidden=(4,)), ("total_return", "q_value", "td_residual"), n=50, pilot=5, n_reference=50,
        critic=CriticSettings(n=10, hidden=(4,), epochs=1), dtype="float64",
    )  # fmt: skip
    assert (made.summary["variance"] > 0).all() and made.moments.mean.shape == (50, 3, 3 * 4 + 4 + 4 + 1 + 1)
    assert not any("torch.func" in note for note in made.notes)


class Own(nn.Module):
    """A policy of the caller's own, with an activation that varlab does not know and a temperature used directly."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Mish(), nn.Linear(4, 2))
        self.temperature = nn.Parameter(torch.tensor(0.5))

    def forward(self, obs):
        x = nn.functional.one_hot(obs, 3).to(self.temperature.dtype)
        return Categorical(logits=self.net(x) / self.temperature.exp())


def test_a_module_of_the_callers_own():
    torch.manual_seed(0)
    own = Own()
    made = measure(policy=own, phi=("reward_to_go", "advantage"), policy_label="mine")
    assert set(made.summary["policy"]) == {"mine"} and any("torch.func" in note for note in made.notes)
    values = exact_values(WORLD, own)
    for k, label in enumerate(made.moments.names):
        g, _ = naive_gradients(WORLD, own, make(label), values)
        assert made.summary["variance"][k] == pytest.approx(np.trace(np.cov(g.T)), rel=1e-9)


class WithValueHead(nn.Module):
    """An actor-critic in one module: the value head is no part of π, and has gradient 0 everywhere."""

    def __init__(self):
        super().__init__()
        self.logits, self.value = nn.Embedding(3, 2), nn.Linear(3, 1)

    def forward(self, obs):
        return Categorical(logits=self.logits(obs))


def test_a_policy_with_a_head_that_actions_do_not_use():
    torch.manual_seed(0)
    both = WithValueHead()
    made = measure(policy=both, phi=("reward_to_go",), n=50)
    alone = measure(policy=policies.SoftmaxTable(WORLD, logits=both.logits.weight), phi=("reward_to_go",), n=50)
    for name in ("variance", "bias_sq", "grad_norm", "nsr"):
        assert made.summary[name][0] == pytest.approx(alone.summary[name][0], rel=1e-9)


def test_the_callers_policy_is_not_touched():
    policy = table()
    policy.logits.weight.grad = torch.full((3, 2), 7.0)
    policy.train()
    kept = {k: v.clone() for k, v in policy.state_dict().items()}
    torch.manual_seed(5)
    state = torch.get_rng_state()
    measure(policy=policy, n=50, values="critic")
    assert all(torch.equal(v, policy.state_dict()[k]) for k, v in kept.items())
    assert torch.equal(policy.logits.weight.grad, torch.full((3, 2), 7.0)) and policy.training
    assert policy.logits.weight.dtype == torch.float32 and policy.logits.weight.requires_grad
    assert torch.equal(torch.get_rng_state(), state), "the caller's randomness moved"


# ---- What stays equal ----------------------------------------------------------------------------------------------------

NUMBERS = [c for c in COLUMNS if c not in ("digest", "reference_digest")]


def test_same_settings_same_bits(result):
    torch.manual_seed(123)
    again = measure()
    pd.testing.assert_frame_equal(again.summary, result.summary, check_exact=True)
    pd.testing.assert_frame_equal(again.trajectories, result.trajectories, check_exact=True)
    assert again.digest == result.digest and again.settings.keys() == result.settings.keys()


def test_another_seed_other_numbers(result):
    other = measure(seed=1)
    assert other.digest != result.digest and not (other.summary["variance"] == result.summary["variance"]).any()


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-10), ("float32", 1e-5)])
def test_chunks_do_not_matter(dtype, tolerance):
    """float32 within a chunk moves the last digits of sums; 1e-6 of each number's own scale, far below its interval."""
    one, other = (measure(dtype=dtype, chunk=chunk) for chunk in (4, 500))
    assert one.digest == other.digest
    for name in ("variance", "variance_low", "variance_high", "variance_ratio", "mse", "nsr", "kurtosis", "cosine", "efficiency"):
        np.testing.assert_allclose(one.summary[name], other.summary[name], rtol=tolerance, err_msg=name)
    np.testing.assert_allclose(one.moments.mean, other.moments.mean, rtol=tolerance, atol=tolerance)


def test_parts_are_randomness_and_stand_in_the_digest(result):
    """Another part size is another sample of the same thing: the digest says so."""
    other = measure(part_size=1)
    assert other.digest != result.digest and other.summary["variance"][0] != result.summary["variance"][0]
    g, _ = naive_gradients(WORLD, table(), make("reward_to_go"), exact_values(WORLD, table()), part_size=1)
    assert other.summary["variance"][1] == pytest.approx(np.trace(np.cov(g.T)), rel=1e-9)


def test_the_list_of_phi_does_not_move_the_trajectories(result):
    fewer = measure(phi=("gae(0.5)", "reward_to_go"))
    for label in ("gae(lam=0.5)", "reward_to_go"):
        a, b = (r.summary.set_index("phi").loc[label] for r in (fewer, result))
        for name in ("variance", "variance_low", "mse", "bias_sq", "cosine"):
            assert a[name] == pytest.approx(b[name], rel=1e-9), name


def test_ratios_are_to_total_return_or_to_the_first():
    ahead = measure(phi=("reward_to_go", "total_return"), n=50).summary.set_index("phi")
    assert ahead["variance_ratio"]["total_return"] == 1.0
    expected = ahead["variance"]["reward_to_go"] / ahead["variance"]["total_return"]
    assert ahead["variance_ratio"]["reward_to_go"] == pytest.approx(expected, rel=1e-12)
    without = measure(phi=("reward_to_go", "advantage"), n=50).summary.set_index("phi")
    assert without["variance_ratio"]["reward_to_go"] == 1.0
    expected = without["variance"]["advantage"] / without["variance"]["reward_to_go"]
    assert without["variance_ratio"]["advantage"] == pytest.approx(expected, rel=1e-12)


DIGEST = """
import os, sys, torch
sys.path.insert(0, sys.argv[1])
os.chdir(sys.argv[2])
torch.set_num_threads(2)
from finite_worlds import random_mdp
from varlab import envs, policies
from varlab.experiment import plan
env = envs.environment(random_mdp(0), 4, name="random")
print(plan(env, policies.make("softmax_table", env), n=120, gamma=0.9).digest)
"""


def test_digest_is_stable_across_processes_folders_threads_and_hash_seeds(tmp_path):
    tests = os.path.dirname(os.path.abspath(__file__))
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": os.path.dirname(tests)}
    command = [sys.executable, "-c", DIGEST, tests, str(tmp_path)]
    elsewhere = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert elsewhere == plan(WORLD, table(), n=120, gamma=0.9).digest


@pytest.mark.parametrize(
    "change",
    [
        {"n": 121}, {"gamma": 0.9}, {"discount_weighting": False}, {"cut": 3}, {"at_cut": "terminal"}, {"values": "critic"},
        {"critic": CriticSettings(n=31)}, {"reference": "sampled"}, {"n_reference": 100}, {"reference_seed": 1}, {"seed": 1},
        {"batch_size": 10}, {"pilot": 41}, {"part_size": 3}, {"dtype": "float32"}, {"draws": 2500}, {"phi": PHI[:-1]},
        {"phi": PHI[::-1]}, {"policy": table(seed=1)}, {"env": envs.environment(MDP, 5, name="random")},
        {"env": envs.environment(random_mdp(1), 4, name="random")}, {"objectives": ("J_gamma", "J_1"), "gamma": 0.9},
    ],
    ids=lambda c: ",".join(f"{k}" for k in c),
)  # fmt: skip
def test_digest_covers_every_numeric_setting(change):
    def digest(env=WORLD, policy=None, phi=PHI, **settings):
        return plan(env, policy or table(), phi, **{**SMALL, **settings}).digest

    assert digest(**change) != digest()
    if change.keys() == {"objectives", "gamma"}:
        assert digest(**change) != digest(gamma=0.9)


def test_digest_leaves_out_what_moves_no_number():
    base = plan(WORLD, table(), PHI, **SMALL).digest
    for change in ({"chunk": 7}, {"theta": "x"}, {"env_label": "y"}, {"policy_label": "z"}, {"cut": 4}):
        assert plan(WORLD, table(), PHI, **SMALL, **change).digest == base


def test_digest_tells_a_frozen_layer_from_a_free_one():
    free, frozen = (policies.make("mlp", WORLD, hidden=(4,)) for _ in range(2))
    frozen.net[0].requires_grad_(False)
    assert plan(WORLD, free, n=50).digest != plan(WORLD, frozen, n=50).digest


def test_whole_numbers_may_come_as_floats_or_numpy_integers(result):
    """n=1.2e2 is 120: same digest, same numbers."""
    given = {"n": 120.0, "pilot": 40.0, "seed": 0.0, "batch_size": np.int64(100), "reference_seed": 0.0, "draws": 1999.0}
    again = measure(**given)
    assert again.digest == result.digest
    assert again.summary["variance"].equals(result.summary["variance"])


def test_settings_can_be_written_as_json(result):
    text = json.dumps(storage.canonical(dict(result.settings)))
    assert storage.digest(result.settings) == result.digest and json.loads(text)["n"] == 120


# ---- Sinks, progress, memory ---------------------------------------------------------------------------------------------


class Sink(list):
    """Empty at first, so false in a condition; it is a sink all the same."""

    def __call__(self, part):
        self.append(part)


def test_a_sink_receives_every_row_and_the_result_keeps_none(result):
    sink = Sink()
    made = measure(sink=sink, part_size=2)
    assert made.trajectories is None and len(sink) > 50
    rows = pd.concat(sink, ignore_index=True)
    assert rows["trajectory"].tolist() == list(range(120)) and rows.columns.equals(result.trajectories.columns)


def test_progress_counts_every_stream_to_its_end():
    seen = {}

    def progress(stream, done, total):
        assert 0 < done <= total and done >= seen.get(stream, (0, 0))[0]
        seen[stream] = (done, total)

    measure(n=50, reference="sampled", n_reference=60, progress=progress)
    assert seen["rollout"] == (50, 50) and seen["reference"] == (60, 60)


def test_memory_limit_drops_moments_per_parameter_and_says_so(result, caplog):
    means = 50 * len(PHI) * 6 * 12  # 8 bytes of a mean, 4 of what float64 leaves out of it
    both = means + 50 * len(PHI) * 6 * 8
    made = measure(memory_limit=both - 1)
    assert made.moments.m2 is None and any("memory_limit" in note for note in made.notes)
    assert "Variances per parameter were dropped" in caplog.text
    np.testing.assert_allclose(made.summary["variance"], result.summary["variance"], rtol=1e-10)
    assert measure(memory_limit=both, n=50).moments.m2 is not None
    asked = measure(per_parameter=False, n=50)
    assert asked.moments.m2 is None and not any("memory_limit" in note for note in asked.notes)
    with pytest.raises(InputError, match="raise memory_limit or name fewer Φ"):
        measure(memory_limit=means - 1)


# ---- Cuts ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_cut", ("terminal", "bootstrap", "wrong_state"))
def test_a_cut_ends_sampling_and_not_the_objective(at_cut):
    made = measure(phi=("reward_to_go", "td_residual"), cut=2, at_cut=at_cut)
    assert set(made.summary["cut"]) == {2} and set(made.summary["horizon"]) == {4} and set(made.summary["at_cut"]) == {at_cut}
    assert made.trajectories["length"].max() == 2
    whole = measure(phi=("reward_to_go", "td_residual"), n=50).references["J_1"]
    assert np.array_equal(made.references["J_1"].grad, whole.grad)
    values = exact_values(WORLD, table())
    policy = policies.prepare(table(), torch.float64, torch.device("cpu"))
    for k, label in enumerate(made.moments.names):
        rows = []
        for b in range(50):
            (draw,) = Layout(120, 50, 10**6).parts(b)
            traj = rollout(WORLD, policy, draw.n, Streams(0).sequence("rollout", b, 0), cut=2)
            w = make(label).phi(Batch(traj, values(traj, frozenset({"v"})), 1.0, at_cut))
            z = torch.autograd.functional.jacobian(
                lambda logits, t=traj: logits.log_softmax(-1)[t.state, t.action], policy.logits.weight.detach()
            ).flatten(1)
            rows.append(torch.zeros(draw.n, 6).double().index_add(0, traj.episode, z * w.unsqueeze(1)))
        g = torch.cat(rows).numpy()
        np.testing.assert_allclose(made.summary["variance"][k], np.trace(np.cov(g.T)), rtol=1e-9)


def test_a_cut_at_the_horizon_is_none(result):
    for rule in ("terminal", "wrong_state"):
        made = measure(cut=4, at_cut=rule)
        assert np.array_equal(made.moments.mean, result.moments.mean)


def test_bootstrapping_at_a_cut_asks_for_values_that_no_phi_needs():
    made = measure(phi=("reward_to_go",), cut=2, n=50)
    assert made.summary["values_source"][0] == "exact"
    assert measure(phi=("reward_to_go",), cut=2, at_cut="terminal", n=50).summary["values_source"][0] == "none"


# ---- Exact columns -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrong", (False, True), ids=("exact values", "wrong values"))
@pytest.mark.parametrize(
    "settings",
    [{}, {"gamma": 0.8}, {"gamma": 0.8, "discount_weighting": False}, *({"cut": 2, "gamma": 0.8, "at_cut": r} for r in AT_CUT)],
    ids=lambda s: ",".join(f"{k}={v}" for k, v in s.items()) or "plain",
)
def test_exact_columns_are_sums_over_all_paths(settings, wrong):
    """exact_variance, exact_bias_sq and exact_nsr of every row, with the very baselines that the measurement fitted."""
    gamma, rule = settings.get("gamma", 1.0), settings.get("at_cut", "bootstrap")
    values = wrong_values(WORLD) if wrong else exact_values(WORLD, table(), gamma)
    need = frozenset({"v"} if wrong else {"v", "q"})
    phi = [p for p in PHI if not (wrong and p == "advantage")]
    made = measure(phi=phi, n=50, **settings, **({"values": values} if wrong else {}))
    logits = table().logits.weight.detach().double()
    paths = enumerate_paths(MDP, 4, cut=settings.get("cut"))
    probability = paths.probability(logits)
    policy = policies.prepare(table(), torch.float64, torch.device("cpu"))
    critic = Batch(rollout(WORLD, policy, 30, Streams(0).sequence("critic")), Values(), gamma)
    grad, _ = varlab.values.gradient(MDP, policy, gamma, 4)
    batch = Batch(paths.traj, values(paths.traj, need), gamma, rule)
    for k, text in enumerate(phi):
        g = paths.gradients(logits, weight(parse(text).fit(critic), batch, settings.get("discount_weighting", True)))
        mean = probability @ g
        variance = float(probability @ (g - mean).square().sum(1))
        row = made.summary.iloc[k]
        assert row["exact_variance"] == pytest.approx(variance, rel=1e-9), text
        assert row["exact_bias_sq"] == pytest.approx(float((mean - grad).square().sum()), rel=1e-9, abs=1e-20), text
        assert row["exact_nsr"] == pytest.approx(variance / float(grad @ grad), rel=1e-9), text


def test_exact_columns_are_empty_where_no_oracle_applies():
    env = envs.make("CartPole-v1", horizon=5)
    few = {"n": 50, "pilot": 10, "n_reference": 50, "critic": CriticSettings(n=5, hidden=(4,), epochs=1)}
    made = varlab.measure(env, policies.make("linear", env), "reward_to_go", **few)
    assert made.summary[["exact_variance", "exact_bias_sq", "exact_nsr"]].isna().all(axis=None)
    sampled = measure(phi="reward_to_go", n=50, reference="sampled", n_reference=50)
    assert sampled.summary["exact_variance"].notna().all() and sampled.summary["exact_bias_sq"].isna().all()
    without = measure(phi="reward_to_go", n=50, exact=False)
    assert without.summary["exact_variance"].isna().all()


def test_intervals_hold_the_exact_variance():
    """95 % intervals of eight Φ on shared trajectories: at this seed all but one at most hold."""
    s = measure(n=4000, pilot=400).summary
    inside = (s["variance_low"] <= s["exact_variance"]) & (s["exact_variance"] <= s["variance_high"])
    assert inside.sum() >= len(s) - 1
    np.testing.assert_allclose(s["variance"], s["exact_variance"], rtol=0.15)


# ---- What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 49}, r"At least 50 trajectories were expected, one for each block, but n=49; raise n"),
        ({"n": 0}, r"n must be a whole number of at least 1"),
        ({"n": 100.5}, r"n must be a whole number"),
        ({"gamma": 1.1}, r"gamma must lie in \[0, 1\]"),
        ({"gamma": float("nan")}, r"gamma must lie in"),
        ({"cut": 5}, r"cut of at most the horizon 4 was expected, but cut=5"),
        ({"cut": 0}, r"cut must be a whole number of at least 1"),
        ({"at_cut": "bootstap"}, r"No rule at_cut is called 'bootstap'; the nearest names are bootstrap"),
        ({"values": "exct"}, r"No source of values is called 'exct'.*exact"),
        ({"reference": "sample"}, r"No reference is called 'sample'.*sampled"),
        ({"objectives": ("J",)}, r"No objective is called 'J'"),
        ({"dtype": "float16"}, r"No dtype is called 'float16'"),
        ({"device": "tpu9"}, r"usable torch device was expected"),
        ({"n_reference": 49}, r"n_reference must be a whole number of at least 50"),
        ({"max_reference": 10}, r"max_reference must be a whole number of at least 50"),
        ({"draws": 100}, r"draws must be a whole number of at least 1999"),
        ({"part_size": 0}, r"part_size must be a whole number of at least 1"),
        ({"chunk": -1}, r"chunk must be a whole number of at least 1"),
        ({"pilot": 1}, r"pilot must be a whole number of at least 2"),
        ({"seed": -1}, r"seed must be a whole number of at least 0"),
        ({"seed": 0.5}, r"seed must be a whole number"),
        ({"batch_size": 0}, r"batch_size must be"),
        ({"phi": "reward_togo"}, r"No Φ is called 'reward_togo'; the nearest names are reward_to_go"),
        ({"phi": ()}, r"At least one Φ was expected"),
        ({"env": "CartPole-v9"}, r"No environment is called 'CartPole-v9'.*CartPole-v1"),
        ({"env": "CliffWalking-v1"}, r"A horizon was expected for CliffWalking-v1"),
    ],
    ids=lambda x: ",".join(f"{k}={v}" for k, v in x.items()) if isinstance(x, dict) else "",
)
def test_settings_are_refused_before_anything_is_sampled(settings, message):
    def never(*_):
        raise AssertionError("sampled before the settings were checked")

    given = {"env": replace(WORLD, make_simulator=never), "phi": PHI, **SMALL, **settings}
    with pytest.raises(InputError, match=message) as caught:
        plan(given.pop("env"), table(), given.pop("phi"), **given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ("values", "reference"))
def test_exact_on_a_world_without_outcomes(what):
    env = envs.make("CartPole-v1")
    with pytest.raises(InputError, match=rf"finite MDP, .* was expected for {what}=exact, but CartPole-v1"):
        varlab.measure(env, policies.make("linear", env), n=50, **{what: "exact"})


def test_a_reference_of_another_policy():
    reference = replace(measure(phi="total_return", n=50).references["J_1"], grad=np.zeros(5))
    with pytest.raises(InputError, match=r"reference gradient of 6 parameters was expected, but it has shape \(5,\)"):
        measure(reference=reference)


class Poisoned:
    """Values that are NaN (or infinite) at one trajectory of one stream, told apart by the number of its trajectories."""

    source, steps = "poisoned", 0

    def __init__(self, trajectory, after, value):
        self.left, self.after, self.value, self.trajectory = after, after, value, trajectory

    def __call__(self, traj, need):
        v = torch.zeros(traj.steps, dtype=torch.float64)
        if self.left == 0:
            v[traj.episode == self.trajectory] = self.value
        self.left -= 1
        return Values(v=v, v_last=torch.zeros(len(traj)), v_stale=torch.zeros(len(traj)), source=self.source)


@pytest.mark.parametrize("value", (float("nan"), float("inf")))
@pytest.mark.parametrize("dtype", ("float64", "float32"))
def test_a_bad_gradient_of_the_pilot_names_phi_and_trajectory(dtype, value):
    with pytest.raises(InputError, match=r"on random, but value_baseline gave NaN or infinity at pilot trajectory 17;"):
        measure(phi=("reward_to_go", "value_baseline"), values=Poisoned(17, 0, value), dtype=dtype)


def test_a_bad_gradient_of_the_measurement_names_phi_and_trajectory():
    """The first call is the pilot, then come parts of 2 or 3 trajectories: call 5 holds trajectories 12 to 14 of n = 120."""
    first = sum(Layout(120, 50, 10**6).sizes[:4])
    with pytest.raises(InputError, match=rf"td_residual gave NaN or infinity at trajectory {first + 1};"):
        measure(phi=("reward_to_go", "td_residual"), values=Poisoned(1, 5, float("nan")))


# ---- What a reader is told -----------------------------------------------------------------------------------------------


def test_frozen_lake_says_why_reward_to_go_equals_total_return():
    env = envs.make("FrozenLake-v1", horizon=20)
    for settings in ({}, {"gamma": 0.9}):
        made = measure(env, phi=("total_return", "reward_to_go"), n=150, **settings)
        assert any("reward_to_go equals total_return on FrozenLake-v1" in note for note in made.notes)
        np.testing.assert_allclose(made.moments.mean[:, 0], made.moments.mean[:, 1], atol=1e-15)
        assert made.summary["variance"][0] == pytest.approx(made.summary["variance"][1], rel=1e-12)
        assert made.summary["variance"][0] > 0
    unweighted = measure(env, phi=("total_return", "reward_to_go"), n=150, gamma=0.9, discount_weighting=False)
    assert not any("equals" in note for note in unweighted.notes)
    assert unweighted.summary["variance"][0] != pytest.approx(unweighted.summary["variance"][1], rel=1e-3)


def test_no_such_note_where_it_is_not_so(result):
    assert not any("equals" in note for note in result.notes)
    assert result.summary["variance"][0] != pytest.approx(result.summary["variance"][1], rel=1e-3)


def test_unweighted_discounting_is_explained():
    made = measure(gamma=0.9, discount_weighting=False, n=50, phi=("total_return", "reward_to_go"))
    assert any("the gradient of no objective" in note for note in made.notes)


# ---- Whether the verdicts are right --------------------------------------------------------------------------------------


def wrong_values(env, seed=0):
    """A critic as bad as random numbers, with the spread of the returns."""
    draw = torch.randn(env.horizon + 1, env.num_features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return FunctionValues(v=lambda s, t: draw[t, s], source="wrong")


@pytest.mark.parametrize("gamma", (1.0, 0.9))
def test_bias_test_accepts_what_is_unbiased_and_rejects_what_is_not(gamma):
    """With a wrong critic: td_residual, n_step and gae(0.5) are biased and found out; the rest are not accused."""
    phi = ("total_return", "reward_to_go", "value_baseline", "td_residual", "n_step(2)", "gae(0.5)", "gae(1)")
    made = measure(phi=phi, n=4000, gamma=gamma, values=wrong_values(WORLD), pilot=400).summary.set_index("phi")
    biased = ["td_residual", "n_step(k=2)", "gae(lam=0.5)"]
    assert (made.loc[biased, "bias_p_value"] < 0.01).all() and (made.loc[biased, "bias_sq_low"] > 0).all()
    fine = made.drop(index=biased)
    assert (fine["bias_p_value"] > 0.05 / len(fine)).all() and (fine["bias_sq_low"] == 0).all()


def test_unweighted_mean_is_told_from_both_objectives():
    """γ < 1 without γ^t: reward_to_go is the gradient of no objective, total_return keeps ∇J_γ."""
    env = envs.environment(random_mdp(0, ending=0.05), 12, name="long")
    made = measure(env, phi=("total_return", "reward_to_go"), n=6000, gamma=0.7, discount_weighting=False,
                   objectives=("J_1", "J_gamma"), pilot=400).summary.set_index(["objective", "phi"])  # fmt: skip
    assert made.loc[("J_gamma", "total_return"), "bias_p_value"] > 0.01
    for objective in ("J_1", "J_gamma"):
        assert made.loc[(objective, "reward_to_go"), "bias_p_value"] < 0.01


def test_a_sampled_reference_gives_the_verdicts_of_the_exact_one():
    settings = {"phi": ("reward_to_go", "td_residual"), "n": 3000, "pilot": 400, "values": wrong_values(WORLD)}
    exact, sampled = (measure(reference=kind, **settings) for kind in ("exact", "sampled"))
    assert exact.summary["variance"].equals(sampled.summary["variance"])
    a, b = exact.references["J_1"], sampled.references["J_1"]
    assert b.n > 3000 and np.linalg.norm(a.grad - b.grad) < 0.2 * np.linalg.norm(a.grad)
    for made in (exact, sampled):
        assert made.summary["bias_p_value"][0] > 0.02 and made.summary["bias_p_value"][1] < 0.01
    low, high = sampled.summary["grad_norm_low"][0], sampled.summary["grad_norm_high"][0]
    assert low <= exact.summary["grad_norm"][0] <= high


@pytest.mark.parametrize("reference", ("exact", "sampled"))
def test_bias_sq_and_mse_are_the_pair_sums_over_blocks(reference):
    """Σ_{b≠b'} ⟨d_b, d_b'⟩/(B(B − 1)) by loops, less the reference's own trace/n, from the blocks of the result."""
    made = measure(n=100, phi=("reward_to_go", "td_residual"), values=wrong_values(WORLD), reference=reference, n_reference=100)
    truth = made.references["J_1"]
    own = 0.0
    if reference == "sampled":
        d = truth.block_mean - truth.grad
        own = (d**2).sum() / (50 * 49)
        assert own > 0.01 * made.summary["bias_sq"].abs().max()  # large enough to be missed
        assert (made.summary["flag"].str.contains("reference-limited")).all()
    for k in range(2):
        d = made.moments.mean[:, k] - truth.grad
        pairs = sum(d[b] @ d[c] for b in range(50) for c in range(50) if b != c) / (50 * 49)
        row = made.summary.iloc[k]
        assert row["bias_sq"] == pytest.approx(pairs - own, rel=1e-9, abs=1e-12)
        assert row["mse"] == pytest.approx(pairs - own + row["variance"] / 100, rel=1e-9, abs=1e-12)
    assert made.summary["grad_norm"][0] == pytest.approx(np.sqrt(max(truth.grad @ truth.grad - own, 0.0)), rel=1e-9)


def test_a_users_baseline_is_unbiased_and_named():
    made = measure(phi=("total_return", Baseline(lambda obs, t: obs - 0.3 * t.double(), called="mine")), n=2000)
    assert made.summary["phi"].tolist() == ["total_return", "mine"] and made.summary["bias_p_value"][1] > 0.01


def test_a_linear_system_gets_exact_values_reference_and_variance():
    env = lqg.random_system(6, seed=3, state_dim=2, action_dim=1)
    policy = policies.make("linear", env, theta_seed=1)
    phi = ["total_return", "reward_to_go", "value_baseline", "gae(lam=0.9)"]
    result = varlab.measure(env, policy, phi, n=4000, seed=2, dtype="float64")
    rows, known = result.summary, varlab.exact(env, policy, phi)
    assert set(rows.reference_kind) == {"exact"} and set(rows.values_source) == {"none", "exact"}
    np.testing.assert_allclose(rows.exact_variance, known.variance, rtol=1e-10)
    np.testing.assert_allclose(result.references["J_1"].grad, known.gradient, rtol=1e-10)
    assert (rows.exact_bias_sq < 1e-20 * (known.gradient**2).sum()).all()
    se = np.log(rows.variance_high / rows.variance_low) / (2 * 2.01)
    assert (np.abs(np.log(rows.variance / rows.exact_variance)) < 3.5 * se).all() and (rows.bias_p_value > 1e-3).all()
    few = {"n": 50, "pilot": 50, "n_reference": 50, "critic": SMALL["critic"]}
    other = varlab.measure(env, policies.make("mlp", env, hidden=[3]), phi, **few)
    assert other.summary.exact_variance.isna().all() and set(other.summary.reference_kind) == {"value_baseline"}
    ended = varlab.measure(envs.with_termination(env, 0.8), policy, phi, **few)  # another world: no oracle may speak for it
    assert ended.summary.exact_variance.isna().all() and set(ended.summary.reference_kind) == {"value_baseline"}
