"""The whole loop: it raises J, gives the same bits again, keeps the checkpoints it was asked for, and refuses in one sentence."""

import re

import hand
import pandas as pd
import pytest
import torch

import varlab
from varlab import envs, policies, storage
from varlab.checks import InputError
from varlab.training import COLUMNS, plan, train
from varlab.values import FunctionValues, expected_return


def exact_return(env, policy):
    with torch.no_grad():
        return float(expected_return(env.finite, policy.double(), 1.0, env.horizon))


@pytest.mark.parametrize(
    ("name", "phi", "settings", "least"),
    [
        ("varlab/TwoArms-v0", "total_return", {"epochs": 60, "optimizer": "ascent", "lr": 0.5}, 0.2),
        ("FrozenLake-v1", "value_baseline", {"epochs": 60, "optimizer": "adam", "lr": 0.2, "values": "exact"}, 0.1),
    ],
)
def test_training_raises_the_exact_return(name, phi, settings, least):
    env = envs.make(name)
    policy = policies.make("softmax_table", env, scale=0.1)
    made = train(env, policy, phi, **{"episodes": 40, **settings})
    init, mid, late = (exact_return(env, made.policy_at(c)) for c in ("init", "mid", "late"))
    assert late > init + least and init < mid
    assert late == exact_return(env, made.policy)


def test_ascent_downhill_would_lower_it():
    """The sign of the step is seen by the test above: one step up raises J by about α ‖∇J‖²."""
    env = envs.make("varlab/TwoArms-v0")
    policy = policies.make("softmax_table", env, scale=0.1)
    made = train(env, policy, "total_return", episodes=20_000, epochs=1, optimizer="ascent", lr=0.01)
    rise = exact_return(env, made.policy) - exact_return(env, policy)
    assert rise == pytest.approx(0.01 * made.curve["gradient_norm"][0] ** 2, rel=0.1) and rise > 0


def test_same_seed_same_bits_and_another_seed_others():
    env, policy = hand.world()
    settings = {"episodes": 20, "epochs": 4}
    one, same, other = (train(env, policy, "gae(lam=0.9)", seed=s, **settings) for s in (0, 0, 1))
    pd.testing.assert_frame_equal(one.curve, same.curve, check_exact=True)
    for made, equal in ((same, True), (other, False)):
        assert torch.equal(hand.table(one.checkpoints["late"]), hand.table(made.checkpoints["late"])) is equal
    assert all(torch.equal(x, same.critic[k]) for k, x in one.critic.items())
    assert one.digest == same.digest != other.digest and one.curve["setting"][0] == other.curve["setting"][0]


def test_global_randomness_is_neither_used_nor_moved():
    env, policy = hand.world()
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one = train(env, policy, "value_baseline", episodes=10, epochs=2)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(hand.table(train(env, policy, "value_baseline", episodes=10, epochs=2).checkpoints["late"]),
                       hand.table(one.checkpoints["late"]))  # fmt: skip


def test_checkpoints_are_where_they_were_asked_for(tmp_path):
    """A longer run passes through the shorter one's θ; files give the same bits back."""
    env, policy = hand.world()
    settings = {"episodes": 10, "optimizer": "ascent", "lr": 0.3}
    made = train(env, policy, "reward_to_go", epochs=5, checkpoints=[0, 3, 5], **settings)
    assert list(made.checkpoints) == ["init", "mid", "late", "0", "3", "5"]
    shorter = {e: train(env, policy, "reward_to_go", epochs=e, **settings).checkpoints["late"] for e in (2, 3, 5)}
    for name, epoch in (("mid", 2), ("3", 3), ("late", 5), ("5", 5)):
        assert torch.equal(hand.table(made.checkpoints[name]), hand.table(shorter[epoch])), name
    for name in ("init", "0"):
        assert torch.equal(hand.table(made.checkpoints[name]), hand.table(policy.state_dict()).float()), name
    for name in made.checkpoints:
        path, other = tmp_path / f"theta_{name}.npz", policies.make("softmax_table", env, theta_seed=9)
        storage.save_theta(path, made.policy_at(name))
        storage.load_theta(path, other)
        assert torch.equal(hand.table(other.state_dict()), hand.table(made.checkpoints[name]).to(other.logits.weight.dtype))


def test_the_curve_has_its_columns_and_says_what_was_run():
    env, policy = hand.world()
    made = train(env, policy, "reward_to_go", episodes=10, epochs=3, env_label="mine", seed=4)
    assert tuple(made.curve.columns) == COLUMNS and made.curve["epoch"].tolist() == [0, 1, 2]
    assert set(made.curve["env"]) == {"mine"} and set(made.curve["seed"]) == {4} and set(made.curve["digest"]) == {made.digest}
    assert made.curve["steps"].iloc[-1] == made.steps["train"] and made.curve["steps"].is_monotonic_increasing
    assert made.settings["numerics"] == varlab.NUMERICS


