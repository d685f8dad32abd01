"""Shards of one reference on disk: a file each beside the reference that they make, with a checksum of its content."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from varlab.storage.atomic import read_npz, write_npz
from varlab.storage.cache import UNREADABLE, first_line
from varlab.storage.digests import digest


def shard_path(folder: str | Path, reference_digest: str, shard: int, shards: int) -> Path:
    """Return the file of one shard of a reference."""
    return Path(folder) / f"reference-{reference_digest}.shard-{shard:03d}-of-{shards:03d}.npz"


def write_shard(folder: str | Path, reference_digest: str, shard: int, shards: int, arrays: Mapping[str, np.ndarray]) -> Path:
    """Write one shard atomically.

    Args:
        folder: of the cache.
        reference_digest: of the whole reference.
        shard: which one.
        shards: of how many.
        arrays: its content by name.

    Returns:
        The file.
    """
    path = shard_path(folder, reference_digest, shard, shards)
    write_npz(path, {**arrays, "checksum": np.array(_checksum(path, arrays))})
    return path


def read_shard(folder: str | Path, reference_digest: str, shard: int, shards: int) -> tuple[dict[str, np.ndarray] | None, str]:
    """Read one shard; arguments are those of :func:`write_shard`.

    Returns:
        Its arrays and an empty text; or None and what is wrong with the file, ``missing`` where there is none.
    """
    path = shard_path(folder, reference_digest, shard, shards)
    if not path.exists():
        return None, "missing"
    try:
        arrays = read_npz(path)
        checksum = str(arrays.pop("checksum"))
    except UNREADABLE as error:
        return None, f"damaged: {first_line(error)}"
    if checksum != _checksum(path, arrays):
        return None, "damaged: its checksum differs from its content"
    return arrays, ""


def _checksum(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    return digest({"key": path.stem, **arrays})
