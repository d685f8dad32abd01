"""Rollouts: exactly n i.i.d. episodes laid out flat, functions of their seed alone."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import nn
from torch.distributions import Bernoulli, Beta, Categorical, Independent, Normal

from varlab import envs, policies, rng, values
from varlab.checks import InputError
from varlab.envs import FiniteMDP
from varlab.layout import Layout
from varlab.rollout import parts, rollout
from varlab.types import Trajectories

STREAMS = rng.Streams(4)
SEED = STREAMS.sequence("rollout")
TENSORS = ("obs", "action", "reward", "offsets", "terminated", "truncated", "last_obs", "state", "last_state")


def equal(a, b):
    return all(
        getattr(b, k) is None if getattr(a, k) is None else torch.equal(getattr(a, k), getattr(b, k)) for k in TENSORS
    )  # fmt: skip


def ring(features=False):
    """Deterministic: action 0 steps on, action 1 jumps two; state 5 ends. Rewards tell state and action."""
    states = 6
    lists = [[[(1.0, min(s + 1 + a, 5), 10.0 * s + a, min(s + 1 + a, 5) == 5)] for a in (0, 1)] for s in range(states)]
    mdp = FiniteMDP.from_lists(lists, [0.3, 0.3, 0.2, 0.2, 0.0, 0.0])
    if features:
        mdp = FiniteMDP(
            mdp.probability, mdp.next_state, mdp.reward, mdp.terminated, mdp.initial,
            observations=torch.arange(12, dtype=torch.float64).view(6, 2).sin(),
        )  # fmt: skip
    return mdp


def table(env, seed=0):
    return policies.make("softmax_table", env, theta_seed=seed)


def loop(lists, choose, first, limit):
    """One episode of the ring by a plain Python loop."""
    s, rows = first, []
    for t in range(limit):
        a = choose(t, s)
        _, s_next, r, end = lists[s][a][0]
        rows.append((s, a, r))
        s = s_next
        if end:
            return rows, True, s
    return rows, False, s


@pytest.mark.parametrize("features", [False, True])
@pytest.mark.parametrize("cut", [None, 1, 2, 3])
def test_every_trajectory_equals_a_plain_loop(features, cut):
    mdp = ring(features)
    env = envs.environment(mdp, horizon=4)
    limit = cut or 4
    lists = [[[(1.0, int(mdp.next_state[s, a, 0]), float(mdp.reward[s, a, 0]), bool(mdp.terminated[s, a, 0]))] for a in (0, 1)]
             for s in range(6)]  # fmt: skip
    policy = policies.make("linear", env) if features else table(env)
    traj = rollout(env, policy, 200, SEED, cut=cut)
    assert traj.horizon == 4 and traj.env == "FiniteMDP" and traj.reward.dtype == torch.float64
    assert traj.offsets[0] == 0 and traj.offsets[-1] == traj.steps and traj.offsets.dtype == torch.int64
    ends = set()
    for i in range(200):
        rows = range(int(traj.offsets[i]), int(traj.offsets[i + 1]))
        action = traj.action[rows.start : rows.stop].tolist()
        twin, end, last = loop(lists, lambda t, s, action=action: action[t], int(traj.state[rows.start]), limit)
        assert len(twin) == len(rows) and [int(traj.time[r]) for r in rows] == list(range(len(rows)))
        assert [(int(traj.state[r]), int(traj.action[r]), float(traj.reward[r])) for r in rows] == twin
        assert bool(traj.terminated[i]) == end and bool(traj.truncated[i]) == (not end) and int(traj.last_state[i]) == last
        ends.add((end, len(rows)))
    assert torch.equal(traj.obs, mdp.seen[traj.state]) and torch.equal(traj.last_obs, mdp.seen[traj.last_state])
    if cut != 1:  # the process may end exactly where sampling does: that is termination
        assert {(True, limit), (False, limit)} <= ends
    assert (len({n for _, n in ends}) > 1) == (limit > 1)


def test_a_deterministic_policy_gives_the_loops_trajectory():
    mdp = ring()
    env = envs.environment(mdp, horizon=9)
    jump = torch.zeros(6, 2)
    jump[torch.arange(6), torch.tensor([0, 1, 0, 0, 1, 0])] = 100.0
    traj = rollout(env, policies.SoftmaxTable(env, jump), 50, SEED)
    lists = [[[(1.0, min(s + 1 + a, 5), 10.0 * s + a, min(s + 1 + a, 5) == 5)] for a in (0, 1)] for s in range(6)]
    for i, start in enumerate(traj.offsets[:-1].tolist()):
        twin, end, last = loop(lists, lambda t, s: int(jump[s].argmax()), int(traj.state[start]), 9)
        mine = [x[start : start + len(twin)].tolist() for x in (traj.state, traj.action, traj.reward)]
        assert list(zip(*mine, strict=True)) == twin and int(traj.length[i]) == len(twin)
        assert bool(traj.terminated[i]) is end is True and int(traj.last_state[i]) == last == 5


def test_a_cut_only_ends_the_sampling():
    env = envs.make("FrozenLake-v1", horizon=30)
    whole, short = (rollout(env, table(env), 300, SEED, cut=cut) for cut in (None, 5))
    early = whole.time < 5
    assert torch.equal(short.obs, whole.obs[early]) and torch.equal(short.action, whole.action[early])
    assert torch.equal(short.length, whole.length.clamp(max=5)) and short.horizon == whole.horizon == 30
    assert torch.equal(short.terminated, whole.terminated & (whole.length <= 5))
    assert equal(whole, rollout(env, table(env), 300, SEED, cut=30))
    with pytest.raises(InputError, match="cut of at most the horizon 30 was expected, but it is 31"):
        rollout(env, table(env), 3, SEED, cut=31)
    for cut in (0, 2.5):
        with pytest.raises(InputError, match="cut must be a whole number"):
            rollout(env, table(env), 3, SEED, cut=cut)


@pytest.mark.parametrize("name", ["FrozenLake-v1", "CartPole-v1", "Pendulum-v1"])
def test_the_same_seed_gives_the_same_bits_whatever_else_ran(name):
    env = envs.make(name, horizon=12)
    policy = policies.make("mlp", env, hidden=(8,))
    simulator = env.make_simulator(torch.device("cpu"))
    keys = [(0, 0), (0, 1), (3, 0)]
    alone = {k: rollout(env, policy, 6, STREAMS.sequence("rollout", *k)) for k in keys}
    for order in (keys, keys[::-1], keys[1:]):
        for k in order:
            assert equal(alone[k], rollout(env, policy, 6, STREAMS.sequence("rollout", *k), simulator=simulator))
    first = [t.action.tolist() for t in alone.values()]
    first += [rollout(env, policy, 6, s.sequence(stream)).action.tolist() for s, stream in
              ((STREAMS, "pilot"), (rng.Streams(5), "rollout"))]  # fmt: skip
    assert all(a != b for i, a in enumerate(first) for b in first[:i])
    sequence = STREAMS.sequence("rollout")
    assert equal(rollout(env, policy, 6, sequence), rollout(env, policy, 6, sequence))  # one object, used twice


def test_world_and_actions_draw_from_different_numbers():
    """If both drew from one seed, the first action would follow from the first state."""
    env = envs.environment(FiniteMDP.from_lists([[[(1.0, 0, 0.0, True)]] * 2] * 2, [0.5, 0.5]), 1)
    traj = rollout(env, policies.SoftmaxTable(env), 4000, SEED)
    count = torch.bincount(2 * traj.state + traj.action, minlength=4)
    assert chisquare(count.numpy()).pvalue > 1e-3
    assert chisquare(torch.bincount(3 * traj.state, minlength=4).numpy()).pvalue < 1e-3


class Head(nn.Module):
    """A network whose output becomes the distribution that ``law`` says."""

    def __init__(self, fan_in, fan_out, law):
        super().__init__()
        self.net, self.law = nn.Linear(fan_in, fan_out), law

    def forward(self, obs):
        return self.law(self.net(obs))


def beta(x):
    return Independent(Beta(1 + x.exp(), 1 + x.exp()), 1)


@pytest.mark.parametrize(("name", "head"), [("CartPole-v1", None), ("Pendulum-v1", None), ("Pendulum-v1", beta)])
def test_global_random_states_stay_untouched(name, head):
    env = envs.make(name, horizon=5)
    policy = Head(env.num_features, env.num_actions, head) if head else policies.make("mlp", env)
    torch.manual_seed(9)
    np.random.seed(9)  # noqa: NPY002
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one = rollout(env, policy, 4, SEED)
    policies.make("mlp", env)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
    torch.manual_seed(10)
    np.random.seed(10)  # noqa: NPY002
    assert equal(one, rollout(env, policy, 4, SEED))


def test_actions_follow_the_policy_and_returns_follow_dynamic_programming():
    env = envs.make("FrozenLake-v1", horizon=40)
    policy, n = table(env, 3), 20_000
    traj = rollout(env, policy, n, SEED)
    pi = policy(torch.arange(16)).probs.detach().double()
    start = traj.state == 0
    count, expected = torch.bincount(traj.action[start], minlength=4), pi[0] * int(start.sum())
    assert chisquare(count.numpy(), expected.numpy() * (int(start.sum()) / float(expected.sum()))).pvalue > 1e-3
    mean = float(traj.reward.sum()) / n
    with torch.no_grad():
        exact = float(values.expected_return(env.finite, policy, 1.0, 40))
        other = float(values.expected_return(env.finite, table(env, 4), 1.0, 40))
    error = (exact * (1 - exact) / n) ** 0.5  # the return is 0 or 1
    assert abs(mean - exact) < 4 * error < abs(mean - other)


def test_parts_come_in_stream_order_and_shards_agree():
    env = envs.make("CartPole-v1", horizon=30)
    policy = policies.make("mlp", env, hidden=(8,))
    layout = Layout(23, 4, 4)
    made = list(parts(env, policy, layout, STREAMS, "rollout"))
    assert [b for b, _ in made] == [0, 0, 1, 1, 2, 2, 3, 3] and sum(len(t) for _, t in made) == 23
    draws = [d for b in range(4) for d in layout.parts(b)]
    for d, (_, t) in zip(draws, made, strict=True):
        assert len(t) == d.n and equal(t, rollout(env, policy, d.n, STREAMS.sequence("rollout", d.block, d.part)))
    shards = [list(parts(env, policy, Layout(n, 2, 4, first), STREAMS, "rollout")) for n, first in ((12, 0), (11, 2))]
    joined = [Trajectories.join([t for _, t in found]) for found in (made, shards[0] + shards[1])]
    assert equal(*joined)
    cut = list(parts(env, policy, layout, STREAMS, "rollout", cut=3))
    assert max(int(t.length.max()) for _, t in cut) == 3


def test_a_users_module_may_have_another_dtype_than_the_world():
    cartpole, lake = envs.make("CartPole-v1", horizon=20), envs.environment(ring(features=True), 4)
    for env, dtype in ((cartpole, torch.float64), (lake, torch.float32)):
        user = Head(env.num_features, 2, lambda x: Categorical(logits=x))
        policy = policies.prepare(user, dtype, "cpu")
        traj = rollout(env, policy, 8, SEED)
        assert traj.obs.dtype != dtype and policy(traj.obs).logits.dtype == dtype
        assert traj.action.shape == (traj.steps,)


WRONG = {
    "too many actions": ("CartPole-v1", 3, lambda x: Categorical(logits=x), "0 … 1 .* over 3 actions"),
    "too few actions": ("Acrobot-v1", 2, lambda x: Categorical(logits=x), "0 … 2 .* over 2 actions"),
    "numbers, not indices": ("CartPole-v1", 1, lambda x: Bernoulli(logits=x[:, 0]), "0 … 1 .*Bernoulli gave float32"),
    "a density for Discrete": ("CartPole-v1", 2, lambda x: Normal(x, 1.0), r"0 … 1 .*Normal gave float32 of shape \[n, 2\]"),
    "a missing axis": ("Pendulum-v1", 1, lambda x: Normal(x[:, 0], 1.0), r"shape \[n, 1\] .*Normal gave float32 of shape \[n\]"),
    "another dimension": ("Pendulum-v1", 2, lambda x: Independent(Normal(x, 1.0), 1), r"shape \[n, 1\] .* shape \[n, 2\]"),
    "indices for Box": ("Pendulum-v1", 2, lambda x: Categorical(logits=x), r"shape \[n, 1\] .*Categorical gave int64"),
    "a tensor": ("CartPole-v1", 2, lambda x: x, "torch Distribution was expected, but it gave Tensor"),
    "NaN in θ": ("CartPole-v1", 2, lambda x: Categorical(logits=x * float("nan")), "trajectory 0, step 0 .*look for NaN in θ"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_policy_that_does_not_fit_is_told_so(case):
    name, width, law, words = WRONG[case]
    env = envs.make(name, horizon=4)
    with pytest.raises(InputError, match=words) as error:
        rollout(env, Head(env.num_features, width, law), 5, SEED)
    assert name in str(error.value) or case == "a tensor"


def test_a_policy_that_changes_its_observations_is_refused():
    class Centred(Head):
        def forward(self, obs):
            obs -= 0.1
            return super().forward(obs)

    env = envs.make("CartPole-v1", horizon=4)
    with pytest.raises(InputError, match="leaves its observations as they are was expected on CartPole-v1"):
        rollout(env, Centred(4, 2, lambda x: Categorical(logits=x)), 5, SEED)
