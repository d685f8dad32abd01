"""varlab's worlds under Gymnasium ids: single episodes for other libraries, tensors and exact values for ``envs.make``."""

import subprocess
import sys
from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from registered_worlds import DoubledReward
from scipy.stats import norm

import varlab
from varlab import envs, policies, rng, storage
from varlab.checks import InputError
from varlab.envs import closed_form, compounding, linear_drift, lqg, prompts, random_mdp, worlds
from varlab.envs.finite import FiniteSimulator
from varlab.envs.gymnasium import EpisodeSimulator
from varlab.estimators.baselines import ConstantBaseline
from varlab.oracles.gaussian import gaussian
from varlab.rollout import rollout

CPU = torch.device("cpu")
#: id → (the same world by its function, arguments of the id)
WORLDS = {
    "varlab/PointMass-v0": (lambda: lqg.point_mass(100, dim=1, noise=0.2), {"dim": 1, "noise": 0.2}),
    "varlab/RandomLQG-v0": (lambda: lqg.random_system(20, seed=3, state_dim=3), {"seed": 3, "state_dim": 3}),
    "varlab/GaussianBandit-v0": (lambda: closed_form.gaussian_bandit(4), {"dim": 4}),
    "varlab/TwoArms-v0": (closed_form.two_arms, {}),
    "varlab/SignFlip-v0": (closed_form.sign_flip, {}),
    "varlab/ConstantReturn-v0": (closed_form.constant_return, {}),
    "varlab/Compounding-v0": (lambda: compounding.compounding(growth=2.0), {"growth": 2.0}),
    "varlab/LinearDrift-v0": (lambda: linear_drift.linear_drift(10, noise=0.2), {"noise": 0.2}),
    "varlab/RandomMDP-v0": (
        lambda: envs.environment(random_mdp.random_mdp(1, states=4, outcomes=2), 10, "random MDP"),
        {"seed": 1, "states": 4, "outcomes": 2},
    ),
    "varlab/Prompts-v0": (lambda: prompts.prompts(3, 2, seed=1), {"prompts": 3, "answers": 2, "seed": 1}),
}  # fmt: skip
FINITE = [name for name, (make, _) in WORLDS.items() if make().finite is not None]
unbounded = pytest.mark.filterwarnings("ignore:.*Box (action|observation) space", "ignore:.*For Box action spaces")


@unbounded
@pytest.mark.parametrize("name", WORLDS)
def test_gymnasium_accepts_every_world(name):
    made = gymnasium.make(name, **WORLDS[name][1])
    check_env(made.unwrapped, skip_render_check=True)
    assert made.spec.max_episode_steps == made.unwrapped.world.horizon == gymnasium.make(name).unwrapped.world.horizon
    made.reset(seed=0)
    made.action_space.seed(0)
    for t in range(made.spec.max_episode_steps):
        *_, terminated, truncated, _ = made.step(made.action_space.sample())
        assert truncated == (t + 1 == made.spec.max_episode_steps)
        if terminated:
            break
    assert terminated or truncated


