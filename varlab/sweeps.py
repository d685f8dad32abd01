"""Sweeps as Hydra starts them: what their jobs are, where they are recorded, and how one ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from varlab import storage
from varlab.checks import InputError
from varlab.storage import jobs

#: Jobs that the last line of a sweep names; a status names all.
NAMED = 12


class SweepRecord(Callback):
    """Keeps the command and the jobs of a multirun before its first job starts.

    Attributes:
        command: the words of this process's command, which its script sets.
        folder: where the sweep of this process is recorded; None before it started.
    """

    command: ClassVar[Sequence[str]] = ()
    folder: ClassVar[str | None] = None

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Record the sweep.

        Args:
            config: composed configuration with Hydra's own node.
            **kwargs: what later versions of Hydra may add.
        """
        SweepRecord.folder = None
        try:
            settings = expand(config)
            jobs.write_sweep(config.hydra.sweep.dir, config.hydra.job.name, self.command, settings)
        except (InputError, OSError):
            return  # Hydra meets the same refusal, and stops the sweep with it
        SweepRecord.folder = config.hydra.sweep.dir


def expand(config: DictConfig) -> list[list[str]]:
    """Return the settings of every job of a multirun, as Hydra's own sweeper makes them.

    Args:
        config: composed configuration with Hydra's own node.

    Returns:
        One list of words for each job, in order.
    """
    params = OmegaConf.to_container(config.hydra.sweeper.get("params") or OmegaConf.create({}), resolve=True)
    words = [f"{key}={value}" for key, value in params.items()] + list(config.hydra.overrides.task)
    batches = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(words), None)
    return [job for batch in batches for job in batch]


def runs(hydra: DictConfig, digests: Sequence[str]) -> None:
    """Keep which runs the job of this process consists of; nothing outside a multirun.

    Args:
        hydra: Hydra's own node.
        digests: of its runs.
    """
    jobs.write_job(hydra.sweep.dir, hydra.job.name, hydra.overrides.task, digests)


def fail(hydra: DictConfig, error: BaseException) -> None:
    """Keep what made the job of this process fail.

    Args:
        hydra: Hydra's own node.
        error: what was raised.
    """
    jobs.fail_job(hydra.sweep.dir, hydra.job.name, hydra.overrides.task, error)


def outcome() -> str | None:
    """Say in one line how the sweep of this process ended; None where there was none or where all is done."""
    if SweepRecord.folder is None:
        return None
    found = [s for s in storage.read_sweeps(SweepRecord.folder) if list(s.command) == list(SweepRecord.command)]
    if not found:
        return None
    sweep, told = found[-1], []
    for state, word in (("failed", "failed"), ("running", "are being run by other processes"), ("missing", "are missing")):
        left = sweep.of(state)
        if left:
            names = [sweep.swept(job) for job in left[:NAMED]] + [f"{len(left) - NAMED} more"] * (len(left) > NAMED)
            told.append(f"{len(left)} of {len(sweep.jobs)} jobs {word}: {'; '.join(names)}")
    if not told:
        return None
    return f"{'. '.join(told)}. The others are complete; scripts/status.py sweep={SweepRecord.folder} says more."
