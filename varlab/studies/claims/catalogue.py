"""What a claim, its study and its negative control are, and where they are entered.

A study runs measurements or exact recursions and returns rows; a claim reads one number off the rows of its study and says where
that number should lie. The rows are what is saved: verdicts, tables and figures are made from them without computing again.
"""

from __future__ import annotations

import importlib
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pandas as pd

from varlab import checks, estimators
from varlab.studies.claims.verdicts import DIRECTIONS, Effect

#: How well a source is known: read in public code, full text read, abstract read, derived here, from memory.
TAGS = {"C": "code or logs read", "T": "text read", "A": "abstract read", "X": "derived here", "M": "from memory"}
#: Files of claims, in the order of the catalogue.
FAMILIES = (
    "spinning_up", "baselines", "state_baselines", "horizons", "bounds", "systems", "factorised", "control_variates",
    "action_averages", "q_prop", "mirage", "mirage_sampled", "gradient_quality", "value_errors", "lambda_exact",
    "lambda_cartpole", "discounting", "time_limits", "groups", "normalisation", "tokens", "learning", "cloned_values", "order",
)  # fmt: skip
#: Claims of the literature that need MuJoCo-hours or language models: cited, not reproduced.
CITED = {
    "SU-16": "TRPO on Hopper with and without value updates: hours of MuJoCo for every seed.",
    "MI-3": "HalfCheetah, discounted return: checkpoints of TRPO in MuJoCo.",
    "MI-4": "Humanoid, the same.",
    "MI-5": "With GAE on HalfCheetah and Humanoid, the same.",
    "MI-8": "Gains of Q-Prop, Stein and LAX on MuJoCo by implementation; what can be decided exactly is QP-1.",
    "IL-5": "Training without a baseline on MuJoCo ends about ten times lower.",
    "WU-3": "GAE on high-dimensional MuJoCo tasks.",
    "GA-3": "The value function on a simulated quadruped and on standing up.",
}
#: Claims of the catalogue that can be decided here.
REQUIRED = (
    *(f"SU-{i}" for i in (*range(1, 16), 17)), "MI-1", "MI-2", "MI-6", "MI-7", *(f"IL-{i}" for i in range(1, 5)),
    *(f"OB-{i}" for i in range(1, 7)), "ZH-1", "ZH-2", "ZH-3", "PB-1", "PR-1", "PR-2", "NS-1", "WU-1", "WU-2", "TC-1", "DR-1",
    "AA-1", "AA-2", "GA-1", "GA-2", "NT-1", "NT-2", "TL-1", "AN-1", *(f"RL-{i}" for i in range(1, 7)), "CH-1", "ME-1", "SC-1",
    "VP-1", "HT-1", "QP-1", "X",
)  # fmt: skip


@dataclass(frozen=True)
class Budget:
    """How much is spent: every n of a study is a multiple of its default.

    Attributes:
        name: smoke, default or paper.
        factor: n over its default.
        seed: root seed of all studies.
    """

    name: str = "default"
    factor: float = 1.0
    seed: int = 0

    def n(self, default: int, least: int = 500, multiple: int = 50) -> int:
        """Return the n of this budget for an n of the default one.

        Args:
            default: n at factor 1.
            least: what it does not go below.
            multiple: of which it is a multiple, such as 50 blocks of whole units.

        Returns:
            The number.
        """
        return max(multiple, math.ceil(max(default * self.factor, min(least, default)) / multiple) * multiple)


BUDGETS = {"smoke": Budget("smoke", 0.05), "default": Budget(), "paper": Budget("paper", 10.0)}


@dataclass(frozen=True)
class Study:
    """What makes rows.

    Attributes:
        name: of its file and figure.
        run: budget → rows; columns as the claims that read them expect.
        draw: (rows, style) → Figure, or None for the default (:func:`varlab.analysis.estimates.draw`).
        caption: one or two sentences: what was measured where, what the figure shows.
        version: raised when the rows change.
    """

    name: str
    run: Callable[[Budget], pd.DataFrame]
    draw: Callable[..., object] | None
    caption: str
    version: int


@dataclass(frozen=True)
class Control:
    """A deliberate falsehood of the same kind, which must come out violated.

    Attributes:
        sentence: what it claims.
        effect: rows of the study → the number.
        direction: below, above or within; the claim's if empty.
        bound: the claim's if None.
        margin: the claim's if None.
    """

    sentence: str
    effect: Callable[[pd.DataFrame], Effect]
    direction: str = ""
    bound: float | None = None
    margin: float | None = None