def test_the_list_of_ids_is_complete_and_importing_varlab_registers_nothing():
    assert set(WORLDS) == {i for i, s in gymnasium.registry.items() if s.namespace == "varlab"}
    code = """
import varlab, gymnasium
print(any(i.startswith("varlab/") for i in gymnasium.registry))
print(gymnasium.make("varlab.envs:varlab/TwoArms-v0").reset(seed=1))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["False", "(0, {})"]


@pytest.mark.parametrize("name", WORLDS)
def test_make_gives_the_world_itself(name):
    by_function, kwargs = WORLDS[name][0](), WORLDS[name][1]
    env = envs.make(name, **kwargs)
    assert type(env) is type(by_function) and env.name == name and env.horizon == by_function.horizon
    assert storage.digest(dict(env.identity)) == storage.digest(dict(by_function.identity))
    assert type(env.make_simulator(CPU)) is type(by_function.make_simulator(CPU))
    assert isinstance(env.make_simulator(CPU), FiniteSimulator) == (name in FINITE)
    assert envs.make(name, horizon=7, **kwargs).horizon == 7
    if kwargs:
        assert storage.digest(dict(envs.make(name).identity)) != storage.digest(dict(env.identity))


@pytest.mark.parametrize("name", WORLDS)
def test_one_seed_gives_one_episode_in_both_forms(name):
    """Noise included: the single environment and one episode of the tensor simulator, step for step."""
    kwargs = WORLDS[name][1]
    single, env = gymnasium.make(name, **kwargs), envs.make(name, **kwargs)
    single.action_space.seed(1)
    for seed in range(5):
        simulator = env.make_simulator(CPU)
        obs, _ = single.reset(seed=seed)
        drawn = np.random.default_rng(seed).integers(2**32, size=4).tolist()
        tensor = simulator.reset(1, np.random.SeedSequence(drawn))
        for t in range(env.horizon):
            assert np.array_equal(obs, tensor[0].numpy()) and single.observation_space.contains(obs)
            action = single.action_space.sample()
            obs, reward, terminated, truncated, _ = single.step(action)
            tensor, paid, ended = simulator.step(torch.as_tensor(action)[None])
            assert (reward, terminated) == (paid.item(), ended.item()) and type(reward) is float and type(terminated) is bool
            assert truncated == (t + 1 == env.horizon)
            if terminated:
                break
    first, again = single.reset()[0], single.reset()[0]  # without a seed the episodes go on differing
    random_start = {"varlab/RandomLQG-v0", "varlab/LinearDrift-v0", "varlab/RandomMDP-v0"}
    assert name not in random_start or len({str(x) for x in (first, again, *(single.reset()[0] for _ in range(9)))}) > 2


def test_without_noise_a_linear_system_follows_its_equations():
    class Still(envs.SingleEnv):
        def __init__(self):
            base = lqg.random_system(6, seed=2)
            nothing = torch.zeros(4, 4, dtype=torch.float64)
            super().__init__(lqg.environment(replace(base.system, noise=nothing, initial_covariance=nothing), 6))

    env = Still()
    system = {k: getattr(env.world.system, k).numpy() for k in env.world.system.__dataclass_fields__}
    state, actions = env.reset(seed=0)[0], np.random.default_rng(1).standard_normal((6, 2))
    np.testing.assert_array_equal(state, system["initial_mean"])
    for a in actions:
        following, reward, *_ = env.step(a)
        assert reward == pytest.approx(-state @ system["state_cost"] @ state - a @ system["action_cost"] @ a, rel=1e-12)
        np.testing.assert_allclose(following, system["a"] @ state + system["b"] @ a, rtol=1e-12)
        state = following.copy()
        following[:] = 1e9  # the caller's own array: the world must not see it


def test_a_finite_world_follows_its_outcome_lists():
    env = gymnasium.make("varlab/RandomMDP-v0", seed=5, states=3, actions=2, outcomes=2, ending=0.3)
    mdp = env.unwrapped.world.finite
    rows, count = {}, {}
    env.action_space.seed(0)
    state, _ = env.reset(seed=0)
    for _ in range(3000):
        action = int(env.action_space.sample())
        following, reward, terminated, truncated, _ = env.step(action)
        key = (state, action)
        count[key] = count.get(key, 0) + 1
        outcome = (following, reward, terminated)
        rows[key, outcome] = rows.get((key, outcome), 0) + 1
        state = env.reset()[0] if terminated or truncated else following
    z = []
    for (key, outcome), times in rows.items():
        tables = (mdp.next_state[key], mdp.reward[key], mdp.terminated[key])
        which = [o for o, found in enumerate(zip(*(x.tolist() for x in tables), strict=True)) if found == outcome]
        assert len(which) == 1  # rewards tell the outcomes apart
        p = float(mdp.probability[key][which[0]])
        z.append((times / count[key] - p) / np.sqrt(p * (1 - p) / count[key]))
    assert len(z) > 8 and np.abs(z).max() < norm.isf(1e-3 / (2 * len(z)))


@pytest.mark.parametrize("name", ["varlab/RandomMDP-v0", "varlab/RandomLQG-v0", "varlab/Compounding-v0"])
def test_both_forms_have_one_distribution(name):
    env = envs.make(name, horizon=5)
    one_by_one = replace(env, make_simulator=lambda device: EpisodeSimulator(name, device), part_size=256)
    policy = policies.make("linear", env, theta_seed=1).double()
    found = []
    for world, root in ((env, 1), (one_by_one, 2)):
        traj = rollout(world, policy, 2000 if world is env else 300, rng.Streams(root).sequence("rollout"))
        total = torch.zeros(len(traj), dtype=torch.float64).index_add(0, traj.episode, traj.reward)
        found.append([(x.double().mean(), x.double().var() / len(x)) for x in (total, total**2, traj.length.double())])
    for (mean, var), (other, other_var) in zip(*found, strict=True):
        assert abs(mean - other) <= norm.isf(1e-3 / 6) * (var + other_var) ** 0.5


def deviations(rows):
    """z of every sampled variance against the exact one."""
    return (rows.variance - rows.exact_variance) / (rows.variance * np.sqrt((rows["kurtosis"] - 1) / rows.n))


def test_formulas_hold_through_the_id():
    p = 0.8
    logits = torch.tensor([[0.0, np.log(p / (1 - p))]])
    env = envs.make("varlab/TwoArms-v0")
    table = policies.SoftmaxTable(env, logits).double()
    found = varlab.exact("varlab/TwoArms-v0", table, ["total_return", "value_baseline"])
    expected = [2 * closed_form.two_arms_variance(p, b) for b in (0.0, p)]
    np.testing.assert_allclose(found.variance, expected, rtol=1e-6)  # logits come in float32
    rows = varlab.measure("varlab/TwoArms-v0", table, ["total_return", "value_baseline"], n=2000, dtype="float64").summary
    np.testing.assert_allclose(rows.exact_variance, expected, rtol=1e-6)
    assert deviations(rows).abs().max() < 3.5 and set(rows.env) == {"varlab/TwoArms-v0"}

    env = envs.make("varlab/ConstantReturn-v0")
    found = varlab.exact(env, policies.SoftmaxTable(env).double(), ["total_return", "reward_to_go"])
    np.testing.assert_allclose(found.variance, [0.0, 0.5], atol=1e-15)

    env = envs.make("varlab/SignFlip-v0")
    policy = policies.Linear(env).double()
    policy.net.bias.requires_grad_(False)
    policy.net.bias.data.zero_()
    slope = policy.net.weight.detach().diff(dim=0).item()
    expected = closed_form.sign_flip_derivatives(1 / (1 + np.exp(-slope)), 0.5)
    for weighting, key in ((True, "J_gamma"), (False, "dropped")):
        mean = varlab.exact(env, policy, "reward_to_go", gamma=0.5, discount_weighting=weighting).mean
        np.testing.assert_allclose(np.ravel(mean), [-expected[key], expected[key]], rtol=1e-12)

    env = envs.make("varlab/GaussianBandit-v0", dim=6)
    policy = policies.Linear(env, log_std=0.0).double()
    policy.net.bias.data.zero_()
    policy.net.weight.requires_grad_(False)
    policy.log_std.requires_grad_(False)
    phi = ["total_return", "value_baseline", ConstantBaseline(fitted=-8.0)]
    expected = [6 * closed_form.gaussian_bandit_variance(6, b) for b in ("none", "value", "optimal")]
    np.testing.assert_allclose(gaussian(env, policy, phi).variance, expected, rtol=1e-12)
    rows = varlab.measure(env, policy, phi[:2], n=20_000, dtype="float64", seed=1).summary
    np.testing.assert_allclose(rows.exact_variance, expected[:2], rtol=1e-10)
    assert deviations(rows).abs().max() < 3.5


def test_a_point_mass_is_measured_with_exact_values_by_its_id():
    env = envs.make("varlab/PointMass-v0", horizon=8, noise=0.01)
    policy = policies.make("linear", env)
    rows = varlab.measure(env, policy, ["total_return", "reward_to_go", "value_baseline"], n=10_000, seed=3).summary
    assert (rows.reference_kind == "exact").all() and rows.horizon.eq(8).all() and deviations(rows).abs().max() < 3.5
    assert rows.exact_variance.is_monotonic_decreasing


def test_random_termination_keeps_the_tables_of_a_finite_world_and_takes_the_oracle_from_a_linear_one():
    ended = envs.make("varlab/RandomMDP-v0", continuation=0.8)
    plain = envs.make("varlab/RandomMDP-v0")
    table = policies.make("softmax_table", plain)
    assert varlab.exact(ended, table, "reward_to_go").j == pytest.approx(
        varlab.exact(plain, table, "reward_to_go", gamma=0.8).j, rel=1e-12
    )
    linear = envs.make("varlab/PointMass-v0", horizon=6, continuation=0.8)
    policy = policies.make("linear", linear)
    rows = varlab.measure(linear, policy, ["total_return", "reward_to_go"], n=200).summary
    assert rows.exact_variance.isna().all() and (rows.reference_kind != "exact").all()
    with pytest.raises(InputError):
        varlab.exact(linear, policy, "total_return")


def test_a_step_that_cannot_be_is_told():
    arms, push = gymnasium.make("varlab/TwoArms-v0").unwrapped, gymnasium.make("varlab/PointMass-v0").unwrapped
    with pytest.raises(InputError, match=r"none has begun.*call reset\(\)"):
        arms.step(0)
    arms.reset(seed=0)
    for wrong in (2, -1, 0.5, True, [0], None):
        with pytest.raises(InputError, match=r"An action in Discrete\(2\) was expected by two arms"):
            arms.step(wrong)
    assert arms.step(np.int64(1))[1:3] == (1.0, True)
    with pytest.raises(InputError, match="it ended"):
        arms.step(0)
    arms.reset()
    assert arms.step(0)[1:3] == (0.0, True)
    push.reset(seed=0)
    for wrong in (np.zeros(3), 0.0, [np.nan, 0.0], "up"):
        with pytest.raises(InputError, match="An action in Box"):
            push.step(wrong)
    push.step([0, 1])
    push.step(np.zeros(2, np.float32))


@pytest.mark.parametrize(
    ("name", "kwargs", "words"),
    [
        ("varlab/PointMass-v0", {"nonsense": 1}, "varlab/PointMass-v0 could not be made with .*nonsense"),
        ("varlab/PointMass-v0", {"mass": 0.0}, "varlab/PointMass-v0 could not be made with .*mass.*division by zero"),
        ("varlab/PointMass-v0", {"dim": 0}, "^dim must be a whole number"),
        ("varlab/PointMass-v0", {"noise": -1.0}, "^A symmetric noise without negative eigenvalues"),
        ("varlab/TwoArms-v0", {"p": 0.5}, "varlab/TwoArms-v0 could not be made with .*'p'"),
        ("varlab/RandomLQG-v0", {"seed": None}, "^seed must be a whole number"),
        ("varlab/RandomMDP-v0", {"seed": 1.5}, "^seed must be a whole number"),
        ("varlab/RandomMDP-v0", {"rewards": "norml"}, "No law of rewards is called 'norml'.*normal"),
        ("varlab/RandomMDP-v0", {"ending": 1.5}, r"ending must lie in \[0, 1\]"),
        ("varlab/RandomMDP-v0", {"reward_scale": np.inf}, "Finite rewards were expected"),
        ("varlab/Compounding-v0", {"stay": 2.0}, r"stay must lie in \[0, 1\]"),
        ("varlab/Compounding-v0", {"rungs": 0}, "rungs must be a whole number"),
        ("varlab/GaussianBandit-v0", {"dim": 2.5}, "dim must be a whole number"),
        ("point_mass", {}, "No environment is called 'point_mass'; the nearest ids are varlab/PointMass-v0"),
        ("varlab/RandomLGQ-v0", {}, "the nearest ids are varlab/RandomLQG-v0"),
        ("sign_flip", {}, "varlab/SignFlip-v0"),
    ],
)  # fmt: skip
def test_what_cannot_be_made_is_one_sentence(name, kwargs, words):
    with pytest.raises(InputError, match=words) as caught:
        envs.make(name, **kwargs)
    assert "\n" not in str(caught.value)


class Mine(envs.SingleEnv):
    """A user's own outcome lists under an id of her own."""

    def __init__(self, prize=2.0):
        lists = [[[(0.5, 0, 1.0, False), (0.5, 0, prize, True)]], [[(1.0, 0, 0.0, True)]]]
        super().__init__(envs.environment(envs.FiniteMDP.from_lists(lists, [1.0, 0.0]), 9, "mine"))


def test_own_worlds_and_wrapped_ones():
    check_env(Mine(), skip_render_check=True)
    gymnasium.register("TestMine-v0", entry_point=Mine, max_episode_steps=9)
    gymnasium.register(
        "TestDoubledMine-v0", entry_point=Mine, max_episode_steps=9, additional_wrappers=(DoubledReward.wrapper_spec(),)
    )
    env, doubled = envs.make("TestMine-v0", prize=3.0), envs.make("TestDoubledMine-v0", prize=3.0)
    assert env.finite.reward.max() == 3.0 and env.name == "TestMine-v0"
    assert doubled.finite is None and isinstance(doubled.make_simulator(CPU), EpisodeSimulator)
    traj = rollout(doubled, policies.make("linear", doubled), 50, rng.Streams(0).sequence("rollout"))
    assert set(traj.reward.tolist()) == {2.0, 6.0}
    assert worlds.world_of(gymnasium.make("CartPole-v1")) is None
