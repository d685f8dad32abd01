"""What a configuration may build: Hydra's launchers and sweepers and varlab's own callbacks, at their places, and nothing else.

Hydra instantiates whatever a ``_target_`` names. Here every composed configuration is searched before Hydra acts on it.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import hydra._internal.hydra as composing
import yaml
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from varlab.checks import InputError

_PLUGINS = {"hydra.launcher._target_": Launcher, "hydra.sweeper._target_": Sweeper}
_CALLBACK = re.compile(r"hydra\.callbacks\.\w+\._target_")
_LOGGING = re.compile(r"hydra\.(job|hydra)_logging\.")
#: Classes that Hydra's logging configurations name.
_LOGGERS = (
    "logging.StreamHandler", "logging.FileHandler", "logging.NullHandler", "logging.Formatter", "colorlog.ColoredFormatter"
)  # fmt: skip
_STREAMS = ("ext://sys.stderr", "ext://sys.stdout")


class RefusedError(InputError):
    """A command line or configuration that is not acted upon."""


class ForeignCodeError(RefusedError):
    """A configuration that names code to run."""


class GuardedLoader(ConfigLoaderImpl):
    """Composes as Hydra does and refuses what names foreign code; workers of a launcher receive it with their jobs."""

    def load_configuration(self, *args: Any, **kwargs: Any) -> DictConfig:
        """Compose as Hydra does, whose arguments these are, and check.

        Returns:
            The configuration.

        Raises:
            RefusedError: where Hydra has no sentence of its own for what is wrong.
        """
        try:
            cfg = super().load_configuration(*args, **kwargs)
        except yaml.YAMLError as error:
            raise RefusedError(
                f"Configuration files in YAML were expected, but one could not be read ({' '.join(str(error).split())}); mend it."
            ) from error
        except ValueError as error:
            raise RefusedError(
                f"A choice by its name, or a list of names, was expected for every group, but something else came ({error}); "
                "write for instance env=cartpole."
            ) from error
        check(cfg)
        return cfg


@contextmanager
def guarded() -> Iterator[None]:
    """Let Hydra compose with :class:`GuardedLoader` while the block runs."""
    unguarded = composing.ConfigLoaderImpl
    composing.ConfigLoaderImpl = GuardedLoader
    try:
        yield
    finally:
        composing.ConfigLoaderImpl = unguarded


def check_words(words: Sequence[str]) -> None:
    """Refuse what Hydra would run before it composes anything.

    Args:
        words: the command line after the script's name.

    Raises:
        RefusedError: for unknown flags, or where a whole setting is taken out.
        ForeignCodeError: for a rerun from a pickled configuration, or configuration out of a Python package.
    """
    parser = get_args_parser()

    def refuse(message: str) -> None:
        raise RefusedError(f"Settings as key=value and flags that --hydra-help lists were expected, but: {message}; mend it.")

    parser.error = refuse
    flags = parser.parse_args(list(words))
    if flags.experimental_rerun is not None:
        raise ForeignCodeError(
            f"Settings in words or in YAML were expected, but --experimental-rerun {flags.experimental_rerun} came, which reads "
            "pickled code; name the folder of the earlier configuration with --config-dir."
        )
    for word in flags.overrides:
        if word.startswith("~") and not word.startswith("~phi."):
            raise RefusedError(
                f"A value was expected for every setting, but {word} takes one out; set it, or leave it at its default (only a Φ "
                "can be taken out, as ~phi.gae)."
            )
    for word in words:
        if "pkg://" in word:
            raise ForeignCodeError(
                f"A folder of configurations was expected, but {word} came, which imports a package; give the folder's path."
            )


def check(cfg: DictConfig) -> None:
    """Refuse a composed configuration that names code to run.

    Args:
        cfg: as Hydra composed it, with its own node or without.

    Raises:
        ForeignCodeError: naming the setting.
    """
    for path, value in _settings(cfg):
        key = path.rpartition(".")[2]
        named = isinstance(value, str) and value.startswith(("ext://", "cfg://")) and value not in _STREAMS
        if _LOGGING.match(path):
            foreign = key in ("()", "_target_", ".") or named or (key == "class" and value not in _LOGGERS)
        else:
            foreign = key == "_target_" and not _known(path, value)
        if foreign:
            raise ForeignCodeError(
                f"Settings alone were expected, but {path}={value} came, and a configuration may not name code to run; take it "
                "out, and bring an environment, a policy or a Φ of your own with user_module=path/to/file.py."
            )


def _known(path: str, value: object) -> bool:
    """Return whether a target is one that this place may hold."""
    if path in _PLUGINS:
        return value in {f"{c.__module__}.{c.__name__}" for c in Plugins.instance().discover(_PLUGINS[path])}
    if not (_CALLBACK.fullmatch(path) and isinstance(value, str) and value.startswith("varlab.")):
        return False
    module, _, name = value.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), name, None)
    except ImportError:
        return False
    # Defined there: varlab.configure.logging.… would lead out of the package.
    return isinstance(found, type) and issubclass(found, Callback) and found.__module__ == module


def _settings(cfg: DictConfig) -> Iterable[tuple[str, object]]:
    """Yield every (path, value) as it stands, and again as interpolations resolve where Hydra builds something."""
    yield from _walk(OmegaConf.to_container(cfg, resolve=False))
    for place in ("launcher", "sweeper", "callbacks", "job_logging", "hydra_logging"):
        node = OmegaConf.select(cfg, f"hydra.{place}")
        try:
            resolved = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else None
        except OmegaConfBaseException:
            continue  # Hydra cannot resolve it either
        yield from _walk(resolved, f"hydra.{place}.")


def _walk(tree: object, prefix: str = "") -> Iterable[tuple[str, object]]:
    pairs = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in pairs:
        yield f"{prefix}{key}", value
        yield from _walk(value, f"{prefix}{key}.")
