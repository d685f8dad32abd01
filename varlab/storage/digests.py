"""Digests: short names that stand for content, the same on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


def canonical(value: Any) -> Any:
    """Return ``value`` as plain JSON data that is equal exactly where the settings are equal.

    Args:
        value: None, bool, int, float, str, numpy scalar, array, tensor, dataclass, or lists and mappings of these. Arrays and
            tensors become dtype, shape and the SHA-256 of their bytes.

    Returns:
        The JSON data; keys are sorted when it is dumped.

    Raises:
        TypeError: for any other type, whose text might name a path, an address or a time.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.generic):
        return canonical(value.item())
    if isinstance(value, Tensor):
        raw = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return {"dtype": str(value.dtype).removeprefix("torch."), "shape": list(value.shape), "sha256": _sha256(raw)}
    if isinstance(value, np.ndarray) and value.dtype != object:
        raw = np.ascontiguousarray(value).tobytes()
        return {"dtype": str(value.dtype), "shape": list(value.shape), "sha256": _sha256(raw)}
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {type(value).__name__: {f.name: canonical(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, Mapping):
        return {str(k): canonical(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(v) for v in value]
    raise TypeError(f"a digest covers numbers, text, arrays and records, not {type(value).__name__}; turn it into one of these")


def digest(mapping: Mapping[str, Any]) -> str:
    """Return 16 hexadecimal digits that stand for the content of ``mapping``.

    SHA-256 over canonical JSON: sorted keys, floats by ``repr``, arrays by dtype, shape and bytes. The order of keys, the
    process and the machine do not matter.
    """
    text = json.dumps(canonical(mapping), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return _sha256(text.encode())[:16]


def _sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()
