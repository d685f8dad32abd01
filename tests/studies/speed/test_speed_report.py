"""The benchmark's rows as JSON, lines, table and figure; absent peers have no ratio."""

import json

from varlab.analysis import readme
from varlab.studies.speed import report, targets
from varlab.studies.speed.targets import Row, absent, with_target

WORK = "moments K=8 T=100 MLP 64×64; N=512 P=4610"
ROWS = [
    with_target(Row(WORK, targets.JAX, 2.0, 1.9, 2.5, seconds=0.1)),
    with_target(Row(WORK, targets.VMAP, 3.0, 2.9, 130.4, seconds=0.1)),
    Row("moments K=64 T=100 MLP 64×64; N=512 P=4610", targets.JAX, 4.0, 3.0, 5.0),
    Row("trace variance K=8 T=1000 MLP 64×64; N=64 P=4610", targets.GRAMS, 0.4, 0.3, 0.5),
    absent(WORK, targets.OPACUS, "opacus is not installed"),
]


def test_json_has_the_agreed_fields_and_null_for_absent_peers():
    rows = json.loads(json.dumps(report.as_json(ROWS)))
    assert rows[0] == {
        "work": WORK, "peer": targets.JAX, "ratio_median": 2.0, "ratio_min": 1.9, "ratio_max": 2.5, "target": 1.8,
    }  # fmt: skip
    assert rows[-1]["ratio_median"] is None and rows[-1]["target"] == 1.8


def test_lines_say_whether_a_target_was_reached():
    assert report.line(ROWS[0]).endswith("2 × jax.jit(vmap(grad)) (1.9 to 2.5; target 1.8 reached)")
    assert report.line(ROWS[1]).endswith("(2.9 to 130; target 4 missed)")
    assert report.line(ROWS[-1]).endswith("is absent: opacus is not installed")


def test_tables_show_every_row_and_the_readme_those_with_targets():
    table = report.to_markdown(ROWS, "Two cores.")
    assert table.count("\n| ") == 2 + len(ROWS) and "≥ 1.8 ✓" in table and "≥ 4 missed" in table and "| – | – | ≥ 1.8 |" in table
    short = readme.speed_table(json.dumps(report.as_json(ROWS)))
    assert short.count("\n") == 1 + 3 and f"| {WORK} | {targets.OPACUS} | absent | ≥ 1.8 |" in short
    assert "| 3 (2.9 to 130) | ≥ 4, missed |" in short


def test_the_figure_has_a_panel_for_each_result_and_length():
    figure = report.draw(ROWS)
    panels = figure.axes
    assert len(panels) == 4 and [ax.get_title() for ax in panels[:2]] == ["$T$ = 100", "$T$ = 1000"]
    (line,) = [x for c in panels[0].containers for x in c.lines[:1] if list(x.get_xdata()) == [8, 64]]
    assert list(line.get_ydata()) == [2.0, 4.0]
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert len(texts) == 3 and not any("_" in t for t in texts)
    assert report.draw([ROWS[-1]]) is None


def test_growth_is_drawn_over_the_smallest_size():
    rows = [Row("time of a measurement, n; 1,000 to 4,000", targets.IN_PROPORTION, 0.8, 0.7, 0.9)]
    rows += [Row(f"time of trace variance, K; 1 to {k}", targets.IN_PROPORTION, k / 2, 1.0, k) for k in (8, 64)]
    assert report.grown(rows) == {
        "n": {"a measurement": [(1000, 1.0), (4000, 5.0)]}, "K": {"trace variance": [(1, 1.0), (8, 2.0), (64, 2.0)]},
    }  # fmt: skip
    figure = report.draw_growth(rows + ROWS)
    assert [ax.get_xlabel() for ax in figure.axes] == ["$n$", "$K$"]
    (line,) = [x for x in figure.axes[1].lines if x.get_gid() != "proportion"]
    assert list(line.get_ydata()) == [1.0, 2.0, 2.0] and report.draw_growth(ROWS) is None


def test_colours_and_markers_of_peers_differ():
    for part in (0, 1, 2):
        assert len({look[part] for look in report.LOOKS.values()}) == len(report.LOOKS)
