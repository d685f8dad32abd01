"""Time varlab beside its peers and print ratios: python scripts/benchmark.py --help."""

from __future__ import annotations

from pathlib import Path

import _entry
from omegaconf import DictConfig


def main(cfg: DictConfig) -> None:
    """Run the works asked for, print a table, save the rows."""
    import torch

    from varlab import checks, storage
    from varlab.studies import speed

    if cfg.threads is not None:
        torch.set_num_threads(checks.positive_int("threads", cfg.threads))
    rounds = checks.positive_int("rounds", cfg.rounds)
    works = {"gradients": speed.gradients, "sampling": speed.sampling}
    rows = []
    for name in cfg.works:
        if checks.one_of("work", name, [*works, "memory"]) == "memory":
            used = speed.memory()
            print(
                f"memory: {used['n']:,} CartPole trajectories peak at {used['peak_gib']:.2f} GiB "
                f"(target {used['target_gib']} GiB) in {used['seconds']:.0f} s"
            )
            continue
        rows += works[name](rounds)
        for row in rows[-3:] if name == "gradients" else rows[-1:]:
            target = f", target {row.target:g}" if row.target else ""
            print(f"{row.work}: {row.ratio_median:.1f}x {row.peer} ({row.ratio_min:.1f} to {row.ratio_max:.1f}{target})")
    if rows:
        Path(cfg.out).parent.mkdir(parents=True, exist_ok=True)
        storage.write_json(Path(cfg.out), speed.table(rows))
        print(f"Written: {cfg.out}")


if __name__ == "__main__":
    _entry.run(main, "benchmark")
