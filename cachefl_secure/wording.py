"""Numbers with what they count, as people read them."""

from __future__ import annotations


def counted(number: int, what: str, plural: str = "") -> str:
    """``1 round``, ``2 rounds``, ``1,200 images``, ``0 entries`` (``plural`` given)."""
    return f"{number:,} {what if number == 1 else plural or what + 's'}"
