"""The rooms and the one way between them, read from the source."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import varlab

ROOT = Path(varlab.__file__).resolve().parent
#: From the bottom up: a room may import rooms before it and itself.
ORDER = (
    "checks", "workers", "capabilities", "types", "layout", "rng", "storage", "envs", "policies", "rollout", "values",
    "estimators", "scores", "terms", "cores", "oracles", "analysis", "plans", "summary", "sources", "references",
    "preparation", "shards",
    "experiment", "traces", "training", "studies", "provenance", "launchers", "user_modules", "repetition", "guard", "kinds",
    "known_names", "complaints", "configure", "sweeps",
)  # fmt: skip
#: Who may name files: checks asks whether a folder can be one, storage writes, provenance asks git, complaints and known_names
#: look into conf/, figures and tables save through storage; workers knows processes alone, and studies.speed.memory their sizes.
DISK = ("checks", "storage", "provenance", "user_modules", "complaints", "configure", "analysis.figures", "analysis.tables",
        "workers", "known_names", "studies.speed.memory")  # fmt: skip
#: Reading and writing by other doors than open().
DISK_CALLS = {
    "open", "save", "savez", "savetxt", "load", "loadtxt", "savefig", "to_csv", "to_parquet", "to_pickle", "read_csv",
    "read_parquet",
    "write_text", "write_bytes", "read_text", "read_bytes", "mkdir", "makedirs", "unlink", "rmdir", "rename", "dump",
}  # fmt: skip
PLOTTING = ("matplotlib", "seaborn")


def modules():
    """Dotted name below varlab → syntax tree; packages by their own name, the root is ''."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


TREES = modules()


def for_typing_only(tree):
    """Nodes inside ``if TYPE_CHECKING:``, which never run."""
    blocks = [n for n in ast.walk(tree) if isinstance(n, ast.If) and ast.unparse(n.test).endswith("TYPE_CHECKING")]
    return {id(inner) for block in blocks for statement in block.body for inner in ast.walk(statement)}


def imports(name, tree, known, top_level_only=False):
    """Modules of varlab that a module imports: (module, line)."""
    skip = for_typing_only(tree)
    if top_level_only:
        functions = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
        skip |= {id(inner) for f in functions for inner in ast.walk(f)}
    for node in ast.walk(tree):
        if id(node) in skip:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "varlab":
                    yield alias.name.removeprefix("varlab").lstrip("."), node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"varlab/{name}: relative imports hide where a name comes from (line {node.lineno})"
            if (node.module or "").split(".")[0] == "varlab":
                base = node.module.removeprefix("varlab").lstrip(".")
                for alias in node.names:
                    inner = f"{base}.{alias.name}".lstrip(".")
                    yield (inner if inner in known else base), node.lineno


def upward(trees):
    """Imports that go up, as sentences."""
    wrong = []
    for name, tree in trees.items():
        room = name.split(".")[0]
        for target, line in imports(name, tree, trees):
            above = target.split(".")[0]
            if not target or above == room:  # the root holds two constants and imports checks alone
                continue
            if room == "" and above != "checks" or room and ORDER.index(above) > ORDER.index(room):
                wrong.append(f"{name or '__init__'}:{line} imports {target}")
    return wrong


def cycles(trees):
    """Modules that import each other in a circle while they load, as a path or None."""
    graph = {
        name: {t for t, _ in imports(name, tree, trees, top_level_only=True) if t and t != name} for name, tree in trees.items()
    }
    done = set()

    def visit(name, path):
        if name in path:
            return [*path[path.index(name) :], name]
        if name in done:
            return None
        for target in sorted(graph.get(name, ())):
            # A package loads its parts: a part may not go back through the package's own door.
            if found := visit(target, [*path, name]):
                return found
        done.add(name)
        return None

    return next((found for name in sorted(graph) if (found := visit(name, []))), None)


