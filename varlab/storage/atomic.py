"""Atomic writes: a file appears whole under its name, or not at all."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from varlab.storage.digests import canonical


def part_of(path: Path) -> Path:
    """Return the temporary name of ``path``: in its folder, so that the rename is atomic, and naming the writer."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.part")


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to, which takes the place of ``path`` when the block ends without an error.

    Args:
        path: the file to write; its folder is made.

    Yields:
        Path: the temporary file's path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = part_of(path)
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write ``text`` atomically."""
    with atomic(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write ``data`` atomically as indented JSON."""
    write_text(path, json.dumps(canonical(data), indent=2, ensure_ascii=False) + "\n")


def write_npz(path: str | Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays atomically, uncompressed (moments do not compress)."""
    with atomic(path) as part, open(part, "wb") as file:
        np.savez(file, **arrays)


def read_npz(path: str | Path) -> dict[str, np.ndarray]:
    """Return the arrays of an archive; pickled objects are refused with a ValueError."""
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as data:  # np.load leaves open what it cannot read
        return dict(data)


def abandoned(part: Path) -> bool:
    """Return whether the writer of a temporary file is gone; only of a process on this host can that be known."""
    host, _, pid = part.name.removesuffix(".part").rpartition("-")
    if not host.endswith(f".{socket.gethostname()}") or not pid.isdigit():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return int(pid) == os.getpid()
