"""README.md says what the registry and results/ say, and its code runs."""

import re
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest

from varlab.analysis import readme
from varlab.checks import InputError
from varlab.estimators import REGISTRY

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_tables_are_what_commands_wrote():
    done = subprocess.run([sys.executable, "scripts/readme.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_an_altered_number_is_noticed(tmp_path):
    parts = {"a": "1 2 3"}
    filled = readme.fill("<!-- begin a -->\nold\n<!-- end -->\n", parts)
    assert readme.fill(filled, parts) == filled and "old" not in filled and "1 2 3" in filled
    assert readme.fill(filled, {"a": "1 2 4"}) != filled
    with pytest.raises(InputError, match="part of the README"):
        readme.fill("<!-- begin b -->\n<!-- end -->\n", parts)


def test_every_registered_phi_is_in_the_table():
    for name in REGISTRY:
        assert f"| `{name}" in TEXT


def test_ten_lines_of_python_run():
    code = re.search(r"```python\n(.*?)```", TEXT, re.DOTALL)[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 13
    known = set(gymnasium.registry)
    scope: dict = {}
    try:
        exec(compile(code, "README.md", "exec"), scope)  # noqa: S102
    finally:
        for added in set(gymnasium.registry) - known:
            del gymnasium.registry[added]
    rows = scope["result"].summary
    assert list(rows.phi) == ["total_return", "reward_to_go", "value_baseline"]
    assert (rows.variance_low < rows.variance).all() and (rows.variance < rows.variance_high).all()


def test_files_and_pictures_named_are_there():
    for path in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (ROOT / path).exists(), path
