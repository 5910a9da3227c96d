"""Messages as bytes: strict, canonical MessagePack, sized before it is parsed.

The contract of ``decode``: it returns a message or raises ``MalformedMessage``, nothing else.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from cachefl_secure.errors import MalformedMessage
from cachefl_secure.protocol.messages import MaskedInput, Message
from cachefl_secure.protocol.parameters import MAX_SILOS, RoundParameters

_PER_ENVELOPE_BYTES = 1024
_PER_SILO_BYTES = 512  # the longest entry, a signed advertisement, takes 290
MANIFEST_LIMIT_BYTES = _PER_ENVELOPE_BYTES + MAX_SILOS * _PER_SILO_BYTES

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
    if encode(message) != data:
        raise MalformedMessage(peer, f"{kind.__name__} is not canonically encoded")
    return message


def limit_bytes(kind: type[Message], parameters: RoundParameters) -> int:
    """The longest envelope that a message of this kind can need in this round."""
    limit = _PER_ENVELOPE_BYTES + _PER_SILO_BYTES * parameters.cohort_size
    if kind is MaskedInput:
        limit += parameters.input_bytes + parameters.counter_bytes
    return limit
