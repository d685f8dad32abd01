"""A Python file of the user's own, run because it was asked for by name, so that it can register its Φ, environment or policy."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

import gymnasium

from varlab import estimators, policies
from varlab.checks import InputError

#: Resolved path → digest of the content that was run in this process.
_LOADED: dict[str, str] = {}


def load(path: str | Path) -> str:
    """Run a Python file, once in a process, and return a digest of its content.

    The file registers what it brings: ``@varlab.estimators.register`` above a Φ, ``gymnasium.register`` for an environment,
    ``varlab.policies.register(kind, factory)`` for a policy. Nothing of varlab's own can be replaced.

    Args:
        path: the file, ``….py``.

    Returns:
        16 hexadecimal digits of the SHA-256 of its content, which belong into the digest of every run that uses it.

    Raises:
        InputError: if there is no such file, it fails, registers a name that is taken, or has changed since it was run.
    """
    path = Path(str(path))
    if path.suffix != ".py" or not path.is_file():
        raise InputError(
            f"A Python file was expected for user_module, but {path} is not one; give the path of a file that ends in .py."
        )
    raw = path.read_bytes()
    content, key = _digest(raw), str(path.resolve())
    if key in _LOADED:
        if _LOADED[key] != content:
            raise InputError(
                f"The content of {path} was expected to stay what it was when this process ran it, but it has changed; begin "
                "anew."
            )
        return content
    registries: tuple[MutableMapping[str, Any], ...] = (estimators.REGISTRY, policies.USER, gymnasium.registry)
    before = [dict(registry) for registry in registries]
    name = f"varlab_user_{content}"
    try:
        _run(name, path, raw)
        _refuse_replaced(path, registries, before)
    except BaseException:
        sys.modules.pop(name, None)
        for registry, was in zip(registries, before, strict=True):
            registry.clear()
            registry.update(was)
        raise
    _LOADED[key] = content
    return content


def digest(path: str | Path) -> str:
    """Return 16 hexadecimal digits of the SHA-256 of a file, which is not run.

    Raises:
        InputError: if it cannot be read.
    """
    try:
        return _digest(Path(str(path)).read_bytes())
    except OSError as error:
        raise InputError(f"A Python file was expected for user_module, but {path} cannot be read; give its path.") from error


def _digest(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()[:16]


def _run(name: str, path: Path, raw: bytes) -> None:
    """Run the bytes that were digested, as a module that classes can be found in again."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    try:
        exec(compile(raw, str(path), "exec"), module.__dict__)  # noqa: S102
    except InputError:
        raise  # a sentence already
    except (Exception, SystemExit) as error:
        line = error.lineno if isinstance(error, SyntaxError) else _line(error, str(path))
        raise InputError(
            f"A file that runs was expected for user_module, but {path} failed at line {line} ({type(error).__name__}: "
            f"{' '.join(str(error).split())}); mend it."
        ) from error


def _line(error: BaseException, file: str) -> int | None:
    """Return the last line of a file that an error passed through."""
    line, trace = None, error.__traceback__
    while trace is not None:
        line = trace.tb_lineno if trace.tb_frame.f_code.co_filename == file else line
        trace = trace.tb_next
    return line


def _refuse_replaced(path: Path, registries: tuple[Mapping[str, Any], ...], before: list[dict[str, Any]]) -> None:
    for registry, was in zip(registries, before, strict=True):
        taken = sorted(str(name) for name, member in was.items() if registry.get(name) is not member)
        if taken:
            raise InputError(
                f"New names alone were expected of {path}, but it replaces or removes {', '.join(taken)}; give its own another "
                "name."
            )
