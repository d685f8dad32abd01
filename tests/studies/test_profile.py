"""A profile: one checkpoint is one measurement, components add up, agreement is that of the blocks; its figure."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from finite_worlds import random_logits, random_mdp

import varlab
from varlab import policies, training
from varlab.analysis import agreement
from varlab.analysis import style as styles
from varlab.checks import InputError
from varlab.envs.finite import environment
from varlab.oracles.components import components
from varlab.studies import profile
from varlab.values import CriticSettings

PHI = ["total_return", "value_baseline", "gae(lam=0.5)"]
MDP = random_mdp(11)
ENV = environment(MDP, 4, "small")


def theta(scale):
    return policies.SoftmaxTable(ENV, logits=scale * random_logits(2, MDP)).double()


@pytest.fixture(scope="module")
def table():
    thetas = [("first", theta(0.0)), ("then", theta(1.0)), ("last_one", theta(3.0))]
    return profile.profile(ENV, thetas, PHI, n=400, gamma=0.9, seed=3, dtype="float64")


def test_one_checkpoint_is_one_measurement(table):
    result = varlab.measure(ENV, theta(1.0), PHI, n=400, gamma=0.9, seed=3, dtype="float64", theta="then")
    mine = table[table["theta"] == "then"].reset_index(drop=True)
    for column in result.summary.columns:
        assert mine[column].equals(result.summary[column]), column
    assert set(mine["checkpoint"]) == {1} and mine["mean_length"].iloc[0] == result.moments.steps.sum() / 400
    for _, row in mine.iterrows():
        x, size = agreement.from_moments(result.moments, row["phi"])
        found = agreement.between(x)
        assert (row["between"], row["between_size"]) == (found.value, size) and size == 8
        assert (row["between_low"], row["between_high"]) == tuple(agreement.interval(found))


def test_rows_come_in_the_order_of_training_and_labels_are_kept(table):
    assert table["theta"].tolist() == ["first"] * 3 + ["then"] * 3 + ["last_one"] * 3
    assert table["phi"].tolist() == PHI * 3


def test_components_are_the_variance(table):
    np.testing.assert_allclose(table[list(profile.PARTS)].sum(axis=1), table["exact_variance"], rtol=1e-9)
    for name, scale in (("first", 0.0), ("last_one", 3.0)):
        row = table[(table["theta"] == name) & (table["phi"] == "gae(lam=0.5)")].iloc[0]
        made = components(ENV, theta(scale), "gae(lam=0.5)", gamma=0.9)
        assert row["action"] == pytest.approx(made.action.sum(), rel=1e-12)
        assert row["across_time"] == pytest.approx(made.cross.sum(), rel=1e-9, abs=1e-12)


def test_what_is_fitted_has_no_exact_components():
    phi = ["time_baseline", "value_baseline", "reward_to_go"]
    critic = {"a": CriticSettings(n=50, steps=0, seed=1), "b": CriticSettings(n=50, steps=5, seed=1)}
    made = profile.profile(ENV, {"a": theta(1.0), "b": theta(1.0)}, phi, n=100, values="critic", critic=critic)
    known = made.set_index(["theta", "phi"])["state"].notna()
    assert known.groupby("phi").sum().to_dict() == {"time_baseline": 0, "value_baseline": 0, "reward_to_go": 2}
    # one setting per label: other critics, other gradients from the same trajectories
    variance = made.pivot(index="theta", columns="phi", values="variance")
    assert variance.loc["a", "value_baseline"] != variance.loc["b", "value_baseline"]
    assert variance.loc["a", "reward_to_go"] == variance.loc["b", "reward_to_go"]
    without = profile.profile(ENV, {"a": theta(1.0)}, ["reward_to_go"], n=110, parts=False)
    assert without[["state", "between"]].isna().all().all()


def test_checkpoints_of_a_training_run():
    run = training.train(ENV, theta(0.0), "reward_to_go", epochs=4, episodes=20, lr=0.5)
    made = profile.profile(ENV, {c: run.policy_at(c) for c in run.checkpoints}, "reward_to_go", n=50, draws=1999)
    assert made["theta"].tolist() == ["init", "mid", "late"] and made["checkpoint"].tolist() == [0, 1, 2]
    assert len(set(made["grad_norm"])) == 3


def test_the_figure(table):
    figure = profile.draw(table)
    assert isinstance(figure, styles.Figure) and len(figure.axes) == 8
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert labels[:2] == ["NSR", r"cosine to $\nabla J$"] and not any("_" in x for x in labels)
    assert [t.get_text() for t in figure.axes[0].get_xticklabels()] == ["first", "then", "last one"]
    shares = table[table["theta"] == "then"].set_index("phi").eval("state / exact_variance")
    drawn = {line.get_label(): line.get_ydata()[0] for line in figure.axes[4].lines if line.get_gid() == "state"}
    assert set(drawn) == set(PHI)
    points = [x.get_ydata()[0] for x in figure.axes[4].lines if x.get_gid() == "state" and x.get_label() == "total_return"]
    assert points[1] == pytest.approx(shares["total_return"])
    bare = table[["theta", "phi", "nsr", "nsr_low", "nsr_high", "kurtosis"]]  # what gathered summaries have, and no more
    assert len(profile.draw(bare).axes) == 2


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda t: profile.profile(ENV, {}, PHI, n=50), "One θ or more"),
        (lambda t: profile.profile(ENV, [("a", theta(0.0)), ("a", theta(1.0))], PHI, n=50), "each with a label of its own"),
        (lambda t: profile.draw(t.assign(theta="a")), "One row for each θ and Φ"),
    ],
)
def test_misuse_is_a_sentence(table, call, sentence):
    with pytest.raises(InputError, match=sentence):
        call(table)


def test_a_zero_gradient_has_no_agreement():
    """Nor has one that is zero in some of the blocks, where a reward is rare."""
    flat = environment(replace(MDP, reward=torch.zeros_like(MDP.reward)), 4, "flat")
    made = profile.profile(flat, {"a": theta(1.0)}, ["reward_to_go"], n=50)
    assert made["between"].isna().all() and made["variance"].item() == 0
    rare = environment(replace(MDP, reward=torch.where(MDP.probability < 0.12, MDP.reward, 0.0)), 2, "rare")
    made = profile.profile(rare, {"a": theta(1.0)}, ["reward_to_go"], n=50, parts=False)
    assert made["between"].isna().all() and made["variance"].item() > 0
