"""Ring words of b bits in exactly the bits they need: what a masked update looks like on the wire.

A masked word is uniform modulo 2^w, w = 16 or 32; its low b <= w bits are uniform modulo 2^b, because 2^b
divides 2^w. Sums need no more than these. They are stored plane by plane: b is cut into widths 16, 8, 4, 2
and 1, largest first (21 = 16 + 4 + 1, 32 = 16 + 16); the first plane holds the lowest bits of all words, and
so on. In a plane, entry i has the bits from i * width on, little endian; a plane ends at a whole byte. So
every step is a shift, a narrowing or a widening of a whole array, and no bit crosses words.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

_WIDTHS = (16, 16, 8, 4, 2, 1)  # 16 twice: 32 = 16 + 16

# The last plane of a chunk must end at a whole byte unless the vector ends there.
CHUNK_WORDS = 1 << 16

Words = NDArray[np.unsignedinteger[Any]]
Bytes = NDArray[np.uint8]


def plane_widths(bits: int) -> tuple[int, ...]:
    """The widths that add up to ``bits``, 1 to 32, in the order of their planes."""
    if not 1 <= bits <= 32:
        raise ValueError(f"words of {bits} bits")
    widths, left = [], bits
    for width in _WIDTHS:
        if width <= left:
            widths.append(width)
            left -= width
    return tuple(widths)


def packed_bytes(dimension: int, bits: int) -> int:
    """Bytes of ``dimension`` packed words: ceil(dimension * width / 8) for every plane."""
    return sum(_plane_bytes(dimension, width) for width in plane_widths(bits))


class PackedVector:
    """``dimension`` words of ``bits`` bits in a buffer, written and read from any multiple of 8 on."""

    __slots__ = ("_planes",)

    def __init__(self, content: Bytes, dimension: int, bits: int) -> None:
        """``content`` is used, not copied.

        Raises:
            ValueError: it is not ``packed_bytes(dimension, bits)`` long.
        """
        if content.size != packed_bytes(dimension, bits):
            raise ValueError(f"{content.size} bytes for {dimension} words of {bits} bits")
        self._planes: list[tuple[int, int, Bytes]] = []  # lowest bit, width, bytes
        shift = at = 0
        for width in plane_widths(bits):
            size = _plane_bytes(dimension, width)
            self._planes.append((shift, width, content[at : at + size]))
            shift, at = shift + width, at + size

    def write(self, start: int, words: Words) -> None:
        """The low bits of ``words`` become the entries from ``start`` on; higher bits are dropped."""
        for shift, width, plane in self._planes:
            shifted = np.right_shift(words, words.dtype.type(shift)) if shift else words
            target = _slice(plane, start, words.size, width)
            if width >= 8:
                np.copyto(target.view(f"<u{width // 8}"), shifted, casting="unsafe")
            else:
                target[:] = _narrow(shifted, width)

    def read(self, start: int, out: Words) -> None:
        """Overwrites ``out`` with the entries from ``start`` on, in [0, 2^bits). Bits past the last entry are not looked at."""
        for shift, width, plane in self._planes:
            source = _slice(plane, start, out.size, width)
            narrow = source.view(f"<u{width // 8}") if width >= 8 else _widen(source, width)[: out.size]
            if shift:
                np.bitwise_or(out, np.left_shift(narrow, out.dtype.type(shift), dtype=out.dtype), out=out)
            else:
                np.copyto(out, narrow)

    def add(self, start: int, total: Words) -> None:
        """Adds the entries from ``start`` on to ``total``, plane by plane, modulo its word."""
        for shift, width, plane in self._planes:
            source = _slice(plane, start, total.size, width)
            narrow = source.view(f"<u{width // 8}") if width >= 8 else _widen(source, width)[: total.size]
            if shift:
                narrow = np.left_shift(narrow, total.dtype.type(shift), dtype=total.dtype)
            np.add(total, narrow, out=total)


def pack(words: Words, bits: int) -> Bytes:
    """The words modulo 2^bits, packed."""
    content = np.empty(packed_bytes(words.size, bits), np.uint8)
    packed = PackedVector(content, words.size, bits)
    for start in range(0, words.size, CHUNK_WORDS):
        packed.write(start, words[start : start + CHUNK_WORDS])
    return content


def unpack(content: Bytes, dimension: int, bits: int) -> Words:
    """The words that ``pack`` packed, as uint16 or uint32.

    Raises:
        ValueError: the buffer has another length. Found before anything is allocated.
    """
    packed = PackedVector(content, dimension, bits)
    words: Words = np.empty(dimension, "<u2" if bits <= 16 else "<u4")
    for start in range(0, dimension, CHUNK_WORDS):
        packed.read(start, words[start : start + CHUNK_WORDS])
    return words


def _plane_bytes(dimension: int, width: int) -> int:
    return -(-dimension * width // 8)


def _slice(plane: Bytes, start: int, count: int, width: int) -> Bytes:
    return plane[start * width // 8 : start * width // 8 + _plane_bytes(count, width)]


def _narrow(words: Words, width: int) -> Bytes:
    """Entries of 1, 2 or 4 bits, 8 / width to a byte. Each pass joins neighbours: a byte pair into a byte."""
    narrow = np.zeros(-(-words.size // 8) * 8, np.uint8)  # zeros fill the last byte
    np.bitwise_and(words, words.dtype.type((1 << width) - 1), out=narrow[: words.size], casting="unsafe")
    filled = width
    while filled < 8:
        pairs = narrow.view("<u2")
        narrow = (pairs | pairs >> np.uint16(8 - filled)).astype(np.uint8)
        filled *= 2
    return narrow[: _plane_bytes(words.size, width)]


def _widen(source: Bytes, width: int) -> Bytes:
    """The opposite of ``_narrow``: one entry a byte, those of the last byte's filling included."""
    wide, filled = source, 8
    while filled > width:
        filled //= 2
        pairs = wide.astype("<u2")
        low = np.uint16(0x0101 * ((1 << filled) - 1))
        wide = ((pairs | pairs << np.uint16(8 - filled)) & low).view(np.uint8)
    return wide
