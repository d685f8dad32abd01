"""Episodes that a target needs, from a pilot run, and whether a full run met it: python scripts/plan.py --help."""

from __future__ import annotations

import _entry
from omegaconf import DictConfig


def main(cfg: DictConfig) -> None:
    """Plan from a pilot, check a run, print."""
    # Imported here so that --help stays quick.
    from varlab import checks, storage
    from varlab.analysis import pilots

    if cfg.pilot is None and cfg.check is None:
        raise checks.InputError("A pilot or a run to check was expected, but neither came; give pilot=FOLDER or check=FOLDER.")
    planned = seen = None
    judged = None if cfg.check is None else storage.read_run(cfg.check)[:3]
    if cfg.pilot is not None:
        summary, moments, references, record = storage.read_run(cfg.pilot)
        seen = summary.iloc[0]
        if judged is not None and seen["digest"] == judged[0]["digest"].iloc[0]:
            raise checks.InputError("A run of its own was expected for the check, but it is the pilot; take another seed.")
        plan = pilots.plan_table(summary, moments, references, cfg.target, cfg.value)
        print(pilots.plan_text(plan))
        planned = pilots.choose(plan, cfg.choice)
        if cfg.check is None:
            out = f"{str(cfg.pilot).rstrip('/')}_full"
            command = pilots.full_run(planned, seen, out, record.get("command", ()))
            print(f"To reach it with {planned['phi']}:\n  {command}")
            print(f"Then:\n  python scripts/plan.py check={out} target={cfg.target} value={cfg.value}")
    if judged is not None:
        summary = judged[0]
        check = pilots.check_table(*judged, cfg.target, cfg.value)
        if cfg.choice is not None:
            check = check[check["phi"] == checks.one_of("Φ of the run", cfg.choice, check["phi"])]
        print(pilots.check_text(check))
        if planned is not None:
            shared = " with the pilot's seed, so not independent of it" if seen["seed"] == summary["seed"].iloc[0] else ""
            outcome = check.loc[check["phi"] == planned["phi"], "outcome"]
            print(f"{planned['phi']}: {', '.join(outcome) or 'not in this run'}{shared}.")


if __name__ == "__main__":
    _entry.run(main, "plan")
