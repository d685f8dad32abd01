"""The recursion on moments with the score, in every choice of coordinates, beside its definition written as loops over θ."""

import numpy as np
import pytest
import torch
from enumerated_moments import Masked, Temperature
from finite_worlds import random_logits, random_mdp

from varlab import envs, policies
from varlab.oracles import coordinates
from varlab.oracles.coordinates import NetworkLogits, Parameters, Step, TableLogits
from varlab.oracles.world import Successors, build
from varlab.policies import SoftmaxTable

S, A, OUTCOMES, T, MOMENTS = 3, 2, 3, 3, 3


def world_with(policy):
    return build(random_mdp(0), policies.prepare(policy, torch.float64, "cpu"), None, None, 1.0, T)


WORLDS = {
    "table": lambda: world_with(SoftmaxTable(envs.environment(random_mdp(0), T), random_logits(1, random_mdp(0)))),
    "more parameters than pairs": lambda: world_with(Temperature(S, A)),
    "fewer parameters than pairs": lambda: world_with(Masked()),
}


def random_steps(world):
    """Steps with every flow; the first two moments share one weight, so that one product serves both."""
    draw, steps = np.random.default_rng(4), []
    for _ in range(T):
        shared, *others = draw.standard_normal((1 + 2 * MOMENTS, S, A, OUTCOMES)) * world.going_on
        flow = {(i // 2, 1 + i % 2): weight for i, weight in enumerate(others)}
        flow = {(0, 0): shared, (1, 0): shared} if len(steps) % 2 else {(0, 0): shared, (1, 0): shared, (2, 0): shared, **flow}
        pairs = {j: draw.standard_normal((S, A, OUTCOMES)) * world.going_on for j in range(MOMENTS)}
        steps.append(Step(flow, draw.standard_normal((MOMENTS, S, A)), pairs))
    return steps


def by_loops(world, steps, f):
    """The sum of pairs plus Σ f z², and Σ f z, straight from the definition."""
    p = world.num_parameters
    z = np.zeros((S, A, p))
    for s in range(S):
        z[s][:, slice(None) if world.support is None else world.support[s]] = world.scores[s]
    moments, total = np.zeros((MOMENTS, S, p)), np.einsum("sa,sap->p", f, z**2)
    for step in steps:
        new = np.zeros_like(moments)
        for s in range(S):
            for a in range(A):
                for i in range(MOMENTS):
                    new[i, s] += world.pi[s, a] * z[s, a] * step.scored[i, s, a]
                for o in range(OUTCOMES):
                    to = world.next_state[s, a, o]
                    for (i, j), weight in step.flow.items():
                        new[i, s] += weight[s, a, o] * moments[j, to]
                    for j, weight in step.pairs.items():
                        total += weight[s, a, o] * z[s, a] * moments[j, to]
        moments = new
    return np.einsum("sa,sap->p", f, z), total


@pytest.mark.parametrize("part", (1, 2**16))
@pytest.mark.parametrize("name", WORLDS)
def test_pairs_of_steps_beside_loops(name, part, monkeypatch):
    monkeypatch.setattr(coordinates, "PART", part)
    monkeypatch.setattr(coordinates, "COLUMNS", 2)
    world = WORLDS[name]()
    steps, f = random_steps(world), np.random.default_rng(5).standard_normal((S, A))
    first, second = by_loops(world, steps, f)
    forms = (coordinates.choose,) if world.support is not None else (coordinates.choose, NetworkLogits, Parameters)
    for form in forms:
        found = form(world)
        coordinates.pairs_of_steps(world, found, steps)
        np.testing.assert_allclose(found.first(f), first, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(found.second(f), second, rtol=1e-12, atol=1e-12 * np.abs(second).max())


def test_each_policy_gets_the_cheapest_coordinates():
    assert [type(coordinates.choose(make())) for make in WORLDS.values()] == [TableLogits, NetworkLogits, Parameters]


def test_outcomes_of_one_row_that_share_a_next_state_are_added_up():
    """The matrix of weights, entry by entry; outcomes that cannot go on are not in its structure."""
    world = WORLDS["table"]()
    weight = np.random.default_rng(6).standard_normal((S, A, OUTCOMES)) * world.going_on
    by_state, by_pair = np.zeros((S, S)), np.zeros((S * A, S))
    for (s, a, o), w in np.ndenumerate(weight):
        by_state[s, world.next_state[s, a, o]] += w
        by_pair[s * A + a, world.next_state[s, a, o]] += w
    for made, dense in ((world.by_state(weight), by_state), (world.by_pair(weight), by_pair)):
        np.testing.assert_allclose(made.toarray(), dense, rtol=1e-14, atol=1e-15)
        assert made.nnz <= (world.going_on > 0).sum()
    one, other = world.by_state(weight), world.by_state(2 * weight)  # two matrices of one structure keep their own numbers
    np.testing.assert_allclose(other.toarray(), 2 * one.toarray())
    assert isinstance(world.by_state, Successors)
