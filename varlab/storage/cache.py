"""References as arrays, and the cache that shares them between runs."""

from __future__ import annotations

import json
import logging
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from varlab.storage.atomic import drop_abandoned, read_npz, write_npz
from varlab.storage.digests import canonical, digest
from varlab.types import Reference

log = logging.getLogger(__name__)

#: What reading a truncated or altered file may raise.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error)


def pack_reference(reference: Reference) -> dict[str, np.ndarray]:
    """Return a reference as arrays; what is not an array becomes one JSON text, ``info``."""
    info = {"j": reference.j, "kind": reference.kind, "n": reference.n, "digest": reference.digest, "steps": reference.steps}
    packed = {"grad": reference.grad, "info": np.array(json.dumps({**canonical(info), "objective": reference.objective}))}
    if not reference.exact:
        packed |= {"block_mean": reference.block_mean, "block_count": reference.block_count}
    return packed


def unpack_reference(packed: Mapping[str, np.ndarray]) -> Reference:
    """Return the reference that :func:`pack_reference` packed."""
    info = json.loads(str(packed["info"]))
    return Reference(grad=packed["grad"], block_mean=packed.get("block_mean"), block_count=packed.get("block_count"), **info)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type where it has none."""
    return next(iter(str(error).splitlines()), type(error).__name__)


class ReferenceCache:
    """References on disk by digest, shared by every run: one npz file each, with a checksum of its content."""

    def __init__(self, folder: str | Path) -> None:
        """Use ``folder``; it is made when the first reference is put."""
        self.folder = Path(folder)

    def path(self, reference_digest: str) -> Path:
        """Return the file of a digest."""
        return self.folder / f"reference-{reference_digest}.npz"

    def get(self, reference_digest: str) -> Reference | None:
        """Return the reference of a digest, or None where there is none; a damaged file is named in the log and left out."""
        path = self.path(reference_digest)
        if not path.exists():
            return None
        try:
            packed = read_npz(path)
            checksum = str(packed.pop("checksum"))
            if checksum == digest({"key": reference_digest, **packed}):
                return unpack_reference(packed)
            damage = "its checksum differs from its content"
        except UNREADABLE as error:
            damage = first_line(error)
        log.warning("The cached reference %s is damaged (%s) and is computed again.", path, damage)
        return None

    def put(self, reference_digest: str, reference: Reference) -> None:
        """Store a reference under a digest."""
        drop_abandoned(self.folder)
        packed = pack_reference(reference)
        checksum = digest({"key": reference_digest, **packed})
        write_npz(self.path(reference_digest), {**packed, "checksum": np.array(checksum)})
