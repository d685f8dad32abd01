"""Claims of Spinning Up: outcomes of the exact ones, controls of all, and the parts of the studies against other routes."""

import itertools
from functools import cache, partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch

import varlab.studies.claims.spinning_up  # enters the claims
from varlab import envs, policies, values
from varlab.analysis import style as styles
from varlab.estimators.base import Batch
from varlab.oracles.units import Listed
from varlab.rng import Streams
from varlab.rollout import rollout
from varlab.studies.claims import spinning_up_cartpole, spinning_up_code, spinning_up_exact, spinning_up_loss, spinning_up_order
from varlab.studies.claims import spinning_up_worlds as worlds
from varlab.studies.claims.catalogue import CLAIMS, STUDIES, Budget
from varlab.studies.claims.figures import figure_of
from varlab.studies.claims.judge import judge
from varlab.studies.claims.verdicts import decide
from varlab.types import Values

MINE = [c for c in CLAIMS.values() if c.family == "SU"]
VIOLATED = {"SU-3c", "SU-3f", "SU-3h", "SU-7a", "SU-7e", "SU-9a", "SU-11d"}
SAMPLED = {"su_cartpole", "su_simplest"}
QUICK = ("su_identities", "su_surrogate", "su_map", "su_counter", "su_q", "su_discount", "su_critics", "su_units")


