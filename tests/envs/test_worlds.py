"""The door ``envs.make``: every kind of world runs, and what cannot be used is told in one sentence."""

import gymnasium
import numpy as np
import pytest
import registered_worlds  # noqa: F401  (importing registers)
import torch

from varlab import envs, policies, rng
from varlab.checks import InputError
from varlab.rollout import rollout

#: id → horizon to ask for (None: the registered limit), horizon expected
WORLDS = {
    "CartPole-v1": (None, 500), "Acrobot-v1": (None, 500), "Pendulum-v1": (None, 200), "MountainCarContinuous-v0": (None, 999),
    "FrozenLake-v1": (None, 100), "CliffWalking-v1": (50, 50), "Taxi-v4": (200, 200),
}  # fmt: skip
SEED = rng.Streams(11).sequence("rollout")


def sample(env, policy=None, n=5, **kwargs):
    return rollout(env, policy or policies.make("mlp", env, hidden=(8,)), n, SEED, **kwargs)


@pytest.mark.parametrize("name", WORLDS)
def test_every_world_runs(name):
    asked, horizon = WORLDS[name]
    env = envs.make(name, horizon=asked)
    assert (env.name, env.horizon) == (name, horizon)
    own = gymnasium.make(name)
    assert env.observation_space == own.observation_space and env.action_space == own.action_space
    kinds = ["linear", "mlp", *(["softmax_table"] if env.discrete_observations else [])]
    for kind in kinds:
        traj = sample(env, policies.make(kind, env), cut=12)
        assert (
            len(traj) == 5
            and traj.steps == int(traj.length.sum())
            and 1 <= int(traj.length.min()) <= int(traj.length.max()) <= 12
        )
        assert bool((traj.terminated ^ traj.truncated).all()) and traj.reward.dtype == torch.float64
        assert traj.obs.shape == (traj.steps, *own.observation_space.shape) and len(traj.last_obs) == 5
        assert all(own.observation_space.contains(o.numpy() if o.dim() else int(o)) for o in traj.obs)
        assert traj.action.shape == (traj.steps, *own.action_space.shape)
        assert (traj.state is not None) == (env.finite is not None)
    assert (env.finite is not None) == (name in ("FrozenLake-v1", "CliffWalking-v1", "Taxi-v4"))


