"""Rows of studies on disk: one parquet file under the digest of what made them, with a checksum of its content."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from varlab.storage.atomic import atomic
from varlab.storage.cache import UNREADABLE, first_line

log = logging.getLogger(__name__)
_SUM = b"varlab-checksum"


def write_rows(path: str | Path, rows: pd.DataFrame) -> None:
    """Write rows atomically."""
    table = pa.Table.from_pandas(rows.reset_index(drop=True), preserve_index=False)
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), _SUM: _checksum(rows).encode()})
    with atomic(path) as part:
        pq.write_table(table, part)


def read_rows(path: str | Path) -> pd.DataFrame | None:
    """Return rows, or None where there are none or the file is damaged, which the log says.

    Args:
        path: of :func:`write_rows`.

    Returns:
        The rows.
    """
    path = Path(path)
    if not path.exists():
        return None
    try:
        table = pq.read_table(path)
        rows = table.to_pandas()
        if _checksum(rows).encode() == (table.schema.metadata or {}).get(_SUM):
            return rows
        damage = "its checksum differs from its content"
    except (*UNREADABLE, pa.ArrowException) as error:
        damage = first_line(error)
    log.warning("The rows in %s are damaged (%s) and are not used.", path, damage)
    return None


def rows_or(path: str | Path, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Return the rows of a file; where there are none they are made and kept.

    Args:
        path: of the file.
        make: gives the rows.

    Returns:
        The rows, as they are read back.
    """
    rows = read_rows(path)
    if rows is None:
        write_rows(path, make())
        rows = read_rows(path)
    return rows


def _checksum(rows: pd.DataFrame) -> str:
    columns = ",".join(f"{name}:{kind}" for name, kind in rows.dtypes.items())
    content = pd.util.hash_pandas_object(rows, index=False).to_numpy().tobytes()
    return hashlib.sha256(columns.encode() + content).hexdigest()[:32]
