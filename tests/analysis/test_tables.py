"""Tables against recomputation from the trajectories themselves, and the text that people read."""

import numpy as np
import pandas as pd
import pytest
import synthetic_runs

from varlab import checks
from varlab.analysis import intervals, statistics, tables
from varlab.analysis.convergence import group_sizes


@pytest.fixture(scope="module")
def run():
    return synthetic_runs.make(n=1030, parameters=12)  # blocks of unequal size


@pytest.fixture(scope="module")
def exact_run():
    return synthetic_runs.make(n=1000, parameters=12, exact=True)


def test_group_sizes_are_one_two_five_and_so_on():
    assert group_sizes(50) == [1, 2, 5, 10, 25, 50]
    assert group_sizes(60) == [1, 2, 5, 10, 25, 50]
    assert group_sizes(1000)[-4:] == [100, 250, 500, 1000]


@pytest.mark.parametrize("size", [1, 2, 5, 10, 25, 50])
def test_running_distance_is_recomputed_from_trajectories(run, size):
    table = tables.running_table(run.moments, run.references)
    reference, count = run.references["J_1"], run.moments.count
    edges = np.concatenate([[0], count.cumsum()])
    for k in (0, 8):
        squares = []
        for first in range(0, 50 - size + 1, size):
            g = run.gradients[edges[first] : edges[first + size], k]
            squares.append(((g.mean(0) - reference.grad) ** 2).sum())
        row = table[(table.phi == run.moments.names[k]) & (table.kind == "groups")].iloc[group_sizes(50).index(size)]
        assert row.groups == 50 // size
        assert row.distance == pytest.approx(np.mean(squares) ** 0.5, rel=1e-12)
        variance = run.gradients[:, k].var(0, ddof=1).sum()
        error = reference.block_mean.var(0, ddof=1).sum() / 50
        bias = ((run.gradients[:, k].mean(0) - reference.grad) ** 2).sum() - variance / 1030 - error
        assert row.predicted == pytest.approx((max(bias, 0) + variance / row.n + error) ** 0.5, rel=1e-10)
        if size == 50:
            assert np.isnan(row.distance_low) and np.isnan(row.distance_high)
        else:
            half = intervals.student(0.95, len(squares) - 1)
            x = np.array(squares)
            se = np.sqrt((len(x) - 1) / len(x) * sum((np.log((x.sum() - v) / (len(x) - 1)) - _left_out(x)) ** 2 for v in x))
            assert row.distance_high == pytest.approx((x.mean() * np.exp(half * se)) ** 0.5, rel=1e-10)
            assert row.distance_low == pytest.approx((x.mean() * np.exp(-half * se)) ** 0.5, rel=1e-10)


def _left_out(x):
    return np.mean([np.log((x.sum() - v) / (len(x) - 1)) for v in x])


def test_path_is_the_cumulative_mean_of_trajectories(run):
    table = tables.running_table(run.moments, run.references)
    path = table[(table.phi == "gae(lam=0.95)") & (table.kind == "path")]
    g, reference = run.gradients[:, 10], run.references["J_1"]
    for row in path.iloc[[0, 17, 49]].itertuples():
        assert row.distance == pytest.approx(np.linalg.norm(g[: int(row.n)].mean(0) - reference.grad), rel=1e-12)


def test_distance_of_unbiased_choices_falls_as_one_over_the_root_of_n(exact_run):
    table = tables.running_table(exact_run.moments, exact_run.references)
    groups = table[(table.kind == "groups") & (table.groups >= 5)]
    slopes = {phi: np.polyfit(np.log(rows.n), np.log(rows.distance), 1)[0] for phi, rows in groups.groupby("phi")}
    assert slopes["value_baseline"] == pytest.approx(-0.5, abs=0.12)
    assert slopes["td_residual"] > -0.35  # a biased choice stops short: the control


@pytest.mark.parametrize("size", [1.0, 100.0, 1000.0])
def test_closed_form_of_the_cosine_for_an_exact_reference(exact_run, size):
    table = tables.cosine_table(exact_run.moments, exact_run.references, exact_run.summary)
    g, grad = exact_run.gradients[:, 8], exact_run.references["J_1"].grad
    variance = g.var(0, ddof=1).sum()
    mean_sq = g.mean(0) @ g.mean(0) - variance / len(g)
    expected = g.mean(0) @ grad / np.linalg.norm(grad) / np.sqrt(mean_sq + variance / size)
    rows = table[(table.phi == "td_residual") & (table.kind == "closed form")]
    row = rows.iloc[(rows.batch_size - size).abs().argmin()]
    assert row.batch_size == pytest.approx(size)
    assert row.cosine == pytest.approx(expected, rel=1e-10)
    assert row.cosine_low < row.cosine < row.cosine_high <= 1


