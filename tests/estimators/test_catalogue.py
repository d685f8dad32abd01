"""Every registered member is held to its declared property on three worlds, by enumeration: E ĝ is a sum, nothing is sampled.

A new member needs no line here, unless it takes arguments, units or another world, or declares itself biased: then
its bias is written down, with sign and size, and shown.
"""

import pytest
import torch
from contract import UNIT_WORLDS, WORLDS, bound, direction_bias, distance, exact_mean

from varlab.estimators import REGISTRY, make, parse

#: Members at other arguments than their defaults, beside them; five steps would be the whole of these episodes.
FURTHER = {
    "n_step": ["n_step(1)", "n_step(2)"],
    "gae": ["gae(0.0)", "gae(0.5)", "gae(1.0)"],
    "importance_weighted": [
        f"importance_weighted('{base}', '{form}')"
        for base in ("total_return", "reward_to_go", "value_baseline")
        for form in ("per_decision", "trajectory")
    ],
    "surrogate": ["surrogate(1.0)"],
    "factorised_baseline": ["factorised_baseline(of='optimal')"],
    "doubly_robust": ["doubly_robust(0.7)"],
    "optimal_baseline": [
        f"optimal_baseline({of}, {base})"
        for of in ("constant", "time", "state", "features", "parameter")
        for base in ("reward_to_go", "total_return")
        if (of, base) != ("constant", "reward_to_go")
    ],
    "score_weighted_baseline": ["score_weighted_baseline(time)", "score_weighted_baseline(state)"],
    "in_sample_baseline": [f"in_sample_baseline({of})" for of in ("time", "state", "features", "value")],
    "natural_gradient": [f"natural_gradient('{base}')" for base in ("total_return", "reward_to_go", "q_value", "advantage")],
}
#: Trajectories of a group and of a unit, where a member needs more than two of each.
UNITS = {"james_stein": (2, 6)}
#: Members that need continuous actions are held to their property in the file named here.
ELSEWHERE = {"q_prop": "test_q_prop.py"}
#: Declared biased: the world on which it is shown, and the bias there. For a gradient ⟨E ĝ − ∇J, ∇J⟩/‖∇J‖², for a free scale the
#: sine of the angle to ∇J; to three digits.
BIASED = {
    "group_mean": ("prompts", -0.5),
    "group_normalised": ("prompts", 0.110),
    "in_sample_baseline": ("two steps", -0.442),
    "in_sample_baseline(of=time)": ("two steps", -0.510),
    "in_sample_baseline(of=state)": ("two steps", -0.510),
    "in_sample_baseline(of=features)": ("two steps", -0.510),
    "in_sample_baseline(of=value)": ("two steps", -0.510),
    "normalised_advantage": ("two steps", 0.0489),
    "step_mean": ("two steps", 0.0644),
}
ROUNDING = 1e-10


def members():
    names = [name for name in REGISTRY if name not in ELSEWHERE]
    defaults = [make(name) for name in names if name != "n_step"]
    return [*defaults, *(parse(text) for name in names for text in FURTHER.get(name, []))]


def worlds_of(estimator):
    return UNIT_WORLDS if estimator.batchwise else WORLDS


def mean(estimator, world, **settings):
    if estimator.batchwise:
        group, unit = UNITS.get(estimator.name, (2, 2))
        settings |= {"group": group, "unit": unit}
    return exact_mean(estimator, world, **settings)


def truth(estimator, world, gamma):
    """∇J, or A ∇J for a natural gradient."""
    fitted = bound(estimator, world, gamma)
    gradient = world.gradient(gamma)
    return gradient if fitted.matrix is None else fitted.matrix @ gradient


@pytest.mark.parametrize("gamma", (1.0, 0.9))
@pytest.mark.parametrize("estimator", members(), ids=lambda e: e.label)
def test_what_a_member_declares_holds_on_three_worlds(estimator, gamma):
    """Unbiased always: with values that are nobody's; given exact values: with those, and visibly not with the others."""
    if estimator.unbiased == "biased":
        assert estimator.label in BIASED or estimator.name in BIASED, "write down its bias and show it"
        return
    wrong = []
    for name, make_world in worlds_of(estimator).items():
        world = make_world()
        goal, size = truth(estimator, world, gamma), float(world.gradient(gamma).norm())
        assert size > 0.05, name
        assert distance(mean(estimator, world, gamma=gamma), goal) < ROUNDING * max(1, float(goal.norm())), name
        wrong.append(distance(mean(estimator, world, gamma=gamma, source=world.wrong), goal))
    if estimator.unbiased == "always":
        assert max(wrong) < ROUNDING * 10
    else:
        assert max(wrong) > 1e-3, "it claims less than it keeps: raise the claim"


@pytest.mark.parametrize("name", BIASED)
def test_what_is_declared_biased_is_shown_biased(name):
    """Sign and size on one world, exactly."""
    estimator, (where, size) = parse(name), BIASED[name]
    assert estimator.unbiased == "biased", "it is unbiased after all: raise the claim"
    world = worlds_of(estimator)[where]()
    found, gradient = mean(estimator, world), world.gradient()
    if estimator.target == "direction":
        bias = direction_bias(found, gradient)
    else:
        bias = float((found - gradient) @ gradient / (gradient @ gradient))
    assert bias == pytest.approx(size, abs=5e-4)
    assert abs(size) > 1e-3


@pytest.mark.parametrize("label", [e.label for e in members() if e.off_policy])
def test_what_holds_whoever_acts_holds_where_another_policy_acts(label):
    for make_world in WORLDS.values():
        world = make_world()
        noise = torch.randn(world.logits.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        other = world.logits + 0.5 * noise
        for gamma in (1.0, 0.9):
            found = mean(parse(label), world, gamma=gamma, behaviour=other)
            assert distance(found, world.gradient(gamma)) < ROUNDING
        assert distance(mean(make("reward_to_go"), world, behaviour=other), world.gradient()) > 1e-3


def test_every_member_is_here_or_named():
    assert {e.name for e in members()} | set(ELSEWHERE) == set(REGISTRY)
    assert all(REGISTRY[name] for name in (*FURTHER, *UNITS, *ELSEWHERE)) and not set(ELSEWHERE) & set(FURTHER)
