"""Rows of finished studies: where they are kept, and what is made of them without computing again."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

import pandas as pd

from varlab import checks, storage
from varlab.studies.claims import judge
from varlab.studies.claims.catalogue import BUDGETS, CLAIMS, STUDIES, Budget


def path(name: str, budget: Budget, cache: str) -> str:
    """Return the file that a study's rows are kept in, under the digest of what made them."""
    return f"{cache}/{name}-{judge.digest_of(STUDIES[name], budget)}.parquet"


def chosen(names: str | Iterable[str]) -> list[str]:
    """Return the studies that a setting names.

    Args:
        names: a name, several, or ``all``.

    Returns:
        The names in the order of the catalogue.

    Raises:
        InputError: for a name of no study, with the nearest names.
    """  # noqa: DOC502
    asked = [names] if isinstance(names, str) else [str(n) for n in names]
    for name in asked:
        checks.one_of("study", name, ["all", *STUDIES])
    return [n for n in STUDIES if "all" in asked or n in asked]


def read(names: Iterable[str], budget: Budget, cache: str) -> dict[str, pd.DataFrame]:
    """Read the rows of studies; nothing is computed.

    Args:
        names: of studies.
        budget: that they were run with.
        cache: folder of their files.

    Returns:
        Study → rows.

    Raises:
        InputError: if rows are missing, with the command that makes them.
    """
    rows = {n: storage.read_rows(path(n, budget, cache)) for n in names}
    lacking = [n for n, table in rows.items() if table is None]
    if lacking:
        ids = [c.id for c in CLAIMS.values() if c.study in lacking]
        words = [f"claims=[{','.join(ids)}]", f"budget={budget.name}", f"seed={budget.seed}", f"cache={cache}"]
        command = shlex.join(["python", "scripts/claims.py", *words])
        raise checks.InputError(
            f"Saved rows were expected in {cache} for {', '.join(lacking)} (budget {budget.name}, seed {budget.seed}), but there "
            f"are none; make them first: {command}"
        )
    return rows


def verdicts(rows: dict[str, pd.DataFrame], budget: Budget, cache: str) -> pd.DataFrame:
    """Judge the claims of some studies as they are judged among all: with every saved study of their families.

    Args:
        rows: of the studies.
        budget: that they were run with.
        cache: where rows of further studies may be.

    Returns:
        The table of :func:`varlab.studies.claims.judge.judge`, of the claims of these studies alone.
    """
    families = {c.family for c in CLAIMS.values() if c.study in rows}
    related = {c.study for c in CLAIMS.values() if c.family in families} - set(rows)
    found = {n: storage.read_rows(path(n, budget, cache)) for n in related}
    known = rows | {n: table for n, table in found.items() if table is not None}
    claims = [c for c in CLAIMS.values() if c.family in families and c.study in known]
    table = judge.judge(claims, known, {n: judge.digest_of(STUDIES[n], budget) for n in known}, budget)
    return table[table["study"].isin(list(rows))].reset_index(drop=True)


def budget_of(name: str, seed: object) -> Budget:
    """Return a budget by its name, with a root seed.

    Args:
        name: smoke, default or paper.
        seed: a whole number of at least 0.

    Returns:
        The budget.

    Raises:
        InputError: for another name or seed.
    """  # noqa: DOC502
    budget = BUDGETS[checks.one_of("budget", name, BUDGETS)]
    return Budget(budget.name, budget.factor, checks.positive_int("seed", seed, least=0))