def test_closed_form_reduces_to_the_noise_to_signal_ratio_when_the_mean_is_the_gradient(exact_run):
    # With the reference put at the sample mean, ⟨E g, ∇J⟩ = ‖∇J‖², so that ρ_N² (1 + (NSR)(1/N − 1/n)) = 1.
    from dataclasses import replace

    g = exact_run.gradients[:, 4]
    reference = replace(exact_run.references["J_1"], grad=g.mean(0))
    table = tables.cosine_table(exact_run.moments, {"J_1": reference}, exact_run.summary)
    rows = table[(table.phi == "value_baseline") & (table.kind == "closed form")]
    nsr = g.var(0, ddof=1).sum() / (g.mean(0) @ g.mean(0))
    np.testing.assert_allclose(rows.cosine, (1 + nsr * (1 / rows.batch_size - 1 / len(g))) ** -0.5, rtol=1e-10)


def test_band_of_the_closed_form_is_the_two_sample_jackknife(run):
    table = tables.cosine_table(run.moments, run.references, run.summary)
    row = table[(table.phi == "n_step(k=5)") & (table.kind == "closed form") & (table.batch_size == 100)].iloc[0]
    reference, edges = run.references["J_1"], np.concatenate([[0], run.moments.count.cumsum()])

    def cosine(g, r):
        variance, error = g.var(0, ddof=1).sum(), r.var(0, ddof=1).sum() / len(r)
        squares = g.mean(0) @ g.mean(0) - variance / len(g) + variance / 100
        return g.mean(0) @ r.mean(0) / np.sqrt((r.mean(0) @ r.mean(0) - error) * squares)

    g, r = run.gradients[:, 9], reference.block_mean
    mine = [cosine(np.delete(g, slice(edges[b], edges[b + 1]), 0), r) for b in range(50)]
    theirs = [cosine(g, np.delete(r, b, 0)) for b in range(50)]
    low, high = intervals.jackknife_interval(cosine(g, r), [mine, theirs], scale=intervals.FISHER)
    assert (row.cosine, row.cosine_low, row.cosine_high) == pytest.approx((cosine(g, r), low, high), rel=1e-9)


@pytest.mark.parametrize("kind", ["run", "exact_run"])
def test_closed_form_at_the_batch_size_is_the_cosine_of_the_summary(kind, request):
    run = request.getfixturevalue(kind)
    rows = statistics.summarise(run.moments, run.references["J_1"], batch_size=100, rng=np.random.default_rng(0))
    summary = pd.DataFrame(rows).assign(phi=run.moments.names, objective="J_1", batch_size=100)
    table = tables.cosine_table(run.moments, run.references, summary)
    at = table[(table.kind == "closed form") & (table.batch_size == 100)]
    columns = ["cosine", "cosine_low", "cosine_high"]
    np.testing.assert_allclose(at[columns], summary[columns], rtol=1e-8)


def test_an_unresolved_gradient_has_the_whole_circle_for_a_band(run):
    table = tables.cosine_table(run.moments, run.references, run.summary.assign(flag="gradient-not-resolved; reference-limited"))
    closed = table[table.kind == "closed form"]
    assert (closed.cosine_low == -1).all() and (closed.cosine_high == 1).all()


def test_measured_cosine_is_the_mean_over_groups(exact_run):
    table = tables.cosine_table(exact_run.moments, exact_run.references, exact_run.summary)
    grad = exact_run.references["J_1"].grad
    means = exact_run.gradients[:, 2].reshape(10, 100, -1).mean(1)
    cosines = [m @ grad / np.linalg.norm(m) / np.linalg.norm(grad) for m in means]
    row = table[(table.phi == "constant_baseline") & (table.kind == "measured") & (table.batch_size == 100)].iloc[0]
    half = intervals.student(0.95, 9) * np.std(cosines, ddof=1) / np.sqrt(10)
    assert row.groups == 10
    assert (row.cosine, row.cosine_low, row.cosine_high) == pytest.approx(
        (np.mean(cosines), np.mean(cosines) - half, np.mean(cosines) + half)
    )


def test_few_effective_directions_are_labelled_approximate(run):
    summary = run.summary.assign(effective_directions=[3.0] + [25.0] * 10)
    table = tables.cosine_table(run.moments, run.references, summary)
    assert set(table[table.phi == "total_return"].note) == {"approximate"}
    assert set(table[table.phi != "total_return"].note) == {""}


def test_a_gradient_of_no_length_gives_empty_cosines_and_no_error():
    run = synthetic_runs.make(n=200, parameters=4, scale=1e-9)
    from dataclasses import replace

    reference = replace(run.references["J_1"], grad=np.zeros(4))
    table = tables.cosine_table(run.moments, {"J_1": reference}, run.summary)
    assert table.cosine.isna().all()


