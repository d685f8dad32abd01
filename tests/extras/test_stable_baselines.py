"""PPO and A2C agents of Stable-Baselines3, trained here, as θ: probabilities are its own, and scores are autograd's."""

from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hydra import compose, initialize_config_dir
from stable_baselines3 import A2C, DQN, PPO
from torch import nn

import varlab
from varlab import configure, envs, policies, scores
from varlab.checks import InputError
from varlab.policies import stable_baselines
from varlab.training import train

CONF = str(Path(__file__).resolve().parents[2] / "conf")


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def cartpole(tmp_path_factory):
    """PPO after 4,096 steps of CartPole-v1: (agent, file)."""
    agent = PPO("MlpPolicy", "CartPole-v1", n_steps=512, seed=0, device="cpu").learn(4096)
    path = tmp_path_factory.mktemp("ppo") / "cartpole.zip"
    agent.save(path)
    return agent, path


@pytest.fixture(scope="module")
def pendulum(tmp_path_factory):
    """A2C after 2,000 steps of Pendulum-v1: (agent, file)."""
    agent = A2C("MlpPolicy", "Pendulum-v1", seed=0, device="cpu").learn(2000)
    path = tmp_path_factory.mktemp("a2c") / "pendulum.zip"
    agent.save(path)
    return agent, path


AGENTS = {"cartpole": "CartPole-v1", "pendulum": "Pendulum-v1"}


@pytest.fixture(params=list(AGENTS))
def loaded(request):
    """(agent, world, varlab's policy, its file)."""
    agent, path = request.getfixturevalue(request.param)
    env = envs.make(AGENTS[request.param], horizon=50)
    return agent, env, stable_baselines.load(path, env, trust=True), path


def seen(agent, n=200):
    generator = torch.Generator().manual_seed(0)
    obs = torch.randn(n, *agent.observation_space.shape, generator=generator)
    action = agent.policy.get_distribution(obs).distribution.sample()
    return obs, action


def test_log_probabilities_are_those_of_stable_baselines(loaded):
    agent, _, policy, _ = loaded
    obs, action = seen(agent)
    with torch.no_grad():
        theirs = agent.policy.get_distribution(obs).log_prob(action)
        torch.testing.assert_close(policies.log_prob(policy(obs), action), theirs, rtol=0, atol=1e-6)
        torch.testing.assert_close(policies.log_prob(policy(obs), action), agent.policy.evaluate_actions(obs, action)[1], rtol=0,
                                   atol=1e-6)  # fmt: skip
    assert theirs.shape == (200,) and float(theirs.std()) > 0.01


def test_action_probabilities_and_means_are_those_of_stable_baselines(loaded):
    agent, env, policy, _ = loaded
    obs, _ = seen(agent)
    with torch.no_grad():
        ours, theirs = policy(obs), agent.policy.get_distribution(obs).distribution
        if env.discrete_actions:
            torch.testing.assert_close(ours.probs, theirs.probs, rtol=0, atol=1e-6)
        else:
            torch.testing.assert_close(ours.base_dist.loc, theirs.mean, rtol=0, atol=1e-6)
            torch.testing.assert_close(ours.base_dist.scale, theirs.stddev, rtol=0, atol=1e-6)


def test_theta_is_the_actor_alone(loaded):
    agent, _, policy, _ = loaded
    actor = [p for name, p in agent.policy.named_parameters() if "value" not in name and "vf" not in name]
    assert policies.num_parameters(policy) == sum(p.numel() for p in actor) < sum(p.numel() for p in agent.policy.parameters())
    assert all(p.requires_grad for p in policy.parameters())


