"""Learned critics: the mean-squared-error fit, warm starts, determinism, streams of their own."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from finite_worlds import random_mdp

from varlab import envs, policies, storage, values
from varlab.checks import InputError
from varlab.estimators import Batch
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.types import Values
from varlab.values import CriticSettings
from varlab.values.critic import CriticNetwork

BOTH = frozenset({"v", "q"})
SMALL = CriticSettings(hidden=(16,), lr=0.02, epochs=16, minibatch=256)


def data(env, policy, n, seed=0, gamma=1.0):
    traj = rollout(env, policy, n, Streams(seed).sequence("critic"))
    return traj, Batch(traj, Values(), gamma).reward_to_go


def fitted(env, traj, target, settings=SMALL, seed=0, dtype=torch.float64):
    return values.fit(env, traj, target, settings, Streams(seed).sequence("fit"), storage.digest, dtype)


@pytest.fixture(scope="module")
def small():
    """A random finite MDP of horizon 4, a policy, the critic stream's trajectories and reward-to-go."""
    env = envs.environment(random_mdp(1, states=4, actions=3), 4)
    policy = policies.make("softmax_table", env, theta_seed=1).double()
    return env, policy, *data(env, policy, 800)


@pytest.fixture(scope="module")
def critic(small):
    env, _, traj, target = small
    return fitted(env, traj, target)


def stationary(env, policy, gamma, traj):
    """The time-free minimisers of the squared error on ``traj``: mean reward-to-go by state, and by state and action."""
    states, actions = env.finite.num_states, env.finite.num_actions
    goal = Batch(traj, Values(), gamma).reward_to_go
    v, q = np.full(states, np.nan), np.full((states, actions), np.nan)
    for s in range(states):
        v[s] = goal[traj.state == s].mean()
        for a in range(actions):
            q[s, a] = goal[(traj.state == s) & (traj.action == a)].mean()
    return v, q


def test_fit_minimises_the_squared_error(small, critic):
    """On one-hot states the least-squares V_φ(s) is the mean of G_t in s, and Q_φ(s, a) that of s and a."""
    env, policy, traj, target = small
    v, q = stationary(env, policy, 1.0, traj)
    states = torch.arange(4)
    spread = float(target.std())
    np.testing.assert_allclose(critic.network.value(states).numpy(), v, atol=0.15 * spread)
    for a in range(3):
        mine = critic.network.action_value(states, torch.full((4,), a)).numpy()
        np.testing.assert_allclose(mine, q[:, a], atol=0.25 * spread)
    assert np.ptp(q, axis=1).max() > 0.6 * spread  # the action matters by more than the tolerance
    before, after = critic.losses
    best = float(sum(((target - v[s]) ** 2)[traj.state == s].sum() for s in range(4)) / traj.steps)
    assert best <= after < 1.02 * best and after < before
    assert before == pytest.approx(float(target.var(correction=0)), rel=0.5)  # it starts near the constant mean


def test_losses_and_explained_variance_are_what_they_say(small, critic):
    _, _, traj, target = small
    residual = critic.network.value(traj.obs) - target
    assert critic.losses[1] == pytest.approx(float((residual**2).mean()), rel=1e-12)
    expected = 1 - np.var(residual.numpy()) / np.var(target.numpy())
    assert critic.explained_variance == pytest.approx(expected, rel=1e-10)
    assert critic.steps == traj.steps


#: What a walker with the goal in mind does in each state.
LAKE = [1, 2, 1, 0, 1, 0, 1, 0, 2, 1, 1, 0, 0, 2, 2, 0]
CLIFF = [*[1] * 11, 2] * 2 + [*[0] * 11, 2] + [0] * 12


@pytest.mark.parametrize(("env_id", "actions", "least"), [("FrozenLake-v1", LAKE, 0.4), ("CliffWalking-v1", CLIFF, 0.8)])
def test_fit_explains_what_the_state_explains(env_id, actions, least):
    """From any state: explained variance comes near that of the best function of the state; the loss falls as far."""
    mdp = envs.make(env_id, horizon=50, is_slippery=False).finite
    anywhere = torch.full_like(mdp.initial, 1 / mdp.num_states)
    env = envs.environment(replace(mdp, initial=anywhere), 50)
    logits = 6.0 * torch.nn.functional.one_hot(torch.tensor(actions), env.num_actions).double()
    traj, target = data(env, policies.SoftmaxTable(env, logits=logits), 400)
    made = fitted(env, traj, target, replace(SMALL, epochs=12))
    count = torch.bincount(traj.obs, minlength=env.num_features)
    mean = target.new_zeros(env.num_features).index_add(0, traj.obs, target) / count.clamp(min=1)
    best = 1 - float((target - mean[traj.obs]).var() / target.var())
    assert best > least and made.explained_variance > best - 0.05
    assert made.losses[1] < (1 - 0.8 * best) * made.losses[0]


