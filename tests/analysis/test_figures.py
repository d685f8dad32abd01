"""Figures: what is drawn equals the table, looks are unique, files are fit for print, nothing foreign is touched."""

import itertools
import re
import subprocess
import sys
import zlib
from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import synthetic_runs
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from varlab import checks
from varlab.analysis import captions, figures, style, tables

SMALL = ("total_return", "value_baseline", "td_residual", "gae(lam=0.95)")


@pytest.fixture(scope="module")
def run():
    return synthetic_runs.make(n=500, parameters=10, exact=True)


@pytest.fixture(scope="module")
def running(run):
    return tables.running_table(run.moments, run.references)


@pytest.fixture(scope="module")
def cosine(run):
    return tables.cosine_table(run.moments, run.references, run.summary)


@pytest.fixture(scope="module")
def sweep():
    settings = itertools.product(("CartPole-v1", "FrozenLake-v1"), (0.9, 1.0), (1, 2))
    return tables.gather(
        [synthetic_runs.make(env=e, gamma=g, seed=s, n=200, parameters=6, names=SMALL).summary for e, g, s in settings]
    )


def drawn(ax, gid, phi=None):
    """Return the [x, y] data of every artist that says it shows ``gid``."""
    return [line.get_xydata() for line in ax.lines if line.get_gid() == gid and phi in (None, line.get_label())]


# ---- looks ----------------------------------------------------------------------------------------------------------


def linear(color):
    c = np.array(to_rgb(color))
    return np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    """Return CIE L*a*b* of linear sRGB."""
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    x = np.array(to_xyz) @ rgb / np.array([0.95047, 1, 1.08883])
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira and Fernandes (2009), severity 1.
VISION = {
    "normal": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def nearest_pair(colors, vision):
    seen = [lab(np.clip(np.array(VISION[vision]) @ linear(c), 0, 1)) for c in colors]
    return min(np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2))


@pytest.mark.parametrize("vision", VISION)
def test_colours_of_the_source_text_stay_apart(vision):
    colors = [style.look(f).color for f in style.SOURCE_TEXT]
    assert len(set(colors)) == 11
    assert nearest_pair(colors, vision) > 14  # a just noticeable difference is about 2.3


def test_matplotlibs_own_cycle_fails_where_ours_passes():
    assert nearest_pair([f"C{i}" for i in range(10)], "deuteranopia") < 14


def test_markers_tell_all_choices_apart_in_grey():
    looks = [style.look(f) for f in style.FAMILIES]
    assert len({(k.marker, k.hollow) for k in looks}) == len(looks)


def test_looks_depend_on_the_name_alone_and_arguments_keep_the_family():
    lams = [f"gae(lam={v})" for v in (0.0, 0.5, 0.9, 0.95, 0.97, 0.99, 1.0)]
    looks = [style.look(p) for p in lams]
    assert len({k.color for k in looks}) == len(lams)
    assert {k.marker for k in looks} == {style.look("gae").marker}
    lightness = [lab(linear(k.color))[0] for k in looks]
    assert lightness == sorted(lightness, reverse=True), "more reach is darker"
    assert style.look("td_residual").color != style.look("n_step(k=1)").color
    assert style.look("optimal_baseline(of=time)") != style.look("optimal_baseline(of=constant)")
    assert style.look("my_own(a=1)") == style.look("my_own(a=1)")
    assert style.look("my_own").hollow and zlib.crc32(b"my_own") == zlib.crc32(b"my_own")


@pytest.mark.parametrize(
    ("phi", "label"),
    [("gae(lam=0.95)", "GAE(λ = 0.95)"), ("total_return", r"total return $R_\gamma$"), ("n_step(k=5)", "5-step"),
     ("n_step(5)", "5-step"),
     ("optimal_baseline(of=time, base=reward_to_go)", "optimal baseline (of = time, base = reward to go)"), ("my_own", "my own")],
)  # fmt: skip
def test_labels_read_well(phi, label):
    assert style.label(phi) == label


def test_order_is_that_of_the_source_text():
    mixed = [
        "gae(lam=0.95)",
        "zeta",
        "gae(lam=0.5)",
        "total_return",
        "n_step(k=10)",
        "n_step(k=2)",
        "reward_to_go",
        "total_return",
    ]
    expected = ["total_return", "reward_to_go", "n_step(k=2)", "n_step(k=10)", "gae(lam=0.5)", "gae(lam=0.95)", "zeta"]
    assert style.order(mixed) == expected


def test_the_context_leaves_matplotlib_as_it_was():
    before = dict(matplotlib.rcParams)
    with style.context({"font_size": 21.0}):
        assert matplotlib.rcParams["font.size"] == 21.0
    assert dict(matplotlib.rcParams) == before


