"""Styles of venues: widths and type by tueplots, PDFs of that width with embedded fonts, no text cut or overlapping."""

import itertools
import re
import zlib
from dataclasses import asdict
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
import synthetic_runs
import yaml
from matplotlib.figure import Figure

from varlab import checks
from varlab.analysis import estimates, figures, layout, marks, style, venues

CONF = Path(__file__).resolve().parents[2] / "conf" / "style"
STYLES = {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in CONF.glob("*.yaml")}
#: column and text in inches, labels and ticks in points, as the style files of the venues have them.
ASKED = {"icml": (3.25, 6.75, 8, 6), "neurips": (5.5, 5.5, 9, 7), "jmlr": (6.0, 6.0, 9.95, 7.95)}
PAGES = [
    ("icml", None, ("curves", "variances")), ("icml", 1, ("curves", "bias")), ("neurips", None, ("points", "bias")),
    ("jmlr", None, ("curve",)), ("talk", None, ("variances",)),
]  # fmt: skip


def page(name, columns=None, **fields):
    return style.make({**STYLES[name], "columns": columns, **fields})


# ---- what a style says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STYLES)
def test_style_files_are_styles(name):
    assert set(STYLES[name]) == set(asdict(style.PAPER))  # all can be set on the command line
    assert style.make(STYLES[name]).name == name
    assert name != "paper" or style.make(STYLES[name]) == style.PAPER


@pytest.mark.parametrize("name", ASKED)
def test_a_venue_gives_widths_and_sizes_of_type(name):
    made = page(name)
    assert (made.column, made.text, made.font_size, made.small_size) == pytest.approx(ASKED[name])
    with style.context(made):
        rc = dict(matplotlib.rcParams)
    sizes = [rc[f"{what}size"] for what in ("axes.label", "axes.title", "xtick.label", "ytick.label", "legend.font")]
    assert sizes == pytest.approx([*ASKED[name][2:3] * 2, *ASKED[name][3:] * 3])
    assert rc["pdf.fonttype"] == 42 and rc["font.family"] == ["STIXGeneral"] and not rc["text.usetex"]


def test_a_number_of_the_style_wins_over_its_venue_and_null_does_not():
    made = page("icml", font_size=7.0, column=None)
    assert (made.font_size, made.column, made.text) == (7.0, 3.25, 6.75)
    assert style.make({"venue": "icml2024", "text": 5.0}).text == 5.0


def test_every_venue_of_tueplots_gives_a_style():
    assert {"icml2024", "neurips2024", "jmlr2001", "tmlr2023"} <= set(venues.known())
    for venue in venues.known():
        made = style.make({"venue": venue})
        assert 3 < made.column <= made.text < 8 and 5 < made.small_size < made.font_size < 11


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"fontsize": 3}, "font_size"),
        ({"dpi": 72}, "at least 200"),
        ({"venue": "iclm2024"}, "No venue is called 'iclm2024'; the nearest names are .*icml2024"),
        ({"columns": 3}, "must be 1 .* 2 .* or null .*but it is 3"),
        ({"font": "No Such Font"}, "'No Such Font' was not found; set style.font to STIXGeneral or DejaVu Sans"),
    ],
)
def test_a_wrong_style_is_one_sentence(settings, sentence):
    with pytest.raises(checks.InputError, match=sentence):
        style.make(settings)


def test_widths_and_panels_follow_columns():
    free, one, two = (page("icml", columns) for columns in (None, 1, 2))
    assert [s.width(wide) for s in (free, one, two) for wide in (False, True)] == [3.25, 6.75, 3.25, 3.25, 6.75, 6.75]
    # 6.75 in hold 60.75 sizes of 8 pt, 3.25 in hold 29.25; a panel takes 20.
    assert [free.across(4), free.across(2), one.across(4), two.across(4), one.across(3, panel=14)] == [3, 2, 1, 3, 2]
    assert [page(name).across(4) for name in ("paper", "talk", "neurips", "jmlr")] == [3, 3, 2, 2]
    assert page("icml", font_size=200.0).across(3) == 1


