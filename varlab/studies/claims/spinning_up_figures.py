"""Figures of the Spinning Up studies that the default drawing does not serve as it stands."""

from __future__ import annotations

import numpy as np
import pandas as pd

from varlab.analysis import estimates, marks
from varlab.analysis import style as styles

#: Luminance grows with the value, so that signs can be told in grey.
MAP = "cividis"
#: Names of values read from exact recursions, on the axis.
FLOOR = 1e-17


def deviations(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw relative deviations on a logarithmic axis, identities first; what is 0 stands at the left edge."""
    kept = rows[
        rows["quantity"].isin(("mean", "score", "past", "expected score")) & ~rows["label"].str.startswith("largest of all")
    ]
    said = {"mean": "E g", "score": "score of τ", "past": "E g", "expected score": "E z"}
    drawn = kept.assign(label=[f"{said[q]}: {_symbol(label)}" for q, label in zip(kept["quantity"], kept["label"], strict=True)])
    drawn = drawn.sort_values("value", key=lambda v: v > 1e-9, kind="stable")
    for column in ("value", "value_low", "value_high"):
        drawn[column] = drawn[column].clip(lower=FLOOR)
    figure = estimates.draw(drawn, style, xlabel="largest relative deviation", log="x", line=1e-9)
    figure.axes[0].set_xlim(FLOOR / 5, 500)
    return figure


def _symbol(label: str) -> str:
    said = {"total_return − reward_to_go": r"$R - G_t$", "total_return − from the next step": r"$R - G_{t+1}$"}
    if label in said:
        return said[label]
    known = styles.parse(label)[0] in styles.FAMILIES
    return styles.label(label) if known else label


def losses(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw the cosine, the loss and the change of J along the minimisation."""
    titles = {"cosine": r"cosine of $-\nabla L$ with $\nabla J$", "loss": "loss $L$", "J": "change of $J$"}
    drawn = rows[rows["x"].notna()]
    kinds = drawn["quantity"].str.split().str[0]
    started = drawn.groupby(["quantity", "label"])["value"].transform("first")
    drawn = drawn.assign(value=drawn["value"] - started.where(kinds == "J", 0.0))
    drawn = drawn.assign(panel=[titles[k] for k in kinds]).sort_values("x")
    return estimates.draw(drawn[drawn["x"] % 5 == 0], style, xlabel="steps down the loss", columns=3)


def maps(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw the maps of E[z_t r_u]; a dot marks an entry whose interval excludes 0."""
    cells = rows[rows["quantity"] == "share"]
    panels = list(dict.fromkeys(cells["label"]))
    with styles.context(style) as s:
        width, across = s.width(wide=True), s.across(len(panels))
        down = -(-len(panels) // across)
        figure = styles.Figure(figsize=(width, down * 0.88 * width / across), layout="constrained")
        axs = figure.subplots(down, across, squeeze=False)
        for ax, panel in zip(axs.flat, panels, strict=False):
            here = cells[cells["label"] == panel].astype({"t": int, "u": int})
            grids = [here.pivot(index="t", columns="u", values=c).to_numpy() for c in ("value", "value_low", "value_high")]
            most = float(np.abs(grids[0]).max())
            image = ax.imshow(grids[0], cmap=MAP, vmin=-most, vmax=most, interpolation="nearest")
            size = len(grids[0])
            if (here["n"] > 0).any():
                t, u = np.nonzero((grids[1] > 0) | (grids[2] < 0))
                ax.plot(u, t, ".", color="black", markersize=0.45 * s.marker_size)
            steps = np.arange(size + 1) - 0.5
            ax.plot(np.repeat(steps, 2)[:-1], np.repeat(steps, 2)[1:], color="white", linewidth=0.9)
            ax.set(title=panel, xlabel="time $u$ of the reward", xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
            bar = figure.colorbar(image, ax=ax, shrink=0.9)
            bar.outline.set_linewidth(0.4)
            ticks = range(0, size, 2 if size <= 12 else 4)
            ax.set_xticks(list(ticks))
            ax.set_yticks(list(ticks))
        for ax in axs[:, 0]:
            ax.set_ylabel("time $t$ of the step")
        for ax in axs.flat[len(panels) :]:
            ax.remove()
    return figure


def curves_of_p(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw exact variances over p on both worlds."""
    order = ("total_return", "1 − p", "reward_to_go", "value_baseline")  # of looks
    drawn = rows[rows["x"].notna() & rows["label"].isin(order)].sort_values(
        "label", key=lambda c: c.map(order.index), kind="stable"
    )
    drawn = drawn.assign(label=drawn["label"].replace({"1 − p": "$b = 1 - p$"}))
    drawn = drawn[(100 * drawn["x"]).round().astype(int) % 6 == 2]
    return estimates.draw(drawn, style, xlabel=r"$p = \pi(a = 1)$", ylabel="variance of one derivative")


def cartpole_figure(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw the parts of the variance of the total return, and what baselines leave of the variance with reward-to-go."""
    parts = {
        "Var(G)/Var(R)": r"Var$\,G$ / Var$\,R$", "Var(D)/Var(R)": r"Var$\,D$ / Var$\,R$",
        "2 Cov(G, D)/Var(R)": r"2 Cov$(G, D)$ / Var$\,R$",
    }  # fmt: skip
    ratios = {"constant_baseline": r"Var$(G - b)$ / Var$\,G$", "value_baseline": r"Var$(G - V)$ / Var$\,G$"}
    one = rows[(rows["quantity"] == "part") & rows["label"].isin(parts)]
    other = rows[(rows["quantity"] == "ratio to reward-to-go") & rows["label"].isin(ratios)]
    drawn = pd.concat([one.assign(label=one["label"].map(parts)), other.assign(label=other["label"].map(ratios))])
    return estimates.draw(drawn, style, xlabel="ratio of variances", line=1.0, columns=3)


def relative_bias(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw squared biases over ‖∇J‖²."""
    return estimates.draw(rows, style, xlabel=r"$\|E g - \nabla J\|^2\ /\ \|\nabla J\|^2$", line=0.0)


def ratios(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw the distributions of ratios over random MDPs."""
    drawn = rows[rows["quantity"] == "ratio"]
    rank = drawn.groupby(["panel", "label"]).cumcount()
    size = drawn.groupby(["panel", "label"])["x"].transform("size")
    few = drawn[(rank % (size // 25).clip(lower=1) == 0) | (rank == size - 1)]
    return estimates.draw(few, style, xlabel=r"Var with $Q_t$ / Var with $G_t$", ylabel="share of MDPs", columns=3)


def critic_figure(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw variance over explained variance, and bias at the cut over the error of the critic; one point for each critic."""
    each = rows[rows["episodes"].notna()]
    one, other = (each[each["quantity"] == q] for q in ("variance", "bias at the cut"))
    with styles.context(style) as s:
        width, across = s.width(wide=True), s.across(2)
        figure = styles.Figure(figsize=(width, (0.38 if across == 2 else 1.5) * width), layout="constrained")
        left, right = figure.subplots(2 // across, across)
        for i, (episodes, part) in enumerate(one.groupby("episodes", sort=True)):
            look = estimates.named(f"{int(episodes)} episodes", i)
            same = {"color": look.color, "markerfacecolor": look.face, "label": look.label}
            left.plot(part["x"], part["value"], look.marker, **same)
            mine = other[other["episodes"] == episodes]
            right.plot(mine["error"], mine["value"], look.marker, **same)
        exact = rows[(rows["quantity"] == "variance") & (rows["label"] == "V^π")]["value"].iloc[0]
        left.axhline(exact, color="black", linewidth=0.6)
        left.annotate(r"exact $V^\pi$", (left.get_xlim()[0], exact), xytext=(2, 2), textcoords="offset points", va="bottom")
        left.set(xlabel="explained variance of the critic, on other data", ylabel="variance over that without baseline")
        left.set_ylim(bottom=0)
        marks.log(right, "x", set(other["error"]))
        marks.log(right, "y", set(other["value"]))
        right.set(xlabel=r"error of $V_\phi$ over the spread of $V^\pi$", ylabel=r"bias at the cut / $\|E g\|$")
        for ax in (left, right):
            ax.grid(axis="both")
        marks.below(figure, left.get_legend_handles_labels()[0], 5)
    return figure


def discount_figure(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw bias in direction over γ, against both objectives on both worlds; size is in the rows."""
    names = {"J_1": "$J_1$", "J_γ": r"$J_\gamma$"}
    said = {"γ^t left out": r"$\gamma^t$ left out", "with γ^t": r"with $\gamma^t$"}
    kept = rows[rows["quantity"] == "bias in direction"]
    panel = [f"{world}, against {names[p]}" for world, p in zip(kept["world"], kept["panel"], strict=True)]
    drawn = kept.assign(panel=panel, label=kept["label"].replace(said)).sort_values("panel", kind="stable")
    return estimates.draw(drawn, style, xlabel=r"discount factor $\gamma$", ylabel=r"sine of the angle to $\nabla J$")


def unit_figure(rows: pd.DataFrame, style: object = None) -> styles.Figure:
    """Draw sines over N on logarithmic axes, without the estimators whose sine is rounding."""
    drawn = rows[(rows["quantity"] == "sine") & (rows["value"] > 1e-9)]
    said = {
        "normalised_advantage(lam=0.97)": "normalised", "step_mean": "step mean", "normalised in pairs": "in pairs",
        "mean over its own steps": "own mean",
    }  # fmt: skip
    drawn = drawn.assign(label=drawn["label"].replace(said))
    return estimates.draw(drawn, style, xlabel="trajectories $N$ of a batch", ylabel=r"sine of the angle to $\nabla J$", log="xy")
