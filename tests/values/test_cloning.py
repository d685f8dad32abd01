"""Values by state cloning: unbiased, with right standard errors, independent of each other and of the trajectory's own future."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from finite_worlds import random_logits, random_mdp
from scipy.stats import norm

from varlab import envs, policies, rng
from varlab.capabilities import Snapshots
from varlab.checks import InputError
from varlab.envs import lqg
from varlab.estimators import Batch, nodes
from varlab.estimators.nodes import with_nodes
from varlab.layout import Layout
from varlab.rollout import parts, rollout
from varlab.types import Simulator, Trajectories, Values
from varlab.values import Cloning, ExactValues, cloning
from varlab.values.linear_quadratic import QuadraticValues

HORIZON, GAMMA = 4, 0.9
VQ = frozenset("vq")


def prepared(policy):
    return policies.prepare(policy, torch.float64, torch.device("cpu"))


def finite(horizon=HORIZON):
    mdp = random_mdp(3)
    env = envs.environment(mdp, horizon)
    return env, prepared(policies.SoftmaxTable(env, logits=random_logits(1, mdp)))


def linear(horizon=HORIZON):
    env = lqg.random_system(horizon, seed=1, state_dim=2, action_dim=1)
    return env, prepared(policies.make("linear", env, theta_seed=1))


def sampled(env, policy, n, seed=0, **more):
    return rollout(env, policy, n, np.random.SeedSequence(seed), snapshots=True, **more)


@pytest.fixture(scope="module")
def world():
    env, policy = finite()
    traj = sampled(env, policy, 1500)
    return env, policy, traj, Cloning(env, policy, 20, gamma=GAMMA)(traj, VQ)


def second_moments(env, policy, gamma):
    """Variance of the return from (t, s) [H, S] and from (t, s, a) [H, S, A], outcome by outcome."""
    mdp, pi = env.finite, policy(torch.arange(env.finite.num_states)).probs.detach()
    s, a, o = mdp.probability.shape
    first, second = ([torch.zeros(s, dtype=torch.float64)] for _ in range(2))
    of_v, of_q = [], []
    for _ in range(env.horizon):
        q1, q2 = torch.zeros(s, a, dtype=torch.float64), torch.zeros(s, a, dtype=torch.float64)
        for i, j, k in np.ndindex(s, a, o):
            p, r, x = mdp.probability[i, j, k], mdp.reward[i, j, k], int(mdp.next_state[i, j, k])
            on = gamma * (1 - float(mdp.terminated[i, j, k]))
            q1[i, j] += p * (r + on * first[-1][x])
            q2[i, j] += p * (r**2 + 2 * r * on * first[-1][x] + on**2 * second[-1][x])
        first.append((pi * q1).sum(1))
        second.append((pi * q2).sum(1))
        of_q.append(q2 - q1**2)
        of_v.append(second[-1] - first[-1] ** 2)
    return torch.stack(of_v[::-1]), torch.stack(of_q[::-1])


def cells(world, found, m):
    """z-score of the mean over the visits of every (t, s) and of every (t, s, a), against the exact value and variance."""
    env, policy, traj, _ = world
    exact, variance = ExactValues.of(env.finite, policy, GAMMA, env.horizon), second_moments(env, policy, GAMMA)
    scores = []
    for value, table, spread, index in (
        (found.v, exact.v, variance[0], (traj.time, traj.state)),
        (found.q, exact.q, variance[1], (traj.time, traj.state, traj.action)),
    ):
        error = (value - table[index]) / (spread[index] / m).sqrt()
        cell = index[0] * 100 + index[1] * 10 + (index[2] if len(index) > 2 else 0)
        scores += [float(error[cell == c].sum() / (cell == c).sum() ** 0.5) for c in cell.unique()]
    return np.abs(scores)


def limit(count, level=1e-3):
    return norm.isf(level / (2 * count))


def test_v_and_q_are_the_exact_ones_in_the_mean(world):
    scores = cells(world, world[3], 20)
    assert len(scores) == 36 and scores.max() < limit(36)


@pytest.mark.parametrize("wrong", ["a step late", "an action late", "one step too long"])
def test_branches_that_begin_or_end_elsewhere_are_found(world, wrong):
    """Negative controls, each a slip of one index."""
    env, policy, traj, _ = world
    following = torch.minimum(torch.arange(traj.steps) + 1, traj.last_row[traj.episode])
    if wrong == "one step too long":
        env = replace(env, horizon=HORIZON + 1)
    elif wrong == "a step late":
        traj = replace(traj, obs=traj.obs[following], snapshots=Snapshots(traj.snapshots.steps[following]))
    else:
        traj = replace(traj, action=traj.action[following])
    found = Cloning(env, policy, 20, gamma=GAMMA)(traj, VQ)
    assert cells(world, found, 20).max() > 2 * limit(36)


@pytest.mark.parametrize("name", ["v", "q"])
def test_standard_errors_are_those_of_the_exact_second_moments(world, name):
    env, policy, traj, found = world
    spread = second_moments(env, policy, GAMMA)["vq".index(name)]
    index = (traj.time, traj.state, traj.action)[: spread.dim()]
    kept = spread[index] > 1e-12
    ratio = (getattr(found, f"{name}_se") ** 2 * 20 / spread[index])[kept]
    error = float(ratio.std() / len(ratio) ** 0.5)
    assert abs(float(ratio.mean()) - 1) < 4 * error
    assert abs(float(ratio.mean()) * 19 / 20 - 1) > 4 * error  # dividing by m would be noticed


def test_one_continuation_has_no_standard_error():
    env, policy = finite()
    traj = sampled(env, policy, 30)
    found = Cloning(env, policy, 1)(traj, VQ)
    assert bool(found.v_se.isnan().all() and found.q_se.isnan().all() and found.v.isfinite().all())


def correlation(a, b):
    """r √n of two centred errors: standard normal if they are independent."""
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1]) * len(a) ** 0.5


def test_v_q_and_the_trajectorys_own_future_are_independent(world):
    env, policy, traj, _ = world
    found, exact = Cloning(env, policy, 1, gamma=GAMMA)(traj, VQ), ExactValues.of(env.finite, policy, GAMMA, HORIZON)(traj, VQ)
    v, q, own = found.v - exact.v, found.q - exact.q, Batch(traj, Values(), GAMMA).reward_to_go - exact.q
    for a, b in ((v, q), (v, own), (q, own), (v[1:], v[:-1]), (q[1:], q[:-1])):
        assert abs(correlation(a, b)) < 3.5
    same = Cloning(env, policy, 1, gamma=GAMMA)
    seeds = {"v": 0, "q": 0}  # negative control: V and Q from one stream
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cloning, "PURPOSES", seeds)
        again = same(traj, VQ)
    assert correlation(again.v - exact.v, again.q - exact.q) > 10


def test_nodes_are_actions_that_might_have_been_taken():
    env, policy = finite()
    traj = with_nodes(policy, sampled(env, policy, 400), 3)
    found = Cloning(env, policy, 50, gamma=GAMMA)(traj, frozenset({"q_nodes"}))
    exact = ExactValues.of(env.finite, policy, GAMMA, HORIZON)(traj, frozenset({"q_nodes"}))
    assert found.v is None and found.q is None
    spread = second_moments(env, policy, GAMMA)[1][traj.time[:, None], traj.state[:, None], traj.nodes.action]
    z = ((found.q_nodes - exact.q_nodes) / (spread / 50).clamp(min=1e-12).sqrt()).mean(0) * traj.steps**0.5
    assert float(z.abs().max()) < limit(2)
    turned = (found.q_nodes - exact.q_nodes.flip(1)).mean(0) / (spread / 50).mean(0).sqrt() * traj.steps**0.5
    assert float(turned.abs().max()) > 10


def test_a_linear_system_has_its_quadratic_values():
    env, policy = linear()
    traj = with_nodes(policy, sampled(env, policy, 400), 3)
    need = VQ | {"q_nodes"}
    found, exact = Cloning(env, policy, 30, gamma=GAMMA)(traj, need), QuadraticValues.of(env, policy, GAMMA)(traj, need)
    # One row for each trajectory, one column for each time (and node): costs are skewed, so that errors are not studentised.
    gaps = torch.cat([(getattr(found, x) - getattr(exact, x)).view(400, -1) for x in ("v", "q", "q_nodes")], 1)
    assert gaps.shape[1] == 5 * HORIZON
    assert float((gaps.mean(0) / gaps.std(0)).abs().max()) * 400**0.5 < limit(5 * HORIZON)
    late = (found.v.view(400, -1)[:, 1:] - exact.v.view(400, -1)[:, :-1]).mean(0) / gaps[:, : HORIZON - 1].std(0)
    assert float(late.abs().min()) * 400**0.5 > 10  # V of the next step would be noticed


@pytest.mark.parametrize("at_cut", ["bootstrap", "wrong_state", "terminal", None])
def test_values_after_a_cut_follow_the_rule(at_cut):
    env, policy = finite()
    traj = sampled(env, policy, 3000, cut=2)
    source = Cloning(env, policy, 5, gamma=GAMMA, at_cut=at_cut)
    found, exact = source(traj, VQ), ExactValues.of(env.finite, policy, GAMMA, HORIZON)(traj, VQ)
    wanted = {"bootstrap": {"v_last"}, "wrong_state": {"v_stale"}, "terminal": set()}.get(at_cut, {"v_last", "v_stale"})
    assert {x for x in ("v_last", "v_stale") if getattr(found, x) is not None} == wanted == set(source.spent) - {"v", "q"}
    for name in wanted:
        alive = traj.truncated
        assert 0 < int(alive.sum()) < len(traj) and not bool(getattr(found, name)[~alive].any())
        right, other = (getattr(exact, x)[alive] for x in (name, "v_stale" if name == "v_last" else "v_last"))
        for value, expected in ((right, True), (other, False)):
            error = (getattr(found, name)[alive] - value) * (right - other)
            assert (abs(float(error.mean() / error.std())) * len(error) ** 0.5 < 3.5) is expected


def test_nothing_is_asked_after_the_horizon(world):
    env, policy, traj, found = world
    assert not bool(found.v_last.any() or found.v_stale.any()) and traj.snapshots.last is None


def test_steps_are_counted_by_hand():
    env, policy = linear(horizon=5)  # nothing terminates
    traj = with_nodes(policy, sampled(env, policy, 3, cut=4), 3)
    source = Cloning(env, policy, 7)
    found = source(traj, VQ | {"q_nodes"})
    steps = 7 * 3 * (5 + 4 + 3 + 2)
    assert source.spent == {"v": steps, "q": steps, "q_nodes[product:3]": 3 * steps, "v_last": 7 * 3, "v_stale": 7 * 3}
    assert source.steps == found.steps == 5 * steps + 42
    assert source(traj, VQ).steps == 0  # the same again costs nothing
    assert source.restart() == 5 * steps + 42 and source.steps == 0


def test_nodes_of_two_rules_are_two_sets_of_branches():
    env, policy = linear()
    traj, source = sampled(env, policy, 5), Cloning(env, policy, 2)
    found = [source(with_nodes(policy, traj, 3, rule), frozenset({"q_nodes"})).q_nodes for rule in cloning.NODE_RULES]
    assert set(source.spent) == {"q_nodes[product:3]", "q_nodes[coordinate:3]"} and len(set(source.spent.values())) == 1
    assert cloning.NODE_RULES == nodes.RULES and not torch.equal(*found)
    assert source(with_nodes(policy, traj, 3), frozenset({"q_slope"})).q_slope is None  # a Φ that asks says so itself


def test_steps_end_with_the_episode():
    env = envs.make("varlab/TwoArms-v0")
    policy = prepared(policies.make("softmax_table", env))
    source = Cloning(env, policy, 3)
    source(sampled(env, policy, 10), VQ)
    assert source.spent == {"v": 30, "q": 30}


def test_time_runs_from_the_step_to_the_horizon():
    """CartPole pays 1 a step and stands for six: V_t = Q_t = Σ_{u<H−t} γ^u in every branch."""
    env = envs.make("CartPole-v1", horizon=6)
    policy = prepared(policies.make("mlp", env, hidden=(4,)))
    traj = sampled(env, policy, 4)
    found = Cloning(env, policy, 3, gamma=0.5)(traj, VQ)
    expected = 2 * (1 - 0.5 ** (6 - traj.time.double()))
    for value in (found.v, found.q):
        torch.testing.assert_close(value, expected, rtol=1e-14, atol=0)
    assert not bool(found.v_se.any())


@pytest.mark.parametrize("make", [finite, linear])
def test_values_follow_from_the_trajectories_alone(make):
    """Neither from what else is asked, nor from what was asked before; other parts, blocks and streams have other numbers."""
    env, policy = make()
    first, second = (sampled(env, policy, 40, seed) for seed in (0, 1))
    source = Cloning(env, policy, 3)
    both = source(first, VQ)
    source(second, VQ)
    again = source(first, VQ)
    for name in "vq":
        assert torch.equal(getattr(both, name), getattr(again, name))
        assert torch.equal(getattr(both, name), getattr(Cloning(env, policy, 3)(first, frozenset(name)), name))
    moved = Cloning(env, policy, 3)(replace(first, seed=second.seed), VQ)
    assert not torch.equal(moved.v, both.v) and not torch.equal(moved.q, both.q)
    keys = {rng.branch(rng.Streams(0).sequence(*key), *what).spawn_key
            for key in (("rollout", 0, 1), ("rollout", 1, 0), ("pilot", 0, 0)) for what in ((0, 0, 0), (1, 0, 0), (0, 0, 1))}
    assert len(keys) == 9 and {key[0] for key in keys} == {rng.STREAMS["branch"]}


def test_joined_parts_keep_their_states():
    env, policy = finite()
    layout = Layout(30, 1, 7)
    made = [t for _, t in parts(env, policy, layout, rng.Streams(0), "rollout", cut=2, snapshots=True)]
    joined = Trajectories.join(made)
    assert torch.equal(joined.snapshots.steps, joined.state)
    assert torch.equal(joined.snapshots.last[joined.truncated], joined.last_state[joined.truncated])


def test_ordinary_runs_save_nothing():
    env, policy = finite()
    traj = rollout(env, policy, 5, np.random.SeedSequence(0))
    assert traj.snapshots is None
    with pytest.raises(InputError, match=r"saved states were expected for cloning\(m=2\).*snapshots=True"):
        Cloning(env, policy, 2)(traj, VQ)


def test_sampling_is_not_moved_by_saving():
    env, policy = finite()
    a, b = sampled(env, policy, 50), rollout(env, policy, 50, np.random.SeedSequence(0))
    assert torch.equal(a.obs, b.obs) and torch.equal(a.action, b.action) and torch.equal(a.reward, b.reward)


def test_bad_settings_and_bad_branches_are_one_sentence():
    env, policy = finite()
    with pytest.raises(InputError, match="continuations must be a whole number of at least 1, but it is 0"):
        Cloning(env, policy, 0)

    class Bare:
        """A simulator that saves nothing."""

        def __init__(self, inner):
            self.reset, self.step, self.keep = inner.reset, inner.step, inner.keep

    plain = replace(env, name="plain", make_simulator=lambda device: Bare(env.make_simulator(device)))
    assert isinstance(plain.make_simulator(torch.device("cpu")), Simulator)
    with pytest.raises(InputError, match="restored were expected of plain for values=cloning.*has none.*values=critic"):
        Cloning(plain, policy, 2)
    traj = sampled(env, policy, 5)

    def broken(device):
        simulator = env.make_simulator(device)
        step = simulator.step
        simulator.step = lambda action: (lambda obs, reward, end: (obs, reward * torch.nan, end))(*step(action))
        return simulator

    source = Cloning(env, policy, 2)
    source.simulator = broken(torch.device("cpu"))
    with pytest.raises(InputError, match="Finite returns were expected of branches on FiniteMDP"):
        source(traj, VQ)
