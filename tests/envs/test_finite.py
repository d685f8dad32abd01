"""Finite MDPs: the tables are the environment's own, and the simulator follows them."""

from collections import Counter, defaultdict

import gymnasium
import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from varlab import envs, policies, rng
from varlab.checks import InputError
from varlab.envs import FiniteMDP
from varlab.rollout import rollout

CPU = torch.device("cpu")
TOY = [
    ("FrozenLake-v1", {}), ("FrozenLake-v1", {"is_slippery": False}), ("FrozenLake-v1", {"map_name": "8x8"}),
    ("CliffWalking-v1", {}), ("CliffWalking-v1", {"is_slippery": True}), ("Taxi-v4", {}), ("Taxi-v4", {"is_rainy": True}),
]  # fmt: skip
#: Chance of a false alarm of a whole family of chi-square tests.
LEVEL = 1e-3


def outcomes(mdp, s, a):
    """Outcome → probability of one state and action, padding left out."""
    columns = (x[s, a].tolist() for x in (mdp.next_state, mdp.reward, mdp.terminated, mdp.probability))
    return {(n, r, e): p for n, r, e, p in zip(*columns, strict=True) if p > 0}


def random_mdp(seed, states=4, actions=3, width=5):
    """Dirichlet outcomes; rewards that differ between outcomes with the same next state."""
    draw = np.random.default_rng(seed)
    lists = [
        [
            [
                (p, int(draw.integers(states)), float(np.round(draw.normal(), 3)), bool(draw.random() < 0.2))
                for p in draw.dirichlet(np.ones(width))
            ]
            for _ in range(actions)
        ]
        for _ in range(states)
    ]
    return FiniteMDP.from_lists(lists, draw.dirichlet(np.ones(states)))


@pytest.mark.parametrize(("name", "kwargs"), TOY)
def test_toy_text_tables_equal_the_environments_own(name, kwargs):
    world = gymnasium.make(name, **kwargs).unwrapped
    mdp = envs.make(name, horizon=10, **kwargs).finite
    assert (mdp.num_states, mdp.num_actions) == (world.observation_space.n, world.action_space.n)
    for s in range(mdp.num_states):
        for a in range(mdp.num_actions):
            own = defaultdict(float)
            for p, s_next, r, end in world.P[s][a]:
                own[(int(s_next), float(r), bool(end))] += p
            own = {key: p for key, p in own.items() if p > 0}
            mine = outcomes(mdp, s, a)
            assert mine.keys() == own.keys() and all(abs(mine[k] - own[k]) < 1e-12 for k in own)
    np.testing.assert_allclose(mdp.initial.numpy(), world.initial_state_distrib, atol=1e-15)


def test_outcomes_that_share_the_next_state_and_differ_in_reward_stay_apart():
    mdp = envs.make("CliffWalking-v1", horizon=5, is_slippery=True).finite
    by_state = [Counter(n for n, _, _ in outcomes(mdp, s, a)) for s in range(48) for a in range(4)]
    assert sum(max(c.values()) > 1 for c in by_state) > 0
    # Beside the cliff, above the start: off the edge is −100 and back to 36, a slip down the safe way also ends in 36.
    found = outcomes(mdp, 36, 1)
    assert {(n, r) for n, r, _ in found} >= {(36, -100.0), (36, -1.0)}
    second_moment = (mdp.probability * mdp.reward**2).sum(-1)
    assert float((second_moment - mdp.expected_reward**2).max()) > 1000  # lost where R[s, a, s'] is averaged


def test_from_lists_joins_equal_outcomes_alone_pads_and_normalises():
    third = 0.3333333333
    lists = [
        [[(third, 1, 0.5, False), (third, 1, 0.5, False), (third, 1, -0.5, False)], [(1.0, 0, 2.0, True)]],
        [[(0.5, 0, 0.0, True), (0.5, 0, 0.0, False)], [(0.0, 1, 9.0, False), (1.0, 1, 0.0, False)]],
    ]
    mdp = FiniteMDP.from_lists(lists, [1.0, 0.0])
    assert mdp.probability.shape == (2, 2, 2) and mdp.probability.dtype == torch.float64
    assert outcomes(mdp, 0, 0) == pytest.approx({(1, 0.5, False): 2 / 3, (1, -0.5, False): 1 / 3}, abs=1e-15)
    assert outcomes(mdp, 0, 1) == {(0, 2.0, True): 1.0} and outcomes(mdp, 1, 1) == {(1, 0.0, False): 1.0}
    assert outcomes(mdp, 1, 0) == {(0, 0.0, True): 0.5, (0, 0.0, False): 0.5}
    torch.testing.assert_close(mdp.expected_reward, torch.tensor([[1 / 6, 2.0], [0.0, 0.0]], dtype=torch.float64))
    assert mdp.transition.tolist() == [[[0.0, pytest.approx(1.0)], [0.0, 0.0]], [[0.5, 0.0], [0.0, 1.0]]]


