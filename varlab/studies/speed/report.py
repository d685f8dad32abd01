"""The benchmark's rows as JSON, as a table and as a figure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from varlab.analysis import captions, marks
from varlab.analysis import style as styles
from varlab.studies.speed import targets
from varlab.studies.speed.results import MomentsResult, PairsResult, TraceResult
from varlab.studies.speed.targets import Row

#: Fields of a row that other programs read.
FIELDS = ("work", "peer", "ratio_median", "ratio_min", "ratio_max", "target")
#: Peer → colour, marker and name in a figure.
LOOKS: Mapping[str, tuple[str, str, str]] = {
    targets.LOOP: ("#000000", "o", "backward loop"),
    targets.VMAP: ("#332288", "s", "torch.func vmap(grad), per $\\Phi$"),
    targets.NESTED: ("#56B4E9", "^", "torch.func, nested over $\\Phi$"),
    targets.OPACUS: ("#117733", "D", "Opacus, per $\\Phi$"),
    targets.JAX: ("#CC6677", "v", "jax.jit(vmap(grad))"),
    targets.STEPS: ("#E69F00", "P", "per-step scores, torch.func"),
    targets.JAX_STEPS: ("#882255", "X", "per-step scores, jax.jit"),
    targets.GRAMS: ("#999933", "*", "varlab through Grams"),
    targets.GRADIENTS: ("#AA4499", "h", "varlab through gradients"),
}
#: What grew → colour, marker and name in a figure.
GROWN: Mapping[str, tuple[str, str, str]] = {
    "a measurement": ("#000000", "o", "whole measurement"),
    MomentsResult.name: ("#56B4E9", "^", "moments of every parameter"),
    TraceResult.name: ("#CC6677", "v", "trace variance with all means"),
    PairsResult.name: ("#999933", "*", "trace variance from pairs"),
}
GROWTH = re.compile(r"time of (?P<what>[a-z ]+), (?P<setting>[nKTP]); (?P<first>[\d,]+) to (?P<last>[\d,]+)")
GRADIENTS = re.compile(r"(?P<result>[a-z ]+) K=(?P<k>\d+) T=(?P<t>\d+) MLP (?P<mlp>[\d×]+);")


def as_json(rows: Sequence[Row]) -> list[dict[str, object]]:
    """Return the rows with the fields that other programs read; the ratios of absent peers are null."""
    return [{name: getattr(row, name) for name in FIELDS} for row in rows]


def line(row: Row) -> str:
    """Return one row as a line of text."""
    if row.ratio_median is None:
        return f"{row.work}: {row.peer} is {row.note}"
    verdict = "" if row.target is None else f"; target {row.target:g} {'reached' if row.reached else 'missed'}"
    span = f"{number(row.ratio_min)} to {number(row.ratio_max)}{verdict}"
    return f"{row.work}: {number(row.ratio_median)} × {row.peer} ({span})"


def number(ratio: float) -> str:
    """Return a ratio with three digits."""
    return f"{ratio:.0f}" if ratio >= 100 else f"{ratio:.3g}"


def to_markdown(rows: Sequence[Row], machine: str) -> str:
    """Return all rows as a table.

    Args:
        rows: the rows.
        machine: what they were measured on.

    Returns:
        Markdown.
    """
    lines = [
        f"{machine} A ratio is what stands beside varlab over what varlab needs; targets are least ratios.",
        "",
        "| work | beside | ratio | range | target | varlab, s | note |",
        "| --- | --- | ---: | --- | --- | ---: | --- |",
    ]
    for row in rows:
        found = ["–", "–"]
        if row.ratio_median is not None:
            found = [number(row.ratio_median), f"{number(row.ratio_min)} to {number(row.ratio_max)}"]
        target = "" if row.target is None else f"≥ {row.target:g}" + {True: " ✓", False: " missed", None: ""}[row.reached]
        took = "" if row.seconds is None else f"{row.seconds:.3g}"
        lines.append(f"| {' | '.join([row.work, row.peer, *found, target, took, row.note])} |")
    return "\n".join(lines) + "\n"


def points(rows: Sequence[Row]) -> dict[tuple[str, str, str], dict[str, dict[int, Row]]]:
    """Return (result, MLP, T) → peer → K → row, of those rows that a figure shows."""
    found: dict[tuple[str, str, str], dict[str, dict[int, Row]]] = {}
    for row in rows:
        match = GRADIENTS.match(row.work)
        if match and row.ratio_median is not None and row.peer in LOOKS:
            panel = found.setdefault((match["result"], match["mlp"], match["t"]), {})
            panel.setdefault(row.peer, {})[int(match["k"])] = row
    return found


def draw(rows: Sequence[Row], style: object = None) -> styles.Figure | None:
    """Draw how many times longer each peer took over K, a panel for each result, MLP and T; bars are the range over rounds.

    Args:
        rows: of a benchmark.
        style: see :func:`varlab.analysis.style.make`.

    Returns:
        The Figure, or None without rows of gradients.
    """
    panels = points(rows)
    if not panels:
        return None
    down = list(dict.fromkeys((result, mlp) for result, mlp, _ in panels))
    across = sorted({t for *_, t in panels}, key=int)
    shown = {(k, r) for panel in panels.values() for peer in panel.values() for k, r in peer.items()}
    ratios = {v for _, r in shown for v in (r.ratio_min, r.ratio_max)}
    choices = sorted({k for k, _ in shown})
    with styles.context(style) as s:
        height = 0.45 + 1.45 * len(down) + 0.16 * ((len(LOOKS) + 2) // 3)
        figure = styles.Figure(figsize=(s.text, height), layout="constrained")
        axs = figure.subplots(len(down), len(across), sharex=True, sharey=True, squeeze=False)
        for i, (result, mlp) in enumerate(down):
            for j, t in enumerate(across):
                if (result, mlp, t) in panels:
                    _panel(axs[i, j], panels[result, mlp, t])
                else:
                    axs[i, j].set_visible(False)
                if i == 0:
                    axs[i, j].set_title(f"$T$ = {t}")
            axs[i, 0].set_ylabel(f"{result},\n{mlp}")
        for j, t in enumerate(across):  # labels stand below the last panel of a column
            last = max(i for i, (result, mlp) in enumerate(down) if (result, mlp, t) in panels)
            axs[last, j].tick_params(labelbottom=True)
        marks.log(axs[0, 0], "y", ratios | {1.0})
        axs[0, 0].set_xscale("log", base=2)
        axs[0, 0].set_xlim(min(choices) / 1.6, max(choices) * 1.6)
        axs[0, 0].set_xticks(choices, [str(k) for k in choices])
        axs[0, 0].set_xticks([], minor=True)
        figure.supxlabel("choices of $\\Phi$, $K$", fontsize=s.font_size)
        figure.supylabel("time of the peer / time of varlab", fontsize=s.font_size)
        drawn = [p for p in LOOKS if any(p in panel for panel in panels.values())]
        handles = [marks.handle(LOOKS[p][2], *LOOKS[p][:2]) for p in drawn]
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def _panel(ax, panel: Mapping[str, Mapping[int, Row]]) -> None:  # noqa: ANN001
    """Draw the peers of one panel."""
    ax.axhline(1.0, color=marks.GREY, linewidth=0.6, zorder=1)
    ax.grid(axis="y")
    for peer, by_k in panel.items():
        color, marker, _ = LOOKS[peer]
        made = [by_k[k] for k in sorted(by_k)]
        middle = [r.ratio_median for r in made]
        low = [r.ratio_median - r.ratio_min for r in made]
        high = [r.ratio_max - r.ratio_median for r in made]
        ax.errorbar(sorted(by_k), middle, (low, high), color=color, marker=marker, elinewidth=0.7, gid=peer)


def grown(rows: Sequence[Row]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Return setting → what → (size, time over that of the smallest), the smallest first."""
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        match = GROWTH.fullmatch(row.work)
        if match:
            first, last = (int(match[end].replace(",", "")) for end in ("first", "last"))
            curve = found.setdefault(match["setting"], {}).setdefault(match["what"], [(first, 1.0)])
            curve.append((last, last / first / row.ratio_median))
    return found


