"""How often the textbook order fails: variances against enumeration by plain loops, statistics, figure and script."""

import importlib.util
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hydra import compose, initialize_config_dir

from varlab.checks import InputError
from varlab.studies import textbook_order as study

ROOT = Path(__file__).resolve().parents[2]
CELLS = list(itertools.product(study.REWARDS, study.POLICIES, study.SCALES))


def by_loops(seed, number, rewards, policy, scale):
    """Trace variances of every Φ, [7], from the list of all trajectories; no function of the package but the random numbers."""
    drawn = study.Draw.of(seed, number)
    reward = drawn.quantile if rewards == "U(0, 1)" else scipy.stats.norm.ppf(drawn.quantile)
    states, actions, steps = range(3), range(2), 3
    f = np.eye(6).reshape(3, 2, 6) if policy == "table" else drawn.features
    theta = scale * drawn.logits.ravel() if policy == "table" else scale * drawn.theta / 2**0.5
    pi = np.exp(f @ theta) / np.exp(f @ theta).sum(1, keepdims=True)
    z = np.array([[f[s, a] - sum(pi[s, b] * f[s, b] for b in actions) for a in actions] for s in states])
    v, q = np.zeros((steps + 1, 3)), np.zeros((steps, 3, 2))
    for t in reversed(range(steps)):
        for s, a in itertools.product(states, actions):
            q[t, s, a] = sum(drawn.transition[s, a, n] * (reward[s, a, n] + v[t + 1, n]) for n in states)
        v[t] = [sum(pi[s, a] * q[t, s, a] for a in actions) for s in states]
    p, g = [], []
    for s0, s1, s2, s3, *a in itertools.product(states, states, states, states, actions, actions, actions):
        s = (s0, s1, s2, s3)
        p.append(drawn.initial[s0] * np.prod([pi[s[t], a[t]] * drawn.transition[s[t], a[t], s[t + 1]] for t in range(steps)]))
        r = [reward[s[t], a[t], s[t + 1]] for t in range(steps)]
        delta = [r[t] + v[t + 1, s[t + 1]] - v[t, s[t]] for t in range(steps)]
        g.append(np.zeros((7, f.shape[-1])))
        for t in range(steps):
            at = q[t, s[t], a[t]]
            to_go, value = sum(r[t:]), v[t, s[t]]
            ahead = sum(0.9 ** (u - t) * delta[u] for u in range(t, steps))
            phi = [sum(r), to_go, to_go - value, at, at - value, delta[t], ahead]
            g[-1] += np.outer(phi, z[s[t], a[t]])
    p, g = np.array(p), np.array(g)
    assert abs(p.sum() - 1) < 1e-12
    mean = np.einsum("n,nkp->kp", p, g)
    np.testing.assert_allclose(mean, np.broadcast_to(mean[0], mean.shape), atol=1e-12)
    return np.einsum("n,nkp->k", p, (g - mean) ** 2)


@pytest.fixture(scope="module")
def table():
    return study.variances(40, seed=0)


@pytest.fixture(scope="module")
def summary(table):
    return study.summarise(table)


def test_variances_are_those_of_the_list_of_all_trajectories(table):
    cells = table.set_index([*study.CELL, "mdp", "phi"])["variance"].sort_index()
    for cell, number in [*((c, 0) for c in CELLS), (CELLS[0], 39), (CELLS[-1], 17)]:
        ours = cells[(*cell, number)][list(study.PHI)].to_numpy()
        np.testing.assert_allclose(ours, by_loops(0, number, *cell), rtol=1e-10)


@pytest.mark.parametrize(
    ("cell", "number", "larger", "smaller"),
    [
        (("U(0, 1)", "table", 3.0), 65, "q_value", "reward_to_go"), (("U(0, 1)", "table", 3.0), 256, "q_value", "reward_to_go"),
        (("U(0, 1)", "features", 3.0), 188, "q_value", "reward_to_go"),
        (("N(0, 1)", "table", 1.0), 51, "reward_to_go", "total_return"),
        (("N(0, 1)", "features", 1.0), 286, "td_residual", "gae(lam=0.9)"),
    ],
)  # fmt: skip
def test_no_ordering_is_a_theorem(cell, number, larger, smaller):
    """With positive rewards too: knowing Q exactly raises the variance of the whole sum in these MDPs."""
    found = dict(zip(study.PHI, by_loops(0, number, *cell), strict=True))
    assert found[larger] > 1.002 * found[smaller]


