"""The files of one run: per-trajectory scalars as they come, then summary, moments, critic and provenance."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from varlab.checks import InputError
from varlab.storage.atomic import atomic, part_of, read_npz, write_json, write_npz, write_tensors, writing
from varlab.storage.cache import UNREADABLE, first_line, pack_reference, unpack_reference
from varlab.storage.checksums import refuse_damage
from varlab.types import Moments, Reference


class ParquetSink:
    """Takes blocks of per-trajectory scalars as they come, so that memory does not grow with n.

    As a context manager it gives the file its name only if the block ends without an error.
    """

    def __init__(self, path: str | Path) -> None:
        """Prepare to write to ``path``; nothing is created before the first block."""
        self.path = Path(path)
        self._part = part_of(self.path)
        self._writer: pq.ParquetWriter | None = None

    def __call__(self, block: pd.DataFrame) -> None:
        """Append one block; float64 columns are kept as float32."""
        table = pa.Table.from_pandas(block.astype({c: "float32" for c in block.select_dtypes("float64")}), preserve_index=False)
        with writing(self.path):
            if self._writer is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._writer = pq.ParquetWriter(self._part, table.schema)
            self._writer.write_table(table)

    def close(self, keep: bool = True) -> None:
        """Close the file and give it its name, or drop it."""
        try:
            with writing(self.path) if keep else suppress(OSError):  # an error that came before matters more
                if self._writer is not None:
                    self._writer.close()
                    if keep:
                        os.replace(self._part, self.path)
        finally:
            self._writer = None
            with suppress(OSError):
                self._part.unlink(missing_ok=True)

    def __enter__(self) -> ParquetSink:
        """Return the sink."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close, keeping the file unless an error came."""
        self.close(keep=kind is None)


def write_run(folder: str | Path, result: Any, provenance: Mapping[str, Any]) -> None:
    """Write the summary, the moments with their references, the critic if there is one, and the provenance.

    Args:
        folder: a folder claimed by :func:`begin`.
        result: what :func:`varlab.measure` returned.
        provenance: what :func:`varlab.provenance.provenance` returned.
    """
    folder = Path(folder)
    moments: dict[str, np.ndarray] = {f.name: getattr(result.moments, f.name) for f in fields(Moments)}
    moments = {k: np.asarray(v) for k, v in moments.items() if v is not None}
    for objective, reference in result.references.items():
        moments |= {f"reference_{key}__{objective}": value for key, value in pack_reference(reference).items()}
    write_npz(folder / "moments.npz", moments)
    with atomic(folder / "summary.csv") as part:
        result.summary.to_csv(part, index=False)
    with atomic(folder / "summary.parquet") as part:
        result.summary.to_parquet(part, index=False)
    if result.critic is not None:
        write_tensors(folder / "critic.pt", result.critic.state_dict())
    write_json(folder / "provenance.json", provenance)


def read_settings(folder: str | Path) -> dict[str, Any]:
    """Return the numeric settings that a run recorded, or none where it was not finished or its record is damaged."""
    try:
        return json.loads((Path(folder) / "provenance.json").read_text(encoding="utf-8"))["settings"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def read_run(folder: str | Path) -> tuple[pd.DataFrame, Moments, dict[str, Reference], dict[str, Any]]:
    """Read what :func:`write_run` wrote.

    Args:
        folder: a complete run folder.

    Returns:
        The summary, the moments, the reference of each objective, and the provenance.

    Raises:
        InputError: if a file is missing or damaged.
    """
    folder = Path(folder)
    refuse_damage(folder, ("summary.parquet", "moments.npz", "provenance.json"))
    try:
        summary = pd.read_parquet(folder / "summary.parquet")
        arrays = read_npz(folder / "moments.npz")
        provenance = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
        marker = "reference_grad__"
        references = {}
        for objective in [k.removeprefix(marker) for k in arrays if k.startswith(marker)]:
            keys = ("grad", "info", "block_mean", "block_count")
            packed = {k: arrays[f"reference_{k}__{objective}"] for k in keys if f"reference_{k}__{objective}" in arrays}
            references[objective] = unpack_reference(packed)
        kept = {f.name: arrays.get(f.name) for f in fields(Moments)}
        kept |= {"names": tuple(str(name) for name in arrays["names"]), "comparator": int(arrays["comparator"])}
        kept["unit"] = int(arrays.get("unit", 1))
    except UNREADABLE as error:
        raise InputError(
            f"A complete run was expected in {folder}, but it could not be read ({first_line(error)}); measure it again."
        ) from error
    return summary, Moments(**kept), references, provenance


def read_trajectories(folder: str | Path, rows: int = 65_536) -> Iterator[pd.DataFrame]:
    """Read the per-trajectory scalars of a run part by part, so that memory does not grow with n.

    Args:
        folder: a complete run folder.
        rows: most rows of one part.

    Yields:
        Frames in the order of the trajectories.

    Raises:
        InputError: if the file is missing or damaged.
    """
    path = Path(folder) / "trajectories.parquet"
    refuse_damage(Path(folder), (path.name,))
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=rows):
                yield batch.to_pandas()
    except UNREADABLE as error:
        raise InputError(
            f"Per-trajectory scalars were expected in {path}, but they could not be read ({first_line(error)}); measure again."
        ) from error
