"""Check published claims: python scripts/claims.py --help."""

from __future__ import annotations

import multiprocessing
import shlex
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import _entry
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf


def one(name: str, budget: object, path: str) -> str:
    """Make the rows of one study, or find that they were made before."""
    import torch

    from varlab import storage
    from varlab.studies.claims import catalogue

    catalogue.load()
    torch.set_num_threads(1)
    storage.rows_or(path, lambda: catalogue.STUDIES[name].run(budget))
    return name


def main(cfg: DictConfig) -> None:
    """Run the studies that the claims need, judge, write tables, figures and the page."""
    # Imported here so that --help stays quick.
    from varlab import provenance, storage
    from varlab.analysis.figures import save
    from varlab.studies.claims import catalogue, figures, judge, pages, saved, tables

    catalogue.load()
    claims = catalogue.chosen([cfg.claims] if isinstance(cfg.claims, str) else cfg.claims)
    budget = saved.budget_of(HydraConfig.get().runtime.choices["budget"], cfg.seed)
    names = list(dict.fromkeys(c.study for c in claims))
    digests = {n: judge.digest_of(catalogue.STUDIES[n], budget) for n in names}
    paths = {n: saved.path(n, budget, cfg.cache) for n in names}
    with ProcessPoolExecutor(cfg.workers, multiprocessing.get_context("spawn")) as pool:
        jobs = [pool.submit(one, n, budget, paths[n]) for n in names]
        for i, job in enumerate(as_completed(jobs), 1):
            print(f"{i} of {len(jobs)} studies: {job.result()}", flush=True)
    rows = saved.read(names, budget, cfg.cache)
    table = judge.judge(claims, rows, digests, budget)
    out, style = Path(cfg.out), OmegaConf.to_container(cfg.style, resolve=True)
    command = shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    for n in names:
        save(figures.figure_of(n, rows[n], style), out / "figures", n, figures.caption(n, table, command), style)
    pictures = {n: (out / "figures" / f"{n}.png").read_bytes() for n in names}
    with storage.atomic(out / "table.csv") as part:
        table.to_csv(part, index=False)
    storage.write_text(out / "table.md", tables.to_markdown(table))
    storage.write_text(out / "table.tex", tables.to_latex(table))
    storage.write_text(out / "contradicted.md", tables.contradicted_to_markdown(table))
    order = rows.get("textbook_order", storage.read_rows(saved.path("textbook_order", budget, cfg.cache)))
    page = pages.claims_page(table, pictures, provenance.facts(command, cfg.seed), order)
    storage.write_text(out / "report.html", page)
    print(tables.readable(table))
    print("Written:", *(out / f for f in ("table.csv", "table.md", "table.tex", "report.html")), sep="\n  ")


if __name__ == "__main__":
    _entry.run(main, "claims")