def test_the_order_looks_universal_with_positive_rewards_and_fails_with_centred_ones(summary):
    """What the catalogue says holds of the value baseline; every other pair keeps its order in nearly all MDPs of both laws."""
    shares = summary[summary.statistic == "share"]
    positive = shares[shares.rewards == "U(0, 1)"]
    assert (positive.estimate == 0).all() and (positive.estimate_high < 0.1).all()
    centred = shares[shares.rewards == "N(0, 1)"]
    baseline = centred.phi == "value_baseline"
    assert baseline.sum() == 4 and (centred[baseline].estimate_low > 0.05).all()
    assert (centred[~baseline].estimate <= 0.1).all()
    ratio = summary[(summary.statistic == "median_ratio") & (summary.phi == "value_baseline")].set_index("rewards")
    assert ratio.loc["U(0, 1)"].estimate_high.max() < 0.12 and ratio.loc["N(0, 1)"].estimate_low.min() > 0.35


def test_numbers_depend_on_seed_and_number_alone(table):
    again = study.variances(2, seed=0)
    same = table[table.mdp < 2].sort_values([*study.CELL, "mdp", "phi"], ignore_index=True)
    pd.testing.assert_frame_equal(again.sort_values([*study.CELL, "mdp", "phi"], ignore_index=True), same)
    assert not np.isin(study.variances(2, seed=1).variance, again.variance).any()
    assert table.variance.nunique() > 0.99 * len(table)


def test_draws_follow_their_laws():
    drawn = [study.Draw.of(5, i) for i in range(400)]
    for name, law in (("quantile", "uniform"), ("logits", "norm"), ("features", "norm"), ("theta", "norm")):
        assert scipy.stats.kstest(np.concatenate([getattr(d, name).ravel() for d in drawn]), law).pvalue > 1e-3
    edge = scipy.stats.beta(1, study.STATES - 1).cdf  # one coordinate of the uniform law on the simplex
    for name in ("transition", "initial"):
        assert scipy.stats.kstest(np.concatenate([getattr(d, name)[..., 0].ravel() for d in drawn]), edge).pvalue > 1e-3
    for kind, parameters in (("table", 6), ("features", 2)):
        made = [d.make("N(0, 1)", kind, 3.0) for d in drawn]
        differences = [policy(env.finite.seen).logits.diff().tolist() for env, policy in made]  # of two logits
        assert abs(np.std(differences) / (3 * 2**0.5) - 1) < 0.1
        assert sum(p.numel() for p in made[0][1].parameters()) == parameters
    with pytest.raises(InputError, match="law of rewards"):
        drawn[0].make("U(0,2)", "table", 1.0)
    with pytest.raises(InputError, match="No policy"):
        drawn[0].make("U(0, 1)", "tabel", 1.0)


def hand_made(n=50, failing=7, ties=5):
    """Variances 1 for every Φ but reward-to-go: larger in ``failing`` MDPs, larger by rounding in ``ties``, 1/2 otherwise."""
    to_go = [1.5] * failing + [1 + 1e-14] * ties + [0.5] * (n - failing - ties)
    rows = [(*CELLS[0], i, phi, to_go[i] if phi == "reward_to_go" else 1.0) for i in range(n) for phi in study.PHI]
    return pd.DataFrame(rows, columns=[*study.CELL, "mdp", "phi", "variance"])