def test_scores_are_factored_and_equal_autograd_of_stable_baselines(loaded):
    agent, _, policy, _ = loaded
    obs, action = seen(agent, 20)
    made = scores.make(policy, obs, action)
    assert made.kind == "factored"
    phi = torch.linspace(-1, 1, 20)
    ours = made.at(obs.unsqueeze(0), action.unsqueeze(0)).apply_sum(phi.view(1, 1, -1))[0]
    theirs = agent.policy
    names = ["log_std"] if hasattr(theirs, "log_std") else []
    names = [n for n, _ in theirs.named_parameters() if "policy_net" in n or "action_net" in n] + names
    wanted = [dict(theirs.named_parameters())[n] for n in names]
    grads = torch.autograd.grad((phi * theirs.get_distribution(obs).log_prob(action)).sum(), wanted)
    torch.testing.assert_close(ours, torch.cat([g.flatten() for g in grads]), rtol=1e-4, atol=1e-5)
    assert float(ours.norm()) > 1e-2


def test_the_agent_is_not_changed_by_what_is_done_with_its_policy(cartpole):
    agent, path = cartpole
    before = {k: v.clone() for k, v in agent.policy.state_dict().items()}
    env = envs.make("CartPole-v1", horizon=20)
    policy = stable_baselines.load(path, env, trust=True)
    train(env, policy, "reward_to_go", episodes=4, epochs=1, lr=0.1)
    assert all(torch.equal(v, agent.policy.state_dict()[k]) for k, v in before.items())


def test_global_randomness_is_left_alone(cartpole):
    torch.manual_seed(0)
    state = torch.get_rng_state()
    stable_baselines.load(cartpole[1], envs.make("CartPole-v1"), trust=True)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_agent_is_measured(loaded):
    _, env, policy, _ = loaded
    critic = varlab.values.CriticSettings(n=50, hidden=(16,), epochs=2)
    result = varlab.measure(env, policy, ["total_return", "value_baseline"], n=200, pilot=100, n_reference=200, critic=critic)
    assert (result.summary["variance"] > 0).all() and np.isfinite(result.summary["variance"]).all()


def test_a_trained_agent_returns_more_than_it_began_with(cartpole):
    """Sampled by varlab, its episodes are as long as Stable-Baselines3 finds them."""
    agent, path = cartpole
    env = envs.make("CartPole-v1")
    ours = varlab.rollout.rollout(
        env, stable_baselines.load(path, env, trust=True), 400, varlab.rng.Streams(0).sequence("rollout")
    )
    world, lengths = gymnasium.make("CartPole-v1"), []
    for seed in range(60):
        obs, _ = world.reset(seed=seed)
        over, steps = False, 0
        while not over:
            obs, _, terminated, truncated, _ = world.step(agent.predict(obs)[0])
            over, steps = terminated or truncated, steps + 1
        lengths.append(steps)
    mine = ours.length.double()
    spread = (float(mine.var()) / 400 + np.var(lengths, ddof=1) / 60) ** 0.5
    assert abs(float(mine.mean()) - np.mean(lengths)) < 3.5 * spread
    assert float(mine.mean()) > 40  # a fresh policy falls after about 22 steps


def composed(*words):
    with initialize_config_dir(version_base="1.3", config_dir=CONF):
        return compose("measure", list(words))


def test_the_command_line_loads_one(cartpole):
    words = ("env=cartpole", "theta=sb3", f"theta.path={cartpole[1]}", "n=100")
    made = configure.arguments(composed(*words, "theta.trust=true"))
    assert made["policy_label"] == "sb3" and made["theta"].startswith("sb3:")
    assert isinstance(made["policy"], stable_baselines.StableBaselinesPolicy)
    with pytest.raises(InputError, match="hold pickled code"):
        configure.arguments(composed(*words))


def test_an_agent_of_another_world_is_one_sentence(cartpole):
    for env_id in ("Acrobot-v1", "Pendulum-v1", "FrozenLake-v1"):
        with pytest.raises(InputError, match="choose the environment that it was trained in") as e:
            stable_baselines.load(cartpole[1], envs.make(env_id), trust=True)
        assert "\n" not in str(e.value)


