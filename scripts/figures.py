"""Draw saved numbers anew, computing nothing: python scripts/figures.py --help."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import _entry
from omegaconf import DictConfig, OmegaConf


def draw_studies(cfg: DictConfig, style: dict, command: str) -> None:
    """Draw studies of claims from their saved rows."""
    from hydra.core.hydra_config import HydraConfig

    from varlab.analysis.figures import save
    from varlab.studies.claims import catalogue, figures, saved

    catalogue.load()
    names = saved.chosen(cfg.study)
    budget = saved.budget_of(HydraConfig.get().runtime.choices["budget"], cfg.seed)
    rows = saved.read(names, budget, cfg.cache)
    table = saved.verdicts(rows, budget, cfg.cache)
    written = []
    for name in names:
        drawing, caption = figures.figure_of(name, rows[name], style), figures.caption(name, table, command)
        written += save(drawing, cfg.out, name, caption, style)
    print(f"Drawn from the rows in {cfg.cache}; written:", *written, sep="\n  ")


def main(cfg: DictConfig) -> None:
    """Draw studies, or find runs, gather them, draw, save."""
    # Imported here so that --help stays quick.
    from varlab import checks, storage
    from varlab.analysis import captions, figures, run_analyses, tables
    from varlab.studies import learning_curves

    style = OmegaConf.to_container(cfg.style, resolve=True)
    command = shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    if cfg.study is not None:
        draw_studies(cfg, style, command)
        return
    # One folder may be written without brackets.
    paths = [cfg.runs] if isinstance(cfg.runs, str) else list(cfg.runs)
    folders, trained = storage.find_runs(paths), storage.find_runs(paths, training=True)
    if trained:
        curves = learning_curves.gather(trained, cfg.allow_mixed_numerics)
        summary = learning_curves.summarise(curves)
        caption = learning_curves.caption(summary, curves, command)
        written = figures.save(learning_curves.draw(summary, style), cfg.out, "learning_curves", caption, style)
        with storage.atomic(Path(cfg.out) / "learning_curves.csv") as part:
            summary.to_csv(part, index=False)
        print(f"Gathered {len(trained)} training runs from {', '.join(paths)}; written:", *written, sep="\n  ")
        if not folders:
            return
    for name in cfg.also:
        checks.one_of("analysis", name, run_analyses.ANALYSES)
    table = tables.gather(folders, cfg.allow_mixed_numerics)
    if set(tables.varying(table)) - {"env"}:
        written = figures.save_sweep(table, cfg.out, style, command)
    else:
        running, cosine = tables.gather_convergence(table["run"].unique())
        written = figures.save_all(table, running, cosine, cfg.out, style, command)
    for name, analysis, group, rows in run_analyses.analyses(list(cfg.also), list(table["run"].unique())):
        text = captions.caption(name, table[table["run"].isin(group)], command, analysis.caption)
        written += figures.save(analysis.draw(rows, style), cfg.out, name, text, style)
        with storage.atomic(Path(cfg.out) / f"{name}.csv") as part:
            rows.to_csv(part, index=False)
        written.append(Path(cfg.out) / f"{name}.csv")
    written += tables.save(table, cfg.out)
    print(f"Gathered {table['run'].nunique()} runs from {', '.join(paths)}; written:", *written, sep="\n  ")


if __name__ == "__main__":
    _entry.run(main, "figures")
