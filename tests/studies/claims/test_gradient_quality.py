"""Claims on gradients along training: a tiny run has every number, known cosines, fits and errors by hand, synthetic rows."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from varlab.analysis import agreement, planning
from varlab.analysis.estimates import styles
from varlab.checks import InputError
from varlab.estimators.base import Batch
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.studies import agents
from varlab.studies.claims import catalogue, gradient_quality, value_errors
from varlab.studies.claims.catalogue import CLAIMS, Budget
from varlab.studies.claims.cells import cell, row
from varlab.studies.claims.verdicts import Effect, decide
from varlab.studies.repeats import Estimates
from varlab.training import train
from varlab.types import Values

catalogue.load()
MINE = [c for c in CLAIMS.values() if c.study in ("gradient_quality", "value_errors")]
TINY = {
    "CartPole": replace(gradient_quality.COURSES["CartPole"], horizon=12, epochs={"init": 0, "late": 2}, episodes=8),
    "Pendulum": replace(gradient_quality.COURSES["Pendulum"], horizon=6, epochs={"init": 0, "late": 2}, episodes=4),
}


@pytest.fixture(scope="module")
def tiny():
    """Both studies on episodes of a few steps, batches of 40 pairs."""
    with pytest.MonkeyPatch.context() as patch:
        for module in (gradient_quality, value_errors):
            patch.setattr(module, "COURSES", TINY)
        patch.setattr(gradient_quality, "USUAL", 40)
        patch.setattr(gradient_quality, "PILOT", 50)
        return {name: catalogue.STUDIES[name].run(Budget("smoke", 0.05, 3)) for name in ("gradient_quality", "value_errors")}


@pytest.mark.parametrize("claim", MINE, ids=lambda c: c.id)
def test_a_tiny_run_has_every_number(tiny, claim):
    for found in (claim.effect(tiny[claim.study]), claim.control.effect(tiny[claim.study])):
        assert isinstance(found, Effect) and (math.isnan(found.value) or not found.low > found.high)
    if claim.study == "value_errors" or claim.id in ("IL-1a", "IL-1g"):
        assert np.isfinite(claim.effect(tiny[claim.study]).value)


def test_letters_are_complete():
    assert {c.id for c in MINE} == {
        *(f"IL-{i}{x}" for i in (1, 3, 4) for x in "abcdefgh"), *(f"IL-2{x}" for x in "abcdef"),
    }  # fmt: skip


@pytest.mark.parametrize("name", ["gradient_quality", "value_errors"])
def test_figures_draw(tiny, name):
    figure = catalogue.STUDIES[name].draw(tiny[name])
    assert isinstance(figure, styles.Figure)
    words = [t.get_text() for ax in figure.axes for t in (ax.title, *ax.get_yticklabels())]
    assert not any("_" in w for w in words) and len(figure.axes) == (6 if name == "gradient_quality" else 2)


def test_ratios_of_independent_estimates_know_both_errors():
    """Two agents of known cosine: the ratio of the measured ones lies in its interval, as wide as both errors make it."""

    def between(nsr, seed):
        x = np.eye(1, 20)[0] + np.random.default_rng(seed).standard_normal((400, 20)) * math.sqrt(nsr / 20)
        return agreement.between(x)

    truth = (planning.expected_cosine(4.0, 1, 20) / planning.expected_cosine(0.5, 1, 20)) ** 2
    hits, values = 0, []
    for i in range(100):
        found = gradient_quality.effect(gradient_quality.apart(between(4.0, 2 * i), between(0.5, 2 * i + 1)), 400, log=True)
        hits += found.low <= truth <= found.high
        values.append(math.log(found.value))
    assert hits >= 89 and abs(np.mean(values) - math.log(truth)) < 4 * np.std(values) / 10
    none = gradient_quality.effect(gradient_quality.apart(between(1e6, 1), between(0.5, 2)), 400, log=True)
    assert math.isnan(none.value) or none.low < 0.1


def test_counts_follow_the_budget():
    default, small, print_ = (catalogue.BUDGETS[name] for name in ("default", "smoke", "paper"))
    assert gradient_quality.counts("Pendulum", "late", default) == (6000, 1000)
    for world, stage in (("Pendulum", "init"), ("CartPole", "late")):
        assert gradient_quality.counts(world, stage, default) == (1000, 1000)
    assert gradient_quality.counts("Pendulum", "late", small) == (300, 100)
    assert gradient_quality.counts("Pendulum", "late", print_) == (10_000, 10_000)


def test_references_are_means_of_blocks():
    mean = np.arange(300.0).reshape(100, 1, 3)
    made = gradient_quality.reference_of(Estimates(mean, ("a",), 4, 0), "a")
    np.testing.assert_allclose(made.block_mean[0], mean[:2, 0].mean(0))
    np.testing.assert_allclose(made.grad, mean[:, 0].mean(0))
    assert made.block_count.tolist() == [8] * 50 and made.n == 400


def test_agents_are_states_of_one_run():
    course = TINY["CartPole"]
    found = agents.agents(replace(course, epochs={"init": 0, "mid": 1, "late": 2}), 5)
    start = found["init"].policy
    run = train(
        course.world(), start, "gae(lam=0.95)", epochs=2, episodes=8, lr=course.lr, normalise=True, gamma=course.gamma,
        discount_weighting=False, seed=5, checkpoints=[1],
    )  # fmt: skip
    for label, at in (("init", "init"), ("mid", "1"), ("late", "late")):
        for a, b in zip(found[label].policy.state_dict().values(), run.checkpoints[at].values(), strict=True):
            assert torch.equal(a, b)
    for name, x in run.critic.items():
        assert torch.equal(x, found["late"].critic[name])
    assert any(not torch.equal(x, found["mid"].critic[name]) for name, x in run.critic.items())


def test_a_measurement_reads_the_agents_own_critic():
    agent = agents.agents(replace(TINY["CartPole"], epochs={"late": 2}), 5)["late"]
    traj = agent.rollout(20, "rollout")
    v = agent.job("value_baseline").source(traj, frozenset({"v"})).v
    hidden, x = agent.critic, traj.obs
    for layer in ("0", "2"):
        x = torch.tanh(x @ hidden[f"v.{layer}.weight"].T + hidden[f"v.{layer}.bias"])
    x = (x @ hidden["v.4.weight"].T + hidden["v.4.bias"]).squeeze(-1)
    np.testing.assert_allclose(v.numpy(), (hidden["shift"] + hidden["scale"] * x).numpy(), rtol=1e-5)


def test_a_fit_on_many_episodes_knows_the_returns():
    """CartPole for 12 steps: nearly nothing ends, so that V is the sum of a geometric series in the steps left."""
    agent = agents.agents(replace(TINY["CartPole"], epochs={"late": 1}), 5)["late"]
    critic = agent.fitted(500, replace(gradient_quality.FIT, epochs=40, minibatch=512))
    traj = agent.rollout(200, "rollout")
    v = critic(traj, frozenset({"v"})).v
    assert float(value_errors.relative_error(traj, v, Batch(traj, Values(), agent.course.gamma).reward_to_go).value) < 0.12
    early = (traj.time == 0).nonzero().squeeze(1)
    assert v[early].mean() == pytest.approx((1 - 0.97**12) / 0.03, rel=0.05)


def test_relative_errors_by_hand():
    env = TINY["CartPole"].world()
    agent = agents.agents(replace(TINY["CartPole"], epochs={"late": 1}), 5)["late"]
    traj = rollout(env, agent.policy, 60, Streams(0).sequence("rollout"))
    generator = torch.Generator().manual_seed(0)
    guess, target = (torch.randn(traj.steps, generator=generator, dtype=torch.float64) for _ in range(2))
    found = value_errors.relative_error(traj, guess, target)
    assert found.value == pytest.approx(float((guess - target).abs().sum() / target.abs().sum()), rel=1e-12) and found.n == 60
    assert value_errors.relative_error(traj, torch.zeros_like(target), target).value == 1.0
    assert value_errors.relative_error(traj, 1.5 * target, target).value == pytest.approx(0.5, rel=1e-12)
    aims = value_errors.targets(agent, traj, guess, torch.zeros(60, dtype=torch.float64))
    g = agent.course.gamma
    rows = slice(0, int(traj.length[0]))
    delta = traj.reward[rows] + g * torch.cat([guess[rows][1:], torch.zeros(1)]) - guess[rows]
    gae = [sum((g * 0.95) ** k * delta[t + k] for k in range(len(delta) - t)) for t in range(len(delta))]
    np.testing.assert_allclose(aims[value_errors.TARGET][rows], guess[rows] + torch.stack(gae), rtol=1e-10)
    to_go = [sum(g**k * traj.reward[t + k] for k in range(len(delta) - t)) for t in range(len(delta))]
    np.testing.assert_allclose(aims[value_errors.RETURNS][rows], torch.stack(to_go), rtol=1e-10)


def made_up(what, world, stage, label, value, half=0.02):
    return row(label, Effect(value, value - half, value + half, 1000), panel="", what=what, world=world, stage=stage)


CASES = [
    ("IL-1a", ("between", "CartPole", "late", "late"), 0.3, 0.7), ("IL-1c", ("between", "Pendulum", "init", "init"), 0.3, 0.7),
    ("IL-1d", ("between", "CartPole", "late", "late over init"), 0.8, 1.2),
    ("IL-1f", ("between", "both", "init", "harder over easier"), 0.5, 1.5),
    ("IL-1g", ("closed form", "CartPole", "late", "late"), 1.05, 1.3),
    ("IL-1h", ("closed form", "Pendulum", "late", "late"), 0.95, 0.7),
    ("IL-2b", ("to gradient", "Pendulum", "late", "late"), 0.3, 0.7),
    ("IL-2c", ("batches for 0.9", "CartPole", "late", "late"), 3.0, 1.2),
    ("IL-2f", ("batches", "Pendulum", "late", "late over init"), 1.5, 0.5),
    ("IL-3a", ("V* over learned", "CartPole", "late", "late"), 1.2, 0.9),
    ("IL-3d", ("learned over zero", "Pendulum", "late", "late"), 2.0, 0.9),
    ("IL-3e", ("gain of learned", "CartPole", "late", "late"), 0.05, 0.4),
    ("IL-3g", ("share of learned", "CartPole", "late", "late"), 0.3, 0.8),
    ("IL-3h", ("share of learned", "Pendulum", "late", "late"), 0.4, 0.7),
    ("IL-4a", ("learned V", "CartPole", "late", "returns"), 0.5, 0.2),
    ("IL-4d", ("learned V", "Pendulum", "late", "V* of many episodes"), 0.6, 0.1),
    ("IL-4e", ("learned V", "CartPole", "late", "own GAE target"), 0.1, 0.3),
    ("IL-4h", ("ratio", "Pendulum", "late", "returns over target"), 4.0, 1.3),
]


@pytest.mark.parametrize(("name", "key", "true", "false"), CASES, ids=[c[0] for c in CASES])
def test_synthetic_rows_are_judged(name, key, true, false):
    claim = CLAIMS[name]
    for value, outcome in ((true, "holds"), (false, "violated")):
        rows = pd.DataFrame([made_up(*key, value), made_up(key[0], "elsewhere", *key[2:], 9.0)])
        assert decide(name, claim.effect(rows), *claim.question).outcome == outcome
    edge = claim.bound + (claim.margin if claim.direction == "within" else 0.0)
    wide = pd.DataFrame([made_up(*key, edge * 1.001, half=0.3)])
    assert decide(name, claim.effect(wide), *claim.question).outcome == "undecided"


def test_numbers_of_a_tiny_run_are_what_they_say(tiny):
    table = tiny["gradient_quality"]
    for world, course in TINY.items():
        where = {"panel": "", "world": world, "stage": "late"}
        one, ten, tenth, closed, few, many, pairs = (
            cell(table, what=what, label="late", **where).value for what in (
                "between", "ten times the batch", "closed form of a tenth", "closed form", "batches for 0.1", "batches for 0.9",
                "pairs",
            )
        )  # fmt: skip
        noise = closed / one - 1  # NSR/N at the usual batch
        if np.isfinite(closed):
            assert ten == pytest.approx((1 + noise) / (1 + noise / 10), rel=1e-9)
            assert tenth == pytest.approx(one * (1 + 10 * noise), rel=1e-9)
        if np.isfinite(many):
            assert many / few == pytest.approx((0.81 / 0.19) / (0.01 / 0.99), rel=1e-9)
        assert pairs == pytest.approx(40, rel=0.35) and course.horizon < 20
    n = {
        (w, stage): cell(table, what="between", label=stage, panel="", world=w, stage=stage).n
        for w, course in TINY.items() for stage in course.epochs
    }  # fmt: skip
    # Batches of whole episodes of 6 steps: the same at both stages of Pendulum, so that n is as the number of estimates.
    assert n["Pendulum", "late"] == 3 * n["Pendulum", "init"]
    with pytest.raises(InputError, match="One row with"):
        cell(table, what="between", world="CartPole", stage="late", label="nowhere")
