"""Hydra's complaints about a command line as one sentence, with the nearest names."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from varlab import checks, launchers


def explain(error: Exception, words: Sequence[str], conf: str | Path, config_name: str) -> str:
    """Return what was wrong with a configuration as one sentence.

    Args:
        error: what Hydra or OmegaConf raised.
        words: the command line after the script's name.
        conf: the folder of configuration files.
        config_name: the primary configuration.

    Returns:
        One sentence; a mistyped group choice or key comes with the nearest names.
    """
    group, _, choice = (getattr(error, "missing_cfg_file", None) or "").rpartition("/")
    if group == "hydra/launcher":
        return launchers.unknown(choice)
    known = [path.stem for path in (Path(conf) / group).glob("*.yaml")] or list(getattr(error, "options", None) or [])
    if group and known and isinstance(error, MissingConfigException):
        return f"No choice of {group} is called '{choice}'; the nearest names are {checks.nearest(choice, known)}."
    key = re.match(r"Could not override '([^']+)'", str(error))
    if key:
        known = _known_keys(words, Path(conf), config_name)
        if key[1] in known:
            return f"Only entries that '{key[1]}' has already can be changed this way; add a new one as +{key[1]}.name=value."
        near = _nearest_keys(key[1], known)
        adds = ", and a plus adds a new one" if key[1].startswith(OPEN) else ""
        return f"No setting is called '{key[1]}'; the nearest names are {near} (--help lists all{adds})."
    if isinstance(error, OverrideParseException):
        return f"A setting written as key=value was expected, but '{error.override}' came; mend it or leave it out."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if getattr(error, "full_key", None):
        return f"A value was expected for {error.full_key}, but it cannot be had ({lines[0]}); mend it or give another."
    return f"The configuration could not be composed: {' '.join(lines).rstrip('.')}; mend what it names."


#: Where settings are added: arguments of a Φ, and of a world or a policy of the user's own.
OPEN = ("phi.", "env.kwargs.", "policy.settings.")


def _known_keys(words: Sequence[str], conf: Path, config_name: str) -> list[str]:
    """Return the groups, and the keys under the groups that the command line chose."""
    groups = [path.name for path in conf.iterdir() if path.is_dir() and path.name != "hydra"]
    chosen = []
    for word in words:
        try:
            override = OverridesParser.create().parse_override(word)
        except HydraException:
            continue
        if override.key_or_group in groups and not override.is_sweep_override():
            chosen.append(word)
    with initialize_config_dir(version_base="1.3", config_dir=str(conf)):
        try:
            cfg = compose(config_name, chosen)
        except (HydraException, OmegaConfBaseException):
            cfg = compose(config_name)
    return sorted({*groups, *_paths(OmegaConf.to_container(cfg, resolve=False))})


def _nearest_keys(key: str, known: Sequence[str]) -> str:
    """Return the keys that end like ``key`` (horizon: env.horizon), else the nearest beside the place where it would stand."""
    alike = [path for path in known if path.endswith(f".{key}")]
    if alike:
        return ", ".join(alike)
    parent = key.rpartition(".")[0]
    while parent and parent not in known:
        parent = parent.rpartition(".")[0]
    return checks.nearest(key, [path for path in known if path.rpartition(".")[0] == parent] or known)


def _paths(tree: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _paths(value, f"{prefix}{key}.")
