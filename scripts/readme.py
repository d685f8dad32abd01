"""Write the tables of README.md from results/ and the registry: python scripts/readme.py [--check]."""

from __future__ import annotations

import sys
from pathlib import Path

from varlab.analysis import readme

ROOT = Path(__file__).resolve().parents[1]
TABLE, RULES, SPEED = "results/reproduce/table.md", "results/calibration/rules.md", "results/benchmarks/latest.json"
CLAIMS = "results/claims/contradicted.md"


def filled() -> str:
    """Return README.md as it should be."""
    parts = {
        TABLE: (ROOT / TABLE).read_text(encoding="utf-8").strip(),
        SPEED: readme.speed_table((ROOT / SPEED).read_text(encoding="utf-8")),
        CLAIMS: (ROOT / CLAIMS).read_text(encoding="utf-8").strip(),
        RULES: (ROOT / RULES).read_text(encoding="utf-8").strip(),
        "phi": readme.phi_table(),
        "worlds": readme.worlds_table(),
    }
    return readme.fill((ROOT / "README.md").read_text(encoding="utf-8"), parts)


if __name__ == "__main__":
    text, path = filled(), ROOT / "README.md"
    if "--check" not in sys.argv:
        path.write_text(text, encoding="utf-8")
    elif path.read_text(encoding="utf-8") != text:
        sys.exit("README.md differs from what results/ and the registry say; run python scripts/readme.py.")
