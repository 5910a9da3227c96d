"""Tensors as safetensors bytes with an exact schema.

safetensors runs no code, but takes NaN payloads, any tensor name and any metadata. Here everything in
a file is expected by name, dtype and number of dimensions, and nothing else may be in it.
All metadata is one entry: safetensors writes several in a random order, and equal content
should give equal bytes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
import safetensors
import torch
from safetensors.torch import save as safetensors_save
from torch import Tensor

from cachefl_secure.errors import ConfigError

_METADATA = "cachefl-secure"
_NUMPY = {"F32": "<f4", "I64": "<i8"}

Schema = Mapping[str, tuple[str, int]]
"""Tensor name -> (safetensors dtype ``F32`` or ``I64``, number of dimensions)."""


def tensors_to_bytes(kind: str, tensors: Mapping[str, Tensor], fields: Mapping[str, str]) -> bytes:
    """A file of the given kind. Equal arguments give equal bytes."""
    note = json.dumps({"kind": kind, **fields}, sort_keys=True, separators=(",", ":"))
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors_save(contiguous, metadata={_METADATA: note})


def tensors_from_bytes(
    raw: bytes,
    *,
    kind: str,
    schema: Schema,
    fields: frozenset[str],
    file: str,
    optional: tuple[Schema, frozenset[str]] | None = None,
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and string fields of a file that ``tensors_to_bytes`` wrote.

    ``optional`` tensors and fields are in it all together or not at all.

    Raises:
        ConfigError: not safetensors, another kind, a tensor or field too many or too few, another
            dtype or number of dimensions, or a value that is not finite.
    """
    try:
        entries = dict(safetensors.deserialize(raw))  # type: ignore[no-untyped-call]
    except (safetensors.SafetensorError, ValueError, OverflowError) as error:
        raise ConfigError(file, "", f"not safetensors: {error}") from None
    if optional is not None and set(optional[0]) & set(entries):
        schema, fields = {**schema, **optional[0]}, fields | optional[1]
    found = _fields(raw, kind, fields, file)
    if set(entries) != set(schema):
        raise ConfigError(file, "", f"holds tensors {_names(entries)}, expected {_names(schema)}")
    return {name: _tensor(name, entries[name], schema[name], file) for name in schema}, found


def exact_float(text: str, field: str, file: str) -> float:
    """A finite number out of a field, written as ``repr`` does.

    Raises:
        ConfigError: anything else.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value) or repr(value) != text:
        raise ConfigError(file, field, f"{text[:40]!r} is not a number as written by this program")
    return value


def _names(names: Mapping[str, object]) -> str:
    return ", ".join(sorted(name[:40] for name in list(names)[:10])) or "none"


def _fields(raw: bytes, kind: str, expected: frozenset[str], file: str) -> dict[str, str]:
    # The header is JSON of a size that the safetensors parser has checked already.
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    metadata = header.get("__metadata__") or {}
    try:
        note = json.loads(metadata[_METADATA]) if set(metadata) == {_METADATA} else {}
    except (ValueError, RecursionError):
        note = {}
    if not isinstance(note, dict) or note.pop("kind", None) != kind:
        raise ConfigError(file, "", f"not a file of kind {kind!r}")
    if set(note) != expected or not all(isinstance(value, str) for value in note.values()):
        raise ConfigError(file, "", f"must hold exactly the fields {', '.join(sorted(expected))}")
    return note


def _tensor(name: str, entry: Mapping[str, object], expected: tuple[str, int], file: str) -> Tensor:
    dtype, dimensions = expected
    shape, data = entry["shape"], entry["data"]
    assert isinstance(shape, list)
    assert isinstance(data, bytes | bytearray)
    if (entry["dtype"], len(shape)) != expected:
        reason = f"{entry['dtype']} of shape {shape}, expected {dtype} of {dimensions} dimensions"
        raise ConfigError(file, name, reason)
    try:
        array = np.frombuffer(data, dtype=_NUMPY[dtype]).reshape(shape)
    except (ValueError, OverflowError):  # no bytes, under a shape like [0, 2**63]
        raise ConfigError(file, name, f"shape {shape} is impossible") from None
    if not np.isfinite(array).all():
        raise ConfigError(file, name, "holds a value that is not finite")
    # safetensors hands over a buffer of its own: no second copy of what may be hundreds of megabytes.
    return torch.from_numpy(array if array.flags.writeable else array.copy())