def test_progress_is_told():
    env, policy = hand.world()
    told = []
    train(env, policy, "reward_to_go", episodes=5, epochs=3, progress=lambda *x: told.append(x))
    assert told == [("train", 1, 3), ("train", 2, 3), ("train", 3, 3)]


def test_a_trained_theta_can_be_measured():
    env, policy = hand.world()
    made = train(env, policy.float(), "reward_to_go", episodes=20, epochs=2)
    result = varlab.measure(env, made.policy_at("mid"), ["reward_to_go"], n=100, pilot=50)
    assert result.summary["variance"][0] > 0


def test_settings_reach_the_digest_and_equal_ones_agree():
    env, policy = hand.world()
    words = (
        {}, {"epochs": 3}, {"episodes": 3}, {"steps": 30}, {"optimizer": "ascent"}, {"lr": 0.1}, {"normalise": True},
        {"gamma": 0.9}, {"discount_weighting": False}, {"at_cut": "terminal"}, {"values": "exact"}, {"checkpoints": [1]},
        {"seed": 2}, {"dtype": "float64"},
    )  # fmt: skip
    digests = [plan(env, policy, "gae(lam=0.9)", **word).digest for word in words]
    assert len(set(digests)) == len(words)
    assert plan(env, policy, "gae(lam=0.9)", episodes=64, gamma=1).digest == digests[0]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"phi": "gea"}, "No Φ is called 'gea'; the nearest names are gae"),
        ({"phi": ["gae", "td_residual"]}, r"One Φ was expected to train with, but gae\(lam=0.95\), td_residual came"),
        ({"epochs": 0}, "epochs must be a whole number of at least 1, but it is 0"),
        ({"episodes": 2.5}, "episodes must be a whole number"),
        ({"steps": -1}, "steps must be a whole number"),
        (
            {"steps": 10, "episodes": 10},
            "A batch of episodes or a quota of steps was expected, but episodes=10 and steps=10 came",
        ),
        ({"group_size": 3, "episodes": 10}, "Whole groups of group_size=3 episodes were expected .*, but episodes=10"),
        (
            {"group_size": 3, "steps": 10},
            "Whole groups .* but a quota of steps leaves their number open; set for instance episodes=24",
        ),
        ({"optimizer": "adma"}, "No optimizer is called 'adma'; the nearest names are adam"),
        ({"lr": 0.0}, r"A positive lr \(of at most 1e\+30\) was expected, but it is 0.0"),
        ({"lr": float("nan")}, "A positive lr .* but it is nan"),
        ({"lr": 1e31}, "A positive lr .* but it is 1e\\+31"),
        ({"gamma": 1.1}, r"gamma must lie in \[0, 1\]"),
        ({"at_cut": "bootstrp"}, "'bootstrp'; the nearest names are bootstrap"),
        ({"values": "exct"}, "'exct'; the nearest names are exact"),
        ({"env": "CartPole-v1", "values": "exact"}, "A finite MDP, or a linear system .* was expected for values=exact"),
        ({"checkpoints": [9], "epochs": 5}, "Checkpoints of at most 5 epochs were expected, but checkpoints names 9"),
        ({"checkpoints": [-1]}, "checkpoints must be a whole number of at least 0"),
        (
            {"phi": "all_action", "normalise": True},
            r"A Φ of the steps taken alone was expected with normalise=true, but all_action",
        ),
        ({"seed": -1}, "seed must be a whole number of at least 0"),
        ({"dtype": "float31"}, "float31"),
        ({"device": "abacus"}, "abacus"),
    ],
)
def test_bad_settings_are_one_sentence(settings, sentence):
    env, policy = hand.world()
    if settings.get("env"):
        policy = policies.make("mlp", envs.make(settings["env"]))
    with pytest.raises(InputError) as caught:
        plan(**{"env": env, "policy": policy, "phi": "gae", **settings})
    assert re.match(f".*{sentence}", str(caught.value)) and "\n" not in str(caught.value)


def test_a_theta_that_diverges_is_one_sentence():
    env = envs.make("varlab/RandomMDP-v0", reward_scale=1e12)
    with pytest.raises(InputError, match=r"A finite θ was expected on varlab/RandomMDP-v0.* lower lr=1e\+30") as caught:
        train(env, policies.make("softmax_table", env), "reward_to_go", episodes=10, epochs=1, optimizer="ascent", lr=1e30)
    assert "\n" not in str(caught.value)


def test_values_that_are_not_finite_are_one_sentence():
    env, policy = hand.world()
    bad = FunctionValues(v=lambda obs, t: torch.full_like(obs, float("nan"), dtype=torch.float64))
    with pytest.raises(
        InputError, match=r"A finite gradient was expected on .*, but value_baseline gave NaN or infinity in epoch 0"
    ):
        train(env, policy, "value_baseline", episodes=10, epochs=1, values=bad)
