"""Everything that touches disk: digests, run folders, their files, the reference cache and θ.

A run folder is written so that a reader never meets half a file: each file is written under a temporary name beside its
place and renamed, and ``done.json`` comes last. Nothing is ever unpickled but files of
Stable-Baselines3 that somebody vouches for.
"""

from varlab.storage.agents import Agent, read_agent
from varlab.storage.atomic import atomic, atomic_folder, read_npz, write_json, write_npz, write_text, writing
from varlab.storage.cache import ReferenceCache
from varlab.storage.checksums import damage, read_done
from varlab.storage.digests import canonical, digest
from varlab.storage.folders import (
    FILES,
    begin,
    find_runs,
    finish,
    folder_state,
    keep_error,
    read_config,
    read_error,
    same_finished_run,
)
from varlab.storage.jobs import Job, Sweep, read_sweeps
from varlab.storage.locks import lock, owner
from varlab.storage.rows import read_rows, rows_or, write_rows
from varlab.storage.runs import ParquetSink, read_run, read_settings, read_trajectories, write_run
from varlab.storage.shards import read_shard, shard_path, write_shard
from varlab.storage.theta import load_theta, read_tensors, save_theta
from varlab.storage.training import TRAINING_FILES, checkpoint, read_training, write_training

__all__ = [
    "FILES", "TRAINING_FILES", "Agent", "Job", "ParquetSink", "ReferenceCache", "Sweep", "atomic", "atomic_folder", "begin",
    "canonical", "checkpoint", "damage", "digest", "find_runs", "finish", "folder_state", "keep_error", "load_theta",
    "lock", "owner", "read_agent", "read_config", "read_done", "read_error", "read_npz", "read_rows", "read_run",
    "read_settings", "read_shard", "read_sweeps", "read_tensors", "read_training", "read_trajectories", "rows_or",
    "same_finished_run", "save_theta", "shard_path", "write_json", "write_npz", "write_rows", "write_run", "write_shard",
    "write_text", "write_training", "writing",
]  # fmt: skip