def test_critic_approximates_exact_values_where_time_does_not_matter():
    """Termination by 1 − γ and a long horizon: V_0 is all but stationary, and V_φ and Q_φ meet it."""
    mdp = random_mdp(4, ending=0.0).with_termination(0.5)
    env = envs.environment(mdp, 40)
    policy = policies.make("softmax_table", env, theta_seed=1).double()
    traj, target = data(env, policy, 4000)
    made = fitted(env, traj, target, replace(SMALL, epochs=12, minibatch=512, lr=0.02))
    exact = values.ExactValues.of(mdp, policy, 1.0, 40)
    assert float((exact.v[0] - exact.v[5]).abs().max()) < 1e-9
    spread = float(target.std())
    assert float((made.network.value(torch.arange(3)) - exact.v[0]).abs().max()) < 0.1 * spread
    for a in range(2):
        mine = made.network.action_value(torch.arange(3), torch.full((3,), a))
        assert float((mine - exact.q[0, :, a]).abs().max()) < 0.2 * spread
    wrong = values.ExactValues.of(mdp, policy, 0.0, 40)  # immediate rewards alone are told apart
    assert float((made.network.value(torch.arange(3)) - wrong.v[0]).abs().max()) > 0.2 * spread


def test_warm_start_begins_where_the_previous_critic_ended(small, critic):
    """φ_k starts from φ_{k−1}, shift and scale included, on whatever data comes next."""
    env, policy, traj, target = small
    again = fitted(env, traj, target, replace(SMALL, init=critic.state_dict(), epochs=1), seed=9)
    assert again.losses[0] == pytest.approx(critic.losses[1], rel=1e-12)
    assert again.network.scale == critic.network.scale and again.network.shift == critic.network.shift
    later, goal = data(env, policies.make("softmax_table", env, theta_seed=2).double(), 200, seed=3)
    goal = goal + 5
    warm = fitted(env, later, goal, replace(SMALL, init=critic.state_dict(), epochs=1))
    expected = float((critic.network.value(later.obs) - goal).square().mean())
    assert warm.losses[0] == pytest.approx(expected, rel=1e-12)
    assert warm.losses[0] != pytest.approx(fitted(env, later, goal, replace(SMALL, epochs=1)).losses[0], rel=1e-3)


def test_phi_survives_a_round_trip_through_plain_arrays(small, critic):
    env, _, traj, target = small
    arrays = {k: v.numpy() for k, v in critic.state_dict().items()}
    again = fitted(env, traj, target, replace(SMALL, init=arrays, epochs=1))
    assert again.losses[0] == pytest.approx(critic.losses[1], rel=1e-12)


def test_starting_phi_is_not_changed(small, critic):
    env, _, traj, target = small
    kept = {k: v.clone() for k, v in critic.state_dict().items()}
    fitted(env, traj, target, replace(SMALL, init=critic.state_dict(), epochs=1))
    assert all(torch.equal(v, critic.state_dict()[k]) for k, v in kept.items())


def test_phi_of_another_shape_is_one_sentence(small, critic):
    env, _, traj, target = small
    with pytest.raises(InputError, match=r"hidden layers \[8\].*start from a critic of the same network\.$") as caught:
        fitted(env, traj, target, replace(SMALL, hidden=(8,), init=critic.state_dict()))
    assert "\n" not in str(caught.value)


def test_same_seed_same_critic_and_another_seed_another(small):
    env, _, traj, target = small
    short = replace(SMALL, epochs=2)
    one, same, other = (fitted(env, traj, target, short, seed=seed) for seed in (0, 0, 1))
    assert same.source == one.source and one.source.startswith("critic:")
    assert all(torch.equal(v, same.state_dict()[k]) for k, v in one.state_dict().items())
    assert other.source != one.source