def draw_growth(rows: Sequence[Row], style: object = None) -> styles.Figure | None:
    """Draw how varlab's time grows with n, K, T and P, over that of the smallest size; dashed is growth in proportion.

    Args:
        rows: of a benchmark.
        style: see :func:`varlab.analysis.style.make`.

    Returns:
        The Figure, or None without rows of growth.
    """
    panels = grown(rows)
    if not panels:
        return None
    with styles.context(style) as s:
        figure = styles.Figure(figsize=(s.text, 2.3), layout="constrained")
        axs = figure.subplots(1, len(panels), squeeze=False)[0]
        for ax, (setting, curves) in zip(axs, panels.items(), strict=True):
            sizes = sorted({size for curve in curves.values() for size, _ in curve})
            times = {time for curve in curves.values() for _, time in curve}
            ends = [sizes[0], sizes[-1]]
            ax.plot(ends, [1, ends[1] / ends[0]], color=marks.GREY, linestyle="--", zorder=1, gid="proportion")
            for what, curve in curves.items():
                color, marker, _ = GROWN[what]
                ax.plot(*zip(*curve, strict=True), color=color, marker=marker, gid=what)
            marks.log(ax, "y", times | {1.0, sizes[-1] / sizes[0]})
            ax.set_xscale("log", base=2)
            ax.set_xticks(sizes, [_short(size) for size in sizes])
            ax.set_xticks([], minor=True)
            ax.set_xlim(sizes[0] / 1.4, sizes[-1] * 1.4)
            ax.set_xlabel(f"${setting}$")
            ax.grid(axis="y")
        axs[0].set_ylabel("time / time of the smallest")
        drawn = [w for w in GROWN if any(w in curves for curves in panels.values())]
        handles = [marks.handle(GROWN[w][2], *GROWN[w][:2]) for w in drawn]
        handles.append(marks.handle("in proportion", marks.GREY, linestyle="--"))
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


