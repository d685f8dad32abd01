"""What ``done.json`` knows of each file of results: its size and SHA-256, so that damage does not pass for a number."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from varlab.checks import InputError

#: Files without results of their own, which two writers of one run write differently (wall time, paths).
NOT_COUNTED = ("config.yaml", "provenance.json", "report.html")


def checksums(folder: Path, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return name → size and SHA-256 of files."""
    counted = [name for name in names if name not in NOT_COUNTED]
    return {name: {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)} for name in counted}


def damage(folder: Path, done: Mapping[str, Any], names: Iterable[str] | None = None, deep: bool = True) -> list[str]:
    """Say what is wrong with the files of a finished run.

    Args:
        folder: its folder.
        done: the content of its ``done.json``; runs of earlier versions list no checksums.
        names: the files to look at; all that are listed if None.
        deep: whether to read the files; their sizes alone are compared otherwise.

    Returns:
        One remark for each damaged or missing file, such as ``summary.csv is missing``.
    """
    known, found = done.get("checksums", {}), []
    for name in done.get("files", ()):
        path, told = folder / name, known.get(name)
        if names is not None and name not in names:
            continue
        if not path.is_file():
            found.append(f"{name} is missing")
        elif told and path.stat().st_size != told["bytes"]:
            found.append(f"{name} has {path.stat().st_size:,} bytes instead of {told['bytes']:,}")
        elif told and deep and _sha256(path) != told["sha256"]:
            found.append(f"the checksum of {name} differs from its content")
    return found


def read_done(folder: Path) -> dict[str, Any] | None:
    """Return the content of ``done.json``, or None where there is none to read."""
    try:
        data = json.loads((folder / "done.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None


def refuse_damage(folder: Path, names: Iterable[str]) -> None:
    """Check the files of a finished run before they are read.

    Args:
        folder: its folder; an unfinished run has no checksums and passes.
        names: the files that are going to be read.

    Raises:
        InputError: naming the damaged file.
    """
    found = damage(folder, read_done(folder) or {}, tuple(names))
    if found:
        raise InputError(
            f"A complete run was expected in {folder}, but {found[0]}; repeat the command that made it, which measures it again."
        )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
