"""The dial of critic error: unit norm under the policy's own visits, bias² and variance exactly quadratic in it."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from contract import WORLDS

from varlab import envs, policies, storage, values
from varlab.envs import lqg
from varlab.estimators import Batch, parse
from varlab.estimators.nodes import with_nodes
from varlab.oracles.exact import exact_row, world_of
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.types import Values
from varlab.values import Cloning, Critic, CriticSettings, FunctionValues, WithError, with_error
from varlab.values.error import TableError, smooth_error, table_error
from varlab.values.exact import source as exact_source

CPU = torch.device("cpu")
GAMMA = 0.9
EVERY = frozenset({"v", "q", "q_nodes"})
BIASED = ("td_residual", "gae(lam=0.0)", "gae(lam=0.95)", "n_step(k=2)", "q_value", "advantage", "all_action")


@pytest.fixture(scope="module", params=WORLDS)
def world(request):
    return WORLDS[request.param]()


def never():
    raise AssertionError("a finite world has tables: no stream is asked for")


def dialled(world, size, seed=0, base=None):
    base = base or world.exact(GAMMA)
    return with_error(base, size, seed, env=world.env, policy=world.policy, stream=never, device=CPU)


def row(world, phi, source):
    arrays = world_of(world.env, world.policy, source, GAMMA, None, "bootstrap")
    found = exact_row(arrays, parse(phi), True)
    return torch.from_numpy(found.mean) - world.gradient(GAMMA), float(found.variance_per_parameter.sum())


@pytest.mark.parametrize("seed", [0, 7])
def test_tables_have_unit_norm_along_the_policys_own_trajectories(world, seed):
    """Over all trajectories: E Σ_t e² / E T = 1."""
    error = table_error(world.env, world.policy, seed, CPU)
    traj = world.paths.traj
    found, p = error(traj, frozenset("vq")), world.probability[traj.episode]
    for name in "vq":
        assert abs(float((p * getattr(found, name) ** 2).sum() / p.sum()) - 1) < 1e-12
    assert not bool(error.v[-1].any()) and error.v.shape[0] == world.horizon + 1
    assert float((error.q[..., 0] - error.q[..., 1]).abs().min()) > 1e-6  # an error of Q that sees the action


def test_an_error_is_fixed_by_its_seed(world):
    a, b, c = (table_error(world.env, world.policy, seed, CPU) for seed in (0, 0, 1))
    assert torch.equal(a.v, b.v) and torch.equal(a.q, b.q) and not torch.equal(a.v, c.v) and not torch.equal(a.q, c.q)


@pytest.mark.parametrize("phi", BIASED)
def test_bias_squared_grows_exactly_as_the_square_of_the_dial(world, phi):
    (one, _), (two, _), (four, _) = (row(world, phi, dialled(world, size)) for size in (0.25, 0.5, 1.0))
    assert float(one.norm()) > 1e-4  # rounding is 1e-16
    assert abs(float(two.square().sum() / one.square().sum()) - 4) < 1e-10
    assert abs(float(four.square().sum() / one.square().sum()) - 16) < 1e-9


@pytest.mark.parametrize("phi", ["value_baseline", "gae(lam=1.0)", "reward_to_go", "total_return"])
def test_what_is_unbiased_always_stays_so(world, phi):
    assert float(row(world, phi, dialled(world, 3.0))[0].abs().max()) < 1e-12


@pytest.mark.parametrize("phi", ["value_baseline", "gae(lam=0.95)", "q_value", "all_action"])
def test_variance_is_quadratic_in_the_dial(world, phi):
    v = [row(world, phi, dialled(world, size))[1] if size else row(world, phi, world.exact(GAMMA))[1] for size in range(5)]
    second = np.diff(v, 2)
    assert second.min() > 1e-3 and np.ptp(second) < 1e-10 * max(v)


def test_every_value_gets_its_error_and_the_table_says_the_same(world):
    traj = with_nodes(world.policy, rollout(world.env, world.policy, 50, np.random.SeedSequence(0), cut=world.horizon - 1), 3)
    source, base = dialled(world, 0.5), world.exact(GAMMA)
    found, exact, error = source(traj, EVERY), base(traj, EVERY), source.error
    assert isinstance(error, TableError) and found.source == source.source == "exact+0.5e(seed=0)"
    for name in ("v", "q", "q_nodes", "v_last", "v_stale"):
        wrong = (getattr(found, name) - getattr(exact, name)) / 0.5
        assert float(wrong.abs().max()) > 0.1
    v, q = source.table(world.mdp, world.horizon)
    assert torch.equal(found.v, v[traj.time, traj.state]) and torch.equal(found.q, q[traj.time, traj.state, traj.action])
    assert torch.equal(found.v_last, v[traj.length, traj.last_state])
    assert torch.equal(found.v_stale, v[traj.length, traj.state[traj.last_row]])
    torch.testing.assert_close(v, base.v + 0.5 * error.v, rtol=0, atol=0)


def test_only_what_is_asked_is_given(world):
    found = dialled(world, 0.5)(world.paths.traj, frozenset({"q"}))
    assert found.v is None and found.v_last is None and found.q is not None


def test_on_top_of_a_critic_and_of_cloning(world):
    traj = rollout(world.env, world.policy, 40, np.random.SeedSequence(0), snapshots=True)
    target = Batch(traj, Values(), GAMMA).reward_to_go
    critic = values.fit(
        world.env, traj, target, CriticSettings(hidden=(8,), epochs=1), Streams(0).sequence("fit"), storage.digest, torch.float64
    )
    source = dialled(world, 2.0, 5, critic)
    assert source.source == f"{critic.source}+2e(seed=5)" and source.steps == critic.steps and source.base is critic
    v, _ = source.table(world.mdp, world.horizon)
    torch.testing.assert_close(source(traj, frozenset("v")).v, v[traj.time, traj.state], rtol=1e-12, atol=1e-12)
    branches = Cloning(world.env, world.policy, 3, gamma=GAMMA)
    source = dialled(world, 2.0, 5, branches)
    found = source(traj, frozenset("vq"))
    assert source.source == "cloning(m=3)+2e(seed=5)" and source.snapshots and source.steps == branches.steps > 0
    assert not hasattr(source, "table") and hasattr(dialled(world, 2.0), "table")
    plain = branches(traj, frozenset("vq"))
    torch.testing.assert_close(found.v - plain.v, 2 * source.error.v[traj.time, traj.state], rtol=0, atol=1e-12)
    assert torch.equal(found.v_se, plain.v_se) and torch.equal(found.q_se, plain.q_se)


# ---- smooth errors


def cartpole():
    env = envs.make("CartPole-v1", horizon=20)
    return env, policies.prepare(policies.make("mlp", env, hidden=(4,)), torch.float64, CPU)


def linear():
    env = lqg.random_system(8, seed=1, state_dim=3, action_dim=2)
    return env, policies.prepare(policies.make("linear", env, theta_seed=1), torch.float64, CPU)


@pytest.mark.parametrize("make_world", [cartpole, linear])
def test_smooth_errors_have_unit_norm_on_the_stream_and_about_so_elsewhere(make_world):
    env, policy = make_world()
    stream, other = (rollout(env, policy, 300, np.random.SeedSequence(seed)) for seed in (0, 1))
    for seed in range(3):
        error = smooth_error(env, stream, seed)
        for traj, tolerance in ((stream, 1e-12), (other, 0.2)):
            found = error(traj, frozenset("vq"))
            for name in "vq":
                assert abs(float(getattr(found, name).square().mean()) - 1) < tolerance


@pytest.mark.parametrize("make_world", [cartpole, linear])
def test_smooth_errors_are_smooth_fixed_functions_of_state_time_and_action(make_world):
    env, policy = make_world()
    traj = rollout(env, policy, 50, np.random.SeedSequence(0))
    error, again, other = (smooth_error(env, traj, seed) for seed in (0, 0, 1))
    obs, t = traj.obs.double(), traj.time
    assert torch.equal(error.v(obs, t), again.v(obs, t)) and not torch.allclose(error.v(obs, t), other.v(obs, t), atol=0.1)
    near = error.v(obs + 1e-6 * obs.std(0), t) - error.v(obs, t)
    assert 0 < float(near.abs().max()) < 1e-4
    assert float((error.v(obs, t + 5) - error.v(obs, t)).abs().max()) > 0.01
    action = 1 - traj.action if env.discrete_actions else traj.action + 1.0
    assert float((error.q(obs, action, t) - error.q(obs, traj.action, t)).abs().min()) > 1e-6
    found = error(with_nodes(policy, traj, 3), frozenset({"q_nodes"})).q_nodes
    assert found.shape[0] == traj.steps and float(found.std(1).min()) > 0


def test_a_smooth_error_on_exact_values_asks_for_the_critic_stream_once():
    env, policy = linear()
    asked = []

    def stream():
        asked.append(rollout(env, policy, 100, np.random.SeedSequence(0)))
        return asked[-1]

    base = exact_source(env, policy, 1.0, CPU)
    source = with_error(base, 0.5, 3, env=env, policy=policy, stream=stream, device=CPU)
    assert isinstance(source, WithError) and isinstance(source.error, FunctionValues) and source.source == "exact+0.5e(seed=3)"
    traj = rollout(env, policy, 200, np.random.SeedSequence(1))
    wrong = source(traj, frozenset("v")).v - base(traj, frozenset("v")).v
    assert len(asked) == 1 and abs(float(wrong.square().mean().sqrt()) - 0.5) < 0.05
    noded = with_nodes(policy, traj, 3)  # the slope of Q has that of its error
    slope = source(noded, frozenset({"q_slope"})).q_slope
    step = torch.tensor([1e-5, 0.0], dtype=torch.float64)
    up, down = (
        source(replace(traj, action=noded.nodes.mean + sign * step), frozenset("q")).q for sign in (1, -1)
    )  # fmt: skip
    torch.testing.assert_close(slope[:, 0], (up - down) / 2e-5, rtol=1e-6, atol=1e-6)
    assert not hasattr(source, "table")


# ---- steps of training


def fitted(steps, epochs=4, **settings):
    env, policy = cartpole()
    traj = rollout(env, policy, 100, np.random.SeedSequence(0))
    chosen = CriticSettings(hidden=(8,), epochs=epochs, minibatch=100, steps=steps, **settings)
    target = Batch(traj, Values(), 1.0).reward_to_go
    return values.fit(env, traj, target, chosen, Streams(0).sequence("fit"), storage.digest), traj


def test_training_steps_are_a_dial_from_an_untrained_critic_on():
    losses = {steps: fitted(steps)[0].losses for steps in (0, 10, 100, 400)}
    before = losses[0][0]
    assert all(loss[0] == before for loss in losses.values()) and abs(losses[0][1] / before - 1) < 1e-5
    after = [losses[steps][1] for steps in (0, 10, 100, 400)]
    assert after == sorted(after, reverse=True) and after[-1] < 0.9 * after[0]


def test_as_many_steps_as_the_epochs_take_are_the_same_critic():
    by_epochs, traj = fitted(None)
    batches = -(-traj.steps // 100)
    assert batches > 2
    by_steps, fewer = fitted(4 * batches, epochs=1)[0], fitted(4 * batches - 1)[0]
    assert isinstance(by_steps, Critic) and by_steps.source == by_epochs.source != fewer.source
