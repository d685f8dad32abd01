"""Measuring a run again from its folder: its settings, the check that they still mean the same, and what came out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

import varlab
from varlab import storage, user_modules
from varlab.checks import InputError

#: Settings that move no number and may be given beside ``repeat=``.
FREE = ("repeat", "out", "study", "cache", "figures", "style", "threads", "time_limit")
#: Settings that open a door to code: they are given anew, or the run's own stay closed.
DOORS = ("user_module", "theta.trust")


def settings(ours: Mapping[str, Any], words: Sequence[str]) -> dict[str, Any]:
    """Return the settings of the run in the folder ``ours["repeat"]``, with those of :data:`FREE` taken from ``ours``.

    Args:
        ours: the composed configuration as plain data.
        words: the settings that the command line gave, as key=value.

    Returns:
        The configuration to measure. Settings that the run's version did not have yet stand at their defaults.

    Raises:
        InputError: if the folder holds no run, another setting is given, or the run has one that is unknown here.
    """
    for word in words:
        key = word.lstrip("+~").partition("=")[0]
        if key.partition(".")[0] not in FREE and key not in DOORS:
            raise InputError(
                f"Only {', '.join(FREE)} were expected beside repeat=, because the run itself says the rest, but {word} came; "
                "leave it out, or measure without repeat=."
            )
    kept, _ = storage.read_config(ours["repeat"])
    if unknown := sorted(set(kept) - set(ours)):
        raise InputError(
            f"Settings of varlab {varlab.__version__} were expected in {ours['repeat']}/config.yaml, but it has "
            f"{', '.join(unknown)} too; repeat the run with the version that its provenance.json names."
        )
    made = {**ours} | {key: value for key, value in kept.items() if key not in (*FREE, "user_module")}
    _check_doors(ours, kept)
    if isinstance(kept.get("critic"), Mapping):  # the one group of settings that is not chosen by name, and grows
        made["critic"] = ours["critic"] | kept["critic"]
    return made | {"repeat": None}


def _check_doors(ours: Mapping[str, Any], kept: Mapping[str, Any]) -> None:
    """Check that the command opens the doors through which the run took code, and that the code is the same.

    Raises:
        InputError: naming the word that is missing, or the file that has changed.
    """
    run = ours["repeat"]
    if (theta := kept.get("theta") or {}).get("trust") and not (ours.get("theta") or {}).get("trust"):
        raise InputError(
            f"The word +theta.trust=true was expected beside repeat=, because the run in {run} unpickled {theta.get('path')}, "
            "and that is done only where the command says so; add it if you vouch for the file."
        )
    if kept.get("user_module") is None:
        return
    if ours.get("user_module") is None:
        raise InputError(
            f"The word user_module= was expected beside repeat=, because the run in {run} ran {kept['user_module']}, and that is "
            "done only where the command says so; add user_module= and the file."
        )
    recorded = storage.read_settings(run).get("user_module")
    if recorded is not None and recorded != (found := user_modules.digest(ours["user_module"])):
        raise InputError(
            f"The file of digest {recorded} that the run in {run} ran was expected as user_module, but {ours['user_module']} has "
            f"{found}; it was not run. Go back to the commit and files that the run's provenance.json names."
        )


def check(run: str, digest: str, folder: str) -> None:
    """Check that the settings of a run still give its digest, and that its repetition has a folder of its own.

    Args:
        run: folder of the run.
        digest: of its settings here and now.
        folder: where they will be measured.

    Raises:
        InputError: if not.
    """
    _, held = storage.read_config(run)
    if held != digest:
        raise InputError(
            f"Settings of digest {held} were expected of the run in {run}, but here (numerics {varlab.NUMERICS}) they give "
            f"{digest}: θ or another file that it read has changed, or varlab's numerics have; go back to the commit and files "
            "that its provenance.json names."
        )
    if storage.same_finished_run(run, folder):
        raise InputError(
            f"Another folder than that of the finished run was expected for its repetition, but both are {run}; set out=."
        )


def compare(run: str, summary: pd.DataFrame) -> str:
    """Say whether a repetition gave the same summary.

    Args:
        run: folder of the run.
        summary: of its repetition.

    Returns:
        One line, which names the columns that differ and the largest relative difference.
    """
    try:
        first, _, _, record = storage.read_run(run)
    except InputError:
        return f"Nothing to compare with: {run} was not finished, or its files are damaged."
    if first.equals(summary):
        return f"Equal bit for bit: {run}"
    shared = [c for c in first.columns if c in summary.columns and not first[c].equals(summary[c])]
    numbers = [c for c in shared if pd.api.types.is_numeric_dtype(first[c]) and pd.api.types.is_numeric_dtype(summary[c])]
    gap = max((_relative(first[c], summary[c]) for c in numbers), default=float("nan"))
    return (
        f"Differs from {run} in {', '.join(shared) or 'its columns'} by up to {gap:.2g} of a value; versions there: "
        f"{_versions(record)}."
    )


def _relative(a: pd.Series, b: pd.Series) -> float:
    gap = (a - b).abs() / a.abs().where(a != 0, 1.0)
    return float(gap.max())


def _versions(record: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {version}" for name, version in record.get("versions", {}).items())
