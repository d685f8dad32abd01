"""How far a sweep came, and the command that finishes it: python scripts/status.py --help."""

from __future__ import annotations

import shlex

import _entry
from omegaconf import DictConfig


def main(cfg: DictConfig) -> None:
    """Read the record of every sweep in a folder, and print the state of its jobs."""
    # Imported here so that --help stays quick.
    from varlab import storage
    from varlab.storage.jobs import STATES

    for sweep in storage.read_sweeps(cfg.sweep):
        command = shlex.join(["python", *sweep.command])
        print(command, " " + ", ".join(f"{len(sweep.of(state))} {state}" for state in STATES), sep="\n")
        for state in STATES:
            for job in sweep.of(state):
                where = f" ({job.folders[0]})" if len(job.folders) == 1 else ""
                print(f"  {state:8}{sweep.swept(job)}{f': {job.note}' if job.note else ''}{where}")
        left = len(sweep.jobs) - len(sweep.of("done"))
        mend = ", once what failed is mended" if left and len(sweep.of("failed")) == left else ""
        print(f"  To finish it{mend}: {command}" if left else "  All jobs are done.")


if __name__ == "__main__":
    _entry.run(main, "status")
