"""From an effect with its interval to an outcome: holds, violated or undecided, corrected for the size of a family.

A claim says that an effect is below or above a bound, or within a margin of it. Both the claim and its opposite are tested: the
z of the bound is its distance from the estimate in units of that side's half interval, so that the skewness and the heavy tails
that the interval knows of enter the test too. Exact effects have intervals of no width and are decided by comparison.

Source of the correction: A Simple Sequentially Rejective Multiple Test Procedure (Holm, 1979); of the test within a margin:
A comparison of the two one-sided tests procedure and the power approach (Schuirmann, 1987).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.stats

from varlab import checks

DIRECTIONS = ("below", "above", "within")
OUTCOMES = ("holds", "violated", "undecided")
#: Half of a 95 % interval in standard errors, were it of a normal estimate.
HALF = float(scipy.stats.norm.ppf(0.975))
#: Relative size of what rounding may do to an exact effect.
ROUNDING = 1e-9


@dataclass(frozen=True)
class Effect:
    """One number that a claim is about.

    Attributes:
        value: the estimate.
        low: lower end of its 95 % interval; the value itself if exact.
        high: upper end.
        n: trajectories (or other independent draws) behind it, 0 if exact.
        log: whether distances are measured on the logarithm, as for ratios.
    """

    value: float
    low: float
    high: float
    n: int = 0
    log: bool = False

    @classmethod
    def exact(cls, value: float) -> Effect:
        """Return an effect without sampling error."""
        return cls(float(value), float(value), float(value))

    @property
    def is_exact(self) -> bool:
        """Whether the effect has no sampling error."""
        return self.n == 0

    def z(self, bound: float) -> float:
        """Return how far the estimate lies above ``bound``, in standard errors of the side that faces it."""
        value, low, high, bound = (self._scale(x) for x in (self.value, self.low, self.high, bound))
        if value == bound:
            return 0.0
        side = (value - low if value > bound else high - value) / HALF
        if math.isinf(side) or math.isnan(side):
            return 0.0
        return math.copysign(math.inf, value - bound) if side <= 0 else (value - bound) / side

    def _scale(self, x: float) -> float:
        if not self.log:
            return x
        return math.log(x) if x > 0 else -math.inf


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Attributes:
        claim: its id.
        outcome: holds, violated or undecided.
        effect: the number with its interval.
        p_value: of the opposite of what the estimate says, uncorrected; 0 or 1 if exact.
        adjusted: the same after Holm's correction within its family.
        level: of the decision.
        n_to_decide: trajectories at which an undecided effect of this size would be decided; NaN otherwise.
        digest: of the rows that it was read from.
    """

    claim: str
    outcome: str
    effect: Effect
    p_value: float
    adjusted: float
    level: float
    n_to_decide: float
    digest: str


def agrees(effect: Effect, direction: str, bound: float, margin: float = 0.0) -> bool:
    """Return whether the estimate itself is on the claim's side; ties count for the claim up to rounding."""
    checks.one_of("direction of a claim", direction, DIRECTIONS)
    slack = ROUNDING * max(abs(bound), abs(effect.value), margin) if effect.is_exact else 0.0
    if direction == "within":
        return abs(effect.value - bound) <= margin + slack
    return effect.value <= bound + slack if direction == "below" else effect.value >= bound - slack


def p_value(effect: Effect, direction: str, bound: float, margin: float = 0.0) -> float:
    """Return the p-value of the opposite of what the estimate says.

    Where it agrees with the claim that is the p-value of "the claim is false", else of "the claim is true".

    Args:
        effect: the estimate with its interval.
        direction: below, above or within.
        bound: what it is compared with.
        margin: half width of what counts as equal; 0 unless the direction is within.

    Returns:
        A number in [0, 1].
    """
    says = agrees(effect, direction, bound, margin)
    if effect.is_exact:
        return 0.0
    if direction != "within":
        return float(scipy.stats.norm.sf(abs(effect.z(bound))))
    up, down = effect.z(bound + margin), effect.z(bound - margin)
    if says:  # both sides must be excluded
        return float(max(scipy.stats.norm.cdf(up), scipy.stats.norm.sf(down)))
    return float(scipy.stats.norm.sf(up) if up > 0 else scipy.stats.norm.cdf(down))


def holm(p: Sequence[float], size: int | None = None) -> list[float]:
    """Return Holm's adjusted p-values.

    Args:
        p: p-values of members of one family.
        size: of the whole family, at least their number; members that were not looked at count as if theirs were smaller.

    Returns:
        The adjusted p-values, in the order given.
    """
    size = len(p) if size is None else max(size, len(p))
    order = np.argsort(p, kind="stable")
    adjusted, largest = np.empty(len(p)), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, (size - rank) * p[i])
        adjusted[i] = min(1.0, largest)
    return adjusted.tolist()


def decide(
    claim: str, effect: Effect, direction: str, bound: float, margin: float = 0.0, level: float = 0.05, digest: str = ""
) -> Verdict:
    """Return the verdict of one claim by itself.

    Args:
        claim: its id.
        effect: the estimate.
        direction: below, above or within.
        bound: what it is compared with.
        margin: see :func:`p_value`.
        level: the opposite is rejected below it; each direction at half of it, since the data choose the direction.
        digest: of the rows.

    Returns:
        The verdict, not yet corrected.
    """
    p = min(1.0, 2 * p_value(effect, direction, bound, margin))
    return _judged(Verdict(claim, "", effect, p, p, level, math.nan, digest), direction, bound, margin)


def family(
    verdicts: Sequence[Verdict], questions: Sequence[tuple[str, float, float]], size: int | None = None
) -> list[Verdict]:
    """Correct the verdicts of one family by Holm's procedure.

    Args:
        verdicts: of :func:`decide`.
        questions: (direction, bound, margin) of each.
        size: of the whole family, if not all are here.

    Returns:
        The verdicts with adjusted p-values and outcomes.
    """
    sampled = [i for i, v in enumerate(verdicts) if not v.effect.is_exact]
    further = 0 if size is None else max(0, size - len(verdicts))
    adjusted = dict(zip(sampled, holm([verdicts[i].p_value for i in sampled], len(sampled) + further), strict=True))
    return [
        _judged(replace(v, adjusted=adjusted.get(i, v.p_value)), *question)
        for i, (v, question) in enumerate(zip(verdicts, questions, strict=True))
    ]


def _judged(verdict: Verdict, direction: str, bound: float, margin: float) -> Verdict:
    effect = verdict.effect
    if math.isnan(effect.value):
        return replace(verdict, outcome="undecided", n_to_decide=math.nan)
    if verdict.adjusted <= verdict.level:
        return replace(verdict, outcome="holds" if agrees(effect, direction, bound, margin) else "violated", n_to_decide=math.nan)
    return replace(verdict, outcome="undecided", n_to_decide=_n_to_decide(verdict, direction, bound, margin))


def _n_to_decide(verdict: Verdict, direction: str, bound: float, margin: float) -> float:
    """Return n · (needed z / found z)²: standard errors shrink with the root of n while the effect stays."""
    edges = [bound - margin, bound + margin] if direction == "within" else [bound]
    found = min(abs(verdict.effect.z(edge)) for edge in edges)
    correction = verdict.adjusted / verdict.p_value if verdict.p_value > 0 else 1.0
    needed = float(scipy.stats.norm.isf(min(0.5, verdict.level / (2 * max(correction, 1.0)))))
    return math.inf if found == 0 else math.ceil(verdict.effect.n * (needed / found) ** 2)
