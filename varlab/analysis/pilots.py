"""From a pilot run to the episodes that a target needs, and from a full run to whether the target was met.

A target is ``cosine`` (of a batch mean to ∇J, at least c), ``relative_mse`` (of a batch mean, over ‖∇J‖², at most e) or
``ratio_width`` (the interval of the variance ratio, at most w wide). The first two ask for a batch size N, the last for the n of
a measurement.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from varlab import checks
from varlab.analysis import planning
from varlab.analysis.convergence import cosine_at, reference_error
from varlab.analysis.mse import squared_error_at
from varlab.analysis.tables import short
from varlab.types import Moments, Reference

TARGETS = ("cosine", "relative_mse", "ratio_width")
#: Batch sizes between which an answer is looked for.
SMALLEST, LARGEST = 1e-4, 1e12
#: Settings that the command of a full run replaces.
REPLACED = ("n", "batch_size", "seed", "reference.seed", "out")

Number = tuple[float, float, float]


def plan_table(
    summary: pd.DataFrame, moments: Moments, references: Mapping[str, Reference], target: str, value: float
) -> pd.DataFrame:
    """Say how many episodes each Φ needs for a target, from a pilot run.

    A Φ that is unbiased by proof needs N = NSR c²/(1 − c²) for the cosine c and N = NSR/e for the relative mean squared error e;
    the ends of its NSR give those of N. For any other Φ bias counts too: N is where its estimated ρ_N or MSE_N/‖∇J‖² meets the
    target, and the ends are where the two ends of its interval do, so that [N_low, N_high] covers as those intervals do.

    Args:
        summary: of the pilot.
        moments: of the pilot.
        references: objective → reference of the pilot.
        target: one of :data:`TARGETS`.
        value: c, e or w.

    Returns:
        One row per Φ and objective: phi, objective, target, value, nsr, nsr_low, nsr_high, episodes, episodes_low, episodes_high
        (trajectories, not rounded; inf where no batch reaches the target, NaN ends for ``ratio_width``), unbiased, flag.
    """
    _check(target, value)
    rows = []
    for row in summary.to_dict("records"):
        if "zero-variance" in str(row["flag"]).split("; "):
            number = (0.0, 0.0, math.inf)  # where nothing varied yet, nothing bounds what may
        elif target == "ratio_width":
            number = (_for_ratio(row, value), math.nan, math.nan)
        elif _unbiased(row):
            number = _for_nsr(row, target, value)
        else:
            number = _inverted(row, moments, references[row["objective"]], target, value)
        kept = {c: row[c] for c in ("phi", "objective", "nsr", "nsr_low", "nsr_high", "flag")}
        found = dict(zip(("episodes", "episodes_low", "episodes_high"), number, strict=True))
        rows.append({**kept, "target": target, "value": value, "unbiased": _unbiased(row), **found})
    return pd.DataFrame(rows)


def _check(target: str, value: float) -> None:
    checks.one_of("target", target, TARGETS)
    top = 1.0 if target == "cosine" else math.inf
    if not 0.0 < checks.in_range("value", value, 0.0, top) < top:
        raise checks.InputError(f"A {target} strictly between 0 and {top:g} was expected, but value={value}; move it inside.")


def _unbiased(row: Mapping[str, object]) -> bool:
    """Return whether the row says so; summaries of older runs do not, and a gathered table may hold NaN."""
    return row.get("unbiased") in (True,)


def _for_ratio(row: Mapping[str, float], width: float) -> float:
    ends = [float(row[f"variance_ratio{end}"]) for end in ("", "_low", "_high")]
    return planning.trajectories_for_ratio(width, int(row["n"]), *ends) if np.isfinite(ends[0]) and ends[0] > 0 else math.nan


def _for_nsr(row: Mapping[str, float], target: str, value: float) -> Number:
    """N and its ends from NSR, in which it is linear."""
    factor = planning.episodes_for_cosine(value, 1.0) if target == "cosine" else planning.episodes_for_mse(value, 1.0)
    return tuple(factor * float(row[c]) for c in ("nsr", "nsr_low", "nsr_high"))


def _measured(row: Mapping[str, object], moments: Moments, reference: Reference, target: str) -> Callable[[float], Number] | None:
    """Return N → cosine or relative mean squared error with both ends; None where ‖∇J‖² is not resolved."""
    k, resolved = moments.names.index(row["phi"]), "gradient-not-resolved" not in str(row["flag"])
    if target == "cosine":
        return cosine_at(moments, k, reference, resolved)
    if not resolved:
        return None
    at = squared_error_at(moments, k, reference, relative=True)

    def error(size: float) -> Number:
        found = at(size)
        return found.value, *found.interval()

    return error


def _inverted(row: Mapping[str, object], moments: Moments, reference: Reference, target: str, value: float) -> Number:
    """N where the estimate meets the target, and where its better and its worse end do."""
    if row.get("target", "gradient") not in ("gradient", None) and target == "relative_mse":
        return (math.nan,) * 3  # in other units than ∇J
    at = _measured(row, moments, reference, target)
    if at is None:
        return math.nan, 0.0, math.inf
    better, worse = (2, 1) if target == "cosine" else (1, 2)

    def meets(which: int, unknown: bool) -> Callable[[float], bool]:
        def at_size(size: float) -> bool:
            found = at(size)[which]
            return unknown if math.isnan(found) else (found >= value if target == "cosine" else found <= value)

        return at_size

    return _least(meets(0, False)), _least(meets(better, True)), _least(meets(worse, False))


def _least(meets: Callable[[float], bool]) -> float:
    """Return the least N at which a monotone condition holds, by bisection of its logarithm; inf where it never does."""
    low, high = math.log(SMALLEST), math.log(LARGEST)
    if not meets(LARGEST):
        return math.inf
    if meets(SMALLEST):
        return 0.0
    while high - low > 1e-9:
        middle = 0.5 * (low + high)
        low, high = (low, middle) if meets(math.exp(middle)) else (middle, high)
    return math.exp(high)


def check_table(
    summary: pd.DataFrame, moments: Moments, references: Mapping[str, Reference], target: str, value: float
) -> pd.DataFrame:
    """Say whether a run met a target.

    Args:
        summary: of the full run; cosine and mean squared error are those at its ``batch_size``.
        moments: of the run.
        references: objective → reference of the run.
        target: one of :data:`TARGETS`.
        value: c, e or w.

    Returns:
        One row per Φ and objective: phi, objective, target, value, n, batch_size, found, found_low, found_high, realised (the
        cosine, or the squared distance over ‖∇J‖², of this run's own mean over all n trajectories, one draw) and outcome: ``met``
        where the whole 95 % interval is on the target's side, ``missed`` where none of it is, else ``undecided``, as
        is a Φ flagged ``zero-variance``. A width is a number without interval.
    """
    _check(target, value)
    rows = []
    for row in summary.to_dict("records"):
        reference, realised = references[row["objective"]], math.nan
        if target == "ratio_width":
            width = float(row["variance_ratio_high"] - row["variance_ratio_low"])
            found = (width, width, width)
        else:
            found = _found(row, moments, reference, target)
            realised = _realised(moments, moments.names.index(row["phi"]), reference, target)
        above = target == "cosine"
        worse, better = (found[1], found[2]) if above else (found[2], found[1])
        if "zero-variance" in str(row["flag"]).split("; "):
            worse = math.nan  # met so far, but an interval without width is none
        met, missed = (worse >= value, better < value) if above else (worse <= value, better > value)
        kept = {c: row[c] for c in ("phi", "objective", "n", "batch_size")}
        kept |= {"target": target, "value": value, "realised": realised}
        kept |= dict(zip(("found", "found_low", "found_high"), found, strict=True))
        rows.append({**kept, "outcome": "met" if met else "missed" if missed else "undecided", "flag": row["flag"]})
    return pd.DataFrame(rows)


def _found(row: Mapping[str, object], moments: Moments, reference: Reference, target: str) -> Number:
    """Cosine or relative mean squared error at the run's batch size, with its interval."""
    if target == "cosine":
        return tuple(float(row[c]) for c in ("cosine", "cosine_low", "cosine_high"))
    size = float(row["batch_size"])
    if _unbiased(row):
        return tuple(float(row[c]) / size for c in ("nsr", "nsr_low", "nsr_high"))
    at = None if row.get("target", "gradient") not in ("gradient", None) else _measured(row, moments, reference, target)
    return (math.nan,) * 3 if at is None else at(size)


def _realised(moments: Moments, k: int, reference: Reference, target: str) -> float:
    """Cosine to ∇J, or squared distance from it over ‖∇J‖², of the mean of all trajectories, freed of the reference's error."""
    mean, grad, error = np.average(moments.mean[:, k], axis=0, weights=moments.count), reference.grad, reference_error(reference)
    square = float(grad @ grad) - error
    if square <= 0:
        return math.nan
    if target == "relative_mse":
        return (float((mean - grad) @ (mean - grad)) - error) / square
    return float(mean @ grad) / math.sqrt(float(mean @ mean) * square) if mean.any() else math.nan


def choose(plan: pd.DataFrame, phi: str | None = None) -> pd.Series:
    """Return the row that a full run serves.

    Args:
        plan: rows of :func:`plan_table`.
        phi: the Φ; if None the one that surely needs the fewest episodes, for ``ratio_width`` the one that needs the most, so
            that every interval gets as short.

    Returns:
        Its row.

    Raises:
        InputError: if there is no such Φ, or no number of episodes is sure to reach the target.
    """
    if phi is not None:
        checks.one_of("Φ of the pilot", phi, plan["phi"])
        plan = plan[plan["phi"] == phi]
    sure = _sure(plan)
    if not np.isfinite(sure).any():
        raise checks.InputError(
            "A number of episodes that reaches the target was expected, but the pilot bounds none from above; take a larger "
            "pilot, another Φ or an easier target."
        )
    widest = plan["target"].iloc[0] == "ratio_width"
    return plan.loc[sure[np.isfinite(sure)].idxmax() if widest else sure.idxmin()]


def _sure(plan: pd.DataFrame) -> pd.Series:
    """Upper ends of the episodes, or the episodes themselves where they have none."""
    return plan["episodes_high"].where(plan["target"] != "ratio_width", plan["episodes"])


def full_run(row: pd.Series, pilot: pd.Series, out: str, command: Sequence[str] = (), blocks: int = 50) -> str:
    """Return the settings, or the whole command, of the run that the plan asks for.

    It takes N = the upper end of the episodes, so that the target is met unless the pilot's interval failed, at least as many
    trajectories as the pilot, so that the check is at least as sharp, and seeds of its own, so that it is independent.

    Args:
        row: of :func:`choose`.
        pilot: a row of the pilot's summary.
        out: folder of the run.
        command: the words of the pilot's command; settings alone are returned without them, or if they are a multirun's.
        blocks: least units.

    Returns:
        Text for a shell.
    """
    sizes = [float(pilot[c]) if c in pilot and pd.notna(pilot[c]) else 1.0 for c in ("group_size", "groups")]
    unit = int(sizes[0] * sizes[1])
    size = unit * max(1, math.ceil(float(_sure(row.to_frame().T).iloc[0]) / unit))
    n = max(size, blocks * unit, int(pilot["n"]))
    words = [f"n={n}", *([] if row["target"] == "ratio_width" else [f"batch_size={size}"]), f"seed={int(pilot['seed']) + 1}"]
    if pilot["reference_kind"] != "exact":
        words.append(f"reference.seed={int(pilot.get('reference_seed', 0)) + 1}")
    words.append(f"out={out}")
    several = any(word == "-m" or word.startswith("--m") for word in command)
    kept = [word for word in command if word.lstrip("+").partition("=")[0] not in REPLACED]
    return shlex.join(words if several or not command else ["python", *kept, *words])


def plan_text(plan: pd.DataFrame) -> str:
    """Return a plan for a terminal, one line per Φ."""
    head = f"Episodes for {_said(plan)}"
    return _lines(head, plan, ("nsr", "episodes"), ("NSR", "episodes"), "flag")


def check_text(check: pd.DataFrame) -> str:
    """Return a verdict for a terminal, one line per Φ."""
    head = f"{_said(check)}, at N = {check['batch_size'].iloc[0]:g} (n = {check['n'].iloc[0]:,})"
    return _lines(head[0].upper() + head[1:], check, ("found",), ("found",), "outcome")


def _said(table: pd.DataFrame) -> str:
    name = {"cosine": "a cosine of at least", "relative_mse": "a mean squared error over ‖∇J‖² of at most",
            "ratio_width": "an interval of the variance ratio no wider than"}[table["target"].iloc[0]]  # fmt: skip
    return f"{name} {table['value'].iloc[0]:g}"


def _lines(head: str, table: pd.DataFrame, numbers: Sequence[str], names: Sequence[str], last: str) -> str:
    several = table["objective"].nunique() > 1
    body = [["Φ", *names, last]]
    for row in table.to_dict("records"):
        texts = []
        for c in numbers:
            ends = "" if np.isnan(row[f"{c}_low"]) else f" [{short(row[f'{c}_low'])}, {short(row[f'{c}_high'])}]"
            texts.append(short(row[c]) + ends)
        name = f"{row['phi']} ({row['objective']})" if several else str(row["phi"])
        body.append([name, *texts, str(row[last] or "")])
    widths = [max(len(line[i]) for line in body) for i in range(len(body[0]))]
    return "\n".join([head, *("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in body)]) + "\n"