def test_shares_and_their_intervals():
    found = study.summarise(hand_made()).set_index(["statistic", "phi", "other"])
    row = found.loc[("share", "reward_to_go", "total_return")]
    assert row.estimate == 7 / 50 and row.n == 50
    beta = scipy.stats.beta
    np.testing.assert_allclose([row.estimate_low, row.estimate_high], [beta.ppf(0.025, 7, 44), beta.ppf(0.975, 8, 43)])
    assert found.loc[("share", "q_value", "reward_to_go")].estimate == (50 - 12) / 50
    none = found.loc[("share", "advantage", "td_residual")]
    assert none.estimate == none.estimate_low == 0 and none.estimate_high == pytest.approx(1 - 0.025 ** (1 / 50))
    assert found.loc[("median_ratio", "reward_to_go", "total_return")].estimate == 0.5


def test_the_median_interval_covers():
    rng = np.random.default_rng(0)
    for n, least in ((9, 0.95), (300, 0.945)):
        inside = [low <= 1.0 <= high for _, low, high in (study.median(pd.Series(rng.lognormal(size=n))) for _ in range(2000))]
        exact = 1 - 2 * scipy.stats.binom.cdf(scipy.stats.binom.ppf(0.025, n, 0.5) - 1, n, 0.5)
        assert exact >= 0.95 and least - 0.01 < np.mean(inside) < exact + 0.02
    assert study.median(pd.Series([1.0, 2.0, 3.0, 4.0, 5.0])) == (3.0, 0.0, np.inf)
    assert study.median(pd.Series([6.0, 1.0, 2.0, 3.0, 5.0, 4.0])) == (3.5, 1.0, 6.0)


def test_the_figure_draws_the_numbers_of_the_table(summary):
    axes = study.draw(summary).axes
    assert len(axes) == len(CELLS)
    for ax, cell in zip(axes, CELLS, strict=True):
        rows = summary[(summary[study.CELL] == list(cell)).all(axis=1) & (summary.statistic == "share")]
        points = {(float(line.get_xdata()[0]), int(line.get_ydata()[0])) for line in ax.lines if line.get_gid() == "estimate"}
        assert points == {(e, study.ORDER.index((p, o))) for e, p, o in zip(rows.estimate, rows.phi, rows.other, strict=True)}
        bars = [tuple(line.get_xdata()) for line in ax.lines if line.get_gid() == "estimate interval"]
        assert bars == list(zip(rows.estimate_low, rows.estimate_high, strict=True))


def test_the_script_writes_table_and_figure(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    spec = importlib.util.spec_from_file_location("scripts_textbook_order", ROOT / "scripts" / "textbook_order.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        module.main(compose("textbook_order", ["mdps=6", "seed=3", f"out={tmp_path}", "threads=null"]))
    drawn = {f"violations.{kind}" for kind in ("png", "pdf", "md", "tex")}
    assert {p.name for p in tmp_path.iterdir()} == {"table.csv", "table.md"} | drawn
    table = pd.read_csv(tmp_path / "table.csv")
    pd.testing.assert_frame_equal(table, study.summarise(study.variances(6, seed=3)))
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert text.count("| U(0, 1) | table | 3 |") == 2 and "RTG−V > RTG" in text and "6 MDPs" in capsys.readouterr().out
    assert "n = 6 MDPs" in (tmp_path / "violations.md").read_text(encoding="utf-8")


def test_the_saved_table_is_that_of_the_defaults(table):
    """Its first forty MDPs are counted here again: no share of the whole may be below what they contribute."""
    saved = pd.read_csv(ROOT / "results" / "textbook_order" / "table.csv")
    assert set(saved.n) == {300}
    ours = study.summarise(table)
    least = (ours.estimate * 40).where(ours.statistic == "share")
    assert (saved.estimate * 300 >= least - 1e-9)[ours.statistic == "share"].all()
    assert (saved.estimate * 300 <= least + 260 + 1e-9)[ours.statistic == "share"].all()
    keys = [*study.CELL, "statistic", "phi", "other"]
    pd.testing.assert_frame_equal(saved[keys], ours[keys])
    text = (ROOT / "results" / "textbook_order" / "table.md").read_text(encoding="utf-8")
    assert text == study.to_markdown(saved)