def test_reward_only_at_end_looks_at_what_can_happen():
    assert envs.make("FrozenLake-v1").finite.reward_only_at_end
    assert not envs.make("CliffWalking-v1", horizon=5).finite.reward_only_at_end
    lists = [[[(1.0, 0, 3.0, True), (0.0, 0, 1.0, False)]]]
    assert FiniteMDP.from_lists(lists, [1.0]).reward_only_at_end


def count_steps(simulator, s, a, draws):
    """Count outcomes of ``draws`` steps from one state and action."""
    simulator.state = torch.full((draws,), s)
    _, reward, end = simulator.step(torch.full((draws,), a))
    return Counter(zip(simulator.state.tolist(), reward.tolist(), end.tolist(), strict=True))


def p_value(count, expected):
    """Chi-square test of counted outcomes against probabilities; an impossible outcome has p-value 0."""
    if not count.keys() <= expected.keys():
        return 0.0
    if len(expected) == 1:
        return 1.0
    draws = sum(count.values())
    total = sum(expected.values())
    return chisquare([count[k] for k in expected], [draws * p / total for p in expected.values()]).pvalue


def smallest_p(mdp, table, draws=2000, seed=0):
    """The smallest p-value over all states and actions, times their number (Bonferroni)."""
    simulator = envs.environment(mdp, 5).make_simulator(CPU)
    simulator.reset(1, rng.Streams(seed).sequence("rollout"))
    pairs = [(s, a) for s in range(mdp.num_states) for a in range(mdp.num_actions)]
    return len(pairs) * min(p_value(count_steps(simulator, s, a, draws), outcomes(table, s, a)) for s, a in pairs)


@pytest.mark.parametrize("mdp", [random_mdp(0), random_mdp(1, width=1), envs.make("FrozenLake-v1").finite,
                                 envs.make("CliffWalking-v1", horizon=5, is_slippery=True).finite])  # fmt: skip
def test_simulator_frequencies_match_the_probabilities(mdp):
    assert smallest_p(mdp, mdp) > LEVEL


def test_wrong_tables_are_found():
    mdp = random_mdp(0)
    turned = FiniteMDP(mdp.probability.roll(1, -1), mdp.next_state, mdp.reward, mdp.terminated, mdp.initial)
    assert smallest_p(mdp, turned) < LEVEL
    slippery, straight = envs.make("FrozenLake-v1").finite, envs.make("FrozenLake-v1", success_rate=0.4).finite
    assert smallest_p(slippery, straight) < LEVEL
    # Swapped rewards of outcomes that share s' show too.
    lists = [[[(0.8, 0, 1.0, False), (0.2, 0, 0.0, False)]]]
    other = [[[(0.2, 0, 1.0, False), (0.8, 0, 0.0, False)]]]
    assert smallest_p(FiniteMDP.from_lists(lists, [1.0]), FiniteMDP.from_lists(other, [1.0])) < LEVEL


@pytest.mark.parametrize(("name", "kwargs", "s", "a"), [("FrozenLake-v1", {}, 9, 1),
                                                        ("CliffWalking-v1", {"is_slippery": True}, 25, 2),
                                                        ("Taxi-v4", {"is_rainy": True}, 123, 0)])  # fmt: skip
def test_the_environments_own_steps_follow_the_tables(name, kwargs, s, a):
    world = gymnasium.make(name, **kwargs).unwrapped
    world.reset(seed=4)
    count = Counter()
    for _ in range(3000):
        world.s = s
        s_next, r, end, _, _ = world.step(a)
        count[(int(s_next), float(r), bool(end))] += 1
    table = outcomes(envs.make(name, horizon=5, **kwargs).finite, s, a)
    assert len(table) == 3 and p_value(count, table) > LEVEL


def occupancy(mdp, pi, steps):
    """Probability of each state (and of having ended) after some steps, by plain sums."""
    d, ended = mdp.initial.tolist(), 0.0
    for _ in range(steps):
        new = [0.0] * mdp.num_states
        for s in range(mdp.num_states):
            for a in range(mdp.num_actions):
                for (s_next, _, end), p in outcomes(mdp, s, a).items():
                    flow = d[s] * float(pi[s, a]) * p
                    new[s_next], ended = new[s_next] + flow * (not end), ended + flow * end
        d = new
    return {**dict(enumerate(d)), "ended": ended}


@pytest.mark.parametrize("time", [0, 1, 4])
def test_visited_states_follow_the_law_of_the_chain(time):
    mdp, n = random_mdp(3), 20_000
    env = envs.environment(mdp, 6)
    policy = policies.make("softmax_table", env, theta_seed=2)
    pi = policy(torch.arange(4)).probs.detach()
    traj = rollout(env, policy, n, rng.Streams(1).sequence("rollout"))
    at = traj.state[traj.time == time].tolist()
    count = Counter(at) + Counter({"ended": n - len(at)})
    law = {k: p for k, p in occupancy(mdp, pi, time).items() if p > 0}
    assert p_value(count, law) > LEVEL
    wrong = occupancy(mdp, pi.roll(1, 0), time) if time else {**law, 0: law[1], 1: law[0]}
    assert p_value(count, wrong) < LEVEL