def test_agents_of_other_kinds_and_damaged_files_are_one_sentence(cartpole, tmp_path):
    env = envs.make("CartPole-v1")
    DQN("MlpPolicy", "CartPole-v1", buffer_size=100).save(tmp_path / "dqn.zip")
    PPO("MlpPolicy", "Pendulum-v1", use_sde=True, n_steps=64).save(tmp_path / "sde.zip")
    (tmp_path / "torn.zip").write_bytes(cartpole[1].read_bytes()[:-200])
    for name, sentence in (("dqn", "A PPO or A2C agent was expected"), ("sde", "train it with use_sde=False"),
                           ("torn", "A file that model.save")):  # fmt: skip
        with pytest.raises(InputError, match=sentence) as e:
            stable_baselines.load(tmp_path / f"{name}.zip", env, trust=True)
        assert "\n" not in str(e.value)


class Pictures(gymnasium.Env):
    """Random pictures of 40 × 36 pixels in 3 colours."""

    observation_space, action_space = spaces.Box(0, 255, (40, 36, 3), np.uint8), spaces.Discrete(3)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.integers(0, 256, (40, 36, 3), dtype=np.uint8), {}

    def step(self, action):
        return self.np_random.integers(0, 256, (40, 36, 3), dtype=np.uint8), float(action), False, False, {}


def test_pictures_are_turned_and_scaled(tmp_path):
    agent = PPO("CnnPolicy", Pictures(), n_steps=8, batch_size=8, seed=0, device="cpu")
    with torch.no_grad():
        agent.policy.action_net.weight.mul_(100)  # so that a mistake would show
    agent.save(tmp_path / "pictures.zip")
    env = varlab.envs.base.Environment("pictures", 5, Pictures.observation_space, Pictures.action_space, lambda device: None)
    policy = stable_baselines.load(tmp_path / "pictures.zip", env, trust=True)
    obs = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (6, 40, 36, 3), dtype=np.uint8))
    with torch.no_grad():
        theirs = agent.policy.get_distribution(obs.permute(0, 3, 1, 2)).distribution.probs
        torch.testing.assert_close(policy(obs).probs, theirs, rtol=0, atol=1e-6)
    assert float(theirs.std(0).max()) > 1e-3


@pytest.mark.parametrize("shared", [True, False])
def test_extractors_with_weights_shared_or_not_and_discrete_observations(tmp_path, shared):
    """A shared extractor is reached by several paths in Stable-Baselines3; here by one, and functional scores leave it whole."""
    arguments = {"share_features_extractor": shared, "features_extractor_class": Squeezed, "net_arch": {"pi": [8], "vf": [4]}}
    agent = A2C("MlpPolicy", "FrozenLake-v1", policy_kwargs=arguments, seed=0, device="cpu").learn(100)
    agent.save(tmp_path / "lake.zip")
    policy = stable_baselines.load(tmp_path / "lake.zip", envs.make("FrozenLake-v1"), trust=True)
    obs, action = torch.arange(16), torch.arange(16) % 4
    with torch.no_grad():
        torch.testing.assert_close(
            policies.log_prob(policy(obs), action), agent.policy.get_distribution(obs).log_prob(action), rtol=0, atol=1e-6
        )
    before = {k: v.clone() for k, v in policy.state_dict().items()}
    functional = scores.FunctionalScores(policy)
    phi = torch.ones(1, 1, 16)
    slow = functional.at(obs.unsqueeze(0), action.unsqueeze(0)).apply_sum(phi)
    fast = scores.make(policy, obs, action)
    assert fast.kind == "factored"
    torch.testing.assert_close(fast.at(obs.unsqueeze(0), action.unsqueeze(0)).apply_sum(phi), slow, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(v, policy.state_dict()[k]) for k, v in before.items())
    assert any("features" in name for name in policies.parameters(policy))


class Squeezed(nn.Module):
    """A feature extractor with weights."""

    def __init__(self, observation_space):
        super().__init__()
        self.features_dim = 5
        self.linear = nn.Sequential(nn.Linear(16, 5), nn.Tanh())

    def forward(self, x):
        return self.linear(x)