# ---- what is drawn --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run():
    return synthetic_runs.make(n=200, parameters=5, exact=True)


def curves():
    """Rows with the longest names and labels that studies have."""
    x, labels = np.array([1.0, 10.0, 1e4]), ("total_return, γ = 0.9", "value_baseline", "trajectory_control_variate", "σ_a = 0.3")
    rows = [
        {"panel": panel, "label": label, "x": at, "value": y, "value_low": 0.8 * y, "value_high": 1.3 * y, "exact": y}
        for panel in ("U(0, 1), features, 3 to the whole gradient", "N(0, 1), table, 3")
        for i, label in enumerate(labels)
        for at, y in zip(x, 10.0 ** (i + np.arange(3)), strict=True)
    ]
    return pd.DataFrame(rows)


def drawings(run, settings):
    rows = curves()
    points = rows[rows["x"] == 1.0].drop(columns="x")
    said = {"xlabel": "trajectories $N$ of a batch", "ylabel": "share of worlds with both best values interior"}
    summary = run.summary[run.summary["phi"].isin(("total_return", "value_baseline", "gae(lam=0.95)"))]
    two = pd.concat([summary.assign(env=e) for e in "AB"])
    return {
        "curves": lambda: estimates.draw(rows, settings, log="xy", line=1.0, **said),
        "curve": lambda: estimates.draw(rows[rows["panel"] == "N(0, 1), table, 3"], settings, log="xy", **said),
        "points": lambda: estimates.draw(points, settings, log="x", xlabel="variance over that with V"),
        "variances": lambda: figures.grid(summary, figures.variance_by_phi, style=settings),
        "bias": lambda: figures.grid(two, figures.bias_against_variance, style=settings),
    }


def inflated(pdf):
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", pdf, re.DOTALL):
        try:
            yield zlib.decompress(stream)
        except zlib.error:
            continue


def cut(figure):
    """Return the texts that leave the page, and pairs of titles or labels that run into each other."""
    figure.draw_without_rendering()
    sheet, wrong = figure.bbox.padded(0.5), []
    texts = [t for ax in figure.axes for t in (ax.title, ax.xaxis.label, ax.yaxis.label) if t.get_text()]
    texts += [t for legend in figure.legends for t in legend.get_texts()]
    boxes = [(t.get_text(), t.get_window_extent()) for t in texts]
    for said, box in boxes:
        if not (sheet.x0 <= box.x0 and box.x1 <= sheet.x1 and sheet.y0 <= box.y0 and box.y1 <= sheet.y1):
            wrong.append(said)
    wrong += [(a, b) for (a, one), (b, other) in itertools.combinations(boxes, 2) if one.overlaps(other)]
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            ticks = [t.get_window_extent() for t in axis.get_majorticklabels() if t.get_text()]
            wrong += [f"ticks of {ax.get_title()}" for a, b in itertools.pairwise(ticks) if a.overlaps(b)]
    return wrong


@pytest.mark.parametrize(("name", "columns", "shown"), PAGES)
def test_saved_pdfs_have_the_width_of_the_page_embedded_fonts_and_no_text_is_cut(run, tmp_path, name, columns, shown):
    settings = page(name, columns, dpi=200)
    for what in shown:
        figure = drawings(run, settings)[what]()
        figures.save(figure, tmp_path, what, style=settings)
        pdf = (tmp_path / f"{what}.pdf").read_bytes()
        wanted = settings.text if what in ("curves", "points", "bias") and columns is None else settings.column
        boxes = re.findall(rb"/MediaBox \[ ?([\d. ]+)\]", pdf)
        assert len(boxes) == 1 and float(boxes[0].split()[2]) / 72 == pytest.approx(wanted, abs=1e-3), what
        plain = pdf + b"".join(inflated(pdf))
        assert b"/Type3" not in plain and b"/FontFile2" in plain and b"/Subtype /Image" not in plain, what
        source = (tmp_path / f"{what}.tex").read_text(encoding="utf-8")
        assert ("{figure*}" in source) == (wanted > settings.column), what
        with style.context(settings):
            assert cut(figure) == [], what


