"""What every script shares: composing with Hydra, progress bars, and bad input as one sentence with exit code 2."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

# Waiting threads sleep instead of spinning: on cores shared with other programs small operations are many times faster, on
# idle ones equally fast. OpenMP reads it once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from varlab import complaints, configure, guard, kinds
from varlab.checks import InputError

CONF = str(Path(__file__).resolve().parents[1] / "conf")


def in_multirun() -> bool:
    """Return whether this job is one of a multirun."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


@contextlib.contextmanager
def progress(quiet: bool, unit: str = "trajectories") -> Iterator[Callable[[str, int, int], None]]:
    """Give a function (stream, done, in all) that shows one bar per stream in a terminal, nothing in a file."""
    bars: dict[str, tqdm] = {}

    def show(stream: str, done: int, total: int) -> None:
        if stream not in bars:
            bars[stream] = tqdm(desc=stream, total=total, unit=f" {unit}", disable=quiet or None)
        bars[stream].update(done - bars[stream].n)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()


def run(task: Callable[[DictConfig], None], config_name: str) -> None:
    """Compose ``conf/<config_name>.yaml`` with the command line and call ``task`` on it, once per job.

    A multirun carries on after a job that failed and then exits with 2 (bad input) or 1.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises what it would print

    @functools.wraps(task)
    def job(cfg: DictConfig) -> None:
        try:
            try:
                kinds.check(OmegaConf.to_container(cfg, resolve=True), config_name)
                task(cfg)
            except OmegaConfBaseException as error:
                raise InputError(complaints.explain(error, sys.argv[1:], CONF, config_name)) from error
        except InputError as error:
            if in_multirun():
                raise  # configure.JobLog says which job it was, and the next one starts
            _refuse(str(error))

    words = sys.argv[1:]
    try:
        guard.check_words(words)
        configure.refuse_out_in_multirun(words)
    except InputError as error:
        _refuse(str(error))
    try:
        with guard.guarded():
            hydra.main(version_base="1.3", config_path=CONF, config_name=config_name)(job)()
    except guard.RefusedError as error:
        _refuse(str(error))
    except InputError:  # out of a multirun alone: the sentence was logged when its job ended
        _refuse("At least one job of the multirun had unusable input, as logged above; the others are complete.")
    except (HydraException, OmegaConfBaseException) as error:
        _refuse(complaints.explain(error, words, CONF, config_name))


def _refuse(sentence: str) -> None:
    print(" ".join(sentence.split()), file=sys.stderr)
    raise SystemExit(2)