@cache
def rows(name):
    """Rows at the least budget, with shorter episodes and smaller critics on CartPole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spinning_up_cartpole, "HORIZON", 25)
        light = partial(varlab.measure, critic=values.CriticSettings(n=200, hidden=(16,)))
        patch.setattr(spinning_up_cartpole, "varlab", SimpleNamespace(measure=light))
        return STUDIES[name].run(Budget("smoke", 0.01))


def outcome(claim, made, control=False):
    effect, question = (claim.control.effect, claim.control_question) if control else (claim.effect, claim.question)
    return decide(claim.id, effect(made), *question).outcome


@pytest.mark.parametrize("claim", MINE, ids=lambda c: c.id)
def test_claims_and_controls(claim):
    made = rows(claim.study)
    assert outcome(claim, made, control=True) == "violated"
    expected = "violated" if claim.id in VIOLATED else "holds"
    if claim.effect(made).is_exact:
        assert outcome(claim, made) == expected
    else:  # with few trajectories a sampled claim may stay open, but not on the other side
        assert outcome(claim, made) in (expected, "undecided")


def test_every_claim_of_the_catalogue_has_an_entry_and_every_study_draws():
    assert {c.catalogued for c in MINE} == {f"SU-{i}" for i in (*range(1, 16), 17)}
    studies = {c.study for c in MINE}
    assert studies == {*QUICK, *SAMPLED}
    for name in studies:
        assert isinstance(figure_of(name, rows(name), None), styles.Figure)
    table = judge(MINE, {n: rows(n) for n in studies}, dict.fromkeys(studies, "d"), Budget("smoke", 0.01))
    assert set(table["control_outcome"]) == {"violated"}


@pytest.mark.parametrize(("value", "expected"), [(0.5, "holds"), (1.5, "violated"), (1.01, "undecided")])
def test_ratios_on_cartpole_are_judged_against_one(value, expected):
    ends = value * 0.95, value * 1.05
    for claim_id, quantity, label in (("SU-7b", "part", "Var(G)/Var(R)"), ("SU-9c", "ratio to reward-to-go", "value_baseline")):
        made = pd.DataFrame([worlds.row(quantity, label, value, *ends, 500, panel="θ = 0")])
        assert outcome(CLAIMS[claim_id], made) == expected


@pytest.mark.parametrize(
    ("value", "half", "expected"), [(0.0, 0.003, "holds"), (0.05, 0.01, "violated"), (0.0, 0.02, "undecided")]
)
def test_squared_biases_are_judged_within_their_margin(value, half, expected):
    made = pd.DataFrame([
        worlds.row("squared bias", label, value, value - half, value + half, 500, panel="θ = 0")
        for label in ("total_return", "constant_baseline", "value_baseline")
    ])  # fmt: skip
    for claim_id in ("SU-1b", "SU-8b", "SU-8c"):
        assert outcome(CLAIMS[claim_id], made) == expected
    squares = made.assign(quantity="squared mean", label="past").head(1)
    assert outcome(CLAIMS["SU-6b"], squares) == expected


@pytest.mark.parametrize(("share", "first", "second"), [(0.8, "holds", "holds"), (0.2, "violated", "violated")])
def test_shares_that_fall_are_judged_against_one_half(share, first, second):
    labels = ("20 episodes, returns below 0", "20 episodes, returns above 0")
    made = pd.DataFrame([worlds.row("share that falls", label, share, share - 0.1, share + 0.1, 100) for label in labels])
    assert (outcome(CLAIMS["SU-3e"], made), outcome(CLAIMS["SU-3f"], made)) == (first, second)


def test_counter_examples_are_the_closed_forms():
    wide = rows("su_counter").dropna(subset="x").pivot(index=["panel", "x"], columns="label", values="value")
    bandit, constant = wide.loc["two arms"], wide.loc["constant return"]
    p = bandit.index.to_numpy()
    for label, b in (("reward_to_go", 0.0), ("value_baseline", p), ("1 − p", 1 - p), ("1", 1.0)):
        np.testing.assert_allclose(bandit[label], p * (1 - p) * (1 - p - b) ** 2, atol=1e-13)
    np.testing.assert_allclose(constant["reward_to_go"], p * (1 - p), atol=1e-13)
    np.testing.assert_allclose(constant["total_return"], 0.0, atol=1e-13)


def test_the_fork_by_hand():
    env, policy = spinning_up_order.fork()
    listed = Listed.of(env, policy)
    g = listed.gradients(("q_value", "reward_to_go"))[..., 0]
    np.testing.assert_allclose(g[:, 1], 0.0, atol=1e-15)
    mean, square = (sum(p * float(v) ** k for v, p in zip(g[:, 0], listed.probability, strict=True)) for k in (1, 2))
    assert square - mean**2 == pytest.approx(0.25)


def test_the_mean_over_steps_by_hand():
    env, logits = worlds.early_or_late(), np.array([[0.2, -0.3], [0.6, -0.1]])
    pi = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    score = {(s, a): np.eye(2)[s][:, None] * (np.eye(2)[a] - pi[s]) for s in range(2) for a in range(2)}
    paths = [  # probability, Σ z_t G_t, steps
        (pi[0, 0], score[0, 0], 1),
        (pi[0, 1] * pi[1, 0], -score[0, 1] - score[1, 0], 2),
        (pi[0, 1] * pi[1, 1], 2 * (score[0, 1] + score[1, 1]), 2),
    ]
    truth = sum(p * g for p, g, _ in paths)
    made = rows("su_units")
    for size in (2, 4):
        means = sum(
            np.prod([p for p, _, _ in unit]) * sum(g for _, g, _ in unit) / sum(n for *_, n in unit)
            for unit in itertools.product(paths, repeat=size)
        )
        cosine = (means * truth).sum() / np.linalg.norm(means) / np.linalg.norm(truth)
        found = worlds.read("sine", "step_mean", x=size)(made).value
        assert found == pytest.approx(np.sqrt(1 - cosine**2), rel=1e-6)
    own = sum(p * g / n for p, g, n in paths)
    policy = policies.SoftmaxTable(env, torch.from_numpy(logits))
    listed = Listed.of(env, policy)
    mean = listed.mean(listed.gradients(worlds.of_other("mean over its own steps")))[0]
    np.testing.assert_allclose(mean, own.ravel(), atol=1e-14)
    np.testing.assert_allclose(worlds.autograd(env, policy), truth.ravel(), atol=1e-14)


def test_wrong_weights_are_what_they_say():
    env, policy = worlds.small(1)
    traj = rollout(env, policy, 30, Streams(3).sequence("rollout"))
    q = torch.arange(float(len(traj.reward)), dtype=torch.float64)
    batch = Batch(traj, Values(q=q), 1.0)
    found = {n: worlds.of_other(n).phi(batch).tolist() for n in (
        "past", "past twice", "mean log-probability", "from the next step", "sees the action", "reward alone",
        "without the last step", "mean over its own steps",
    )}  # fmt: skip
    offsets, k = traj.offsets.tolist(), 0
    for i, j in zip(offsets[:-1], offsets[1:], strict=True):
        r = traj.reward[i:j].tolist()
        for t in range(len(r)):
            assert found["past"][k] == pytest.approx(sum(r[:t]))
            assert found["past twice"][k] == pytest.approx(sum(r) + sum(r[:t]))
            assert found["mean log-probability"][k] == pytest.approx(sum(r) / len(r))
            assert found["from the next step"][k] == pytest.approx(sum(r[t + 1 :]))
            assert found["sees the action"][k] == pytest.approx(sum(r[t:]) - 0.1 * k)
            assert found["reward alone"][k] == r[t]
            assert found["without the last step"][k] == (t < len(r) - 1)
            assert found["mean over its own steps"][k] == pytest.approx(sum(r[t:]) / len(r))
            k += 1


def test_actions_at_random_are_mixed_in():
    env, policy = worlds.small()
    obs = env.finite.seen
    plain, mixed = policy(obs).probs, worlds.Exploring(policy, 0.2)(obs).probs
    torch.testing.assert_close(mixed, 0.8 * plain + 0.1)


def test_the_loss_falls_to_its_minimum():
    c = torch.tensor([[1.0, 3.0], [0.0, 2.0], [0.0, 0.0]], dtype=torch.float64)
    start = torch.tensor([[0.3, -0.2], [0.1, 0.0], [1.0, 0.0]], dtype=torch.float64)
    path = spinning_up_loss.descend(c, start, 400)
    losses = [float(spinning_up_loss.loss(c, x)) for x in path]
    assert all(b < a for a, b in itertools.pairwise(losses))
    end = spinning_up_loss.minimum(c, start)
    torch.testing.assert_close(end[:2], torch.tensor([[0.25, 0.75], [0.0, 1.0]], dtype=torch.float64))
    torch.testing.assert_close(end[2], start[2].softmax(-1))
    least = float(-(c * end.clamp(min=1e-300).log()).sum())
    assert least < losses[-1] < least + 0.02
    leaf = start.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(spinning_up_loss.loss(c, leaf), leaf)
    torch.testing.assert_close(path[1], start - gradient / 4)


def test_the_gradient_of_the_loss_is_the_listed_one():
    env = spinning_up_loss.world(0, 0, 0.0)
    policy = worlds.table(env, 0)
    listed = Listed.of(env, policy)
    c = spinning_up_loss.counts(listed.traj, listed.probability)
    leaf = policy.logits.weight.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(-spinning_up_loss.loss(c, leaf), leaf)
    np.testing.assert_allclose(gradient.ravel(), worlds.autograd(env, policy), atol=1e-13)
    j = values.expected_return(env.finite, policy, 1.0, env.horizon)
    assert spinning_up_loss.performance(env, policy.logits.weight.detach().softmax(-1)) == pytest.approx(
        float(j.detach()), abs=1e-13
    )


def test_rewards_that_follow_the_step_make_the_gradient():
    cells = rows("su_map")
    cells = cells[(cells["quantity"] == "share") & (cells["label"] == "random MDP, exact")]
    assert cells["value"].sum() == pytest.approx(1, abs=1e-12)
    assert cells[cells["u"] < cells["t"]]["value"].abs().max() < 1e-14


def test_parts_of_the_variance_add_up_and_squares_are_unbiased():
    made = rows("su_cartpole")
    for panel in spinning_up_cartpole.THETA:
        part = made[(made["panel"] == panel) & (made["quantity"] == "part")].set_index("label")["value"]
        assert part[["Var(G)/Var(R)", "Var(D)/Var(R)", "2 Cov(G, D)/Var(R)"]].sum() == pytest.approx(1, abs=1e-12)
        assert part["trajectories saved"] == pytest.approx(1 - part["Var(G)/Var(R)"], abs=1e-12)
        # Var(R + D) = Var(R) + Var(D) + 2 Cov(R, D), where Cov(R, D) = Cov(G, D) + Var(D)
        twice = made[(made["panel"] == panel) & (made["quantity"] == "ratio to total return")]["value"].item()
        assert twice == pytest.approx(1 + 3 * part["Var(D)/Var(R)"] + part["2 Cov(G, D)/Var(R)"], rel=1e-6)  # float32 gradients
    env = envs.make("CartPole-v1", 20)
    policy = policies.Logistic(env, (0.0, 0.3, 1.0, 1.0))
    found = varlab.measure(env, policy, "reward_to_go", n=1000, n_reference=1000, seed=1)
    over = 7.0
    ours = spinning_up_cartpole.square(found.moments, "reward_to_go", over, np.random.default_rng(0), "g")
    weight = found.moments.count / found.moments.count.sum()
    mean = (weight[:, None] * found.moments.mean[:, 0]).sum(0)
    variance = found.summary.set_index("phi")["variance"]["reward_to_go"]
    assert ours["value"] == pytest.approx((mean @ mean - variance / 1000) / over, rel=0.02)
    assert ours["value_low"] < ours["value"] < ours["value_high"]


def test_slopes_are_those_of_least_squares():
    generator = np.random.default_rng(4)
    x = generator.standard_normal(12)
    y = 2 * x + generator.standard_normal(12)
    ours, other = spinning_up_code.slope("q", "l", x, y), scipy.stats.linregress(x, y)
    half = other.stderr * scipy.stats.t.ppf(0.975, 10)
    assert ours["value"] == pytest.approx(other.slope) and ours["n"] == 12
    assert (ours["value_low"], ours["value_high"]) == pytest.approx((other.slope - half, other.slope + half))


def test_the_gradient_of_the_first_steps_is_the_listed_one(monkeypatch):
    env, policy = worlds.small(2, horizon=4)
    monkeypatch.setattr(spinning_up_code, "CUT", 2)
    early = worlds.Written(lambda b: torch.where(b.traj.time < 2, b.values.q, 0.0), "early", frozenset({"q"}))
    listed = Listed.of(env, policy)
    ours = spinning_up_code.early_part(env, policy)
    np.testing.assert_allclose(ours, listed.mean(listed.gradients(early))[0], atol=1e-13)


def test_scores_of_trajectories_know_the_last_step():
    env, policy = worlds.small(3)
    listed = Listed.of(env, policy)
    ours, theirs = spinning_up_exact.score_of_paths(listed)
    np.testing.assert_allclose(ours, theirs, atol=1e-13)
    np.testing.assert_allclose(listed.probability.numpy() @ theirs, 0.0, atol=1e-13)
    assert np.abs(spinning_up_exact.score_of_paths(listed, drop_last=True)[0] - theirs).max() > 0.1


def test_relative_deviations_and_angles():
    assert worlds.relative([3.0, 0.0], [0.0, 4.0]) == pytest.approx(1.25)
    assert worlds.sine([1.0, 1.0], [0.0, 2.0]) == pytest.approx(np.sqrt(0.5))
    exact = worlds.read("q", "l")(pd.DataFrame([worlds.row("q", "l", 0.3), worlds.row("q", "m", 0.4, 0.1, 0.5, 9)]))
    assert exact.is_exact and exact.value == 0.3
