"""How often the textbook order of variances fails on random MDPs: python scripts/textbook_order.py --help."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import _entry
from omegaconf import DictConfig, OmegaConf


def main(cfg: DictConfig) -> None:
    """Compute exact variances on random MDPs, save the table, draw the figure."""
    # Imported here so that --help stays quick.
    import torch

    from varlab import checks, storage
    from varlab.analysis import figures
    from varlab.studies import textbook_order as study

    if cfg.threads is not None:
        torch.set_num_threads(checks.positive_int("threads", cfg.threads))
    out, command = Path(cfg.out), shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    seed = checks.positive_int("seed", cfg.seed, least=0)
    summary = study.summarise(study.variances(cfg.mdps, seed))
    style = OmegaConf.to_container(cfg.style, resolve=True)
    text = study.caption(summary, seed, command)
    written = figures.save(study.draw(summary, style), out, "violations", text, style)
    with storage.atomic(out / "table.csv") as part:
        summary.to_csv(part, index=False)
    storage.write_text(out / "table.md", study.to_markdown(summary))
    print(study.to_markdown(summary))
    print("Written:", *written, out / "table.csv", out / "table.md", sep="\n  ")


if __name__ == "__main__":
    _entry.run(main, "textbook_order")