def _short(size: int) -> str:
    """Return a size as a tick says it."""
    return f"{size / 1000:.3g}k" if size >= 10_000 else str(size)


def growth_caption(machine: str, command: str) -> str:
    """Return the caption of :func:`draw_growth`'s figure."""
    return (
        f"{captions.MARK}\n"
        "How varlab's time grows: of a whole measurement (CartPole, all Φ of the source text, n_reference = n) with n, of "
        "per-trajectory results with the number K of Φ, the length T and the number P of parameters, the others at K = 8, "
        f"T = 100 and 64×64; medians, over the smallest size. Dashed is growth in proportion. {machine}\n\n"
        f"Command: `{command}`\n"
    )


def caption(rows: Sequence[Row], machine: str, command: str) -> str:
    """Return the caption of :func:`draw`'s figure."""
    count = sum(row.ratio_median is not None for row in rows)
    return (
        f"{captions.MARK}\n"
        "How many times longer peers took than varlab for the same numbers, median of interleaved repeats; the bars span all "
        "repeats of one run. Above the grey line at 1 varlab is faster. Every contender takes its own best chunk size. Moments "
        "are the mean and second moment of every parameter; a trace variance is the unbiased tr Cov with its interval, from "
        "gradients (as a measurement finds it) or from disjoint pairs of joined trajectories by their Grams. Grams lose where "
        f"trajectories are long and Φ are few. {count} comparisons in all; see table.md. {machine}\n\n"
        f"Command: `{command}`\n"
    )
