"""Atomic writes: a file appears whole under its name, or not at all."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from varlab.checks import InputError
from varlab.storage.digests import canonical

#: What the system says where a place cannot take files, and how to mend it.
_REFUSALS = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the quota of the disk is used up; free some space",
    errno.EFBIG: "no file may grow so large here; raise the limit (ulimit -f)",
    errno.EROFS: "it is on a read-only file system; name another folder",
    errno.EACCES: "writing there is not permitted; name another folder",
    errno.EPERM: "writing there is not permitted; name another folder",
    errno.ENOTDIR: "a file stands where one of its folders should be; name another folder",
    errno.EEXIST: "a file stands where one of its folders should be; name another folder",
}


def part_of(path: Path) -> Path:
    """Return the temporary name of ``path``: in its folder, so that the rename is atomic, and naming the writer."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}.part")


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn the system's refusal to write into one sentence.

    Args:
        path: what is being written.

    Raises:
        InputError: for a full disk, a read-only folder and the like.
        OSError: any other error passes.
    """
    try:
        yield
    except OSError as error:
        code = error.errno
        if code is None:  # pyarrow has its own words around the system's
            found = re.search(r"\[Errno (\d+)\]|errno: (\d+)", str(error))
            code = int(found[1] or found[2]) if found else None
        if code not in _REFUSALS:
            raise
        raise InputError(f"Room for {path} was expected, but {_REFUSALS[code]} and repeat the command.") from error


@contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """Give a temporary path to write to, which takes the place of ``path`` when the block ends without an error.

    Args:
        path: the file to write; its folder is made.

    Yields:
        Path: the temporary file's path.
    """
    path = Path(path)
    part = part_of(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield part
            os.replace(part, path)
        finally:
            with suppress(OSError):  # what went wrong before matters more
                part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Give a temporary folder to fill, which takes the name ``path`` when the block ends without an error.

    Args:
        path: the folder to make; one that is there already gives way.

    Yields:
        Path: the temporary folder's path.
    """
    path = Path(path)
    part = part_of(path)
    with writing(path):
        try:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            yield part
            shutil.rmtree(path, ignore_errors=True)
            os.replace(part, path)
        finally:
            shutil.rmtree(part, ignore_errors=True)


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


def write_tensors(path: str | Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write named tensors atomically, as ``torch.save`` does."""
    held = io.BytesIO()  # torch's own file writer hides what the system says of a full disk
    torch.save(dict(tensors), held)
    with atomic(path) as part:
        part.write_bytes(held.getbuffer())


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


def drop_abandoned(folder: Path) -> None:
    """Remove the temporary files and folders of writers that are gone."""
    for part in folder.glob(".*.part"):
        if abandoned(part):
            shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
