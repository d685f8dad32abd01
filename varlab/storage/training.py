"""The files of one training run: the curve, θ at its checkpoints, φ and provenance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from varlab import checks
from varlab.checks import InputError
from varlab.storage.atomic import atomic, write_json, write_tensors
from varlab.storage.cache import UNREADABLE, first_line
from varlab.storage.checksums import refuse_damage
from varlab.storage.theta import save_theta

#: What a training run may write.
TRAINING_FILES = (
    "config.yaml", "curve.csv", "curve.parquet", "theta_*.npz", "critic.pt", "provenance.json", "error.txt", "done.json",
)  # fmt: skip


def write_training(folder: str | Path, training: Any, provenance: Mapping[str, Any]) -> None:
    """Write the curve, θ of every checkpoint, the critic if there is one, and the provenance.

    Args:
        folder: a folder claimed by :func:`~varlab.storage.begin`.
        training: what :func:`varlab.training.train` returned.
        provenance: what :func:`varlab.provenance.provenance` returned.
    """
    folder = Path(folder)
    with atomic(folder / "curve.csv") as part:
        training.curve.to_csv(part, index=False)
    with atomic(folder / "curve.parquet") as part:
        training.curve.to_parquet(part, index=False)
    for name, state in training.checkpoints.items():
        save_theta(folder / f"theta_{name}.npz", state)
    if training.critic is not None:
        write_tensors(folder / "critic.pt", training.critic)
    write_json(folder / "provenance.json", provenance)


def read_training(folder: str | Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Read what :func:`write_training` wrote.

    Args:
        folder: a complete folder of a training run.

    Returns:
        The curve and the provenance.

    Raises:
        InputError: if a file is missing or damaged.
    """
    folder = Path(folder)
    refuse_damage(folder, ("curve.parquet", "provenance.json"))
    try:
        curve = pd.read_parquet(folder / "curve.parquet")
        return curve, json.loads((folder / "provenance.json").read_text(encoding="utf-8"))
    except UNREADABLE as error:
        raise InputError(
            f"A complete training run was expected in {folder}, but it could not be read ({first_line(error)}); train it again."
        ) from error


def checkpoint(folder: str | Path, at: object) -> Path:
    """Return the file of θ at a checkpoint of a finished training run.

    Args:
        folder: its folder.
        at: ``init``, ``mid``, ``late`` or an epoch that was listed.

    Returns:
        The path.

    Raises:
        InputError: if the folder is missing, unfinished, or holds no such checkpoint.
    """
    folder = Path(folder)
    if not (folder / "done.json").is_file():
        here = "is unfinished or of another kind" if folder.is_dir() else "does not exist"
        raise InputError(
            f"A folder of a finished training run was expected at {folder}, but it {here}; train first, or mend the path."
        )
    found = {path.stem.removeprefix("theta_"): path for path in folder.glob("theta_*.npz")}
    if not found:
        raise InputError(
            f"Checkpoints theta_….npz were expected in {folder}, but it holds none; name a folder of scripts/train.py."
        )
    path = found[checks.one_of("checkpoint", str(at), found)]
    refuse_damage(folder, (path.name,))
    return path
