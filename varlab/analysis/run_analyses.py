"""Further analyses of finished runs by name: what each tabulates and how it is drawn.

``efficiency``, ``tails``, ``layers`` and ``errors`` are about one run, ``lambdas`` and ``slopes`` about several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from varlab import checks, storage
from varlab.analysis import estimates, marks, tables
from varlab.analysis import style as styles
from varlab.analysis.efficiency import efficiency_table
from varlab.analysis.layers import layer_table
from varlab.analysis.mse import error_table
from varlab.analysis.slopes import slope_table
from varlab.analysis.tails import FOURTH_MOMENT, tail_table

#: Batch sizes N of mean squared errors.
SIZES = tuple(float(m * 10**k) for k in range(5) for m in (1, 3))
#: Batch sizes of errors against λ.
FEW_SIZES = (10.0, 100.0, 1000.0)


@dataclass(frozen=True)
class Analysis:
    """One analysis.

    Attributes:
        table: run folders → rows.
        draw: (rows, style) → Figure.
        caption: what is drawn.
        each: whether it is made for every run by itself.
    """

    table: Callable[[Sequence[str]], pd.DataFrame]
    draw: Callable[[pd.DataFrame, object], styles.Figure]
    caption: str
    each: bool = True


def _efficiency(folders: Sequence[str]) -> pd.DataFrame:
    summary, moments, _, _ = storage.read_run(folders[0])
    return efficiency_table(moments, summary)


def _tails(folders: Sequence[str]) -> pd.DataFrame:
    summary, moments, _, _ = storage.read_run(folders[0])
    return tail_table(storage.read_trajectories(folders[0]), summary, len(moments.count))


def _layers(folders: Sequence[str]) -> pd.DataFrame:
    _, moments, _, record = storage.read_run(folders[0])
    return layer_table(moments, record.get("layers", {}))


def _errors(folders: Sequence[str], sizes: Sequence[float] = SIZES) -> pd.DataFrame:
    summary, moments, references, _ = storage.read_run(folders[0])
    kinds = summary.drop_duplicates("phi").set_index("phi").get("target", pd.Series(dtype=str))
    sizes = [size for size in sizes if size <= moments.n]  # beyond n the error of the estimated bias is all there is to see
    parts = []
    for objective, reference in references.items():
        rows = summary[summary["objective"] == objective]
        if not rows["flag"].astype(str).str.contains("gradient-not-resolved").any():
            proven = rows.loc[rows["unbiased"].isin([True]), "phi"].tolist() if "unbiased" in rows else []
            parts.append(error_table(moments, reference, sizes, unbiased=proven).assign(objective=objective))
    if not parts:
        raise checks.InputError(
            f"A gradient that stands out from its error was expected in {folders[0]}, but it is not resolved; raise n or "
            "reference.n."
        )
    table = pd.concat(parts, ignore_index=True)
    return table[table["phi"].map(kinds).fillna("gradient") == "gradient"]


def _lambdas(folders: Sequence[str]) -> pd.DataFrame:
    parts = []
    for folder in folders:
        first = storage.read_run(folder)[0].dropna(subset=["values_source"])
        table = _errors([folder], FEW_SIZES)
        source = first.set_index("phi")["values_source"]
        table = table[table["lam"].notna()].assign(env=first["env"].iloc[0], gamma=first["gamma"].iloc[0], run=str(folder))
        parts.append(table.assign(values_source=table["phi"].map(source)))
    table = pd.concat(parts, ignore_index=True)
    if table.groupby("run")["lam"].nunique().max() < 2 if len(table) else True:
        raise checks.InputError(
            "Runs with two λ at least were expected, but none came; measure with phi=[gae] and phi.gae.lam=[0,0.9,1]."
        )
    return table


def _slopes(folders: Sequence[str]) -> pd.DataFrame:
    table = tables.gather(folders)
    swept = [c for c in tables.varying(table) if c not in ("env", "seed", "reference_seed", "cut")]
    numbers = [c for c in swept if pd.api.types.is_numeric_dtype(table[c])]
    if not numbers:
        raise checks.InputError(
            "Runs that differ in a number, such as env.horizon, were expected for a slope, but all share theirs; sweep "
            "one with -m."
        )
    return slope_table(table, numbers[0])


# ---- figures


def _label(phi: str) -> str:
    return phi if styles.parse(phi)[0] in styles.FAMILIES else styles.label(phi)


def _stacked(table: pd.DataFrame, panels: dict[str, str]) -> pd.DataFrame:
    """Return one row per Φ and panel: column → title."""
    names = styles.order(table["phi"])
    rows = []
    for column, title in panels.items():
        for phi in names:
            for row in table[table["phi"] == phi].to_dict("records"):
                ends = [row.get(f"{column}{end}", np.nan) for end in ("", "_low", "_high")]
                number = dict(zip(("value", "value_low", "value_high"), ends, strict=True))
                rows.append({"label": _label(phi), "panel": title, **number})
    return pd.DataFrame(rows)


def draw_efficiency(table: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw variance and variance × steps, both over those of one Φ."""
    base = styles.label(table["relative_to"].iloc[0])
    rows = _stacked(table, {"relative_variance": "variance", "relative_work": "variance × steps per trajectory"})
    return estimates.draw(rows[rows["value"].notna()], style, xlabel=f"over that of {base}", log="x", line=1.0)


