"""Claims about Monte Carlo values: a tree counted by loops, ranks of binomials, and the measured variance of cloned values."""

from functools import cache
from itertools import product

import numpy as np
import pandas as pd
import pytest
import torch

import varlab
from varlab import policies
from varlab.envs.finite import environment
from varlab.oracles.exact import world_of
from varlab.studies.claims import cloned_values as study
from varlab.studies.claims.catalogue import CLAIMS, Budget
from varlab.studies.claims.verdicts import decide
from varlab.values import CriticSettings, ExactValues

MINE = [c for c in CLAIMS.values() if c.study == "cloned_values"]


@cache
def tree():
    made = study.Tree.of(np.random.default_rng(5), choices=2, depth=3)
    env = environment(made.mdp, 3, "tree")
    policy = policies.make("linear", env, theta_seed=1, scale=2.0).double()
    source = ExactValues.of(made.mdp, policy, 1.0, 3)
    return made, env, policy, source, study.by_state(made, source.v.numpy())


def test_states_are_paths_and_values_chances_of_success():
    """V of a state by listing all paths from it; effects are drawn again in the same order."""
    made, _, policy, _, v = tree()
    generator, effects = np.random.default_rng(5), [np.zeros(1)]
    for d in range(3):
        effects.append(generator.standard_normal((2**d, 2)))
    pi = policy(made.mdp.seen).probs.detach().numpy()

    def number(path):
        return int(made.first[len(path)]) + sum(a * 2 ** (len(path) - 1 - u) for u, a in enumerate(path))

    def index(path):
        return number(path) - int(made.first[len(path)])

    for start in ((), (0,), (1,), (0, 1), (1, 0)):
        total = 0.0
        for rest in product((0, 1), repeat=3 - len(start)):
            path = start + rest
            score = sum(effects[d + 1][index(path[:d]), path[d]] for d in range(3))
            chance = np.prod([pi[number(path[:d]), path[d]] for d in range(len(start), 3)])
            total += chance / (1 + np.exp(-score))
        assert v[number(start)] == pytest.approx(total, rel=1e-12)
    assert made.mdp.observations[number((1, 0))].tolist() == [0, 1, 1, 0, 0, 0]


def test_ranks_of_continuations_are_those_of_all_counts():
    v = np.array([0.2, 0.7, 0.7])
    right = study.of_continuations(v, 2)
    chances = {x: [(1 - x) ** 2, 2 * x * (1 - x), x**2] for x in (0.2, 0.7)}
    expected = sum(
        chances[0.7][i] * chances[0.2][j] * (1.0 if i > j else 0.5 if i == j else 0.0) for i in range(3) for j in range(3)
    )
    pair = np.array([1]), np.array([0])
    assert right(*pair)[0] == pytest.approx(expected) == right(*pair[::-1])[0]
    assert right(np.array([1]), np.array([2]))[0] == pytest.approx(0.5)


def test_ranks_of_tables():
    v, i, j = np.array([0.1, 0.5, 0.9]), np.array([0, 0, 1]), np.array([1, 2, 2])
    assert study.of_table(v, v)(i, j).tolist() == [1.0, 1.0, 1.0]
    assert study.of_table(v, -v)(i, j).tolist() == [0.0, 0.0, 0.0]
    assert study.of_table(v, np.array([0.0, 0.0, 1.0]))(i, j).tolist() == [0.5, 1.0, 1.0]


def test_ranks_are_weighted_by_visits():
    made, _, _, _, v = tree()
    visits = np.zeros((3, len(v)))
    visits[0, 0], visits[1, 2] = 1.0, 0.4
    found = study.ranked(made, visits, lambda i, j: (np.minimum(i, j) == 5).astype(float))
    assert found == [0.0, 1.0]  # node 2 has the children 5 and 6


def test_the_excess_of_cloned_values_is_measured():
    """The variance of returns less V with values by state cloning, sampled, is the exact one plus the excess."""
    _, env, policy, source, v = tree()
    plain = varlab.exact(env, policy, "value_baseline").variance[0]
    world = world_of(env, policy, source, 1.0, None, "bootstrap")
    expected = plain + study.cloning_excess(world, v, 2)
    row = varlab.measure(
        env, policy, "value_baseline", n=20_000, pilot=100, values="cloning", continuations=2, dtype="float64", exact=False
    ).summary.iloc[0]
    assert row.variance_low < expected < row.variance_high
    assert row.variance_low > plain * 1.02  # the excess is seen, not lost in the interval


def made_up(**values):
    """Rows in which every statistic is far on one side of its bound, but those named."""
    learned, cloned = study.LEARNED, study.CLONED
    keys = [
        ("rank, all", learned), ("rank, all", cloned), ("rank, late", learned), ("rank, early", learned), ("gain, late", cloned),
        ("gain, early", cloned), ("variance ratio", cloned), ("variance ratio", "K = 1"), ("cost ratio", cloned),
        ("cost ratio", "exact V at the same cost"),
    ]  # fmt: skip
    return pd.DataFrame(
        [(s, label, x, x - 0.02, x + 0.02, 10) for (s, label), x in zip(keys, values["of"], strict=True)],
        columns=["statistic", "label", "value", "value_low", "value_high", "n"],
    )


@pytest.mark.parametrize("claim", MINE, ids=lambda c: c.id)
def test_claims_follow_their_rows(claim):
    high = made_up(of=(0.9,) * 4 + (0.3, 0.3, 2.0, 2.0, 2.0, 2.0))
    low = made_up(of=(0.5,) * 4 + (-0.3, -0.3, 0.5, 0.5, 0.5, 0.5))
    above = {"VP-1c": ("holds", "violated")}.get(claim.id, ("violated", "holds"))
    for table, outcome in zip((high, low), above, strict=True):
        assert decide(claim.id, claim.effect(table), *claim.question).outcome == outcome
        assert decide(claim.id, claim.control.effect(table), *claim.control_question).outcome == outcome


def test_rows_of_a_small_tree(monkeypatch):
    for name, value in (("CHOICES", 2), ("DEPTH", 4), ("TRAJECTORIES", 4), ("CRITIC", CriticSettings(epochs=2, hidden=(8,)))):
        monkeypatch.setattr(study, name, value)
    draw_tree = study.Tree.of
    monkeypatch.setattr(study.Tree, "of", classmethod(lambda cls, generator: draw_tree(generator, 2, 4)))
    table = study.cloned_values(Budget("smoke", 0.01))
    ranks = table[table["statistic"] == "rank"]
    assert len(ranks) == 2 * 3 and ranks["value"].between(0, 1).all()
    every = table.set_index(["statistic", "label"])["value"]
    cloned = ranks[ranks["label"] == study.CLONED]["value"].to_numpy()
    assert every["rank, all", study.CLONED] == pytest.approx(cloned.mean())
    assert every["rank, late", study.CLONED] == pytest.approx(cloned[2:].mean())
    gain = every["rank, all", study.CLONED] - every["rank, all", study.LEARNED]
    assert every["gain, all", study.CLONED] == pytest.approx(gain)
    assert 1 < every["cost ratio", "exact V at the same cost"] < every["cost ratio", study.CLONED]
    assert len(study.draw(table).axes[0].lines) >= 3
    assert not torch.isnan(torch.tensor(table["value"].to_numpy())).any()
