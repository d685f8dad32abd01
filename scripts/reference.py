"""Make one large reference in shards, which any number of machines share: python scripts/reference.py --help."""

from __future__ import annotations

import _entry
from omegaconf import DictConfig


def main(cfg: DictConfig) -> None:
    """Make a shard, or none; then gather if all are there."""
    # Imported here: --help stays quick, and launchers that pickle this function send no modules along.
    from varlab import configure, plans, shards, storage

    _entry.set_threads(cfg.threads)
    planned = plans.plan(**configure.reference_arguments(cfg))
    cache = storage.ReferenceCache(cfg.cache)
    with _entry.progress(quiet=_entry.in_multirun()) as progress:
        made = shards.Shards(planned, cfg.shards, cache, progress)
        if cfg.shard is not None:
            fresh = made.make(cfg.shard)
            print(f"Shard {cfg.shard} of {cfg.shards}: {'written' if fresh else 'was there before'}")
            if lacking := made.lacking():
                print(f"Still to come: {', '.join(map(str, lacking))}")
                return
        for objective, reference in made.gather().items():
            print(f"Reference of {objective} from {reference.n:,} trajectories: {cache.path(reference.digest)}")
    print(f"Measure with it: the same settings, reference=sampled reference.n={planned.options['n_reference']}")


if __name__ == "__main__":
    _entry.run(main, "reference")