def calls(tree):
    """(dotted name called, line) of every call."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


def where(rule):
    """Places in the package that break a rule: (name, tree) → lines."""
    return [f"{name or '__init__'}:{line}" for name, tree in TREES.items() for line in rule(name, tree)]


def test_every_room_has_a_place_in_the_order():
    rooms = {name.split(".")[0] for name in TREES} - {""}
    assert rooms <= set(ORDER), f"give {rooms - set(ORDER)} a place in ORDER"
    assert len(ORDER) == len(set(ORDER))


def test_imports_go_one_way():
    assert not upward(TREES)


def test_no_modules_import_each_other_in_a_circle():
    assert cycles(TREES) is None


@pytest.mark.parametrize(
    ("room", "text"),
    [
        ("checks", "from varlab.types import Layout"), ("envs.base", "import varlab.rollout"),
        ("rollout", "from varlab import values"),
        ("scores.base", "def f():\n    from varlab.analysis.moments import Block"), ("types", "from varlab import rng, envs"),
        ("", "from varlab import experiment"), ("values.critic", "from varlab.experiment import measure as m"),
    ],
)  # fmt: skip
def test_an_upward_import_is_found(room, text):
    assert upward({**TREES, room: ast.parse(text)})


def test_a_circle_is_found_and_typing_alone_makes_none():
    one, other = ast.parse("from varlab.envs.finite import x"), ast.parse("def f():\n    from varlab.envs.base import y")
    trees = {"envs.base": one, "envs.finite": ast.parse("from varlab.envs.base import y")}
    assert cycles(trees) is not None and cycles({**trees, "envs.finite": other}) is None
    guarded = ast.parse("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from varlab.envs.base import y")
    assert cycles({**trees, "envs.finite": guarded}) is None
    assert not upward({"checks": ast.parse("if TYPE_CHECKING:\n    from varlab.experiment import Result")})


def touches_disk(name, tree):
    """Lines that open, read or write files, or know paths."""
    if name.startswith(DISK):
        return []
    lines = [line for called, line in calls(tree) if called.split(".")[-1] in DISK_CALLS and not called.startswith("logging")]
    for node in ast.walk(tree):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", "")]
        if isinstance(node, (ast.Import, ast.ImportFrom)) and {"pathlib", "shutil", "tempfile", "os", "io"} & {
            n.split(".")[0] for n in names
        }:
            lines.append(node.lineno)
    return lines


def test_only_storage_and_its_neighbours_touch_disk():
    assert not where(touches_disk)
    for text in ("open('x')", "import os", "from pathlib import Path", "np.save('x', y)", "frame.to_csv('x')"):
        assert touches_disk("rollout", ast.parse(text)) and not touches_disk("storage.runs", ast.parse(text))


def test_nobody_reads_the_command_line_or_prints():
    def rule(name, tree):
        names = {"sys.argv", "argv", "argparse"}
        read = [n.lineno for n in ast.walk(tree) if isinstance(n, (ast.Attribute, ast.Name)) and ast.unparse(n) in names]
        imported = [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Import) and any(a.name == "argparse" for a in n.names)]
        return read + imported + [line for called, line in calls(tree) if called in ("print", "input")]

    assert not where(rule)


def test_no_global_seed_and_no_global_setting():
    """Random numbers come from generators; where torch knows only the global one, rng lends it and gives it back."""
    forbidden = ("torch.manual_seed", "torch.seed", "random.seed", "np.random.seed", "torch.set_default_dtype",
                 "torch.use_deterministic_algorithms", "torch.cuda.manual_seed_all", "torch.set_default_device",
                 "torch.distributions.Distribution.set_default_validate_args", "torch.set_grad_enabled")  # fmt: skip
    lent = dict.fromkeys(("torch.random.fork_rng", "torch.default_generator.manual_seed", "torch.cuda.manual_seed"), "rng")
    lent["torch.set_num_threads"] = "workers"
    legacy = ("default_rng", "SeedSequence", "Generator", "PCG64")

    def rule(name, tree):
        for called, line in calls(tree):
            old = called.startswith("np.random.") and called.split(".")[-1] not in legacy
            if called in forbidden or old or lent.get(called, name) != name or called.endswith(".spawn"):
                yield line

    assert not where(rule)
    assert all(any(called in lent for called, _ in calls(TREES[room])) for room in set(lent.values()))


def test_rooms_keep_their_size():
    sizes = {p.relative_to(ROOT).as_posix(): len(p.read_text(encoding="utf-8").splitlines()) for p in ROOT.rglob("*.py")}
    assert not {name: size for name, size in sizes.items() if size > 350}


def test_only_figures_know_plotting():
    def rule(name, tree):
        for node in ast.walk(tree):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None) or ""]
            if isinstance(node, (ast.Import, ast.ImportFrom)) and names[0].split(".")[0] in (*PLOTTING, "hydra", "omegaconf"):
                drawing = name.startswith("analysis.") and names[0].split(".")[0] in PLOTTING
                if not drawing and name not in ("configure", "guard", "complaints", "sweeps") and not name.startswith("storage"):
                    yield node.lineno

    assert not where(rule)


def test_import_varlab_is_light_and_its_doors_load_neither_plotting_nor_hydra():
    heavy = (*PLOTTING, "hydra", "omegaconf")
    code = f"""
import sys, varlab
print([m for m in sys.modules if m.startswith("varlab.")], "gymnasium" in sys.modules, "pandas" in sys.modules)
varlab.measure, varlab.envs.make, varlab.policies.make, varlab.estimators, varlab.values
print([m for m in {heavy} if m in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['varlab.checks'] False False", "[]"]