def test_text_that_is_cut_would_be_found(run):
    settings = page("jmlr")
    with style.context(settings):
        figure = drawings(run, settings)["curve"]()
        assert cut(figure) == ["share of worlds with both best values interior"]
        style.wrap(figure)
        assert cut(figure) == []
        beside = Figure(figsize=(2, 1))
        for at in (0.1, 0.5):
            beside.add_axes((at, 0.2, 0.3, 0.5)).set_title("longer than its axes")
        assert ("longer than its axes",) * 2 in cut(beside)


def test_only_what_is_too_long_is_broken_and_never_inside_mathtext():
    with style.context():
        ax = style.axes(2.0, 2.0)
        ax.set(title=r"$a + b + c$ over $\Vert \nabla J \Vert^2$ of both gradients", xlabel="short", ylabel="unbreakable" * 4)
        style.wrap(ax.figure)
    assert ax.get_title().count("\n") == 1 and all(line.count("$") % 2 == 0 for line in ax.get_title().split("\n"))
    assert ax.get_xlabel() == "short" and ax.get_ylabel() == "unbreakable" * 4


def test_a_figure_too_wide_for_a_column_is_announced(tmp_path, caplog):
    for width, said in ((6.75, True), (3.25, False)):
        caplog.clear()
        figures.save(style.axes(width, 1.0), tmp_path, "wide", style=page("icml", 1))
        assert ("wide needs the width of the text" in caplog.text) == said


def test_a_legend_has_as_few_rows_as_fit_and_columns_of_equal_length():
    keys = marks.handles(["total_return", "reward_to_go", "value_baseline", "gae(lam=0.95)", "trajectory_control_variate"])
    with style.context(page("icml")):
        for width, most, rows, columns in ((20.0, 6, 1, 5), (20.0, 4, 2, 3), (3.25, 6, 3, 2), (1.0, 6, 5, 1)):
            figure = Figure(figsize=(width, 3), layout="constrained")
            assert marks.below(figure, keys, most) == rows
            (legend,) = figure.legends
            assert legend._ncols == columns and (columns == 1 or legend.get_window_extent().width <= figure.bbox.width)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("total_return, γ = 0.9", r"total return $R_\gamma$, γ = 0.9"), ("σ_a = 0.3", "$σ_{a}$ = 0.3"), ("‖z_a‖²", "‖$z_{a}$‖²"),
        ("1 − 2π_a", "1 − 2$π_{a}$"), (r"$\bar x_a$ of my_own", r"$\bar x_a$ of my own"), ("V/none", "V/none"),
    ],
)  # fmt: skip
def test_no_raw_identifier_reaches_a_figure(text, shown):
    assert style.readable(text) == shown


def test_series_panels_and_labels_are_made_readable():
    figure = estimates.draw(curves().assign(panel="over σ_a"), xlabel="z_t", ylabel="total_return")
    (ax,) = figure.axes
    said = [ax.get_title(), ax.get_xlabel(), ax.get_ylabel(), *(t.get_text() for t in figure.legends[0].get_texts())]
    assert all("_" not in re.sub(r"\$[^$]*\$", "", text) for text in said) and "over $σ_{a}$" in said


def test_the_page_is_layout_alone():
    assert style.Style is layout.Style and style.context is layout.context


def test_the_readme_names_the_sizes_of_every_style():
    """The table of README.md, row by row."""
    text = (CONF.parents[1] / "README.md").read_text(encoding="utf-8")
    for name in STYLES:
        s = page(name)
        small = s.small_size or s.font_size - 1
        ((column, width, sizes),) = re.findall(rf"\| `{name}` \| ([^|]+) \| ([^|]+) \| ([^|]+) \|", text)
        assert [float(x) for x in (column, width, *sizes.split("/"))] == pytest.approx([s.column, s.text, s.font_size, small])
