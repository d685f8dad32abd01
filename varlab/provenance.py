"""Where a number comes from: versions, commit, seeds, the command and what it cost."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import varlab

PACKAGES = ("torch", "gymnasium", "numpy", "scipy", "pandas", "pyarrow", "hydra-core", "matplotlib", "seaborn")


def versions() -> dict[str, str]:
    """Return the versions of Python, of varlab and of the packages that numbers or files pass through."""
    found = {"python": platform.python_version(), "varlab": varlab.__version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def commit(folder: str | Path | None = None) -> tuple[str | None, bool | None]:
    """Return the git commit of a source folder and whether tracked files differ from it.

    Args:
        folder: a folder of the working tree; None stands for varlab's own source.

    Returns:
        The commit's hash and the dirty flag; both None where git or the repository is missing, or where another repository
        merely surrounds an installed varlab.
    """
    folder = Path(folder or Path(__file__).resolve().parent)

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL, timeout=20)
        return done.stdout.strip()

    try:
        if not git("ls-files", "."):
            return None, None
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return None, None


def provenance(result: Any, seeds: Mapping[str, int], command: Sequence[str]) -> dict[str, Any]:
    """Return the provenance record of a run.

    Args:
        result: what :func:`varlab.measure` returned.
        seeds: the root seed of each stream.
        command: the words of the command, from the script's name on.

    Returns:
        A mapping for ``provenance.json``.
    """
    revision, dirty = commit()
    return {
        "digest": result.digest,
        "numerics": varlab.NUMERICS,
        "command": list(command),
        "seeds": dict(seeds),
        "commit": revision,
        "dirty": dirty,
        "versions": versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": torch.get_num_threads(),
        "wall_seconds": result.wall,
        "steps": dict(result.steps),
        "notes": list(result.notes),
        "settings": dict(result.settings),
        "layers": dict(getattr(result, "layers", {})),  # a training run has none
    }


def facts(command: str, seed: int) -> dict[str, Any]:
    """Return what a page says of its making: command, seed, commit, numerics and versions."""
    revision, dirty = commit()
    told = f"{revision} with changes" if dirty else revision
    return {"command": command, "seed": seed, "commit": told or "unknown", "numerics": varlab.NUMERICS, **versions()}
