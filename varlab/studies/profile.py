"""Profile along training: how noisy the gradient is at θ after θ, under every Φ.

A row per checkpoint and Φ holds what :func:`varlab.measure` says there (NSR = tr Cov g/‖∇J‖², kurtosis, cosine to ∇J) and

    between two   the measured E cos(ĝ, ĝ') of the independent estimates that the blocks are, N = n/50 trajectories each,
    components    tr Cov g = state + action + trajectory + across time, where the world is finite and values are exact.

Sources: A Closer Look at Deep Policy Gradients (Ilyas et al., 2020), of the cosines; The Mirage of Action-Dependent Baselines in
Reinforcement Learning (Tucker et al., 2018), of the components.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from torch import nn

from varlab import checks, estimators
from varlab.analysis import agreement, marks
from varlab.analysis import style as styles
from varlab.envs.base import Environment
from varlab.envs.registry import make as make_env
from varlab.estimators.base import Estimator
from varlab.experiment import Result, measure
from varlab.oracles.components import components
from varlab.types import Moments

#: Columns that a row has beyond those of a summary.
PARTS = ("state", "action", "trajectory", "across_time")
BETWEEN = ("between", "between_low", "between_high", "between_form", "between_size")
COLUMNS = ("checkpoint", "mean_length", *BETWEEN, *PARTS)


def profile(
    env: Environment | str,
    thetas: Mapping[str, nn.Module] | Sequence[tuple[str, nn.Module]],
    phi: Sequence[str | Estimator] | str | Estimator = estimators.SOURCE_TEXT,
    *,
    parts: bool = True,
    **settings: object,
) -> pd.DataFrame:
    """Measure every Φ at every θ.

    Args:
        env: a world, or a Gymnasium id.
        thetas: label → policy, in the order of training, such as ``{c: training.policy_at(c) for c in training.checkpoints}``.
        phi: as :func:`varlab.measure` takes them.
        parts: whether to add exact variance components where they exist.
        **settings: the plan of every measurement, as :func:`varlab.measure` takes it; ``n`` a multiple of 50 gives ``between``.
            A setting that is a mapping with the labels as keys (critics, references) is looked up by label.

    Returns:
        One row per θ, Φ and objective, in that order: the columns of the summary, and checkpoint (rank of the θ, from 0),
        mean_length (steps of a trajectory), between (with interval), between_form (1/(1 + NSR/N) of the same blocks),
        between_size (their N), and state, action, trajectory, across_time (NaN where there are no components).

    Raises:
        InputError: for no θ or a label given twice, besides what :func:`varlab.measure` refuses.
    """
    pairs = list(thetas.items()) if isinstance(thetas, Mapping) else list(thetas)
    labels = [str(label) for label, _ in pairs]
    if not pairs or len(set(labels)) < len(labels):
        raise checks.InputError(
            f"One θ or more, each with a label of its own, were expected, but the labels are {labels}; name each θ once."
        )
    env = make_env(env) if isinstance(env, str) else env
    chosen = {e.label: e for e in estimators.resolve(phi)}
    tables = []
    for rank, (label, (_, policy)) in enumerate(zip(labels, pairs, strict=True)):
        own = {name: x[label] if _by_label(x, labels) else x for name, x in settings.items()}
        result = measure(env, policy, list(chosen.values()), **{**own, "theta": label})
        tables.append(_rows(result, rank, lambda row, p=policy: _parts(env, p, chosen[row["phi"]], row) if parts else {}))
    return pd.concat(tables, ignore_index=True)


def _by_label(x: object, labels: list[str]) -> bool:
    return isinstance(x, Mapping) and set(x) == set(labels)


def _rows(result: Result, rank: int, parts: Callable[[Mapping[str, object]], dict[str, float]]) -> pd.DataFrame:
    """Return the summary of one checkpoint with the columns that a profile adds."""
    moments, rows = result.moments, []
    for row in result.summary.to_dict("records"):
        added = {"checkpoint": rank, "mean_length": moments.steps.sum() / moments.n}
        if _have_directions(moments, row["phi"]):
            estimates, size = agreement.from_moments(moments, row["phi"])
            found = agreement.between(estimates)
            low, high = agreement.interval(found)
            form = agreement.closed_form(estimates, size, size).value
            added |= dict(zip(BETWEEN, (found.value, low, high, form, size), strict=True))
        rows.append({**row, **dict.fromkeys(COLUMNS, np.nan), **added, **parts(row)})
    return pd.DataFrame(rows)


def _have_directions(moments: Moments, phi: str) -> bool:
    """Return whether the blocks are estimates of one size, none of which is zero (as it may be where a reward is rare)."""
    return len(set(moments.count)) == 1 and bool(agreement.nonzero(agreement.from_moments(moments, phi)[0]).all())


def _parts(env: Environment, policy: nn.Module, estimator: Estimator, row: Mapping[str, object]) -> dict[str, float]:
    """Return the exact components that a row's variance is the sum of, or nothing where they are not known.

    An exact variance in the row says that the oracle covers this Φ; fitted baselines and critics would be other Φ there.
    """
    if env.finite is None or not np.isfinite(row["exact_variance"]) or row["values_source"] not in ("exact", "none"):
        return {}
    same = {name: row[name] for name in ("gamma", "discount_weighting", "at_cut")}
    made = components(env, policy, estimator, cut=int(row["cut"]), **same)
    values = (made.state.sum(), made.action.sum(), made.trajectory.sum(), made.cross.sum())
    return dict(zip(PARTS, map(float, values), strict=True))


@dataclass(frozen=True)
class Panel:
    """One statistic of a profile: its column, what the axis says, and whether that is logarithmic."""

    column: str
    label: str
    log: bool


PANELS = (
    Panel("nsr", "NSR", True), Panel("cosine", r"cosine to $\nabla J$", False), Panel("between", "cosine between two", False),
    Panel("kurtosis", "kurtosis", True), *(Panel(p, f"{p.replace('_', ' ')} / variance", False) for p in PARTS),
)  # fmt: skip


def draw(table: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw a profile: one panel per statistic that the rows have, checkpoints from left to right, one line per Φ.

    Args:
        table: rows of :func:`profile`, or summaries of measurements at several θ, in the order of training; of one environment,
            policy and objective.
        style: see :func:`varlab.analysis.style.make`.

    Returns:
        The Figure.

    Raises:
        InputError: if a Φ has two rows at one θ.
    """
    if table.duplicated(["theta", "phi"]).any():
        raise checks.InputError(
            "One row for each θ and Φ was expected for a profile, but some have several; choose one world, seed and objective."
        )
    table = table.assign(**{p: table[p] / table["exact_variance"] for p in PARTS if p in table})
    panels = [p for p in PANELS if np.isfinite(marks.column(table, p.column)).any()]
    names, thetas = styles.order(table["phi"]), list(dict.fromkeys(table["theta"]))
    across = min(4 if len(panels) % 4 == 0 else 3, len(panels))
    down = -(-len(panels) // across)
    with styles.context(style) as s:
        line = s.font_size / 72
        size = (s.text, down * 0.86 * s.text / across + line * 1.6 * (1 + -(-len(names) // 4)))
        figure = styles.Figure(figsize=size, layout="constrained")
        axs = figure.subplots(down, across, squeeze=False)
        for ax, panel in zip(axs.flat, panels, strict=False):
            _panel(ax, table, panel, names, thetas)
        for ax in axs.flat[len(panels) :]:
            ax.remove()
        keys = marks.handles(names)
        figure.legend(handles=keys, loc="outside lower center", ncols=min(4, len(keys)), handletextpad=0.4, columnspacing=1.4)
    return figure


def _panel(ax: styles.Axes, table: pd.DataFrame, panel: Panel, names: list[str], thetas: list[str]) -> None:
    for i, phi in enumerate(names):
        mine, shift = table[table["phi"] == phi], 0.24 * ((i + 0.5) / len(names) - 0.5)
        x = mine["theta"].map(thetas.index) + shift
        ax.plot(x, mine[panel.column], color=styles.look(phi).color, linewidth=0.6, zorder=2)
        for at, row in zip(x, mine.to_dict("records"), strict=True):
            marks.point(ax, row, at, panel.column, "y")
    if panel.log:
        marks.log(ax, "y", marks.span(table, panel.column))
    ax.set_xticks(range(len(thetas)), [t.replace("_", " ") for t in thetas])
    ax.set_xlim(-0.4, len(thetas) - 0.6)
    ax.set_ylabel(panel.label)
    ax.grid(axis="y")