def test_fit_leaves_global_randomness_and_the_data_alone(small):
    env, _, traj, target = small
    torch.manual_seed(0)
    state, kept = torch.get_rng_state(), target.clone()
    made = fitted(env, traj, target, replace(SMALL, epochs=1))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(target, kept)
    torch.manual_seed(1)
    assert fitted(env, traj, target, replace(SMALL, epochs=1)).source == made.source  # and does not depend on it


def test_streams_of_critic_fit_and_rollout_are_distinct():
    names = ("critic", "fit", "rollout", "reference", "pilot")
    assert len({tuple(Streams(3).sequence(name).generate_state(4)) for name in names}) == len(names)


def test_values_at_the_visited_steps(small, critic):
    env, policy, traj, _ = small
    cut = rollout(env, policy, 50, Streams(5).sequence("rollout"), cut=2)
    found = critic(cut, BOTH)
    assert found.v.dtype == found.q.dtype == torch.float64
    assert found.source == critic.source and found.steps == traj.steps
    for i in range(50):
        a, b = int(cut.offsets[i]), int(cut.offsets[i + 1])
        for row in range(a, b):
            one, action = cut.obs[row : row + 1], cut.action[row : row + 1]
            assert float(found.v[row]) == pytest.approx(float(critic.network.value(one)), rel=1e-12)
            assert float(found.q[row]) == pytest.approx(float(critic.network.action_value(one, action)), rel=1e-12)
        assert float(found.v_last[i]) == pytest.approx(float(critic.network.value(cut.last_obs[i : i + 1])), rel=1e-12)
        assert float(found.v_stale[i]) == pytest.approx(float(critic.network.value(cut.obs[b - 1 : b])), rel=1e-12)
    v_only, q_only = critic(cut, frozenset({"v"})), critic(cut, frozenset({"q"}))
    assert v_only.q is None and q_only.v is None and q_only.v_last is None and q_only.v_stale is None


def test_continuous_actions_enter_q():
    """Q_φ(s, a) for a Box action: with reward a·s₀ − a² it must see the action, through a float32 network too."""
    env = envs.make("Pendulum-v1", horizon=5)
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(4000, 3, generator=generator)
    action = torch.randn(4000, 1, generator=generator)
    goal = (action[:, 0] * obs[:, 0] - action[:, 0] ** 2).double()
    traj = replace(
        rollout(env, policies.make("linear", env), 800, Streams(0).sequence("critic")), obs=obs, action=action, reward=goal
    )
    made = fitted(env, traj, goal, replace(SMALL, epochs=12), dtype=torch.float32)
    q = made(traj, BOTH).q
    assert 1 - float((q - goal).var() / goal.var()) > 0.9
    assert made.explained_variance < 0.3  # V_φ cannot see it


def test_returns_without_spread_are_fitted_exactly_enough(small):
    """Constant returns (CartPole cut at one step, say): no division by zero, V_φ is the constant."""
    env, _, traj, target = small
    made = fitted(env, traj, torch.full_like(target, 7.0), replace(SMALL, epochs=1))
    assert float((made.network.value(torch.arange(4)) - 7).abs().max()) < 1e-6
    assert np.isnan(made.explained_variance)


def test_reward_scale_does_not_matter(small):
    """The loss is in units of the returns' spread: 1000 times the reward gives 1000 times the same V_φ."""
    env, _, traj, target = small
    short = replace(SMALL, epochs=2)
    one, big = (fitted(env, traj, scale * target, short).network.value(torch.arange(4)) for scale in (1, 1000))
    torch.testing.assert_close(big, 1000 * one, rtol=1e-6, atol=0)


def test_a_fit_that_diverges_says_so(small):
    env, _, traj, target = small
    with pytest.raises(InputError, match=r"finite error.*lower critic.lr"):
        fitted(env, traj, target, replace(SMALL, lr=1e300, epochs=2))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"n": 0}, "critic.n must be a whole number of at least 1"),
        ({"epochs": 0.5}, "critic.epochs"),
        ({"minibatch": -1}, "critic.minibatch"),
        ({"lr": 0.0}, "positive critic.lr"),
        ({"lr": float("nan")}, "positive critic.lr"),
    ],
)
def test_settings_are_checked(setting, message):
    with pytest.raises(InputError, match=message):
        CriticSettings(**setting)


def test_unknown_activation_names_the_nearest():
    with pytest.raises(InputError, match=r"No activation is called 'tahn'.*tanh"):
        CriticNetwork(envs.make("FrozenLake-v1"), (8,), "tahn")
