"""Race varlab against its peers and print ratios: python scripts/benchmark.py --help."""

from __future__ import annotations

import os
import platform
import shlex
import sys
from pathlib import Path

import _entry
from omegaconf import DictConfig, OmegaConf


def main(cfg: DictConfig) -> None:
    """Run the works asked for, printing row by row; save rows, table and figure."""
    from varlab import checks

    threads = checks.positive_int("threads", cfg.threads)
    if hasattr(os, "sched_setaffinity"):  # before JAX or torch count the cores: all peers get the same ones
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    import torch

    from varlab import storage
    from varlab.analysis import figures
    from varlab.studies.speed import catalogue, race, report

    torch.set_num_threads(threads)
    checks.device_of(cfg.device)
    named = [checks.one_of("work", name, catalogue.WORKS) for name in cfg.works]
    settings = OmegaConf.to_container(cfg.sizes[checks.one_of("size", cfg.size, cfg.sizes)], resolve=True)
    settings |= {k: v for k, v in OmegaConf.to_container(cfg.only, resolve=True).items() if v is not None}
    rounds = checks.positive_int("repeats", settings.pop("repeats") if cfg.repeats is None else cfg.repeats)
    budget = race.Budget(rounds, float(settings.pop("longest")))
    settings.pop("repeats", None)
    sizes = catalogue.Sizes(budget, device=cfg.device, threads=threads, **settings)
    rows = []
    for name in named:
        for row in catalogue.WORKS[name](sizes):
            rows.append(row)
            print(report.line(row), flush=True)
    out, command = Path(cfg.out), shlex.join(["python", "scripts/benchmark.py", *sys.argv[1:]])
    machine = f"Measured on {threads} cores ({platform.machine()}, torch {torch.__version__}), {rounds} repeats, medians."
    storage.write_json(out / "latest.json", report.as_json(rows))
    storage.write_text(out / "table.md", report.to_markdown(rows, machine))
    written: list[Path] = [out / "latest.json", out / "table.md"]
    drawn = {"ratios": report.draw(rows), "growth": report.draw_growth(rows)}
    captions = {"ratios": report.caption(rows, machine, command), "growth": report.growth_caption(machine, command)}
    for name, figure in drawn.items():
        if figure is not None:
            written += figures.save(figure, out, name, captions[name])
    print("Written:", *written, sep="\n  ")


if __name__ == "__main__":
    _entry.run(main, "benchmark")