def test_rounding_never_selects_what_has_probability_zero(monkeypatch):
    tenth = torch.full((10,), 0.1, dtype=torch.float64)
    assert float(tenth.cumsum(0)[-1]) <= 1 - 2.0**-53  # the gap that a uniform number can fall into
    row = torch.cat([tenth, torch.zeros(2, dtype=torch.float64)])
    table = row.expand(12, 1, 12).contiguous()
    mdp = FiniteMDP(table, torch.arange(12).expand(12, 1, 12), torch.zeros(12, 1, 12), torch.zeros(12, 1, 12), row)
    simulator = envs.environment(mdp, 5).make_simulator(CPU)
    monkeypatch.setattr(torch, "rand", lambda *shape, dtype, **_: torch.full(shape, 1 - 2.0**-53, dtype=dtype))
    assert simulator.reset(3, rng.Streams(0).sequence("rollout")).tolist() == [9, 9, 9]
    assert simulator.step(torch.zeros(3, dtype=torch.int64))[0].tolist() == [9, 9, 9]


def test_features_are_seen_instead_of_the_index():
    seen = torch.tensor([[0.0, 1.0], [2.0, 3.0]], dtype=torch.float64)
    chain = FiniteMDP(*tables(2, 1, next_state=[[[1]], [[0]]]), torch.tensor([1.0, 0.0]), observations=seen)
    env = envs.environment(chain, 4, name="Chain")
    assert env.num_features == 2 and not env.discrete_observations and env.name == "Chain"
    traj = rollout(env, policies.make("linear", env), 2, rng.Streams(0).sequence("rollout"))
    assert traj.state.tolist() == [0, 1, 0, 1] * 2 and torch.equal(traj.obs, seen[traj.state])
    assert traj.last_state.tolist() == [0, 0] and torch.equal(traj.last_obs, seen[[0, 0]])


def tables(states, actions, **changed):
    """Probability, next state, reward and termination of a world with one outcome, some of them changed."""
    shape = (states, actions, 1)
    found = {
        "probability": torch.ones(shape), "next_state": torch.zeros(shape), "reward": torch.zeros(shape),
        "terminated": torch.zeros(shape),
    } | {k: torch.as_tensor(v, dtype=torch.float64) for k, v in changed.items()}  # fmt: skip
    return found["probability"], found["next_state"], found["reward"], found["terminated"]


def test_tables_of_any_dtype_become_float64():
    mdp = FiniteMDP(
        *tables(
            2,
            1,
        ),
        torch.tensor([1, 0]),
    )
    assert mdp.probability.dtype == mdp.reward.dtype == mdp.initial.dtype == mdp.expected_reward.dtype == torch.float64
    assert mdp.next_state.dtype == torch.int64 and mdp.terminated.dtype == torch.bool


@pytest.mark.parametrize(
    ("changed", "initial", "words"),
    [
        ({"probability": [[[0.9]], [[1.0]]]}, [1.0, 0.0], r"state 0, action 0 are \[0.9\]"),
        ({"probability": [[[1.0]], [[float("nan")]]]}, [1.0, 0.0], "state 1, action 0"),
        ({"probability": [[[1.0]], [[-1.0]]]}, [1.0, 0.0], "state 1, action 0"),
        ({}, [0.5, 0.4], "initial distribution"), ({}, [2.0, -1.0], "initial distribution"),
        ({}, [float("nan"), 1.0], "initial distribution"), ({}, [1.0], r"came \(2, 1, 1\) and \(1,\)"),
        ({"next_state": [[[2]], [[0]]]}, [1.0, 0.0], "Next states in 0 … 1"),
        ({"next_state": [[[0]], [[-1]]]}, [1.0, 0.0], "Next states in 0 … 1"),
        ({"reward": [[[0.0]], [[float("inf")]]]}, [1.0, 0.0], "state 1, action 0, outcome 0 pays inf"),
        ({"reward": [[[0.0]]]}, [1.0, 0.0], "one shape"),
    ],
)  # fmt: skip
def test_wrong_tables_are_refused_in_a_sentence(changed, initial, words):
    with pytest.raises(InputError, match=words):
        FiniteMDP(*tables(2, 1, **changed), torch.tensor(initial))


def test_lists_with_other_numbers_of_actions_are_refused():
    with pytest.raises(InputError, match="same 1 actions.*state 1 has 2"):
        FiniteMDP.from_lists([[[(1.0, 0, 0.0, False)]], [[(1.0, 0, 0.0, False)]] * 2], [1.0, 0.0])