def draw_tails(table: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw kurtosis, tail index and what the largest gradients contribute."""
    panels = {
        "kurtosis": "kurtosis", "tail_index": r"tail index $\alpha$ of $\Vert g-\bar g\Vert$",
        "top_share": r"share of the largest 1 % in $\sum\Vert g-\bar g\Vert^2$", "largest_ratio": "share of the largest one",
    }  # fmt: skip
    rows = _stacked(table, panels)
    figure = estimates.draw(rows[np.isfinite(rows["value"])], style, log="x")
    for ax in figure.axes:
        if ax.get_title() == panels["tail_index"] and ax.get_xlim()[0] < FOURTH_MOMENT < ax.get_xlim()[1]:
            ax.axvline(FOURTH_MOMENT, color=marks.GREY, linestyle="--", linewidth=0.8, zorder=1)
    return figure


def draw_layers(table: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw the share of every layer in the variance of every Φ, one panel per layer on a common axis."""
    parts = []
    for layer, part in table.groupby("layer", sort=False):
        title = f"{str(layer).replace('_', ' ')} ({part['parameters'].iloc[0]:,})"
        parts.append(_stacked(part, {"share": title}))
    rows = pd.concat(parts)
    figure = estimates.draw(rows[rows["value"] > 0], style, xlabel=r"share of tr Cov $\hat g$", log="x", columns=3)
    values = {float(v) for c in ("value", "value_low", "value_high") for v in rows[c] if v > 0}
    with styles.context(style):
        for ax in figure.axes:
            marks.log(ax, "x", values)
    return figure


def _resolved(rows: pd.DataFrame) -> pd.DataFrame:
    """Return what a logarithmic axis can show: positive estimates, and intervals that end above 0."""
    rows = rows.assign(value_low=rows["value_low"].clip(lower=0.0).where(rows["value_low"] > 0, rows["value"] * 0.01))
    return rows[rows["value"] > 0]


def _valued(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with their mean squared errors as the values to draw."""
    return rows.assign(value=rows["mse"], value_low=rows["mse_low"], value_high=rows["mse_high"])


def draw_errors(table: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw MSE_N/‖∇J‖² of every Φ against N."""
    names = styles.order(table["phi"])
    rows = table.assign(label=table["phi"].map(_label), x=table["batch_size"], rank=table["phi"].map(names.index))
    rows = _valued(rows).sort_values(["rank", "x"])
    if table["objective"].nunique() > 1:
        rows["panel"] = table["objective"].map({"J_1": "$J$", "J_gamma": r"$J_\gamma$"})
    labels = {"xlabel": "batch size $N$ (trajectories)", "ylabel": r"MSE$_N$ / $\Vert\nabla J\Vert^2$"}
    return estimates.draw(_resolved(rows), style, log="xy", **labels)


def draw_lambdas(table: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw MSE_N/‖∇J‖² of GAE against λ, one curve for each N and one panel for each source of values."""
    rows = table.assign(label=[f"$N = {size:g}$" for size in table["batch_size"]], x=table["lam"])
    told = [c for c in ("env", "gamma", "objective", "values_source") if table[c].nunique() > 1]
    if told:
        rows["panel"] = ["values " + _source(v) if told == ["values_source"] else ", ".join(map(str, v)).replace("_", " ")
                         for v in (table["values_source"] if told == ["values_source"] else table[told].to_numpy())]  # fmt: skip
    rows = _valued(rows)
    return estimates.draw(_resolved(rows), style, log="y", xlabel=r"$\lambda$", ylabel=r"MSE$_N$ / $\Vert\nabla J\Vert^2$")


def _source(name: str) -> str:
    """Return a source of values as a title says it: ``exact+0.5e(seed=0)`` is ``exact + 0.5 e``."""
    base, _, error = str(name).partition("+")
    return base.split(":")[0] + (f" + {error.split('e(')[0]} e" if error else "")


def draw_slopes(table: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw the fitted slope of every Φ."""
    setting = styles.SETTINGS.get(table["x"].iloc[0], str(table["x"].iloc[0]).replace("_", " "))
    setting = setting.split()[-1] if "$" in setting else setting  # the symbol alone
    keys = [c for c in table.columns[: list(table.columns).index("phi")] if table[c].nunique(dropna=False) > 1]
    table = table.assign(panel=[", ".join(map(str, v)).replace("_", " ") for v in table[keys].to_numpy()] if keys else "")
    parts = [_stacked(part, {"slope": title}) for title, part in table.groupby("panel", sort=False)]
    rows = pd.concat(parts) if keys else pd.concat(parts).drop(columns="panel")
    name = str(table["y"].iloc[0]).replace("_", " ")
    return estimates.draw(rows, style, xlabel=f"slope of log {name} over log {setting}", columns=3)


ANALYSES = {
    "efficiency": Analysis(
        _efficiency, draw_efficiency,
        "Variance, and variance × environment steps per trajectory (branches of cloned values and the shared data of critics and "
        "baselines included), over those of one Φ, paired.",
    ),
    "tails": Analysis(
        _tails, draw_tails,
        "Tails of the per-trajectory gradients about the pilot's mean: kurtosis E‖g − ḡ‖⁴/(E‖g − ḡ‖²)², Hill's tail index of "
        "‖g − ḡ‖ from the largest √n of them (dashed: 4, below which the fourth moment is infinite), and the share of Σ‖g − ḡ‖² "
        "that the largest 1 %, and the largest one, contribute. The last is a number of this sample, without interval.",
    ),
    "layers": Analysis(
        _layers, draw_layers, "Share of each parameter tensor (its entries in brackets) in tr Cov ĝ; shares of one Φ sum to 1."
    ),
    "errors": Analysis(
        _errors, draw_errors, "Mean squared error (bias² + variance/N)/‖∇J‖² of a batch mean of N trajectories."
    ),
    "lambdas": Analysis(
        _lambdas, draw_lambdas, "Mean squared error (bias² + variance/N)/‖∇J‖² of GAE(λ) at several batch sizes N.", each=False
    ),
    "slopes": Analysis(
        _slopes, draw_slopes,
        "Least-squares slope of the logarithm of the variance over that of the swept setting. Points that share a seed are taken "
        "as independent.", each=False,
    ),
}  # fmt: skip


def analyses(names: Sequence[str], folders: Sequence[str]) -> list[tuple[str, Analysis, list[str], pd.DataFrame]]:
    """Make the tables of some analyses.

    Args:
        names: of :data:`ANALYSES`.
        folders: run folders.

    Returns:
        (name of the files, analysis, folders, rows) of each table: one for every run where it is about one run.
    """
    made = []
    for name in names:
        analysis = ANALYSES[checks.one_of("analysis", name, ANALYSES)]
        groups = [[folder] for folder in folders] if analysis.each else [list(folders)]
        for i, group in enumerate(groups):
            made.append((name if len(groups) == 1 else f"{name}_{i + 1}", analysis, group, analysis.table(group)))
    return made