class Balance(torch.nn.Module):
    """Keeps the pole up for ever: pushes towards the side to which it falls."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([0.1, 0.3, 1.0, 1.0]))

    def forward(self, obs):
        x = 1e3 * (obs @ self.weight)
        return torch.distributions.Categorical(logits=torch.stack([-x, x], -1))


def test_the_horizon_replaces_the_time_limit_of_cartpole():
    for horizon in (7, 500, 640):
        traj = sample(envs.make("CartPole-v1", horizon=horizon), Balance(), n=3)
        assert traj.length.tolist() == [horizon] * 3 and bool(traj.truncated.all()) and traj.horizon == horizon


@pytest.mark.parametrize(("name", "limit"), [("Pendulum-v1", 200), ("Acrobot-v1", 500)])
def test_the_horizon_replaces_the_time_limit_of_single_episodes(name, limit):
    for horizon in (3, limit + 20):
        env = envs.make(name, horizon=horizon)
        still = policies.make("linear", env, scale=0.0, log_std=-9.0)
        if env.discrete_actions:
            with torch.no_grad():
                still.net.bias.copy_(torch.tensor([-50.0, 50.0, -50.0]))  # no torque: Acrobot never swings up
        assert sample(env, still, n=2).length.tolist() == [horizon] * 2


def test_a_world_whose_limit_is_its_own_code_is_refused_beyond_it():
    def message(n=2, gamma=None, **kwargs):
        env = envs.make("TestSelfTruncating-v0", horizon=10, **kwargs)
        env = env if gamma is None else envs.with_termination(env, gamma)
        with pytest.raises(InputError) as error:
            sample(env, n=n)
        return str(error.value)

    for text in (
        message(),
        message(once=True),
        message(gamma=1.0),
        message(gamma=0.9, n=50),
        message(gamma=0.9, n=50, once=True),
    ):
        assert "TestSelfTruncating-v0" in text and "after 5 steps" in text and "horizon=5" in text
    for kwargs in ({"horizon": 5}, {"horizon": 10, "ends": True}, {"horizon": 10, "limit": 11}):
        traj = sample(envs.make("TestSelfTruncating-v0", **kwargs))
        assert bool((traj.terminated == kwargs.get("ends", False)).all())
    traj = sample(envs.make("TestSelfTruncating-v0", horizon=10), cut=5)
    assert traj.length.tolist() == [5] * 5 and bool(traj.truncated.all())


@pytest.mark.parametrize(
    ("name", "near"),
    [("CartPol-v1", "CartPole-v1"), ("cartpole-v1", "CartPole-v1"), ("CartPole-v7", "CartPole-v1"),
     ("FrozenLake", "FrozenLake-v1"),
     ("Taxi-v3", "Taxi-v4"), ("nowhere:CartPole-v1", "CartPole-v1"), ("nothing/CartPole-v1", "CartPole-v1")],
)  # fmt: skip
def test_unknown_ids_name_the_nearest(name, near):
    if name in gymnasium.registry:
        pytest.fail(f"{name} is a known id: choose another unknown one")
    with pytest.raises(InputError, match=f"No environment is called '{name}'; the nearest ids are .*{near}"):
        envs.make(name)


def test_a_missing_horizon_is_asked_for():
    with pytest.raises(InputError, match="A horizon was expected for CliffWalking-v1.*horizon=50"):
        envs.make("CliffWalking-v1")


@pytest.mark.parametrize("horizon", [0, -3, 2.5, float("nan"), float("inf"), "many", True])
def test_a_horizon_is_a_positive_whole_number(horizon):
    with pytest.raises(InputError, match="horizon must be a whole number of at least 1"):
        envs.make("CartPole-v1", horizon=horizon)


def test_a_horizon_may_be_a_numpy_number():
    env = envs.make("CartPole-v1", horizon=np.int64(7))
    assert env.horizon == 7 and type(env.horizon) is int


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Blackjack-v1", r"observation space.*Tuple"), ("TestVectored-v0", r"action space.*MultiDiscrete"),
        ("TestMatrix-v0", r"Box with one axis.*\(2, 2\)"), ("TestShifted-v0", "starts at 0.*start=1"),
    ],
)  # fmt: skip
def test_unsupported_spaces_are_named(name, words):
    with pytest.raises(InputError, match=words):
        envs.make(name, horizon=5)


@pytest.mark.parametrize("kwargs", [{"nonsense": 1}, {"map_name": "3x3"}])
def test_arguments_that_the_world_refuses_are_named(kwargs):
    with pytest.raises(InputError, match="FrozenLake-v1 could not be made with .*" + next(iter(kwargs))):
        envs.make("FrozenLake-v1", **kwargs)


def test_wrappers_registered_with_a_toy_text_id_are_not_lost():
    env, plain = envs.make("TestDoubledLake-v0", is_slippery=False), envs.make("FrozenLake-v1", is_slippery=False)
    assert env.finite is None and plain.finite is not None
    path = torch.full((16, 4), -50.0)
    for state, action in {0: 1, 4: 1, 8: 2, 9: 1, 13: 2, 14: 2}.items():  # down and right to the goal
        path[state, action] = 50.0
    policy = policies.SoftmaxTable(plain, path)
    assert sample(plain, policy, n=3).reward.sum() == 3.0 and sample(env, policy, n=3).reward.sum() == 6.0


def test_a_world_whose_tables_do_not_tell_all_is_simulated_by_itself():
    env = envs.make("Taxi-v4", horizon=20, fickle_passenger=True)
    assert env.finite is None
    traj = sample(env, policies.make("softmax_table", env), n=3)
    assert traj.obs.dtype == torch.int64 and traj.state is None and traj.last_state is None


def test_an_observation_without_axes_is_one_feature():
    env = envs.make("TestScalar-v0", horizon=3)
    assert env.num_features == 1 and sample(env, n=2).obs.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("gamma", [0.0, 0.3, 0.9, 0.999])
@pytest.mark.parametrize("reward_max", [1e-3, 1.0, 100.0])
def test_horizon_for_is_the_smallest_horizon(gamma, reward_max):
    horizon = envs.horizon_for(gamma, reward_max)
    tail = reward_max / (1 - gamma)
    assert gamma**horizon * tail < 1e-6 and (horizon == 1 or gamma ** (horizon - 1) * tail >= 1e-6 * (1 - 1e-9))
    with pytest.raises(InputError, match="gamma"):
        envs.horizon_for(1.0, 1.0)
