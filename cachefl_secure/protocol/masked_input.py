"""A masked input in the one buffer in which it travels: built in place by a silo, read in place by the coordinator.

It is tens of megabytes, and everything around its vectors is known from the sender and the parameters. So nothing is
parsed and nothing copied: the bytes around the vectors must be the very ones that ``wire.encode`` writes, and what is
between them has the length that is due. One message still is one byte string.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from cachefl_secure.crypto.sign import SIGNATURE_BYTES
from cachefl_secure.names import Digest
from cachefl_secure.protocol import wire
from cachefl_secure.protocol.messages import MaskedInput, Phase, Signed
from cachefl_secure.protocol.parameters import RoundParameters
from cachefl_secure.protocol.vectors import MaskedUpdate

_HEAD_CHARACTERS = 64
_HEAD = re.compile(rb"[0-9a-f]{64}\Z")
_HEAD_OPENING = b"\xd9" + _HEAD_CHARACTERS.to_bytes(1, "big")


@dataclass(frozen=True, slots=True)
class InputLayout:
    """The envelope of a silo's masked input: fixed bytes, each followed by a part of fixed length."""

    fixed: tuple[bytes, bytes, bytes, bytes]
    """Before vectors, counters, ledger head and signature."""
    lengths: tuple[int, int, int, int]
    """Of these."""
    parts: tuple[slice, ...]
    """Where these are."""
    body: slice
    """What is signed."""
    size: int

    @classmethod
    def of(cls, sender: str, parameters: RoundParameters) -> InputLayout:
        lengths = (parameters.input_bytes, parameters.counter_bytes, _HEAD_CHARACTERS, SIGNATURE_BYTES)
        body = wire.opening(MaskedInput, (), lengths[0]), wire.bytes_opening(lengths[1]), _HEAD_OPENING
        envelope = wire.opening(Signed, (sender, Phase.MASKED_INPUT), sum(map(len, body)) + sum(lengths[:3]))
        fixed = (envelope + body[0], body[1], body[2], wire.bytes_opening(SIGNATURE_BYTES))
        parts, at = [], 0
        for before, length in zip(fixed, lengths, strict=True):
            at += len(before)
            parts.append(slice(at, at + length))
            at += length
        return cls(fixed, lengths, tuple(parts), slice(len(envelope), parts[2].stop), at)

    def read(self, data: bytes) -> ArrivedInput | None:
        """Views of ``data``, its signature not yet verified; None if it is anything else than what ``wire.encode`` writes."""
        if len(data) != self.size:
            return None
        for fixed, part in zip(self.fixed, self.parts, strict=True):
            if data[part.start - len(fixed) : part.start] != fixed:
                return None
        words, counters, head, signature = self.parts
        if not _HEAD.match(data[head]):
            return None
        vector = MaskedUpdate(
            np.frombuffer(data, np.uint8, self.lengths[0], words.start), np.frombuffer(data[counters], "<u8")
        )
        body = memoryview(data)[self.body]
        return ArrivedInput(vector, Digest(data[head].decode()), body, data[signature])


@dataclass(frozen=True, slots=True, eq=False)
class ArrivedInput:
    """A masked input as the coordinator holds it."""

    vector: MaskedUpdate
    ledger_head: Digest
    body: memoryview
    signature: bytes


class InputBuffer:
    """A masked input that a silo is about to send. Fill ``vectors``, then set the counters, then sign, each once."""

    def __init__(self, sender: str, parameters: RoundParameters, ledger_head: Digest) -> None:
        self._layout = layout = InputLayout.of(sender, parameters)
        self._bytes = BytesIO(bytes(layout.size))
        with self._bytes.getbuffer() as content:
            for fixed, part in zip(layout.fixed, layout.parts, strict=True):
                content[part.start - len(fixed) : part.start] = fixed
            content[layout.parts[2]] = ledger_head.encode()

    def vectors(self) -> NDArray[np.uint8]:
        """To be written to. Drop it before ``sealed``."""
        return np.frombuffer(self._bytes.getbuffer(), np.uint8)[self._layout.parts[0]]

    def set_counters(self, content: bytes) -> None:
        with self._bytes.getbuffer() as view:
            view[self._layout.parts[1]] = content

    def body(self) -> memoryview:
        """What is to be signed."""
        return self._bytes.getbuffer()[self._layout.body]

    def sealed(self, signature: bytes) -> bytes:
        """The message. Not a copy, as long as nothing holds a view of it."""
        with self._bytes.getbuffer() as view:
            view[self._layout.parts[3]] = signature
        return self._bytes.getvalue()

    def __repr__(self) -> str:
        return f"InputBuffer(<{self._layout.size} bytes>)"
