"""What a sweep consists of and how far it came: its command, its jobs, and the run folders that they write.

Beside the run folders stands ``sweeps/``: one ``<digest>.json`` for each sweep (command and settings of every job), and one
folder ``jobs/<digest>/`` for each job, with the digests of its runs in ``job.json`` as soon as they are known, and
``error.txt`` where it failed before it had a run folder. What is done is read off the run folders alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import varlab
from varlab.checks import InputError
from varlab.storage.atomic import drop_abandoned, write_json
from varlab.storage.checksums import damage, read_done
from varlab.storage.digests import digest
from varlab.storage.folders import keep_error, read_error
from varlab.storage.locks import owner

#: What a job may be, from the most to the least finished.
STATES = ("done", "failed", "running", "missing")


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        words: its settings, as on the command line.
        state: one of :data:`STATES`; missing stands for never begun and for interrupted.
        note: why it failed, who runs it, or what is missing; empty where it is done.
        folders: its run folders, none where it never came so far.
    """

    words: tuple[str, ...]
    state: str
    note: str
    folders: tuple[Path, ...]


@dataclass(frozen=True)
class Sweep:
    """A sweep that was started at least once.

    Attributes:
        command: the words that started it and finish it.
        jobs: all its jobs, in order.
    """

    command: tuple[str, ...]
    jobs: tuple[Job, ...]

    def of(self, state: str) -> list[Job]:
        """Return the jobs in one state."""
        return [job for job in self.jobs if job.state == state]

    def swept(self, job: Job) -> str:
        """Return the settings of a job that not all jobs share, as text."""
        shared = set.intersection(*(set(other.words) for other in self.jobs))
        return " ".join(word for word in job.words if word not in shared) or " ".join(job.words) or "defaults"


def write_sweep(folder: str | Path, script: str, command: Sequence[str], jobs: Iterable[Sequence[str]]) -> None:
    """Keep what a sweep consists of.

    Args:
        folder: where its jobs' run folders go.
        script: the script's name, without suffix.
        command: the words that start it.
        jobs: the settings of each job.
    """
    drop_abandoned(Path(folder) / "sweeps")
    held = {"script": script, "command": list(command), "jobs": [_settings(words) for words in jobs]}
    write_json(Path(folder) / "sweeps" / f"{digest(held)}.json", held)


def write_job(folder: str | Path, script: str, words: Sequence[str], runs: Iterable[str]) -> None:
    """Keep the digests of the runs that a job consists of, and forget an earlier failure.

    Args:
        folder: where its run folders go.
        script: the script's name.
        words: the settings of the job.
        runs: the digest of each run.
    """
    place = _place(Path(folder), script, words)
    held = {"script": script, "words": _settings(words), "numerics": varlab.NUMERICS, "runs": list(runs)}
    drop_abandoned(place)
    if _read(place / "job.json") != held:
        write_json(place / "job.json", held)
    (place / "error.txt").unlink(missing_ok=True)


def fail_job(folder: str | Path, script: str, words: Sequence[str], error: BaseException) -> Path | None:
    """Keep what made a job fail: in the run folder that it had begun, else beside its record.

    Args:
        folder: where its run folders go.
        script: the script's name.
        words: the settings of the job.
        error: what was raised.

    Returns:
        The file written; None where that failed too.
    """
    place = _place(Path(folder), script, words)
    for run in (_read(place / "job.json") or {}).get("runs", ()):
        begun = Path(folder) / run
        if (begun / "config.yaml").exists() and not _complete(begun, run):
            return keep_error(begun, error)
    return keep_error(place, error)


def read_sweeps(folder: str | Path) -> list[Sweep]:
    """Return the sweeps whose jobs write into a folder, the one started last at the end.

    Args:
        folder: the sweeps' folder.

    Returns:
        The sweeps, with the state of every job.

    Raises:
        InputError: if no sweep was started there.
    """
    folder = Path(folder)
    records = sorted((folder / "sweeps").glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    held = [record for record in map(_read, records) if record is not None]
    if not held:
        raise InputError(
            f"A folder of a sweep was expected at {folder}, but no sweep was started there; name the folder of a multirun, such "
            "as results/runs/measure."
        )
    return [
        Sweep(tuple(each["command"]), tuple(_job(folder, each["script"], words) for words in each["jobs"])) for each in held
    ]


def _job(folder: Path, script: str, words: Sequence[str]) -> Job:
    place = _place(folder, script, words)
    record = _read(place / "job.json") or {}
    runs = record.get("runs", ())
    if record.get("numerics") != varlab.NUMERICS:  # another version's numbers
        runs = ()
    folders = tuple(folder / run for run in runs)
    states = [_run(each, run) for each, run in zip(folders, runs, strict=True)]
    if (error := read_error(place / "error.txt")) is not None:
        return Job(tuple(words), "failed", error, folders)
    for state in ("running", "failed", "missing"):
        for found, note in states:
            if found == state:
                return Job(tuple(words), state, note, folders)
    return Job(tuple(words), *(("done", "") if states else ("missing", "not begun")), folders)


def _run(folder: Path, run_digest: str) -> tuple[str, str]:
    """Return the state of one run, and what there is to say of it."""
    if _complete(folder, run_digest):
        return "done", ""
    if (process := owner(folder)) is not None:
        return "running", process
    if (error := read_error(folder / "error.txt")) is not None:
        return "failed", error
    found = damage(folder, read_done(folder) or {}, deep=False)
    if found:
        return "missing", found[0]
    return "missing", "interrupted" if (folder / "config.yaml").exists() else "not begun"


def _complete(folder: Path, run_digest: str) -> bool:
    done = read_done(folder)
    return done is not None and done.get("digest") == run_digest and not damage(folder, done, deep=False)


def _settings(words: Iterable[str]) -> list[str]:
    """Return the words that say what a job measures; Hydra's own say where and how."""
    return [word for word in words if not word.lstrip("+~").startswith("hydra")]


def _place(folder: Path, script: str, words: Iterable[str]) -> Path:
    return folder / "sweeps" / "jobs" / digest({"script": script, "words": sorted(_settings(words))})


def _read(path: Path) -> dict[str, Any] | None:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
