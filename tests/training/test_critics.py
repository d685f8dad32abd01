"""Critics along training: warm starts of φ and of Adam's moments, which batch φ has seen, exact values at every θ."""

import hand
import pytest
import torch

from varlab import envs, policies
from varlab.checks import InputError
from varlab.rng import Streams
from varlab.training import CriticUpdates, train
from varlab.values import ExactValues, FunctionValues
from varlab.values.critic import CriticNetwork, new_network

SMALL = CriticUpdates(hidden=(8,), lr=0.01, train_v_iters=15)
SETTINGS = {"episodes": 30, "dtype": "float64", "optimizer": "ascent", "lr": 0.5}


def run(phi, env, policy, **settings):
    return train(env, policy, phi, **{**SETTINGS, "critic": SMALL, **settings})


def by_hand(env, policy, epochs):
    """V_φ by plain loops: (θ, φ, mean-squared error of φ_{k−1} on batch k) of every epoch."""
    theta = hand.table(policy.state_dict()).clone()
    net = new_network(env, SMALL, Streams(0).sequence("train_fit"), torch.float64, "cpu")
    weights, errors = list(net.v.parameters()), []
    adam = torch.optim.Adam(weights, lr=SMALL.lr)
    shift, scale = 0.0, 1.0

    def raw(x):
        w1, b1, w2, b2 = weights
        return (torch.tanh(x @ w1.T + b1) @ w2.T + b2).squeeze(1)

    for epoch in range(epochs):
        traj = hand.batch(env, theta, epoch, 30)
        to_go = [hand.reward_to_go(0, t, r) for _, _, r in hand.episodes(traj) for t in range(len(r))]
        to_go = torch.tensor(to_go, dtype=torch.float64)
        one_hot = torch.eye(3, dtype=torch.float64)[traj.obs]

        v = shift + scale * raw(one_hot).detach()
        errors.append(float(((v - to_go) ** 2).mean()))
        rows = dict(
            zip([(i, t) for i, (_, _, r) in enumerate(hand.episodes(traj)) for t in range(len(r))], v.tolist(), strict=True)
        )
        theta = theta + 0.5 * hand.gradient(theta, traj, lambda i, t, r, rows=rows: hand.reward_to_go(i, t, r) - rows[i, t])
        if epoch == 0:
            shift, scale = float(to_go.mean()), float(to_go.std(correction=0))
        for _ in range(SMALL.train_v_iters):
            adam.zero_grad()
            (((shift + scale * raw(one_hot) - to_go) / scale) ** 2).mean().backward()
            adam.step()
    return theta, [w.detach() for w in weights], errors


def test_v_follows_by_full_batch_adam_from_the_previous_phi():
    env, policy = hand.world()
    made = run("value_baseline", env, policy, epochs=3)
    theta, weights, errors = by_hand(env, policy, 3)
    torch.testing.assert_close(hand.table(made.checkpoints["late"]), theta, rtol=0, atol=1e-10)
    for name, w in zip(("v.0.weight", "v.0.bias", "v.2.weight", "v.2.bias"), weights, strict=True):
        torch.testing.assert_close(made.critic[name], w, rtol=0, atol=1e-9)
    assert made.curve["critic_loss"].tolist() == pytest.approx(errors, rel=1e-9)
    assert made.curve["critic_loss"].iloc[-1] < made.curve["critic_loss"].iloc[0]


def test_only_what_is_read_is_fitted():
    env, policy = hand.world()
    fresh = new_network(env, SMALL, Streams(0).sequence("train_fit"), torch.float64, "cpu").state_dict()
    for phi, moved in (("value_baseline", {"v"}), ("q_value", {"q"}), ("advantage", {"v", "q"})):
        critic = run(phi, env, policy, epochs=1).critic
        assert {name[0] for name in fresh if name[1] == "." and not torch.equal(fresh[name], critic[name])} == moved


def test_no_critic_where_nothing_reads_values():
    env, policy = hand.world()
    made = run("total_return", env, policy, epochs=1)
    assert made.critic is None and made.curve[["critic_loss", "explained_variance"]].isna().all(axis=None)