@dataclass(frozen=True)
class Claim:
    """One sentence of the literature that can be decided.

    Attributes:
        id: such as ``SU-7``; where a claim holds under a condition only, ``SU-7a``, ``SU-7b`` and so on.
        sentence: what is claimed, in plain words.
        source: authors, year, place.
        tag: a key of :data:`TAGS`.
        study: name of the study whose rows are read.
        statistic: what the effect is, in words.
        effect: rows → the number.
        direction: below, above or within.
        bound: what the effect is compared with.
        margin: half width of what counts as equal to the bound (within).
        control: what must come out violated.
        condition: under which the claim is put here, empty if none.
        needs: Φ that must be registered.
        published: a number of the source with its tag, such as ``"0.92 to 0.98 [T]"``.
        level: of the decision.
    """

    id: str
    sentence: str
    source: str
    tag: str
    study: str
    statistic: str
    effect: Callable[[pd.DataFrame], Effect]
    direction: str
    bound: float
    control: Control
    margin: float = 0.0
    condition: str = ""
    needs: tuple[str, ...] = ()
    published: str = ""
    level: float = 0.05

    def __post_init__(self) -> None:
        """Check what is written.

        Raises:
            InputError: for an unknown direction or tag, or a published number without its tag.
        """
        checks.one_of("direction of a claim", self.direction, DIRECTIONS)
        checks.one_of("provenance tag", self.tag, TAGS)
        if self.published and not re.search(r"\[[CTAXM]\]$", self.published):
            raise checks.InputError(
                f"A provenance tag such as [T] was expected at the end of what {self.id} prints of its source, but it is "
                f"'{self.published}'; add how well the number is known."
            )

    @property
    def catalogued(self) -> str:
        """The id in the catalogue, without the letter of a split; that of X-1, X-2 and so on is X."""
        return "X" if self.family == "X" else re.sub(r"(?<=[0-9])[a-z]$", "", self.id)

    @property
    def family(self) -> str:
        """The letters of the id: within them p-values are corrected."""
        return self.id.split("-")[0]

    @property
    def question(self) -> tuple[str, float, float]:
        """(direction, bound, margin)."""
        return self.direction, self.bound, self.margin

    @property
    def control_question(self) -> tuple[str, float, float]:
        """(direction, bound, margin) of the control."""
        c = self.control
        bound, margin = self.bound if c.bound is None else c.bound, self.margin if c.margin is None else c.margin
        return c.direction or self.direction, bound, margin


STUDIES: dict[str, Study] = {}
CLAIMS: dict[str, Claim] = {}


def study(name: str, caption: str, draw: Callable[..., object] | None = None, version: int = 1):  # noqa: ANN201
    """Enter a function budget → rows as a study.

    Args:
        name: of its file and figure.
        caption: what was measured where, what the figure shows.
        draw: (rows, style) → Figure.
        version: raised when the rows change.

    Returns:
        A decorator that gives the function back.
    """

    def enter(run: Callable[[Budget], pd.DataFrame]) -> Callable[[Budget], pd.DataFrame]:
        STUDIES[name] = Study(name, run, draw, caption, version)
        return run

    return enter


def claim(**fields: object) -> Claim:
    """Enter a claim.

    Args:
        **fields: of :class:`Claim`.

    Returns:
        The claim.

    Raises:
        InputError: if its id is there already.
    """
    made = Claim(**fields)
    if made.id in CLAIMS:
        raise checks.InputError(f"One claim of each id was expected, but {made.id} is entered twice; give one another letter.")
    CLAIMS[made.id] = made
    return made


def load() -> None:
    """Import every file of claims, and put the claims into the order of the catalogue whichever file was imported first.

    Raises:
        InputError: if a claim of the catalogue has no entry, or the study or a Φ of an entry is missing.
    """
    for name in FAMILIES:
        importlib.import_module(f"varlab.studies.claims.{name}")
    if missing():
        raise checks.InputError(
            f"An entry for every claim of the catalogue was expected, but {', '.join(missing())} have none; write them in a file "
            "of varlab/studies/claims and name it in FAMILIES, or say under CITED why they cannot be decided."
        )
    for one in CLAIMS.values():
        if one.study not in STUDIES:
            raise checks.InputError(
                f"A study called '{one.study}' was expected for {one.id}, but there is none; the nearest names are "
                f"{checks.nearest(one.study, STUDIES)}."
            )
        for phi in one.needs:
            estimators.parse(phi)  # refuses what is not registered
    place = {name: i for i, name in enumerate(REQUIRED)}
    ordered = sorted(CLAIMS.items(), key=lambda item: (place.get(item[1].catalogued, len(place)), item[0]))
    CLAIMS.clear()
    CLAIMS.update(ordered)


def missing() -> list[str]:
    """Return the claims of the catalogue that have no entry."""
    entered = {c.catalogued for c in CLAIMS.values()}
    return [x for x in REQUIRED if x not in entered]


def chosen(names: Iterable[str]) -> list[Claim]:
    """Return the claims that a list names: ids, ids of the catalogue, ``spinningup`` or ``all``.

    Args:
        names: such as ``["SU-1", "SU-7"]``.

    Returns:
        The claims, in the order of the catalogue.

    Raises:
        InputError: for a name that is none of these, or whose claim is cited only.
    """
    names = list(names)
    known = {"all", "spinningup", *CLAIMS, *(c.catalogued for c in CLAIMS.values())}
    for name in names:
        if name in CITED:
            raise checks.InputError(f"A claim that can be decided here was expected, but {name} is cited only: {CITED[name]}")
        checks.one_of("claim", name, known)

    def wanted(c: Claim) -> bool:
        return bool({"all", c.id, c.catalogued} & set(names)) or ("spinningup" in names and c.family == "SU")

    return [c for c in CLAIMS.values() if wanted(c)]
