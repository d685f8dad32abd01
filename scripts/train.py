"""Train a policy by vanilla policy gradient and keep its checkpoints: python scripts/train.py --help."""

from __future__ import annotations

from pathlib import Path

import _entry
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf


def main(cfg: DictConfig) -> None:
    """Compose, train once per seed, save."""
    # Imported here: --help stays quick, and launchers that pickle this function send no modules along.
    import varlab
    from varlab import configure, provenance, storage, training

    multirun = _entry.in_multirun()
    if multirun:
        configure.refuse_out_in_multirun(["-m", f"out={cfg.out or ''}"])
    _entry.set_threads(cfg.threads)
    files, seeds = storage.TRAINING_FILES, configure.training_seeds(cfg)
    command = _entry.command()
    plans = {seed: training.plan(**configure.training_arguments(cfg, seed)) for seed in seeds}
    _entry.plan_runs([planned.digest for planned in plans.values()])
    for seed, planned in plans.items():
        out = cfg.out and Path(cfg.out) / (f"seed_{seed}" if len(seeds) > 1 else "")
        folder = out or Path(HydraConfig.get().sweep.dir) / planned.digest
        with _entry.claimed(folder, planned.digest, files) as state:
            if state == "running":
                continue
            if state == "free":
                alone = OmegaConf.merge(cfg, {"seed": seed, "seeds": None})
                storage.begin(folder, planned.digest, OmegaConf.to_yaml(alone, resolve=True), files)
                with _entry.progress(quiet=multirun, unit="epochs") as progress:
                    result = training.run(planned, progress)
                storage.write_training(folder, result, provenance.provenance(result, {"train": seed}, command))
                storage.finish(folder, planned.digest, varlab.NUMERICS, files)
        curve, record = storage.read_training(folder)
        first, last = (curve["mean_return"].iloc[i] for i in (0, -1))
        print(f"seed {seed}: mean return {first:.4g} at first, {last:.4g} at last, {curve['steps'].iloc[-1]:,} steps")
        for note in record["notes"]:
            print(f"Note: {note}")
        print(f"{'Trained before' if state == 'done' else 'Written'}: {folder}")


if __name__ == "__main__":
    _entry.run(main, "train", preload=("varlab.training", "torch._dynamo"))
