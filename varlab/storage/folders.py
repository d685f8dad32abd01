"""Run folders: what one holds, claiming it, declaring it complete, finding complete ones."""

from __future__ import annotations

import logging
import shutil
import traceback
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from varlab import checks
from varlab.checks import InputError
from varlab.storage.atomic import drop_abandoned, write_json, write_text, writing
from varlab.storage.checksums import checksums, damage, read_done

log = logging.getLogger(__name__)

#: What a run may write; a folder that holds one of these without being this run's is not touched.
FILES = (
    "config.yaml", "summary.csv", "summary.parquet", "trajectories.parquet", "moments.npz", "critic.pt", "provenance.json",
    "report.html", "error.txt", "done.json",
)  # fmt: skip
_HEADER = "# digest: "


def folder_state(folder: str | Path, run_digest: str, files: Sequence[str] = FILES) -> str:
    """Say what a folder holds for the run with a given digest.

    Args:
        folder: the run folder, which need not exist.
        run_digest: digest of the run that wants it.
        files: what such a run may write, names or patterns.

    Returns:
        ``done`` where the same run is complete; ``interrupted`` where it began, or where one of its files is damaged; ``free``
        where nothing would be overwritten.

    Raises:
        InputError: if the folder holds another run, or files of unknown origin that the run would overwrite.
    """  # noqa: DOC502
    return _state(Path(folder), run_digest, files)[0]


def _state(folder: Path, run_digest: str, files: Sequence[str]) -> tuple[str, list[str]]:
    """Return what :func:`folder_state` says, and what is wrong with the files of a run that was complete."""
    checks.folder(folder, "name another folder with out=")
    present = _present(folder, (*files, "figures"))
    if not present:
        return "free", []
    held = _held_digest(folder)
    if held is None:
        raise InputError(
            f"An empty folder or one of run {run_digest} was expected at {folder}, but it holds {', '.join(present)} of unknown "
            "origin; name another folder with out= or move these files away."
        )
    if held != run_digest:
        raise InputError(
            f"A folder of run {run_digest} was expected at {folder}, but it holds run {held}, whose settings, θ or numerics "
            "differ; name another folder with out=, or remove this one if it is no longer wanted."
        )
    done = read_done(folder)
    found = [] if done is None else damage(folder, done)
    return "done" if done is not None and not found else "interrupted", found


def begin(folder: str | Path, run_digest: str, config: str, files: Sequence[str] = FILES) -> None:
    """Claim a folder for a run: check it, drop what an interrupted run left half-written, write ``config.yaml``.

    Args:
        folder: the run folder; made if missing.
        run_digest: digest of the run.
        config: the resolved configuration as YAML.
        files: what such a run may write.

    Raises:
        InputError: as :func:`folder_state`.
    """  # noqa: DOC502
    folder = Path(folder)
    _, found = _state(folder, run_digest, files)
    if found:
        log.warning("The run in %s is damaged (%s) and is made again.", folder, "; ".join(found))
    drop_abandoned(folder)
    with writing(folder / "done.json"):
        for name in ("done.json", "error.txt"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / "figures", ignore_errors=True)  # a half-drawn set must not pass for a whole one
    write_text(folder / "config.yaml", f"{_HEADER}{run_digest}\n{config}")


def read_config(folder: str | Path) -> tuple[dict[str, Any], str]:
    """Read the settings that :func:`begin` wrote.

    Args:
        folder: a run folder, complete or not.

    Returns:
        The settings and the digest of the run.

    Raises:
        InputError: if the folder does not hold a run's settings.
    """
    path = Path(folder) / "config.yaml"
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"Settings of a run were expected in {path}, but they could not be read; name a run folder.") from error
    first = text.partition("\n")[0]
    if not first.startswith(_HEADER) or not isinstance(data, dict):
        raise InputError(f"Settings of a run were expected in {path}, but it does not begin with a digest; name a run folder.")
    return data, first.removeprefix(_HEADER).strip()


def same_finished_run(one: str | Path, other: str | Path) -> bool:
    """Return whether two paths name one folder that holds a finished run."""
    return Path(one).resolve() == Path(other).resolve() and (Path(one) / "done.json").exists()


def finish(folder: str | Path, run_digest: str, numerics: int, files: Sequence[str] = FILES) -> None:
    """Declare the run complete: write ``done.json``, which lists the files that make it so, with their checksums."""
    folder = Path(folder)
    present = [name for name in _present(folder, files) if name not in ("error.txt", "done.json")]
    marker = {"digest": run_digest, "numerics": numerics, "files": present, "checksums": checksums(folder, present)}
    write_json(folder / "done.json", marker)
    (folder / "error.txt").unlink(missing_ok=True)


def keep_error(folder: str | Path, error: BaseException) -> Path | None:
    """Keep what made a run fail as ``error.txt`` in its folder: bad input as its sentence, anything else with its traceback.

    Args:
        folder: the run folder.
        error: what was raised.

    Returns:
        The file; None where it cannot be written either.
    """
    path = Path(folder) / "error.txt"
    told = f"{error}\n" if isinstance(error, InputError) else "".join(traceback.format_exception(error))
    try:
        write_text(path, told)
    except (OSError, InputError):
        return None
    return path


def read_error(path: str | Path) -> str | None:
    """Return what an ``error.txt`` says was wrong, in one line, or None where there is no such file."""
    try:
        lines = Path(path).read_text(encoding="utf-8").strip().splitlines()
    except (OSError, ValueError):
        return None
    return lines[-1] if lines else "no reason was kept"


def find_runs(paths: str | Path | Iterable[str | Path], training: bool = False) -> list[Path]:
    """Return the complete runs at or below some folders.

    Args:
        paths: one folder or several.
        training: whether to return training runs; measurements otherwise.

    Returns:
        The folders that hold a ``done.json``, each once, sorted.

    Raises:
        InputError: if a path is not a folder.
    """
    found: set[Path] = set()
    for path in [paths] if isinstance(paths, (str, Path)) else paths:
        if not Path(path).is_dir():
            raise InputError(f"A folder of runs was expected at {path}, but there is none; measure first, or mend the path.")
        found.update(done.parent for done in Path(path).rglob("done.json"))
    return sorted(folder for folder in found if (folder / "curve.parquet").exists() == training)


def _present(folder: Path, patterns: Iterable[str]) -> list[str]:
    return [path.name for pattern in patterns for path in sorted(folder.glob(pattern))]


def _held_digest(folder: Path) -> str | None:
    done = read_done(folder)
    if done is not None:
        return done.get("digest")
    try:
        with open(folder / "config.yaml", encoding="utf-8") as file:
            first = file.readline()
    except (OSError, ValueError):
        return None
    return first.removeprefix(_HEADER).strip() if first.startswith(_HEADER) else None
