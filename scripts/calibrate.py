"""Do the intervals cover the exact values: python scripts/calibrate.py --help."""

from __future__ import annotations

import multiprocessing
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import _entry
from omegaconf import DictConfig, OmegaConf


def one(job: tuple[str, int, int, int, str]) -> Path:
    """Calibrate one world at one n, or find that it was done before; return the file of its rows."""
    import torch

    import varlab
    from varlab import storage
    from varlab.studies.calibration import calibrate

    name, n, repeats, seed, cache = job
    digest = storage.digest({"world": name, "n": n, "repeats": repeats, "seed": seed, "numerics": varlab.NUMERICS})
    path = Path(cache) / f"{digest}.csv"
    if not path.exists():
        torch.set_num_threads(1)
        rows = calibrate(name, n, repeats, seed)
        with storage.atomic(path) as part:
            rows.to_csv(part, index=False)
    print(f"{name}, n = {n:,}: done", flush=True)
    return path


def main(cfg: DictConfig) -> None:
    """Calibrate every world, save the table, draw the figure, judge."""
    # Imported here so that --help stays quick.
    import pandas as pd

    import varlab
    from varlab import checks, storage
    from varlab.analysis import figures
    from varlab.studies import calibration, coverage

    names = [checks.one_of("world", w, calibration.CASES) for w in cfg.worlds or calibration.CASES]
    jobs = [(w, n, cfg.repeats, cfg.seed, cfg.cache) for w, n in calibration.jobs(names, cfg.n)]
    with ProcessPoolExecutor(cfg.workers, multiprocessing.get_context("spawn")) as pool:
        table = pd.concat([pd.read_csv(p) for p in pool.map(one, jobs)], ignore_index=True).assign(numerics=varlab.NUMERICS)
    out, command = Path(cfg.out), shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    style = OmegaConf.to_container(cfg.style, resolve=True)
    with storage.atomic(out / "table.csv") as part:
        table.to_csv(part, index=False)
    rules, ranges = coverage.rules_to_markdown(table), coverage.to_markdown(table)
    storage.write_text(out / "rules.md", rules)
    storage.write_text(out / "table.md", ranges)
    written = figures.save(coverage.draw(table, style), out, "coverage", coverage.caption(table, command), style)
    print(ranges, rules, sep="\n")
    print("Written:", *written, *(out / name for name in ("table.csv", "table.md", "rules.md")), sep="\n  ")


if __name__ == "__main__":
    _entry.run(main, "calibrate")
