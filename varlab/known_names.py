"""Which settings each script has: those of its primary configuration, of what that builds on, and of its groups."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from varlab import checks

#: Groups all of whose settings stand in their files.
_CLOSED = {"values", "reference", "theta"}


def check(settings: Mapping[str, Any], conf: Path, config_name: str) -> None:
    """Refuse a setting that nobody reads, which ``+name=value`` or a file of the user's own may bring.

    Args:
        settings: a composed configuration as plain data.
        conf: the folder of configurations.
        config_name: the primary configuration.

    Raises:
        InputError: naming the setting and those nearest to it.
    """  # noqa: DOC502
    known = _names(conf, config_name)
    for group in _CLOSED & set(settings):
        known |= {f"{group}.{key}" for file in (conf / group).glob("*.yaml") for key in _keys(file)}
    given = set(settings) | {f"{g}.{key}" for g in _CLOSED if isinstance(settings.get(g), Mapping) for key in settings[g]}
    for name in sorted(given - {"hydra"}):
        checks.one_of("setting", name, known)


def _names(conf: Path, config_name: str) -> set[str]:
    """Return the top-level settings of a primary configuration: its own, those of what it builds on, and its groups."""
    found, tree = _keys(conf / f"{config_name}.yaml"), _read(conf / f"{config_name}.yaml")
    for entry in tree.get("defaults", []):
        if isinstance(entry, str):
            found |= set() if entry == "_self_" else _names(conf, entry)
            continue
        group = next(iter(entry)).split()[-1].strip("/")
        if not group.startswith("hydra"):
            found.add(group)
            found |= {key for file in (conf / group).glob("*.yaml") if _is_global(file) for key in _keys(file)}
    return found


def _read(file: Path) -> dict[str, Any]:
    return yaml.safe_load(file.read_text(encoding="utf-8")) or {}


def _keys(file: Path) -> set[str]:
    return set(_read(file)) - {"defaults", "hydra"}


def _is_global(file: Path) -> bool:
    return "@package _global_" in file.read_text(encoding="utf-8").partition("\n")[0]