def test_explained_variance_is_of_data_that_phi_has_not_seen():
    """More steps on few data: φ fits its own batch ever better, the next batch ever worse."""
    env, policy = hand.world()
    settings = {"epochs": 2, "episodes": 4, "lr": 1e-9}
    few, many = (
        run("value_baseline", env, policy, critic=CriticUpdates(hidden=(64,), lr=0.05, train_v_iters=k), **settings).curve
        for k in (0, 400)
    )
    assert few["critic_loss"][0] == many["critic_loss"][0] and few["explained_variance"][0] == many["explained_variance"][0]
    assert few["critic_loss"][1] != many["critic_loss"][1]


def test_a_critic_goes_on_from_a_given_phi():
    env, policy = hand.world()
    first = run("value_baseline", env, policy, epochs=2)
    again = run("value_baseline", env, policy, epochs=1, critic=CriticUpdates(hidden=(8,), train_v_iters=0, init=first.critic))
    assert all(torch.equal(x, first.critic[name]) for name, x in again.critic.items())
    with pytest.raises(InputError, match=r"hidden layers \[4\].*start from a critic of the same network\.$"):
        run("value_baseline", env, policy, epochs=1, critic=CriticUpdates(hidden=(4,), init=first.critic))


def test_exact_values_are_those_of_the_present_theta():
    env, policy = hand.world()
    made = run("value_baseline", env, policy, epochs=2, values="exact")
    theta = hand.table(policy.state_dict()).clone()
    for epoch in range(2):
        traj = hand.batch(env, theta, epoch, 30)
        v = ExactValues.of(env.finite, policies.SoftmaxTable(env, logits=theta).double(), 1.0, env.horizon).v
        states = [s for s, _, _ in hand.episodes(traj)]
        theta = theta + 0.5 * hand.gradient(
            theta, traj, lambda i, t, r, v=v, states=states: hand.reward_to_go(i, t, r) - float(v[t, states[i][t]])
        )
    torch.testing.assert_close(hand.table(made.checkpoints["late"]), theta, rtol=0, atol=1e-10)
    auto = run("value_baseline", env, policy, epochs=2, values="auto")
    assert auto.digest == made.digest and made.critic is None


def test_a_given_function_is_read_once_per_batch_and_its_steps_are_charged():
    env, policy = hand.world()
    calls = []

    def v(obs, t):
        calls.append(len(obs))
        return obs.double()

    source = FunctionValues(v=v, source="by hand", steps=1000)
    made = run("value_baseline", env, policy, epochs=1, values=source)
    assert len(calls) == 3  # V at the steps, at the end, and at the stale end
    assert made.curve["steps"][0] == made.steps["train"] + 1000
    assert made.settings["values"] == "by hand"


def test_continuous_actions_and_features_train_too():
    env = envs.make("Pendulum-v1", horizon=10)
    policy = policies.make("linear", env)
    made = train(env, policy, "advantage", episodes=8, epochs=2, critic=SMALL)
    assert set(made.checkpoints["late"]) == set(policy.state_dict())
    assert all(bool((made.checkpoints["late"][k] != made.checkpoints["init"][k]).any()) for k in made.checkpoints["init"])


def test_a_critic_that_diverges_is_one_sentence():
    env, policy = hand.world()
    with pytest.raises(InputError, match=r"Finite critics were expected .* lower critic.lr=1e\+30\.$"):
        run("value_baseline", env, policy, epochs=1, dtype="float32", critic=CriticUpdates(hidden=(8,), lr=1e30))


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"lr": 0.0}, r"A positive critic.lr \(of at most 1e\+30\) was expected, but it is 0.0"),
        ({"lr": float("nan")}, "A positive critic.lr"),
        ({"train_v_iters": -1}, "critic.train_v_iters must be a whole number of at least 0"),
        ({"hidden": (0,)}, "critic.hidden must be a whole number of at least 1"),
    ],
)
def test_settings_of_critics_are_checked(setting, sentence):
    with pytest.raises(InputError, match=sentence):
        CriticUpdates(**setting)


def test_the_network_is_that_of_measurements():
    env, _ = hand.world()
    assert type(new_network(env, SMALL, Streams(0).sequence("train_fit"), torch.float32, "cpu")) is CriticNetwork
