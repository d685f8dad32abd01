"""What every script shares: composing with Hydra, progress bars, and bad input as one sentence with exit code 2."""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# Waiting threads sleep instead of spinning: on cores shared with other programs small operations are many times faster, on
# idle ones equally fast. OpenMP reads it once, when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# numpy's products are small here: more threads gain nothing, and their number could move a last digit.
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import _isolation
import cloudpickle
import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from tqdm import tqdm

from varlab import checks, complaints, configure, guard, kinds, known_names, launchers, sweeps
from varlab.checks import InputError

#: Launchers whose sweep would die with one of its jobs: there each job has a process of its own.
FRAGILE = ("BasicLauncher", "JoblibLauncher")
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
    """Give a job its cores: so many, or its share of all that this process may use.

    No number of a measurement depends on them. Jobs that a launcher runs side by side share the cores.
    """
    import torch  # here: --help stays quick

    if threads is None:
        launcher = HydraConfig.get().launcher if in_multirun() else {}
        jobs, each = launcher.get("n_jobs") or 1, "cpus_per_task" in launcher and (launcher.cpus_per_task or 1)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        threads = min(torch.get_num_threads(), each or max(1, cores // (jobs if jobs > 0 else cores)))
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


def plan_runs(digests: Sequence[str]) -> None:
    """Record which runs this job of a multirun consists of."""
    if in_multirun():
        sweeps.runs(HydraConfig.get(), digests)


@contextlib.contextmanager
def claimed(folder: Path, run_digest: str, files: Sequence[str] | None = None) -> Iterator[str]:
    """Hold a run folder as its one writer.

    Args:
        folder: the run folder.
        run_digest: digest of the run.
        files: what such a run may write; those of a measurement if None.

    Yields:
        str: ``done`` where the run is complete, ``free`` where it is this process's to make, and ``running`` where another
        process is making it: a single run waits for that one, a job of a multirun leaves it alone.
    """
    from varlab import storage

    files, multirun = files or storage.FILES, in_multirun()
    if storage.folder_state(folder, run_digest, files) == "done":
        yield "done"
        return
    if not multirun and (process := storage.owner(folder)):
        print(f"Waiting for {process}, which is making {folder}.", file=sys.stderr)
    with storage.lock(folder, wait=not multirun) as ours:
        state = storage.folder_state(folder, run_digest, files) if ours else "running"
        if state == "running":
            print(f"Left to {storage.owner(folder) or 'another process'}: {folder}")
        yield "free" if state == "interrupted" else state


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


@contextlib.contextmanager
def _room_in_memory() -> Iterator[None]:
    """Say in a sentence that memory did not suffice."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and "can't allocate memory" not in str(error):
            raise
        asked = " ".join(str(error).split()).rpartition("] ")[2]
        raise InputError(
            f"Settings that fit into memory were expected, but they do not ({asked[:160] or type(error).__name__}); lower "
            "horizon, n, part_size or the number of Φ."
        ) from error


def _apart(task: Callable[[DictConfig], None], cfg: DictConfig, preload: Sequence[str]) -> None:
    """Do one job, in a process of its own where its death or its hanging must not take others along."""
    limit = cfg.get("time_limit")
    if limit is not None:
        limit = checks.in_range("time_limit", limit, 0.0, float("inf"))
    fragile = in_multirun() and HydraConfig.get().launcher._target_.endswith(FRAGILE)
    if not hasattr(os, "fork") or not (fragile or limit is not None):
        task(cfg)
        return
    for module in preload:
        importlib.import_module(module)  # once, not in each job's process
    def guarded() -> None:
        with _room_in_memory():
            task(cfg)

    _isolation.run_apart(guarded, limit)


def run(task: Callable[[DictConfig], None], config_name: str, preload: Sequence[str] = ()) -> None:
    """Compose ``conf/<config_name>.yaml`` with the command line and call ``task`` on it, once per job.

    A multirun carries on after a job that failed, names it in its last line and exits with 2 (bad input) or 1.

    Args:
        task: what a job does.
        config_name: the primary configuration.
        preload: modules that the jobs of a multirun would otherwise import each for itself.
    """
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra then raises what it would print
    # Processes that a cluster starts know installed packages, not this folder: what the scripts share travels with the job.
    for module in [m for m in list(sys.modules.values()) if os.path.dirname(getattr(m, "__file__", None) or "") == HERE]:
        cloudpickle.register_pickle_by_value(module)

    @functools.wraps(task)
    def job(cfg: DictConfig) -> None:
        try:
            try:
                _go_home()  # first: what is recorded of a job, refused or not, lies there
                plain = OmegaConf.to_container(cfg, resolve=True)
                known_names.check(plain, Path(CONF), config_name)
                kinds.check(plain, config_name)
                with _room_in_memory():
                    _apart(task, cfg, preload)
            except OmegaConfBaseException as error:
                raise InputError(complaints.explain(error, sys.argv[1:], CONF, config_name)) from error
        except InputError as error:
            if not in_multirun():
                _refuse(str(error))
            sweeps.fail(HydraConfig.get(), error)
            raise  # configure.JobLog says which job it was, and the next one starts
        except Exception as error:
            if in_multirun():
                sweeps.fail(HydraConfig.get(), error)
            raise

    words = sys.argv[1:]
    sweeps.SweepRecord.command = [f"scripts/{Path(sys.argv[0]).name}", *words]
    sweeps.SweepRecord.folder = None
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
    except (HydraException, OmegaConfBaseException) as error:
        _refuse(complaints.explain(error, words, CONF, config_name))
    except InputError:  # out of a multirun alone: the sentence was logged when its job ended
        _refuse(sweeps.outcome() or "At least one job of the multirun had unusable input, as logged above.")
    except KeyboardInterrupt:
        if not any(flag in words for flag in ("-m", "--multirun")):
            raise
        _refuse("The multirun was interrupted; what is finished is kept, so repeat the same command to finish it.", code=130)
    except Exception as error:
        lost, ended = launchers.lost_job(error), sweeps.outcome()
        if lost is not None:
            _refuse(f"{lost} {ended or ''}", code=1)
        if ended is None:
            _explain_refusal(error)
            raise
        print(ended, file=sys.stderr)  # what went wrong was logged when its job ended
        raise SystemExit(1) from None
    else:
        if ended := sweeps.outcome():
            print(ended, file=sys.stderr)


def _explain_refusal(error: Exception) -> None:
    """End with one sentence where the system refused a write of Hydra's own."""
    from varlab.storage import writing

    try:
        with writing(getattr(error, "filename", None) or "the run folder"):
            raise error
    except InputError as sentence:
        _refuse(str(sentence))
    except Exception:
        return


def _refuse(sentence: str, code: int = 2) -> None:
    print(" ".join(sentence.split()), file=sys.stderr)
    raise SystemExit(code)