# ---- panels ---------------------------------------------------------------------------------------------------------


def test_variance_by_phi_draws_each_row_at_its_place(run):
    ax = figures.variance_by_phi(run.summary)
    assert isinstance(ax, Axes) and ax.get_xscale() == "log"
    assert [t.get_text() for t in ax.get_yticklabels()] == [style.label(p) for p in synthetic_runs.SOURCE_TEXT]
    for y, row in enumerate(run.summary.itertuples()):
        np.testing.assert_allclose(drawn(ax, "variance", row.phi), [[[row.variance, y]]])
        np.testing.assert_allclose(drawn(ax, "variance interval", row.phi), [[[row.variance_low, y], [row.variance_high, y]]])
    exact = [c.get_segments()[0][:, 0] for c in ax.collections if c.get_label() == "exact"]
    np.testing.assert_allclose([e[0] for e in exact], run.summary.exact_variance)
    low, high = ax.get_xlim()
    assert low < run.summary.variance_low.min() and run.summary.variance_high.max() < high


def test_variance_by_phi_draws_no_exact_tick_where_there_is_none(run):
    ax = figures.variance_by_phi(run.summary.assign(exact_variance=np.nan))
    assert not [c for c in ax.collections if c.get_label() == "exact"]


def test_a_choice_is_drawn_once_for_two_objectives(run):
    ax = figures.variance_by_phi(pd.concat([run.summary, run.summary.assign(objective="J_gamma", bias_sq=9.0)]))
    assert len(drawn(ax, "variance")) == 11


def test_bias_against_variance_shows_negative_estimates_and_both_intervals(run):
    assert (run.summary.bias_sq < 0).any()
    ax = figures.bias_against_variance(run.summary)
    bottom, top = ax.get_ylim()
    for row in run.summary.itertuples():
        np.testing.assert_allclose(drawn(ax, "bias_sq", row.phi), [[[row.variance, row.bias_sq]]])
        np.testing.assert_allclose(
            drawn(ax, "bias_sq interval", row.phi), [[[row.variance, row.bias_sq_low], [row.variance, row.bias_sq_high]]]
        )
        assert bottom < min(row.bias_sq, row.bias_sq_low) and row.bias_sq_high < top
    line = next(x for x in ax.lines if x.get_label() == "equal parts").get_xydata()
    np.testing.assert_allclose(line[:, 1], line[:, 0] / 100)


def test_running_distance_draws_groups_paths_and_the_slope(running):
    ax = figures.running_distance(running)
    assert ax.get_xscale() == ax.get_yscale() == "log"
    groups = running[running.kind == "groups"]
    for phi, rows in groups.groupby("phi"):
        points = np.concatenate(drawn(ax, "distance", phi))
        np.testing.assert_allclose(points[:, 1], rows.distance)
        np.testing.assert_allclose(points[:, 0], rows.n, rtol=0.08)  # set a little apart
        enough = rows[rows.groups >= 10]
        bars = np.array(drawn(ax, "distance interval", phi))[:, :, 1]
        np.testing.assert_allclose(bars, enough[["distance_low", "distance_high"]])
    slope = next(x for x in ax.lines if x.get_label() == "slope").get_xydata()
    assert np.polyfit(*np.log(slope).T, 1)[0] == pytest.approx(-0.5)
    assert any("-1/2" in t.get_text() for t in ax.texts)
    top = ax.get_ylim()[1]
    assert (slope[:, 1] < top).all()


def test_cosine_draws_the_closed_form_its_band_and_the_measured_points(cosine):
    ax = figures.cosine_against_batch_size(cosine.assign(note=np.where(cosine.phi == "q_value", "approximate", "")))
    lines = [x for x in ax.lines if x.get_label() == "closed form"]
    for phi, line, band in zip(synthetic_runs.SOURCE_TEXT, lines, ax.collections, strict=True):
        rows = cosine[(cosine.phi == phi) & (cosine.kind == "closed form")]
        np.testing.assert_allclose(line.get_xydata(), rows[["batch_size", "cosine"]])
        assert line.get_linestyle() == ("--" if phi == "q_value" else "-")
        corners = band.get_paths()[0].vertices[:, 1]
        assert corners.min() == pytest.approx(rows.cosine_low.min()) and corners.max() == pytest.approx(rows.cosine_high.max())
        measured = cosine[(cosine.phi == phi) & (cosine.kind == "measured")]
        np.testing.assert_allclose(np.concatenate(drawn(ax, "cosine", phi))[:, 1], measured.cosine)


