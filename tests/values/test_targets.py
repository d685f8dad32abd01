"""λ-returns as targets of V_φ, and a V_φ that sees the time."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from finite_worlds import enumerate_paths, random_logits, random_mdp

import varlab
from varlab import envs, policies, storage, values
from varlab.checks import InputError
from varlab.estimators import Batch, weight
from varlab.estimators import make as make_phi
from varlab.plans import plan
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.types import Values
from varlab.values import CriticSettings
from varlab.values.targets import lambda_returns

HORIZON = 4
VQ = frozenset({"v", "q"})


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture(scope="module")
def world():
    """All paths of a random world where every state is common at every time; to the horizon, and cut before it."""
    mdp = random_mdp(11, ending=0.1)
    env = envs.environment(mdp, HORIZON)
    policy = policies.SoftmaxTable(env, logits=random_logits(2, mdp)).double()
    return env, policy, enumerate_paths(mdp, HORIZON), enumerate_paths(mdp, HORIZON, cut=2)


def by_hand(traj, v, v_last, gamma, lam):
    """(1 − λ) Σ_n λ^{n−1} G^{(n)} + λ^{N−1} G^{(N)} with n-step returns G^{(n)}, by loops; N is the last."""
    out = []
    for i in range(len(traj)):
        first, stop = int(traj.offsets[i]), int(traj.offsets[i + 1])
        r, length = traj.reward[first:stop].tolist(), stop - first
        after = 0.0 if bool(traj.terminated[i]) or length == traj.horizon else float(v_last[i])
        value = [*v[first:stop].tolist(), after]
        for t in range(length):
            n_step = [
                sum(gamma**j * r[t + j] for j in range(n)) + gamma**n * value[t + n] for n in range(1, length - t + 1)
            ]
            weights = [(1 - lam) * lam ** (n - 1) for n in range(1, length - t)] + [lam ** (length - t - 1)]
            out.append(sum(w * g for w, g in zip(weights, n_step, strict=True)))
    return torch.tensor(out, dtype=torch.float64)


@pytest.mark.parametrize("gamma", (1.0, 0.8))
@pytest.mark.parametrize("lam", (0.0, 0.3, 0.95, 1.0))
def test_lambda_returns_are_mixtures_of_n_step_returns(world, gamma, lam):
    for traj in (world[2].traj, world[3].traj):
        v, v_last = draw(traj.steps), draw(len(traj), seed=1)
        torch.testing.assert_close(
            lambda_returns(traj, v, v_last, gamma, lam), by_hand(traj, v, v_last, gamma, lam), rtol=1e-12, atol=1e-12
        )
    kinds = world[3].traj
    assert bool(kinds.terminated.any()) and bool(kinds.truncated.any()) and kinds.horizon > int(kinds.length.max())


def test_ends_of_lambda_are_reward_to_go_and_one_step(world):
    traj = world[2].traj
    v, v_last = draw(traj.steps), draw(len(traj), seed=1)
    batch = Batch(traj, Values(v=v), 0.8)
    torch.testing.assert_close(lambda_returns(traj, v, v_last, 0.8, 1.0), batch.reward_to_go, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(lambda_returns(traj, v, v_last, 0.8, 0.0), batch.td_residual + v, rtol=1e-13, atol=1e-13)
    gae = weight(make_phi("gae", lam=0.6), batch, False)
    torch.testing.assert_close(lambda_returns(traj, v, v_last, 0.8, 0.6), gae + v, rtol=1e-12, atol=1e-12)


def conditional_means(world, target, paths):
    """E[target_t | s_t, t] [H, S], by enumeration; NaN where nobody comes."""
    traj, states = paths.traj, world[0].finite.num_states
    p = paths.probability(world[1].logits.weight.detach())[traj.episode]
    cell = traj.time * states + traj.state
    total = torch.zeros(2, HORIZON * states, dtype=torch.float64).index_add(1, cell, torch.stack([p * target, p]))
    return (total[0] / total[1]).reshape(HORIZON, states)


@pytest.mark.parametrize("lam", (0.0, 0.7, 1.0))
@pytest.mark.parametrize("paths", (2, 3), ids=("to the horizon", "cut before"))
def test_exact_values_are_their_own_targets_and_wrong_ends_are_not(world, lam, paths):
    """E[Ĝ_t | s_t] = V_t(s_t): nothing after termination and horizon, V at a cut before. Any other rule moves the fixed point."""
    env, policy = world[:2]
    exact = values.ExactValues.of(env.finite, policy, 0.9, HORIZON)
    traj = world[paths].traj
    known = exact(traj, VQ)
    reached = torch.arange(HORIZON) < int(traj.length.max())

    def off(t):
        found = conditional_means(world, lambda_returns(t, known.v, known.v_last, 0.9, lam), world[paths])
        return float((found - exact.v[:-1])[reached].abs().max())

    assert off(traj) < 1e-12
    # Merged with truncation, termination would be followed by V; and a cut merged with the end by nothing.
    if paths == 3:
        assert off(replace(traj, terminated=torch.zeros_like(traj.terminated))) > 0.02
        assert off(replace(traj, horizon=2)) > 0.05
    else:
        longer = values.ExactValues.of(env.finite, policy, 0.9, HORIZON + 1)
        beyond = longer.v[1][traj.last_state]  # what a value that ignores the horizon would say
        wrong = lambda_returns(replace(traj, horizon=HORIZON + 1), known.v, beyond, 0.9, lam)
        assert float((conditional_means(world, wrong, world[paths]) - exact.v[:-1]).abs().max()) > 0.05


# ---- fits


def sample(env, policy, n, gamma=0.9, seed=0):
    traj = rollout(env, policy, n, Streams(seed).sequence("critic"))
    return traj, Batch(traj, Values(), gamma).reward_to_go


def fitted(env, traj, goal, gamma=0.9, seed=0, **settings):
    options = CriticSettings(**{"hidden": (16,), "lr": 0.02, "epochs": 30, "minibatch": 1024, **settings})
    return values.fit(env, traj, goal, options, Streams(seed).sequence("fit"), storage.digest, torch.float64, gamma)


@pytest.mark.parametrize("lam", (0.0, 0.5))
def test_a_td_critic_is_a_fixed_point_of_its_own_targets(world, lam):
    """Where V sees the state alone, V(s) = mean of Ĝ(V) over the visits of s: another function than the mean of G."""
    env, policy = world[:2]
    traj, goal = sample(env, policy, 3000)
    td = fitted(env, traj, goal, target="td_lambda", lam=lam, epochs=60)
    found = td(traj, frozenset({"v"}))
    own = lambda_returns(traj, found.v, found.v_last, 0.9, lam)
    seen = td.table(env.finite, HORIZON)[0][0]
    spread = float(goal.std())
    means, plain = (torch.stack([x[traj.state == s].mean() for s in range(3)]) for x in (own, goal))
    assert float((seen - means).abs().max()) < 0.05 * spread
    assert float((plain - means).abs().max()) > 0.1 * spread


@pytest.mark.parametrize("settings", ({}, {"target": "td_lambda", "lam": 0.5}), ids=("monte_carlo", "td_lambda"))
def test_a_time_aware_critic_approaches_the_values_of_every_time(world, settings):
    env, policy = world[:2]
    traj, goal = sample(env, policy, 2500)
    exact = values.ExactValues.of(env.finite, policy, 0.9, HORIZON).v[:-1]
    spread = float(goal.std())
    aware = fitted(env, traj, goal, time_aware=True, epochs=40, **settings)
    v = aware.table(env.finite, HORIZON)[0]
    assert v.shape == (HORIZON + 1, 3)
    assert float((v[:-1] - exact).abs().max()) < 0.2 * spread
    blind = fitted(env, traj, goal, epochs=40)
    assert float((blind.table(env.finite, HORIZON)[0][:-1] - exact).abs().max()) > 0.3 * spread
    assert aware.explained_variance > blind.explained_variance + 0.05


def test_lambda_one_is_monte_carlo(world):
    env, policy = world[:2]
    traj, goal = sample(env, policy, 300)
    plain, td = (fitted(env, traj, goal, epochs=3, **x) for x in ({}, {"target": "td_lambda", "lam": 1.0}))
    for name, x in plain.state_dict().items():
        torch.testing.assert_close(td.state_dict()[name], x, rtol=1e-9, atol=1e-11)


def test_q_and_the_first_pass_do_not_see_the_target(world):
    """Q_φ regresses on reward-to-go whatever V does, drawn from the same initial weights and shuffles."""
    env, policy = world[:2]
    traj, goal = sample(env, policy, 300)
    plain, td = (fitted(env, traj, goal, epochs=3, **x) for x in ({}, {"target": "td_lambda", "lam": 0.0}))
    states = plain.state_dict(), td.state_dict()
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0] if k.startswith("q."))
    assert not torch.equal(states[0]["v.0.weight"], states[1]["v.0.weight"])
    assert plain.losses[0] == td.losses[0]


@pytest.mark.parametrize("cut", (None, 2))
def test_every_value_is_looked_up_at_its_own_time(world, cut):
    env, policy = world[:2]
    traj, goal = sample(env, policy, 200)
    aware = fitted(env, traj, goal, time_aware=True, epochs=2)
    table, q = aware.table(env.finite, HORIZON)
    paths = rollout(env, policy, 50, Streams(5).sequence("rollout"), cut=cut)
    found = aware(paths, VQ)
    last = paths.state[paths.last_row]
    for x, expected in (
        (found.v, table[paths.time, paths.state]),
        (found.v_last, table[paths.length, paths.last_state]),
        (found.v_stale, table[paths.length, last]),
        (found.q, q[paths.time, paths.state, paths.action]),
    ):
        torch.testing.assert_close(x, expected, rtol=1e-12, atol=1e-12)
    late = table[(paths.length - 1), last]
    assert float((found.v_stale - late).abs().max()) > 1e-4, "the wrong state is looked up at the right time"


def test_a_measurement_with_a_time_aware_td_critic_has_an_exact_variance():
    env = envs.make("FrozenLake-v1", horizon=15)
    policy = policies.make("softmax_table", env, theta_seed=1)
    made = {}
    for name, more in (("blind", {}), ("aware", {"time_aware": True}), ("td", {"time_aware": True, "target": "td_lambda"})):
        critic = CriticSettings(n=500, hidden=(16,), epochs=5, **more)
        result = varlab.measure(
            env, policy, ["total_return", "value_baseline", "gae(lam=0.5)"], n=3000, gamma=0.9, values="critic", critic=critic,
            dtype="float64", pilot=100,
        )  # fmt: skip
        rows = made[name] = result.summary
        error = rows.variance * np.sqrt((rows["kurtosis"] - 1) / 3000)
        assert ((rows.variance - rows.exact_variance).abs() / error).max() < 4
        assert float(rows.exact_bias_sq[1]) < 1e-20, "unbiased whatever V is"
    sources = {rows.values_source[1] for rows in made.values()}
    assert len(sources) == 3 and len({rows.digest[0] for rows in made.values()}) == 3


def test_settings_and_their_digest():
    env = envs.make("FrozenLake-v1", horizon=5)
    policy = policies.make("softmax_table", env, theta_seed=1)

    def digest(**settings):
        return plan(env, policy, n=100, critic=CriticSettings(**settings)).digest

    plain = digest()
    assert plain == digest(lam=0.3), "λ says nothing without td_lambda"
    others = [digest(target="td_lambda"), digest(target="td_lambda", lam=0.3), digest(time_aware=True)]
    assert len({plain, *others}) == 4
    assert "target" not in plan(env, policy, n=100).settings["critic"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "td"}, "No critic.target is called 'td'; the nearest names are .*td_lambda"),
        ({"lam": 1.5}, r"critic.lam must lie in \[0, 1\], but it is 1.5"),
        ({"time_aware": 1}, "critic.time_aware must be true or false, but it is 1"),
    ],
)
def test_bad_settings_are_one_sentence(settings, message):
    with pytest.raises(InputError, match=message):
        CriticSettings(**settings)


def test_what_a_fit_cannot_do_is_one_sentence(world):
    env, policy = world[:2]
    traj, goal = sample(env, policy, 20)
    with pytest.raises(InputError, match="A discount was expected because critic.target=td_lambda"):
        fitted(env, traj, goal, gamma=None, target="td_lambda")
    blind = fitted(env, traj, goal, epochs=1)
    with pytest.raises(InputError, match="start from a critic of the same network"):
        fitted(env, traj, goal, time_aware=True, init=blind.state_dict())
