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
# numpy's products are small here: more threads gain nothing, and their number could move a last digit.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import cloudpickle
import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from varlab import checks, configure, launchers
from varlab.checks import InputError

HERE = os.path.dirname(__file__)
CONF = str(Path(__file__).resolve().parents[1] / "conf")


def in_multirun() -> bool:
    """Return whether this job is one of a multirun."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def command() -> list[str]:
    """Return the words of the command that does this job alone, the same on every machine and under every launcher."""
    settings = HydraConfig.get()
    return [f"scripts/{settings.job.config_name}.py", *settings.overrides.task]


def set_threads(threads: int | None) -> None:
    """Give torch a number of threads; None leaves it its own choice.

    Sums of single-precision products depend on it in their last digits, so the configurations say 1: the same bits then come
    from every machine and launcher, and jobs side by side never fight for cores.
    """
    if threads is not None:
        import torch  # here: --help stays quick

        torch.set_num_threads(checks.positive_int("threads", threads))


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


def _go_home() -> None:
    """Go to the folder of the command that began a multirun: a cluster may start its processes anywhere.

    Raises:
        InputError: if this machine does not see it.
    """
    home = HydraConfig.get().runtime.cwd
    if in_multirun() and not os.path.isdir(home):
        raise InputError(f"The folder {home}, where the multirun began, was expected on every machine, but not here; share it.")
    if in_multirun():
        os.chdir(home)


def run(task: Callable[[DictConfig], None], config_name: str) -> None:
    """Compose ``conf/<config_name>.yaml`` with the command line and call ``task`` on it, once per job.

    A multirun carries on after a job that failed and then exits with 2 (bad input) or 1.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises what it would print
    # Processes that a cluster starts know installed packages, not this folder: what the scripts share travels with the job.
    for module in [m for m in list(sys.modules.values()) if os.path.dirname(getattr(m, "__file__", None) or "") == HERE]:
        cloudpickle.register_pickle_by_value(module)

    @functools.wraps(task)
    def job(cfg: DictConfig) -> None:
        try:
            _go_home()
            task(cfg)
        except InputError as error:
            if in_multirun():
                raise  # configure.JobLog says which job it was, and the next one starts
            _refuse(str(error))

    words = sys.argv[1:]
    try:
        configure.refuse_out_in_multirun(words)
    except InputError as error:
        _refuse(str(error))
    try:
        hydra.main(version_base="1.3", config_path=CONF, config_name=config_name)(job)()
    except InputError:  # out of a multirun alone: the sentence was logged when its job ended
        _refuse("At least one job of the multirun had unusable input, as logged above; the others are complete.")
    except (HydraException, OmegaConfBaseException) as error:
        _refuse(configure.explain(error, words, CONF, config_name))
    except Exception as error:
        sentence = launchers.lost_job(error)
        if sentence is None:
            raise
        _refuse(sentence, code=1)


def _refuse(sentence: str, code: int = 2) -> None:
    print(" ".join(sentence.split()), file=sys.stderr)
    raise SystemExit(code)