@pytest.mark.parametrize(
    ("x", "text"),
    [(0.43219, "0.432"), (1234.0, "1230"), (12345.0, "1.23e4"), (9999.0, "1.00e4"), (-0.00691, "-0.00691"), (1.39e-4, "1.39e-4"),
     (0.0, "0"), (np.inf, "inf"), (np.nan, "–"), (1.0, "1.00"), (0.99999, "1.00"), (-1e-12, "-1.00e-12"), (99.96, "100")],
)  # fmt: skip
def test_short_numbers_have_three_digits(x, text):
    assert tables.short(x) == text


def test_readable_has_a_line_per_row_and_fits_a_terminal(run, exact_run):
    summary = pd.concat([run.summary, exact_run.summary.assign(env="FrozenLake-v1")], ignore_index=True)
    # The widest numbers there can be, and a long name.
    summary.loc[3, ["phi", "bias_sq", "bias_sq_low", "bias_sq_high"]] = [
        "optimal_baseline(of=features, base=total_return)", -1.234e-5, 1.234e-5, 1.234e-5,
    ]  # fmt: skip
    text = tables.readable(summary)
    assert max(map(len, text.splitlines())) <= 120
    for phi in summary.phi.drop(3):
        assert any(line.startswith(phi) for line in text.splitlines())
    assert "FrozenLake-v1" in text and "CartPole-v1" in text and "a: reference-limited" in text
    assert "[-" not in text.replace("[-1", ""), "intervals of squares begin at zero"
    assert text.count("cos 100") == 2  # two runs, whatever their sources of values


def test_markdown_and_latex_have_every_row(run):
    lines = tables.to_markdown(run.summary).splitlines()
    assert len(lines) == 2 + 11
    assert len({line.count(" | ") for line in [lines[0], *lines[2:]]}) == 1
    assert "1.00 [1.00, 1.00]" in lines[2]
    latex = tables.to_latex(run.summary)
    assert all(rule in latex for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert r"total\_return" in latex and "_return" not in latex.replace(r"\_return", "")
    assert latex.count(r"\\") == 12 and "inf" not in latex.replace(r"\infty", "")


def test_gather_joins_runs_and_counts_each_once(run, exact_run):
    other = exact_run.summary.assign(env="FrozenLake-v1", digest="other")
    table = tables.gather([run.summary, other, run.summary])
    assert len(table) == 22 and table.run.nunique() == 2
    assert list(table.columns[: len(run.summary.columns)]) == list(run.summary.columns)
    assert table.exact_variance.isna().sum() == 11


def test_gather_refuses_mixed_numerics_unless_told(run, exact_run):
    runs = [run.summary.assign(numerics=1), exact_run.summary.assign(numerics=2, digest="other")]
    with pytest.raises(checks.InputError, match="numerics 1, 2 came together"):
        tables.gather(runs)
    assert len(tables.gather(runs, allow_mixed_numerics=True)) == 22
    with pytest.raises(checks.InputError, match="none was found"):
        tables.gather([])


def test_varying_finds_settings_that_differ_inside_an_environment(run):
    def with_(**settings):
        return run.summary.assign(**settings, digest=str(settings))

    assert tables.varying(tables.gather([with_(env="A", horizon=10), with_(env="B", horizon=20)])) == ["env"]
    table = tables.gather([with_(gamma=g, seed=s) for g in (0.9, 1.0) for s in (1, 2)])
    assert tables.varying(table) == ["gamma", "seed"]
    # Critics that differ by seed are one source; another kind of source is not.
    critics = [with_(seed=s, values_source=f"critic:{s}") for s in (1, 2)]
    assert tables.varying(tables.gather(critics)) == ["seed"]
    assert tables.varying(tables.gather([critics[0], with_(values_source="exact", seed=1)])) == ["values_source"]


def test_rows_of_one_sampled_reference_are_not_pooled(run):
    rows = pd.concat([run.summary.iloc[[8]], run.summary.iloc[[8]].assign(seed=1, digest="other")])
    assert tables.poolable(rows, "variance")
    assert not tables.poolable(rows, "mse")
    assert tables.poolable(rows.assign(reference_kind="exact"), "mse")
    assert tables.poolable(rows.assign(reference_digest=["a", "b"]), "mse")
    assert not tables.poolable(rows.assign(bias_sq=-1.0, reference_digest=["a", "b"]), "bias_sq")


def test_save_writes_both_forms_and_leaves_foreign_data_alone(run, tmp_path):
    table = tables.gather([run.summary])
    tables.save(table, tmp_path)
    tables.save(table, tmp_path)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "table.parquet"), table)
    (tmp_path / "table.csv").write_text("my,data\n1,2\n")
    with pytest.raises(checks.InputError, match="holds other data"):
        tables.save(table, tmp_path)
    assert (tmp_path / "table.csv").read_text() == "my,data\n1,2\n"
