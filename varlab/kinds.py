"""What kind of value each setting of a script takes: text, a number, true or false. Ranges are checked where they are used."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from varlab import checks
from varlab.checks import InputError

#: (name, value) → nothing, or an InputError.
Kind = Callable[[str, Any], object]


def number(what: str, value: object) -> None:
    """Check for a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InputError(f"{what} must be a finite number, but it is {value!r}; set {what} to one.")


def text(what: str, value: object) -> None:
    """Check for a name or a path."""
    if not isinstance(value, str) or not value:
        raise InputError(f"{what} must be a name or a path, but it is {value!r}; give one, in quotes if it looks like a number.")


def folder(what: str, value: object) -> None:
    """Check for the path of a folder, which need not exist."""
    text(what, value)
    checks.folder(value, f"name another folder with {what}=")


def switch(what: str, value: object) -> None:
    """Check for true or false."""
    if not isinstance(value, bool):
        raise InputError(f"{what} must be true or false, but it is {value!r}; set {what}=true or {what}=false.")


def mapping(what: str, value: object) -> None:
    """Check for settings in braces."""
    if not isinstance(value, Mapping):
        raise InputError(f"{what} must hold settings, but it is {value!r}; leave it out or change one as {what}.name=value.")


def foreign(what: str, value: object) -> None:
    """Check that a setting of another script is not given."""
    if value is not None:
        raise InputError(f"No {what} was expected here, because another script reads it, but it is {value!r}; leave it out.")


def whole(least: int = 1) -> Kind:
    """Return the kind of whole numbers of at least ``least``."""
    return lambda what, value: checks.positive_int(what, value, least)


def optional(kind: Kind) -> Kind:
    """Return a kind that null belongs to as well."""
    return lambda what, value: value is None or kind(what, value)


def several(kind: Kind, alone: bool = False, least: int = 0) -> Kind:
    """Return the kind of lists of at least ``least`` of another; with ``alone`` one may stand without brackets."""

    def check(what: str, value: object) -> None:
        if alone and not isinstance(value, list):
            kind(what, value)
            return
        if not isinstance(value, list):
            raise InputError(f"{what} must be a list, but it is {value!r}; write {what}=[…].")
        if len(value) < least:
            raise InputError(f"{what} must name at least one, but it is an empty list; write {what}=[…].")
        for member in value:
            kind(what, member)

    return check


_NAMES = several(text, alone=True, least=1)
_WORLD: dict[str, Kind] = {
    "env": mapping, "env.id": text, "env.kwargs": mapping, "policy": mapping, "policy.kind": text, "policy.scale": number,
    "policy.hidden": several(whole()), "policy.log_std": number, "policy.stochastic": switch, "policy.tau": number,
    "policy.settings": mapping, "theta": mapping, "theta.file": optional(text), "theta.run": text, "theta.path": text,
    "phi": mapping, "values": mapping, "values.source": text, "values.error": number, "critic": mapping, "critic.lr": number,
    "critic.hidden": several(whole()), "critic.activation": text, "critic.init": optional(text), "study": text,
    "out": optional(folder), "threads": optional(whole()), "user_module": optional(text), "gamma": number, "at_cut": text,
    "dtype": text, "device": text,
}  # fmt: skip
_DRAWN: dict[str, Kind] = {
    "style": mapping, "style.font_size": number, "style.dpi": whole(), "style.venue": optional(text),
    "cache": folder, "out": folder,
}  # fmt: skip
_MEASURED: dict[str, Kind] = {
    **_WORLD, **_DRAWN, "n": whole(), "out": optional(folder), "reference": mapping, "reference.kind": text,
    "objectives": optional(several(text, alone=True)), "behaviour": optional(text), "figures": switch,
    "repeat": optional(folder),
}  # fmt: skip
#: Primary configuration → path of a setting → its kind.
KINDS: Mapping[str, Mapping[str, Kind]] = {
    "measure": _MEASURED,
    "reference": {**_MEASURED, "shards": whole(), "shard": optional(whole(0)), "repeat": foreign},
    "train": {**_WORLD, "lr": number, "checkpoints": several(whole(0)), "vary_theta": switch, "optimizer": text},
    "figures": {
        **_DRAWN, "study": optional(_NAMES), "runs": _NAMES, "also": several(text),
        "allow_mixed_numerics": switch, "seed": whole(0),
    },
    "plan": {
        "pilot": optional(text), "check": optional(text), "target": text, "value": number, "choice": optional(text)
    },
    "claims": {**_DRAWN, "claims": _NAMES, "workers": whole(), "seed": whole(0)},
    "calibrate": {
        **_DRAWN, "worlds": optional(several(text, least=1)), "n": several(whole(), least=1), "repeats": whole(),
        "seed": whole(0), "workers": whole(),
    },
    "textbook_order": {**_DRAWN, "mdps": whole(), "seed": whole(0), "threads": optional(whole())},
    "benchmark": {
        "works": several(text, least=1), "size": text, "repeats": optional(whole()), "device": text, "threads": whole(),
        "out": folder, "only": mapping, "only.k": optional(several(whole())), "only.t": optional(several(whole())),
        "only.hidden": optional(several(several(whole()))), "only.n": optional(whole()),
    },
}  # fmt: skip


def check(settings: Mapping[str, Any], config_name: str) -> None:
    """Refuse a setting of the wrong kind.

    Args:
        settings: a composed configuration as plain data; what it lacks is not asked for, and ``???`` stands for what is missing.
        config_name: the primary configuration.

    Raises:
        InputError: naming the setting.
    """  # noqa: DOC502
    for path, kind in KINDS.get(config_name, {}).items():
        *parents, key = path.split(".")
        holder: Any = settings
        for parent in parents:
            holder = holder.get(parent, {}) if isinstance(holder, Mapping) else {}
        if isinstance(holder, Mapping) and key in holder and holder[key] != "???":
            kind(path, holder[key])
