"""Messages as bytes: strict, canonical MessagePack, sized before it is parsed.

The contract of ``decode``: it returns a message or raises ``MalformedMessage``, nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import msgspec

from cachefl_secure.errors import MalformedMessage
from cachefl_secure.protocol.messages import MaskedInput, Message
from cachefl_secure.protocol.parameters import MAX_SILOS, RoundParameters

_PER_ENVELOPE_BYTES = 1024
_PER_SILO_BYTES = 512  # the longest entry, a signed advertisement, takes 290
MANIFEST_LIMIT_BYTES = _PER_ENVELOPE_BYTES + MAX_SILOS * _PER_SILO_BYTES

_LONG_BYTES = 1 << 16
_ARRAY = 0x90  # of MessagePack, of at most 15 elements: the kind's name and the fields

M = TypeVar("M", bound=Message)


def encode(message: Message) -> bytes:
    """The one encoding of the message."""
    return msgspec.msgpack.encode(message)


def decode(data: bytes, kind: type[M], *, limit_bytes: int, peer: str) -> M:
    """The message of this kind that ``encode`` turned into ``data``.

    Raises:
        MalformedMessage: longer than ``limit_bytes``, not MessagePack, another kind, a missing, unknown,
            ill-typed or out-of-range field, trailing bytes, or not the canonical encoding.
    """
    if len(data) > limit_bytes:
        raise MalformedMessage(peer, f"{len(data)} bytes, at most {limit_bytes} expected")
    try:
        message = msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        # The parser's own words may quote the input, so they stay here.
        raise MalformedMessage(peer, f"not a {kind.__name__}") from None
    # One message, one byte string: digests of messages and of their bytes then say the same.
    if not _is_canonical(message, data):
        raise MalformedMessage(peer, f"{kind.__name__} is not canonically encoded")
    return message


def opening(kind: type[Message], before: Iterable[object], length: int) -> bytes:
    """How a message of this kind begins, up to the content of a byte string of ``length`` that follows the fields ``before``."""
    array = bytes([_ARRAY | 1 + len(kind.__struct_fields__)]) + msgspec.msgpack.encode(kind.__name__)
    return array + b"".join(map(msgspec.msgpack.encode, before)) + bytes_opening(length)


def bytes_opening(length: int) -> bytes:
    """How MessagePack begins a byte string: shortest form."""
    for tag, width in ((b"\xc4", 1), (b"\xc5", 2), (b"\xc6", 4)):
        if length < 1 << 8 * width:
            return tag + length.to_bytes(width, "big")
    raise ValueError(f"a byte string of {length} bytes")


def _is_canonical(message: Message, data: bytes) -> bool:
    """``encode(message) == data``, where ``message`` was decoded from ``data``, without encoding a long field again.

    If what is before the field and what is after it are canonical, the field itself is where it was read.
    """
    if len(data) < _LONG_BYTES:  # no field can be long
        return encode(message) == data
    fields = [getattr(message, name) for name in message.__struct_fields__]
    for place, field in enumerate(fields):
        if isinstance(field, bytes | memoryview) and len(field) >= _LONG_BYTES:
            before = opening(type(message), fields[:place], len(field))
            after = b"".join(map(msgspec.msgpack.encode, fields[place + 1 :]))
            whole = len(before) + len(field) + len(after) == len(data)
            return whole and data.startswith(before) and data.endswith(after)
    return encode(message) == data


def limit_bytes(kind: type[Message], parameters: RoundParameters) -> int:
    """The longest envelope that a message of this kind can need in this round."""
    limit = _PER_ENVELOPE_BYTES + _PER_SILO_BYTES * parameters.cohort_size
    if kind is MaskedInput:
        limit += parameters.input_bytes + parameters.counter_bytes
    return limit
