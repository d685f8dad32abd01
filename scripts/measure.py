"""Measure estimators at fixed θ and write a run folder: python scripts/measure.py --help."""

from __future__ import annotations

import shlex
from pathlib import Path

import _entry
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf


def main(cfg: DictConfig) -> None:
    """Compose, measure, save."""
    # Imported here: --help stays quick, and launchers that pickle this function send no modules along.
    import varlab
    from varlab import configure, experiment, kinds, provenance, repetition, storage
    from varlab.analysis import figures, run_page, style, tables

    multirun = _entry.in_multirun()
    if multirun:
        configure.refuse_out_in_multirun(["-m", f"out={cfg.out or ''}"])
    _entry.set_threads(cfg.threads)
    repeat = cfg.repeat
    if repeat is not None:
        plain = OmegaConf.to_container(cfg, resolve=True)
        cfg = OmegaConf.create(repetition.settings(plain, HydraConfig.get().overrides.task))
        kinds.check(OmegaConf.to_container(cfg, resolve=True), "measure")
    style.make(OmegaConf.to_container(cfg.style, resolve=True))  # a figure that cannot be drawn is told before the measurement
    planned = experiment.plan(**configure.arguments(cfg))
    folder = Path(cfg.out or Path(HydraConfig.get().sweep.dir) / planned.digest)
    if repeat is not None:
        repetition.check(repeat, planned.digest, str(folder))
    command = _entry.command()
    _entry.plan_runs([planned.digest])
    with _entry.claimed(folder, planned.digest) as state:
        if state == "running":
            return
        done = state == "done"
        if not done:
            storage.begin(folder, planned.digest, OmegaConf.to_yaml(cfg, resolve=True))
            with storage.ParquetSink(folder / "trajectories.parquet") as sink, _entry.progress(quiet=multirun) as progress:
                result = experiment.run(planned, cache=storage.ReferenceCache(cfg.cache), sink=sink, progress=progress)
            storage.write_run(folder, result, provenance.provenance(result, configure.seeds(cfg), command))
        summary, _, _, record = storage.read_run(folder)
        if cfg.figures and not (done and (folder / "figures").is_dir()):
            convergence = tables.gather_convergence([folder])
            with storage.atomic_folder(folder / "figures") as place:
                figures.save_all(summary, *convergence, place, cfg.style, shlex.join(["python", *command]))
        if not (done and (folder / "report.html").exists()):
            pictures = {path.stem: path.read_bytes() for path in sorted((folder / "figures").glob("*.png"))}
            storage.write_text(folder / "report.html", run_page.run_page(summary, record, pictures))
        if not done:
            storage.finish(folder, planned.digest, varlab.NUMERICS)
    if not multirun:
        print(tables.readable(summary), *(f"Note: {note}" for note in record["notes"]), sep="\n")
    if repeat is not None:
        print(repetition.compare(repeat, summary))
    print(f"{'Measured before' if done else 'Written'}: {folder}")


if __name__ == "__main__":
    # torch._dynamo is half of torch, and what the first optimiser of a critic loads.
    preload = ("varlab.experiment", "varlab.analysis.figures", "varlab.analysis.run_page", "torch._dynamo")
    _entry.run(main, "measure", preload)