def test_every_panel_draws_into_axes_it_is_given_and_knows_no_pyplot(run, running, cosine):
    for draw, table in (
        (figures.variance_by_phi, run.summary),
        (figures.bias_against_variance, run.summary),
        (figures.running_distance, running),
        (figures.cosine_against_batch_size, cosine),
    ):
        ax = Figure().add_subplot()
        assert draw(table, ax=ax) is ax
    code = (
        "import varlab, sys; assert 'matplotlib' not in sys.modules and 'hydra' not in sys.modules; "
        "from varlab.analysis import figures; assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_constant_estimator_is_drawn_without_error(run):
    nothing = run.summary.assign(**{c: 0.0 for c in run.summary if c.startswith(("variance", "bias_sq", "exact"))})
    figures.variance_by_phi(nothing)
    figures.bias_against_variance(nothing)


# ---- many runs ------------------------------------------------------------------------------------------------------


def test_a_sweep_finds_its_settings_and_averages_seeds_geometrically(sweep):
    figure = figures.figure_from_runs(sweep)
    assert [ax.get_title() for ax in figure.axes] == ["CartPole-v1", "FrozenLake-v1"]
    for ax, (_, rows) in zip(figure.axes, sweep.groupby("env", sort=False), strict=True):
        assert "gamma" in ax.get_xlabel() and [t.get_text() for t in ax.get_xticklabels()] == ["0.9", "1"]
        for phi, mine in rows.groupby("phi"):
            (line,) = drawn(ax, "geometric mean", phi)
            np.testing.assert_allclose(line[:, 1], np.exp(np.log(mine.variance).groupby(mine.gamma).mean()))
        runs = np.concatenate(drawn(ax, "run"))
        np.testing.assert_allclose(np.sort(runs[:, 1]), np.sort(rows.variance))
        low, high = ax.get_ylim()
        assert rows.variance.min() / 1.5 < low < rows.variance.min() and rows.variance.max() < high < 1.5 * rows.variance.max()
    assert len(figure.legends[0].get_texts()) == len(SMALL)


def test_single_runs_of_a_sweep_carry_their_intervals(sweep):
    rows = sweep[(sweep.seed == 1) & (sweep.env == "CartPole-v1")]
    ax = figures.figure_from_runs(rows, y="variance_ratio").axes[0]
    bars = np.concatenate([b[:, 1] for b in drawn(ax, "variance_ratio interval")])
    np.testing.assert_allclose(np.sort(bars), np.sort(rows[["variance_ratio_low", "variance_ratio_high"]].to_numpy().ravel()))


def test_seeds_that_share_a_sampled_reference_get_no_mean(sweep):
    shared = sweep.assign(reference_digest="one", mse=1.0)
    assert all(len(x) == 0 for ax in figures.figure_from_runs(shared, y="mse").axes for x in drawn(ax, "geometric mean"))
    apart = sweep.assign(reference_digest=sweep.digest, mse=1.0)
    assert all(len(x) == 2 for ax in figures.figure_from_runs(apart, y="mse").axes for x in drawn(ax, "geometric mean"))


def test_two_swept_settings_make_further_panels(sweep):
    wide = pd.concat([sweep.assign(horizon=h, digest=sweep.digest + str(h), run=sweep.run + str(h)) for h in (10, 20)])
    titles = [ax.get_title() for ax in figures.figure_from_runs(wide, x="gamma").axes]
    assert titles == [f"{e}, $H$ = {h}" for e in ("CartPole-v1", "FrozenLake-v1") for h in (10, 20)]


def test_a_sweep_of_nothing_is_refused(run):
    with pytest.raises(checks.InputError, match="differ in a setting"):
        figures.figure_from_runs(tables.gather([run.summary]))


# ---- files ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(run, running, cosine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("figures")
    keep = run.summary.phi.isin(SMALL)
    parts = run.summary[keep], running[running.phi.isin(SMALL)], cosine[cosine.phi.isin(SMALL)]
    figures.save_all(*parts, folder, command="python scripts/measure.py")
    return folder


NAMES = ("variance_by_phi", "bias_against_variance", "running_distance", "cosine_against_batch_size")


def test_files_are_written_with_captions_that_say_what_is_shown(folder, run):
    assert {p.name for p in folder.iterdir()} == {f"{n}.{k}" for n in NAMES for k in ("png", "pdf", "md", "tex")}
    for name in NAMES:
        text = (folder / f"{name}.md").read_text()
        for said in ("n = 500", run.summary.digest[0], run.summary.reference_digest[0], "95 % intervals", "never the spread",
                     "`python scripts/measure.py`"):  # fmt: skip
            assert said in text


@pytest.mark.parametrize("name", NAMES)
def test_pdf_has_no_type_3_font_and_png_has_the_resolution_of_print(folder, name):
    pdf = (folder / f"{name}.pdf").read_bytes()
    plain = pdf + b"".join(_inflated(pdf))
    assert b"/Type3" not in plain and b"/FontFile2" in plain
    raw = (folder / f"{name}.png").read_bytes()
    at = raw.index(b"pHYs")
    assert int.from_bytes(raw[at + 4 : at + 8], "big") * 0.0254 >= 199.5


def _inflated(pdf):
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        try:
            yield zlib.decompress(stream)
        except zlib.error:
            continue


def test_type_3_fonts_would_be_found(tmp_path):
    figure = Figure()
    figure.text(0.5, 0.5, "text")
    with matplotlib.rc_context({"pdf.fonttype": 3}):
        figure.savefig(tmp_path / "bad.pdf")
    pdf = (tmp_path / "bad.pdf").read_bytes()
    assert b"/Type3" in pdf + b"".join(_inflated(pdf))


def test_redrawing_gives_equal_files_and_other_runs_are_announced(folder, run, caplog):
    before = {p: p.read_bytes() for p in folder.glob("variance_by_phi.*")}
    rows = run.summary[run.summary.phi.isin(SMALL)]
    text = captions.caption("variance_by_phi", rows, "python scripts/measure.py")
    figures.save(figures.grid(rows, figures.variance_by_phi), folder, "variance_by_phi", text)
    assert {p: p.read_bytes() for p in before} == before and not caplog.records
    text = captions.caption("variance_by_phi", rows.assign(digest="0ther"))
    figures.save(figures.variance_by_phi(rows), folder, "variance_by_phi", text)
    assert "drawn from other runs" in caplog.text


def test_a_foreign_picture_is_not_touched(run, tmp_path):
    (tmp_path / "variance_by_phi.png").write_bytes(b"mine")
    with pytest.raises(checks.InputError, match="of unknown origin"):
        figures.save(
            figures.variance_by_phi(run.summary), tmp_path, "variance_by_phi", captions.caption("variance_by_phi", run.summary)
        )
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"mine"]


