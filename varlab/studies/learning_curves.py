"""Learning curves over seeds: the interquartile mean of the return against environment steps, with a bootstrap interval.

Source of the conventions: Deep Reinforcement Learning at the Edge of the Statistical Precipice (Agarwal et al., 2021).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from varlab import checks, storage
from varlab.analysis import captions, figures, marks
from varlab.analysis import style as styles
from varlab.analysis.resampling import interquartile_mean, stratified_interval
from varlab.rng import Streams, numpy_generator

#: Points of a curve where the runs' own steps differ.
POINTS = 100
DRAWS = 2000


def gather(folders: Iterable[object], allow_mixed_numerics: bool = False) -> pd.DataFrame:
    """Join the curves of finished training runs; a run that is found twice enters once.

    Args:
        folders: of ``scripts/train.py``.
        allow_mixed_numerics: whether runs of different ``varlab.NUMERICS`` may share a curve.

    Returns:
        Rows with the columns of :data:`varlab.training.COLUMNS` and ``numerics``.

    Raises:
        InputError: if there is no run, or numerics differ and may not.
    """
    parts: dict[str, pd.DataFrame] = {}
    for folder in folders:
        curve, record = storage.read_training(folder)
        parts.setdefault(record["digest"], curve.assign(numerics=record["numerics"]))
    if not parts:
        raise checks.InputError("A finished training run was expected, but none was found; run scripts/train.py first.")
    table = pd.concat(parts.values(), ignore_index=True)
    kinds = sorted(table["numerics"].unique())
    if len(kinds) > 1 and not allow_mixed_numerics:
        raise checks.InputError(
            f"Training runs of one numerics were expected, but numerics {', '.join(map(str, kinds))} came together; train the "
            "older ones again, or set allow_mixed_numerics=true."
        )
    return table


def summarise(
    curves: pd.DataFrame, scale: Mapping[str, tuple[float, float]] | None = None, draws: int = DRAWS, seed: int = 0
) -> pd.DataFrame:
    """Return the interquartile mean of the return over seeds, against environment steps.

    Runs whose batches end at other steps are brought to common ones by linear interpolation, between the latest first and the
    earliest last step of a curve's runs. All points of a curve share their resamples: a whole run is drawn, or none of it.

    Args:
        curves: rows of :func:`gather`.
        scale: environment → (low, high); if given, the score is (return − low)/(high − low) and all environments are pooled into
            one curve per policy and Φ, their seeds resampled within each environment.
        draws: resamples.
        seed: root seed of the resamples.

    Returns:
        One row per curve and point: env, policy, phi, steps, iqm, iqm_low, iqm_high (95 %; NaN with one seed), seeds (of every
        environment), draws.

    Raises:
        InputError: if runs of one curve differ in more than their seed, or an environment has no scale.
    """
    curves = curves.dropna(subset="mean_return")
    if scale is not None:
        for env in curves["env"].unique():
            checks.one_of("environment with a scale", env, scale)
        low, high = (curves["env"].map({env: ends[i] for env, ends in scale.items()}) for i in (0, 1))
        curves = curves.assign(mean_return=(curves["mean_return"] - low) / (high - low))
    keys = ["policy", "phi"] if scale is not None else ["env", "policy", "phi"]
    rows = []
    for number, (key, part) in enumerate(curves.groupby(keys, sort=True)):
        named = dict(zip(keys, key, strict=True))
        tasks = [_runs(env, of_env) for env, of_env in part.groupby("env", sort=True)]
        at = _common_steps([run for runs in tasks for run in runs])
        scores = [np.stack([np.interp(at, run["steps"], run["mean_return"]) for run in runs]) for runs in tasks]
        generator = numpy_generator(Streams(seed).sequence("learning_curve", number))
        ends = stratified_interval(scores, generator, draws)
        name = named.get("env", ", ".join(sorted(part["env"].unique())))
        columns = zip(at, interquartile_mean(scores), *ends, strict=True)
        fixed = {"env": name, "policy": named["policy"], "phi": named["phi"]}
        more = {"seeds": ", ".join(dict.fromkeys(str(len(s)) for s in scores)), "draws": draws}
        rows += [{**fixed, "steps": s, "iqm": v, "iqm_low": a, "iqm_high": b, **more} for s, v, a, b in columns]
    return pd.DataFrame(rows)


def _runs(env: str, curves: pd.DataFrame) -> list[pd.DataFrame]:
    """Return the runs of one task, in the order of their seeds.

    Raises:
        InputError: if they are not repetitions of each other.
    """
    first = curves.iloc[0]
    if curves["setting"].nunique() > 1:
        raise checks.InputError(
            f"Runs that differ in their seed alone were expected for {env}, {first['policy']}, {first['phi']}, but "
            f"{curves['setting'].nunique()} settings came together; name folders of one setting."
        )
    if curves.groupby("seed")["digest"].nunique().max() > 1:
        raise checks.InputError(
            f"Each seed once was expected for {env}, {first['policy']}, {first['phi']}, but one came with several θ_0, which "
            "share their randomness; give every run its own seed."
        )
    return [run.sort_values("steps") for _, run in curves.groupby("seed", sort=True)]


def _common_steps(runs: list[pd.DataFrame]) -> np.ndarray:
    """Return the runs' own steps where they agree, else evenly spaced ones that all of them reach.

    Raises:
        InputError: if they have no steps in common.
    """
    own = runs[0]["steps"].to_numpy()
    if all(np.array_equal(own, run["steps"].to_numpy()) for run in runs):
        return own.astype(float)
    low, high = max(run["steps"].min() for run in runs), min(run["steps"].max() for run in runs)
    if low > high:
        raise checks.InputError(
            f"Runs that share a range of environment steps were expected, but one begins at {low:,} where another ended at "
            f"{high:,}; train them for more epochs or in smaller batches."
        )
    return np.linspace(low, high, POINTS)


def curve(table: pd.DataFrame, ax: styles.Axes | None = None, style: object = None, legend: bool = True) -> styles.Axes:
    """Draw the interquartile mean of every Φ as a line, its interval as a band.

    Args:
        table: rows of :func:`summarise`, one environment and policy.
        ax: where to draw; None makes a new Figure.
        style: see :func:`varlab.analysis.style.make`.
        legend: whether to name the Φ beside the axes.

    Returns:
        The Axes.
    """
    with styles.context(style) as s:
        ax = ax or styles.axes(s.text, 0.5 * s.text)
        for i, phi in enumerate(styles.order(table["phi"])):
            look, mine = styles.look(phi), table[table["phi"] == phi].sort_values("steps")
            steps, every = mine["steps"], max(1, len(mine) // 8)
            ax.fill_between(
                steps, mine["iqm_low"], mine["iqm_high"], color=look.color, alpha=0.18, linewidth=0, gid="iqm interval", label=phi
            )
            ax.plot(
                steps, mine["iqm"], color=look.color, marker=look.marker, markerfacecolor=look.face, label=phi, gid="iqm",
                markevery=(i % every, every), zorder=3,
            )  # fmt: skip
        ax.grid(axis="y")
        ax.set_xlabel("environment steps")
        ax.set_ylabel("return, interquartile mean")
        if legend:
            marks.legend(ax, table["phi"])
    return ax


def draw(table: pd.DataFrame, style: object = None) -> styles.Figure:
    """Return the Figure: one panel per environment and policy, one line per Φ."""
    return figures.grid(table, curve, by=("env", "policy"), style=style)


def caption(table: pd.DataFrame, curves: pd.DataFrame, command: str) -> str:
    """Return the caption of :func:`draw`'s figure.

    Args:
        table: rows of :func:`summarise`.
        curves: the rows that it was made of.
        command: the command that drew it.

    Returns:
        Markdown.
    """
    lines = [
        f"{captions.MARK}\n"
        "Return of vanilla policy gradient with each Φ_t against the environment steps spent: interquartile mean over seeds; "
        f"bands are 95 % percentile intervals from {table['draws'].iloc[0]:,} resamples of whole runs within each environment. A "
        "point is the mean return of the batch that θ drew, undiscounted; a curve of one seed has no band.\n"
    ]
    for (env, policy, phi), part in curves.groupby(["env", "policy", "phi"], sort=False):
        digests = ", ".join(f"digest {d}" for d in part["digest"].unique())
        lines.append(f"- {env}, policy {policy}, {phi}: seeds {', '.join(map(str, sorted(part['seed'].unique())))}; {digests}.")
    return "\n".join([*lines, "", f"Command: `{command}`"]) + "\n"
