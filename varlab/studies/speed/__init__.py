"""The benchmark: varlab beside its peers on equal work, as ratios of one run."""
