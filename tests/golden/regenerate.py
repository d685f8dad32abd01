"""Write runs.json anew after a change that moves numbers on purpose: raise varlab.NUMERICS first.

    python tests/golden/regenerate.py

It refuses to overwrite numbers that moved while NUMERICS did not.
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden.small_runs import FILE, RUNS, moved, numbers, read  # noqa: E402

import varlab  # noqa: E402


def main() -> int:
    """Compute, compare with what is there, write; return the exit status."""
    now = {}
    for name, make in RUNS.items():
        now[name] = numbers(make().summary)
        print(f"{name}: {len(now[name])} rows")
    if FILE.exists():
        kept = read()
        lines = [f"{n}: {x}" for n, rows in kept["runs"].items() if n in now for x in moved(rows, now[n])]
        if lines and kept["numerics"] == varlab.NUMERICS:
            print(*lines[:10], sep="\n", file=sys.stderr)
            print(
                f"{len(lines)} numbers moved, but varlab.NUMERICS is still {varlab.NUMERICS}; raise it in varlab/__init__.py and "
                "run this again.",
                file=sys.stderr,
            )
            return 1
    FILE.write_text(json.dumps({"numerics": varlab.NUMERICS, "runs": now}, indent=1) + "\n")
    print(f"wrote {FILE.name} for NUMERICS {varlab.NUMERICS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