def test_panels_of_several_environments_share_one_legend(run, running):
    two = pd.concat([running.assign(env="A"), running.assign(env="B")])
    figure = figures.grid(two, figures.running_distance)
    assert [ax.get_title() for ax in figure.axes] == ["A", "B"]
    assert all(ax.get_legend() is None for ax in figure.axes) and len(figure.legends) == 1
    # A Φ that one environment lacks keeps an empty row, so that rows line up.
    summary = pd.concat([run.summary.assign(env="A"), run.summary[run.summary.phi != "q_value"].assign(env="B")])
    left, right = figures.grid(summary, figures.variance_by_phi).axes
    assert left.get_ylim() == right.get_ylim() and drawn(left, "variance", "gae(lam=0.95)")[0][0, 1] == 10
    assert drawn(right, "variance", "gae(lam=0.95)")[0][0, 1] == 10


def test_text_does_not_overlap_or_leave_the_page(run, running, cosine, sweep):
    several = [
        figures.grid(pd.concat([run.summary.assign(env=e) for e in ("A", "B", "C")]), figures.bias_against_variance),
        figures.grid(run.summary, figures.variance_by_phi),
        figures.grid(running, figures.running_distance),
        figures.grid(cosine, figures.cosine_against_batch_size),
        figures.figure_from_runs(sweep),
    ]
    for figure in several:
        with style.context():
            figure.draw_without_rendering()
        page = figure.bbox
        for ax in figure.axes:
            for axis, side in ((ax.xaxis, 0), (ax.yaxis, 1)):
                boxes = [t.get_window_extent() for t in axis.get_majorticklabels() if t.get_text() and t.get_visible()]
                view = sorted(
                    ax.transData.transform([(ax.get_xlim()[0], ax.get_ylim()[0]), (ax.get_xlim()[1], ax.get_ylim()[1])])[:, side]
                )
                inside = [b for b in boxes if view[0] - 1 <= (b.x0 + b.x1, b.y0 + b.y1)[side] / 2 <= view[1] + 1]
                assert len(inside) >= 2
                assert not any(a.overlaps(b) for a, b in itertools.combinations(inside, 2))
            title = ax.title.get_window_extent()
            assert not any(title.overlaps(t.get_window_extent()) for t in ax.texts if ax.get_title())
        for text in [t for ax in figure.axes for t in (ax.title, ax.xaxis.label, ax.yaxis.label)]:
            box = text.get_window_extent()
            assert not text.get_text() or (page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1)
        for legend in [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]:
            box = legend.get_window_extent()
            assert page.x0 <= box.x0 and box.x1 <= page.x1 + 0.5 and page.y0 <= box.y0
            assert not any(box.overlaps(ax.get_window_extent()) for ax in figure.axes)


def test_style_sizes_reach_the_page(run):
    wide = replace(style.PAPER, column=5.0)
    assert figures.variance_by_phi(run.summary, style=wide).figure.get_size_inches()[0] == 5.0
